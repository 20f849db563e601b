//! The blocks of a tenant in DRAM: who has what state, found by key.
//!
//! # Overview
//! Blocks that were reserved one behind the other stand in one *run*, with one lock; a map of 64 shards leads
//! from a key to its run and its place there. A walk along a prefix looks up the map and takes a lock once a
//! run, not once a block, so that two readers of different prompts hardly touch one line of memory.
//!
//! # Invariants
//! 1. A key is in the map as long as its block is filling or sealed, and its place does not change.
//! 2. What is `Gone` at the end of a run is cut off; in the middle it stays, to be taken by the same hash only.
//! 3. Clones of a sealed block are taken from here under its run's lock alone. So under that lock a block that
//!    has one clone is in no lease, and can be taken out.
//!
//! # Locking
//! Everything that changes the table is called under the tenant's structural lock; reading takes no lock but
//! those here. A shard and a run are never locked together. So a place read from a shard may be over by the
//! time its run is locked; the block was gone at some moment of the call then, and is reported missing.
//!
//! # Limits
//! The map trusts hashes to be uniform. A client that makes up its own can slow down its tenant.

use std::{collections::HashMap, hash::BuildHasherDefault, hint::black_box, sync::Arc};

use crossbeam::utils::CachePadded;
use parking_lot::Mutex;

use super::{ImmutableBlock, tenant::BlockKey};
use crate::{HashMixer, SequenceHash};

/// For maps by [`BlockKey`], or by another number that is random already.
pub(super) type Keyed = BuildHasherDefault<HashMixer>;

/// Blocks of the longest run: bounds the time that its lock is held for one reader (about a microsecond).
const RUN_BLOCKS_MAX: usize = 64;
const SHARDS: usize = 64;

/// What a walk finds under a hash.
pub(super) enum Found<'a> {
    Missing,
    Filling,
    Sealed(&'a ImmutableBlock),
}

enum Entry {
    Gone,
    Filling,
    Sealed(ImmutableBlock),
}

struct Slot {
    hash: SequenceHash,
    entry: Entry,
}

impl Slot {
    /// Something of what a reader will look at.
    fn glance(&self) -> u64 {
        match &self.entry {
            Entry::Sealed(block) => block.checksum().0,
            Entry::Gone | Entry::Filling => 0,
        }
    }
}

struct Run {
    /// Before the first block.
    parent: Option<SequenceHash>,
    blocks: Mutex<Vec<Slot>>,
}

#[derive(Clone)]
struct Place {
    run: Arc<Run>,
    at: u32,
}

type Shard = CachePadded<Mutex<HashMap<BlockKey, Place, Keyed>>>;

/// Blocks by key.
pub(super) struct Table {
    shards: [Shard; SHARDS],
}

impl Default for Table {
    fn default() -> Self {
        Self { shards: std::array::from_fn(|_| Shard::default()) }
    }
}

impl Run {
    /// Enters a block behind the one at `above`, if there is room for it just there.
    fn follow(&self, above: u32, hash: SequenceHash, entry: Entry) -> Result<u32, Entry> {
        let mut blocks = self.blocks.lock();
        let at = above as usize + 1;
        if at == blocks.len() && at < RUN_BLOCKS_MAX {
            blocks.push(Slot { hash, entry });
        } else if let Some(slot) = blocks.get_mut(at)
            && slot.hash == hash
            && matches!(slot.entry, Entry::Gone)
        {
            slot.entry = entry;
        } else {
            return Err(entry);
        }
        Ok(at as u32)
    }
}

impl Table {
    fn shard(&self, key: &BlockKey) -> &Mutex<HashMap<BlockKey, Place, Keyed>> {
        // Bits that the maps do not use.
        &self.shards[(key.hash.as_u128() >> 64) as usize % SHARDS]
    }

    fn place(&self, key: &BlockKey) -> Option<Place> {
        self.shard(key).lock().get(key).cloned()
    }

    /// Shows the blocks under `hashes` to `look`, in order, until it returns false. Called under a run's lock:
    /// `look` must not call the table.
    pub(super) fn walk(
        &self,
        namespace: u64,
        hashes: &[SequenceHash],
        mut look: impl FnMut(Found<'_>) -> bool,
    ) {
        let mut rest = hashes;
        while let Some(&hash) = rest.first() {
            let Some(place) = self.place(&BlockKey { namespace, hash }) else {
                if !look(Found::Missing) {
                    return;
                }
                rest = &rest[1..];
                continue;
            };
            let blocks = place.run.blocks.lock();
            let here = blocks.get(place.at as usize..).unwrap_or_default();
            let here = &here[..here.len().min(rest.len())];
            // The reads of one pass wait for memory side by side; a pass that counts clones would wait for
            // each block in turn.
            black_box(here.iter().fold(0, |sum, slot| sum ^ slot.glance()));
            let mut count = 0;
            for (slot, &hash) in here.iter().zip(rest) {
                let found = match &slot.entry {
                    _ if slot.hash != hash => break,
                    Entry::Gone => break,
                    Entry::Filling => Found::Filling,
                    Entry::Sealed(block) => Found::Sealed(block),
                };
                if !look(found) {
                    return;
                }
                count += 1;
            }
            drop(blocks);
            if count == 0 {
                // It went since its place was read.
                if !look(Found::Missing) {
                    return;
                }
                count = 1;
            }
            rest = &rest[count..];
        }
    }

    /// The one block under a key.
    pub(super) fn with<T>(&self, key: &BlockKey, look: impl FnOnce(Found<'_>) -> T) -> T {
        let Some(place) = self.place(key) else { return look(Found::Missing) };
        let blocks = place.run.blocks.lock();
        look(match blocks.get(place.at as usize) {
            Some(Slot { hash, entry }) if *hash == key.hash => match entry {
                Entry::Gone => Found::Missing,
                Entry::Filling => Found::Filling,
                Entry::Sealed(block) => Found::Sealed(block),
            },
            _ => Found::Missing,
        })
    }

    pub(super) fn is_filling(&self, key: &BlockKey) -> bool {
        self.with(key, |found| matches!(found, Found::Filling))
    }

    pub(super) fn sealed(&self, key: &BlockKey) -> Option<ImmutableBlock> {
        self.with(key, |found| match found {
            Found::Sealed(block) => Some(block.clone()),
            Found::Missing | Found::Filling => None,
        })
    }

    /// Whether the block is sealed and nobody but the table holds it.
    pub(super) fn is_unleased(&self, key: &BlockKey) -> bool {
        self.with(key, |found| matches!(found, Found::Sealed(block) if !block.is_leased()))
    }

    /// The block before one that is filling, when it is.
    pub(super) fn parent_of_filling(&self, key: &BlockKey) -> Option<Option<SequenceHash>> {
        let place = self.place(key)?;
        let blocks = place.run.blocks.lock();
        let at = place.at as usize;
        matches!(blocks[at].entry, Entry::Filling).then(|| match at {
            0 => place.run.parent,
            _ => Some(blocks[at - 1].hash),
        })
    }

    /// Enters a block that is being filled, under a key that is free. `behind` others will follow it at once.
    pub(super) fn fill(&self, key: BlockKey, parent: Option<SequenceHash>, behind: usize) {
        self.enter(key, parent, Entry::Filling, behind);
    }

    /// Enters a sealed block, under a key that is free or being filled.
    pub(super) fn seal(&self, block: ImmutableBlock) {
        let key = block.key();
        match self.place(&key) {
            None => self.enter(key, block.parent(), Entry::Sealed(block), 0),
            Some(place) => {
                let slot = &mut place.run.blocks.lock()[place.at as usize];
                assert!(matches!(slot.entry, Entry::Filling), "a block is sealed once");
                slot.entry = Entry::Sealed(block);
            }
        }
    }

    fn enter(&self, key: BlockKey, parent: Option<SequenceHash>, entry: Entry, behind: usize) {
        let above = parent.and_then(|hash| self.place(&BlockKey { hash, ..key }));
        let place = match above {
            None => Err(entry),
            Some(Place { run, at }) => run.follow(at, key.hash, entry).map(|at| Place { run, at }),
        };
        let place = place.unwrap_or_else(|entry| {
            let mut blocks = Vec::with_capacity((1 + behind).min(RUN_BLOCKS_MAX));
            blocks.push(Slot { hash: key.hash, entry });
            Place { run: Arc::new(Run { parent, blocks: Mutex::new(blocks) }), at: 0 }
        });
        let before = self.shard(&key).lock().insert(key, place);
        assert!(before.is_none(), "a key is entered once");
    }

    /// Takes out a block that is being filled; whether there was one.
    pub(super) fn forget(&self, key: &BlockKey) -> bool {
        self.take(key, |entry| matches!(entry, Entry::Filling)).is_some()
    }

    /// Takes out a sealed block that `fits`.
    pub(super) fn take_sealed(
        &self,
        key: &BlockKey,
        fits: impl FnOnce(&ImmutableBlock) -> bool,
    ) -> Option<ImmutableBlock> {
        match self.take(key, |entry| matches!(entry, Entry::Sealed(block) if fits(block)))? {
            Entry::Sealed(block) => Some(block),
            Entry::Filling | Entry::Gone => None,
        }
    }

    fn take(&self, key: &BlockKey, fits: impl FnOnce(&Entry) -> bool) -> Option<Entry> {
        let place = self.place(key)?;
        let taken = {
            let mut blocks = place.run.blocks.lock();
            let slot = &mut blocks[place.at as usize];
            if !fits(&slot.entry) {
                return None;
            }
            let taken = std::mem::replace(&mut slot.entry, Entry::Gone);
            while matches!(blocks.last(), Some(Slot { entry: Entry::Gone, .. })) {
                blocks.pop();
            }
            if blocks.len() * 4 < blocks.capacity() {
                blocks.shrink_to(8);
            }
            taken
        };
        self.shard(key).lock().remove(key);
        Some(taken)
    }

    /// What `look` gives for each sealed block that nobody else holds.
    pub(super) fn unleased<T>(&self, mut look: impl FnMut(&ImmutableBlock) -> Option<T>) -> Vec<T> {
        self.each_sealed(|block| if block.is_leased() { None } else { look(block) })
    }

    /// What `look` gives for each sealed block. Called under a run's lock: `look` must not call the table.
    pub(super) fn each_sealed<T>(&self, mut look: impl FnMut(&ImmutableBlock) -> Option<T>) -> Vec<T> {
        let mut found = Vec::new();
        for shard in &self.shards {
            let places: Vec<(SequenceHash, Place)> =
                shard.lock().iter().map(|(key, place)| (key.hash, place.clone())).collect();
            for (hash, place) in places {
                if let Some(Slot { hash: there, entry: Entry::Sealed(block) }) =
                    place.run.blocks.lock().get(place.at as usize)
                    && *there == hash
                {
                    found.extend(look(block));
                }
            }
        }
        found
    }
}
