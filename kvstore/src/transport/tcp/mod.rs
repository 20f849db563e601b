//! The data port: blocks over TCP, without gRPC.
//!
//! # Protocol
//! All numbers are little-endian. The client says [`Hello`], 24 bytes; the server answers with 8. From then on
//! the client asks, as far ahead as it likes, and the server answers in the same order. Every [`Head`] has 32
//! bytes; the payload follows at once, straight from or into the block's slot.
//!
//! | | client | server |
//! |---|---|---|
//! | read | head: lease, offset, bytes | head: bytes and their checksum; the bytes |
//! | write | head: lease, offset, bytes; the bytes | head: checksum of what arrived |
//! | refused | | head: bytes of a text; the text; then it closes |
//!
//! A lease that is not there (any more) is answered by its status and no bytes; what a client sends for one is
//! taken off the wire and dropped. A range that does not lie in the block is a broken client: refused.
//!
//! # Cuts
//! A session outlives its connections. Whoever was cut off connects again with the same token, and asks for what
//! is missing: a read from where it ended, a write whole.
//!
//! # Back-pressure
//! One answer of a connection is made at a time, and the next request is read after it, so a slow reader slows
//! itself. One that takes or sends nothing for ten seconds in the middle of a block is cut off: it holds that
//! block.

mod client;
#[cfg(feature = "server")]
mod server;

use std::{io, time::Duration};

use kelvin_kernels::Checksum;
use tokio::net::TcpStream;

pub(crate) use client::{Buffer, Links, Outcome, Part};
#[cfg(feature = "server")]
pub(crate) use server::serve as serve_tcp;

pub(crate) const TOKEN_BYTES: usize = 16;
const HELLO_BYTES: usize = 8 + TOKEN_BYTES;
const WELCOME_BYTES: usize = 8;
const HEAD_BYTES: usize = 32;
const MAGIC: [u8; 4] = *b"KLVD";
const VERSION: u16 = 1;
/// Longest text of a refusal.
const TEXT_BYTES_MAX: usize = 512;
/// Time for a connection and its greeting.
const GREETING: Duration = Duration::from_secs(5);
/// Without any progress for so long, in the middle of a block, a connection is given up.
const STALL: Duration = Duration::from_secs(10);
/// What is hashed at a time while it is in the caches.
const CHUNK_BYTES: usize = 256 << 10;

/// What both ends set on their socket.
fn settle(stream: &TcpStream) -> io::Result<()> {
    // A head must not wait for more.
    stream.set_nodelay(true)?;
    // Within a host there is no network to share, and pacing by timers, as BBR does, halves the rate at twice the
    // CPU. Between hosts it is the operator's choice.
    if stream.peer_addr()?.ip() == stream.local_addr()?.ip() {
        let _ = rustix::net::sockopt::set_tcp_congestion(stream, "reno");
    }
    Ok(())
}

/// Bytes that make no sense as this protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    /// Something else than this protocol.
    #[error("no Kelvin data connection")]
    Magic,
    /// Another version of it.
    #[error("version {0} of the data port; this is version {VERSION}")]
    Version(u16),
    /// A kind of head there is not.
    #[error("an unknown kind of message, {0}")]
    Kind(u8),
}

/// The first bytes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hello {
    /// As the handshake gave it.
    pub(crate) token: [u8; TOKEN_BYTES],
}

impl Hello {
    fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
        bytes[8..].copy_from_slice(&self.token);
        bytes
    }

    #[cfg(any(feature = "server", test))]
    pub(crate) fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Self, Malformed> {
        check(&bytes[..6])?;
        let mut token = [0; TOKEN_BYTES];
        token.copy_from_slice(&bytes[8..]);
        Ok(Self { token })
    }
}

fn check(bytes: &[u8]) -> Result<(), Malformed> {
    if bytes[..4] != MAGIC {
        return Err(Malformed::Magic);
    }
    match u16::from_le_bytes([bytes[4], bytes[5]]) {
        VERSION => Ok(()),
        other => Err(Malformed::Version(other)),
    }
}

/// The server's answer to a [`Hello`]; whether it knows the token.
#[cfg(any(feature = "server", test))]
fn welcome(known: bool) -> [u8; WELCOME_BYTES] {
    let mut bytes = [0; WELCOME_BYTES];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
    bytes[6] = u8::from(known);
    bytes
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Read = 1,
    Write = 2,
    /// The server's last word.
    Refused = 255,
}

/// What stands before payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) kind: Kind,
    /// In an answer: the number of a `BlockStatus`. In a request: 0.
    pub(crate) status: u8,
    /// The client's own number, sent back.
    pub(crate) tag: u32,
    /// In a request: the lease. In an answer: the checksum of the payload.
    pub(crate) lease: u64,
    /// In the block.
    pub(crate) offset: u64,
    /// Of the payload; of a read's request: how many are wanted.
    pub(crate) bytes: u64,
}

impl Head {
    pub(crate) fn encode(&self) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        (bytes[0], bytes[1]) = (self.kind as u8, self.status);
        bytes[4..8].copy_from_slice(&self.tag.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.lease.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_le_bytes());
        bytes[24..].copy_from_slice(&self.bytes.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; HEAD_BYTES]) -> Result<Self, Malformed> {
        let kind = match bytes[0] {
            1 => Kind::Read,
            2 => Kind::Write,
            255 => Kind::Refused,
            other => return Err(Malformed::Kind(other)),
        };
        let number = |at: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(number)
        };
        let tag = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        Ok(Self { kind, status: bytes[1], tag, lease: number(8), offset: number(16), bytes: number(24) })
    }

    fn checksum(&self) -> Checksum {
        Checksum(self.lease)
    }
}

/// Decodes what came as the first bytes of a connection or as a head; for the fuzz target.
#[cfg(feature = "server")]
pub(crate) fn decode_any(bytes: &[u8]) {
    if let Ok(hello) = bytes.try_into() {
        let _ = Hello::decode(hello);
    }
    if let Ok(head) = bytes.try_into()
        && let Ok(head) = Head::decode(head)
    {
        assert_eq!(Head::decode(&head.encode()), Ok(head));
    }
}
