//! Why a block is not there: what the tenant notes as blocks go, and what it answers.

use std::{sync::Arc, time::Duration};

use kelvin_tiering::Tier;

use super::{BlockKey, Namespace, Tenant, meters::measuring};
use crate::{
    SequenceHash,
    index::HolderSet,
    insight::{Reason, Record},
};

/// Other namespaces that are looked at for the same tokens.
const OTHERS_MAX: usize = 16;

/// What is known about a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Explanation {
    pub(crate) hash: SequenceHash,
    pub(crate) what: What,
    pub(crate) pinned: bool,
}

/// Where it is, or why it is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    /// In these tiers, hottest first.
    Stored(Vec<Tier>),
    Filling,
    /// With how long ago it went.
    Gone {
        reason: Reason,
        tier: Option<Tier>,
        age: Duration,
    },
    /// As far as is known.
    NeverStored,
    /// Another namespace of the tenant has the same tokens.
    Elsewhere(u64),
}

impl Tenant {
    /// What is known about blocks of a namespace. With the tokens that they stand for, given as what hashes
    /// them, other namespaces are looked at too.
    pub(crate) fn explain(
        &self,
        namespace: &Namespace,
        hashes: &[SequenceHash],
        tokens: Option<(&[u32], &[u8])>,
    ) -> Vec<Explanation> {
        let mut blocks: Vec<Explanation> =
            hashes.iter().map(|&hash| self.explain_one(namespace, hash)).collect();
        if let Some((ids, extra)) = tokens
            && blocks.iter().any(|block| block.what == What::NeverStored)
        {
            self.look_elsewhere(namespace, &mut blocks, ids, extra);
        }
        blocks
    }

    fn explain_one(&self, namespace: &Namespace, hash: SequenceHash) -> Explanation {
        Explanation { hash, what: self.what(namespace, hash), pinned: namespace.pins.hold(&hash) }
    }

    /// Where a block is now, or why it is not.
    pub(crate) fn what(&self, namespace: &Namespace, hash: SequenceHash) -> What {
        let holders = namespace.index.holders(hash);
        let tiers: Vec<Tier> = tiers_of(holders).collect();
        let is_reached = self.tiers().is_none_or(|below| !holders.intersection(below.reachable()).is_empty());
        let key = BlockKey { namespace: namespace.id, hash };
        if let (false, Some(&tier)) = (is_reached, tiers.first()) {
            // A match leaves it out as well.
            What::Gone { reason: Reason::TierFailed, tier: Some(tier), age: Duration::ZERO }
        } else if !tiers.is_empty() {
            What::Stored(tiers)
        } else if self.table.is_filling(&key) {
            What::Filling
        } else {
            self.what_went(namespace.gone.explain(hash))
        }
    }

    fn what_went(&self, record: Option<Record>) -> What {
        record.map_or(What::NeverStored, |Record { reason, tier, at }| What::Gone {
            reason,
            tier,
            age: self.clock.now().saturating_sub(at),
        })
    }

    /// Looks for the same tokens in the tenant's other namespaces: an engine of another build, mostly.
    fn look_elsewhere(&self, namespace: &Namespace, blocks: &mut [Explanation], ids: &[u32], extra: &[u8]) {
        let is_like = |other: &Arc<Namespace>| {
            other.id != namespace.id
                && other.spec.block_tokens == namespace.spec.block_tokens
                && !other.index.is_empty()
        };
        for other in self.namespaces().into_iter().filter(is_like).take(OTHERS_MAX) {
            let hashes = other.key.hash_blocks(ids, other.spec.block_tokens as usize, extra);
            for (block, hash) in blocks.iter_mut().zip(hashes) {
                if block.what == What::NeverStored && other.index.contains(hash) {
                    block.what = What::Elsewhere(other.id);
                }
            }
        }
    }

    /// Counts what a `Match` did not find, of which `first` ended the prefix; why that one is not there. It may be
    /// stored a moment later, by whoever asked: then nobody can find out any more.
    pub(crate) fn count_misses(&self, namespace: &Namespace, first: SequenceHash, blocks: u64) -> What {
        let record = namespace.gone.explain(first);
        if !measuring() {
            return self.what_went(record);
        }
        let reason = record.map_or(Reason::NeverStored, |record| record.reason);
        self.counters.misses[reason as usize].add(blocks);
        let tokens = blocks * u64::from(namespace.spec.block_tokens);
        self.counters.miss_tokens[reason as usize].add(tokens);
        self.what_went(record)
    }
}

impl Namespace {
    /// Notes why a block went from a tier, or was refused; only a block that no tier has any more is missed.
    pub(crate) fn note_gone(&self, hash: SequenceHash, reason: Reason, tier: Option<Tier>, now: Duration) {
        if self.index.holders(hash).is_empty() {
            self.gone.note(hash, reason, tier, now);
        }
    }
}

/// The tiers of a set of holders, hottest first.
pub(crate) fn tiers_of(holders: impl HolderSet) -> impl Iterator<Item = Tier> {
    [Tier::Hbm, Tier::Dram, Tier::Nvme, Tier::Object]
        .into_iter()
        .filter(move |tier| holders.contains(*tier as u32))
}
