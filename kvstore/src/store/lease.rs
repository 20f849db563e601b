//! Leases: who may read or fill which block, until when.
//!
//! # Overview
//! The leases that one call granted are one *grant*: their ids follow each other, they mostly come and go
//! together, so a session keeps one record for all of them and an array of what they hold.
//!
//! A lease id is never used twice by one store, so that it also is the generation that fences a late
//! writer: once a reservation expired, its id commits nothing.

use std::{collections::BTreeMap, time::Duration};

use super::{ImmutableBlock, MutableBlock};

pub(crate) type LeaseId = u64;

#[derive(Debug)]
pub(crate) enum Right {
    Read(ImmutableBlock),
    /// `None` while a verb works on the block outside the lock.
    Write(Option<Box<MutableBlock>>),
}

impl Right {
    fn is_read(&self) -> bool {
        matches!(self, Self::Read(_))
    }
}

/// The leases of one call.
#[derive(Debug)]
struct Grant {
    /// By id, from the grant's first on; `None` once ended.
    rights: Vec<Option<Right>>,
    live: usize,
    /// When it was granted.
    since: Duration,
    expires_at: Duration,
    /// Expiry of each, once some were renewed without the others.
    each: Option<Box<[Duration]>>,
}

impl Grant {
    fn expiry(&self, at: usize) -> Duration {
        self.each.as_ref().map_or(self.expires_at, |each| each[at])
    }

    fn renew(&mut self, at: usize, expires_at: Duration) {
        if self.live == 1 {
            self.expires_at = self.expiry(at).max(expires_at);
            self.each = None;
        } else if expires_at > self.expiry(at) {
            let (all, count) = (self.expires_at, self.rights.len());
            self.each.get_or_insert_with(|| vec![all; count].into())[at] = expires_at;
        }
    }

    fn renew_all(&mut self, expires_at: Duration) {
        match &mut self.each {
            None => self.expires_at = self.expires_at.max(expires_at),
            Some(each) => each.iter_mut().for_each(|at| *at = expires_at.max(*at)),
        }
    }

    /// The earliest expiry of a live lease.
    fn due(&self) -> Duration {
        let Some(each) = &self.each else { return self.expires_at };
        let live = self.rights.iter().zip(each).filter(|(right, _)| right.is_some());
        live.map(|(_, at)| *at).min().unwrap_or(Duration::MAX)
    }
}

/// The leases of a session.
#[derive(Debug)]
pub(super) struct Leases {
    /// By first id.
    grants: BTreeMap<LeaseId, Grant>,
    reads: usize,
    writes: usize,
    /// Nothing expires before.
    due: Duration,
}

impl Default for Leases {
    fn default() -> Self {
        Self { grants: BTreeMap::new(), reads: 0, writes: 0, due: Duration::MAX }
    }
}

impl Leases {
    /// Enters leases of one kind, granted now, with ids from `first` on.
    pub(super) fn grant(
        &mut self,
        first: LeaseId,
        rights: Vec<Option<Right>>,
        now: Duration,
        expires_at: Duration,
    ) {
        let live = rights.len();
        if live == 0 {
            return;
        }
        for right in &rights {
            match right {
                Some(Right::Read(_)) => self.reads += 1,
                Some(Right::Write(_)) => self.writes += 1,
                None => panic!("a grant begins whole"),
            }
        }
        self.due = self.due.min(expires_at);
        let grant = Grant { rights, live, since: now, expires_at, each: None };
        let before = self.grants.insert(first, grant);
        assert!(before.is_none(), "a lease id is used once");
    }

    /// The grant of a lease, its first id and the lease's place in it.
    fn find(&mut self, id: LeaseId) -> Option<(&mut Grant, LeaseId, usize)> {
        let (&first, grant) = self.grants.range_mut(..=id).next_back()?;
        let at = usize::try_from(id - first).ok()?;
        grant.rights.get(at)?.is_some().then_some((grant, first, at))
    }

    pub(super) fn get_mut(&mut self, id: LeaseId) -> Option<&mut Right> {
        let (grant, _, at) = self.find(id)?;
        grant.rights[at].as_mut()
    }

    /// Ends the leases that are live and `fit`. Gives each of them to `ended` with its place in `ids`.
    pub(super) fn end(
        &mut self,
        ids: &[LeaseId],
        fit: impl Fn(&Right) -> bool,
        mut ended: impl FnMut(usize, Right),
    ) {
        let mut at = 0;
        while at < ids.len() {
            let Some((grant, first, _)) = self.find(ids[at]) else {
                at += 1;
                continue;
            };
            let (mut reads, mut writes) = (0, 0);
            let before = at;
            while let Some(right) = ids
                .get(at)
                .and_then(|id| id.checked_sub(first))
                .and_then(|place| grant.rights.get_mut(usize::try_from(place).ok()?))
            {
                if right.as_ref().is_some_and(&fit)
                    && let Some(right) = right.take()
                {
                    *if right.is_read() { &mut reads } else { &mut writes } += 1;
                    ended(at, right);
                }
                at += 1;
            }
            debug_assert!(at > before, "the grant has the lease that led to it");
            grant.live -= reads + writes;
            self.reads -= reads;
            self.writes -= writes;
            self.tidy(first);
        }
    }

    /// Drops a grant that is over, and cuts up one of which little is left: else a client that gives back all
    /// but one lease a call would keep the memory of all.
    fn tidy(&mut self, first: LeaseId) {
        let Some(grant) = self.grants.get(&first) else { return };
        if grant.live * 4 > grant.rights.len() {
            return;
        }
        let Some(grant) = self.grants.remove(&first) else { return };
        let since = grant.since;
        let expiries: Vec<Duration> = (0..grant.rights.len()).map(|at| grant.expiry(at)).collect();
        for ((id, right), expires_at) in (first..).zip(grant.rights).zip(expiries) {
            if right.is_some() {
                let single = Grant { rights: vec![right], live: 1, since, expires_at, each: None };
                self.grants.insert(id, single);
            }
        }
    }

    /// Moves a lease's expiry, later only; whether it is live.
    pub(super) fn renew(&mut self, id: LeaseId, expires_at: Duration) -> bool {
        let Some((grant, _, at)) = self.find(id) else { return false };
        grant.renew(at, expires_at);
        true
    }

    pub(super) fn renew_all(&mut self, expires_at: Duration) {
        self.grants.values_mut().for_each(|grant| grant.renew_all(expires_at));
    }

    /// Takes the leases whose time is over.
    pub(super) fn take_expired(&mut self, now: Duration) -> Vec<(LeaseId, Right)> {
        if self.due > now {
            return Vec::new();
        }
        let over = |(&first, grant): (&LeaseId, &Grant)| -> Vec<LeaseId> {
            if grant.due() > now {
                return Vec::new();
            }
            let ended = (0..grant.rights.len()).filter(|&at| grant.expiry(at) <= now);
            ended.map(|at| first + at as u64).collect()
        };
        let ids: Vec<LeaseId> = self.grants.iter().flat_map(over).collect();
        let mut expired = Vec::new();
        self.end(&ids, |_| true, |at, right| expired.push((ids[at], right)));
        self.due = self.grants.values().map(Grant::due).min().unwrap_or(Duration::MAX);
        expired
    }

    /// Takes all.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = Right> + use<> {
        let all = std::mem::take(self);
        all.grants.into_values().flat_map(|grant| grant.rights.into_iter().flatten())
    }

    /// A time before which none expires.
    pub(super) fn due(&self) -> Duration {
        self.due
    }

    /// When the oldest read lease and the oldest write lease there are were granted. Looks at every grant.
    pub(super) fn oldest(&self) -> (Option<Duration>, Option<Duration>) {
        let (mut read, mut write): (Option<Duration>, Option<Duration>) = (None, None);
        for grant in self.grants.values() {
            let Some(right) = grant.rights.iter().flatten().next() else { continue };
            let oldest = if right.is_read() { &mut read } else { &mut write };
            *oldest = Some(oldest.map_or(grant.since, |since| since.min(grant.since)));
        }
        (read, write)
    }

    /// Read leases and write leases there are.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.reads, self.writes)
    }
}
