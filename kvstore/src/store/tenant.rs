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
//! A reservation that expires while its session lives leaves its slot in *quarantine* until the session
//! ends: its holder may still be writing into shared memory.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use kelvin_proto::{NamespaceSpec, Reason, Refusal};
use kelvin_tiering::{Device, DramPool, DramSlot, Policy, TailFirstLru, Tier, Usage};
use parking_lot::{Mutex, MutexGuard};

use super::{
    Clock, Counters, ImmutableBlock, MutableBlock, Namespace,
    block::CompleteBlock,
    events::{Event, EventKind},
    lease::{LeaseId, LeaseTable, Right},
};
use crate::{NamespaceKey, SequenceHash};

/// Bounds on what clients can make a tenant keep.
const SESSIONS_MAX: usize = 4096;
const NAMESPACES_MAX: usize = 1024;
/// Expired reservations a session may leave in quarantine before it is ended.
const QUARANTINE_MAX: usize = 64;
/// Leases a session may hold.
pub(crate) const LEASES_MAX: u32 = 16_384;

pub(crate) type SessionId = u64;

/// The holder, in the index, that stands for a copy in DRAM.
const DRAM: u32 = Tier::Dram as u32;

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

pub(super) struct Session {
    pub(super) namespace: Arc<Namespace>,
    pub(super) name: String,
    pub(super) token: [u8; 16],
    /// Whether its process mapped the pool.
    pub(super) maps_memory: bool,
    pub(super) leases: HashSet<LeaseId>,
    pub(super) quarantine: HashMap<LeaseId, Box<MutableBlock>>,
    expires_at: Duration,
}

pub(super) enum Entry {
    Filling,
    Sealed(ImmutableBlock),
}

pub(super) struct State {
    pub(super) blocks: HashMap<BlockKey, Entry>,
    /// Blocks committed before their parents, by parent.
    orphans: HashMap<BlockKey, Vec<CompleteBlock>>,
    /// Blocks being filled, counted at their parents.
    filling_children: HashMap<BlockKey, u32>,
    pub(super) policy: TailFirstLru<BlockKey>,
    pub(super) sessions: HashMap<SessionId, Session>,
    pub(super) leases: LeaseTable,
    namespaces: HashMap<u64, Arc<Namespace>>,
    next_lease: LeaseId,
}

/// One tenant.
pub(crate) struct Tenant {
    name: String,
    secret: [u8; 32],
    pub(super) pool: DramPool,
    pub(super) limits: TenantLimits,
    pub(super) counters: Arc<Counters>,
    pub(super) clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

impl Tenant {
    pub(super) fn new(
        name: String,
        secret: [u8; 32],
        pool: DramPool,
        limits: TenantLimits,
        counters: Arc<Counters>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let state = State {
            blocks: HashMap::new(),
            orphans: HashMap::new(),
            filling_children: HashMap::new(),
            policy: TailFirstLru::new(),
            sessions: HashMap::new(),
            leases: LeaseTable::default(),
            namespaces: HashMap::new(),
            next_lease: 1,
        };
        Self { name, secret, pool, limits, counters, clock, state: Mutex::new(state) }
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
                    "a block of {} bytes is larger than this store's limit of {block_bytes_max}: \
                     use fewer tokens a block, or start the store with more DRAM",
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
        let id = u64::from_le_bytes(crate::random::bytes());
        let namespace = Arc::new(Namespace::new(id, spec, key));
        state.namespaces.insert(id, namespace.clone());
        Ok(namespace)
    }

    /// A namespace by its id.
    pub(crate) fn namespace(&self, id: u64) -> Result<Arc<Namespace>, Refusal> {
        let found = self.lock().namespaces.get(&id).cloned();
        found.ok_or_else(|| Refusal::invalid(format!("namespace {id} is not known; Stats lists them")))
    }

    /// The session that shows `token` at the shared-memory socket has mapped the pool from here on.
    pub(crate) fn map_memory(&self, token: &[u8; 16]) -> Option<SessionId> {
        let mut state = self.lock();
        let found = state.sessions.iter_mut().find(|(_, session)| &session.token == token);
        found.map(|(&id, session)| {
            session.maps_memory = true;
            id
        })
    }

    /// Ends a session and everything it holds.
    pub(crate) fn end_session(&self, session: SessionId) {
        let mut state = self.lock();
        self.end(&mut state, session, "ended");
    }

    fn end(&self, state: &mut State, id: SessionId, how: &str) {
        let Some(session) = state.sessions.remove(&id) else { return };
        for &lease in &session.leases {
            if let Some(lease) = state.leases.remove(lease, id)
                && let Right::Write(Some(block)) = lease.right
            {
                self.abandon(state, *block);
            }
        }
        tracing::debug!(client = session.name, leases = session.leases.len(), "session {how}");
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
        while let Some((id, lease)) = state.leases.pop_expired(now) {
            self.counters.leases_expired.add(1);
            let session = state.sessions.get_mut(&lease.session).expect("a lease belongs to a live session");
            session.leases.remove(&id);
            let namespace = session.namespace.clone();
            if let Right::Write(Some(block)) = lease.right {
                let key = block.key;
                let parent = block.parent;
                session.quarantine.insert(id, block);
                let full = session.quarantine.len() > QUARANTINE_MAX;
                tracing::warn!(client = session.name, block = %key.hash, "reservation expired");
                self.forget_filling(state, key, parent);
                if full {
                    self.end(state, lease.session, "ended: it lets its reservations expire");
                }
            }
            namespace.changed.notify_waiters();
        }
    }

    /// Gives up a block that was being filled; its slot is free at once.
    pub(super) fn abandon(&self, state: &mut State, block: MutableBlock) {
        self.forget_filling(state, block.key, block.parent);
    }

    /// Removes the trace of a block being filled, and with it what was committed behind it.
    pub(super) fn forget_filling(&self, state: &mut State, key: BlockKey, parent: Option<SequenceHash>) {
        state.blocks.remove(&key);
        state.release_parent(key, parent);
        for orphan in state.orphans.remove(&key).unwrap_or_default() {
            self.forget_filling(state, orphan.key(), orphan.parent());
        }
    }

    /// Makes a complete block visible, or keeps it until its parent is. False when its parent is gone: a
    /// block that nobody can reach is not worth its slot.
    pub(super) fn adopt(&self, state: &mut State, namespace: &Namespace, block: CompleteBlock) -> bool {
        let first = block.key();
        let mut ready = vec![block];
        while let Some(block) = ready.pop() {
            let key = block.key();
            if let Some(parent) = block.parent().map(|hash| BlockKey { hash, ..key })
                && matches!(state.blocks.get(&parent), Some(Entry::Filling))
            {
                state.orphans.entry(parent).or_default().push(block);
                continue;
            }
            let parent = block.parent();
            if namespace.index.insert(parent, key.hash, DRAM, 0).is_err() {
                self.forget_filling(state, key, parent);
                continue;
            }
            state.release_parent(key, parent);
            state.blocks.insert(key, Entry::Sealed(block.register()));
            state.policy.insert(key, parent.map(|hash| BlockKey { hash, ..key }));
            namespace.events.push(Event {
                kind: EventKind::Stored,
                hash: key.hash,
                parent,
                tier: Tier::Dram,
            });
            ready.extend(state.orphans.remove(&key).unwrap_or_default());
        }
        state.blocks.contains_key(&first)
    }

    /// A slot, taking from the least recently used block of the same size if none is free, and from blocks
    /// of other sizes only when this size has nothing left to give.
    pub(super) fn allocate(&self, state: &mut State, bytes: u64) -> Option<DramSlot> {
        loop {
            if let Some(slot) = self.pool.allocate(bytes) {
                return Some(slot);
            }
            let victim = state.victim(|slot| slot.len() == bytes).or_else(|| state.victim(|_| true))?;
            self.evict(state, victim);
        }
    }

    fn evict(&self, state: &mut State, key: BlockKey) {
        let Some(Entry::Sealed(block)) = state.blocks.remove(&key) else {
            unreachable!("only sealed blocks are victims")
        };
        state.policy.remove(key);
        if let Some(namespace) = state.namespaces.get(&key.namespace) {
            namespace.index.remove(key.hash, DRAM);
            namespace.events.push(Event {
                kind: EventKind::Removed,
                hash: key.hash,
                parent: block.parent(),
                tier: Tier::Dram,
            });
        }
        self.counters.evictions.add(1);
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
        Survey { namespaces, sessions: state.sessions.len() as u64, read_leases, write_leases }
    }
}

/// What a tenant holds at one moment.
pub(crate) struct Survey {
    pub(crate) namespaces: Vec<(Arc<Namespace>, u64)>,
    pub(crate) sessions: u64,
    pub(crate) read_leases: u64,
    pub(crate) write_leases: u64,
}

impl State {
    pub(super) fn next_lease(&mut self) -> LeaseId {
        let id = self.next_lease;
        self.next_lease += 1;
        id
    }

    /// The session, or a refusal that makes its client open it again.
    pub(super) fn session(&mut self, id: SessionId) -> Result<&mut Session, Refusal> {
        self.sessions.get_mut(&id).ok_or_else(|| {
            Refusal::new(
                Reason::UnknownSession,
                "the session is not open (any more): open the namespace again",
            )
        })
    }

    pub(super) fn renew_session(&mut self, id: SessionId, expires_at: Duration) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.expires_at = session.expires_at.max(expires_at);
        }
    }

    pub(super) fn hold_parent(&mut self, key: BlockKey, parent: Option<SequenceHash>) {
        if let Some(hash) = parent {
            *self.filling_children.entry(BlockKey { hash, ..key }).or_default() += 1;
        }
    }

    pub(super) fn release_parent(&mut self, key: BlockKey, parent: Option<SequenceHash>) {
        let Some(parent) = parent.map(|hash| BlockKey { hash, ..key }) else { return };
        let count = self.filling_children.get_mut(&parent).expect("a block being filled is counted");
        *count -= 1;
        if *count == 0 {
            self.filling_children.remove(&parent);
        }
    }

    fn victim(&mut self, fits: impl Fn(&DramSlot) -> bool) -> Option<BlockKey> {
        let State { blocks, filling_children, policy, .. } = self;
        policy.victim(&mut |key| match blocks.get(key) {
            Some(Entry::Sealed(block)) => {
                fits(block.slot()) && !block.is_leased() && !filling_children.contains_key(key)
            }
            _ => false,
        })
    }
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
