//! The KV memory of one engine: blocks in use, blocks that may be used again, and free ones.
//!
//! # Overview
//! An engine's own prefix cache, as vLLM has it: a block is shared by all sequences that begin alike, and one
//! that nobody uses any longer stays, until its place is needed. The first to go is the one that was given
//! back first; a sequence gives back its last block first.
//!
//! # Invariants
//! - Whoever uses a block uses all before it; so a block is never given back after its parent, and none
//!   stays in memory whose parent is gone.
//! - free + inactive + active = capacity.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::BuildHasherDefault;

use kelvin_kvstore::HashMixer;

/// A place for a block.
pub(crate) type Slot = u32;

const NONE: Slot = Slot::MAX;
/// Not found by key. An option would take half as much again of a large fleet's memory.
const NO_KEY: u64 = u64::MAX;

/// See the module.
#[derive(Debug)]
pub(crate) struct DeviceCache {
    slots: Vec<Place>,
    by_key: HashMap<u64, Slot, BuildHasherDefault<HashMixer>>,
    free: Vec<Slot>,
    /// Ends of the list of inactive blocks.
    oldest: Slot,
    newest: Slot,
    inactive: usize,
    /// Keys that went since they were last asked for.
    evicted: Vec<u64>,
}

#[derive(Clone, Debug)]
struct Place {
    /// Or [`NO_KEY`].
    key: u64,
    users: u32,
    older: Slot,
    newer: Slot,
}

impl DeviceCache {
    pub(crate) fn new(capacity_blocks: usize) -> Self {
        let place = Place { key: NO_KEY, users: 0, older: NONE, newer: NONE };
        Self {
            slots: vec![place; capacity_blocks],
            by_key: HashMap::default(),
            free: (0..capacity_blocks as Slot).rev().collect(),
            oldest: NONE,
            newest: NONE,
            inactive: 0,
            evicted: Vec::new(),
        }
    }

    pub(crate) fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Blocks that sequences use.
    pub(crate) fn active(&self) -> usize {
        self.slots.len() - self.available()
    }

    /// Blocks that can be allocated: free ones and inactive ones.
    pub(crate) fn available(&self) -> usize {
        self.free.len() + self.inactive
    }

    /// How many of the leading keys are here, and how many of those are in use.
    pub(crate) fn matched(&self, keys: &[u64]) -> (usize, usize) {
        let slots = keys.iter().map_while(|key| self.by_key.get(key));
        let users = slots.map(|slot| self.slots[*slot as usize].users);
        users.fold((0, 0), |(all, active), users| (all + 1, active + usize::from(users > 0)))
    }

    /// One more user of a block that is here.
    pub(crate) fn take(&mut self, key: u64) -> Option<Slot> {
        let slot = *self.by_key.get(&key)?;
        if self.slots[slot as usize].users == 0 {
            self.unlink(slot);
        }
        self.slots[slot as usize].users += 1;
        Some(slot)
    }

    /// A place for a new block, which its caller uses and nobody finds yet. `None` if all are in use.
    pub(crate) fn allocate(&mut self) -> Option<Slot> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.oldest == NONE => return None,
            None => {
                let slot = self.oldest;
                self.unlink(slot);
                let key = std::mem::replace(&mut self.slots[slot as usize].key, NO_KEY);
                assert!(key != NO_KEY, "an inactive block has a key");
                self.by_key.remove(&key);
                self.evicted.push(key);
                slot
            }
        };
        self.slots[slot as usize].users = 1;
        Some(slot)
    }

    /// Makes a block known by its key, unless another one is; whether it is now.
    pub(crate) fn register(&mut self, slot: Slot, key: u64) -> bool {
        if self.slots[slot as usize].key != NO_KEY {
            return false;
        }
        let Entry::Vacant(free) = self.by_key.entry(key) else { return false };
        free.insert(slot);
        self.slots[slot as usize].key = key;
        true
    }

    /// Gives back the blocks of a sequence, which stand in its order.
    pub(crate) fn release(&mut self, sequence: &[Slot]) {
        for &slot in sequence.iter().rev() {
            let place = &mut self.slots[slot as usize];
            place.users = place.users.checked_sub(1).expect("a block is released by a user");
            match (place.users, place.key) {
                (0, NO_KEY) => self.free.push(slot),
                (0, _) => self.link(slot),
                _ => (),
            }
        }
    }

    /// Keys of blocks that went since the last call.
    pub(crate) fn take_evicted(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.evicted)
    }

    fn link(&mut self, slot: Slot) {
        let older = std::mem::replace(&mut self.newest, slot);
        self.slots[slot as usize].older = older;
        self.slots[slot as usize].newer = NONE;
        match older {
            NONE => self.oldest = slot,
            older => self.slots[older as usize].newer = slot,
        }
        self.inactive += 1;
    }

    fn unlink(&mut self, slot: Slot) {
        let Place { older, newer, .. } = self.slots[slot as usize];
        match older {
            NONE => self.oldest = newer,
            older => self.slots[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.slots[newer as usize].older = older,
        }
        self.inactive -= 1;
    }
}

#[cfg(test)]
mod tests;
