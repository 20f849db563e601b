//! Where a request goes: the servers of its model, what is in whose memory, and one cost.

use std::sync::Arc;

use rand::Rng;

use super::{member::Backend, pool::Pool, spec::BackendRole};
use crate::expected::{Candidate, Choice, Held, Round};

/// A request as a decision sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape<'a> {
    /// Of the prompt; an estimate where it was not tokenized.
    pub(super) tokens: u64,
    /// Leading tokens in servers' own memories, at their places in the pool.
    pub(super) own: &'a [u64],
    /// What the pool's stores have of it, from its beginning on; empty if nobody looked there.
    pub(super) stored: &'a [Vec<Held>],
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
    let excluded: Vec<usize> = excluded.iter().filter_map(|id| pool.place(*id)).collect();
    let preferred = preferred.and_then(|preferred| {
        pool.place(preferred.id).filter(|at| std::ptr::eq(&raw const *pool.backends()[*at], preferred))
    });
    let mut round = Round::new(shape.tokens, preferred);
    for (at, (facts, line)) in pool.lines().enumerate() {
        let fits = match part {
            Part::Answer => facts.role.answers(),
            Part::Prefill => facts.role == BackendRole::Prefill,
        };
        let is_open = || line.is_open().unwrap_or_else(|| pool.backends()[at].is_open());
        if !fits || (!excluded.is_empty() && excluded.contains(&at)) || !is_open() {
            continue;
        }
        let load = line.load();
        if load.streams >= facts.requests_max {
            full = Full::Busy;
            continue;
        }
        let own_tokens = shape.own.get(at).copied().unwrap_or(0);
        let held = facts.store.and_then(|store| shape.stored.get(usize::from(store)));
        round.offer(Candidate {
            worker: at,
            queued_tokens: load.queued_tokens,
            streams: load.streams,
            own_tokens,
            held: held.map_or(&[], Vec::as_slice),
            skip_tokens: own_tokens,
            tokens_per_second: load.terms.tokens_per_second,
            step_us: load.terms.step_us,
        });
    }
    let choice = round.choose(rng).ok_or(full)?;
    Ok((pool.backends()[choice.worker].clone(), choice))
}

/// Why none was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// None can be asked.
    Away,
    /// Those that can have no room.
    Busy,
}

#[cfg(test)]
mod tests;
