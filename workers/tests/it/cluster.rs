//! A store and workers in this process, and what a router would ask of them.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use kelvin_kvstore::{
    Client, ClientOptions,
    server::{self, ServerConfig},
};
use kelvin_proto::{
    Refusal,
    kv::v1::StatsResponse,
    refusal_of,
    worker::v1::{self, worker_service_client::WorkerServiceClient},
};
use kelvin_workers::{
    EngineOptions, Error, Listening, ModelSource, Role, ToyOptions, WorkerConfig, testing::Reference,
};
use tokio::{sync::oneshot, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::{Streaming, transport::Channel};

pub(crate) const BLOCK_TOKENS: usize = 16;

/// A running store.
pub(crate) struct Store {
    pub(crate) endpoint: String,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
    folder: tempfile::TempDir,
    dram_bytes: u64,
    shared_memory: bool,
}

impl Store {
    pub(crate) async fn start(dram_bytes: u64) -> Self {
        Self::start_with(dram_bytes, true).await
    }

    pub(crate) async fn start_with(dram_bytes: u64, shared_memory: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = shared_memory.then(|| folder.path().join("store.sock"));
        let (address, shutdown, task) = run_store(([127, 0, 0, 1], 0).into(), socket, dram_bytes).await;
        let endpoint = format!("http://{address}");
        Self { endpoint, shutdown, task, folder, dram_bytes, shared_memory }
    }

    /// Stops it, and returns what is needed to start it again at the same address.
    pub(crate) async fn stop(self) -> StoppedStore {
        self.shutdown.cancel();
        self.task.await.unwrap();
        let address = self.endpoint.trim_start_matches("http://").parse().unwrap();
        StoppedStore {
            address,
            folder: self.folder,
            dram_bytes: self.dram_bytes,
            shared_memory: self.shared_memory,
        }
    }

    pub(crate) async fn stats(&self) -> StatsResponse {
        let client = Client::connect(ClientOptions::new(self.endpoint.clone(), "test")).await.unwrap();
        client.stats().await.unwrap()
    }

    /// Waits until no reservation is left, and returns the figures of then.
    pub(crate) async fn settled(&self) -> StatsResponse {
        within("all leases return", async {
            loop {
                let stats = self.stats().await;
                if stats.write_leases == 0 && stats.read_leases == 0 {
                    return stats;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    }
}

pub(crate) struct StoppedStore {
    address: SocketAddr,
    folder: tempfile::TempDir,
    dram_bytes: u64,
    shared_memory: bool,
}

impl StoppedStore {
    pub(crate) async fn start(self) -> Store {
        let socket = self.shared_memory.then(|| self.folder.path().join("store.sock"));
        let (address, shutdown, task) = run_store(self.address, socket, self.dram_bytes).await;
        Store {
            endpoint: format!("http://{address}"),
            shutdown,
            task,
            folder: self.folder,
            dram_bytes: self.dram_bytes,
            shared_memory: self.shared_memory,
        }
    }
}

async fn run_store(
    listen: SocketAddr,
    socket: Option<PathBuf>,
    dram_bytes: u64,
) -> (SocketAddr, CancellationToken, JoinHandle<()>) {
    let config = ServerConfig { listen, socket, ..ServerConfig::new(dram_bytes) };
    let shutdown = CancellationToken::new();
    let (sender, ready) = oneshot::channel();
    let stop = shutdown.clone();
    let task = tokio::spawn(async move {
        let ready = |listening: server::Listening| sender.send(listening.grpc).expect("somebody waits");
        server::serve(config, ready, stop).await.unwrap();
    });
    (ready.await.unwrap(), shutdown, task)
}

/// A running worker.
pub(crate) struct Worker {
    pub(crate) client: WorkerServiceClient<Channel>,
    pub(crate) model: String,
    pub(crate) endpoint: String,
    pub(crate) shutdown: CancellationToken,
    pub(crate) task: JoinHandle<Result<(), Error>>,
}

pub(crate) fn toy() -> ModelSource {
    ModelSource::Toy(ToyOptions { token_bytes: 64, ..ToyOptions::default() })
}

/// A toy whose steps take long enough to be caught in the middle.
pub(crate) fn slow_toy(step: Duration, prompt_token: Duration) -> ModelSource {
    ModelSource::Toy(ToyOptions {
        token_bytes: 64,
        step_time: step,
        prompt_token_time: prompt_token,
        ..ToyOptions::default()
    })
}

pub(crate) fn config(role: Role, model: ModelSource, store: &str) -> WorkerConfig {
    let mut config = WorkerConfig::new(role, model);
    config.store = store.to_owned();
    config.chunk_tokens = 64;
    config.context_tokens = 512;
    config.grace = Duration::from_secs(5);
    config
}

pub(crate) fn engine_options() -> EngineOptions {
    EngineOptions {
        block_tokens: BLOCK_TOKENS as u32,
        chunk_tokens: 64,
        slots: 1,
        context_tokens: 512,
        cells: None,
        threads: 1,
    }
}

pub(crate) fn reference(model: &ModelSource) -> Reference {
    Reference::new(model, &engine_options()).unwrap()
}

impl Worker {
    pub(crate) async fn start(role: Role, model: ModelSource, store: &Store) -> Self {
        Self::start_with(config(role, model, &store.endpoint)).await
    }

    pub(crate) async fn start_with(config: WorkerConfig) -> Self {
        let shutdown = CancellationToken::new();
        let (sender, ready) = oneshot::channel();
        let stop = shutdown.clone();
        let task = tokio::spawn(async move {
            let ready = |listening: Listening| sender.send(listening.grpc).expect("somebody waits");
            kelvin_workers::serve(config, ready, stop).await
        });
        let endpoint = format!("http://{}", ready.await.expect("the worker started"));
        let mut client = WorkerServiceClient::connect(endpoint.clone()).await.unwrap();
        let model = client.describe(v1::DescribeRequest {}).await.unwrap().into_inner().model;
        Self { client, model, endpoint, shutdown, task }
    }

    /// Stops it and waits for its end.
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        drop(self.client);
        within("the worker stops", self.task).await.unwrap().unwrap();
    }

    pub(crate) async fn load(&self) -> v1::Load {
        let answer = self.client.clone().describe(v1::DescribeRequest {}).await.unwrap();
        answer.into_inner().load.unwrap()
    }

    /// Polls until the load is as wanted.
    pub(crate) async fn until_load(&self, what: &str, wanted: impl Fn(&v1::Load) -> bool) {
        within(what, async {
            while !wanted(&self.load().await) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    }

    pub(crate) async fn open_prefill(
        &self,
        tokens: &[u32],
    ) -> Result<Streaming<v1::PrefillResponse>, Refusal> {
        let request = v1::PrefillRequest {
            request_id: "test".into(),
            model: self.model.clone(),
            tokens: tokens.to_vec(),
            ..Default::default()
        };
        let answer = self.client.clone().prefill(request).await;
        answer.map(tonic::Response::into_inner).map_err(|status| refusal_of(&status))
    }

    /// Every message of a prefill.
    pub(crate) async fn prefill(&self, tokens: &[u32]) -> Vec<v1::PrefillResponse> {
        let mut stream = self.open_prefill(tokens).await.unwrap();
        let mut messages = Vec::new();
        while let Some(message) = within("a prefill message", stream.message()).await.unwrap() {
            messages.push(message);
        }
        assert!(messages.last().is_some_and(|last| last.done), "{messages:?}");
        messages
    }

    pub(crate) fn request(&self, tokens: &[u32], tokens_max: u32) -> v1::GenerateRequest {
        v1::GenerateRequest {
            request_id: "test".into(),
            model: self.model.clone(),
            tokens: tokens.to_vec(),
            tokens_max,
            wait_blocks: (tokens.len().saturating_sub(1) / BLOCK_TOKENS) as u32,
            wait_ms: 10_000,
            ..Default::default()
        }
    }

    pub(crate) async fn open_generate(
        &self,
        request: v1::GenerateRequest,
    ) -> Result<Streaming<v1::GenerateResponse>, Refusal> {
        let answer = self.client.clone().generate(request).await;
        answer.map(tonic::Response::into_inner).map_err(|status| refusal_of(&status))
    }

    /// A whole answer.
    pub(crate) async fn generate(&self, tokens: &[u32], tokens_max: u32) -> Answer {
        let stream = self.open_generate(self.request(tokens, tokens_max)).await.unwrap();
        collect(stream).await.unwrap()
    }
}

/// What a generate stream gave.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    pub(crate) tokens: Vec<u32>,
    pub(crate) finish: v1::FinishReason,
    pub(crate) usage: v1::Usage,
}

pub(crate) async fn collect(mut stream: Streaming<v1::GenerateResponse>) -> Result<Answer, Refusal> {
    let mut tokens = Vec::new();
    loop {
        let message = within("a generate message", stream.message()).await;
        let message = message.map_err(|status| refusal_of(&status))?.expect("a last message comes first");
        let finish = message.finish();
        tokens.extend(message.tokens.into_iter().map(|token| token.token));
        if let Some(usage) = message.usage {
            assert!(stream.message().await.unwrap().is_none(), "nothing follows the last message");
            return Ok(Answer { tokens, finish, usage });
        }
    }
}

/// A prompt without a pattern.
pub(crate) fn prompt(count: u32, seed: u32) -> Vec<u32> {
    (0..count).map(|i| (i * i + i * 31 + seed * 101) % 256).collect()
}

/// Fails a test that hangs, saying where.
pub(crate) async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(60);
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| panic!("{what}: not within {limit:?}"))
}
