//! Who goes where: the OpenAI endpoint and the scheduler.
//!
//! # Overview
//! A router is the front of a cluster. It speaks OpenAI's API to clients ([`serve`]), turns text into
//! tokens and back, knows from the store's block events which prefix of a prompt is there, decides by expected time to
//! first token which decode worker serves it and whether a prefill worker helps, and streams the tokens.
//! Between the modules a request goes one way down and its tokens one way up:
//!
//! ```text
//! admission: how many at once, and who is next
//!   ▲
//! openai ──► scheduler ──► cost
//!   │  │         ├───────► fleet    ──► workers
//!   │  └──► text └───────► prefix   ──► store
//!   └─────► backend ──► expected    ──► other engines
//! ```
//!
//! # Invariants
//! - No KV byte passes through here; token ids do, and text.
//! - [`cost`] and [`expected`](mod@expected) are pure functions: they do no I/O and read no clock.
//! - The store makes requests faster and is never needed to answer one.
//! - A stream ends with `[DONE]` or with an error, never silently.
#![forbid(unsafe_code)]

mod admission;
mod backend;
#[doc(hidden)]
pub mod bench_support;
mod config;
mod cost;
mod directory;
mod expected;
mod feeds;
mod fleet;
mod halves;
mod metrics;
mod openai;
mod page;
mod prefix;
mod scheduler;
mod service;
mod text;

pub use backend::{
    BackendKey, BackendRole, BackendSpec, BackendSpecError, BackendsRedis, BackendsRedisError,
};
pub use config::{Error, KeyKind, Listening, ModelSource, RouterConfig};
pub use cost::PrefillPolicy;
pub use expected::{Candidate, Choice, Expected, Held, choose, expected};
pub use metrics::metrics_catalogue;
pub use service::serve;
pub use text::VocabularyError;
