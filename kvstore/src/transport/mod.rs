//! How payload reaches a client without gRPC.

mod calls;
mod shm;
mod tcp;

pub(crate) use calls::Verb;
#[cfg(feature = "server")]
pub(crate) use calls::{Answers, answer_frame, decode_any as decode_any_call, for_each_verb};
pub(crate) use shm::{Attached, attach};
#[cfg(feature = "server")]
pub(crate) use shm::{SocketError, SocketFile, serve};
pub(crate) use tcp::{Buffer, Links, Outcome, Part, TOKEN_BYTES};
#[cfg(feature = "server")]
pub(crate) use tcp::{decode_any, serve_tcp};
