//! S3-FIFO: a small queue on probation, a main queue, and a ghost queue that lets back into the main one.
//!
//! # Overview
//! A block comes into the small queue, a tenth of the tier, unless it is remembered as one that went from
//! there (Yang et al. 2023). At the front of the small queue, one that was used again moves to the main queue; at
//! the front of the main queue, one that was used goes to its back and has one use less. One use is enough to
//! move (the paper's code asks for two).

use std::hash::{BuildHasher, Hash};

use super::Weight;
use super::ranked::{Place, Queue, Rank, Rule};
use super::remembered::Remembered;

const SMALL: usize = 0;
const MAIN: usize = 1;
/// Uses that count at most.
const USES_MAX: u8 = 3;

pub(super) struct S3Fifo<K, H> {
    small_capacity: usize,
    /// Resident blocks of the small queue.
    small: usize,
    next: u64,
    /// The main queue's front is in this round, which ends with this arrival.
    round: u64,
    round_ends: u64,
    ghosts: Remembered<K, (), H>,
}

pub(super) struct Standing {
    queue: usize,
    /// That would still save it at the front of the main queue.
    uses: u8,
    arrival: u64,
    /// The round in which it is at the front of the main queue.
    round: u64,
}

impl<K: Copy + Eq + Hash, H: BuildHasher + Default> S3Fifo<K, H> {
    pub(super) fn new() -> Self {
        Self { small_capacity: 0, small: 0, next: 0, round: 0, round_ends: 0, ghosts: Remembered::new(0) }
    }

    fn arrive(&mut self, note: &mut Standing) -> Place {
        self.next += 1;
        note.arrival = self.next;
        note.round = self.round + 1;
        Place { queue: note.queue, rank: note.arrival }
    }

    /// The queue that gives the next victim if it has a tail.
    fn queue(&self) -> usize {
        if self.small > self.small_capacity { SMALL } else { MAIN }
    }
}

impl<K, H> Rule<K> for S3Fifo<K, H>
where
    K: Copy + Eq + Hash + Send,
    H: BuildHasher + Default + Send,
{
    type Note = Standing;

    const QUEUES: usize = 2;

    fn enter(&mut self, key: K, _weight: Weight, _above: Option<&Standing>) -> (Standing, Place) {
        let queue = if self.ghosts.take(&key).is_some() { MAIN } else { SMALL };
        self.small += usize::from(queue == SMALL);
        let mut note = Standing { queue, uses: 0, arrival: 0, round: 0 };
        let place = self.arrive(&mut note);
        (note, place)
    }

    fn used(&mut self, note: &mut Standing) -> Place {
        if note.queue == SMALL {
            self.small -= 1;
            note.queue = MAIN;
            return self.arrive(note);
        }
        note.uses = (note.uses + 1).min(USES_MAX);
        Place { queue: MAIN, rank: note.arrival }
    }

    fn pick(&mut self, queues: &[Queue<K>]) -> Option<(usize, Rank)> {
        let queue = self.queue();
        let tail = |queue: usize| queues[queue].first_key_value().map(|(rank, _)| (queue, *rank));
        tail(queue).or_else(|| tail(1 - queue))
    }

    fn spare(&mut self, note: &mut Standing) -> Option<Place> {
        if note.queue == SMALL {
            return None;
        }
        if note.arrival > self.round_ends {
            self.round += 1;
            self.round_ends = self.next;
        }
        // While it had a child it was passed over at the front.
        let passed_over = self.round.saturating_sub(note.round).min(u64::from(USES_MAX)) as u8;
        note.uses = note.uses.saturating_sub(passed_over).checked_sub(1)?;
        Some(self.arrive(note))
    }

    fn gone(&mut self, key: K, note: Standing) {
        if note.queue == SMALL {
            self.small -= 1;
            self.ghosts.insert(key, ());
        }
    }

    fn turn(&self, queue: usize, _rank: Rank) -> u64 {
        u64::from(queue != self.queue())
    }

    fn set_capacity(&mut self, blocks: usize) {
        self.small_capacity = blocks / 10;
        self.ghosts.set_capacity(blocks);
    }
}
