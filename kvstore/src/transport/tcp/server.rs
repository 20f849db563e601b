//! The store's side of the data port.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use kelvin_kernels::{Checksum, Hasher, checksum};
use kelvin_proto::kv::v1::BlockStatus;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::*;
use crate::store::{
    MutableBlock, Store, Tenant,
    meters::{self, Carrier, Direction},
};

/// Connections at a time; more wait to be accepted.
const CONNECTIONS_MAX: usize = 4096;
/// How often an idle connection looks whether its session is still there.
const IDLE_LOOK: Duration = Duration::from_secs(5);
/// How often a block in another connection's hands is looked for.
const IN_WORK_LOOK: Duration = Duration::from_millis(2);
/// What a connection may have in the kernel, each way: a round trip's worth.
const SOCKET_BYTES: usize = 4 << 20;

/// Serves connections until told to stop.
pub(crate) async fn serve(listener: TcpListener, store: Arc<Store>, stop: CancellationToken) {
    let tasks = TaskTracker::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = places.clone().acquire_owned().await.expect("never closed");
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (store, stop) = (store.clone(), stop.clone());
                tasks.spawn(async move {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = attend(stream, peer, &store) => {}
                    }
                    drop(place);
                });
            }
            Err(error) => {
                // Out of descriptors, mostly: without a pause this would spin.
                tracing::warn!(%error, "accept on the data port");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    tasks.close();
    tasks.wait().await;
}

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("nothing moved for {} s in the middle of a block", STALL.as_secs())]
    Stalled,
    #[error("{0}")]
    Malformed(#[from] Malformed),
    #[error("{0}")]
    Refused(String),
    #[error("its session ended")]
    Session,
}

async fn attend(mut stream: TcpStream, peer: SocketAddr, store: &Store) {
    let Some((tenant, session)) = greet(&mut stream, store).await else {
        tracing::debug!(%peer, "a data connection without a session");
        return;
    };
    let block_bytes = match tenant.namespace_of(session) {
        Ok(namespace) => namespace.spec.block_bytes,
        Err(_) => return,
    };
    let mut connection = Connection { stream, tenant, session, block_bytes };
    let ended = loop {
        if let Err(ended) = connection.answer_one().await {
            break ended;
        }
    };
    match &ended {
        // The usual end.
        Ended::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
        Ended::Io(_) | Ended::Session => tracing::debug!(%peer, error = %ended, "data connection ended"),
        Ended::Stalled => tracing::warn!(%peer, error = %ended, "data connection cut off"),
        Ended::Malformed(_) | Ended::Refused(_) => {
            tracing::warn!(%peer, error = %ended, "data connection refused");
            connection.refuse(&ended.to_string()).await;
        }
    }
}

/// The tenant and session of the token that a client shows.
async fn greet(stream: &mut TcpStream, store: &Store) -> Option<(Arc<Tenant>, u64)> {
    settle(stream).ok()?;
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&*stream, SOCKET_BYTES);
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&*stream, SOCKET_BYTES);
    let mut hello = [0; HELLO_BYTES];
    tokio::time::timeout(GREETING, stream.read_exact(&mut hello)).await.ok()?.ok()?;
    let hello = Hello::decode(&hello).ok()?;
    let found = store.tenants().find_map(|tenant| Some((tenant.clone(), tenant.session_of(&hello.token)?)));
    let answer = welcome(found.is_some());
    tokio::time::timeout(GREETING, stream.write_all(&answer)).await.ok()?.ok()?;
    found
}

struct Connection {
    stream: TcpStream,
    tenant: Arc<Tenant>,
    session: u64,
    block_bytes: u64,
}

/// A reservation that is being filled. Dropping it puts the block back, so that a connection that breaks off
/// leaves the reservation as it was.
struct Filling<'a> {
    tenant: &'a Tenant,
    session: u64,
    lease: u64,
    block: Option<MutableBlock>,
}

impl Drop for Filling<'_> {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            self.tenant.put_write(self.session, self.lease, block);
        }
    }
}

impl Connection {
    async fn answer_one(&mut self) -> Result<(), Ended> {
        let head = Head::decode(&self.next_head().await?)?;
        let end = head.offset.checked_add(head.bytes).filter(|end| *end <= self.block_bytes);
        if head.bytes == 0 || end.is_none() {
            return Err(Ended::Refused(format!(
                "{} bytes at {} do not lie in a block of {}",
                head.bytes, head.offset, self.block_bytes
            )));
        }
        match head.kind {
            Kind::Read => self.send(&head).await,
            Kind::Write => self.receive(&head).await,
            Kind::Refused => Err(Malformed::Kind(Kind::Refused as u8).into()),
        }
    }

    /// The next request. Between requests a client may rest as long as its session lives.
    async fn next_head(&mut self) -> Result<[u8; HEAD_BYTES], Ended> {
        let mut head = [0; HEAD_BYTES];
        let begun = loop {
            // A read, not a look at readiness: what was read last may have left a stale one.
            match tokio::time::timeout(IDLE_LOOK, self.stream.read(&mut head)).await {
                Ok(read) => break read?,
                Err(_) if self.tenant.namespace_of(self.session).is_err() => return Err(Ended::Session),
                Err(_) => {}
            }
        };
        if begun == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        tokio::time::timeout(STALL, self.stream.read_exact(&mut head[begun..]))
            .await
            .map_err(|_| Ended::Stalled)??;
        Ok(head)
    }

    /// Payload of a leased block, straight from its slot. The block cannot go while it is being sent.
    async fn send(&mut self, head: &Head) -> Result<(), Ended> {
        let began = meters::begin();
        let Some(block) = self.tenant.leased(self.session, head.lease) else {
            let status = BlockStatus::StaleLease as u8;
            return self.write_all(&Head { status, lease: 0, bytes: 0, ..*head }.encode(), &[]).await;
        };
        let payload = &block.slot().bytes()[head.offset as usize..(head.offset + head.bytes) as usize];
        let whole = head.bytes == self.block_bytes;
        let sum = if whole { block.checksum() } else { checksum(payload) };
        let answer = Head { status: BlockStatus::Leased as u8, lease: sum.0, ..*head };
        self.write_all(&answer.encode(), payload).await?;
        self.tenant.counters().tcp_read_bytes.add(head.bytes);
        self.tenant.meters().transfers(Carrier::Tcp, Direction::Read).note(head.bytes, began);
        Ok(())
    }

    /// A head and what follows it, in as few calls as the socket lets.
    async fn write_all(&mut self, head: &[u8], payload: &[u8]) -> Result<(), Ended> {
        let mut sent = 0;
        while sent < head.len() + payload.len() {
            let rest = [
                io::IoSlice::new(head.get(sent..).unwrap_or_default()),
                io::IoSlice::new(&payload[sent.saturating_sub(head.len())..]),
            ];
            let rest = if sent < head.len() { &rest[..] } else { &rest[1..] };
            let moved = tokio::time::timeout(STALL, self.stream.write_vectored(rest))
                .await
                .map_err(|_| Ended::Stalled)??;
            if moved == 0 {
                return Err(io::Error::from(io::ErrorKind::WriteZero).into());
            }
            sent += moved;
        }
        Ok(())
    }

    /// Payload of a reservation, straight into its slot, hashed while it is in the caches.
    async fn receive(&mut self, head: &Head) -> Result<(), Ended> {
        let began = meters::begin();
        let Some(block) = self.take(head.lease).await else {
            self.skip(head.bytes).await?;
            let status = BlockStatus::StaleLease as u8;
            return self.write_all(&Head { status, lease: 0, bytes: 0, ..*head }.encode(), &[]).await;
        };
        let (tenant, session) = (self.tenant.clone(), self.session);
        let mut filling = Filling { tenant: &tenant, session, lease: head.lease, block: Some(block) };
        let block = filling.block.as_mut().expect("put in above");
        block.hashed = None;
        let target = &mut block.slot.bytes_mut()[head.offset as usize..(head.offset + head.bytes) as usize];
        let sum = fill(&mut self.stream, target).await?;
        if head.bytes == self.block_bytes {
            block.hashed = Some(sum);
        }
        drop(filling);
        tenant.counters().tcp_written_bytes.add(head.bytes);
        tenant.meters().transfers(Carrier::Tcp, Direction::Write).note(head.bytes, began);
        let answer = Head { status: BlockStatus::Ok as u8, lease: sum.0, bytes: 0, ..*head };
        self.write_all(&answer.encode(), &[]).await
    }

    /// The block of a reservation. One that is in work is waited for: by a connection that was cut, most likely,
    /// which its end here has not seen yet.
    async fn take(&self, lease: u64) -> Option<MutableBlock> {
        let deadline = tokio::time::Instant::now() + STALL;
        loop {
            if let Some(block) = self.tenant.take_write(self.session, lease) {
                return Some(block);
            }
            if !self.tenant.is_in_work(self.session, lease) || tokio::time::Instant::now() >= deadline {
                return None;
            }
            tokio::time::sleep(IN_WORK_LOOK).await;
        }
    }

    /// Takes payload off the wire that nobody wants.
    async fn skip(&mut self, mut bytes: u64) -> Result<(), Ended> {
        let mut waste = vec![0; CHUNK_BYTES.min(bytes as usize)];
        while bytes > 0 {
            let some = waste.len().min(bytes as usize);
            bytes -= read_some(&mut self.stream, &mut waste[..some]).await? as u64;
        }
        Ok(())
    }

    /// The last word, as far as the client listens.
    async fn refuse(&mut self, text: &str) {
        let text = &text.as_bytes()[..text.len().min(TEXT_BYTES_MAX)];
        let head =
            Head { kind: Kind::Refused, status: 0, tag: 0, lease: 0, offset: 0, bytes: text.len() as u64 };
        if self.write_all(&head.encode(), text).await.is_ok() {
            // A close with unread bytes would throw the text away on its way.
            let _ = self.stream.shutdown().await;
            let drain =
                async { while matches!(read_some(&mut self.stream, &mut [0; 4096]).await, Ok(1..)) {} };
            let _ = tokio::time::timeout(Duration::from_millis(200), drain).await;
        }
    }
}

async fn read_some(stream: &mut TcpStream, target: &mut [u8]) -> Result<usize, Ended> {
    match tokio::time::timeout(STALL, stream.read(target)).await.map_err(|_| Ended::Stalled)?? {
        0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        bytes => Ok(bytes),
    }
}

/// Fills `target` from the wire; the checksum of all of it.
async fn fill(stream: &mut TcpStream, target: &mut [u8]) -> Result<Checksum, Ended> {
    let (mut filled, mut hashed) = (0, 0);
    let mut hasher = Hasher::default();
    while filled < target.len() {
        filled += read_some(stream, &mut target[filled..]).await?;
        if filled - hashed >= CHUNK_BYTES || filled == target.len() {
            hasher.update(&target[hashed..filled]);
            hashed = filled;
        }
    }
    Ok(hasher.finish())
}
