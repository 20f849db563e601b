//! Verbs on ranges of blocks: pin, unpin, evict, demote, explain.
//!
//! A range is a path (the blocks of a sequence from its start) or a subtree (a block and all behind it).
//!
//! # Locking
//! A range can be large. What changes blocks takes the tenant's lock for [`BATCH`] of them at a time, so that
//! others get their turn; so a range is not one moment, and what is stored behind it meanwhile may stay.

use std::{collections::HashSet, time::Duration};

use kelvin_proto::{Reason, Refusal};
use kelvin_tiering::Tier;

use super::{
    BlockKey, Namespace, Tenant,
    pins::{PINNED_BLOCKS_MAX, PINS_MAX, PinId, PinSurvey},
    room::Removal,
    show,
    state::State,
};
use crate::{
    SequenceHash,
    index::{HolderSet, TierSet},
    insight::Reason as Gone,
};

/// Blocks that are looked at under one lock.
const BATCH: usize = 256;
/// Of a tenant's memory, this share stays for blocks that are not pinned: one in so many.
const UNPINNED_SHARE: u64 = 4;

/// What a pin keeps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Pinned {
    /// 0 when there was nothing to pin.
    pub(crate) id: PinId,
    pub(crate) blocks: u64,
    /// Blocks of the path that are not stored.
    pub(crate) missing: u64,
}

/// What an eviction did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Evicted {
    /// Blocks that lost a copy.
    pub(crate) blocks: u64,
    /// Copies they lost.
    pub(crate) copies: u64,
    /// Blocks that are leased or pinned, or have one behind them that is.
    pub(crate) kept: u64,
}

/// Which blocks an eviction is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Range {
    /// A block and all behind it.
    From(SequenceHash),
    /// All of the namespace.
    Whole,
}

impl Tenant {
    /// The blocks from the start of a sequence to `hash`.
    pub(crate) fn path(
        &self,
        namespace: &Namespace,
        hash: SequenceHash,
    ) -> Result<Vec<SequenceHash>, Refusal> {
        let path = namespace.index.path(hash);
        match path.is_empty() {
            false => Ok(path),
            true => Err(Refusal::new(
                Reason::UnknownBlock,
                format!(
                    "block {hash} is not stored: name a block of this namespace that is, or the whole prefix"
                ),
            )),
        }
    }

    /// Pins the stored blocks of a path, from its start, and if `subtree` all that is stored behind its last.
    pub(crate) fn pin(
        &self,
        namespace: &Namespace,
        path: &[SequenceHash],
        subtree: bool,
        ttl: Option<Duration>,
        owner: &str,
    ) -> Result<Pinned, Refusal> {
        let stored = namespace.index.longest_prefix(path, None).len();
        let mut hashes = path[..stored].to_vec();
        if let (true, Some(last)) = (subtree && stored == path.len(), path.last()) {
            hashes.extend(namespace.index.descendants(*last));
        }
        let missing = (path.len() - stored) as u64;
        if hashes.is_empty() {
            return Ok(Pinned { missing, ..Pinned::default() });
        }
        let pinned = self.pin_survey();
        if pinned.soft + pinned.hard >= u64::from(PINS_MAX) {
            return Err(exhausted(format!("{PINS_MAX} pins are held: end some with Unpin")));
        }
        let fresh: Vec<_> = hashes.iter().filter(|hash| !namespace.pins.hold(hash)).collect();
        if pinned.blocks as usize + fresh.len() > PINNED_BLOCKS_MAX {
            return Err(exhausted(format!(
                "{} blocks are pinned, and {} more would be over the limit of {PINNED_BLOCKS_MAX}: end some pins \
                 with Unpin, or pin a shorter range",
                pinned.blocks,
                fresh.len()
            )));
        }
        let in_memory =
            fresh.iter().filter(|hash| namespace.index.holders(***hash).contains(Tier::Dram as u32));
        let memory_bytes = in_memory.count() as u64 * namespace.spec.block_bytes;
        let capacity = self.usage().capacity_bytes;
        let most = capacity - capacity / UNPINNED_SHARE;
        if pinned.memory_bytes + memory_bytes > most {
            return Err(exhausted(format!(
                "{} of memory are pinned, and {} more would be over the limit of {}: end some pins with Unpin, \
                 pin a shorter range, or start the store with more memory",
                show(pinned.memory_bytes),
                show(memory_bytes),
                show(most)
            )));
        }
        let id = u64::from_le_bytes(crate::random::bytes()).max(1);
        let now = self.clock.now();
        let until = ttl.map(|ttl| now + ttl);
        let blocks = hashes.len() as u64;
        namespace.pins.add(id, owner, hashes, memory_bytes, now, until);
        tracing::info!(
            owner,
            blocks,
            model = namespace.spec.model,
            pin = id,
            soft = ttl.is_some(),
            "blocks pinned"
        );
        // A block that went before the pin was entered is not kept by it, but counted; what the pin keeps is
        // certain from here on.
        Ok(Pinned { id, blocks, missing })
    }

    /// Ends pins: how many, and how many blocks no pin keeps any more.
    pub(crate) fn unpin(&self, ids: &[PinId], owner: &str) -> (u64, u64) {
        let namespaces = self.namespaces();
        let ended = namespaces.iter().map(|namespace| namespace.pins.remove(ids, owner));
        ended
            .fold((0, 0), |(pins, blocks), (more_pins, more_blocks)| (pins + more_pins, blocks + more_blocks))
    }

    /// Pins of all namespaces.
    pub(crate) fn pin_survey(&self) -> PinSurvey {
        let mut sum = PinSurvey::default();
        self.namespaces()
            .iter()
            .for_each(|namespace| sum.add(namespace.pins.survey(namespace.spec.block_bytes)));
        sum
    }

    /// Drops the copies of a range in these tiers, tails first.
    pub(crate) fn evict_range(&self, namespace: &Namespace, range: Range, tiers: TierSet) -> Evicted {
        let mut hashes = match range {
            Range::Whole => namespace.index.snapshot().into_iter().map(|entry| entry.hash).collect(),
            Range::From(hash) => [vec![hash], namespace.index.descendants(hash)].concat(),
        };
        hashes.reverse();
        // What has something behind it that stays.
        let mut needed: HashSet<SequenceHash> = HashSet::new();
        let mut evicted = Evicted::default();
        for batch in hashes.chunks(BATCH) {
            let mut state = self.lock();
            for &hash in batch {
                let held = namespace.index.holders(hash).intersection(tiers);
                if held.is_empty() {
                    continue;
                }
                let key = BlockKey { namespace: namespace.id, hash };
                let may = !needed.contains(&hash) && !namespace.pins.hold(&hash);
                let gone = if may { self.drop_copies(&mut state, key, held) } else { 0 };
                if gone > 0 {
                    evicted.blocks += 1;
                    evicted.copies += gone;
                } else {
                    evicted.kept += 1;
                    needed.extend(namespace.index.parent(hash));
                }
            }
        }
        tracing::info!(
            model = namespace.spec.model,
            blocks = evicted.blocks,
            kept = evicted.kept,
            ?range,
            "range evicted"
        );
        evicted
    }

    /// Drops a block's copies in these tiers; how many went.
    fn drop_copies(&self, state: &mut State, key: BlockKey, tiers: TierSet) -> u64 {
        let mut gone = 0;
        if tiers.contains(Tier::Dram as u32) {
            if self.evict(state, key, Removal::Asked).is_none() {
                return 0;
            }
            gone += 1;
        }
        let cold = [Tier::Nvme, Tier::Object].into_iter().filter(|tier| tiers.contains(*tier as u32));
        for tier in cold {
            let went = self.tiers().is_some_and(|below| below.drop_copy(tier, &key, Gone::Removed));
            gone += u64::from(went);
        }
        gone
    }

    /// Makes the end of a sequence that no other shares the first to go; how many blocks.
    pub(crate) fn demote(&self, namespace: &Namespace, path: &[SequenceHash]) -> u64 {
        let alone = namespace.index.alone(path);
        let tail = &path[path.len() - alone..];
        for batch in tail.rchunks(BATCH) {
            let keys: Vec<BlockKey> =
                batch.iter().rev().map(|&hash| BlockKey { namespace: namespace.id, hash }).collect();
            self.lock().demote(&keys);
            self.below.stirred.stir();
            if let Some(tiers) = self.tiers() {
                tiers.demote(&keys);
            }
        }
        alone as u64
    }
}

fn exhausted(message: String) -> Refusal {
    Refusal::new(Reason::Exhausted, message)
}
