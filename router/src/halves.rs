//! A bounded table that forgets what was not heard of for longest, half of it at a time: what comes goes into the
//! younger half, and when that is full the older one makes room for it.

use std::{collections::HashMap, mem};

/// Values by hashes.
#[derive(Debug)]
pub(crate) struct Halves<V> {
    max: usize,
    young: HashMap<u64, V>,
    old: HashMap<u64, V>,
}

impl<V> Halves<V> {
    /// For `max` values, of which the last `max / 2` are kept for sure.
    pub(crate) fn new(max: usize) -> Self {
        Self { max, young: HashMap::new(), old: HashMap::new() }
    }

    pub(crate) fn get(&self, key: u64) -> Option<&V> {
        self.young.get(&key).or_else(|| self.old.get(&key))
    }

    /// Sets a value, and makes it the youngest. Returns whether the younger half was begun with it.
    pub(crate) fn insert(&mut self, key: u64, value: V) -> bool {
        let is_full = self.young.len() >= self.max / 2;
        if is_full {
            self.turn();
        }
        self.old.remove(&key);
        self.young.insert(key, value);
        is_full
    }

    pub(crate) fn remove(&mut self, key: u64) {
        self.young.remove(&key);
        self.old.remove(&key);
    }

    /// Forgets the older half.
    pub(crate) fn turn(&mut self) {
        self.old = mem::take(&mut self.young);
    }

    pub(crate) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_bounded_and_keeps_what_comes_back() {
        let mut halves = Halves::new(64);
        for key in 1..1_000 {
            halves.insert(key, key);
            halves.insert(0, 7);
            assert!(halves.len() <= 64);
        }
        assert_eq!((halves.get(0), halves.get(999), halves.get(1)), (Some(&7), Some(&999), None));
        halves.turn();
        assert_eq!(halves.get(999), Some(&999));
        halves.remove(999);
        assert_eq!(halves.get(999), None);
        halves.turn();
        assert_eq!(halves.len(), 0);
    }
}
