//! A worker that does what it is told to.
//!
//! It lives in a runtime of its own, so that killing it closes its sockets at once, as the death of a
//! process does.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
};

use futures::{Stream, StreamExt, stream};
use kelvin_proto::{
    Reason, Refusal,
    kv::v1::Fingerprint,
    worker::v1::{
        DescribeRequest, DescribeResponse, FinishReason, GenerateRequest, GenerateResponse, GeneratedToken,
        Load, PrefillRequest, PrefillResponse, Role, TokenLogprob, Usage,
        worker_service_server::{WorkerService, WorkerServiceServer},
    },
};
use parking_lot::Mutex;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, transport::Server};

/// In place of a token: a message without one.
pub(crate) const NOTHING: u32 = u32::MAX;

/// What a call does.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    /// Sends these tokens one by one, then the last message.
    Say { tokens: Vec<u32>, imported: u64 },
    /// Sends these tokens and then nothing, until it is cancelled.
    SayAndHang(Vec<u32>),
    /// Sends what the text says once it is told to.
    SayOnce(CancellationToken, &'static str),
    /// Dies before it says anything, with all its connections.
    Die,
    /// Sends these tokens and ends the stream without a last message.
    SayAndEnd(Vec<u32>),
    /// Sends these tokens and then an error.
    SayAndFail(Vec<u32>, Reason),
    /// Refuses the call.
    Refuse(Reason),
}

impl Act {
    pub(crate) fn say(text: &str) -> Self {
        Self::Say { tokens: bytes(text), imported: 0 }
    }
}

/// A text's toy tokens.
fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

/// What the worker says it is.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) described: DescribeResponse,
    /// Where it listens; port 0 takes a free one.
    pub(crate) listen: SocketAddr,
}

impl Setup {
    fn new(role: Role, name: &str) -> Self {
        static INCARNATION: AtomicU64 = AtomicU64::new(1);
        Self {
            described: DescribeResponse {
                role: role.into(),
                model: "toy".into(),
                fingerprint: Some(fingerprint()),
                block_tokens: 16,
                block_bytes: 1024,
                context_tokens_max: 512,
                vocab_tokens: 258,
                incarnation: INCARNATION.fetch_add(1, Ordering::Relaxed),
                name: name.into(),
                load: Some(Load {
                    slots: 8,
                    prefill_tokens_per_second: 150.0,
                    import_block_us: 80.0,
                    decode_step_us: 12_000.0,
                    ..Load::default()
                }),
                chunk_tokens: 128,
            },
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        }
    }

    pub(crate) fn decode(name: &str) -> Self {
        Self::new(Role::Decode, name)
    }

    pub(crate) fn prefill(name: &str) -> Self {
        Self::new(Role::Prefill, name)
    }
}

pub(crate) fn fingerprint() -> Fingerprint {
    Fingerprint {
        model_digest: "00ff".into(),
        engine: "toy".into(),
        engine_build: "1".into(),
        layout: "flat".into(),
        dtype: "f16".into(),
        attributes: Default::default(),
    }
}

#[derive(Default)]
struct Seen {
    generates: Vec<GenerateRequest>,
    prefills: Vec<PrefillRequest>,
    cancelled: usize,
}

pub(crate) struct TestWorker {
    listen: SocketAddr,
    script: Arc<Script>,
    kill: mpsc::Sender<()>,
}

struct Script {
    described: Mutex<DescribeResponse>,
    generates: Mutex<VecDeque<Act>>,
    prefills: Mutex<VecDeque<Act>>,
    seen: Mutex<Seen>,
}

impl TestWorker {
    pub(crate) fn start(setup: Setup) -> Self {
        let script = Arc::new(Script {
            described: Mutex::new(setup.described),
            generates: Mutex::default(),
            prefills: Mutex::default(),
            seen: Mutex::default(),
        });
        let (kill, killed) = mpsc::channel();
        let (send, listening) = mpsc::channel();
        let (served, suicide) = (script.clone(), kill.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
            let runtime = runtime.expect("a runtime");
            runtime.spawn(async move {
                let listener = tokio::net::TcpListener::bind(setup.listen).await.expect("the port is free");
                send.send(listener.local_addr().expect("an address")).expect("the test waits");
                let service = WorkerServiceServer::new(Service { script: served, suicide });
                let serving = Server::builder().add_service(service);
                serving.serve_with_incoming(TcpListenerStream::new(listener)).await.expect("it serves");
            });
            // Ends at a kill, or when the test dropped its end.
            let _ = killed.recv();
            runtime.shutdown_background();
        });
        let listen = listening.recv().expect("it listens");
        Self { listen, script, kill }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.listen)
    }

    pub(crate) fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// What the next Generate does; the last one stays.
    pub(crate) fn on_generate(&self, act: Act) -> &Self {
        self.script.generates.lock().push_back(act);
        self
    }

    pub(crate) fn on_prefill(&self, act: Act) -> &Self {
        self.script.prefills.lock().push_back(act);
        self
    }

    pub(crate) fn describe(&self, change: impl FnOnce(&mut DescribeResponse)) {
        change(&mut self.script.described.lock());
    }

    pub(crate) fn generates(&self) -> Vec<GenerateRequest> {
        self.script.seen.lock().generates.clone()
    }

    pub(crate) fn prefills(&self) -> Vec<PrefillRequest> {
        self.script.seen.lock().prefills.clone()
    }

    /// Streams that ended before the worker was done with them.
    pub(crate) fn cancelled(&self) -> usize {
        self.script.seen.lock().cancelled
    }

    /// Closes every socket at once.
    pub(crate) fn kill(&self) {
        let _ = self.kill.send(());
    }
}

struct Service {
    script: Arc<Script>,
    suicide: mpsc::Sender<()>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl WorkerService for Service {
    type PrefillStream = Answers<PrefillResponse>;
    type GenerateStream = Answers<GenerateResponse>;

    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        Ok(Response::new(self.script.described.lock().clone()))
    }

    async fn prefill(
        &self,
        request: Request<PrefillRequest>,
    ) -> Result<Response<Self::PrefillStream>, Status> {
        self.script.seen.lock().prefills.push(request.into_inner());
        let act = next(&self.script.prefills).unwrap_or(Act::say("p"));
        let progress = |_: u32| PrefillResponse { reserved_blocks: 1, ..Default::default() };
        let last = PrefillResponse { done: true, ..Default::default() };
        self.perform(act, progress, move |_| last)
    }

    async fn generate(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let request = request.into_inner();
        let act = next(&self.script.generates).unwrap_or(Act::say("hello"));
        let (prompt, alternatives, max) = (request.tokens.len() as u64, request.logprobs, request.tokens_max);
        self.script.seen.lock().generates.push(request);
        let (act, cut) = match act {
            Act::Say { mut tokens, imported } => {
                let cut = tokens.len() > max as usize;
                tokens.truncate(max as usize);
                (Act::Say { tokens, imported }, cut)
            }
            other => (other, false),
        };
        let step = move |token| {
            if token == NOTHING {
                return GenerateResponse::default();
            }
            let top =
                (0..alternatives.unwrap_or(0)).map(|rank| TokenLogprob { token: 97 + rank, logprob: -1.0 });
            let logprob = alternatives.map(|_| -0.25);
            let token = GeneratedToken { token, logprob, top: top.collect() };
            GenerateResponse { tokens: vec![token], ..Default::default() }
        };
        self.perform(act, step, move |imported| GenerateResponse {
            finish: if cut { FinishReason::Length } else { FinishReason::Stop }.into(),
            usage: Some(Usage { prompt_tokens: prompt, imported_tokens: imported, ..Default::default() }),
            ..Default::default()
        })
    }
}

/// The next act of a queue, whose last one stays.
fn next(queue: &Mutex<VecDeque<Act>>) -> Option<Act> {
    let mut queue = queue.lock();
    if queue.len() > 1 { queue.pop_front() } else { queue.front().cloned() }
}

/// Counts a stream that is dropped before its script is over.
struct Watch {
    script: Arc<Script>,
    over: Arc<AtomicBool>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.over.load(Ordering::Relaxed) {
            self.script.seen.lock().cancelled += 1;
        }
    }
}

impl Service {
    fn perform<T: Send + 'static>(
        &self,
        act: Act,
        step: impl Fn(u32) -> T + Send + 'static,
        last: impl Fn(u64) -> T + Send + 'static,
    ) -> Result<Response<Answers<T>>, Status> {
        let fail = |reason| Status::from(Refusal::new(reason, "as scripted"));
        let told = match &act {
            Act::SayOnce(told, _) => Some(told.clone()),
            _ => None,
        };
        let (tokens, then) = match act {
            Act::Refuse(reason) => return Err(fail(reason)),
            Act::Say { tokens, imported } => (tokens, Then::Last(imported)),
            Act::SayAndHang(tokens) => (tokens, Then::Hang),
            Act::SayOnce(_, text) => (bytes(text), Then::Last(0)),
            Act::Die => (vec![], Then::Die(self.suicide.clone())),
            Act::SayAndEnd(tokens) => (tokens, Then::End),
            Act::SayAndFail(tokens, reason) => (tokens, Then::Fail(fail(reason))),
        };
        let over = Arc::new(AtomicBool::new(false));
        let watch = Watch { script: self.script.clone(), over: over.clone() };
        let steps = tokens.into_iter().map(move |token| Ok(step(token)));
        let steps = stream::iter(steps.collect::<Vec<_>>());
        let end = stream::once(async move {
            over.store(!matches!(then, Then::Hang | Then::Die(_)), Ordering::Relaxed);
            match then {
                Then::Last(imported) => Some(Ok(last(imported))),
                Then::End => None,
                Then::Fail(status) => Some(Err(status)),
                Then::Hang => std::future::pending().await,
                Then::Die(suicide) => {
                    let _ = suicide.send(());
                    std::future::pending().await
                }
            }
        });
        let gate = stream::once(async move {
            if let Some(told) = told {
                told.cancelled().await;
            }
            None
        });
        let all = gate
            .filter_map(|none| async move { none })
            .chain(steps)
            .chain(end.filter_map(|end| async { end }));
        let watched = stream::unfold((Box::pin(all), watch), |(mut all, watch)| async {
            let item = all.next().await;
            item.map(|item| (item, (all, watch)))
        });
        Ok(Response::new(Box::pin(watched)))
    }
}

enum Then {
    Last(u64),
    End,
    Fail(Status),
    Hang,
    Die(mpsc::Sender<()>),
}
