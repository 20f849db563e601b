//! An S3 server in memory, on loopback, with a model of the way to it and with faults on demand.
//!
//! # Overview
//! `s3s` speaks the protocol: signatures, XML, ranges. The server runs on a thread of its own, so that its
//! processor time can be told apart from its client's ([`S3Sim::cpu_time`]).
//!
//! # Model of the way
//! A request waits [`S3SimOptions::latency`] before it is answered. Bodies leave at
//! [`S3SimOptions::stream_bytes_s`] a request, and at [`S3SimOptions::bandwidth_bytes_s`] all together, in
//! each direction. Time is real: a client that is slower than the model is seen to be.
//!
//! # Fault model
//! [`S3Faults`] says which share of requests goes wrong, and how. Which ones follows from the seed and the
//! order in which they come.

mod bucket;
mod link;

use std::{
    fmt, io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use parking_lot::Mutex;
use s3s::{
    S3Result,
    auth::{S3Auth, SecretKey},
    s3_error,
    service::{S3Service, S3ServiceBuilder},
};
use tokio::{net::TcpListener, sync::oneshot, task::JoinSet};

use bucket::Bucket;
use link::Link;

/// How the server is, as long as it lives.
#[derive(Debug, Clone)]
pub struct S3SimOptions {
    /// The one bucket.
    pub bucket: String,
    /// The one key, and its secret.
    pub credentials: crate::Credentials,
    /// From a request to the first byte of its answer.
    pub latency: Duration,
    /// Of all bodies together, in each direction; `None` is as fast as the machine.
    pub bandwidth_bytes_s: Option<u64>,
    /// Of one body.
    pub stream_bytes_s: Option<u64>,
    /// What it keeps at most.
    pub capacity_bytes: u64,
    /// Where faults strike.
    pub seed: u64,
}

impl Default for S3SimOptions {
    fn default() -> Self {
        Self {
            bucket: "kelvin".into(),
            credentials: crate::Credentials { key_id: "key".into(), secret: "secret".into(), token: None },
            latency: Duration::ZERO,
            bandwidth_bytes_s: None,
            stream_bytes_s: None,
            capacity_bytes: 4 << 30,
            seed: 0,
        }
    }
}

/// What goes wrong. Shares are of 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct S3Faults {
    /// Share of requests that are answered with 503 SlowDown.
    pub unavailable: f64,
    /// Share of requests whose answer takes `slow_by` longer.
    pub slow: f64,
    /// See `slow`.
    pub slow_by: Duration,
    /// Share of GETs that end in mid-body.
    pub cut: f64,
    /// Share of GETs with one wrong bit.
    pub wrong: f64,
    /// Share of PUTs that are done, but answered with 503.
    pub lost_answer: f64,
    /// Whether every key is refused.
    pub refuse: bool,
    /// Whether the bucket is gone.
    pub gone: bool,
}

/// Requests that came, faulty ones included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct S3Requests {
    /// GETs of objects.
    pub gets: u64,
    /// PUTs.
    pub puts: u64,
    /// LISTs.
    pub lists: u64,
    /// DELETEs.
    pub deletes: u64,
    /// Bytes of all GET bodies that were begun.
    pub bytes_out: u64,
    /// Bytes of all PUT bodies.
    pub bytes_in: u64,
    /// Most GETs that were answered at one time.
    pub gets_at_once_max: u64,
}

/// What the server's parts share.
struct Model {
    options: S3SimOptions,
    faults: Mutex<S3Faults>,
    requests: Mutex<S3Requests>,
    dice: AtomicU64,
    guests: AtomicU64,
    out: Link,
    into: Link,
}

impl Model {
    /// Whether something strikes this time.
    fn strikes(&self, share: f64) -> bool {
        share > 0.0 && (self.throw() >> 11) as f64 / ((1u64 << 53) as f64) < share
    }

    /// SplitMix64.
    fn throw(&self) -> u64 {
        const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.dice.fetch_add(GAMMA, Ordering::Relaxed).wrapping_add(GAMMA);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The way there, and what may go wrong on it with any request.
    async fn arrive(&self) -> S3Result<S3Faults> {
        let faults = *self.faults.lock();
        let slow = if self.strikes(faults.slow) { faults.slow_by } else { Duration::ZERO };
        let wait = self.options.latency + slow;
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        if faults.gone {
            return Err(s3_error!(NoSuchBucket));
        }
        if self.strikes(faults.unavailable) {
            return Err(s3_error!(SlowDown));
        }
        Ok(faults)
    }
}

/// A GET that is being answered.
struct Guest(Arc<Model>);

impl Guest {
    fn enter(model: &Arc<Model>) -> Self {
        let now = model.guests.fetch_add(1, Ordering::Relaxed) + 1;
        let mut requests = model.requests.lock();
        requests.gets += 1;
        requests.gets_at_once_max = requests.gets_at_once_max.max(now);
        Self(model.clone())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.0.guests.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Door(Arc<Model>);

#[async_trait::async_trait]
impl S3Auth for Door {
    async fn get_secret_key(&self, key: &str) -> S3Result<SecretKey> {
        let known = &self.0.options.credentials;
        if self.0.faults.lock().refuse || key != known.key_id {
            return Err(s3_error!(InvalidAccessKeyId));
        }
        Ok(SecretKey::from(known.secret.clone()))
    }
}

/// A running server; dropping it ends it.
pub struct S3Sim {
    address: SocketAddr,
    model: Arc<Model>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    /// Where the kernel counts the thread's processor time.
    schedstat: String,
}

impl S3Sim {
    /// Starts a server on a free port.
    pub fn start(options: S3SimOptions) -> io::Result<Self> {
        let link = || Link::new(options.bandwidth_bytes_s);
        let model = Arc::new(Model {
            faults: Mutex::default(),
            requests: Mutex::default(),
            dice: AtomicU64::new(options.seed),
            guests: AtomicU64::new(0),
            out: link(),
            into: link(),
            options,
        });
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let mut builder = S3ServiceBuilder::new(Bucket::new(model.clone()));
        builder.set_auth(Door(model.clone()));
        let service = builder.build();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name("s3sim".into()).spawn(move || {
            let _ = tell.send(std::fs::read_link("/proc/thread-self"));
            runtime.block_on(serve(listener, service, stopped));
        })?;
        let task = told.recv().map_err(io::Error::other)??;
        let schedstat = format!("/proc/{}/schedstat", task.display());
        Ok(Self { address, model, stop: Some(stop), thread: Some(thread), schedstat })
    }

    /// Where it listens.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Options for a client of it.
    pub fn client(&self, prefix: &str) -> crate::ObjectOptions {
        let options = &self.model.options;
        crate::ObjectOptions {
            endpoint: Some(self.endpoint()),
            region: Some("us-east-1".into()),
            allow_http: true,
            credentials: Some(options.credentials.clone()),
            ..crate::ObjectOptions::new(format!("s3://{}/{prefix}", options.bucket))
        }
    }

    /// Sets what goes wrong from now on.
    pub fn faults(&self, faults: S3Faults) {
        *self.model.faults.lock() = faults;
    }

    /// Requests so far.
    pub fn requests(&self) -> S3Requests {
        *self.model.requests.lock()
    }

    /// Processor time that the server took so far; zero where the kernel does not count it.
    pub fn cpu_time(&self) -> Duration {
        let text = std::fs::read_to_string(&self.schedstat).unwrap_or_default();
        let nanoseconds = text.split_whitespace().next().and_then(|word| word.parse().ok());
        Duration::from_nanos(nanoseconds.unwrap_or(0))
    }
}

impl Drop for S3Sim {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // Err: it panicked, and said so.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for S3Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S3Sim({})", self.address)
    }
}

/// Answers until it is told to stop; connections end with it.
async fn serve(listener: std::net::TcpListener, service: S3Service, mut stop: oneshot::Receiver<()>) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the S3 simulator cannot listen"),
    };
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = &mut stop => return,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    // Or the end of every answer waits for the client's delayed acknowledgement.
                    let _ = stream.set_nodelay(true);
                    let service = service.clone();
                    connections.spawn(async move {
                        // Err: the client left, or a body was cut on purpose.
                        let _ = Builder::new(TokioExecutor::new())
                            .serve_connection(TokioIo::new(stream), service)
                            .await;
                    });
                }
                Err(error) => tracing::warn!(%error, "the S3 simulator cannot accept"),
            },
        }
    }
}
