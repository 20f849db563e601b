//! A tenant: one memory pool, its namespaces, sessions, blocks and leases.
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
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crossbeam::utils::CachePadded;
use kelvin_proto::{NamespaceSpec, Reason, Refusal};
use kelvin_tiering::{Device, DramPool, DramSlot, GhostBoard, GhostRate, PolicyKind, Tier, Usage, Weight};
use parking_lot::{Mutex, MutexGuard};

use super::{
    Clock, Counters, Namespace, Quota, Row, TierOptions,
    lease::Right,
    meters::Meters,
    session::{Ended, Resting, Session, Sessions, unknown_session},
    state::State,
    striped::Striped,
    table::{Keyed, Table},
    tiers::Below,
    touches::{RUN_KEYS_MAX, Touches},
    verbs::forget_reservation,
};
use crate::{
    NamespaceKey, SequenceHash,
    catalog::namespace_id,
    insight::{Bursts, Explainer, ExplainerUsage},
};

/// Policies beside the real one, on a sample.
type Ghosts = GhostBoard<SequenceHash, Keyed>;

/// What it takes to see whether a block is sampled, to have all ghosts see one that is, and the curve: as measured,
/// rounded up.
const LOOK_NS: u64 = 3;
const GHOSTS_NS: u64 = 1000;
const CURVE_NS: u64 = 150;
/// Half of a curve is from the last so many blocks asked for.
const CURVE_ASKED_MAX: f64 = 4_194_304.0;
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
    pub(super) counters: CachePadded<Counters>,
    pub(super) meters: Striped<Meters>,
    pub(super) clock: Arc<dyn Clock>,
    /// Changed under the structural lock, read without.
    pub(super) table: Arc<Table>,
    touches: Arc<Touches>,
    /// Sessions come and go under the structural lock as well.
    sessions: Sessions,
    /// The last lease id that a session set aside. Written by every lease, so apart from what every call reads.
    pub(super) last_lease: CachePadded<AtomicU64>,
    /// Nanoseconds of the clock before which no lease and no session is over. Lowered under the lock of the
    /// session that will be due; raised by `expire`, which first sets it to the end of time and then looks at
    /// every session: one that was changed before that look is seen by it, one changed later lowers it again.
    due: CachePadded<AtomicU64>,
    /// Why blocks went.
    gone: Arc<Explainer>,
    /// Of DRAM.
    quotas: Vec<Quota>,
    /// What each policy would have hit in DRAM. Who finds it busy passes it over: it is a sample anyway.
    pub(super) ghosts: Mutex<Ghosts>,
    /// When they may watch.
    bursts: Bursts,
    /// Its place among the store's tenants.
    pub(crate) place: usize,
    policy: PolicyKind,
    is_operator: bool,
    /// The structural lock.
    state: CachePadded<Mutex<State>>,
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
        tiers: &TierOptions,
        is_operator: bool,
    ) -> Self {
        let (table, touches) = (Arc::<Table>::default(), Arc::<Touches>::default());
        let policy = tiers.policies.get(&Tier::Dram).copied().unwrap_or_default();
        let state = State::new(table.clone(), touches.clone(), clock.clone(), pool.clone(), policy);
        let quotas = tiers.quotas.iter().filter(|quota| quota.tier == Tier::Dram).cloned().collect();
        Self {
            name,
            secret,
            pool,
            limits,
            counters: CachePadded::default(),
            meters: Striped::default(),
            clock,
            state: CachePadded::new(Mutex::new(state)),
            table,
            touches,
            sessions: Sessions::default(),
            last_lease: CachePadded::default(),
            due: CachePadded::new(AtomicU64::new(u64::MAX)),
            gone: Arc::default(),
            quotas,
            ghosts: Mutex::new(GhostBoard::new(&PolicyKind::FIXED, 1)),
            bursts: Bursts::default(),
            place: 0,
            policy,
            is_operator,
            below: Below::default(),
        }
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

    /// For this thread to write.
    pub(crate) fn meters(&self) -> &Meters {
        self.meters.mine()
    }

    /// To be added up.
    pub(crate) fn all_meters(&self) -> impl Iterator<Item = &Meters> {
        self.meters.all()
    }

    /// Tokens asked for and found, by namespace, as metrics show them.
    pub(crate) fn rows(&self) -> Vec<Row> {
        self.lock().rows()
    }

    pub(crate) fn session_ttl(&self) -> Duration {
        self.limits.session_ttl
    }

    /// Whether it may look into the store as a whole.
    pub(crate) fn is_operator(&self) -> bool {
        self.is_operator
    }

    /// The name of the order in which blocks leave DRAM.
    pub(crate) fn policy(&self) -> &'static str {
        self.policy.name()
    }

    /// What each policy would have hit in DRAM lately; none before that can be said.
    pub(crate) fn ghost_rates(&self) -> Vec<GhostRate> {
        let ghosts = self.ghosts.lock();
        if ghosts.is_warm() { ghosts.rates() } else { Vec::new() }
    }

    /// Why blocks went: how many notes there are.
    pub(crate) fn explainer_usage(&self) -> ExplainerUsage {
        self.gone.usage()
    }

    /// Memory of what is kept about the tenant to be shown: counts, histograms, reasons, and of each namespace
    /// its counts and its curve. Not that of the ghosts, which are a part of the policies.
    pub(crate) fn metrics_memory_bytes(&self) -> usize {
        let curves: usize = self.namespaces().iter().map(|namespace| namespace.metrics_memory_bytes()).sum();
        let rows = self.rows();
        let labels: usize =
            rows.iter().map(|row| size_of_val(row) + row.model.len() + row.namespace.len()).sum();
        size_of::<Counters>() + self.meters.memory_bytes() + self.gone.memory_bytes() + labels + curves
    }

    /// The store's clock.
    pub(crate) fn now(&self) -> Duration {
        self.clock.now()
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
        let open = self.sessions.all();
        if open.len() >= SESSIONS_MAX {
            return Err(Refusal::new(Reason::Exhausted, format!("{SESSIONS_MAX} sessions are open")));
        }
        refuse_other_fingerprint(open.iter(), &spec)?;
        let namespace = self.namespace_for(&mut state, spec)?;
        let (session, token) = (u64::from_le_bytes(crate::random::bytes()), crate::random::bytes());
        let expires_at = self.clock.now() + self.limits.session_ttl;
        let opened = Session::new(session, namespace.clone(), name, token, expires_at);
        self.sessions.insert(Arc::new(opened));
        self.lower_due(expires_at);
        Ok(Opened { namespace, session, token })
    }

    fn namespace_for(&self, state: &mut State, spec: NamespaceSpec) -> Result<Arc<Namespace>, Refusal> {
        if let Some(known) = state.namespaces.values().find(|known| known.spec == spec) {
            return Ok(known.clone());
        }
        if state.namespaces.len() >= NAMESPACES_MAX {
            let open: HashSet<u64> = self.sessions.all().iter().map(|session| session.namespace.id).collect();
            state.retain_namespaces(|known| open.contains(&known.id) || !known.index.is_empty());
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
        let namespace = Arc::new(Namespace::new(persistent, spec, key, self.gone.clone()));
        if let Some(quota) = self.quotas.iter().find(|quota| quota.model == namespace.spec.model) {
            let slot_bytes = DramSlot::slot_bytes_for(namespace.spec.block_bytes);
            state.set_quota(namespace.id, slot_bytes, quota.bytes);
        }
        let blocks = usize::try_from(self.pool.blocks_max(namespace.spec.block_bytes)).unwrap_or(usize::MAX);
        self.ghosts.lock().set_capacity(blocks);
        state.open_namespace(namespace.clone());
        self.below.opened(&self.name, &namespace);
        Ok(namespace)
    }

    /// A namespace of an earlier start.
    pub(super) fn restore_namespace(&self, spec: NamespaceSpec) -> Result<Arc<Namespace>, Refusal> {
        self.namespace_for(&mut self.lock(), spec)
    }

    /// A namespace by its id.
    pub(crate) fn namespace(&self, id: u64) -> Result<Arc<Namespace>, Refusal> {
        let found = self.lock().namespaces.get(&id).cloned();
        found.ok_or_else(|| Refusal::invalid(format!("namespace {id} is not known; Stats lists them")))
    }

    /// All namespaces.
    pub(crate) fn namespaces(&self) -> Vec<Arc<Namespace>> {
        self.lock().namespaces.values().cloned().collect()
    }

    /// An open session, or a refusal that makes its client open it again.
    pub(super) fn session(&self, id: SessionId) -> Result<Arc<Session>, Refusal> {
        self.sessions.get(id).ok_or_else(unknown_session)
    }

    /// The session that shows `token` at the shared-memory socket has mapped the pool from here on; a token
    /// counts once.
    pub(crate) fn map_memory(&self, token: &[u8; 16]) -> Option<SessionId> {
        let session = self.sessions.all().into_iter().find(|session| &session.token == token)?;
        let mut held = session.hold().ok()?;
        (!std::mem::replace(&mut held.maps_memory, true)).then_some(session.id)
    }

    /// The session that shows `token` at the data port.
    pub(crate) fn session_of(&self, token: &[u8; 16]) -> Option<SessionId> {
        self.sessions.all().into_iter().find(|session| &session.token == token).map(|session| session.id)
    }

    /// The process behind a session has closed its socket: nothing of the session is in use any more.
    pub(crate) fn unmap_memory(&self, id: SessionId) {
        let mut state = self.lock();
        if let Ok(session) = self.session(id)
            && let Ok(mut held) = session.hold()
        {
            held.maps_memory = false;
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
        let Some(session) = self.sessions.remove(id) else { return };
        let Some(Ended { live, resting, maps_memory }) = session.end() else { return };
        tracing::debug!(client = session.name, leases = live.len(), "session {how}");
        for right in &live {
            forget_reservation(state, right);
        }
        let held: Vec<Right> = live.into_iter().chain(resting).collect();
        if maps_memory && !held.is_empty() {
            state.parked.insert(id, held);
        }
        session.namespace.changed.notify_waiters();
    }

    /// Ends what time has run out for, and tells the policies what was used.
    pub(crate) fn reap(&self) {
        let mut state = self.lock();
        self.expire(&mut state);
        state.settle();
        self.drop_expired(&mut state);
        let now = self.clock.now();
        state.namespaces.values().for_each(|namespace| namespace.pins.expire(now));
    }

    /// Ends what time has run out for, if there may be anything. Takes the structural lock then only.
    pub(super) fn expire_due(&self) {
        if self.is_due(self.clock.now()) {
            self.expire(&mut self.lock());
        }
    }

    fn is_due(&self, now: Duration) -> bool {
        nanoseconds(now) >= self.due.load(Ordering::Relaxed)
    }

    /// Notes that something is over at `at`; called under the lock of the session it belongs to.
    pub(super) fn lower_due(&self, at: Duration) {
        let at = nanoseconds(at);
        if at < self.due.load(Ordering::Relaxed) {
            self.due.fetch_min(at, Ordering::Relaxed);
        }
    }

    pub(super) fn expire(&self, state: &mut State) {
        self.expire_at(state, self.clock.now());
    }

    pub(super) fn expire_at(&self, state: &mut State, now: Duration) {
        if !self.is_due(now) {
            return;
        }
        self.due.store(u64::MAX, Ordering::Relaxed);
        for session in self.sessions.all() {
            let Ok(mut held) = session.hold() else { continue };
            if held.expires_at <= now {
                drop(held);
                self.end(state, session.id, "expired");
                continue;
            }
            held.quarantine.retain(|_, resting| resting.until > now);
            let expired = held.leases.take_expired(now);
            let any = !expired.is_empty();
            for (id, right) in expired {
                self.counters.leases_expired.add(1);
                if let Right::Write(Some(block)) = &right {
                    tracing::warn!(block = %block.key.hash, "reservation expired");
                }
                forget_reservation(state, &right);
                if held.maps_memory {
                    let until = now + self.limits.lease_ttl_max;
                    held.quarantine.insert(id, Resting { right, until });
                }
            }
            let hoards = held.quarantine.len() > QUARANTINE_MAX;
            self.lower_due(held.due());
            drop(held);
            if hoards {
                self.end(state, session.id, "ended: it lets its leases expire");
            }
            if any {
                session.namespace.changed.notify_waiters();
            }
        }
    }

    /// The number of the epoch in which uses of blocks are counted.
    pub(super) fn epoch(&self) -> u32 {
        self.touches.epoch()
    }

    /// Queues a use of a run of blocks for the policies.
    pub(super) fn touch(&self, namespace: u64, hashes: &[SequenceHash]) {
        // The end of a sequence first: what is told last counts as used last.
        for part in hashes.rchunks(RUN_KEYS_MAX) {
            let run = part.iter().map(|&hash| BlockKey { namespace, hash }).collect();
            let Err(run) = self.touches.push(run) else { continue };
            match self.state.try_lock() {
                Some(mut state) => {
                    state.drain_touches();
                    state.touch(&run);
                }
                None => self.touches.push_over(run),
            }
        }
        self.below.stirred.stir();
    }

    /// Has the ghosts and a namespace's curve see what was asked for, if there is time for that.
    pub(super) fn watch_match(&self, namespace: &Namespace, hashes: &[SequenceHash], now: Duration) {
        let looks_ns = hashes.len() as u64 * LOOK_NS;
        if self.bursts.allow(now)
            && let Some(mut ghosts) = self.ghosts.try_lock()
        {
            self.bursts.did(looks_ns + ghosts.touch(hashes) as u64 * GHOSTS_NS, now);
        }
        if namespace.bursts.allow(now)
            && let Some(mut curve) = namespace.curve.try_lock()
        {
            if curve.asked_blocks() > CURVE_ASKED_MAX {
                curve.fade(0.5);
            }
            namespace.bursts.did(looks_ns + curve.observe(hashes) as u64 * CURVE_NS, now);
        }
    }

    /// Has the ghosts see a block that came in, if there is time for that.
    pub(super) fn watch_insert(&self, hash: SequenceHash, parent: Option<SequenceHash>, now: Duration) {
        if self.bursts.allow(now)
            && let Some(mut ghosts) = self.ghosts.try_lock()
            && ghosts.insert(hash, parent, Weight::default())
        {
            self.bursts.did(GHOSTS_NS, now);
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
        let sessions = self.sessions.all();
        let mut namespaces: Vec<(Arc<Namespace>, u64)> = Vec::new();
        for namespace in state.namespaces.values() {
            let open = sessions.iter().filter(|session| session.namespace.id == namespace.id);
            namespaces.push((namespace.clone(), open.count() as u64));
        }
        namespaces.sort_by(|(a, _), (b, _)| (&a.spec.model, a.id).cmp(&(&b.spec.model, b.id)));
        let (mut read_leases, mut write_leases, mut parked) = (0, 0, 0);
        let mut oldest_leases = [None; 2];
        for held in sessions.iter().filter_map(|session| session.hold().ok()) {
            let (reads, writes) = held.leases.counts();
            read_leases += reads;
            write_leases += writes;
            parked += held.quarantine.len();
            let (read, write) = held.leases.oldest();
            for (oldest, own) in oldest_leases.iter_mut().zip([read, write]) {
                *oldest = [*oldest, own].into_iter().flatten().min();
            }
        }
        parked += state.parked.values().map(Vec::len).sum::<usize>();
        Survey {
            namespaces,
            sessions: sessions.len() as u64,
            read_leases: read_leases as u64,
            write_leases: write_leases as u64,
            parked_slots: parked as u64,
            oldest_leases,
        }
    }
}

/// Half a millennium at most.
fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// What a tenant holds at one moment.
pub(crate) struct Survey {
    pub(crate) namespaces: Vec<(Arc<Namespace>, u64)>,
    pub(crate) sessions: u64,
    pub(crate) read_leases: u64,
    pub(crate) write_leases: u64,
    /// Slots that rest until the process that mapped them is gone.
    pub(crate) parked_slots: u64,
    /// When the oldest read lease and the oldest write lease were granted.
    pub(crate) oldest_leases: [Option<Duration>; 2],
}

fn refuse_other_fingerprint<'a>(
    sessions: impl Iterator<Item = &'a Arc<Session>>,
    spec: &NamespaceSpec,
) -> Result<(), Refusal> {
    let served = |session: &&Arc<Session>| {
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
