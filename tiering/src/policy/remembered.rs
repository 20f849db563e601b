//! What a policy remembers of blocks that are gone.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hash};

/// A bounded map that forgets the oldest first. Taken entries leave a trace in the queue, which is swept when
/// there are as many of them as entries.
pub(super) struct Remembered<K, V, H> {
    entries: HashMap<K, (u64, V), H>,
    /// By age; an entry counts if its number is the one in the map.
    queue: VecDeque<(u64, K)>,
    next_number: u64,
    capacity: usize,
}

impl<K, V, H> Remembered<K, V, H>
where
    K: Copy + Eq + Hash,
    H: BuildHasher + Default,
{
    pub(super) fn new(capacity: usize) -> Self {
        Self { entries: HashMap::default(), queue: VecDeque::new(), next_number: 0, capacity }
    }

    pub(super) fn set_capacity(&mut self, capacity: usize) {
        self.capacity = capacity;
        self.trim();
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        self.entries.insert(key, (self.next_number, value));
        self.queue.push_back((self.next_number, key));
        self.next_number += 1;
        self.trim();
        if self.queue.len() > 2 * self.entries.len() + 64 {
            let entries = &self.entries;
            self.queue.retain(|(number, key)| entries.get(key).is_some_and(|entry| entry.0 == *number));
        }
    }

    /// What was remembered, and forgets it.
    pub(super) fn take(&mut self, key: &K) -> Option<V> {
        self.entries.remove(key).map(|(_, value)| value)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    fn trim(&mut self) {
        while self.entries.len() > self.capacity {
            let Some((number, key)) = self.queue.pop_front() else { return };
            if self.entries.get(&key).is_some_and(|entry| entry.0 == number) {
                self.entries.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::hash_map::RandomState;

    use super::*;

    #[test]
    fn the_oldest_is_forgotten_first_and_traces_are_swept() {
        let mut past = Remembered::<u32, u32, RandomState>::new(3);
        (0..4).for_each(|key| past.insert(key, key * 10));
        assert_eq!((past.take(&0), past.take(&1), past.len()), (None, Some(10), 2));
        past.insert(2, 21);
        past.insert(4, 40);
        past.insert(5, 50);
        assert_eq!((past.take(&3), past.take(&2)), (None, Some(21)), "2 was renewed, 3 was the oldest");
        for key in 0..10_000 {
            past.insert(key, key);
            assert_eq!(past.take(&key), Some(key));
        }
        assert!(past.queue.len() < 200, "{}", past.queue.len());
        (0..3).for_each(|key| past.insert(key, key));
        past.set_capacity(1);
        assert_eq!(past.len(), 1);
    }
}
