//! The client library: what an engine, a worker or a router links.
//!
//! # Overview
//! [`Client`] is a connection to a store. [`Namespace`] is an open handshake on it, with the verbs of the API;
//! it renews its session and its leases in the background and opens the session again when the store was
//! restarted (calls fail with a retryable error meanwhile). [`ReadLease`] and [`WriteLease`] own a block's
//! bytes for a while and give them back when dropped.
//!
//! # Transports
//! On the store's host the memory file is mapped, blocks are read and filled in place, and calls go over the socket
//! that the file came from ([`Transport::Shm`]). Otherwise, or when mapping fails, bytes come and go through the store's data port
//! ([`Transport::Tcp`]), and where it has none or it is out of reach, inside gRPC ([`Transport::Grpc`]).
//!
//! # Cancellation
//! Every call may be dropped at any time. Leases that the store had granted by then end at their TTL.

mod calls;
mod error;
mod keeper;
mod lease;
mod namespace;
mod ranges;

use std::{sync::Arc, time::Duration};

use kelvin_proto::{
    NamespaceSpec,
    kv::v1::{self, kv_service_client::KvServiceClient},
    trace,
};
use tonic::{
    Streaming,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};

pub use error::{ChecksumMismatch, Error};
pub use lease::{PartLease, ReadLease, WriteLease};
pub use namespace::{Acquired, Keep, Leased, Match, Namespace, Reserved, Transport};
pub use ranges::{prefix, prefix_up_to};

use crate::transport::Verb;

const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// How to reach a store.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// `http://host:port`.
    pub endpoint: String,
    /// Who this is, for the store's logs.
    pub name: String,
    /// Bearer token, if the store wants one.
    pub token: Option<String>,
    /// Whether to map the store's memory when it is on this host.
    pub shared_memory: bool,
    /// Whether to use the store's data port, where memory cannot be mapped.
    pub data_port: bool,
    /// Where the data port is, if not where the store says: behind a proxy.
    pub data_address: Option<String>,
    /// Time for a connection.
    pub connect_timeout: Duration,
    /// Time for a call, on top of what it asks the store to wait.
    pub call_timeout: Duration,
    /// Time after which a lease of a client that hangs ends.
    pub lease_ttl: Duration,
}

impl ClientOptions {
    /// The usual settings.
    pub fn new(endpoint: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            endpoint: endpoint.into(),
            name: name.into(),
            token: None,
            shared_memory: true,
            data_port: true,
            data_address: None,
            connect_timeout: Duration::from_secs(2),
            call_timeout: Duration::from_secs(5),
            lease_ttl: Duration::from_secs(30),
        }
    }
}

/// A connection to a store. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Client(Arc<Connection>);

#[derive(Debug)]
struct Connection {
    options: ClientOptions,
    channel: Channel,
    authorization: Option<MetadataValue<tonic::metadata::Ascii>>,
}

impl Client {
    /// Connects; fails when nobody listens there.
    pub async fn connect(options: ClientOptions) -> Result<Self, Error> {
        let endpoint = Endpoint::from_shared(options.endpoint.clone())
            .map_err(|source| Error::Unreachable { endpoint: options.endpoint.clone(), source })?
            .connect_timeout(options.connect_timeout)
            .tcp_nodelay(true)
            .initial_stream_window_size(Some(16 << 20))
            .initial_connection_window_size(Some(32 << 20))
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true);
        let channel = endpoint
            .connect()
            .await
            .map_err(|source| Error::Unreachable { endpoint: options.endpoint.clone(), source })?;
        let authorization = match &options.token {
            None => None,
            Some(token) => {
                let value = MetadataValue::try_from(format!("Bearer {token}"));
                Some(
                    value
                        .map_err(|_| Error::Protocol("a token has printable ASCII characters only".into()))?,
                )
            }
        };
        Ok(Self(Arc::new(Connection { options, channel, authorization })))
    }

    /// The handshake for one model's blocks.
    pub async fn open(&self, spec: NamespaceSpec) -> Result<Namespace, Error> {
        Namespace::open(self.clone(), spec).await
    }

    /// What the store counts.
    pub async fn stats(&self) -> Result<v1::StatsResponse, Error> {
        self.call(v1::StatsRequest::default(), Duration::ZERO).await
    }

    /// The same without miss-ratio curves, for who asks often.
    pub async fn stats_without_curves(&self) -> Result<v1::StatsResponse, Error> {
        self.call(v1::StatsRequest { without_curves: true }, Duration::ZERO).await
    }

    /// Events of a namespace (ids are in [`Client::stats`]), from a snapshot on or from a cursor.
    pub async fn watch(
        &self,
        namespace_id: u64,
        cursor: u64,
        incarnation: u64,
    ) -> Result<Streaming<v1::WatchResponse>, Error> {
        self.watch_as(0, namespace_id, cursor, incarnation, false).await
    }

    /// The same, with snapshots that say what their hashes are made of.
    pub async fn watch_described(
        &self,
        namespace_id: u64,
        cursor: u64,
        incarnation: u64,
    ) -> Result<Streaming<v1::WatchResponse>, Error> {
        self.watch_as(0, namespace_id, cursor, incarnation, true).await
    }

    async fn watch_as(
        &self,
        session_id: u64,
        namespace_id: u64,
        cursor: u64,
        incarnation: u64,
        describe: bool,
    ) -> Result<Streaming<v1::WatchResponse>, Error> {
        let message = v1::WatchRequest { session_id, namespace_id, cursor, incarnation, describe };
        let mut request = tonic::Request::new(message);
        self.authorize(&mut request);
        Ok(self.service().watch(request).await?.into_inner())
    }

    /// A call over gRPC.
    async fn call<V: Verb>(&self, message: V, wait: Duration) -> Result<V::Answer, Error> {
        Ok(V::over_grpc(self.request(message, wait), &mut self.service()).await?.into_inner())
    }

    fn options(&self) -> &ClientOptions {
        &self.0.options
    }

    fn service(&self) -> KvServiceClient<Channel> {
        KvServiceClient::new(self.0.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// A request with the token and a deadline.
    fn request<T>(&self, message: T, wait: Duration) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.set_timeout(self.options().call_timeout + wait);
        self.authorize(&mut request);
        if let Some(context) = trace::current()
            && let Ok(value) = MetadataValue::try_from(context.to_string())
        {
            request.metadata_mut().insert(trace::TRACEPARENT, value);
        }
        request
    }

    fn authorize<T>(&self, request: &mut tonic::Request<T>) {
        if let Some(value) = &self.0.authorization {
            request.metadata_mut().insert("authorization", value.clone());
        }
    }
}
