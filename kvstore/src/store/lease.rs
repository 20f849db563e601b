//! Leases: who may read or fill which block, until when.
//!
//! A lease id is never used twice by one store, so that it also is the generation that fences a late
//! writer: once a reservation expired, its id commits nothing.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use super::{ImmutableBlock, MutableBlock, tenant::SessionId};

pub(crate) type LeaseId = u64;

#[derive(Debug)]
pub(crate) enum Right {
    Read(ImmutableBlock),
    /// `None` while a verb works on the block outside the lock.
    Write(Option<Box<MutableBlock>>),
}

#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) session: SessionId,
    pub(crate) right: Right,
    expires_at: Duration,
}

/// The leases of a tenant, ordered by expiry as well.
#[derive(Debug, Default)]
pub(crate) struct LeaseTable {
    leases: HashMap<LeaseId, Lease>,
    expiries: BTreeSet<(Duration, LeaseId)>,
    readers: u64,
}

impl LeaseTable {
    pub(crate) fn insert(&mut self, id: LeaseId, session: SessionId, right: Right, expires_at: Duration) {
        self.readers += u64::from(matches!(right, Right::Read(_)));
        self.expiries.insert((expires_at, id));
        let before = self.leases.insert(id, Lease { session, right, expires_at });
        assert!(before.is_none(), "a lease id is used once");
    }

    /// The lease, when it is this session's.
    pub(crate) fn get_mut(&mut self, id: LeaseId, session: SessionId) -> Option<&mut Lease> {
        self.leases.get_mut(&id).filter(|lease| lease.session == session)
    }

    /// Takes the lease, when it is this session's.
    pub(crate) fn remove(&mut self, id: LeaseId, session: SessionId) -> Option<Lease> {
        self.leases.get(&id).filter(|lease| lease.session == session)?;
        self.take(id)
    }

    fn take(&mut self, id: LeaseId) -> Option<Lease> {
        let lease = self.leases.remove(&id)?;
        self.expiries.remove(&(lease.expires_at, id));
        self.readers -= u64::from(matches!(lease.right, Right::Read(_)));
        Some(lease)
    }

    /// Moves the lease's expiry, later only.
    pub(crate) fn renew(&mut self, id: LeaseId, session: SessionId, expires_at: Duration) -> bool {
        let Some(lease) = self.leases.get_mut(&id).filter(|lease| lease.session == session) else {
            return false;
        };
        if expires_at > lease.expires_at {
            self.expiries.remove(&(lease.expires_at, id));
            lease.expires_at = expires_at;
            self.expiries.insert((expires_at, id));
        }
        true
    }

    /// Takes one lease whose time is over.
    pub(crate) fn pop_expired(&mut self, now: Duration) -> Option<(LeaseId, Lease)> {
        let &(expires_at, id) = self.expiries.first()?;
        (expires_at <= now).then(|| (id, self.take(id).expect("an expiry belongs to a lease")))
    }

    /// Read leases and write leases there are.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.readers, self.leases.len() as u64 - self.readers)
    }
}
