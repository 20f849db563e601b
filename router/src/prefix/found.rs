//! What is known of a prompt in the store, and why there is no more of it.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use kelvin_kvstore::{SequenceHash, client::Match};
use kelvin_proto::kv::v1::{BlockExplanation, MissReason, Tier};

/// What is there of a prompt, in tokens of whole blocks: what a decision is made from at once, and what the store says
/// of it itself, which may come later.
#[derive(Debug, Clone, Default)]
pub(crate) struct Found {
    pub(crate) matched_tokens: u64,
    /// Microseconds until all of those are in the store's memory.
    pub(crate) load_us: u64,
    /// Right behind the matched ones, in the making.
    filling_tokens: u64,
    /// What ends that.
    end: End,
    /// The store's own word, where it was not waited for.
    told: Option<Arc<OnceLock<Told>>>,
}

/// The store's own word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) matched_tokens: u64,
    pub(super) filling_tokens: u64,
    pub(super) end: End,
}

/// Why the store has no more of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum End {
    /// There is no store.
    #[default]
    NoStore,
    /// It could not be asked, or did not answer in time.
    Away,
    /// The prompt has no whole block that could be asked for.
    TooShort,
    /// All whole blocks are there.
    AllStored,
    /// All that are not there are being filled.
    Filling,
    /// A whole block that is neither.
    Missing(Missing),
}

/// A block that the store did not have when it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Missing {
    pub(crate) hash: SequenceHash,
    /// Why, if the store said so.
    pub(crate) why: Option<Why>,
}

/// What of an explanation is kept for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Why {
    reason: MissReason,
    lost_from: Tier,
    age: Option<Duration>,
}

impl Why {
    /// `None` if the store does not know.
    pub(crate) fn of(block: &BlockExplanation) -> Option<Self> {
        let why = Self {
            reason: block.reason(),
            lost_from: block.lost_from(),
            age: block.age_ms.map(Duration::from_millis),
        };
        (why.reason != MissReason::Unspecified).then_some(why)
    }

    /// As an explanation that was given so long ago.
    pub(crate) fn explanation(self, hash: SequenceHash, ago: Duration) -> BlockExplanation {
        BlockExplanation {
            hash: hash.to_bytes().to_vec().into(),
            reason: self.reason.into(),
            lost_from: self.lost_from.into(),
            age_ms: self.age.map(|age| u64::try_from((age + ago).as_millis()).unwrap_or(u64::MAX)),
            ..Default::default()
        }
    }
}

impl Found {
    pub(crate) fn nothing(end: End) -> Self {
        Self { end, ..Self::default() }
    }

    /// As the store told it, and was waited for.
    pub(super) fn told(told: Told, load_us: u64) -> Self {
        let Told { matched_tokens, filling_tokens, end } = told;
        Self { matched_tokens, load_us, filling_tokens, end, told: None }
    }

    /// As the index has it; `told` is where the store's own word will be.
    pub(super) fn indexed(known: Told, load_us: u64, told: Option<Arc<OnceLock<Told>>>) -> Self {
        Self { told, ..Self::told(known, load_us) }
    }

    /// What the store had when it was asked; as long as it has not said so, what a decision was made from.
    pub(crate) fn stored_tokens(&self) -> u64 {
        self.own().map_or(self.matched_tokens, |told| told.matched_tokens)
    }

    /// What is there or in the making, as far as anybody knows by now.
    pub(crate) fn awaited_tokens(&self) -> u64 {
        let told = self.own().map_or(0, |told| told.matched_tokens + told.filling_tokens);
        (self.matched_tokens + self.filling_tokens).max(told)
    }

    /// Why there is no more of it.
    pub(crate) fn end(&self) -> End {
        self.own().map_or(self.end, |told| told.end)
    }

    /// The same without what is in the making.
    pub(crate) fn without_filling(self) -> Self {
        Self { filling_tokens: 0, told: None, ..self }
    }

    fn own(&self) -> Option<&Told> {
        self.told.as_ref().and_then(|told| told.get())
    }
}

impl Told {
    /// `blocks` of a prompt's blocks are there and the next `filling` in the making; `why` says why the one behind those
    /// is not.
    pub(super) fn new(
        hashes: &[SequenceHash],
        blocks: u64,
        filling: u64,
        why: Option<Why>,
        block_tokens: u64,
    ) -> Self {
        let end = match hashes.get((blocks + filling) as usize) {
            Some(&hash) => End::Missing(Missing { hash, why }),
            None if filling > 0 => End::Filling,
            None => End::AllStored,
        };
        Self { matched_tokens: blocks * block_tokens, filling_tokens: filling * block_tokens, end }
    }

    /// What the store answered.
    pub(super) fn of(found: &Match, hashes: &[SequenceHash], block_tokens: u64) -> Self {
        // Blocks are what can be waited for; their tokens follow.
        let blocks = u64::from(found.blocks).min(hashes.len() as u64);
        let filling = u64::from(found.filling_blocks).min(hashes.len() as u64 - blocks);
        Self::new(hashes, blocks, filling, found.missed.as_ref().and_then(Why::of), block_tokens)
    }
}
