//! Sessions: what one client of a tenant holds, behind a lock of its own.
//!
//! # Locking
//! A session's lock is enough to grant, renew and give back read leases. Whatever begins or ends a write lease
//! or the session itself holds the tenant's structural lock as well, taken first. A session may be ended
//! between the look-up and its lock, so [`Session::hold`] refuses one that was.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crossbeam::utils::CachePadded;
use kelvin_proto::{Reason, Refusal};
use parking_lot::{Mutex, MutexGuard, RwLock};

use super::{
    LeaseId, Namespace, SessionId,
    lease::{Leases, Right},
    table::Keyed,
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

const SHARDS: usize = 16;
/// Lease ids that a session sets aside at a time.
const IDS_MIN: u64 = 1 << 16;

type Shard = RwLock<HashMap<SessionId, Arc<Session>, Keyed>>;

/// The open sessions by id, in shards: every call looks its session up, and one lock's count of readers would
/// go from core to core.
#[derive(Default)]
pub(super) struct Sessions {
    shards: [CachePadded<Shard>; SHARDS],
}

impl Sessions {
    fn shard(&self, id: SessionId) -> &Shard {
        // Ids are random; the maps use their low bits.
        &self.shards[(id >> 32) as usize % SHARDS]
    }

    pub(super) fn get(&self, id: SessionId) -> Option<Arc<Session>> {
        self.shard(id).read().get(&id).cloned()
    }

    pub(super) fn insert(&self, session: Arc<Session>) {
        self.shard(session.id).write().insert(session.id, session);
    }

    pub(super) fn remove(&self, id: SessionId) -> Option<Arc<Session>> {
        self.shard(id).write().remove(&id)
    }

    /// All of them, of one moment under the structural lock.
    pub(super) fn all(&self) -> Vec<Arc<Session>> {
        self.shards.iter().flat_map(|shard| shard.read().values().cloned().collect::<Vec<_>>()).collect()
    }
}

/// What stands behind a session's lock.
pub(super) struct Held {
    ended: bool,
    /// Whether its process mapped the pool: then what it holds is in use until its socket closes, whatever
    /// its leases say.
    pub(super) maps_memory: bool,
    pub(super) leases: Leases,
    /// Ids set aside for its next leases.
    ids: Range<LeaseId>,
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
            ids: 0..0,
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

    /// Ids for so many leases that follow each other, from the returned one on. `last` is the last that any
    /// session of the tenant has set aside.
    pub(super) fn lease_ids(&mut self, count: usize, last: &AtomicU64) -> LeaseId {
        let count = count as u64;
        if self.ids.end - self.ids.start < count {
            let more = count.max(IDS_MIN);
            let first = last.fetch_add(more, Ordering::Relaxed) + 1;
            self.ids = first..first + more;
        }
        let first = self.ids.start;
        self.ids.start += count;
        first
    }

    /// A time before which nothing of it is over.
    pub(super) fn due(&self) -> Duration {
        let resting = self.quarantine.values().map(|resting| resting.until).min();
        self.expires_at.min(self.leases.due()).min(resting.unwrap_or(Duration::MAX))
    }
}
