//! How blocks come in and go: adoption after commit, and eviction when a slot is wanted.

use std::{collections::HashMap, time::Duration};

use kelvin_kernels::{Checksum, checksum};
use kelvin_tiering::{Device, DramSlot, Tier, Why};

use super::{
    ImmutableBlock, LeaseId, MutableBlock, Namespace, SessionId, Tenant,
    block::{CompleteBlock, Keep},
    events::{Event, EventKind},
    state::State,
    table::Found,
    tenant::BlockKey,
};
use crate::{SequenceHash, insight::Reason};

/// Why a block leaves DRAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Removal {
    /// Its slot was wanted for another block.
    Room,
    /// Its time was up when a slot was wanted.
    Expired,
    /// Its namespace was over its quota when a slot was wanted.
    Quota,
    /// A reader found its bytes changed.
    Damaged,
    /// It was asked for.
    Asked,
}

impl Removal {
    /// All of them, in the order of their numbers.
    pub(crate) const ALL: [Removal; 5] =
        [Removal::Room, Removal::Expired, Removal::Quota, Removal::Damaged, Removal::Asked];

    /// Its name for metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Room => "room",
            Self::Expired => "expired",
            Self::Quota => "quota",
            Self::Damaged => "damaged",
            Self::Asked => "removed",
        }
    }

    fn reason(self) -> Reason {
        match self {
            Self::Room => Reason::Evicted,
            Self::Expired => Reason::Expired,
            Self::Quota => Reason::Quota,
            Self::Damaged => Reason::Quarantined,
            Self::Asked => Reason::Removed,
        }
    }
}

impl From<Why> for Removal {
    fn from(why: Why) -> Self {
        match why {
            Why::Expired => Self::Expired,
            Why::Quota => Self::Quota,
            Why::Policy => Self::Room,
        }
    }
}

/// Expired blocks that are dropped under one lock.
const EXPIRED_AT_ONCE: usize = 1024;

/// The holder, in the index, that stands for a copy in DRAM.
pub(super) const DRAM: u32 = Tier::Dram as u32;

impl Tenant {
    /// Makes a complete block visible, or keeps it until its parent is. False when its parent is gone: a
    /// block that nobody can reach is not worth its slot. Of one that `is_indexed` the parent is there.
    pub(super) fn adopt(
        &self,
        state: &mut State,
        namespace: &Namespace,
        block: CompleteBlock,
        is_indexed: bool,
        now: Duration,
    ) -> bool {
        let first = block.key();
        let mut ready = vec![block];
        while let Some(block) = ready.pop() {
            let (key, parent) = (block.key(), block.parent());
            let is_indexed = is_indexed && key == first;
            if !is_indexed
                && let Some(above) = parent.map(|hash| BlockKey { hash, ..key })
                && self.table.is_filling(&above)
            {
                state.orphans.entry(above).or_default().push(block);
                continue;
            }
            if self.publish(state, namespace, block, is_indexed, now).is_err() {
                state.forget_filling(key, parent);
                continue;
            }
            self.below.committed(key);
            state.release_parent(key, parent);
            ready.extend(state.orphans.remove(&key).unwrap_or_default());
        }
        !self.table.with(&first, |found| matches!(found, Found::Missing))
    }

    /// Enters a sealed block: in the index (as held in DRAM), among the tenant's blocks, in the order of
    /// eviction and in the event log. Gives it back, and enters nothing, when its parent is in no tier. One that
    /// `is_indexed` is in the index already.
    pub(super) fn publish(
        &self,
        state: &mut State,
        namespace: &Namespace,
        block: CompleteBlock,
        is_indexed: bool,
        now: Duration,
    ) -> Result<ImmutableBlock, Box<CompleteBlock>> {
        let (key, parent) = (block.key(), block.parent());
        if !is_indexed && namespace.index.insert(parent, key.hash, DRAM, now.as_millis() as u64).is_err() {
            return Err(Box::new(block));
        }
        let block = block.register();
        state.insert_sealed(block.clone());
        self.watch_insert(key.hash, parent, now);
        while let Some(victim) = state.victim_over_quota(key.namespace, block.slot().slot_bytes()) {
            if self.evict_at(state, victim, Removal::Quota, now).is_none() {
                break;
            }
        }
        let (kind, hash) = (EventKind::Stored, key.hash);
        namespace.events.push(Event { kind, hash, parent, tier: Tier::Dram });
        Ok(block)
    }

    /// The sealed block, which cannot be evicted as long as the returned clone lives.
    #[allow(dead_code, reason = "for colder tiers")]
    pub(crate) fn sealed(&self, key: BlockKey) -> Option<ImmutableBlock> {
        self.table.sealed(&key)
    }

    /// Publishes a block that was read back from a colder tier into `slot` and found to have `checksum`. Gives
    /// the block that was sealed under this key meanwhile, if one was. The returned clone keeps it from
    /// eviction until it is leased.
    ///
    /// The block is returned but not entered, so that only its holder has it, when a client is just filling
    /// the same one, or when its parent went from every tier.
    #[allow(dead_code, reason = "for colder tiers")]
    pub(crate) fn onboarded(
        &self,
        namespace: &Namespace,
        key: BlockKey,
        parent: Option<SequenceHash>,
        slot: DramSlot,
        checksum: Checksum,
        keep: Keep,
    ) -> ImmutableBlock {
        let block = CompleteBlock::verified(MutableBlock { key, parent, slot, keep, hashed: None }, checksum);
        let mut state = self.lock();
        if let Some(present) = self.table.sealed(&key) {
            return present;
        }
        if self.table.is_filling(&key) {
            return block.register();
        }
        let now = self.clock.now();
        self.publish(&mut state, namespace, block, false, now).unwrap_or_else(|block| block.register())
    }

    /// A slot. Should none be free, the least recently used blocks of the same slot size make room; only when
    /// this size has nothing to give, a whole chunk of another size does.
    pub(super) fn allocate(&self, state: &mut State, bytes: u64) -> Option<DramSlot> {
        self.allocate_at(state, bytes, self.clock.now())
    }

    /// The same for a caller who knows the time.
    pub(super) fn allocate_at(&self, state: &mut State, bytes: u64, now: Duration) -> Option<DramSlot> {
        let slot_bytes = DramSlot::slot_bytes_for(bytes);
        loop {
            if let Some(slot) = self.pool.allocate(bytes) {
                return Some(slot);
            }
            if let Some((victim, why)) = state.victim(slot_bytes, now) {
                self.evict_at(state, victim, why.into(), now);
            } else if !self.evict_chunk(state, slot_bytes) {
                return None;
            }
        }
    }

    /// Drops blocks whose time is up.
    pub(super) fn drop_expired(&self, state: &mut State) {
        // What is left comes with the next reaping.
        for _ in 0..EXPIRED_AT_ONCE {
            let Some(key) = state.victim_expired(self.clock.now()) else { return };
            self.evict(state, key, Removal::Expired);
        }
    }

    /// Empties the chunk of another slot size that costs the fewest blocks. Looks at every block, which is
    /// rare enough: the chunk then has room for many.
    fn evict_chunk(&self, state: &mut State, slot_bytes: u64) -> bool {
        let evictable = state.evictable(|block| {
            let other = block.slot().slot_bytes() != slot_bytes;
            other.then(|| (self.pool.chunk_of(block.slot()), block.key()))
        });
        let mut chunks: HashMap<u32, (u32, Vec<BlockKey>)> = HashMap::new();
        for ((chunk, used), key) in evictable {
            chunks.entry(chunk).or_insert((used, Vec::new())).1.push(key);
        }
        let whole = chunks.into_values().filter(|(used, keys)| *used as usize == keys.len());
        let Some((_, keys)) = whole.min_by_key(|(used, _)| *used) else { return false };
        // One of them may have been leased since: then this was in vain.
        keys.into_iter().filter(|&key| self.evict(state, key, Removal::Room).is_some()).count() > 0
    }

    /// Takes a sealed block that nobody has leased out of DRAM: out of the index (as held in DRAM), the
    /// tenant's blocks and the order of eviction, with an event. Its slot is free once the returned clone is
    /// dropped. `None`, and nothing changes, when the block is not sealed, is leased, or stands before one that
    /// is being filled.
    pub(super) fn evict(&self, state: &mut State, key: BlockKey, why: Removal) -> Option<ImmutableBlock> {
        self.evict_at(state, key, why, self.clock.now())
    }

    fn evict_at(
        &self,
        state: &mut State,
        key: BlockKey,
        why: Removal,
        now: Duration,
    ) -> Option<ImmutableBlock> {
        if state.is_awaited(&key) {
            return None;
        }
        let block = self.withdraw(state, key, false, why, now)?;
        self.counters.evictions.add(1);
        Some(block)
    }

    /// Takes a sealed block away from everyone who does not hold it already; with `leased` even when someone
    /// does.
    fn withdraw(
        &self,
        state: &mut State,
        key: BlockKey,
        leased: bool,
        why: Removal,
        now: Duration,
    ) -> Option<ImmutableBlock> {
        let block = state.remove_sealed(key, leased)?;
        tracing::trace!(block = %key.hash, ?why, "block leaves DRAM");
        self.counters.removals[why as usize].add(1);
        if let Some(namespace) = state.namespaces.get(&key.namespace) {
            namespace.index.remove(key.hash, DRAM);
            let (kind, hash, parent) = (EventKind::Removed, key.hash, block.parent());
            namespace.events.push(Event { kind, hash, parent, tier: Tier::Dram });
            let (reason, tier) = self.below.left(&key, why).unwrap_or((why.reason(), Tier::Dram));
            namespace.note_gone(hash, reason, Some(tier), now);
        }
        Some(block)
    }

    /// Looks at blocks that a reader found damaged, and drops those that are.
    pub(crate) fn drop_damaged(&self, session: SessionId, leases: &[LeaseId]) {
        for &lease in leases {
            let Some(block) = self.leased(session, lease) else { continue };
            let found = checksum(block.slot().bytes());
            if found == block.checksum() {
                continue;
            }
            let key = block.key();
            tracing::error!(block = %key.hash, expected = %block.checksum(), %found, "damaged block dropped");
            self.counters.damaged_blocks.add(1);
            let mut state = self.lock();
            if self.table.sealed(&key).is_some_and(|present| present.is_same(&block)) {
                self.withdraw(&mut state, key, true, Removal::Damaged, self.clock.now());
            }
        }
    }
}
