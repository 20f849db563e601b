//! The verbs of the API on one tenant: match, acquire, reserve, commit, abort, renew, release.
//!
//! Batch verbs give one status a block, in request order, and never fail as a whole over one of them. A call
//! on a session that is not open is refused.

use std::{sync::Arc, time::Duration};

use kelvin_kernels::Checksum;
use kelvin_proto::{Refusal, kv::v1::BlockStatus};

use super::{
    BlockKey, ImmutableBlock, LeaseId, MutableBlock, Namespace, SessionId, Tenant,
    lease::Right,
    state::{Entry, State},
    tenant::LEASES_MAX,
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
        Ok(self.lock().session(session)?.namespace.clone())
    }

    /// How many of `hashes` are being filled, from the first on.
    pub(crate) fn filling_prefix(&self, namespace: &Namespace, hashes: &[SequenceHash]) -> usize {
        let state = self.lock();
        let filling = |hash: &&SequenceHash| {
            let key = BlockKey { namespace: namespace.id, hash: **hash };
            matches!(state.blocks.get(&key), Some(Entry::Filling { .. }))
        };
        hashes.iter().take_while(filling).count()
    }

    /// Leases the leading run of `hashes` that is sealed.
    pub(crate) fn acquire(
        &self,
        session: SessionId,
        hashes: &[SequenceHash],
        ttl: Duration,
    ) -> Result<Vec<AcquiredBlock>, Refusal> {
        let mut state = self.lock();
        self.expire(&mut state);
        let state = &mut *state;
        let open = state.session(session)?;
        let (namespace, maps_memory) = (open.namespace.id, open.maps_memory);
        let mut room = (LEASES_MAX as usize).saturating_sub(open.leases.len());
        let expires_at = self.expiry(ttl);
        let mut answer = Vec::with_capacity(hashes.len());
        let mut leased = Vec::new();
        for &hash in hashes {
            let key = BlockKey { namespace, hash };
            let block = match state.blocks.get(&key) {
                None => Err(BlockStatus::Missing),
                Some(Entry::Filling { .. }) => Err(BlockStatus::Filling),
                Some(Entry::Sealed(_)) if room == 0 => Err(BlockStatus::LeaseLimit),
                Some(Entry::Sealed(block)) => Ok(block.clone()),
            };
            let block = match block {
                Ok(block) => block,
                Err(status) => {
                    answer.push(AcquiredBlock::without(status));
                    break;
                }
            };
            room -= 1;
            let lease = state.next_lease();
            answer.push(AcquiredBlock {
                status: BlockStatus::Leased,
                lease,
                offset: block.slot().offset(),
                bytes: block.slot().len(),
                checksum: block.checksum().0,
            });
            if maps_memory {
                self.counters.shm_leased_bytes.add(block.slot().len());
            }
            state.leases.insert(lease, session, Right::Read(block), expires_at);
            state.session(session)?.leases.insert(lease);
            leased.push(key);
        }
        state.touch(&leased);
        answer.resize(hashes.len(), AcquiredBlock::without(BlockStatus::Skipped));
        Ok(answer)
    }

    /// Write leases on the blocks of a run that nobody has or makes.
    pub(crate) fn reserve(
        &self,
        session: SessionId,
        parent: Option<SequenceHash>,
        hashes: &[SequenceHash],
        ttl: Duration,
    ) -> Result<Vec<ReservedBlock>, Refusal> {
        let mut state = self.lock();
        self.expire(&mut state);
        let state = &mut *state;
        let open = state.session(session)?;
        let namespace = open.namespace.clone();
        let mut room = (LEASES_MAX as usize).saturating_sub(open.leases.len());
        let expires_at = self.expiry(ttl);
        let mut answer = Vec::with_capacity(hashes.len());
        let mut parent = parent;
        // Whether the parent was reserved by this very call, and so hangs together with all before it.
        let mut rooted = false;
        for &hash in hashes {
            let key = BlockKey { namespace: namespace.id, hash };
            let refused = match state.blocks.get(&key) {
                Some(Entry::Sealed(_)) => Some(BlockStatus::AlreadyStored),
                Some(Entry::Filling { .. }) => Some(BlockStatus::Filling),
                None if !rooted && !state.is_rooted(&namespace, key, parent) => Some(BlockStatus::NoParent),
                None if room == 0 => Some(BlockStatus::LeaseLimit),
                None => None,
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
            let Some(slot) = self.allocate(state, namespace.spec.block_bytes) else {
                state.release_parent(key, parent);
                self.counters.no_space.add(1);
                answer.push(ReservedBlock::without(BlockStatus::NoSpace));
                break;
            };
            room -= 1;
            let lease = state.next_lease();
            answer.push(ReservedBlock {
                status: BlockStatus::Reserved,
                lease,
                offset: slot.offset(),
                bytes: slot.len(),
            });
            let block = Box::new(MutableBlock { key, parent, slot });
            state.blocks.insert(key, Entry::Filling { parent });
            state.leases.insert(lease, session, Right::Write(Some(block)), expires_at);
            state.session(session)?.leases.insert(lease);
            (parent, rooted) = (Some(hash), true);
        }
        answer.resize(hashes.len(), ReservedBlock::without(BlockStatus::Skipped));
        Ok(answer)
    }

    /// Seals filled reservations, in order.
    pub(crate) fn commit(
        &self,
        session: SessionId,
        blocks: &[(LeaseId, Checksum)],
    ) -> Result<Vec<BlockStatus>, Refusal> {
        let namespace = self.namespace_of(session)?;
        let commit = |&(lease, checksum): &(_, _)| self.commit_one(&namespace, session, lease, checksum);
        let statuses = blocks.iter().map(commit).collect();
        namespace.changed.notify_waiters();
        Ok(statuses)
    }

    fn commit_one(
        &self,
        namespace: &Namespace,
        session: SessionId,
        lease: LeaseId,
        checksum: Checksum,
    ) -> BlockStatus {
        let Some(block) = self.take_write(session, lease) else {
            return self.commit_late(session, lease, checksum);
        };
        // The checksum is made outside the lock. The lease stays in its table meanwhile, without its block,
        // so that expiry and the session's end see it.
        let (key, parent) = (block.key, block.parent);
        let bytes = block.slot.len();
        let sealed = block.seal(checksum);
        let mut state = self.lock();
        let state = &mut *state;
        let live = state.leases.remove(lease, session).is_some();
        let Some(session) = state.sessions.get_mut(&session).filter(|_| live) else {
            // Nobody else takes the trace of this block away: the lease had no block when it ended.
            state.forget_filling(key, parent);
            return BlockStatus::StaleLease;
        };
        session.leases.remove(&lease);
        let maps_memory = session.maps_memory;
        let status = match sealed {
            Ok(block) => match self.adopt(state, namespace, block) {
                true => BlockStatus::Stored,
                false => BlockStatus::NoParent,
            },
            Err((block, found)) => {
                tracing::warn!(client = session.name, block = %key.hash, %found, given = %checksum, "bytes differ from their checksum");
                self.counters.checksum_failures.add(1);
                state.forget_filling(block.key, block.parent);
                BlockStatus::ChecksumMismatch
            }
        };
        if status == BlockStatus::Stored && maps_memory {
            self.counters.shm_committed_bytes.add(bytes);
        }
        status
    }

    /// A commit on a reservation that expired: nothing is stored, but the answer says what became of it.
    fn commit_late(&self, session: SessionId, lease: LeaseId, checksum: Checksum) -> BlockStatus {
        let state = self.lock();
        let late = state.sessions.get(&session).and_then(|session| session.quarantine.get(&lease));
        let late = late.and_then(|resting| match &resting.right {
            Right::Write(block) => block.as_ref(),
            Right::Read(_) => None,
        });
        match late.and_then(|block| state.blocks.get(&block.key).map(|entry| (block.key, entry))) {
            Some((_, Entry::Sealed(first))) if first.checksum() == checksum => BlockStatus::AlreadyStored,
            Some((key, Entry::Sealed(first))) => {
                tracing::warn!(block = %key.hash, first = %first.checksum(), given = %checksum, "conflict: other bytes under one hash");
                self.counters.conflicts.add(1);
                BlockStatus::Conflict
            }
            _ => BlockStatus::StaleLease,
        }
    }

    /// Takes the block of a write lease out, to work on it outside the lock.
    pub(crate) fn take_write(&self, session: SessionId, lease: LeaseId) -> Option<MutableBlock> {
        match &mut self.lock().leases.get_mut(lease, session)?.right {
            Right::Write(block) => block.take().map(|block| *block),
            Right::Read(_) => None,
        }
    }

    /// Puts a block back that `take_write` took; false when its lease ended meanwhile.
    pub(crate) fn put_write(&self, session: SessionId, lease: LeaseId, block: MutableBlock) -> bool {
        let mut state = self.lock();
        if let Some(lease) = state.leases.get_mut(lease, session) {
            lease.right = Right::Write(Some(Box::new(block)));
            return true;
        }
        state.forget_filling(block.key, block.parent);
        if let Some(namespace) = state.namespaces.get(&block.key.namespace) {
            namespace.changed.notify_waiters();
        }
        false
    }

    /// The block of a read lease.
    pub(crate) fn leased(&self, session: SessionId, lease: LeaseId) -> Option<ImmutableBlock> {
        match &self.lock().leases.get_mut(lease, session)?.right {
            Right::Read(block) => Some(block.clone()),
            Right::Write(_) => None,
        }
    }

    /// Gives reservations back.
    pub(crate) fn abort(&self, session: SessionId, leases: &[LeaseId]) -> Result<Vec<BlockStatus>, Refusal> {
        self.end_leases(session, leases, |right| matches!(right, Right::Write(_)))
    }

    /// Gives read leases back.
    pub(crate) fn release(
        &self,
        session: SessionId,
        leases: &[LeaseId],
    ) -> Result<Vec<BlockStatus>, Refusal> {
        self.end_leases(session, leases, |right| matches!(right, Right::Read(_)))
    }

    fn end_leases(
        &self,
        session: SessionId,
        leases: &[LeaseId],
        fits: impl Fn(&Right) -> bool,
    ) -> Result<Vec<BlockStatus>, Refusal> {
        let mut state = self.lock();
        let state = &mut *state;
        let namespace = state.session(session)?.namespace.clone();
        let mut answer = Vec::with_capacity(leases.len());
        let mut aborted = false;
        for &id in leases {
            let known = state.leases.get_mut(id, session).is_some_and(|lease| fits(&lease.right));
            if !known {
                answer.push(BlockStatus::StaleLease);
                continue;
            }
            let lease = state.leases.remove(id, session).expect("looked up above");
            state.session(session)?.leases.remove(&id);
            if let Right::Write(block) = lease.right {
                aborted = true;
                if let Some(block) = block {
                    state.forget_filling(block.key, block.parent);
                }
            }
            answer.push(BlockStatus::Ok);
        }
        if aborted {
            namespace.changed.notify_waiters();
        }
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
        let mut state = self.lock();
        self.expire(&mut state);
        let expires_at = self.expiry(ttl);
        let session_expires_at = self.clock.now() + self.limits.session_ttl;
        let State { leases: table, sessions, .. } = &mut *state;
        if let Some(open) = sessions.get_mut(&session) {
            open.expires_at = open.expires_at.max(session_expires_at);
            for &id in open.leases.iter().filter(|_| all) {
                table.renew(id, session, expires_at);
            }
        }
        let answer = leases.iter().map(|&id| match table.renew(id, session, expires_at) {
            true => BlockStatus::Ok,
            false => BlockStatus::StaleLease,
        });
        let answer = answer.collect();
        state.session(session)?;
        Ok(answer)
    }

    /// When a lease that asks for `ttl` ends; zero asks for the longest there is.
    fn expiry(&self, ttl: Duration) -> Duration {
        let most = self.limits.lease_ttl_max;
        self.clock.now() + if ttl.is_zero() { most } else { ttl.min(most) }
    }
}
