//! Keeps a session alive in the background: renews it, opens it again when the store was restarted, and
//! gives leases back in batches.
//!
//! # Locking
//! Two small locks, never both at once, never across an await: the present session, and the list of leases
//! to give back.

use std::{path::Path, sync::Arc, time::Duration};

use kelvin_proto::{NamespaceSpec, Reason, kv::v1};
use parking_lot::{Mutex, RwLock};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Client, Error, lease::LeaseName};
use crate::{
    NamespaceKey,
    transport::{self, Attached},
};

const REOPEN_FIRST: Duration = Duration::from_millis(50);
const REOPEN_MOST: Duration = Duration::from_secs(2);

/// An open handshake.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: u64,
    pub(super) key: NamespaceKey,
    pub(super) attached: Option<Attached>,
    pub(super) keys_max: usize,
    ttl: Duration,
}

/// What callers, leases and the background task share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) client: Client,
    pub(super) spec: NamespaceSpec,
    session: RwLock<Arc<Session>>,
    /// Leases to give back, and whether each is a reservation.
    returns: Mutex<Vec<(LeaseName, bool)>>,
    wake: Notify,
    lost: Notify,
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
            returns: Mutex::new(Vec::new()),
            wake: Notify::new(),
            lost: Notify::new(),
        });
        let stop = CancellationToken::new();
        tokio::spawn(keep(shared.clone(), stop.clone()));
        Ok(Arc::new(Self { shared, _stop: stop.drop_guard() }))
    }

    pub(super) fn session(&self) -> Arc<Session> {
        self.shared.session.read().clone()
    }

    /// Takes note of a call's failure: a lost session is opened again at once, not at the next renewal.
    pub(super) fn note(&self, error: &Error) {
        if let Error::Refused(refusal) = error
            && refusal.reason == Reason::UnknownSession
        {
            self.shared.lost.notify_one();
        }
    }

    pub(super) fn give_back(&self, name: LeaseName, reservation: bool) {
        self.shared.returns.lock().push((name, reservation));
        self.shared.wake.notify_one();
    }
}

async fn open_session(client: &Client, spec: &NamespaceSpec) -> Result<Session, Error> {
    let request = client.request(spec.to_wire(&client.options().name), Duration::ZERO);
    let answer = client.service().open_namespace(request).await?.into_inner();
    let key: [u8; 32] = answer.namespace_key[..]
        .try_into()
        .map_err(|_| Error::Protocol("a namespace key of another length".into()))?;
    let attached = match answer.shared_memory {
        Some(offer) if client.options().shared_memory => attach(offer).await,
        _ => None,
    };
    let limits = answer.limits.unwrap_or_default();
    Ok(Session {
        id: answer.session_id,
        key: NamespaceKey::from_bytes(key),
        attached,
        keys_max: limits.keys_max.max(1) as usize,
        ttl: Duration::from_millis(answer.session_ttl_ms.max(100)),
    })
}

/// Maps the store's memory; a client on another host, or without the right, goes on without.
async fn attach(offer: v1::SharedMemory) -> Option<Attached> {
    let path = offer.socket_path.clone();
    let mapped = tokio::task::spawn_blocking(move || {
        transport::attach(Path::new(&offer.socket_path), &offer.token, offer.region_bytes)
    });
    match mapped.await {
        Ok(Ok(attached)) => Some(attached),
        Ok(Err(error)) => {
            tracing::warn!(socket = path, %error, "no shared memory: bytes go through gRPC");
            None
        }
        Err(_) => None,
    }
}

async fn keep(shared: Arc<Shared>, stop: CancellationToken) {
    let mut renewed = Instant::now();
    loop {
        let session = shared.session.read().clone();
        // Counted from the last renewal, not from this turn: leases that come back must not put it off.
        let renew = tokio::time::sleep_until(renewed + session.ttl / 3);
        tokio::select! {
            () = stop.cancelled() => return end(&shared, &session).await,
            () = shared.wake.notified() => give_back(&shared, &session).await,
            () = shared.lost.notified() => {
                reopen(&shared, &stop).await;
                renewed = Instant::now();
            }
            () = renew => {
                let ttl = shared.client.options().lease_ttl.as_millis() as u64;
                let message = v1::RenewRequest { session_id: session.id, lease_ids: vec![], lease_ttl_ms: ttl };
                let request = shared.client.request(message, Duration::ZERO);
                if let Err(status) = shared.client.service().renew(request).await {
                    tracing::warn!(error = %Error::from(status), "session lost, opening it again");
                    reopen(&shared, &stop).await;
                }
                renewed = Instant::now();
            }
        }
    }
}

async fn reopen(shared: &Shared, stop: &CancellationToken) {
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
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(REOPEN_MOST),
        }
    }
}

/// Gives back what has gathered. Leases of a former session ended with it.
async fn give_back(shared: &Shared, session: &Session) {
    let returns = std::mem::take(&mut *shared.returns.lock());
    let of = |wanted: bool| {
        let ours =
            returns.iter().filter(|(name, reservation)| name.session == session.id && *reservation == wanted);
        ours.map(|(name, _)| name.id).collect::<Vec<u64>>()
    };
    let session_id = session.id;
    for lease_ids in of(false).chunks(session.keys_max) {
        let lease_ids = lease_ids.to_vec();
        let message = v1::ReleaseRequest { session_id, lease_ids, end_session: false };
        let request = shared.client.request(message, Duration::ZERO);
        if let Err(status) = shared.client.service().release(request).await {
            tracing::debug!(error = %Error::from(status), "give leases back");
        }
    }
    for lease_ids in of(true).chunks(session.keys_max) {
        let message = v1::AbortRequest { session_id, lease_ids: lease_ids.to_vec() };
        let request = shared.client.request(message, Duration::ZERO);
        if let Err(status) = shared.client.service().abort(request).await {
            tracing::debug!(error = %Error::from(status), "give reservations back");
        }
    }
}

async fn end(shared: &Shared, session: &Session) {
    let message = v1::ReleaseRequest { session_id: session.id, lease_ids: vec![], end_session: true };
    let request = shared.client.request(message, Duration::ZERO);
    // The store may be gone already; then there is no session to end.
    let _ = shared.client.service().release(request).await;
}

impl Shared {
    /// Ends the session now; every lease of it returns.
    pub(super) async fn close(&self) {
        let session = self.session.read().clone();
        end(self, &session).await;
    }
}
