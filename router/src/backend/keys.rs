//! What is known of where a prompt's KV is, gathered before a server is chosen.
//!
//! A server whose events are followed is known by tokens, in blocks of its own size; any other by the text of
//! the prompts that it got. Both kinds of hashes are in one directory and never meet.

use std::time::Duration;

use kelvin_kvstore::SequenceHash;

use super::{member::Backend, roster::Pool};
use crate::{
    directory::{Directory, Scope, TEXT_BLOCK_BYTES},
    expected::Held,
    feeds::Stores,
};

/// Bytes of text a token stands for where nobody counts: what is decided by it is a ratio.
const TOKEN_BYTES: u64 = 4;

/// A prompt's size and places.
#[derive(Debug, Clone, Default)]
pub(crate) struct Keys {
    tokens: u64,
    text: Vec<SequenceHash>,
    /// Leading tokens in each server's own memory, at the place of its id.
    own: Vec<u64>,
    /// By stores' addresses.
    stored: Vec<(String, Vec<Held>)>,
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
        // One look at each of what may be a thousand servers.
        let (mut by_text, mut sizes, mut places) = (false, Vec::new(), Vec::new());
        let mut by_id: Vec<Option<&Backend>> = Vec::with_capacity(pool.backends.len());
        for backend in &pool.backends {
            match (backend.is_followed(), backend.block_tokens()) {
                (false, _) => by_text = true,
                (true, 0) => {}
                (true, size) if !sizes.contains(&size) => sizes.push(size),
                (true, _) => {}
            }
            if let Some(store) = &backend.spec.store
                && !places.contains(&store)
            {
                places.push(store);
            }
            let id = backend.id as usize;
            if by_id.len() <= id {
                by_id.resize(id + 1, None);
            }
            by_id[id] = Some(backend);
        }
        let hashes = if by_text { directory.hash_text(scope, text) } else { Vec::new() };
        let mut own = vec![0; by_id.len()];
        let mut found = Vec::new();
        let mut add = |hashes: &[SequenceHash], block_tokens: u64, is_known: &dyn Fn(&Backend) -> bool| {
            directory.prefixes(hashes, &mut found);
            for (id, blocks) in &found {
                let backend = by_id.get(*id as usize).copied().flatten();
                if backend.is_some_and(is_known) {
                    own[*id as usize] = u64::from(*blocks) * block_tokens;
                }
            }
        };
        add(&hashes, TEXT_BLOCK_BYTES as u64 / TOKEN_BYTES, &|backend| !backend.is_followed());
        if let Some(tokens) = tokens {
            for size in sizes {
                let hashes = directory.hash_tokens(scope, tokens, size as usize);
                add(&hashes, size.into(), &|backend| backend.is_followed() && backend.block_tokens() == size);
            }
        }
        let stored = tokens.filter(|_| !salted).map(|tokens| {
            let held = places.into_iter().map(|url| (url.clone(), stores.held(url, &pool.card.id, tokens)));
            held.filter(|(_, held)| !held.is_empty()).collect()
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

    pub(super) fn stored(&self) -> &[(String, Vec<Held>)] {
        &self.stored
    }
}
