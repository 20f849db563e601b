//! The real router over HTTP, against workers that are scripted but speak real gRPC on loopback.

mod cancel;
mod chat;
mod drain;
mod errors;
mod failures;
mod fleet;
mod harness;
mod limits;
mod observe;
mod prefill;
mod real_vocabulary;
mod store;
mod text;
