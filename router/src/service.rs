//! The router as a process's service: start, accept, drain.
//!
//! # Cancellation
//! `shutdown` begins the drain: no connection is accepted any more, every open one ends after its answer
//! under way. After the grace period what still runs is ended by an error event (or a 503), and after
//! [`END_GRACE`] more the connections that are still open, because nobody reads from them, are dropped.

use std::{
    future::{IntoFuture, pending},
    hash::{BuildHasher, RandomState},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use kelvin_kvstore::page::{Page, guarded};
use parking_lot::Mutex;
use rand::{SeedableRng, rngs::SmallRng};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::Service;

use crate::{
    admission::{Admission, AdmissionLimits},
    backend::{self, Forwarder, Moving, Patience, Roster, Sessions, Source},
    config::KeyKind,
    config::{Error, Listening, RouterConfig},
    directory::Directory,
    feeds::{self, Feed, Stores},
    fleet::Fleet,
    metrics::Metrics,
    openai::{App, Limits, Start},
    page::{RouterPage, StoreAt},
    prefix::Prefixes,
    scheduler::{Scheduler, Timeouts},
    text::{ChatTemplate, ModelSource, Vocabulary},
};

/// Between two looks at what the directory believes for too long.
const EXPIRE_EVERY: Duration = Duration::from_secs(1);
/// Time for a client to read its last event.
const END_GRACE: Duration = Duration::from_secs(2);
/// A client of HTTP/2 that does not answer a ping within this time, sent as often, is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Pause after a failed accept, which is a lack of file descriptors as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown`, then drains. `ready` is called once, when connections are accepted; workers
/// and store need not be there yet.
///
/// # Errors
/// When it cannot start: see [`Error`]. Once it serves, it ends by `shutdown` alone.
pub async fn serve(
    config: RouterConfig,
    ready: impl FnOnce(Listening) + Send,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    for listen in [Some(config.listen), config.admin_listen].into_iter().flatten() {
        if !listen.ip().is_loopback() {
            return Err(Error::NotLoopback(listen));
        }
    }
    check(&config)?;
    let vocabulary = load(&config).await?;
    let fleet = Arc::new(Fleet::new(&config.workers, vocabulary.len())?);
    let (listener, http) = bind(config.listen).await?;
    let (admin_listener, admin) = match config.admin_listen {
        None => (None, None),
        Some(listen) => bind(listen).await.map(|(listener, at)| (Some(listener), Some(at)))?,
    };

    let background = TaskTracker::new();
    // The fleet is watched and the store held until the last request is done.
    let stop = CancellationToken::new();
    let ending = CancellationToken::new();
    let gone = CancellationToken::new();
    let metrics = Arc::new(Metrics::new());
    let prefixes = Arc::new(Prefixes::new(
        config.store.clone(),
        config.token.clone(),
        config.store_timeout,
        config.directory_bytes,
        metrics.clone(),
    ));
    let forwarder = backends(&config, &metrics, &background, &ending, &stop);
    let scheduler = Arc::new(Scheduler {
        fleet: fleet.clone(),
        prefixes: prefixes.clone(),
        metrics: metrics.clone(),
        timeouts: Timeouts {
            reserve: config.reserve_timeout,
            block: config.block_timeout,
            first_token: config.first_token_timeout,
            token: config.token_timeout,
        },
        policy: config.prefill,
        migrations_max: config.migrations_max,
        migration_wait: config.migration_wait,
        sessions: Mutex::default(),
        rng: Mutex::new(SmallRng::seed_from_u64(entropy())),
        ending: ending.clone(),
    });
    background.spawn({
        let (fleet, stop) = (fleet.clone(), stop.clone());
        async move { fleet.watch(config.poll_interval, stop).await }
    });
    background.spawn({
        let (fleet, stop) = (fleet.clone(), stop.clone());
        async move { prefixes.connect(fleet, stop).await }
    });

    let limits = Limits {
        body_bytes_max: config.body_bytes_max,
        read_timeout: config.read_timeout,
        client_timeout: config.client_timeout,
        requests_max: config.requests_max,
        tokens_max_default: config.tokens_max_default,
        keys: if config.model.is_some() { config.keys } else { KeyKind::Text },
    };
    let roster = forwarder.as_ref().map(|forwarder| forwarder.roster.clone());
    let gates = gates(&config, &fleet, roster.clone(), &scheduler.metrics);
    background.spawn({
        let (gates, every, stop) = (gates.clone(), config.poll_interval, stop.clone());
        // Workers and backends come without anybody asking for a place.
        async move {
            while stop.run_until_cancelled(sleep(every)).await.is_some() {
                roster.iter().for_each(|roster| roster.table().count_places());
                gates.iter().for_each(Admission::look);
            }
        }
    });
    let template = template(&vocabulary);
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let start = Start { seed: entropy(), now_s };
    let app = Arc::new(App::new(scheduler, forwarder, vocabulary, template, limits, gates, start));
    if let Some(listener) = admin_listener {
        background.spawn(administer(listener, page(&config, app.clone()), app.clone(), stop.clone()));
    }
    let connections = TaskTracker::new();
    ready(Listening { http, admin });
    accept(&config, listener, app.router(), &connections, &metrics, &shutdown, &gone).await;

    connections.close();
    if timeout(config.drain_grace, connections.wait()).await.is_err() {
        tracing::warn!(connections = connections.len(), "the grace period is over, requests are ended");
        ending.cancel();
        // Who does not read its last event by then is cut off.
        let _ = timeout(END_GRACE, connections.wait()).await;
        gone.cancel();
        connections.wait().await;
    }
    stop.cancel();
    background.close();
    background.wait().await;
    Ok(())
}

async fn bind(listen: SocketAddr) -> Result<(TcpListener, SocketAddr), Error> {
    let failed = |source| Error::Listen { listen, source };
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let at = listener.local_addr().map_err(failed)?;
    Ok((listener, at))
}

/// The built-in page over this router and the store that it asks.
fn page(config: &RouterConfig, app: Arc<App>) -> Page {
    let at = |endpoint: &String| StoreAt { endpoint: endpoint.clone(), token: config.token.clone() };
    Page::new(Arc::new(RouterPage::new(app, config.store.as_ref().map(at), config.store_page.clone())))
}

/// Serves the admin listener until `stop`.
async fn administer(listener: TcpListener, page: Page, app: Arc<App>, stop: CancellationToken) {
    let routes = guarded(app.admin().merge(page.routes()));
    let served = axum::serve(listener, routes).with_graceful_shutdown(stop.clone().cancelled_owned());
    let (served, ()) = tokio::join!(served.into_future(), page.watch(stop));
    if let Err(error) = served {
        tracing::warn!(%error, "the admin listener ended");
    }
}

/// Whether somebody could ever answer.
fn check(config: &RouterConfig) -> Result<(), Error> {
    if config.workers.is_empty() && !has_backends(config) {
        return Err(Error::NoWorkers);
    }
    if config.model.is_none() && !config.workers.is_empty() {
        return Err(Error::NoModel);
    }
    for spec in &config.backends {
        let checked = spec.clone().checked();
        checked.map_err(|source| Error::Backend { url: spec.url.clone(), source })?;
    }
    if let Some(path) = &config.backends_file {
        let failed = |message| Error::BackendsFile { path: path.clone(), message };
        backend::discover::file::read(path).map_err(failed)?;
    }
    Ok(())
}

/// Whether there are backends, or a place where they may be found.
fn has_backends(config: &RouterConfig) -> bool {
    !config.backends.is_empty() || config.backends_file.is_some() || config.backends_redis.is_some()
}

/// The gates in front of the workers and in front of other engines.
fn gates(
    config: &RouterConfig,
    fleet: &Arc<Fleet>,
    roster: Option<Arc<Roster>>,
    metrics: &Arc<Metrics>,
) -> [Admission; 2] {
    let limits = AdmissionLimits {
        requests_max: config.requests_max,
        queue_max: config.queue_max,
        queue_timeout: config.queue_timeout,
        long_tokens: config.long_tokens,
        long_max: config.long_max,
    };
    let (fleet, per_slot) = (fleet.clone(), config.requests_per_slot as usize);
    // As long as there never was a worker, requests go on, to hear so; once those that there were are lost, the others
    // wait for them to come back.
    let known = AtomicUsize::new(usize::MAX);
    let native = move || match fleet.decode_slots() {
        _ if per_slot == 0 => usize::MAX,
        None => known.load(Ordering::Relaxed),
        Some(slots) => {
            let places = slots.saturating_mul(per_slot);
            known.store(places, Ordering::Relaxed);
            places
        }
    };
    let passed = move || match roster.as_ref().map_or(0, |roster| roster.table().places()) {
        0 => usize::MAX,
        places => places,
    };
    [Admission::new(limits, native, metrics.clone()), Admission::new(limits, passed, metrics.clone())]
}

/// The way to other engines, with everything that looks after them in the background.
fn backends(
    config: &RouterConfig,
    metrics: &Arc<Metrics>,
    background: &TaskTracker,
    ending: &CancellationToken,
    stop: &CancellationToken,
) -> Option<Arc<Forwarder>> {
    if !has_backends(config) {
        return None;
    }
    let (roster, mut joined) = Roster::new();
    let roster = Arc::new(roster);
    let client = backend::client();
    let mut secret = [0; 16];
    secret.chunks_exact_mut(8).for_each(|part| part.copy_from_slice(&entropy().to_le_bytes()));
    let directory = Arc::new(Directory::new(&secret, config.directory_bytes));
    let started = Instant::now();
    background.spawn({
        let (directory, stop) = (directory.clone(), stop.clone());
        async move {
            while stop.run_until_cancelled(sleep(EXPIRE_EVERY)).await.is_some() {
                directory.expire(started.elapsed());
            }
        }
    });
    background.spawn({
        let (roster, client, stop) = (roster.clone(), client.clone(), stop.clone());
        let (every, tracker, directory) = (config.probe_interval, background.clone(), directory.clone());
        let metrics = metrics.clone();
        async move {
            while let Some(Some((backend, alive))) = stop.run_until_cancelled(joined.recv()).await {
                let looks = backend::look_after(
                    backend.clone(),
                    client.clone(),
                    roster.clone(),
                    directory.clone(),
                    every,
                    alive.clone(),
                    stop.clone(),
                );
                tracker.spawn(looks);
                let feed = Feed { backend, directory: directory.clone(), metrics: metrics.clone() };
                let (alive, stop) = (alive, stop.clone());
                tracker.spawn(async move {
                    let _ = stop.run_until_cancelled(feeds::follow(feed, alive)).await;
                });
            }
            roster.close();
        }
    });
    let stores = Arc::new(Stores::new(config.token.clone(), config.directory_bytes, metrics.clone()));
    background.spawn(stores.clone().follow(roster.clone(), background.clone(), stop.clone()));
    roster.name(Source::Flags, config.backends.clone());
    if let Some(path) = config.backends_file.clone() {
        let (roster, metrics) = (roster.clone(), metrics.clone());
        background.spawn(backend::discover::file::follow(path, roster, metrics, stop.clone()));
    }
    if let Some(redis) = config.backends_redis.clone() {
        let (roster, metrics) = (roster.clone(), metrics.clone());
        background.spawn(backend::discover::redis::follow(redis, roster, metrics, stop.clone()));
    }
    Some(Arc::new(Forwarder {
        roster,
        directory,
        stores,
        started,
        client,
        metrics: metrics.clone(),
        patience: Patience {
            first_token: config.first_token_timeout,
            token: config.token_timeout,
            client: config.client_timeout,
        },
        rng: Mutex::new(SmallRng::seed_from_u64(entropy())),
        sessions: Sessions::default(),
        hedge_after: config.hedge_after,
        hedges: AtomicUsize::new(0),
        policy: config.prefill,
        moving: Moving {
            moves_max: config.migrations_max,
            wait: config.migration_wait,
            keeping: Arc::default(),
        },
        ending: ending.clone(),
    }))
}

async fn load(config: &RouterConfig) -> Result<Arc<Vocabulary>, Error> {
    // Without workers nobody asks it anything.
    let model = config.model.clone().unwrap_or(ModelSource::Toy);
    let source = model.clone();
    let loaded = tokio::task::spawn_blocking(move || Vocabulary::load(&source)).await;
    let loaded = loaded.map_err(|source| Error::VocabularyLost { model, source })?;
    Ok(Arc::new(loaded?))
}

/// The chat template, if there is one and it can be used: text completions work without.
fn template(vocabulary: &Vocabulary) -> Option<ChatTemplate> {
    match vocabulary.chat_template()? {
        Ok(template) => Some(template),
        Err(error) => {
            tracing::error!(%error, "the model's chat template is broken, chat is refused");
            None
        }
    }
}

/// The routes, as one connection has them.
#[derive(Clone)]
struct Routes {
    router: axum::Router,
    /// Cancelled by the connection's first request.
    heard: CancellationToken,
}

impl<R> Service<R> for Routes
where
    axum::Router: Service<R>,
{
    type Response = <axum::Router as Service<R>>::Response;
    type Error = <axum::Router as Service<R>>::Error;
    type Future = <axum::Router as Service<R>>::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.router.poll_ready(context)
    }

    fn call(&mut self, request: R) -> Self::Future {
        self.heard.cancel();
        self.router.call(request)
    }
}

async fn accept(
    config: &RouterConfig,
    listener: TcpListener,
    router: axum::Router,
    connections: &TaskTracker,
    metrics: &Arc<Metrics>,
    shutdown: &CancellationToken,
    gone: &CancellationToken,
) {
    let places = Arc::new(Semaphore::new(config.connections_max));
    loop {
        let accepted = async {
            // The semaphore is never closed.
            let place = places.clone().acquire_owned().await.ok();
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            accepted = accepted => accepted,
            () = shutdown.cancelled() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accept a connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let patience = ConnectionPatience { head: config.read_timeout, client: config.client_timeout };
        let connection = connection(stream, router.clone(), patience, metrics.clone(), shutdown.clone());
        let gone = gone.clone();
        connections.spawn(async move {
            tokio::select! {
                () = connection => {}
                () = gone.cancelled() => {}
            }
            drop(place);
        });
    }
}

/// How long a connection is waited for.
#[derive(Clone, Copy)]
struct ConnectionPatience {
    /// For a request's head.
    head: Duration,
    /// For room to write to: who reads nothing for so long is gone, and what runs for it is cancelled.
    client: Duration,
}

/// Serves one connection to its end; after `shutdown` to the end of the answer under way.
async fn connection(
    stream: TcpStream,
    router: axum::Router,
    patience: ConnectionPatience,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
) {
    // Tokens are small and must not wait for each other.
    let _ = stream.set_nodelay(true);
    // A body is asked for more only when there is room, so nothing above this notices a client that does not read.
    let client_ms = u32::try_from(patience.client.as_millis()).unwrap_or(u32::MAX);
    if let Err(error) = rustix::net::sockopt::set_tcp_user_timeout(&stream, client_ms) {
        tracing::debug!(%error, "limit the time of a client that does not read");
    }
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(patience.head);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(KEEP_ALIVE).keep_alive_timeout(KEEP_ALIVE);
    let heard = CancellationToken::new();
    let service = TowerToHyperService::new(Routes { router, heard: heard.clone() });
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        // The builder reads the protocol's version without a limit of time.
        () = silence(&heard, patience.head) => {
            metrics.backend.connection("silent");
            tracing::debug!("a connection brought no request");
            return;
        }
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    match ended {
        Ok(()) => metrics.backend.connection("done"),
        Err(error) => {
            metrics.backend.connection(how(&*error));
            tracing::debug!(error, "a connection broke");
        }
    }
}

/// What a connection ended by, in metrics.
fn how(error: &(dyn std::error::Error + Send + Sync + 'static)) -> &'static str {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            if error.is_parse_too_large() {
                return "head_too_large";
            }
            if error.is_parse() {
                return "no_request";
            }
            if error.is_timeout() {
                return "head_timeout";
            }
        }
        if let Some(error) = error.downcast_ref::<std::io::Error>()
            && error.kind() == std::io::ErrorKind::TimedOut
        {
            return "client_stalled";
        }
        cause = error.source();
    }
    "broken"
}

/// Ends when nothing is heard within `patience`; never if something is.
async fn silence(heard: &CancellationToken, patience: Duration) {
    if timeout(patience, heard.cancelled()).await.is_ok() {
        pending::<()>().await;
    }
}

/// 64 random bits, from the system by way of the standard library's own seeds.
fn entropy() -> u64 {
    RandomState::new().hash_one(0u8)
}
