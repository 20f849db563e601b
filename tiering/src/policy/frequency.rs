//! Policies of one queue: least frequently used, greedy dual size frequency, and first in, first out.

use super::Weight;
use super::ranked::{Place, Queue, Rank, Rule};

fn first<K>(queues: &[Queue<K>]) -> Option<(usize, Rank)> {
    queues.first()?.first_key_value().map(|(rank, _)| (0, *rank))
}

/// Least frequently used, and of these the least recently used. Uses are counted while a block is resident.
pub(super) struct Lfu;

impl<K> Rule<K> for Lfu {
    /// Uses.
    type Note = u32;

    const QUEUES: usize = 1;

    fn enter(&mut self, _key: K, _weight: Weight, _above: Option<&u32>) -> (u32, Place) {
        (1, Place { queue: 0, rank: 1 })
    }

    fn used(&mut self, uses: &mut u32) -> Place {
        *uses = uses.saturating_add(1);
        Place { queue: 0, rank: u64::from(*uses) }
    }

    fn pick(&mut self, queues: &[Queue<K>]) -> Option<(usize, Rank)> {
        first(queues)
    }

    fn gone(&mut self, _key: K, _uses: u32) {}

    fn turn(&self, _queue: usize, _rank: Rank) -> u64 {
        0
    }
}

/// First in, first out, but for closure: a block that came early goes when nothing is behind it any more.
pub(super) struct Fifo {
    arrivals: u64,
}

impl Fifo {
    pub(super) fn new() -> Self {
        Self { arrivals: 0 }
    }
}

impl<K> Rule<K> for Fifo {
    /// Arrival.
    type Note = u64;

    const QUEUES: usize = 1;

    fn enter(&mut self, _key: K, _weight: Weight, _above: Option<&u64>) -> (u64, Place) {
        self.arrivals += 1;
        (self.arrivals, Place { queue: 0, rank: self.arrivals })
    }

    fn used(&mut self, arrival: &mut u64) -> Place {
        Place { queue: 0, rank: *arrival }
    }

    fn pick(&mut self, queues: &[Queue<K>]) -> Option<(usize, Rank)> {
        first(queues)
    }

    fn gone(&mut self, _key: K, _arrival: u64) {}

    fn turn(&self, _queue: usize, _rank: Rank) -> u64 {
        0
    }
}

/// Greedy dual size frequency: what a byte of a block saves, `uses x cost / bytes`, on top of the worth of the
/// last victim, so that what was worth much once goes in the end (Cherkasova 1998).
pub(super) struct Gdsf {
    /// Worth of the last victim.
    floor: f64,
}

pub(super) struct Worth {
    uses: u32,
    weight: Weight,
    worth: f64,
}

impl Gdsf {
    pub(super) fn new() -> Self {
        Self { floor: 0.0 }
    }

    fn place(&self, note: &mut Worth) -> Place {
        let saved = f64::from(note.weight.cost) / f64::from(note.weight.bytes.max(1));
        note.worth = self.floor + f64::from(note.uses) * saved;
        // Numbers that are not negative have the order of their bits.
        Place { queue: 0, rank: note.worth.to_bits() }
    }
}

impl<K> Rule<K> for Gdsf {
    type Note = Worth;

    const QUEUES: usize = 1;

    fn enter(&mut self, _key: K, weight: Weight, _above: Option<&Worth>) -> (Worth, Place) {
        let mut note = Worth { uses: 1, weight, worth: 0.0 };
        let place = self.place(&mut note);
        (note, place)
    }

    fn used(&mut self, note: &mut Worth) -> Place {
        note.uses = note.uses.saturating_add(1);
        self.place(note)
    }

    fn pick(&mut self, queues: &[Queue<K>]) -> Option<(usize, Rank)> {
        first(queues)
    }

    fn gone(&mut self, _key: K, note: Worth) {
        self.floor = self.floor.max(note.worth);
    }

    fn turn(&self, _queue: usize, _rank: Rank) -> u64 {
        0
    }
}
