//! Who makes and uses Kelvin's bytes: prefill and decode workers.

mod chunking;
mod config;
mod decode;
mod engine;
mod error;
mod load;
mod sampling;
pub mod testing;

pub use config::{Listening, ModelSource, Role, WorkerConfig};
pub use engine::{
    BatchItem, Engine, EngineError, EngineOptions, EngineSpec,
    codec::CodecError,
    open as open_engine,
    toy::{TOY_END_TOKEN, TOY_VOCAB_TOKENS, ToyOptions},
};
pub use error::Error;
