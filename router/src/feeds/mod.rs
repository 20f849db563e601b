//! What engines say of their own caches: KV events over ZMQ, as vLLM and SGLang publish them.
//!
//! # Overview
//! ```text
//! engine ─ PUB ─► follow ─► decode ─► view ─► directory
//!    ▲               │ a gap in the sequence
//!    └─ ROUTER ◄─────┘ what was missed, as far back as the engine keeps it
//! ```
//! [`stores`] follows what engines load from, by the block events of Kelvin's own stores, into [`holdings`].
//!
//! [`decode`] reads both forms that engines have used, tagged maps and positional arrays; [`view`] is pure and
//! knows the engine's hashes beside ours; [`follow`] does the talking.
//!
//! # Modes
//! - `exact`: every event since the engine's start, or since it cleared its cache, was seen.
//! - `degraded`: some were missed. What is known is still used; it is less than there is.
//! - `fallback`: there are no events, or none came yet: routing believes what it did itself.

mod decode;
mod follow;
mod followed;
mod holdings;
mod stores;
mod view;

pub(crate) use follow::{Feed, follow};
pub(crate) use followed::Followed;
pub(crate) use holdings::Rates;
pub(crate) use stores::{StoreReport, Stores};

/// How much is known of an engine's cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
#[repr(u8)]
pub(crate) enum Mode {
    #[default]
    Fallback,
    Degraded,
    Exact,
}

impl Mode {
    pub(crate) const ALL: [Self; 3] = [Self::Fallback, Self::Degraded, Self::Exact];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fallback => "fallback",
            Self::Degraded => "degraded",
            Self::Exact => "exact",
        }
    }

    #[inline]
    pub(crate) fn from_u8(byte: u8) -> Self {
        Self::ALL.get(usize::from(byte)).copied().unwrap_or_default()
    }
}
