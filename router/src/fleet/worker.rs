//! One worker: its channel, its state, and the loop that keeps the state fresh.

use std::time::{Duration, Instant};

use kelvin_proto::{
    trace,
    worker::v1::{DescribeRequest, DescribeResponse, Load, worker_service_client::WorkerServiceClient},
};
use parking_lot::{Mutex, MutexGuard, RwLock};
use tokio::{
    sync::Notify,
    time::{sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Status,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};

use super::{Fleet, flight::Flights};
use crate::{
    config::Error,
    cost::{Role, WorkerFacts},
};

/// Most time to reach a worker: it is on this machine.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A worker that does not answer a ping of the connection within this time twice is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(3);
/// Most time for a description, which costs a worker nothing but may wait for a busy processor.
const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(3);
/// Least time between two looks, however many requests begin and end.
const GAP_MIN: Duration = Duration::from_millis(100);

type Tracing = InterceptedService<Channel, fn(Request<()>) -> Result<Request<()>, Status>>;

/// How a worker does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Health {
    /// It has not answered yet.
    Starting,
    Ready,
    /// It answered before; why it does not now.
    Lost(String),
    /// It answers, and must not serve; why.
    Refused(String),
}

impl Health {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Lost(_) => "lost",
            Self::Refused(_) => "refused",
        }
    }

    pub(crate) fn why(&self) -> Option<&str> {
        match self {
            Self::Starting | Self::Ready => None,
            Self::Lost(why) | Self::Refused(why) => Some(why),
        }
    }
}

/// A worker's state at one moment.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) health: Health,
    pub(crate) role: Option<Role>,
    /// Its last description; older than the state if it is lost.
    pub(crate) described: Option<DescribeResponse>,
    /// When that description was asked for.
    asked: Instant,
}

/// One worker of the fleet.
pub(crate) struct Worker {
    id: usize,
    endpoint: String,
    channel: Channel,
    view: RwLock<View>,
    flights: Mutex<Flights>,
    refresh: Notify,
}

impl Worker {
    /// Must be called inside a runtime: the channel connects in the background on first use.
    pub(super) fn new(id: usize, endpoint: &str) -> Result<Self, Error> {
        let bad = || Error::WorkerAddress { endpoint: endpoint.to_owned() };
        let parsed = Endpoint::from_shared(endpoint.to_owned()).map_err(|_| bad())?;
        if parsed.uri().scheme_str() != Some("http") || parsed.uri().port().is_none() {
            return Err(bad());
        }
        let channel = parsed
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true)
            .connect_lazy();
        let view = View { health: Health::Starting, role: None, described: None, asked: Instant::now() };
        Ok(Self {
            id,
            endpoint: endpoint.to_owned(),
            channel,
            view: RwLock::new(view),
            flights: Mutex::default(),
            refresh: Notify::new(),
        })
    }

    pub(crate) fn id(&self) -> usize {
        self.id
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Its name as it says, or its address before it said.
    pub(crate) fn name(&self) -> String {
        let view = self.view.read();
        view.described.as_ref().map_or_else(|| self.endpoint.clone(), |described| described.name.clone())
    }

    /// Which start of it answered last.
    pub(crate) fn incarnation(&self) -> Option<u64> {
        self.view.read().described.as_ref().map(|described| described.incarnation)
    }

    /// Its calls go on with the trace of the request they are made for.
    pub(crate) fn client(&self) -> WorkerServiceClient<Tracing> {
        WorkerServiceClient::with_interceptor(self.channel.clone(), trace::inject)
    }

    pub(crate) fn view(&self) -> View {
        self.view.read().clone()
    }

    pub(super) fn flights(&self) -> MutexGuard<'_, Flights> {
        self.flights.lock()
    }

    /// Prompt tokens that it evaluates in a second, as it measured.
    pub(crate) fn prefill_tokens_per_second(&self) -> Option<f64> {
        let view = self.view.read();
        let load = view.described.as_ref()?.load.as_ref()?;
        Some(load.prefill_tokens_per_second).filter(|rate| *rate > 0.0)
    }

    /// Calls of this router in work there.
    pub(crate) fn in_flight(&self) -> u32 {
        self.flights.lock().len()
    }

    /// Has it looked at soon.
    pub(super) fn refresh(&self) {
        self.refresh.notify_one();
    }

    /// A call's connection broke: nothing more is sent there until it answers again.
    pub(crate) fn lost(&self, why: &str) {
        self.set(Health::Lost(why.to_owned()), |_| {});
        self.refresh();
    }

    pub(super) fn context_tokens_max(&self, ready_only: bool) -> Option<u32> {
        let view = self.view.read();
        let fits = view.role == Some(Role::Decode)
            && (view.health == Health::Ready || (!ready_only && !matches!(view.health, Health::Refused(_))));
        view.described.as_ref().filter(|_| fits).map(|described| described.context_tokens_max)
    }

    /// Its facts for a decision, `None` unless it is ready.
    pub(super) fn facts(&self) -> Option<WorkerFacts> {
        let view = self.view.read();
        let role = view.role.filter(|_| view.health == Health::Ready)?;
        let described = view.described.as_ref()?;
        let unknown = Load::default();
        let load = described.load.as_ref().unwrap_or(&unknown);
        let flights = self.flights.lock();
        let measured = |value: f64| (value > 0.0).then_some(value);
        Some(WorkerFacts {
            id: self.id,
            role,
            streams: load.running.saturating_add(load.waiting).max(flights.len()),
            slots: load.slots,
            pending_tokens: load
                .pending_prompt_tokens
                .saturating_add(flights.pending_tokens_since(view.asked)),
            chunk_tokens: described.chunk_tokens,
            prefill_tokens_per_second: measured(load.prefill_tokens_per_second),
            import_block_us: measured(load.import_block_us),
            decode_step_us: measured(load.decode_step_us),
        })
    }

    /// Asks for a description every `every`, and after each [`Worker::refresh`], until `shutdown`.
    pub(super) async fn watch(&self, fleet: &Fleet, every: Duration, shutdown: &CancellationToken) {
        let mut client = self.client();
        loop {
            let asked = tokio::time::Instant::now();
            let answer = tokio::select! {
                answer = timeout(DESCRIBE_TIMEOUT, client.describe(DescribeRequest {})) => answer,
                () = shutdown.cancelled() => return,
            };
            match answer {
                Ok(Ok(described)) => self.heard(fleet, described.into_inner(), asked.into_std()),
                Ok(Err(status)) => self.unheard(status.message()),
                Err(_) => self.unheard("no answer in time"),
            }
            tokio::select! {
                () = sleep(every.max(GAP_MIN)) => {}
                () = self.refresh.notified() => sleep_until(asked + GAP_MIN).await,
                () = shutdown.cancelled() => return,
            }
        }
    }

    fn heard(&self, fleet: &Fleet, described: DescribeResponse, asked: Instant) {
        let before = self.view.read().described.as_ref().map(|described| described.incarnation);
        if before.is_some_and(|before| before != described.incarnation) {
            tracing::info!(worker = described.name, endpoint = self.endpoint, "the worker was restarted");
        }
        let (health, role) = match fleet.admit(&self.endpoint, &described) {
            Ok(admitted) => (Health::Ready, Some(admitted.role)),
            Err(why) => (Health::Refused(why), None),
        };
        self.set(health, |view| {
            view.role = role.or(view.role);
            view.described = Some(described);
            view.asked = asked;
        });
    }

    fn unheard(&self, why: &str) {
        let known = self.view.read().described.is_some();
        self.set(if known { Health::Lost(why.to_owned()) } else { Health::Starting }, |_| {});
    }

    /// Changes the state, and says so once a change.
    fn set(&self, health: Health, change: impl FnOnce(&mut View)) {
        let mut view = self.view.write();
        change(&mut view);
        let changed = std::mem::discriminant(&view.health) != std::mem::discriminant(&health)
            || (matches!(health, Health::Refused(_)) && view.health != health);
        view.health = health.clone();
        drop(view);
        if changed {
            let (worker, endpoint) = (self.name(), self.endpoint.as_str());
            match health {
                Health::Refused(why) => tracing::error!(worker, endpoint, why, "a worker is refused"),
                Health::Lost(why) => tracing::warn!(worker, endpoint, why, "a worker is lost"),
                Health::Ready | Health::Starting => {
                    tracing::info!(worker, endpoint, state = health.name(), "a worker changed its state");
                }
            }
        }
    }
}
