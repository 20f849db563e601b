//! Places: the map from a hash to the node where its block stands.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::RwLock;

use super::account::{Account, allocated};
use super::mix::Keys;
use super::table::{Refused, Spot, TAG_BITS, Table};
use crate::SequenceHash;

/// Shards of the map, 32 KiB of them. A table is rebuilt as a whole: with 1e7 blocks 150 KB, in about 50 us.
const SHARD_BITS: u32 = 9;

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
    keys: Keys,
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
        Self { shards: (0..1 << SHARD_BITS).map(|_| Shard::default()).collect(), keys: Keys::get() }
    }

    /// What it takes when it is empty.
    pub(super) fn bytes_min() -> usize {
        allocated::<Shard>(1 << SHARD_BITS)
    }

    /// Where the hash belongs: a shard, and a tag in it.
    fn spot(&self, hash: SequenceHash) -> (&Shard, u32) {
        let mixed = self.keys.mix(hash.as_u128());
        let shard = &self.shards[mixed as usize & ((1 << SHARD_BITS) - 1)];
        (shard, (mixed >> SHARD_BITS) as u32 & ((1 << TAG_BITS) - 1))
    }

    /// The nodes that the map has for the hash, 4 at a time.
    pub(super) fn candidates(&self, hash: SequenceHash, skip: usize) -> Candidates {
        let (shard, tag) = self.spot(hash);
        let table = shard.table.read();
        let (version, inserts) = (table.version(), table.inserts());
        let mut found = Candidates { nodes: [0; 4], count: 0, more: false, version, inserts };
        for node in table.nodes(tag).skip(skip) {
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
        let (shard, tag) = self.spot(hash);
        shard.table.read().nodes(tag).next()
    }

    /// Changes whenever an entry of the hash's shard does.
    pub(super) fn version(&self, hash: SequenceHash) -> u32 {
        self.spot(hash).0.table.read().version()
    }

    /// See [`Table::insert`].
    pub(super) fn insert(
        &self,
        hash: SequenceHash,
        node: u32,
        absent_at: Option<u32>,
        account: &Account,
    ) -> Result<(), Refused> {
        let (shard, tag) = self.spot(hash);
        shard.change(|table| table.insert(tag, node, absent_at, account))
    }

    pub(super) fn remove(&self, hash: SequenceHash, node: u32, account: &Account) {
        let (shard, tag) = self.spot(hash);
        let removed = shard.change(|table| table.remove(tag, node, account));
        debug_assert!(removed, "the entry is there as long as the block is");
    }

    /// Lets the hash, which stands in node `from`, lead to node `to`.
    pub(super) fn lead(&self, hash: SequenceHash, from: u32, to: u32) {
        let (shard, tag) = self.spot(hash);
        shard.table.write().lead(tag, from, to);
    }

    /// The hash is about to be looked up or inserted.
    pub(super) fn prefetch(&self, hash: SequenceHash) {
        let (shard, tag) = self.spot(hash);
        let (address, homes) = (shard.address.load(Ordering::Relaxed), shard.homes.load(Ordering::Relaxed));
        Spot { address, homes }.prefetch(tag);
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
