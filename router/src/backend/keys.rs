//! What is known of where a prompt's KV is, gathered before a server is chosen.
//!
//! A server whose events are followed is known by tokens, in blocks of its own size; any other by the text of
//! the prompts that it got. Both kinds of hashes are in one directory and never meet.

use std::time::Duration;

use kelvin_kvstore::SequenceHash;

use super::{member::Backend, pool::Pool};
use crate::{
    directory::{Directory, Scope, TEXT_BLOCK_BYTES},
    expected::Held,
    feeds::{Mode, Stores},
};

/// Bytes of text a token stands for where nobody counts: what is decided by it is a ratio.
pub(crate) const TOKEN_BYTES: u64 = 4;

/// A prompt's size and places.
#[derive(Debug, Clone, Default)]
pub(crate) struct Keys {
    tokens: u64,
    text: Vec<SequenceHash>,
    /// Leading tokens in each server's own memory, at its place in the pool.
    own: Vec<u64>,
    /// In each of the pool's stores; empty if nobody looked there.
    stored: Vec<Vec<Held>>,
}

impl Keys {
    /// Looks a prompt up: its `text` as the request has it, and its `tokens` where they are known. Whatever is
    /// `salted` is looked for in no store: how an engine's connector hashes a salt is its own business.
    pub(crate) fn gather(
        directory: &Directory,
        stores: &Stores,
        pool: &Pool,
        scope: &Scope,
        text: &str,
        tokens: Option<&[u32]>,
        salted: bool,
    ) -> Self {
        let kinds = pool.kinds();
        let hashes = if kinds.by_text { directory.hash_text(scope, text) } else { Vec::new() };
        let mut own = vec![0; pool.backends().len()];
        let mut add = |hashes: &[SequenceHash], block_tokens: u64, is_known: &dyn Fn(Mode, u32) -> bool| {
            directory.prefixes(hashes, |id, blocks| {
                let Some(at) = pool.place(id) else { return };
                let (mode, size) = pool.line(at).known();
                if is_known(mode, size) {
                    own[at] = u64::from(blocks) * block_tokens;
                }
            });
        };
        add(&hashes, TEXT_BLOCK_BYTES as u64 / TOKEN_BYTES, &|mode, _| mode == Mode::Fallback);
        if let Some(tokens) = tokens {
            for size in kinds.sizes.iter().copied() {
                let hashes = directory.hash_tokens(scope, tokens, size as usize);
                add(&hashes, size.into(), &|mode, known| mode != Mode::Fallback && known == size);
            }
        }
        let stored = tokens.filter(|_| !salted).map(|tokens| {
            let held = pool.stores().iter().map(|url| stores.held(url, &pool.card.id, tokens));
            held.collect()
        });
        let tokens = tokens.map_or(text.len() as u64 / TOKEN_BYTES, |tokens| tokens.len() as u64);
        Self { tokens: tokens.max(1), text: hashes, own, stored: stored.unwrap_or_default() }
    }

    /// The prompt goes to `backend`, which will have it.
    pub(super) fn sent(&self, directory: &Directory, backend: &Backend, now: Duration) {
        if !backend.is_followed() {
            directory.assume(backend.id, &self.text, now);
        }
    }

    pub(super) fn tokens(&self) -> u64 {
        self.tokens
    }

    pub(super) fn own(&self) -> &[u64] {
        &self.own
    }

    pub(super) fn stored(&self) -> &[Vec<Held>] {
        &self.stored
    }
}
