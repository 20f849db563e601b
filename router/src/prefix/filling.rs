//! Blocks that prefills of this router are making, so that requests for the same can wait for them.
//!
//! # Limits
//! [`BLOCKS_MAX`] blocks; what finds no place is not waited for.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use kelvin_kvstore::SequenceHash;
use parking_lot::Mutex;

/// A million tokens, in blocks of 16.
const BLOCKS_MAX: usize = 65_536;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Filling {
    /// Each with the number of prefills that make it.
    blocks: Mutex<HashMap<SequenceHash, u32>>,
    /// How many, to be seen without the lock.
    count: AtomicUsize,
}

/// What one prefill makes. Dropping it says that it is done, or given up.
#[derive(Debug)]
pub(crate) struct Made {
    filling: Arc<Filling>,
    hashes: Vec<SequenceHash>,
}

impl Filling {
    /// A prefill makes these from now on.
    pub(super) fn begin(self: &Arc<Self>, mut hashes: Vec<SequenceHash>) -> Made {
        let mut blocks = self.blocks.lock();
        let mut kept = 0;
        for hash in &hashes {
            let is_full = blocks.len() >= BLOCKS_MAX;
            match blocks.entry(*hash) {
                Entry::Occupied(mut known) => *known.get_mut() += 1,
                Entry::Vacant(_) if is_full => break,
                Entry::Vacant(new) => drop(new.insert(1)),
            }
            kept += 1;
        }
        hashes.truncate(kept);
        self.count.store(blocks.len(), Ordering::Release);
        drop(blocks);
        Made { filling: self.clone(), hashes }
    }

    /// How many of a prompt's next blocks are in the making.
    pub(super) fn leading(&self, hashes: &[SequenceHash]) -> usize {
        if self.len() == 0 {
            return 0;
        }
        let blocks = self.blocks.lock();
        hashes.iter().take_while(|hash| blocks.contains_key(hash)).count()
    }

    pub(super) fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let mut blocks = self.filling.blocks.lock();
        for hash in &self.hashes {
            if let Entry::Occupied(mut known) = blocks.entry(*hash) {
                *known.get_mut() -= 1;
                if *known.get() == 0 {
                    known.remove();
                }
            }
        }
        self.filling.count.store(blocks.len(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(numbers: std::ops::Range<u32>) -> Vec<SequenceHash> {
        numbers.map(|number| SequenceHash::from_bytes(u128::from(number).to_le_bytes())).collect()
    }

    #[test]
    fn blocks_are_in_the_making_until_the_last_who_makes_them_is_done() {
        let filling = Arc::new(Filling::default());
        assert_eq!(filling.leading(&hashes(0..4)), 0);
        let (one, two) = (filling.begin(hashes(0..4)), filling.begin(hashes(2..6)));
        assert_eq!(
            (filling.len(), filling.leading(&hashes(0..9)), filling.leading(&hashes(7..9))),
            (6, 6, 0)
        );
        drop(one);
        assert_eq!((filling.leading(&hashes(0..9)), filling.leading(&hashes(2..9))), (0, 4));
        drop(two);
        assert_eq!((filling.len(), filling.leading(&hashes(2..9))), (0, 0));
    }

    #[test]
    fn they_are_bounded() {
        let filling = Arc::new(Filling::default());
        let many = filling.begin(hashes(0..BLOCKS_MAX as u32 + 5));
        assert_eq!((filling.len(), many.hashes.len()), (BLOCKS_MAX, BLOCKS_MAX));
        let known = filling.begin(hashes(3..5));
        assert_eq!(filling.begin(hashes(BLOCKS_MAX as u32..BLOCKS_MAX as u32 + 1)).hashes.len(), 0);
        drop((many, known));
        assert_eq!(filling.len(), 0);
    }
}
