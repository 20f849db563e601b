//! Bulk load: many blocks at once, as a restart finds them.

use super::arena::NONE;
use super::{HolderSet, InsertError, Inserted, RadixIndex};
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

/// Blocks read ahead, whose map entries are asked for together; also between two chances for a walk.
const BATCH: usize = 64;
/// Ends of sequences that are remembered: a block mostly follows one that came not long before.
const TIPS_BITS: u32 = 12;

/// The nodes where recent blocks were put, by their hash.
struct Tips(Box<[(SequenceHash, u32)]>);

impl Tips {
    fn new() -> Self {
        Self(vec![(SequenceHash::ZERO, NONE); 1 << TIPS_BITS].into())
    }

    /// One place a hash; the bits are others than those that place it in the map.
    fn slot(&mut self, hash: SequenceHash) -> &mut (SequenceHash, u32) {
        &mut self.0[(hash.as_u128() >> 64) as usize & ((1 << TIPS_BITS) - 1)]
    }
}

impl<S: HolderSet> RadixIndex<S> {
    /// Inserts `(parent, hash, holders)`, a parent before its children, in any order otherwise; all count
    /// as used at `now`. What can't be inserted goes to `refused`, and so do the blocks behind it. Blocks
    /// without holders are passed over.
    pub fn load<I>(&self, blocks: I, now: u64, mut refused: impl FnMut(SequenceHash, InsertError)) -> Loaded
    where
        I: IntoIterator<Item = (Option<SequenceHash>, SequenceHash, S)>,
    {
        let mut loaded = Loaded::default();
        let mut tips = Tips::new();
        let mut batch = Vec::with_capacity(BATCH);
        let mut blocks = blocks.into_iter().filter(|(_, _, holders)| !holders.is_empty());
        loop {
            batch.clear();
            batch.extend(blocks.by_ref().take(BATCH));
            if batch.is_empty() {
                return loaded;
            }
            let _change = self.change();
            batch.iter().for_each(|(_, hash, _)| self.places.prefetch(*hash));
            for (parent, hash, holders) in &batch {
                match self.load_one(&mut tips, *parent, *hash, *holders, now) {
                    Ok(inserted) => {
                        loaded.blocks += inserted.blocks;
                        loaded.copies += inserted.copies;
                    }
                    Err(error) => {
                        loaded.refused += 1;
                        refused(*hash, error);
                    }
                }
            }
        }
    }

    fn load_one(
        &self,
        tips: &mut Tips,
        parent: Option<SequenceHash>,
        hash: SequenceHash,
        holders: S,
        now: u64,
    ) -> Result<Inserted, InsertError> {
        // Behind the end of a run, and not known: what almost every block is.
        let tip =
            parent.map(|parent| *tips.slot(parent)).filter(|(tip, id)| Some(*tip) == parent && *id != NONE);
        if let Some((_, id)) = tip {
            let mut run = self.arena.node(id).run.write();
            if run.hashes().last().copied() == parent && run.first_child == NONE {
                let step = self.extend(id, &mut run, &[hash], holders, None);
                if step.blocks == 1 {
                    *tips.slot(hash) = (hash, id);
                    return Ok(Inserted { blocks: 1, copies: holders.count() });
                }
            }
        }
        let inserted = self.insert_sets(parent, &[hash], holders, now)?;
        if let Ok(seen) = self.read(hash) {
            *tips.slot(hash) = (hash, seen.id);
        }
        Ok(inserted)
    }
}
