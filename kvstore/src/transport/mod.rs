//! How payload reaches a client without gRPC.

mod shm;

pub(crate) use shm::{Attached, attach};
#[cfg(feature = "server")]
pub(crate) use shm::{SocketError, SocketFile, serve};
