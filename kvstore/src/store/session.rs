//! Sessions: what one client of a tenant holds, behind a lock of its own.
//!
//! # Locking
//! A session's lock is enough to grant, renew and give back read leases. Whatever begins or ends a write lease
//! or the session itself holds the tenant's structural lock as well, taken first. A session may be ended
//! between the look-up and its lock, so [`Session::hold`] refuses one that was.

use std::{collections::HashMap, sync::Arc, time::Duration};

use kelvin_proto::{Reason, Refusal};
use parking_lot::{Mutex, MutexGuard};

use super::{
    LeaseId, Namespace, SessionId,
    lease::{Leases, Right},
    tenant::LEASES_MAX,
};

/// A client's session on a namespace.
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) namespace: Arc<Namespace>,
    pub(super) name: String,
    pub(super) token: [u8; 16],
    held: Mutex<Held>,
}

/// What stands behind a session's lock.
pub(super) struct Held {
    ended: bool,
    /// Whether its process mapped the pool: then what it holds is in use until its socket closes, whatever
    /// its leases say.
    pub(super) maps_memory: bool,
    pub(super) leases: Leases,
    /// Leases that a reservation in progress may yet add.
    pub(super) booked: usize,
    /// Of expired leases, while the process may still be at it.
    pub(super) quarantine: HashMap<LeaseId, Resting>,
    pub(super) expires_at: Duration,
}

/// What an expired lease held.
pub(super) struct Resting {
    pub(super) right: Right,
    /// When it is free, should its session still live.
    pub(super) until: Duration,
}

/// What a session held when it ended.
pub(super) struct Ended {
    pub(super) live: Vec<Right>,
    pub(super) resting: Vec<Right>,
    pub(super) maps_memory: bool,
}

/// The refusal that makes a client open its session again.
pub(super) fn unknown_session() -> Refusal {
    Refusal::new(Reason::UnknownSession, "the session is not open (any more): open the namespace again")
}

impl Session {
    pub(super) fn new(
        id: SessionId,
        namespace: Arc<Namespace>,
        name: &str,
        token: [u8; 16],
        expires_at: Duration,
    ) -> Self {
        let held = Held {
            ended: false,
            maps_memory: false,
            leases: Leases::default(),
            booked: 0,
            quarantine: HashMap::new(),
            expires_at,
        };
        Self { id, namespace, name: name.to_owned(), token, held: Mutex::new(held) }
    }

    /// What it holds, unless it was ended.
    pub(super) fn hold(&self) -> Result<MutexGuard<'_, Held>, Refusal> {
        let held = self.held.lock();
        if held.ended { Err(unknown_session()) } else { Ok(held) }
    }

    /// Ends it, once.
    pub(super) fn end(&self) -> Option<Ended> {
        let mut held = self.hold().ok()?;
        held.ended = true;
        let resting = std::mem::take(&mut held.quarantine).into_values().map(|resting| resting.right);
        Some(Ended {
            live: held.leases.take_all().collect(),
            resting: resting.collect(),
            maps_memory: held.maps_memory,
        })
    }
}

impl Held {
    /// Leases it may still take.
    pub(super) fn room(&self) -> usize {
        let (reads, writes) = self.leases.counts();
        (LEASES_MAX as usize).saturating_sub(reads + writes + self.booked)
    }

    /// A time before which nothing of it is over.
    pub(super) fn due(&self) -> Duration {
        let resting = self.quarantine.values().map(|resting| resting.until).min();
        self.expires_at.min(self.leases.due()).min(resting.unwrap_or(Duration::MAX))
    }
}
