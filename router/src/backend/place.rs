//! Where a request goes: the servers of its model, what is in whose memory, and one cost.

use std::sync::Arc;

use rand::Rng;

use super::{member::Backend, roster::Pool, spec::BackendRole};
use crate::expected::{Candidate, Choice, Held, choose_near};

/// A request as a decision sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape<'a> {
    /// Of the prompt; an estimate where it was not tokenized.
    pub(super) tokens: u64,
    /// Leading tokens in servers' own memories: at the place of the server's id, if there is one.
    pub(super) own: &'a [u64],
    /// What stores have of it, from its beginning on, by their addresses.
    pub(super) stored: &'a [(String, Vec<Held>)],
}

/// What a server is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// The client's request.
    Answer,
    /// Its prompt alone, for another to decode behind.
    Prefill,
}

/// The server where the first token can be expected soonest, of those that take one more; the `preferred` one if it
/// costs little more.
pub(super) fn place(
    pool: &Pool,
    shape: Shape<'_>,
    part: Part,
    preferred: Option<&Backend>,
    excluded: &[u32],
    rng: &mut impl Rng,
) -> Result<(Arc<Backend>, Choice), Full> {
    let mut full = Full::Away;
    let own = |id: u32| shape.own.get(id as usize).copied().unwrap_or(0);
    let candidates = pool.backends.iter().enumerate().filter_map(|(at, backend)| {
        let fits = match part {
            Part::Answer => backend.role().answers(),
            Part::Prefill => backend.role() == BackendRole::Prefill,
        };
        if !fits || excluded.contains(&backend.id) || !backend.is_open() {
            return None;
        }
        if !backend.has_room() {
            full = Full::Busy;
            return None;
        }
        let load = backend.load();
        let store = backend.spec.store.as_ref().filter(|_| !shape.stored.is_empty());
        let held = store.and_then(|store| shape.stored.iter().find(|(known, _)| known == store));
        Some(Candidate {
            worker: at,
            queued_tokens: load.queued_tokens,
            streams: load.streams,
            own_tokens: own(backend.id),
            held: held.map_or(&[], |(_, held)| held),
            skip_tokens: own(backend.id),
            tokens_per_second: load.terms.tokens_per_second,
            step_us: load.terms.step_us,
        })
    });
    let preferred = preferred.and_then(|preferred| {
        pool.backends.iter().position(|backend| std::ptr::eq(&raw const **backend, preferred))
    });
    let choice = choose_near(shape.tokens, candidates, preferred, rng).ok_or(full)?;
    Ok((pool.backends[choice.worker].clone(), choice))
}

/// Why none was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// None can be asked.
    Away,
    /// Those that can have no room.
    Busy,
}
