//! Spans of calls: of the client's verbs, of the store's answers, of what the store brings up from cold tiers.
//!
//! # Overview
//! They exist only as parts of a request's trace: a call that belongs to none (renewals, reports, all calls where
//! nothing is exported) gets no span. They say how many blocks were asked for and how many came, of which tiers
//! (`dram:12 nvme:3`), and their bytes.

use std::fmt::Write;

use kelvin_proto::{kv::v1::Tier, trace};
use tracing::{Span, field::Empty};

/// Of a verb, as the caller sees it.
pub(crate) fn of_verb(verb: &'static str, asked: usize) -> Span {
    if !trace::is_on() || Span::current().is_none() {
        return Span::none();
    }
    tracing::debug_span!(
        "store call",
        otel.name = verb,
        otel.kind = "client",
        asked_blocks = asked as u64,
        blocks = Empty,
        tiers = Empty,
        bytes = Empty,
        transport = Empty,
        error = Empty,
    )
}

/// How many blocks of which tier.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally([u64; 5]);

impl Tally {
    /// Of a sequence of tiers.
    pub(crate) fn of(tiers: impl IntoIterator<Item = Tier>) -> Self {
        let mut tally = Self::default();
        tiers.into_iter().for_each(|tier| tally.add(tier));
        tally
    }

    pub(crate) fn add(&mut self, tier: Tier) {
        self.0[(tier as usize).min(4)] += 1;
    }

    /// Writes blocks, tiers and bytes into a span.
    pub(crate) fn note(&self, span: &Span, block_bytes: u64) {
        if span.is_none() {
            return;
        }
        let blocks: u64 = self.0.iter().sum();
        span.record("blocks", blocks);
        span.record("bytes", blocks.saturating_mul(block_bytes));
        span.record("tiers", self.text());
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (tier, &blocks) in self.0.iter().enumerate().filter(|(_, blocks)| **blocks > 0) {
            let name = Tier::try_from(tier as i32).unwrap_or_default().as_str_name();
            let name = name.trim_start_matches("TIER_").to_lowercase();
            let space = if text.is_empty() { "" } else { " " };
            // Writing to a string does not fail.
            let _ = write!(text, "{space}{name}:{blocks}");
        }
        text
    }
}

#[cfg(feature = "server")]
pub(crate) use of_server::{answered, of_call, of_onboard};

#[cfg(feature = "server")]
mod of_server {
    use kelvin_proto::trace::TraceContext;

    use super::*;

    /// Of a call, as the store sees it: up to its answer, of a stream up to where it begins.
    pub(crate) fn of_call(verb: &str, via: &'static str, parent: Option<TraceContext>) -> Span {
        if parent.is_none() || !trace::is_on() {
            return Span::none();
        }
        let span = tracing::debug_span!(
            "store",
            otel.name = format!("store {verb}"),
            otel.kind = "server",
            via,
            tenant = Empty,
            model = Empty,
            asked_blocks = Empty,
            blocks = Empty,
            tiers = Empty,
            bytes = Empty,
        );
        trace::adopt(&span, parent);
        span
    }

    /// Writes what a call did into its span, if it has one.
    pub(crate) fn answered(
        tenant: &str,
        model: &str,
        asked: usize,
        block_bytes: u64,
        tally: impl Fn() -> Tally,
    ) {
        if !trace::is_on() {
            return;
        }
        let span = Span::current();
        span.record("tenant", tenant);
        span.record("model", model);
        span.record("asked_blocks", asked as u64);
        tally().note(&span, block_bytes);
    }

    /// Of bringing blocks into memory.
    pub(crate) fn of_onboard(asked: usize) -> Span {
        if !trace::is_on() || Span::current().is_none() {
            return Span::none();
        }
        tracing::debug_span!(
            "onboard",
            asked_blocks = asked as u64,
            to = "dram",
            blocks = Empty,
            tiers = Empty,
            bytes = Empty
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiers_are_named_with_their_blocks() {
        assert_eq!(Tally::of([]).text(), "");
        assert_eq!(Tally::of([Tier::Nvme, Tier::Dram, Tier::Nvme]).text(), "dram:1 nvme:2");
    }
}
