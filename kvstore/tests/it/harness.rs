//! A store on free loopback ports, stopped by the test, and clients of it.

use std::{path::PathBuf, time::Duration};

use kelvin_kvstore::{
    Client, ClientOptions, Keep, Namespace, Reserved, SequenceHash,
    server::{Listening, ServerConfig, serve},
};
use kelvin_proto::{Fingerprint, NamespaceSpec, Shard, kv::v1::BlockStatus};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) const BLOCK_BYTES: u64 = 3 << 20;
pub(crate) const BLOCK_TOKENS: u32 = 4;

pub(crate) struct TestStore {
    pub(crate) listening: Listening,
    pub(crate) folder: tempfile::TempDir,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl TestStore {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut ServerConfig)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = ServerConfig::new(64 << 20);
        config.socket = Some(folder.path().join("kv.sock"));
        config.admin_listen = Some(([127, 0, 0, 1], 0).into());
        config.drain = Duration::from_secs(1);
        change(&mut config);
        let stop = CancellationToken::new();
        let (ready, listening) = tokio::sync::oneshot::channel();
        let token = stop.clone();
        let task = tokio::spawn(async move {
            serve(config, |listening| drop(ready.send(listening)), token).await.unwrap();
        });
        Self { listening: listening.await.unwrap(), folder, stop, task }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.listening.grpc)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("kv.sock")
    }

    pub(crate) async fn client(&self, name: &str) -> Client {
        Client::connect(ClientOptions::new(self.endpoint(), name)).await.unwrap()
    }

    /// A client that does not map memory.
    pub(crate) async fn remote_client(&self, name: &str) -> Client {
        let options = ClientOptions { shared_memory: false, ..ClientOptions::new(self.endpoint(), name) };
        Client::connect(options).await.unwrap()
    }

    /// Where the data port is.
    pub(crate) fn data_port(&self) -> std::net::SocketAddr {
        self.listening.data.unwrap()
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

pub(crate) fn spec() -> NamespaceSpec {
    let fingerprint = Fingerprint {
        model_digest: "d".into(),
        engine: "test".into(),
        engine_build: "1".into(),
        layout: "bytes".into(),
        dtype: "u8".into(),
        attributes: Default::default(),
    };
    NamespaceSpec {
        model: "m".into(),
        fingerprint,
        shard: Shard::default(),
        block_tokens: BLOCK_TOKENS,
        block_bytes: BLOCK_BYTES,
    }
}

pub(crate) fn content(seed: u8) -> Vec<u8> {
    (0..BLOCK_BYTES).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

/// Stores a run whose blocks hold `content(seed)`, `content(seed + 1)`, ...
pub(crate) async fn store_run(
    namespace: &Namespace,
    parent: Option<SequenceHash>,
    hashes: &[SequenceHash],
    seed: u8,
) {
    store_run_to_keep(namespace, parent, hashes, seed, Keep::default()).await;
}

/// The same with a priority and an end.
pub(crate) async fn store_run_to_keep(
    namespace: &Namespace,
    parent: Option<SequenceHash>,
    hashes: &[SequenceHash],
    seed: u8,
    keep: Keep,
) {
    let reserved = namespace.reserve_to_keep(parent, hashes, keep).await.unwrap();
    let mut leases = Vec::new();
    for (at, block) in reserved.into_iter().enumerate() {
        let Reserved::Write(mut lease) = block else { panic!("not reserved: {block:?}") };
        lease.bytes_mut().copy_from_slice(&content(seed + at as u8));
        leases.push(lease);
    }
    let statuses = namespace.commit(leases).await.unwrap();
    assert_eq!(statuses, vec![BlockStatus::Stored; hashes.len()]);
}

/// Polls until `probe` holds; bounded, and only for what happens in the background by design.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut probe: impl FnMut() -> F) {
    for _ in 0..500 {
        if probe().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("did not come true: {what}");
}
