//! The verbs of the API on one tenant: match, acquire, reserve, commit, abort, renew, release.
//!
//! Batch verbs give one status a block, in request order, and never fail as a whole over one of them. A call
//! on a session that is not open is refused.

use std::{sync::Arc, time::Duration};

use kelvin_kernels::Checksum;
use kelvin_proto::{Refusal, kv::v1::BlockStatus};

use super::{
    BlockKey, ImmutableBlock, Keep, LeaseId, MutableBlock, Namespace, SessionId, Tenant,
    block::CompleteBlock,
    lease::Right,
    meters::{self, Carrier, Direction, measuring},
    room::DRAM,
    session::Session,
    state::State,
    table::Found,
};
use crate::SequenceHash;

/// A block of an `Acquire`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AcquiredBlock {
    pub(crate) status: BlockStatus,
    /// With `Leased` only.
    pub(crate) lease: LeaseId,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    pub(crate) checksum: u64,
}

/// A block of a `Reserve`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReservedBlock {
    pub(crate) status: BlockStatus,
    /// With `Reserved` only.
    pub(crate) lease: LeaseId,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

/// Blocks that are sealed before they are concluded under one lock, at most; and bytes after which they are, so
/// that large blocks are visible at once.
const TOGETHER_BLOCKS: usize = 32;
const TOGETHER_BYTES: u64 = 2 << 20;

/// A block that was taken out of its reservation, and what came of the two.
struct Work {
    key: BlockKey,
    parent: Option<SequenceHash>,
    /// `None` if its bytes were wrong.
    sealed: Option<CompleteBlock>,
    /// `None` if the lease was over before its end.
    lease: Option<Ended>,
    /// Whether the index has it in DRAM already.
    is_indexed: bool,
}

/// A write lease that ended with its block.
struct Ended {
    maps_memory: bool,
}

impl AcquiredBlock {
    fn without(status: BlockStatus) -> Self {
        Self { status, lease: 0, offset: 0, bytes: 0, checksum: 0 }
    }
}

impl ReservedBlock {
    fn without(status: BlockStatus) -> Self {
        Self { status, lease: 0, offset: 0, bytes: 0 }
    }
}

impl Tenant {
    /// The namespace a session is open on.
    pub(crate) fn namespace_of(&self, session: SessionId) -> Result<Arc<Namespace>, Refusal> {
        Ok(self.session(session)?.namespace.clone())
    }

    /// How many of `hashes` are being filled, from the first on.
    pub(crate) fn filling_prefix(&self, namespace: &Namespace, hashes: &[SequenceHash]) -> usize {
        let mut blocks = 0;
        self.table.walk(namespace.id, hashes, |found| {
            let filling = matches!(found, Found::Filling);
            blocks += usize::from(filling);
            filling
        });
        blocks
    }

    /// Leases the leading run of `hashes` that is sealed.
    pub(crate) fn acquire(
        &self,
        session: SessionId,
        hashes: &[SequenceHash],
        ttl: Duration,
    ) -> Result<Vec<AcquiredBlock>, Refusal> {
        self.expire_due();
        let session = self.session(session)?;
        let mut held = session.hold()?;
        let mut room = held.room();
        let now = self.clock.now();
        let (expires_at, epoch) = (self.expiry(now, ttl), self.epoch());
        let first = held.lease_ids(hashes.len(), &self.last_lease);
        let mut answer = Vec::with_capacity(hashes.len());
        let mut rights = Vec::with_capacity(hashes.len().min(room));
        let (mut bytes, mut unused) = (0, false);
        self.table.walk(session.namespace.id, hashes, |found| {
            let status = match found {
                Found::Missing => BlockStatus::Missing,
                Found::Filling => BlockStatus::Filling,
                Found::Sealed(_) if room == 0 => BlockStatus::LeaseLimit,
                Found::Sealed(block) => {
                    room -= 1;
                    unused |= block.use_in(epoch);
                    bytes += block.slot().len();
                    answer.push(AcquiredBlock {
                        status: BlockStatus::Leased,
                        lease: first + rights.len() as LeaseId,
                        offset: block.slot().offset(),
                        bytes: block.slot().len(),
                        checksum: block.checksum().0,
                    });
                    rights.push(Some(Right::Read(block.clone())));
                    return true;
                }
            };
            answer.push(AcquiredBlock::without(status));
            false
        });
        let leased = rights.len();
        if leased > 0 {
            held.leases.grant(first, rights, now, expires_at);
            self.lower_due(expires_at);
            if held.maps_memory {
                self.counters.shm_leased_bytes.add(bytes);
                if measuring() {
                    let took = self.clock.now().saturating_sub(now);
                    self.meters.mine().transfers(Carrier::Shm, Direction::Read).took(bytes, took);
                }
            }
        }
        drop(held);
        if unused {
            self.touch(session.namespace.id, &hashes[..leased]);
        }
        answer.resize(hashes.len(), AcquiredBlock::without(BlockStatus::Skipped));
        Ok(answer)
    }

    /// Write leases on the blocks of a run that nobody has or makes.
    #[allow(dead_code, reason = "for benches and tests")]
    pub(crate) fn reserve(
        &self,
        session: SessionId,
        parent: Option<SequenceHash>,
        hashes: &[SequenceHash],
        ttl: Duration,
    ) -> Result<Vec<ReservedBlock>, Refusal> {
        self.reserve_to_keep(session, parent, hashes, ttl, Keep::default())
    }

    /// The same, saying how much the blocks will be worth.
    pub(crate) fn reserve_to_keep(
        &self,
        session: SessionId,
        parent: Option<SequenceHash>,
        hashes: &[SequenceHash],
        ttl: Duration,
        keep: Keep,
    ) -> Result<Vec<ReservedBlock>, Refusal> {
        let now = self.clock.now();
        let mut state = self.lock();
        self.expire_at(&mut state, now);
        let state = &mut *state;
        let session = self.session(session)?;
        let namespace = &*session.namespace;
        // Booked, so that others may lease in this session while room is made here.
        let (booked, first) = {
            let mut held = session.hold()?;
            let booked = held.room().min(hashes.len());
            held.booked += booked;
            (booked, held.lease_ids(booked, &self.last_lease))
        };
        let mut room = booked;
        let expires_at = self.expiry(now, ttl);
        let mut rights = Vec::with_capacity(booked);
        let mut answer = Vec::with_capacity(hashes.len());
        let mut parent = parent;
        // Whether the parent was reserved by this very call, and so hangs together with all before it.
        let mut rooted = false;
        for &hash in hashes {
            let key = BlockKey { namespace: namespace.id, hash };
            let refused = self.table.with(&key, |found| match found {
                Found::Sealed(_) => Some(BlockStatus::AlreadyStored),
                Found::Filling => Some(BlockStatus::Filling),
                Found::Missing => None,
            });
            let refused = match refused {
                None if !rooted && !state.is_rooted(namespace, key, parent) => Some(BlockStatus::NoParent),
                None if room == 0 => Some(BlockStatus::LeaseLimit),
                refused => refused,
            };
            if let Some(status) = refused {
                answer.push(ReservedBlock::without(status));
                if matches!(status, BlockStatus::NoParent | BlockStatus::LeaseLimit) {
                    break;
                }
                (parent, rooted) = (Some(hash), false);
                continue;
            }
            // Before a slot is looked for: the parent must not be the one that goes.
            state.hold_parent(key, parent);
            let Some(slot) = self.allocate_at(state, namespace.spec.block_bytes, now) else {
                state.release_parent(key, parent);
                self.counters.no_space.add(1);
                answer.push(ReservedBlock::without(BlockStatus::NoSpace));
                break;
            };
            room -= 1;
            answer.push(ReservedBlock {
                status: BlockStatus::Reserved,
                lease: first + rights.len() as LeaseId,
                offset: slot.offset(),
                bytes: slot.len(),
            });
            self.table.fill(key, parent, hashes.len() - answer.len());
            rights.push(Some(Right::Write(Some(Box::new(MutableBlock {
                key,
                parent,
                slot,
                keep,
                hashed: None,
            })))));
            (parent, rooted) = (Some(hash), true);
        }
        let mut held = session.hold().expect("a session ends under the structural lock");
        held.booked -= booked;
        held.leases.grant(first, rights, now, expires_at);
        self.lower_due(expires_at);
        drop(held);
        answer.resize(hashes.len(), ReservedBlock::without(BlockStatus::Skipped));
        Ok(answer)
    }

    /// Seals filled reservations, in order.
    pub(crate) fn commit(
        &self,
        session: SessionId,
        blocks: &[(LeaseId, Checksum)],
    ) -> Result<Vec<BlockStatus>, Refusal> {
        let session = self.session(session)?;
        // Who has the memory mapped may have written since.
        let maps_memory = session.hold()?.maps_memory;
        let began = if maps_memory { meters::begin() } else { None };
        let seal = |at: usize, mut block: MutableBlock| {
            if maps_memory {
                block.hashed = None;
            }
            let (key, given) = (block.key, blocks[at].1);
            let sealed = block.seal(given).map_err(|(_, found)| {
                tracing::warn!(client = session.name, block = %key.hash, %found, %given, "bytes differ from their checksum");
                self.counters.checksum_failures.add(1);
            });
            sealed.ok()
        };
        let late = |at: usize| self.commit_late(&session, blocks[at].0, blocks[at].1);
        let statuses = self.seal_each(&session, blocks.len(), |at| blocks[at].0, seal, late);
        let stored = statuses.iter().filter(|status| **status == BlockStatus::Stored).count() as u64;
        if stored > 0 {
            let bytes = stored * session.namespace.spec.block_bytes;
            self.meters.mine().transfers(Carrier::Shm, Direction::Write).note(bytes, began);
        }
        Ok(statuses)
    }

    /// Fills reservations in this process, in order, and commits them. `fill` gives the checksum of what it put
    /// into the block of the lease at that place.
    pub(crate) fn fill(
        &self,
        session: SessionId,
        leases: &[LeaseId],
        mut fill: impl FnMut(usize, &mut [u8]) -> Checksum,
    ) -> Result<Vec<BlockStatus>, Refusal> {
        let session = self.session(session)?;
        let seal = |at: usize, mut block: MutableBlock| {
            let checksum = fill(at, block.slot.bytes_mut());
            self.counters.copied_bytes.add(block.slot.len());
            Some(CompleteBlock::verified(block, checksum))
        };
        let late = |_| BlockStatus::StaleLease;
        Ok(self.seal_each(&session, leases.len(), |at| leases[at], seal, late))
    }

    /// Lets `seal` work on the blocks of write leases outside the locks, and concludes what comes of it, several
    /// blocks under one lock. `late` answers for leases that have no block (any more).
    fn seal_each(
        &self,
        session: &Session,
        count: usize,
        lease: impl Fn(usize) -> LeaseId,
        mut seal: impl FnMut(usize, MutableBlock) -> Option<CompleteBlock>,
        late: impl Fn(usize) -> BlockStatus,
    ) -> Vec<BlockStatus> {
        let mut statuses = Vec::with_capacity(count);
        while statuses.len() < count {
            let first = statuses.len();
            let most = (count - first).min(TOGETHER_BLOCKS);
            let (mut works, mut ids, mut bytes) = (Vec::with_capacity(most), Vec::with_capacity(most), 0);
            while works.len() < most && bytes < TOGETHER_BYTES {
                let at = first + works.len();
                // The lease stays with its session meanwhile, without its block, so that expiry and the
                // session's end see it.
                works.push(take_write(session, lease(at)).map(|block| {
                    ids.push(lease(at));
                    bytes += block.slot.len();
                    let (key, parent) = (block.key, block.parent);
                    Work { key, parent, sealed: seal(at, block), lease: None, is_indexed: false }
                }));
            }
            let now = self.clock.now();
            let mut state = self.lock();
            if let Ok(mut held) = session.hold() {
                let maps_memory = held.maps_memory;
                let mut taken: Vec<&mut Work> = works.iter_mut().flatten().collect();
                held.leases.end(&ids, |_| true, |at, _| taken[at].lease = Some(Ended { maps_memory }));
            }
            for at in 0..works.len() {
                self.index_run(session, &mut works[at..], now);
                statuses.push(match works[at].take() {
                    Some(work) => self.conclude(&mut state, session, work, now),
                    None => late(first + at),
                });
            }
            drop(state);
            session.namespace.changed.notify_waiters();
        }
        statuses
    }

    /// Enters blocks in the index that are about to be published one behind the other, the first of these first:
    /// cheaper than one by one.
    fn index_run(&self, session: &Session, works: &mut [Option<Work>], now: Duration) {
        if works.len() < 2 {
            return;
        }
        let Some(first) = works.first().and_then(Option::as_ref).filter(|work| !work.is_indexed) else {
            return;
        };
        let (parent, namespace) = (first.parent, first.key.namespace);
        let above = parent.map(|hash| BlockKey { namespace, hash });
        if above.is_some_and(|above| self.table.is_filling(&above)) {
            return;
        }
        let mut before = parent;
        let run = works.iter().map_while(Option::as_ref).take_while(|work| {
            let follows = work.parent == before && work.lease.is_some() && work.sealed.is_some();
            before = Some(work.key.hash);
            follows && self.below.settled(&work.key).is_none()
        });
        let hashes: Vec<SequenceHash> = run.map(|work| work.key.hash).collect();
        if hashes.len() < 2 {
            return;
        }
        // What cannot be entered is left to `publish`, with what is behind it.
        let entered = match session.namespace.index.insert_run(parent, &hashes, DRAM, now.as_millis() as u64)
        {
            Ok(_) => hashes.len(),
            Err(error) => hashes.iter().position(|hash| *hash == error.hash()).unwrap_or(0),
        };
        works.iter_mut().take(entered).flatten().for_each(|work| work.is_indexed = true);
    }

    /// Ends a reservation whose block was taken out.
    fn conclude(&self, state: &mut State, session: &Session, work: Work, now: Duration) -> BlockStatus {
        let Work { key, parent, sealed, lease, is_indexed } = work;
        let Some(Ended { maps_memory }) = lease else {
            // Nobody else takes the trace of this block away: the lease had no block when it ended.
            state.forget_filling(key, parent);
            return BlockStatus::StaleLease;
        };
        let Some(block) = sealed else {
            state.forget_filling(key, parent);
            return BlockStatus::ChecksumMismatch;
        };
        let bytes = block.bytes();
        if let Some(first) = self.below.settled(&key)
            && first != block.checksum()
        {
            tracing::warn!(block = %key.hash, %first, given = %block.checksum(), "conflict: other bytes under one hash");
            self.counters.conflicts.add(1);
            state.forget_filling(key, parent);
            return BlockStatus::Conflict;
        }
        if !self.adopt(state, &session.namespace, block, is_indexed, now) {
            return BlockStatus::NoParent;
        }
        if maps_memory {
            self.counters.shm_committed_bytes.add(bytes);
        }
        BlockStatus::Stored
    }

    /// A commit on a reservation that expired: nothing is stored, but the answer says what became of it.
    fn commit_late(&self, session: &Session, lease: LeaseId, checksum: Checksum) -> BlockStatus {
        let late = session.hold().ok().and_then(|held| match &held.quarantine.get(&lease)?.right {
            Right::Write(block) => block.as_ref().map(|block| block.key),
            Right::Read(_) => None,
        });
        match late.and_then(|key| self.table.sealed(&key)) {
            None => BlockStatus::StaleLease,
            Some(first) if first.checksum() == checksum => BlockStatus::AlreadyStored,
            Some(first) => {
                tracing::warn!(
                    block = %first.key().hash, first = %first.checksum(), given = %checksum,
                    "conflict: other bytes under one hash"
                );
                self.counters.conflicts.add(1);
                BlockStatus::Conflict
            }
        }
    }

    /// Takes the block of a write lease out, to work on it outside the lock.
    pub(crate) fn take_write(&self, session: SessionId, lease: LeaseId) -> Option<MutableBlock> {
        take_write(&*self.session(session).ok()?, lease)
    }

    /// Whether the block of a write lease is in the hands of somebody who took it.
    pub(crate) fn is_in_work(&self, session: SessionId, lease: LeaseId) -> bool {
        let session = self.session(session);
        let held = session.as_ref().ok().and_then(|session| session.hold().ok());
        held.is_some_and(|mut held| matches!(held.leases.get_mut(lease), Some(Right::Write(None))))
    }

    /// Puts a block back that `take_write` took; false when its lease ended meanwhile.
    pub(crate) fn put_write(&self, session: SessionId, lease: LeaseId, block: MutableBlock) -> bool {
        let session = self.session(session);
        if let Ok(session) = &session
            && let Ok(mut held) = session.hold()
            && let Some(Right::Write(place @ None)) = held.leases.get_mut(lease)
        {
            *place = Some(Box::new(block));
            return true;
        }
        let mut state = self.lock();
        state.forget_filling(block.key, block.parent);
        if let Some(namespace) = state.namespaces.get(&block.key.namespace) {
            namespace.changed.notify_waiters();
        }
        false
    }

    /// The block of a read lease.
    pub(crate) fn leased(&self, session: SessionId, lease: LeaseId) -> Option<ImmutableBlock> {
        match self.session(session).ok()?.hold().ok()?.leases.get_mut(lease)? {
            Right::Read(block) => Some(block.clone()),
            Right::Write(_) => None,
        }
    }

    /// Gives reservations back.
    pub(crate) fn abort(&self, session: SessionId, leases: &[LeaseId]) -> Result<Vec<BlockStatus>, Refusal> {
        let mut state = self.lock();
        let session = self.session(session)?;
        let mut answer = vec![BlockStatus::StaleLease; leases.len()];
        let mut aborted = Vec::new();
        session.hold()?.leases.end(
            leases,
            |right| matches!(right, Right::Write(_)),
            |at, right| {
                answer[at] = BlockStatus::Ok;
                aborted.push(right);
            },
        );
        for right in &aborted {
            forget_reservation(&mut state, right);
        }
        if !aborted.is_empty() {
            session.namespace.changed.notify_waiters();
        }
        Ok(answer)
    }

    /// Gives read leases back.
    pub(crate) fn release(
        &self,
        session: SessionId,
        leases: &[LeaseId],
    ) -> Result<Vec<BlockStatus>, Refusal> {
        let session = self.session(session)?;
        let mut answer = vec![BlockStatus::StaleLease; leases.len()];
        session.hold()?.leases.end(
            leases,
            |right| matches!(right, Right::Read(_)),
            |at, _| answer[at] = BlockStatus::Ok,
        );
        Ok(answer)
    }

    /// Extends the session, these leases of it, and if so asked every lease of it.
    pub(crate) fn renew(
        &self,
        session: SessionId,
        leases: &[LeaseId],
        all: bool,
        ttl: Duration,
    ) -> Result<Vec<BlockStatus>, Refusal> {
        self.expire_due();
        let session = self.session(session)?;
        let mut held = session.hold()?;
        let now = self.clock.now();
        held.expires_at = held.expires_at.max(now + self.limits.session_ttl);
        let expires_at = self.expiry(now, ttl);
        if all {
            held.leases.renew_all(expires_at);
        }
        let answer = leases.iter().map(|&id| match held.leases.renew(id, expires_at) {
            true => BlockStatus::Ok,
            false => BlockStatus::StaleLease,
        });
        Ok(answer.collect())
    }

    /// When a lease that asks for `ttl` now ends; zero asks for the longest there is.
    fn expiry(&self, now: Duration, ttl: Duration) -> Duration {
        let most = self.limits.lease_ttl_max;
        now + if ttl.is_zero() { most } else { ttl.min(most) }
    }
}

/// Takes away the trace of a reservation that ended without a commit; that of one in work stays for who works
/// on it, that of one at rest went before.
pub(super) fn forget_reservation(state: &mut State, right: &Right) {
    if let Right::Write(Some(block)) = right {
        state.forget_filling(block.key, block.parent);
    }
}

fn take_write(session: &Session, lease: LeaseId) -> Option<MutableBlock> {
    match session.hold().ok()?.leases.get_mut(lease)? {
        Right::Write(block) => block.take().map(|block| *block),
        Right::Read(_) => None,
    }
}
