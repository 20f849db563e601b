//! ARC: blocks used once and blocks used again, and a border between them that moves with regret.
//!
//! # Overview
//! What came once and what was used again have lists of their own, and each list a ghost list of what went
//! from it. A block that comes back while it is remembered says which list was too short
//! (Megiddo and Modha 2003). Each ghost list remembers as many blocks as the tier holds; the paper bounds them
//! together, which measured .028 less on small tiers of a conversation trace. The owner makes room before a
//! block comes in, so the border moves after the eviction and not before it.

use std::hash::{BuildHasher, Hash};

use super::Weight;
use super::ranked::{Place, Queue, Rank, Rule};
use super::remembered::Remembered;

const ONCE: usize = 0;
const AGAIN: usize = 1;

pub(super) struct Arc<K, H> {
    capacity: f64,
    /// How many blocks that were used once should stay.
    once_target: f64,
    resident: [usize; 2],
    ghosts: [Remembered<K, (), H>; 2],
}

impl<K: Copy + Eq + Hash, H: BuildHasher + Default> Arc<K, H> {
    pub(super) fn new() -> Self {
        let ghosts = || Remembered::new(0);
        Self { capacity: 0.0, once_target: 0.0, resident: [0; 2], ghosts: [ghosts(), ghosts()] }
    }

    /// The list that gives the next victim if it has a tail.
    fn list(&self) -> usize {
        if self.resident[ONCE] as f64 > self.once_target { ONCE } else { AGAIN }
    }
}

impl<K, H> Rule<K> for Arc<K, H>
where
    K: Copy + Eq + Hash + Send,
    H: BuildHasher + Default + Send,
{
    /// Its list.
    type Note = usize;

    const QUEUES: usize = 2;

    fn enter(&mut self, key: K, _weight: Weight, _above: Option<&usize>) -> (usize, Place) {
        let [once, again] = self.ghosts.each_ref().map(|ghosts| ghosts.len() as f64);
        let list = if self.ghosts[ONCE].take(&key).is_some() {
            self.once_target = (self.once_target + (again / once).max(1.0)).min(self.capacity);
            AGAIN
        } else if self.ghosts[AGAIN].take(&key).is_some() {
            self.once_target = (self.once_target - (once / again).max(1.0)).max(0.0);
            AGAIN
        } else {
            ONCE
        };
        self.resident[list] += 1;
        (list, Place { queue: list, rank: 0 })
    }

    fn used(&mut self, list: &mut usize) -> Place {
        self.resident[*list] -= 1;
        *list = AGAIN;
        self.resident[AGAIN] += 1;
        Place { queue: AGAIN, rank: 0 }
    }

    fn pick(&mut self, queues: &[Queue<K>]) -> Option<(usize, Rank)> {
        let list = self.list();
        let tail = |list: usize| queues[list].first_key_value().map(|(rank, _)| (list, *rank));
        tail(list).or_else(|| tail(1 - list))
    }

    fn gone(&mut self, key: K, list: usize) {
        self.resident[list] -= 1;
        self.ghosts[list].insert(key, ());
    }

    fn turn(&self, queue: usize, _rank: Rank) -> u64 {
        u64::from(queue != self.list())
    }

    fn set_capacity(&mut self, blocks: usize) {
        self.capacity = blocks as f64;
        self.once_target = self.once_target.min(self.capacity);
        self.ghosts.iter_mut().for_each(|ghosts| ghosts.set_capacity(blocks));
    }
}
