//! What is known of where a prompt's KV is, gathered before a server is chosen.
//!
//! A server whose events are followed is known by tokens, in blocks of its own size; any other by the text of
//! the prompts that it got, and so is everyone for a prompt whose tokens are not known, or not for sure. Both kinds of
//! hashes are in one directory and never meet.

use std::time::Duration;

use kelvin_kvstore::SequenceHash;

use super::{member::Backend, pool::Pool};
use crate::{
    directory::{Directory, Scope, TEXT_BLOCK_BYTES, Underway},
    expected::Held,
    feeds::{Mode, Stores},
};

/// Bytes of text a token stands for where nobody counts: what is decided by it is a ratio.
const TOKEN_BYTES: u64 = 4;

/// What a prompt is looked up by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Prompt<'a> {
    pub(crate) scope: &'a Scope,
    /// As the request has it.
    pub(crate) text: &'a str,
    /// What its text is compared within, where that is less than `scope`: all that stands before it.
    pub(crate) text_scope: &'a Scope,
    /// Where they are known.
    pub(crate) tokens: Option<&'a [u32]>,
    /// Whether they are what an engine makes of it.
    pub(crate) is_sure: bool,
    /// It is looked for in no store then: how an engine's connector hashes a salt is its own business.
    pub(crate) is_salted: bool,
}

/// A prompt's size and places.
#[derive(Debug, Clone, Default)]
pub(crate) struct Keys {
    tokens: u64,
    text: Vec<SequenceHash>,
    /// By the number of a block's tokens, as servers that tell of their caches have them.
    by_tokens: Vec<(u32, Vec<SequenceHash>)>,
    /// Whether every server is known by the text.
    all_by_text: bool,
    /// Leading tokens in each server's own memory, at its place in the pool.
    own: Vec<u64>,
    /// In each of the pool's stores; empty if nobody looked there.
    stored: Vec<Vec<Held>>,
}

impl Keys {
    /// Looks a prompt up.
    pub(crate) fn gather(directory: &Directory, stores: &Stores, pool: &Pool, prompt: &Prompt<'_>) -> Self {
        let Prompt { scope, text, tokens, .. } = *prompt;
        let kinds = pool.kinds();
        let all_by_text = tokens.is_none() || !prompt.is_sure;
        let by_text = kinds.by_text || all_by_text;
        let hashes = if by_text { directory.hash_text(prompt.text_scope, text) } else { Vec::new() };
        let mut own = vec![0; pool.backends().len()];
        let mut add = |id: u32, tokens: u64, is_known: &dyn Fn(Mode, u32) -> bool| {
            let Some(at) = pool.place(id) else { return };
            let (mode, size) = pool.line(at).known();
            if is_known(mode, size) {
                own[at] = own[at].max(tokens);
            }
        };
        let by_what_was_sent = |mode, _| all_by_text || mode == Mode::Fallback;
        directory.prefixes(&hashes, |id, blocks| {
            add(id, u64::from(blocks) * TEXT_BLOCK_BYTES as u64 / TOKEN_BYTES, &by_what_was_sent);
        });
        let mut by_tokens = Vec::new();
        for size in tokens.iter().flat_map(|_| kinds.sizes.iter().copied()) {
            let hashes = directory.hash_tokens(scope, tokens.unwrap_or_default(), size as usize);
            let by_events = |mode, known| mode != Mode::Fallback && known == size;
            let tokens = |blocks| u64::from(blocks) * u64::from(size);
            directory.prefixes(&hashes, |id, blocks| add(id, tokens(blocks), &by_events));
            // Of one that has not told of any block yet the size is not known.
            let or_will = |mode, known| by_events(mode, known) || (mode != Mode::Fallback && known == 0);
            directory.coming(&hashes, |id, blocks| add(id, tokens(blocks), &or_will));
            by_tokens.push((size, hashes));
        }
        let stored = tokens
            .filter(|_| !prompt.is_salted)
            .map(|tokens| stores.held(pool.stores(), &pool.card.name, tokens));
        let tokens = tokens.map_or(text.len() as u64 / TOKEN_BYTES, |tokens| tokens.len() as u64);
        let stored = stored.unwrap_or_default();
        Self { tokens: tokens.max(1), text: hashes, by_tokens, all_by_text, own, stored }
    }

    /// The prompt goes to `backend`, which will have it: what that is counted by until its own events tell.
    pub(super) fn sent(&self, directory: &Directory, backend: &Backend, now: Duration) -> Option<Underway> {
        if self.all_by_text || !backend.is_followed() {
            directory.assume(backend.id, &self.text, now);
            return None;
        }
        let size = backend.block_tokens();
        let (_, hashes) = self.by_tokens.iter().find(|(known, _)| *known == size || size == 0)?;
        Some(directory.begins(backend.id, hashes))
    }

    /// Tokens that are to be computed wherever most of it is.
    pub(crate) fn uncached_tokens(&self) -> u64 {
        let stored = self.stored.iter().map(|held| held.iter().map(|held| held.tokens).sum());
        let most = self.own.iter().copied().chain(stored).max().unwrap_or(0);
        self.tokens.saturating_sub(most)
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
