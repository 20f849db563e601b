//! Bulk load: many blocks at once, as a restart finds them.

use super::{HolderSet, InsertError, RadixIndex};
use crate::SequenceHash;

/// What a load added.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// Blocks that nobody held before.
    pub blocks: usize,
    /// Copies that were not known before; at least `blocks`.
    pub copies: usize,
    /// Blocks that were refused.
    pub refused: usize,
}

impl<S: HolderSet> RadixIndex<S> {
    /// Inserts `(parent, hash, holders)`, a parent before its children, in any order otherwise; all count
    /// as used at `now`. What can't be inserted goes to `refused`, and so do the blocks behind it.
    pub fn load<I>(&self, blocks: I, now: u64, mut refused: impl FnMut(SequenceHash, InsertError)) -> Loaded
    where
        I: IntoIterator<Item = (Option<SequenceHash>, SequenceHash, S)>,
    {
        let mut loaded = Loaded::default();
        for (parent, hash, holders) in blocks {
            for holder in holders.iter() {
                match self.insert(parent, hash, holder, now) {
                    Ok(inserted) => {
                        loaded.blocks += inserted.blocks;
                        loaded.copies += inserted.copies;
                    }
                    Err(error) => {
                        loaded.refused += 1;
                        refused(hash, error);
                        break;
                    }
                }
            }
        }
        loaded
    }
}
