//! Who makes and uses Kelvin's bytes: prefill and decode workers.
//!
//! # Overview
//! A worker is one process with one engine and one [`Role`]; [`serve`] runs it. Token ids go in and come out
//! over gRPC (`kelvin.worker.v1`); KV blocks go to and come from the store, in shared memory where it is on the
//! same host. A prefill worker fills the store with the blocks of prompts; a decode worker imports them, evaluates
//! what is missing, streams tokens, and stores the blocks it made, so that the next turn finds them.
//!
//! What executes the model is behind the narrow [`Engine`] trait: llama.cpp for GGUF files, a toy for tests.
#![deny(unsafe_code)]

mod chunking;
mod config;
mod decode;
mod engine;
mod error;
mod grammar;
mod load;
mod prefill;
mod sampling;
mod serve;
mod service;
mod span;
pub mod testing;

pub use config::{Listening, ModelSource, Role, WorkerConfig};
pub use engine::{
    BatchItem, Engine, EngineError, EngineOptions, EngineSpec,
    codec::CodecError,
    open as open_engine,
    toy::{TOY_END_TOKEN, TOY_VOCAB_TOKENS, ToyOptions},
};
pub use error::Error;
pub use serve::serve;
