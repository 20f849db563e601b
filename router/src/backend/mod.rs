//! Other engines behind the router: servers that speak OpenAI's API (vLLM, SGLang, TensorRT-LLM, llama.cpp).
//!
//! # Overview
//! ```text
//! flags, file, redis ─► roster ◄─ probe       health, models
//!                        │
//! request ─► peek ─► place ─► forward ─► engine        expected time to first token
//!                     ▲  ▲        └─► member: what is in work there, what was learnt, breaker
//!                  keys  board ◄─────────┘
//! ```
//! A request's body and the engine's answer go through as they are; the router reads of them what it decides
//! and learns from, and what it takes to have another engine go on where one was lost ([`onward`]).

mod attempts;
mod board;
mod breaker;
mod client;
mod counts;
pub(crate) mod discover;
mod fields;
mod forward;
mod keys;
mod learn;
mod member;
mod onward;
mod pair;
mod peek;
mod place;
mod placement;
mod pool;
mod probe;
mod reader;
mod roster;
mod sessions;
mod spec;
mod stream;
mod trouble;
mod usage;

pub(crate) use client::client;
pub(crate) use counts::Counts;
pub use discover::redis::{BackendsRedis, BackendsRedisError};
pub(crate) use forward::{EMBEDDINGS, Errand, Forwarder, Patience, forwarded};
pub(crate) use keys::{Keys, Prompt};
pub(crate) use learn::{Learnt, Published};
pub(crate) use member::{Backend, Health as BackendHealth};
pub(crate) use onward::{Again, Asked, Moved, Moving};
pub(crate) use peek::Peek;
pub(crate) use placement::Placement;
pub(crate) use pool::Pool;
pub(crate) use probe::look_after;
pub(crate) use roster::{Roster, Source};
pub(crate) use sessions::Sessions;
pub use spec::{BackendKey, BackendRole, BackendSpec, BackendSpecError};
pub(crate) use trouble::Trouble;
