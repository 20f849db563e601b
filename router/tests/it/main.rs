//! The real router over HTTP, against workers that are scripted but speak real gRPC on loopback.

mod backends;
mod cancel;
mod chat;
mod drain;
mod errors;
mod failures;
mod feeds;
mod fleet;
mod harness;
mod limits;
mod migration;
mod observe;
mod prefill;
mod queue;
mod real_vocabulary;
mod store;
mod surface;
mod text;
