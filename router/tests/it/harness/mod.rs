//! What every scenario needs: a router, scripted workers, and a client.

mod client;
mod router;
mod worker;

pub(crate) use client::{Events, chat_body, error_of};
pub(crate) use router::{TestRouter, until};
pub(crate) use worker::{Act, NOTHING, Setup, TestWorker, fingerprint};
