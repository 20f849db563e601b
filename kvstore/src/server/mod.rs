//! The store as a process: gRPC service, shared-memory socket, admin page, reaper, graceful stop.

mod admin;
mod calls;
mod config;
mod convert;
mod inline;
mod metrics;
mod operator;
mod page;
mod ranges;
mod secret;
mod service;
mod stats;
mod traced;
mod watch;

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use kelvin_proto::kv::v1::kv_service_server::KvServiceServer;
use kelvin_tiering::MemoryError;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::{Server, server::TcpIncoming};

pub use crate::store::{
    NvmeSpace, ObjectSpace, Offload, PolicyKind, Quota, TenantOptions, TierOptions, tier_name, tier_of_name,
};
pub use config::ServerConfig;
pub use kelvin_tiering::Tier;
pub use metrics::metrics_catalogue;

use crate::{
    store::{Clock, Store, StoreOptions, SystemClock},
    transport,
};

/// Largest gRPC message either way.
pub(crate) const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Keys in one call.
pub(crate) const KEYS_MAX: usize = 8192;
/// Longest wait in one `Acquire`.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(60);
/// Longest time a stop takes to copy what only DRAM has to a colder tier.
const FLUSH_MAX: Duration = Duration::from_secs(60);
const REAP_EVERY: Duration = Duration::from_millis(100);
/// What a stream may have under way: large, since a window per round trip caps its rate.
const STREAM_WINDOW_BYTES: u32 = 16 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;
const FRAME_BYTES: u32 = 1 << 20;

/// Where a store listens.
#[derive(Debug, Clone)]
pub struct Listening {
    /// gRPC.
    pub grpc: SocketAddr,
    /// The page, metrics and health.
    pub admin: Option<SocketAddr>,
    /// Shared memory.
    pub socket: Option<PathBuf>,
    /// The data port.
    pub data: Option<SocketAddr>,
}

/// Why a store does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A setting makes no sense.
    #[error("{0}")]
    Config(String),
    /// No memory.
    #[error("take {bytes} bytes of DRAM for tenant `{tenant}`: {source}")]
    Memory {
        /// Whose.
        tenant: String,
        /// How much.
        bytes: u64,
        /// The cause.
        source: MemoryError,
    },
    /// An address cannot be listened on.
    #[error("listen on {address}: {source}")]
    Listen {
        /// Which.
        address: String,
        /// The cause.
        source: io::Error,
    },
    /// The server broke.
    #[error("serve: {0}")]
    Transport(#[from] tonic::transport::Error),
}

async fn bind(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| ServeError::Listen { address: address.to_string(), source })
}

fn local_address(listener: &TcpListener) -> Result<SocketAddr, ServeError> {
    listener.local_addr().map_err(|source| ServeError::Listen { address: "?".into(), source })
}

/// Runs a store until `shutdown`; `ready` is called once it listens.
pub async fn serve(
    config: ServerConfig,
    ready: impl FnOnce(Listening) + Send,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    config.check()?;
    let store = Arc::new(open_store(&config)?);
    let tiers =
        store.start_tiers(&config.tiers).await.map_err(|error| ServeError::Config(error.to_string()))?;

    let listener = bind(config.listen).await?;
    let admin = match config.admin_listen {
        None => None,
        Some(address) => Some(bind(address).await?),
    };
    let data = match config.data_listen {
        None => None,
        Some(address) => Some(bind(address).await?),
    };
    let socket = match &config.socket {
        None => None,
        Some(path) => Some(bind_socket(path)?),
    };
    let listening = Listening {
        grpc: local_address(&listener)?,
        admin: admin.as_ref().map(local_address).transpose()?,
        socket: config.socket.clone(),
        data: data.as_ref().map(local_address).transpose()?,
    };

    let tasks = TaskTracker::new();
    // Streams end at the stop; the socket and the admin page stay until those are done.
    let stop = CancellationToken::new();
    let calls = Arc::<page::Calls>::default();
    let service =
        Arc::new(service::Service::new(store.clone(), listening.clone(), shutdown.clone(), calls.clone()));
    if let Some(socket) = socket {
        tasks.spawn(transport::serve(socket, store.clone(), service.clone(), stop.clone()));
    }
    if let Some(data) = data {
        tasks.spawn(transport::serve_tcp(data, store.clone(), stop.clone()));
    }
    if let Some(admin) = admin {
        let has_tenant_token = config.tenants.iter().any(|tenant| tenant.token.is_some());
        let token = config.admin_token.as_deref();
        let data = config.tiers.data.as_deref();
        let source =
            page::StorePage::new(store.clone(), calls, token, has_tenant_token, data, shutdown.clone());
        let page = crate::page::Page::new(Arc::new(source));
        tasks.spawn(page.clone().watch(stop.clone()));
        tasks.spawn(admin::serve(admin, store.clone(), page.routes(), stop.clone()));
    }
    tasks.spawn(reap(store, stop.clone()));
    tasks.close();

    let kv = KvServiceServer::from_arc(service)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let (health_reporter, health) = tonic_health::server::health_reporter();
    health_reporter.set_serving::<KvServiceServer<service::Service>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(kelvin_proto::DESCRIPTORS)
        .build_v1()
        .map_err(|error| ServeError::Config(format!("reflection: {error}")))?;

    let server = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .max_concurrent_streams(4096)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .layer(traced::Traced)
        .add_service(health)
        .add_service(reflection)
        .add_service(kv)
        // Without nodelay a small answer waits for the peer's delayed acknowledgement, 40 ms.
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            shutdown.clone().cancelled_owned(),
        );
    tracing::info!(grpc = %listening.grpc, "store listens");
    ready(listening);

    let drained = async {
        shutdown.cancelled().await;
        tokio::time::sleep(config.drain).await;
    };
    let result = tokio::select! {
        result = server => result,
        () = drained => {
            tracing::warn!("calls were still open at the end of the drain");
            Ok(())
        }
    };
    stop.cancel();
    tasks.wait().await;
    if let Some(tiers) = tiers {
        tiers.stop(FLUSH_MAX).await;
    }
    Ok(result?)
}

fn open_store(config: &ServerConfig) -> Result<Store, ServeError> {
    let options = StoreOptions {
        tenants: config.tenants.clone(),
        huge_pages: config.huge_pages,
        secret: secret::settle(config.secret, config.tiers.data.as_deref()).map_err(ServeError::Config)?,
        incarnation: u64::from_le_bytes(crate::random::bytes()),
        session_ttl: config.session_ttl,
        lease_ttl_max: config.lease_ttl_max,
        tiers: config.tiers.clone(),
    };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    Store::new(options, clock).map_err(|source| {
        let largest =
            config.tenants.iter().max_by_key(|tenant| tenant.dram_bytes).expect("checked: not empty");
        ServeError::Memory { tenant: largest.name.clone(), bytes: largest.dram_bytes, source }
    })
}

fn bind_socket(path: &Path) -> Result<transport::SocketFile, ServeError> {
    transport::SocketFile::bind(path)
        .map_err(|error: transport::SocketError| ServeError::Config(error.to_string()))
}

async fn reap(store: Arc<Store>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(REAP_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => store.reap(),
        }
    }
}
