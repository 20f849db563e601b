//! Who holds which blocks in its own memory: engines' caches, as their events tell or as routing suggests.
//!
//! # Overview
//! One radix index for all models and all workers, over the router's own hashes: a block's hash is keyed with
//! the model, the block size and the salt, so that what must not meet does not, and an engine's hashes need
//! not be ours. Two kinds of entries:
//! - what a worker's events say ([`Directory::stored`], [`Directory::removed`]);
//! - what a request that was sent there will leave there ([`Directory::assume`]), for workers without events:
//!   it is believed for [`TTL`], and of those entries there are [`ASSUMED_MAX`] at most.
//!
//! Beside them is what workers with events compute right now ([`Directory::begins`]), of which no event tells yet.
//!
//! # Limits
//! With the budget used up nothing new is taken in, and counted: routing then knows less, and nothing breaks. What
//! engines' own hashes take beside it is a part of the budget ([`Room`]).

mod assumed;
mod coming;
mod room;

use std::{
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use kelvin_kvstore::{FleetSet, HolderSet, RadixIndex, SequenceHash};
use parking_lot::Mutex;
use siphasher::sip128::SipHasher13;

use assumed::Assumed;
use coming::Coming;
pub(crate) use coming::Underway;
pub(crate) use room::Room;

/// Workers are numbered below this.
pub(crate) const WORKERS_MAX: u32 = FleetSet::HOLDERS_MAX;
/// How long a worker without events is believed to keep what it computed.
pub(crate) const TTL: Duration = Duration::from_secs(300);
/// Most entries of that kind.
const ASSUMED_MAX: usize = 1 << 20;
/// Bytes of text in a block where nobody counts tokens.
pub(crate) const TEXT_BLOCK_BYTES: usize = 256;
/// What a block of up to 64 tokens, or of text, is hashed from.
const BUFFER_BYTES: usize = SequenceHash::BYTES + 256;
/// What the same prompt as text and as tokens is told apart by.
const AS_TEXT: u32 = 0;

/// See the module.
pub(crate) struct Directory {
    index: RadixIndex<FleetSet>,
    hasher: SipHasher13,
    assumed: Mutex<Assumed>,
    coming: Arc<Coming>,
    refused: AtomicU64,
    /// Bytes of the budget that are taken beside the index.
    beside: Arc<AtomicUsize>,
}

impl Directory {
    /// An empty one that takes `budget_bytes` at most. `secret` keys its hashes: who does not know it cannot
    /// make prompts that look alike.
    pub(crate) fn new(secret: &[u8; 16], budget_bytes: usize) -> Self {
        Self {
            index: RadixIndex::with_budget(budget_bytes),
            hasher: SipHasher13::new_with_key(secret),
            assumed: Mutex::new(Assumed::new(ASSUMED_MAX)),
            coming: Arc::default(),
            refused: AtomicU64::new(0),
            beside: Arc::default(),
        }
    }

    /// Hashes of a prompt's whole blocks of `block_tokens`.
    pub(crate) fn hash_tokens(
        &self,
        scope: &Scope,
        tokens: &[u32],
        block_tokens: usize,
    ) -> Vec<SequenceHash> {
        let mut parent = Some(self.root(scope, u32::try_from(block_tokens).unwrap_or(u32::MAX)));
        let blocks = tokens.chunks_exact(block_tokens.max(1));
        blocks
            .map(|block| {
                let hash = self.hash(parent, block, &[]);
                parent = Some(hash);
                hash
            })
            .collect()
    }

    /// Hash of one block behind `parent`, or of a first block; `extra` is what decides its KV beside the
    /// tokens, nothing as a rule.
    pub(crate) fn hash_block(
        &self,
        scope: &Scope,
        parent: Option<SequenceHash>,
        block: &[u32],
        extra: &[u8],
    ) -> SequenceHash {
        let root = || self.root(scope, u32::try_from(block.len()).unwrap_or(u32::MAX));
        self.hash(Some(parent.unwrap_or_else(root)), block, extra)
    }

    /// SipHash-1-3 of 128 bits: who does not know the key cannot find two that are alike, and here a mistake would
    /// cost a detour, not a wrong answer. What decides about bytes is hashed with BLAKE3, at thrice the time.
    fn hash(&self, parent: Option<SequenceHash>, block: &[u32], extra: &[u8]) -> SequenceHash {
        let mut buffer = [0; BUFFER_BYTES];
        let (parent, tokens) =
            (parent.map_or([0; SequenceHash::BYTES], SequenceHash::to_bytes), size_of_val(block));
        let bytes = parent.len() + tokens + extra.len();
        let mut long;
        let message = match buffer.get_mut(..bytes) {
            Some(message) => message,
            None => {
                long = vec![0; bytes];
                long.as_mut_slice()
            }
        };
        let (head, rest) = message.split_at_mut(parent.len());
        let (middle, tail) = rest.split_at_mut(tokens);
        head.copy_from_slice(&parent);
        let slots = middle.chunks_exact_mut(size_of::<u32>());
        slots.zip(block).for_each(|(slot, token)| slot.copy_from_slice(&token.to_le_bytes()));
        tail.copy_from_slice(extra);
        SequenceHash::from_bytes(self.hasher.hash(message).as_bytes())
    }

    /// The same for a text that is not tokenized.
    pub(crate) fn hash_text(&self, scope: &Scope, text: &str) -> Vec<SequenceHash> {
        let mut parent = Some(self.root(scope, AS_TEXT));
        let blocks = text.as_bytes().chunks_exact(TEXT_BLOCK_BYTES);
        blocks
            .map(|block| {
                let hash = self.hash(parent, &[], block);
                parent = Some(hash);
                hash
            })
            .collect()
    }

    /// Stands before a prompt's first block; it is in no index.
    fn root(&self, scope: &Scope, block_tokens: u32) -> SequenceHash {
        self.hash(None, &[block_tokens], &scope.0)
    }

    /// Gives `found` each worker that has any of the leading blocks, and how many. It may not call the directory.
    pub(crate) fn prefixes(&self, hashes: &[SequenceHash], mut found: impl FnMut(u32, u32)) {
        let (mut alive, mut blocks) = (None, 0);
        self.index.walk_prefix(hashes, None, |more, holders| {
            let before: FleetSet = alive.unwrap_or(holders);
            let still = before.intersection(holders);
            if still != before {
                before.without(still).iter().for_each(|worker| found(worker, blocks));
            }
            blocks += more as u32;
            alive = Some(still);
            if still.is_empty() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        alive.unwrap_or_default().iter().for_each(|worker| found(worker, blocks));
    }

    /// The same of those that compute them right now.
    pub(crate) fn coming(&self, hashes: &[SequenceHash], found: impl FnMut(u32, u32)) {
        self.coming.prefixes(hashes, found);
    }

    /// A prompt of these blocks was sent to a worker whose events will tell of them.
    pub(crate) fn begins(&self, worker: u32, hashes: &[SequenceHash]) -> Underway {
        self.coming.begin(worker, hashes)
    }

    /// A worker has blocks of which each is the parent of the next. Returns whether they were taken in: the
    /// parent must be known, and there must be room.
    pub(crate) fn stored(&self, worker: u32, parent: Option<SequenceHash>, hashes: &[SequenceHash]) -> bool {
        let inserted = worker < WORKERS_MAX
            && self.has_room(0)
            && self.index.insert_run(parent, hashes, worker, 0).is_ok();
        if !inserted {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        inserted
    }

    /// A worker dropped a block.
    pub(crate) fn removed(&self, worker: u32, hash: SequenceHash) {
        self.index.remove(hash, worker);
    }

    /// A worker left, or dropped everything. Walks the whole index.
    pub(crate) fn leave(&self, worker: u32) -> usize {
        drop(self.assumed.lock().leave(worker));
        self.index.remove_holder(worker)
    }

    /// A prompt was sent to a worker that says nothing of its cache; `now` since some fixed moment.
    pub(crate) fn assume(&self, worker: u32, hashes: &[SequenceHash], now: Duration) {
        let mut assumed = self.assumed.lock();
        if !self.stored(worker, None, hashes) {
            // What was believed longest makes room, for more than this one: the index keeps its blocks in
            // tables of which each needs a place. What was taken in of these must not stay without a time.
            for _ in 0..hashes.len().max(assumed.len().div_ceil(16).min(4096)) {
                let Some((worker, hash)) = assumed.oldest() else { break };
                self.index.remove(hash, worker);
            }
            if !self.stored(worker, None, hashes) {
                for hash in hashes.iter().rev().filter(|hash| !assumed.contains(worker, **hash)) {
                    self.index.remove(*hash, worker);
                }
                return;
            }
        }
        // A prompt's end goes before its beginning, without which it is worth nothing.
        for hash in hashes.iter().rev() {
            if let Some((worker, hash)) = assumed.note(worker, *hash, now + TTL) {
                self.index.remove(hash, worker);
            }
        }
    }

    /// Drops what was assumed of a worker.
    pub(crate) fn disbelieve(&self, worker: u32) {
        let gone = self.assumed.lock().leave(worker);
        for hash in gone {
            self.index.remove(hash, worker);
        }
    }

    /// Drops what was assumed too long ago.
    pub(crate) fn expire(&self, now: Duration) {
        self.coming.expire();
        loop {
            // In pieces: decisions wait for the lock.
            let old = self.assumed.lock().expired(now, 1024);
            if old.is_empty() {
                return;
            }
            for (worker, hash) in old {
                self.index.remove(hash, worker);
            }
        }
    }

    /// Blocks known.
    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    /// Marks of prompts that workers compute right now.
    pub(crate) fn marks_coming(&self) -> usize {
        self.coming.len()
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.index.memory_bytes() + self.beside.load(Ordering::Relaxed)
    }

    /// Runs that were not taken in.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

/// What must not meet: the model, and whatever else an engine tells blocks apart by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scope(Vec<u8>);

impl Scope {
    pub(crate) fn new(model: &str, salt: &[u8]) -> Self {
        let mut bytes = (model.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(model.as_bytes());
        bytes.extend_from_slice(salt);
        Self(bytes)
    }
}

#[cfg(test)]
mod tests;
