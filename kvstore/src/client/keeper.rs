//! Keeps a session alive in the background: renews it, opens it again when the store was restarted, and
//! gives leases back in batches.
//!
//! # Locking
//! Two small locks, never both at once, never across an await: the present session, and the lists of leases.

use std::{
    collections::HashSet,
    hash::BuildHasherDefault,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use kelvin_proto::{NamespaceSpec, Reason, kv::v1};
use parking_lot::{Mutex, RwLock};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Client, Error, lease::LeaseName};
use crate::{
    HashMixer, NamespaceKey,
    transport::{self, Attached, Links, Verb},
};

/// Until a renewal that failed is tried again.
const RENEW_AGAIN: Duration = Duration::from_millis(300);
/// Leases that are dropped within this time are given back together.
const GATHER: Duration = Duration::from_millis(1);
const REOPEN_FIRST: Duration = Duration::from_millis(50);
const REOPEN_MOST: Duration = Duration::from_secs(2);

/// An open handshake.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: u64,
    pub(super) namespace_id: u64,
    pub(super) key: NamespaceKey,
    pub(super) way: Way,
    pub(super) keys_max: usize,
    /// Whether the store takes hashes and gives leases packed.
    pub(super) packs: bool,
    ttl: Duration,
}

impl Session {
    /// A call by the shortest way: over the socket where memory is mapped, else gRPC.
    pub(super) async fn call<V: Verb>(
        &self,
        client: &Client,
        message: V,
        wait: Duration,
    ) -> Result<V::Answer, Error> {
        if let Way::Shm(attached) = &self.way
            && let Some(calls) = attached.calls()
        {
            return Ok(calls.call(&message, client.options().call_timeout + wait).await?);
        }
        // Also when the socket was closed: the store that comes back says whether it knows the session.
        client.call(message, wait).await
    }
}

/// How payload moves.
#[derive(Debug)]
pub(super) enum Way {
    /// In place.
    Shm(Arc<Attached>),
    /// Through the data port.
    Tcp(Arc<Links>),
    /// Inside gRPC.
    Grpc,
}

/// What callers, leases and the background task share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) client: Client,
    pub(super) spec: NamespaceSpec,
    session: RwLock<Arc<Session>>,
    leases: Mutex<Leases>,
    wake: Notify,
    /// Set to the present session's id when the store did not know it.
    lost: AtomicU64,
    stop: CancellationToken,
}

/// The leases of this client. A lease that is granted in an answer that was lost is in neither list, is not
/// renewed, and ends at its TTL.
#[derive(Debug, Default)]
struct Leases {
    held: HashSet<LeaseName, BuildHasherDefault<HashMixer>>,
    returns: Vec<(LeaseName, Return)>,
}

/// How a lease goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Return {
    /// A read lease.
    Release,
    /// A read lease on a block whose bytes are not right.
    Damaged,
    /// A reservation.
    Abort,
}

/// Keeps the background task alive; callers and leases hold it.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) shared: Arc<Shared>,
    _stop: DropGuard,
}

impl Handle {
    /// Opens the first session and starts the task.
    pub(super) async fn open(client: Client, spec: NamespaceSpec) -> Result<Arc<Self>, Error> {
        let session = open_session(&client, &spec).await?;
        let shared = Arc::new(Shared {
            client,
            spec,
            session: RwLock::new(Arc::new(session)),
            leases: Mutex::default(),
            wake: Notify::new(),
            lost: AtomicU64::new(0),
            stop: CancellationToken::new(),
        });
        tokio::spawn(keep(shared.clone()));
        let stop = shared.stop.clone().drop_guard();
        Ok(Arc::new(Self { shared, _stop: stop }))
    }

    pub(super) fn session(&self) -> Arc<Session> {
        self.shared.session.read().clone()
    }

    /// Takes note of a call's failure on a session: one that the store does not know is opened again at once,
    /// not at the next renewal.
    pub(super) fn note(&self, session: &Session, error: &Error) {
        if let Error::Refused(refusal) = error
            && refusal.reason == Reason::UnknownSession
        {
            self.shared.lost.store(session.id, Ordering::Release);
            self.shared.wake.notify_one();
        }
    }

    /// Leases came.
    pub(super) fn hold(&self, names: impl Iterator<Item = LeaseName>) {
        self.shared.leases.lock().held.extend(names);
    }

    /// A lease goes back to the store.
    pub(super) fn give_back(&self, name: LeaseName, how: Return) {
        let mut leases = self.shared.leases.lock();
        leases.held.remove(&name);
        let first = leases.returns.is_empty();
        leases.returns.push((name, how));
        drop(leases);
        if first {
            self.shared.wake.notify_one();
        }
    }

    /// A lease is no more, by an answer of the store's.
    pub(super) fn forget(&self, name: LeaseName) {
        self.shared.leases.lock().held.remove(&name);
    }
}

async fn open_session(client: &Client, spec: &NamespaceSpec) -> Result<Session, Error> {
    let (mut session, offers) = handshake(client, spec).await?;
    let mut data = offers.data;
    match map_memory(client, &mut session, offers.memory).await {
        Mapping::Done => return Ok(session),
        Mapping::OutOfReach => {}
        // That session ended with the socket. A second one, which never shows its token there, does without.
        Mapping::Spent => {
            let (second, offers) = handshake(client, spec).await?;
            (session, data) = (second, offers.data);
        }
    }
    connect_data(client, session, data).await
}

/// What became of an offer of shared memory.
enum Mapping {
    Done,
    OutOfReach,
    Spent,
}

async fn map_memory(client: &Client, session: &mut Session, offer: Option<v1::SharedMemory>) -> Mapping {
    let Some(offer) = offer.filter(|_| client.options().shared_memory) else { return Mapping::OutOfReach };
    let path = offer.socket_path.clone();
    let mapped = tokio::task::spawn_blocking(move || transport::attach(&offer));
    match mapped.await.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
        Ok(Some(attached)) => {
            session.way = Way::Shm(Arc::new(attached));
            Mapping::Done
        }
        Ok(None) => {
            tracing::warn!(socket = path, "no shared memory within reach: bytes go over the network");
            Mapping::OutOfReach
        }
        Err(error) => {
            tracing::warn!(socket = path, %error, "cannot map the store's memory: bytes go over the network");
            Mapping::Spent
        }
    }
}

async fn connect_data(
    client: &Client,
    mut session: Session,
    offer: Option<v1::DataPort>,
) -> Result<Session, Error> {
    let Some(offer) = offer.filter(|_| client.options().data_port) else { return Ok(session) };
    let token: [u8; transport::TOKEN_BYTES] =
        offer.token[..].try_into().map_err(|_| Error::Protocol("a data token of another length".into()))?;
    let address = client.options().data_address.clone().unwrap_or(offer.address);
    match Links::open(address.clone(), token).await {
        Ok(links) => session.way = Way::Tcp(Arc::new(links)),
        Err(error) => {
            tracing::warn!(address, %error, "the data port is out of reach: bytes go through gRPC");
        }
    }
    Ok(session)
}

/// Ways that the store offers.
struct Offers {
    memory: Option<v1::SharedMemory>,
    data: Option<v1::DataPort>,
}

async fn handshake(client: &Client, spec: &NamespaceSpec) -> Result<(Session, Offers), Error> {
    let answer = client.call(spec.to_wire(&client.options().name), Duration::ZERO).await?;
    let key: [u8; 32] = answer.namespace_key[..]
        .try_into()
        .map_err(|_| Error::Protocol("a namespace key of another length".into()))?;
    let limits = answer.limits.unwrap_or_default();
    let session = Session {
        id: answer.session_id,
        namespace_id: answer.namespace_id,
        key: NamespaceKey::from_bytes(key),
        way: Way::Grpc,
        keys_max: limits.keys_max.max(1) as usize,
        packs: answer.packs_leases,
        ttl: Duration::from_millis(answer.session_ttl_ms.max(100)),
    };
    Ok((session, Offers { memory: answer.shared_memory, data: answer.data_port }))
}

async fn keep(shared: Arc<Shared>) {
    // Counted from the last renewal, not from this turn: leases that come back must not put it off.
    let mut renewal = Instant::now() + shared.session.read().ttl / 3;
    loop {
        let session = shared.session.read().clone();
        tokio::select! {
            () = shared.stop.cancelled() => return end(&shared, &session).await,
            () = shared.wake.notified() => {
                if shared.lost.load(Ordering::Acquire) != session.id {
                    // A run is dropped lease by lease: one call for all of it.
                    tokio::select! {
                        () = shared.stop.cancelled() => {}
                        () = tokio::time::sleep(GATHER) => {}
                    }
                }
                give_back(&shared, &session).await;
                if shared.lost.load(Ordering::Acquire) == session.id {
                    reopen(&shared).await;
                    renewal = Instant::now() + session.ttl / 3;
                }
            }
            () = tokio::time::sleep_until(renewal) => match renew(&shared, &session).await {
                Ok(()) => renewal = Instant::now() + session.ttl / 3,
                Err(Error::Refused(refusal)) if refusal.reason == Reason::UnknownSession => {
                    tracing::warn!(model = shared.spec.model, "the store lost the session, opening it again");
                    reopen(&shared).await;
                    renewal = Instant::now() + session.ttl / 3;
                }
                Err(error) => {
                    // The store may well still have the session, and what it holds: only ask again.
                    tracing::warn!(%error, "renew session");
                    renewal = Instant::now() + RENEW_AGAIN.min(session.ttl / 3);
                }
            }
        }
    }
}

/// Renews the session and the leases that this client knows it holds.
async fn renew(shared: &Shared, session: &Session) -> Result<(), Error> {
    let held: Vec<u64> = {
        let leases = shared.leases.lock();
        leases.held.iter().filter(|name| name.session == session.id).map(|name| name.id).collect()
    };
    let lease_ttl_ms = shared.client.options().lease_ttl.as_millis() as u64;
    let mut batches = held.chunks(session.keys_max);
    loop {
        // Without a lease the session alone is renewed.
        let lease_ids = batches.next().unwrap_or_default().to_vec();
        let message = v1::RenewRequest { session_id: session.id, lease_ids, lease_ttl_ms, all_leases: false };
        session.call(&shared.client, message, Duration::ZERO).await?;
        if batches.len() == 0 {
            return Ok(());
        }
    }
}

async fn reopen(shared: &Shared) {
    let mut pause = REOPEN_FIRST;
    loop {
        match open_session(&shared.client, &shared.spec).await {
            Ok(session) => {
                *shared.session.write() = Arc::new(session);
                tracing::info!(model = shared.spec.model, "session opened again");
                return;
            }
            Err(error) if !error.is_retryable() => tracing::error!(%error, "open session again"),
            Err(error) => tracing::debug!(%error, "open session again"),
        }
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(REOPEN_MOST),
        }
    }
}

/// Gives back what has gathered. Leases of a former session ended with it, and one whose return fails is not
/// renewed any more.
async fn give_back(shared: &Shared, session: &Session) {
    let returns = std::mem::take(&mut shared.leases.lock().returns);
    let of = |wanted: Return| {
        let ours = returns.iter().filter(|(name, how)| name.session == session.id && *how == wanted);
        ours.map(|(name, _)| name.id).collect::<Vec<u64>>()
    };
    let session_id = session.id;
    let release = async |lease_ids: Vec<u64>, damaged_lease_ids: Vec<u64>| {
        let message = v1::ReleaseRequest { session_id, lease_ids, end_session: false, damaged_lease_ids };
        if let Err(error) = session.call(&shared.client, message, Duration::ZERO).await {
            tracing::debug!(%error, "give leases back");
        }
    };
    for lease_ids in of(Return::Release).chunks(session.keys_max) {
        release(lease_ids.to_vec(), Vec::new()).await;
    }
    for lease_ids in of(Return::Damaged).chunks(session.keys_max) {
        release(Vec::new(), lease_ids.to_vec()).await;
    }
    for lease_ids in of(Return::Abort).chunks(session.keys_max) {
        let message = v1::AbortRequest { session_id, lease_ids: lease_ids.to_vec() };
        if let Err(error) = session.call(&shared.client, message, Duration::ZERO).await {
            tracing::debug!(%error, "give reservations back");
        }
    }
}

async fn end(shared: &Shared, session: &Session) {
    let message = v1::ReleaseRequest { session_id: session.id, end_session: true, ..Default::default() };
    // The store may be gone already; then there is no session to end.
    let _ = session.call(&shared.client, message, Duration::ZERO).await;
}

impl Shared {
    /// Ends the session now and for good; every lease of it returns.
    pub(super) async fn close(&self) {
        let session = self.session.read().clone();
        end(self, &session).await;
        self.stop.cancel();
    }
}
