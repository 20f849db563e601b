//! The verbs on the wire: requests made, answers checked.

use std::{
    borrow::Cow,
    ops::Range,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use bytes::Bytes;
use kelvin_kernels::Checksum;
use kelvin_proto::{
    Reason, Refusal,
    kv::v1::{self, BlockStatus},
};

use super::{
    Error,
    keeper::{Handle, Session, Way},
    lease::{LeaseName, Memory, PartLease, ReadLease, WriteLease},
    namespace::{Acquired, Keep, Match, Reserved},
};
use crate::{
    SequenceHash,
    transport::{Buffer, Links, Outcome, Part},
};

const FRAME_BYTES: usize = 1 << 20;

/// Hashes one behind the other.
fn pack(hashes: &[SequenceHash]) -> Bytes {
    let mut bytes = Vec::with_capacity(hashes.len() * SequenceHash::BYTES);
    hashes.iter().for_each(|hash| bytes.extend_from_slice(&hash.to_bytes()));
    Bytes::from(bytes)
}

/// Parts of one buffer: an allocation a hash would cost more than the rest of the request.
fn wire(hashes: &[SequenceHash]) -> Vec<Bytes> {
    let bytes = pack(hashes);
    let starts = (0..bytes.len()).step_by(SequenceHash::BYTES);
    starts.map(|start| bytes.slice(start..start + SequenceHash::BYTES)).collect()
}

fn expect_count(what: &str, found: usize, expected: usize) -> Result<(), Error> {
    if found != expected {
        return Err(Error::Protocol(format!("{found} {what} for {expected} blocks")));
    }
    Ok(())
}

pub(super) async fn match_prefix(
    keeper: &Handle,
    session: &Session,
    hashes: &[SequenceHash],
) -> Result<Match, Error> {
    let hashes = &hashes[..hashes.len().min(session.keys_max)];
    let prefix = v1::match_request::Prefix::Hashes(v1::Hashes { hashes: wire(hashes) });
    let client = &keeper.shared.client;
    let message = v1::MatchRequest { session_id: session.id, prefix: Some(prefix), ..Default::default() };
    let answer = session.call(client, message, Duration::ZERO).await?;
    if answer.blocks as usize > hashes.len() {
        return Err(Error::Protocol("more blocks matched than asked for".into()));
    }
    Ok(Match {
        blocks: answer.blocks,
        tokens: answer.tokens,
        filling_blocks: answer.filling_blocks,
        tiers: answer.tiers().collect(),
        restorable_tokens: answer.restorable_tokens,
        loads: answer.loads,
        missed: answer.missed,
    })
}

pub(super) async fn acquire(
    keeper: &Arc<Handle>,
    session: &Session,
    hashes: &[SequenceHash],
    wait: Duration,
) -> Result<Acquired, Error> {
    let Acquired { mut leases, mut stopped } = lease(keeper, session, hashes, wait).await?;
    match &session.way {
        Way::Shm(_) => {}
        Way::Tcp(links) => {
            if let Some(status) = fetch_tcp(keeper, links, &mut leases).await? {
                stopped = Some(status);
            }
        }
        Way::Grpc => fetch(keeper, session, &mut leases).await?,
    }
    Ok(Acquired { leases, stopped })
}

/// Leases whose bytes did not travel (yet).
pub(super) async fn lease(
    keeper: &Arc<Handle>,
    session: &Session,
    hashes: &[SequenceHash],
    wait: Duration,
) -> Result<Acquired, Error> {
    let asked = &hashes[..hashes.len().min(session.keys_max)];
    let client = &keeper.shared.client;
    // Without a hash there is nothing to pack.
    let packs = session.packs && !asked.is_empty();
    let message = v1::AcquireRequest {
        session_id: session.id,
        hashes: if packs { Vec::new() } else { wire(asked) },
        wait_ms: wait.as_millis() as u64,
        lease_ttl_ms: client.options().lease_ttl.as_millis() as u64,
        packed_hashes: if packs { pack(asked) } else { Bytes::new() },
    };
    let answer = session.call(client, message, wait).await?;

    let block_bytes = keeper.shared.spec.block_bytes;
    let mut leases = Vec::with_capacity(asked.len());
    let mut lease = |hash, id, location, checksum, tier| -> Result<(), Error> {
        let memory = match &session.way {
            Way::Shm(attached) => Memory::mapped(attached, location, block_bytes)?,
            Way::Tcp(_) | Way::Grpc => Memory::Owned(Buffer::default()),
        };
        leases.push(ReadLease {
            name: LeaseName { session: session.id, id },
            hash,
            tier,
            expected: Checksum(checksum),
            memory,
            keeper: keeper.clone(),
            damaged: AtomicBool::new(false),
            checked: false,
        });
        Ok(())
    };
    let mut stopped = None;
    if packs {
        let packed = answer.packed.ok_or_else(|| Error::Protocol("an answer that is not packed".into()))?;
        let leased = packed.checksums.len();
        expect_count("offsets", packed.offsets.len(), leased)?;
        // All of them, or why not.
        let all = packed.stopped() == BlockStatus::Unspecified;
        if leased > asked.len() || all != (leased == asked.len()) {
            return Err(Error::Protocol(format!("{leased} packed leases for {} blocks", asked.len())));
        }
        stopped = (!all).then(|| packed.stopped());
        let places = packed.offsets.iter().map(|&offset| v1::Location { offset, bytes: block_bytes });
        for (at, (location, &checksum)) in places.zip(&packed.checksums).enumerate() {
            let id = packed.first_lease_id.wrapping_add(at as u64);
            lease(asked[at], id, location, checksum, packed.tier())?;
        }
    } else {
        expect_count("leases", answer.leases.len(), asked.len())?;
        for (found, &hash) in answer.leases.into_iter().zip(asked) {
            if found.status() != BlockStatus::Leased {
                stopped = Some(found.status());
                break;
            }
            let location = found.location.unwrap_or_default();
            lease(hash, found.lease_id, location, found.checksum, found.tier())?;
        }
    }
    keeper.hold(leases.iter().map(|lease| lease.name));
    Ok(Acquired { leases, stopped })
}

/// A part of each block, of a leading run of the leases: up to one that the store does not have (any more).
pub(super) async fn read_parts<'a>(
    keeper: &Handle,
    session: &Session,
    leases: &'a [PartLease],
    range: Range<u64>,
) -> Result<Vec<Cow<'a, [u8]>>, Error> {
    let block_bytes = keeper.shared.spec.block_bytes;
    if range.is_empty() || range.end > block_bytes {
        let text = format!("bytes {} to {} do not lie in a block of {block_bytes}", range.start, range.end);
        return Err(Refusal::new(Reason::InvalidArgument, text).into());
    }
    let range = range.start as usize..range.end as usize;
    let mapped = leases.iter().map_while(|lease| match &lease.0.memory {
        memory @ Memory::Mapped { .. } => Some(Cow::Borrowed(&memory.bytes()[range.clone()])),
        Memory::Owned(_) => None,
    });
    let mut parts: Vec<Cow<[u8]>> = mapped.collect();
    // A session that replaced one whose memory was mapped may have no other way than the network.
    let of_session = |lease: &&PartLease| lease.0.name.session == session.id;
    let rest: Vec<&PartLease> = leases[parts.len()..].iter().take_while(of_session).collect();
    match &session.way {
        _ if rest.is_empty() => {}
        Way::Shm(_) => {}
        Way::Tcp(links) => parts.extend(parts_tcp(keeper, links, &rest, &range).await?.map(Cow::Owned)),
        Way::Grpc => {
            parts.extend(parts_grpc(keeper, session, &rest, &range).await?.into_iter().map(Cow::Owned))
        }
    }
    Ok(parts)
}

async fn parts_tcp(
    keeper: &Handle,
    links: &Arc<Links>,
    leases: &[&PartLease],
    range: &Range<usize>,
) -> Result<impl Iterator<Item = Vec<u8>>, Error> {
    let part = |lease: &&PartLease| Part {
        lease: lease.0.name.id,
        offset: range.start as u64,
        bytes: Buffer::of(vec![0; range.len()]),
    };
    let parts = leases.iter().map(part).collect();
    let moved = in_time(transfer_time(keeper, leases.len()), links.read(parts)).await?;
    if moved.iter().any(|(_, outcome)| matches!(outcome, Outcome::Damaged { .. })) {
        return Err(Error::Protocol("bytes were damaged on their way: read them again".into()));
    }
    let there = moved.into_iter().take_while(|(_, outcome)| matches!(outcome, Outcome::Moved(_)));
    Ok(there.map(|(part, _)| part.bytes.into_bytes()))
}

async fn parts_grpc(
    keeper: &Handle,
    session: &Session,
    leases: &[&PartLease],
    range: &Range<usize>,
) -> Result<Vec<Vec<u8>>, Error> {
    let ids = leases.iter().map(|lease| lease.0.name.id).collect();
    let mut frames = Frames::open(keeper, session, ids, Some(range.clone())).await?;
    let mut parts = Vec::with_capacity(leases.len());
    for lease in leases {
        match frames.next(lease.0.name.id, range).await? {
            Some(bytes) => parts.push(bytes),
            None => break,
        }
    }
    Ok(parts)
}

/// Time for a transfer of so many blocks: each gets that of a call.
fn transfer_time(keeper: &Handle, blocks: usize) -> Duration {
    keeper.shared.client.options().call_timeout * blocks.max(1) as u32
}

fn cut(error: std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::InvalidData => Error::Protocol(error.to_string()),
        _ => Error::Refused(Refusal::new(Reason::Unavailable, format!("the data port: {error}"))),
    }
}

async fn in_time<T>(time: Duration, work: impl Future<Output = std::io::Result<T>>) -> Result<T, Error> {
    let late = |_| Err(std::io::ErrorKind::TimedOut.into());
    tokio::time::timeout(time, work).await.unwrap_or_else(late).map_err(cut)
}

/// Bytes of leased blocks, through the data port; why the run ends before the last of them, if it does.
async fn fetch_tcp(
    keeper: &Handle,
    links: &Arc<Links>,
    leases: &mut Vec<ReadLease>,
) -> Result<Option<BlockStatus>, Error> {
    let block_bytes = keeper.shared.spec.block_bytes as usize;
    let parts: Vec<Part> = leases
        .iter()
        .map(|lease| Part { lease: lease.name.id, offset: 0, bytes: links.buffer(block_bytes) })
        .collect();
    if parts.is_empty() {
        return Ok(None);
    }
    let time = transfer_time(keeper, parts.len());
    let moved = in_time(time, links.read(parts)).await?;
    let stale = moved.iter().position(|(_, outcome)| *outcome == Outcome::Stale);
    for (lease, (part, outcome)) in leases.iter_mut().zip(moved) {
        // What came wrong is found again when its reader looks, and is reported to the store.
        lease.checked = outcome == Outcome::Moved(lease.expected);
        lease.memory = Memory::Owned(part.bytes);
    }
    leases.truncate(stale.unwrap_or(leases.len()));
    Ok(stale.map(|_| BlockStatus::StaleLease))
}

/// Bytes of leased blocks, through gRPC.
async fn fetch(keeper: &Handle, session: &Session, leases: &mut [ReadLease]) -> Result<(), Error> {
    if leases.is_empty() {
        return Ok(());
    }
    let ids = leases.iter().map(|lease| lease.name.id).collect();
    let whole = 0..keeper.shared.spec.block_bytes as usize;
    let mut frames = Frames::open(keeper, session, ids, None).await?;
    for lease in leases {
        let bytes = frames.next(lease.name.id, &whole).await?;
        let bytes = bytes.ok_or_else(|| Error::Protocol("a lease ended while it was read".into()))?;
        lease.memory = Memory::Owned(Buffer::of(bytes));
    }
    Ok(())
}

/// The answer of a read.
struct Frames {
    frames: tonic::Streaming<v1::ReadResponse>,
    /// Time for each: the call's own ends with the head of its answer.
    time: Duration,
}

impl Frames {
    async fn open(
        keeper: &Handle,
        session: &Session,
        lease_ids: Vec<u64>,
        range: Option<Range<usize>>,
    ) -> Result<Self, Error> {
        let client = &keeper.shared.client;
        // A stream of many blocks may well outlast one call's time: each block gets it.
        let time = transfer_time(keeper, lease_ids.len());
        let range =
            range.map(|range| v1::ByteRange { offset: range.start as u64, bytes: range.len() as u64 });
        let message = v1::ReadRequest { session_id: session.id, lease_ids, range };
        let frames = client.service().read(client.request(message, time)).await?.into_inner();
        Ok(Self { frames, time: client.options().call_timeout })
    }

    /// Bytes of the next lease; `None` when the store does not have it.
    async fn next(&mut self, lease_id: u64, range: &Range<usize>) -> Result<Option<Vec<u8>>, Error> {
        let mut bytes = Vec::with_capacity(range.len());
        while bytes.len() < range.len() {
            let next = tokio::time::timeout(self.time, self.frames.message()).await;
            let stalled =
                |_| Error::Refused(Refusal::new(Reason::Unavailable, "the store stalled in a read"));
            let ended = || Error::Protocol("a read ended early".into());
            let frame = next.map_err(stalled)??.ok_or_else(ended)?;
            if frame.status() == BlockStatus::StaleLease && frame.lease_id == lease_id && bytes.is_empty() {
                return Ok(None);
            }
            let fits = frame.status() == BlockStatus::Leased
                && frame.lease_id == lease_id
                && frame.offset == (range.start + bytes.len()) as u64
                && !frame.data.is_empty()
                && bytes.len() + frame.data.len() <= range.len();
            if !fits {
                return Err(Error::Protocol(format!("a frame of lease {} out of place", frame.lease_id)));
            }
            bytes.extend_from_slice(&frame.data);
        }
        Ok(Some(bytes))
    }
}

pub(super) async fn reserve(
    keeper: &Arc<Handle>,
    session: &Session,
    parent: Option<SequenceHash>,
    hashes: &[SequenceHash],
    keep: Keep,
) -> Result<Vec<Reserved>, Error> {
    let client = &keeper.shared.client;
    let asked = &hashes[..hashes.len().min(session.keys_max)];
    let message = v1::ReserveRequest {
        session_id: session.id,
        parent: parent.map(|hash| Bytes::copy_from_slice(&hash.to_bytes())).unwrap_or_default(),
        hashes: wire(asked),
        lease_ttl_ms: client.options().lease_ttl.as_millis() as u64,
        priority: keep.priority.into(),
        block_ttl_ms: keep.ttl.map_or(0, |ttl| (ttl.as_millis() as u64).max(1)),
    };
    let answer = session.call(client, message, Duration::ZERO).await?;
    expect_count("reservations", answer.leases.len(), asked.len())?;

    let block_bytes = keeper.shared.spec.block_bytes;
    let mut reserved = Vec::with_capacity(hashes.len());
    for (lease, &hash) in answer.leases.into_iter().zip(asked) {
        reserved.push(match lease.status() {
            BlockStatus::Reserved => {
                let name = LeaseName { session: session.id, id: lease.lease_id };
                let memory = match &session.way {
                    Way::Shm(attached) => {
                        Memory::mapped(attached, lease.location.unwrap_or_default(), block_bytes)?
                    }
                    Way::Tcp(links) => Memory::Owned(links.buffer(block_bytes as usize)),
                    Way::Grpc => Memory::Owned(Buffer::of(vec![0; block_bytes as usize])),
                };
                keeper.hold([name].into_iter());
                let keeper = keeper.clone();
                Reserved::Write(WriteLease { name, hash, memory, keeper, known: None, done: false })
            }
            BlockStatus::AlreadyStored => Reserved::AlreadyStored,
            BlockStatus::Filling => Reserved::Filling,
            BlockStatus::NoSpace => Reserved::NoSpace,
            BlockStatus::NoParent => Reserved::NoParent,
            other => Reserved::Other(other),
        });
    }
    reserved.resize_with(hashes.len(), || Reserved::Other(BlockStatus::Skipped));
    Ok(reserved)
}

pub(super) async fn commit(
    keeper: &Handle,
    session: &Session,
    mut filled: Vec<WriteLease>,
) -> Result<Vec<BlockStatus>, Error> {
    let mut statuses = Vec::with_capacity(filled.len());
    for batch in filled.chunks_mut(session.keys_max) {
        statuses.extend(commit_batch(keeper, session, batch).await?);
    }
    Ok(statuses)
}

async fn commit_batch(
    keeper: &Handle,
    session: &Session,
    batch: &mut [WriteLease],
) -> Result<Vec<BlockStatus>, Error> {
    let client = &keeper.shared.client;
    if batch.iter().any(|lease| lease.name.session != session.id) {
        // Their session is gone, and with it these reservations.
        return Ok(vec![BlockStatus::StaleLease; batch.len()]);
    }
    let blocks: Vec<v1::CommitBlock> = match &session.way {
        Way::Shm(_) => {
            let block = |lease: &WriteLease| (lease.name.id, lease.checksum().0);
            batch
                .iter()
                .map(block)
                .map(|(lease_id, checksum)| v1::CommitBlock { lease_id, checksum })
                .collect()
        }
        Way::Tcp(links) => send_tcp(keeper, links, batch).await?,
        Way::Grpc => {
            let mut statuses = Vec::with_capacity(batch.len());
            for lease in batch {
                statuses.push(send(keeper, session, lease).await?);
            }
            return Ok(statuses);
        }
    };
    let message = v1::CommitRequest { session_id: session.id, blocks };
    // Should the answer not come, the leases abort when they are dropped, which does nothing to a block that
    // was committed.
    let answer = session.call(client, message, Duration::ZERO).await?;
    expect_count("commits", answer.statuses.len(), batch.len())?;
    batch.iter_mut().for_each(WriteLease::finish);
    Ok(answer.statuses().collect())
}

/// Sends blocks through the data port; what is to be committed. The checksum is the one made here: should what
/// arrived be something else, or nothing, the commit says so.
async fn send_tcp(
    keeper: &Handle,
    links: &Arc<Links>,
    batch: &mut [WriteLease],
) -> Result<Vec<v1::CommitBlock>, Error> {
    let mut blocks = Vec::with_capacity(batch.len());
    let mut parts = Vec::with_capacity(batch.len());
    for lease in batch {
        blocks.push(v1::CommitBlock { lease_id: lease.name.id, checksum: lease.checksum().0 });
        let bytes = lease.take_owned().expect("a block is owned where nothing is mapped");
        parts.push(Part { lease: lease.name.id, offset: 0, bytes });
    }
    in_time(transfer_time(keeper, parts.len()), links.write(parts)).await?;
    Ok(blocks)
}

/// Sends one block's bytes through gRPC and commits it.
async fn send(keeper: &Handle, session: &Session, lease: &mut WriteLease) -> Result<BlockStatus, Error> {
    let client = &keeper.shared.client;
    let checksum = lease.checksum();
    let (session_id, lease_id) = (session.id, lease.name.id);
    let bytes = lease.take_owned().expect("a block is owned where nothing is mapped");
    let bytes = Bytes::from(bytes.into_bytes());
    let frames = bytes.len().div_ceil(FRAME_BYTES);
    let frames = (0..frames).map(move |number| {
        let start = number * FRAME_BYTES;
        let end = (start + FRAME_BYTES).min(bytes.len());
        let checksum = (end == bytes.len()).then_some(checksum.0);
        v1::WriteRequest { session_id, lease_id, data: bytes.slice(start..end), checksum }
    });
    let request = client.request(futures::stream::iter(frames), Duration::ZERO);
    let status = client.service().write(request).await?.into_inner().status();
    lease.finish();
    Ok(status)
}
