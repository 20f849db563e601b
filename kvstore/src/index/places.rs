//! Places: the map from a hash to the node where its block stands.

use std::hash::Hasher;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::RwLock;

use super::account::{Account, allocated};
use super::table::{Refused, Spot, TAG_BITS, Table};
use crate::SequenceHash;

/// Hasher for keys that are uniform already: its result is the last integer written to it.
#[derive(Debug, Default, Clone, Copy)]
pub struct PassThrough(u64);

impl Hasher for PassThrough {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }

    fn write_u128(&mut self, number: u128) {
        // The low half is as uniform as the whole.
        self.0 = number as u64;
    }
}

/// Shards of the map. A table is rebuilt as a whole: with 1e7 blocks 60 KB of it, which takes about 20 us.
const SHARD_BITS: u32 = 10;

/// On a cache line of its own, since its lock is written by readers.
#[repr(align(64))]
#[derive(Default)]
struct Shard {
    table: RwLock<Table>,
    /// [`Spot`] of the table, for hints that don't wait for the lock. The two may not fit together.
    address: AtomicUsize,
    homes: AtomicUsize,
}

const _: () = assert!(size_of::<Shard>() == 64);

impl Shard {
    /// Changes the table.
    fn change<R>(&self, change: impl FnOnce(&mut Table) -> R) -> R {
        let mut table = self.table.write();
        let before = table.spot();
        let result = change(&mut table);
        let spot = table.spot();
        if spot != before {
            self.address.store(spot.address, Ordering::Relaxed);
            self.homes.store(spot.homes, Ordering::Relaxed);
        }
        result
    }
}

/// The map, in shards that are locked apart.
pub(super) struct Places {
    shards: Box<[Shard]>,
}

/// Where a block may stand: to be checked under the node's lock.
pub(super) struct Candidates {
    nodes: [u32; 4],
    count: usize,
    /// There are more: ask again, and skip these.
    pub(super) more: bool,
    /// Those of the shard when they were read.
    pub(super) version: u32,
    pub(super) inserts: u32,
}

impl Candidates {
    pub(super) fn nodes(&self) -> &[u32] {
        &self.nodes[..self.count]
    }
}

impl Places {
    pub(super) fn new() -> Self {
        Self { shards: (0..1 << SHARD_BITS).map(|_| Shard::default()).collect() }
    }

    /// What it takes when it is empty.
    pub(super) fn bytes_min() -> usize {
        allocated::<Shard>(1 << SHARD_BITS)
    }

    fn shard(&self, hash: SequenceHash) -> &Shard {
        &self.shards[hash.as_u128() as usize & ((1 << SHARD_BITS) - 1)]
    }

    /// The nodes that the map has for the hash, 4 at a time.
    pub(super) fn candidates(&self, hash: SequenceHash, skip: usize) -> Candidates {
        let table = self.shard(hash).table.read();
        let (version, inserts) = (table.version(), table.inserts());
        let mut found = Candidates { nodes: [0; 4], count: 0, more: false, version, inserts };
        for node in table.nodes(tag(hash)).skip(skip) {
            let Some(slot) = found.nodes.get_mut(found.count) else {
                found.more = true;
                break;
            };
            *slot = node;
            found.count += 1;
        }
        found
    }

    /// The first node that the map has for the hash.
    pub(super) fn first(&self, hash: SequenceHash) -> Option<u32> {
        self.shard(hash).table.read().nodes(tag(hash)).next()
    }

    /// Changes whenever an entry of the hash's shard does.
    pub(super) fn version(&self, hash: SequenceHash) -> u32 {
        self.shard(hash).table.read().version()
    }

    /// See [`Table::insert`].
    pub(super) fn insert(
        &self,
        hash: SequenceHash,
        node: u32,
        absent_at: Option<u32>,
        account: &Account,
    ) -> Result<(), Refused> {
        self.shard(hash).change(|table| table.insert(tag(hash), node, absent_at, account))
    }

    pub(super) fn remove(&self, hash: SequenceHash, node: u32, account: &Account) {
        let removed = self.shard(hash).change(|table| table.remove(tag(hash), node, account));
        debug_assert!(removed, "the entry is there as long as the block is");
    }

    /// Lets the hash, which stands in node `from`, lead to node `to`.
    pub(super) fn lead(&self, hash: SequenceHash, from: u32, to: u32) {
        self.shard(hash).table.write().lead(tag(hash), from, to);
    }

    /// The hash is about to be looked up or inserted.
    pub(super) fn prefetch(&self, hash: SequenceHash) {
        let shard = self.shard(hash);
        let (address, homes) = (shard.address.load(Ordering::Relaxed), shard.homes.load(Ordering::Relaxed));
        Spot { address, homes }.prefetch(tag(hash));
    }

    /// What the tables take.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.table.read().bytes()).sum()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.table.read().used()).sum()
    }
}

/// The bits behind those that choose the shard.
fn tag(hash: SequenceHash) -> u32 {
    (hash.as_u128() >> SHARD_BITS) as u32 & ((1 << TAG_BITS) - 1)
}
