//! The client's side of the data port.

use std::{io, sync::Arc, time::Duration};

use kelvin_kernels::{Checksum, Hasher};
use kelvin_proto::kv::v1::BlockStatus;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use super::*;

/// Connections of a session.
const LINKS_MAX: usize = 4;
/// Less than this goes over one connection.
const LINK_BYTES_MIN: u64 = 8 << 20;
/// Requests sent ahead of their answers.
const AHEAD: usize = 32;
/// Times that a transfer goes on after a cut.
const CUTS_MAX: u32 = 4;
const AGAIN: Duration = Duration::from_millis(50);
/// Buffers that are kept for the next blocks, at most, in bytes.
const KEPT_BYTES_MAX: usize = 256 << 20;

/// Connections of one session to a data port.
#[derive(Debug)]
pub(crate) struct Links {
    address: String,
    hello: Hello,
    idle: Mutex<Vec<TcpStream>>,
    buffers: Arc<Buffers>,
}

/// A range of a block to be moved.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) lease: u64,
    /// In the block.
    pub(crate) offset: u64,
    /// What is sent, or filled.
    pub(crate) bytes: Buffer,
}

/// What became of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was moved; this is its checksum, as the receiver found it.
    Moved(Checksum),
    /// What arrived is not what was sent.
    Damaged { expected: Checksum, found: Checksum },
    /// There is no such lease (any more).
    Stale,
}

/// Bytes in memory that is used again.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    home: Option<Arc<Buffers>>,
}

/// Memory of former blocks: fresh memory costs more than what is copied into it.
#[derive(Debug, Default)]
struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffer {
    /// Memory that is not used again.
    pub(crate) fn of(bytes: Vec<u8>) -> Self {
        Self { bytes, home: None }
    }

    pub(crate) fn into_bytes(mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }
}

impl std::ops::Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(home) = &self.home else { return };
        let bytes = std::mem::take(&mut self.bytes);
        let mut kept = home.0.lock();
        if bytes.len() * (kept.len() + 1) <= KEPT_BYTES_MAX {
            kept.push(bytes);
        }
    }
}

impl Links {
    /// Connects and shows the token.
    pub(crate) async fn open(address: String, token: [u8; TOKEN_BYTES]) -> io::Result<Self> {
        let links = Self { address, hello: Hello { token }, idle: Mutex::default(), buffers: Arc::default() };
        let first = links.connect().await?;
        links.idle.lock().push(first);
        Ok(links)
    }

    /// Memory for a block; what it holds is undefined.
    pub(crate) fn buffer(&self, bytes: usize) -> Buffer {
        let kept = self.buffers.0.lock().pop().filter(|kept| kept.len() == bytes);
        Buffer { bytes: kept.unwrap_or_else(|| vec![0; bytes]), home: Some(self.buffers.clone()) }
    }

    async fn connect(&self) -> io::Result<TcpStream> {
        let greet = async {
            let mut stream = TcpStream::connect(&self.address).await?;
            settle(&stream)?;
            stream.write_all(&self.hello.encode()).await?;
            let mut welcome = [0; WELCOME_BYTES];
            stream.read_exact(&mut welcome).await?;
            check(&welcome[..6]).map_err(io::Error::other)?;
            match welcome[6] {
                1 => Ok(stream),
                _ => Err(io::Error::new(
                    io::ErrorKind::PermissionDenied,
                    "the data port knows no such session",
                )),
            }
        };
        tokio::time::timeout(GREETING, greet).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Reads parts, several connections at a time where it is worth it; in the order given.
    pub(crate) async fn read(self: &Arc<Self>, parts: Vec<Part>) -> io::Result<Vec<(Part, Outcome)>> {
        self.move_all(Kind::Read, parts).await
    }

    /// Sends parts; as for reads.
    pub(crate) async fn write(self: &Arc<Self>, parts: Vec<Part>) -> io::Result<Vec<(Part, Outcome)>> {
        self.move_all(Kind::Write, parts).await
    }

    async fn move_all(
        self: &Arc<Self>,
        kind: Kind,
        mut parts: Vec<Part>,
    ) -> io::Result<Vec<(Part, Outcome)>> {
        let bytes: u64 = parts.iter().map(|part| part.bytes.len() as u64).sum();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let links = LINKS_MAX.min(cores).min((bytes / LINK_BYTES_MIN) as usize).clamp(1, parts.len().max(1));
        let mut others = Vec::new();
        for link in (1..links).rev() {
            let share = parts.split_off(parts.len() * link / (link + 1));
            let this = self.clone();
            others.push(tokio::spawn(async move { this.move_some(kind, share).await }));
        }
        let mut moved = self.move_some(kind, parts).await?;
        for other in others.into_iter().rev() {
            moved.extend(other.await.map_err(io::Error::other)??);
        }
        Ok(moved)
    }

    /// Moves parts over one connection, and over another where that is cut.
    async fn move_some(&self, kind: Kind, parts: Vec<Part>) -> io::Result<Vec<(Part, Outcome)>> {
        let mut moving = Moving { kind, parts, outcomes: Vec::new(), got: 0 };
        let mut cuts = 0;
        loop {
            let idle = self.idle.lock().pop();
            let fresh = idle.is_none();
            let moved = match idle {
                Some(stream) => moving.go_on(stream).await,
                None => match self.connect().await {
                    Ok(stream) => moving.go_on(stream).await,
                    Err(error) => Err(error),
                },
            };
            match moved {
                Ok(stream) => {
                    let mut idle = self.idle.lock();
                    if idle.len() < LINKS_MAX {
                        idle.push(stream);
                    }
                    return Ok(moving.parts.into_iter().zip(moving.outcomes).collect());
                }
                // The last word, or one that another try won't change.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::InvalidData | io::ErrorKind::PermissionDenied
                    ) =>
                {
                    return Err(error);
                }
                Err(error) if cuts == CUTS_MAX => return Err(error),
                // One that rested may have been cut off long ago.
                Err(_) if !fresh => {}
                Err(error) => {
                    tracing::debug!(%error, "a data connection was cut: going on over another");
                    tokio::time::sleep(AGAIN * 2_u32.pow(cuts)).await;
                    cuts += 1;
                }
            }
        }
    }
}

/// A transfer, as far as it is.
struct Moving {
    kind: Kind,
    parts: Vec<Part>,
    /// Of the parts that are done: a leading run.
    outcomes: Vec<Outcome>,
    /// Bytes of the first undone part that were read.
    got: usize,
}

impl Moving {
    /// Does what is undone; gives the connection back.
    async fn go_on(&mut self, stream: TcpStream) -> io::Result<TcpStream> {
        let (mut from, mut to) = stream.into_split();
        match self.kind {
            Kind::Write => self.send(&mut from, &mut to).await?,
            _ => self.fetch(&mut from, &mut to).await?,
        }
        from.reunite(to).map_err(io::Error::other)
    }

    async fn fetch(&mut self, from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf) -> io::Result<()> {
        let mut asked = self.outcomes.len();
        // A read goes on where it was cut.
        let mut begun = self.got;
        while self.outcomes.len() < self.parts.len() {
            let at = self.outcomes.len();
            let until = self.parts.len().min(at + AHEAD);
            // Asked for again when half of it came.
            if asked < until && (asked - at) * 2 <= AHEAD {
                let mut heads = Vec::with_capacity((until - asked) * HEAD_BYTES);
                for part in &self.parts[asked..until] {
                    let skipped = std::mem::take(&mut begun) as u64;
                    heads.extend_from_slice(
                        &Head {
                            kind: Kind::Read,
                            status: 0,
                            tag: asked as u32,
                            lease: part.lease,
                            offset: part.offset + skipped,
                            bytes: part.bytes.len() as u64 - skipped,
                        }
                        .encode(),
                    );
                    asked += 1;
                }
                in_time(to.write_all(&heads)).await?;
            }
            let head = next_head(from).await?;
            let outcome = self.take(at, head, from).await?;
            self.outcomes.push(outcome);
            self.got = 0;
        }
        Ok(())
    }

    /// Takes one answer and its payload.
    async fn take(&mut self, at: usize, head: Head, from: &mut OwnedReadHalf) -> io::Result<Outcome> {
        if head.status == BlockStatus::StaleLease as u8 && head.bytes == 0 {
            return Ok(Outcome::Stale);
        }
        let part = &mut self.parts[at];
        let begun = self.got;
        let fits = head.kind == Kind::Read
            && head.status == BlockStatus::Leased as u8
            && head.offset == part.offset + begun as u64
            && head.bytes == (part.bytes.len() - begun) as u64;
        if !fits {
            return Err(invalid("an answer of the data port is out of place"));
        }
        // Of what this connection brings: the whole part's is made too, for a part that came in two.
        let mut piece = Hasher::default();
        let mut hashed = begun;
        while self.got < part.bytes.len() {
            match in_time(from.read(&mut part.bytes[self.got..])).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                bytes => self.got += bytes,
            }
            if self.got - hashed >= CHUNK_BYTES || self.got == part.bytes.len() {
                let some = &part.bytes[hashed..self.got];
                piece.update(some);
                hashed = self.got;
            }
        }
        let found = piece.finish();
        if found != head.checksum() {
            return Ok(Outcome::Damaged { expected: head.checksum(), found });
        }
        let whole = if begun == 0 { found } else { kelvin_kernels::checksum(&part.bytes) };
        Ok(Outcome::Moved(whole))
    }

    async fn send(&mut self, from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf) -> io::Result<()> {
        let Self { parts, outcomes, .. } = self;
        let undone = outcomes.len();
        let sending = async {
            for (at, part) in parts.iter().enumerate().skip(undone) {
                let head = Head {
                    kind: Kind::Write,
                    status: 0,
                    tag: at as u32,
                    lease: part.lease,
                    offset: part.offset,
                    bytes: part.bytes.len() as u64,
                };
                in_time(to.write_all(&head.encode())).await?;
                for piece in part.bytes.chunks(4 * CHUNK_BYTES) {
                    in_time(to.write_all(piece)).await?;
                }
            }
            Ok(())
        };
        let hearing = async {
            for _ in undone..parts.len() {
                let head = next_head(from).await?;
                outcomes.push(match BlockStatus::try_from(i32::from(head.status)) {
                    Ok(BlockStatus::StaleLease) => Outcome::Stale,
                    // A commit says what it should have been.
                    Ok(BlockStatus::Ok) => Outcome::Moved(head.checksum()),
                    _ => return Err(invalid("an answer of the data port makes no sense")),
                });
            }
            Ok(())
        };
        let (sent, heard): (io::Result<()>, io::Result<()>) = tokio::join!(sending, hearing);
        // What the store said last is why the sending failed.
        heard.and(sent)
    }
}

async fn next_head(from: &mut OwnedReadHalf) -> io::Result<Head> {
    let mut head = [0; HEAD_BYTES];
    in_time(from.read_exact(&mut head)).await?;
    let head = Head::decode(&head).map_err(|error| invalid(&error.to_string()))?;
    if head.kind != Kind::Refused {
        return Ok(head);
    }
    let mut text = vec![0; (head.bytes as usize).min(TEXT_BYTES_MAX)];
    in_time(from.read_exact(&mut text)).await?;
    Err(invalid(&format!("the data port refused: {}", String::from_utf8_lossy(&text))))
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

async fn in_time<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(STALL, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
