//! A tenant: one memory pool, its namespaces, sessions, blocks and leases behind one lock.
//!
//! # States
//! ```text
//!            reserve             commit(checksum)                 acquire / release
//!  (absent) ───────────► Filling ───────────────► Sealed ◄──────────────────────► leased
//!     ▲  abort, expiry, end │                       │
//!     └─────────────────────┴──────── evict ◄───────┘   (never while leased, nor while a child is
//!                                                        being filled)
//! ```
//!
//! # Shared memory
//! A process that mapped the pool can touch a slot whatever its leases say: they may have expired, or its
//! session ended, while it was busy. So its slots are not used again at once, though their keys are free for
//! others. What a session held that ended is *parked* until its socket closes, which the process's end does at
//! the latest: a process that does not renew may hang anywhere. What a live session let expire is
//! *quarantined* for the longest time of a lease: it renews, so it mostly never heard of that lease, the answer
//! that granted it being lost.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use kelvin_proto::{NamespaceSpec, Reason, Refusal};
use kelvin_tiering::{Device, DramPool, Usage};
use parking_lot::{Mutex, MutexGuard};

use super::{
    Clock, Counters, Namespace,
    lease::Right,
    state::{Resting, Session, State},
    tiers::Below,
};
use crate::{NamespaceKey, SequenceHash, catalog::namespace_id};

/// Bounds on what clients can make a tenant keep.
const SESSIONS_MAX: usize = 4096;
const NAMESPACES_MAX: usize = 1024;
/// Expired leases a session may leave in quarantine before it is ended.
const QUARANTINE_MAX: usize = 64;
/// Leases a session may hold.
pub(crate) const LEASES_MAX: u32 = 16_384;

pub(crate) type SessionId = u64;

/// A block of one of the tenant's namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct BlockKey {
    pub(crate) namespace: u64,
    pub(crate) hash: SequenceHash,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct TenantLimits {
    pub(super) session_ttl: Duration,
    pub(super) lease_ttl_max: Duration,
}

/// What the handshake gives.
pub(crate) struct Opened {
    pub(crate) namespace: Arc<Namespace>,
    pub(crate) session: SessionId,
    /// To show at the shared-memory socket.
    pub(crate) token: [u8; 16],
}

/// One tenant.
pub(crate) struct Tenant {
    name: String,
    secret: [u8; 32],
    pub(super) pool: DramPool,
    pub(super) limits: TenantLimits,
    pub(super) counters: Counters,
    pub(super) clock: Arc<dyn Clock>,
    state: Mutex<State>,
    /// What it offers to, and has of, the tiers below DRAM.
    pub(super) below: Below,
}

impl Tenant {
    pub(super) fn new(
        name: String,
        secret: [u8; 32],
        pool: DramPool,
        limits: TenantLimits,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { name, secret, pool, limits, counters: Counters::default(), clock, state: Mutex::default(), below: Below::default() }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn pool(&self) -> &DramPool {
        &self.pool
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(crate) fn session_ttl(&self) -> Duration {
        self.limits.session_ttl
    }

    pub(crate) fn lease_ttl_max(&self) -> Duration {
        self.limits.lease_ttl_max
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// The handshake: a session on the namespace that `spec` describes.
    pub(crate) fn open(&self, spec: NamespaceSpec, name: &str) -> Result<Opened, Refusal> {
        let block_bytes_max = self.pool.block_bytes_max();
        if spec.block_bytes > block_bytes_max {
            return Err(Refusal::new(
                Reason::LimitExceeded,
                format!(
                    "a block of {} bytes is larger than this store's limit of {block_bytes_max}, a chunk of \
                     its memory: start the store with more DRAM, or use fewer tokens a block",
                    spec.block_bytes
                ),
            ));
        }
        let mut state = self.lock();
        self.expire(&mut state);
        if state.sessions.len() >= SESSIONS_MAX {
            return Err(Refusal::new(Reason::Exhausted, format!("{SESSIONS_MAX} sessions are open")));
        }
        refuse_other_fingerprint(state.sessions.values(), &spec)?;
        let namespace = self.namespace_for(&mut state, spec)?;
        let (session, token) = (u64::from_le_bytes(crate::random::bytes()), crate::random::bytes());
        let expires_at = self.clock.now() + self.limits.session_ttl;
        let opened = Session {
            namespace: namespace.clone(),
            name: name.to_owned(),
            token,
            maps_memory: false,
            leases: HashSet::new(),
            quarantine: HashMap::new(),
            expires_at,
        };
        state.sessions.insert(session, opened);
        Ok(Opened { namespace, session, token })
    }

    fn namespace_for(&self, state: &mut State, spec: NamespaceSpec) -> Result<Arc<Namespace>, Refusal> {
        if let Some(known) = state.namespaces.values().find(|known| known.spec == spec) {
            return Ok(known.clone());
        }
        if state.namespaces.len() >= NAMESPACES_MAX {
            let open: HashSet<u64> = state.sessions.values().map(|session| session.namespace.id).collect();
            state.namespaces.retain(|id, known| open.contains(id) || !known.index.is_empty());
            if state.namespaces.len() >= NAMESPACES_MAX {
                return Err(Refusal::new(
                    Reason::Exhausted,
                    format!("{NAMESPACES_MAX} namespaces are in use"),
                ));
            }
        }
        let key = NamespaceKey::derive(&self.secret, &self.name, &spec.canonical());
        let persistent = namespace_id(&self.secret, &self.name, &spec);
        tracing::info!(
            tenant = self.name,
            model = spec.model,
            block_bytes = spec.block_bytes,
            blocks_max = self.pool.blocks_max(spec.block_bytes),
            "namespace opened"
        );
        let namespace = Arc::new(Namespace::new(persistent, spec, key));
        state.namespaces.insert(namespace.id, namespace.clone());
        self.below.opened(&self.name, &namespace);
        Ok(namespace)
    }

    /// A namespace of an earlier start.
    pub(super) fn restore_namespace(&self, spec: NamespaceSpec) -> Result<Arc<Namespace>, Refusal> {
        self.namespace_for(&mut self.lock(), spec)
    }

    /// All namespaces.
    pub(super) fn namespaces(&self) -> Vec<Arc<Namespace>> {
        self.lock().namespaces.values().cloned().collect()
    }

    /// A namespace by its id.
    pub(crate) fn namespace(&self, id: u64) -> Result<Arc<Namespace>, Refusal> {
        let found = self.lock().namespaces.get(&id).cloned();
        found.ok_or_else(|| Refusal::invalid(format!("namespace {id} is not known; Stats lists them")))
    }

    /// The session that shows `token` at the shared-memory socket has mapped the pool from here on; a token
    /// counts once.
    pub(crate) fn map_memory(&self, token: &[u8; 16]) -> Option<SessionId> {
        let mut state = self.lock();
        let found =
            state.sessions.iter_mut().find(|(_, session)| &session.token == token && !session.maps_memory);
        found.map(|(&id, session)| {
            session.maps_memory = true;
            id
        })
    }

    /// The process behind a session has closed its socket: nothing of the session is in use any more.
    pub(crate) fn unmap_memory(&self, id: SessionId) {
        let mut state = self.lock();
        if let Some(session) = state.sessions.get_mut(&id) {
            session.maps_memory = false;
        }
        self.end(&mut state, id, "ended: its socket closed");
        state.parked.remove(&id);
    }

    /// Ends a session and everything it holds.
    pub(crate) fn end_session(&self, session: SessionId) {
        let mut state = self.lock();
        self.end(&mut state, session, "ended");
    }

    fn end(&self, state: &mut State, id: SessionId, how: &str) {
        let Some(session) = state.sessions.remove(&id) else { return };
        let mut held: Vec<Right> = session.quarantine.into_values().map(|resting| resting.right).collect();
        for &lease in &session.leases {
            let Some(lease) = state.leases.remove(lease, id) else { continue };
            if let Right::Write(Some(block)) = &lease.right {
                state.forget_filling(block.key, block.parent);
            }
            held.push(lease.right);
        }
        tracing::debug!(client = session.name, leases = session.leases.len(), "session {how}");
        if session.maps_memory && !held.is_empty() {
            state.parked.insert(id, held);
        }
        session.namespace.changed.notify_waiters();
    }

    /// Ends what time has run out for.
    pub(crate) fn reap(&self) {
        let mut state = self.lock();
        self.expire(&mut state);
    }

    pub(super) fn expire(&self, state: &mut State) {
        let now = self.clock.now();
        let over: Vec<SessionId> = state
            .sessions
            .iter()
            .filter(|(_, session)| session.expires_at <= now)
            .map(|(&id, _)| id)
            .collect();
        for id in over {
            self.end(state, id, "expired");
        }
        for session in state.sessions.values_mut() {
            session.quarantine.retain(|_, resting| resting.until > now);
        }
        while let Some((id, lease)) = state.leases.pop_expired(now) {
            self.counters.leases_expired.add(1);
            if let Right::Write(Some(block)) = &lease.right {
                tracing::warn!(block = %block.key.hash, "reservation expired");
                state.forget_filling(block.key, block.parent);
            }
            let session = state.sessions.get_mut(&lease.session).expect("a lease belongs to a live session");
            session.leases.remove(&id);
            session.namespace.changed.notify_waiters();
            if session.maps_memory {
                let until = now + self.limits.lease_ttl_max;
                session.quarantine.insert(id, Resting { right: lease.right, until });
                if session.quarantine.len() > QUARANTINE_MAX {
                    self.end(state, lease.session, "ended: it lets its leases expire");
                }
            }
        }
    }

    /// The clock for the index.
    pub(super) fn tick(&self) -> u64 {
        self.clock.now().as_millis() as u64
    }

    /// Blocks of the longest stored prefix.
    pub(crate) fn longest_prefix(&self, namespace: &Namespace, hashes: &[SequenceHash]) -> usize {
        namespace.longest_prefix(hashes, self.tick())
    }

    /// Fill of the pool.
    pub(crate) fn usage(&self) -> Usage {
        self.pool.usage()
    }

    /// Namespaces with their sealed blocks and sessions; sessions; read and write leases.
    pub(crate) fn survey(&self) -> Survey {
        let state = self.lock();
        let mut namespaces: Vec<(Arc<Namespace>, u64)> = Vec::new();
        for namespace in state.namespaces.values() {
            let sessions = state.sessions.values().filter(|session| session.namespace.id == namespace.id);
            namespaces.push((namespace.clone(), sessions.count() as u64));
        }
        namespaces.sort_by(|(a, _), (b, _)| (&a.spec.model, a.id).cmp(&(&b.spec.model, b.id)));
        let (read_leases, write_leases) = state.leases.counts();
        let quarantined = state.sessions.values().map(|session| session.quarantine.len());
        let parked_slots = quarantined.chain(state.parked.values().map(Vec::len)).sum::<usize>() as u64;
        Survey { namespaces, sessions: state.sessions.len() as u64, read_leases, write_leases, parked_slots }
    }
}

/// What a tenant holds at one moment.
pub(crate) struct Survey {
    pub(crate) namespaces: Vec<(Arc<Namespace>, u64)>,
    pub(crate) sessions: u64,
    pub(crate) read_leases: u64,
    pub(crate) write_leases: u64,
    /// Slots that rest until the process that mapped them is gone.
    pub(crate) parked_slots: u64,
}

fn refuse_other_fingerprint<'a>(
    sessions: impl Iterator<Item = &'a Session>,
    spec: &NamespaceSpec,
) -> Result<(), Refusal> {
    let served = |session: &&Session| {
        let known = &session.namespace.spec;
        known.model == spec.model && known.shard == spec.shard && known != spec
    };
    let Some(session) = { sessions }.find(served) else { return Ok(()) };
    let known = &session.namespace.spec;
    let mut differences = known.fingerprint.differences(&spec.fingerprint);
    if known.block_tokens != spec.block_tokens {
        differences.push("block_tokens".into());
    }
    if known.block_bytes != spec.block_bytes {
        differences.push("block_bytes".into());
    }
    let show = |spec: &NamespaceSpec| {
        let NamespaceSpec { fingerprint, block_tokens, block_bytes, .. } = spec;
        format!("{fingerprint} block_tokens={block_tokens} block_bytes={block_bytes}")
    };
    Err(Refusal::new(
        Reason::FingerprintMismatch,
        format!(
            "model `{}` is served here as {} (by {}), but this client has {}; they differ in {}: \
             serve the other one under another name",
            spec.model,
            show(known),
            session.name,
            show(spec),
            differences.join(", ")
        ),
    ))
}
