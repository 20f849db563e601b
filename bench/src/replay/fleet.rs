//! Which worker has which blocks in its memory: the router's index, fed with the engines' events.

use kelvin_kvstore::{FleetSet, HolderSet, RadixIndex, SequenceHash, WorkerSet};

use crate::trace::spread;

/// Workers of the largest fleet.
pub(crate) const WORKERS_MAX: usize = FleetSet::HOLDERS_MAX as usize;

/// See the module.
pub(crate) trait Fleet {
    /// Blocks came into a worker's memory, a run behind `parent`.
    fn stored(&mut self, worker: usize, parent: Option<u64>, keys: &[u64], now: u64);

    /// A block went.
    fn evicted(&mut self, worker: usize, key: u64);

    /// How many leading blocks of a prompt each worker has.
    fn prefixes(&self, keys: &[u64]) -> Vec<usize>;

    /// How many leading blocks of `keys` some worker has, each perhaps another one.
    fn anywhere(&self, keys: &[u64]) -> usize;
}

/// An index for so many workers.
pub(crate) fn fleet(workers: usize) -> Box<dyn Fleet> {
    if workers <= WorkerSet::HOLDERS_MAX as usize {
        Box::new(Indexed { index: RadixIndex::<WorkerSet>::new(), workers })
    } else {
        Box::new(Indexed { index: RadixIndex::<FleetSet>::new(), workers })
    }
}

struct Indexed<S> {
    index: RadixIndex<S>,
    workers: usize,
}

fn hash(key: u64) -> SequenceHash {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&key.to_le_bytes());
    bytes[8..].copy_from_slice(&spread(key).to_le_bytes());
    SequenceHash::from_bytes(bytes)
}

fn hashes(keys: &[u64]) -> Vec<SequenceHash> {
    keys.iter().copied().map(hash).collect()
}

impl<S: HolderSet> Fleet for Indexed<S> {
    fn stored(&mut self, worker: usize, parent: Option<u64>, keys: &[u64], now: u64) {
        let inserted = self.index.insert_run(parent.map(hash), &hashes(keys), worker as u32, now);
        inserted.expect("the engine has the parent, and the index no budget");
    }

    fn evicted(&mut self, worker: usize, key: u64) {
        self.index.remove(hash(key), worker as u32);
    }

    fn prefixes(&self, keys: &[u64]) -> Vec<usize> {
        let held = self.index.longest_prefix(&hashes(keys), None);
        let mut prefixes = vec![0; self.workers];
        let Some(first) = held.first() else { return prefixes };
        let mut alive = *first;
        for (depth, holders) in held.iter().enumerate() {
            let still = alive.intersection(*holders);
            if still != alive {
                for worker in alive.iter().filter(|worker| !still.contains(*worker)) {
                    prefixes[worker as usize] = depth;
                }
                alive = still;
            }
        }
        alive.iter().for_each(|worker| prefixes[worker as usize] = held.len());
        prefixes
    }

    fn anywhere(&self, keys: &[u64]) -> usize {
        self.index.longest_prefix(&hashes(keys), None).len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(workers: usize, others: [usize; 2]) {
        let [one, two] = others;
        let mut fleet = fleet(workers);
        fleet.stored(one, None, &[1, 2, 3, 4], 0);
        fleet.stored(two, None, &[1, 2], 0);
        fleet.stored(two, Some(2), &[9], 0);
        let prefix = |keys: &[u64]| {
            let prefixes = fleet.prefixes(keys);
            assert_eq!(prefixes.len(), workers);
            (prefixes[one], prefixes[two])
        };
        assert_eq!(prefix(&[1, 2, 3, 4, 5]), (4, 2));
        assert_eq!(prefix(&[1, 2, 9]), (2, 3));
        assert_eq!(prefix(&[8]), (0, 0));
        fleet.evicted(one, 4);
        assert_eq!(fleet.prefixes(&[1, 2, 3, 4])[one], 3);
        assert_eq!((fleet.anywhere(&[1, 2, 3, 4]), fleet.anywhere(&[2, 3])), (3, 2));
    }

    #[test]
    fn small_and_large_fleets_know_who_has_what() {
        check(4, [0, 3]);
        check(64, [0, 63]);
        check(1_000, [3, 999]);
    }
}
