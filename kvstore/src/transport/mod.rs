//! How payload reaches a client without gRPC.

mod shm;
mod tcp;

pub(crate) use shm::{Attached, attach};
#[cfg(feature = "server")]
pub(crate) use shm::{SocketError, SocketFile, serve};
pub(crate) use tcp::{Buffer, Links, Outcome, Part, TOKEN_BYTES};
#[cfg(feature = "server")]
pub(crate) use tcp::{decode_any, serve_tcp};
