//! Against a list that is searched from one end to the other.

use proptest::prelude::*;

use super::*;

const CAPACITY: usize = 12;

/// A sequence in use: how it is in the cache, and its keys.
struct Running {
    slots: Vec<Slot>,
    keys: Vec<u64>,
}

/// What the cache should be.
#[derive(Default)]
struct Oracle {
    /// Key and users; the inactive ones stand in the order in which they go.
    blocks: Vec<(u64, u32)>,
}

impl Oracle {
    fn matched(&self, keys: &[u64]) -> (usize, usize) {
        let users = keys
            .iter()
            .map_while(|key| self.blocks.iter().find(|(held, _)| held == key))
            .map(|(_, users)| *users);
        let users: Vec<_> = users.collect();
        (users.len(), users.iter().filter(|users| **users > 0).count())
    }

    fn active(&self) -> usize {
        self.blocks.iter().filter(|(_, users)| *users > 0).count()
    }

    fn run(&mut self, keys: &[u64]) -> Vec<u64> {
        let (matched, _) = self.matched(keys);
        let mut evicted = Vec::new();
        for key in &keys[..matched] {
            self.blocks.iter_mut().find(|(held, _)| held == key).unwrap().1 += 1;
        }
        for key in &keys[matched..] {
            if self.blocks.len() == CAPACITY {
                let place = self.blocks.iter().position(|(_, users)| *users == 0).unwrap();
                evicted.push(self.blocks.remove(place).0);
            }
            self.blocks.push((*key, 1));
        }
        evicted
    }

    fn end(&mut self, keys: &[u64]) {
        for key in keys.iter().rev() {
            let place = self.blocks.iter().position(|(held, _)| held == key).unwrap();
            let (key, users) = self.blocks.remove(place);
            self.blocks.push((key, users - 1));
        }
    }
}

/// Keys of a chain: the numbers of a path in a tree with two branches a level.
fn path(branches: &[bool]) -> Vec<u64> {
    let step = |key: &mut u64, branch: &bool| {
        *key = *key * 2 + u64::from(*branch);
        Some(*key)
    };
    branches.iter().scan(1, step).collect()
}

proptest! {
    #[test]
    fn blocks_are_shared_kept_and_evicted_as_in_a_list(
        steps in prop::collection::vec(
            prop::option::weighted(0.6, prop::collection::vec(any::<bool>(), 1..5)), 0..120)
    ) {
        let mut cache = DeviceCache::new(CAPACITY);
        let mut oracle = Oracle::default();
        let mut running: Vec<Running> = Vec::new();
        for step in steps {
            match step {
                Some(branches) => {
                    let keys = path(&branches);
                    let (matched, active) = cache.matched(&keys);
                    prop_assert_eq!((matched, active), oracle.matched(&keys));
                    if keys.len() - active > cache.available() {
                        continue;
                    }
                    let mut slots: Vec<Slot> =
                        keys[..matched].iter().map(|key| cache.take(*key).unwrap()).collect();
                    for key in &keys[matched..] {
                        let slot = cache.allocate().unwrap();
                        prop_assert!(cache.register(slot, *key));
                        slots.push(slot);
                    }
                    prop_assert_eq!(cache.take_evicted(), oracle.run(&keys));
                    running.push(Running { slots, keys });
                }
                None if running.is_empty() => (),
                None => {
                    let Running { slots, keys } = running.remove(0);
                    cache.release(&slots);
                    oracle.end(&keys);
                }
            }
            prop_assert_eq!(cache.active(), oracle.active());
            prop_assert_eq!(cache.available(), CAPACITY - oracle.active());
        }
    }
}

#[test]
fn a_second_copy_is_used_and_then_free() {
    let mut cache = DeviceCache::new(2);
    let (first, second) = (cache.allocate().unwrap(), cache.allocate().unwrap());
    assert!(cache.register(first, 7) && !cache.register(second, 7));
    assert_eq!((cache.allocate(), cache.active()), (None, 2));
    cache.release(&[first]);
    cache.release(&[second]);
    assert_eq!((cache.available(), cache.matched(&[7])), (2, (1, 0)));
    // The free place goes before the block that may be used again.
    assert_eq!(cache.allocate(), Some(second));
    assert!(cache.take_evicted().is_empty());
    assert_eq!(cache.allocate(), Some(first));
    assert_eq!((cache.take_evicted(), cache.matched(&[7])), (vec![7], (0, 0)));
}
