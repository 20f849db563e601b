//! What every scenario needs: a router, scripted workers, and a client.

mod backend;
mod client;
mod proxy;
mod router;
mod worker;

pub(crate) use backend::{DONE, Do, TestBackend, completion, event};
pub(crate) use client::{Events, chat_body, error_of};
pub(crate) use proxy::Proxy;
pub(crate) use router::{TestRouter, until};
pub(crate) use worker::{Act, NOTHING, Setup, TestWorker, fingerprint};
