//! Pins: blocks of a namespace that are not to be evicted.
//!
//! A pin names blocks by their hashes and holds none of them: it makes them no victims. So a damaged block goes
//! all the same, and one that is stored again while its pin lasts is pinned again. A soft pin ends by itself, a
//! hard one when it is unpinned or the store ends; either has an owner.
//!
//! # Locking
//! One lock, taken last, for microseconds. Without any pin, asking takes none.

use std::{
    collections::HashMap,
    hash::BuildHasherDefault,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use parking_lot::Mutex;

use crate::{HashMixer, SequenceHash};

pub(crate) type PinId = u64;

/// Pins that a tenant may have at a time.
pub(crate) const PINS_MAX: u32 = 4096;
/// Blocks that a tenant may have pinned.
pub(crate) const PINNED_BLOCKS_MAX: usize = 1 << 20;

/// The pins of a namespace.
#[derive(Default)]
pub(crate) struct Pins {
    table: Mutex<Table>,
    /// Blocks pinned, to be read without the lock.
    pinned: AtomicUsize,
}

#[derive(Default)]
struct Table {
    pins: HashMap<PinId, Pin>,
    /// How many pins name a block.
    blocks: HashMap<SequenceHash, u32, BuildHasherDefault<HashMixer>>,
    expired: u64,
}

struct Pin {
    owner: String,
    hashes: Vec<SequenceHash>,
    memory_bytes: u64,
    since: Duration,
    until: Option<Duration>,
}

/// What there is of pins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PinSurvey {
    pub(crate) soft: u64,
    pub(crate) hard: u64,
    pub(crate) blocks: u64,
    pub(crate) bytes: u64,
    /// Of blocks that were in memory when they were pinned.
    pub(crate) memory_bytes: u64,
    /// Soft pins whose time was over, so far.
    pub(crate) expired: u64,
    /// When the oldest soft and the oldest hard pin were set.
    pub(crate) oldest: [Option<Duration>; 2],
}

impl PinSurvey {
    /// Adds another namespace's.
    pub(crate) fn add(&mut self, other: Self) {
        self.soft += other.soft;
        self.hard += other.hard;
        self.blocks += other.blocks;
        self.bytes += other.bytes;
        self.memory_bytes += other.memory_bytes;
        self.expired += other.expired;
        for (own, other) in self.oldest.iter_mut().zip(other.oldest) {
            *own = [*own, other].into_iter().flatten().min();
        }
    }
}

impl Pins {
    /// Whether some pin keeps the block.
    pub(crate) fn hold(&self, hash: &SequenceHash) -> bool {
        self.pinned.load(Ordering::Acquire) > 0 && self.table.lock().blocks.contains_key(hash)
    }

    /// Pins blocks, each given once, now. `memory_bytes`: of those of them that no pin kept so far and that are in memory.
    pub(crate) fn add(
        &self,
        id: PinId,
        owner: &str,
        hashes: Vec<SequenceHash>,
        memory_bytes: u64,
        now: Duration,
        until: Option<Duration>,
    ) {
        let table = &mut *self.table.lock();
        for &hash in &hashes {
            *table.blocks.entry(hash).or_default() += 1;
        }
        let pin = Pin { owner: owner.to_owned(), hashes, memory_bytes, since: now, until };
        let before = table.pins.insert(id, pin);
        assert!(before.is_none(), "a pin's id is used once");
        self.pinned.store(table.blocks.len(), Ordering::Release);
    }

    /// Ends the pins that `which` picks: how many, and how many blocks no pin keeps any more.
    fn end(&self, table: &mut Table, which: impl Fn(PinId, &Pin) -> bool) -> (u64, u64) {
        let before = table.blocks.len();
        let mut ended = 0;
        let Table { pins, blocks, .. } = table;
        pins.retain(|id, pin| {
            if !which(*id, pin) {
                return true;
            }
            ended += 1;
            for hash in &pin.hashes {
                let count = blocks.get_mut(hash).expect("a pinned block is counted");
                *count -= 1;
                if *count == 0 {
                    blocks.remove(hash);
                }
            }
            false
        });
        if blocks.capacity() > 4 * blocks.len() + 64 {
            blocks.shrink_to_fit();
        }
        self.pinned.store(blocks.len(), Ordering::Release);
        (ended, (before - blocks.len()) as u64)
    }

    /// Ends these pins, and all of `owner` unless that is empty.
    pub(crate) fn remove(&self, ids: &[PinId], owner: &str) -> (u64, u64) {
        let mut table = self.table.lock();
        if table.pins.is_empty() {
            return (0, 0);
        }
        self.end(&mut table, |id, pin| ids.contains(&id) || (!owner.is_empty() && pin.owner == owner))
    }

    /// Ends the pins whose time is over.
    pub(crate) fn expire(&self, now: Duration) {
        if self.pinned.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut table = self.table.lock();
        let (ended, _) = self.end(&mut table, |_, pin| pin.until.is_some_and(|until| until <= now));
        table.expired += ended;
    }

    /// Pins of blocks of so many bytes.
    pub(crate) fn survey(&self, block_bytes: u64) -> PinSurvey {
        let table = self.table.lock();
        let soft = table.pins.values().filter(|pin| pin.until.is_some()).count() as u64;
        PinSurvey {
            soft,
            hard: table.pins.len() as u64 - soft,
            blocks: table.blocks.len() as u64,
            bytes: table.blocks.len() as u64 * block_bytes,
            memory_bytes: table.pins.values().map(|pin| pin.memory_bytes).sum(),
            expired: table.expired,
            oldest: [true, false].map(|soft| {
                let of_kind = table.pins.values().filter(|pin| pin.until.is_some() == soft);
                of_kind.map(|pin| pin.since).min()
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(n: u8) -> SequenceHash {
        SequenceHash::from_bytes([n; 16])
    }

    #[test]
    fn a_block_is_kept_as_long_as_any_pin_names_it() {
        let pins = Pins::default();
        assert!(!pins.hold(&hash(1)));
        pins.add(7, "a", vec![hash(1), hash(2)], 10, Duration::from_secs(2), None);
        pins.add(8, "b", vec![hash(2), hash(3)], 5, Duration::from_secs(3), Some(Duration::from_secs(5)));
        assert!((1..4).all(|n| pins.hold(&hash(n))) && !pins.hold(&hash(4)));
        let oldest = [3, 2].map(|second| Some(Duration::from_secs(second)));
        let survey =
            PinSurvey { soft: 1, hard: 1, blocks: 3, bytes: 12, memory_bytes: 15, expired: 0, oldest };
        assert_eq!(pins.survey(4), survey);
        assert_eq!(pins.remove(&[7, 9], ""), (1, 1));
        assert!(!pins.hold(&hash(1)) && pins.hold(&hash(2)));
        pins.expire(Duration::from_secs(4));
        assert!(pins.hold(&hash(3)));
        pins.expire(Duration::from_secs(5));
        assert!(!pins.hold(&hash(2)));
        assert_eq!(pins.survey(4), PinSurvey { expired: 1, ..PinSurvey::default() });
    }

    #[test]
    fn an_owner_ends_all_of_its_own() {
        let pins = Pins::default();
        for (id, owner) in [(1, "a"), (2, "b"), (3, "a"), (4, "")] {
            pins.add(id, owner, vec![hash(id as u8)], 0, Duration::ZERO, None);
        }
        assert_eq!(pins.remove(&[], "a"), (2, 2));
        assert_eq!(pins.remove(&[], ""), (0, 0), "nobody is no owner");
        assert_eq!(pins.survey(4).hard, 2);
    }
}
