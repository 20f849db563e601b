//! The real router over HTTP, against workers that are scripted but speak real gRPC on loopback.

mod backends;
mod cancel;
mod chat;
mod drain;
mod errors;
mod failures;
mod feeds;
mod fleet;
mod followed;
mod harness;
mod hedges;
mod index;
mod limits;
mod migration;
mod observe;
mod onward;
mod pairs;
mod prefill;
mod queue;
mod real_vocabulary;
mod redis;
mod store;
mod streams;
mod surface;
mod text;
