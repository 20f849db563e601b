//! A real store beside the router: what counts as cached.

use std::{net::SocketAddr, time::Duration};

use kelvin_kvstore::{
    Client, ClientOptions, Namespace, Reserved,
    server::{ServerConfig, serve},
};
use kelvin_proto::{NamespaceSpec, Shard};
use serde_json::{Value, json};
use tokio::{sync::oneshot, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::harness::{Act, Events, Setup, TestRouter, TestWorker, fingerprint, until};

pub(crate) struct TestStore {
    listen: SocketAddr,
    stop: CancellationToken,
    served: JoinHandle<()>,
}

impl TestStore {
    pub(crate) async fn start(listen: SocketAddr) -> Self {
        Self::configured(ServerConfig { listen, ..ServerConfig::new(1 << 20) }).await
    }

    pub(crate) async fn configured(config: ServerConfig) -> Self {
        let stop = CancellationToken::new();
        let (send, listening) = oneshot::channel();
        let config = ServerConfig { drain: Duration::ZERO, ..config };
        let ready = move |listening: kelvin_kvstore::server::Listening| {
            send.send(listening.grpc).expect("the test waits");
        };
        let token = stop.clone();
        let served = tokio::spawn(async move { serve(config, ready, token).await.expect("it serves") });
        Self { listen: listening.await.expect("it listens"), stop, served }
    }

    pub(crate) fn listen(&self) -> SocketAddr {
        self.listen
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.listen)
    }

    /// Stores the first `blocks` blocks of a prompt of the toy model.
    pub(crate) async fn fill(&self, prompt: &str, blocks: usize) -> Namespace {
        self.fill_for("toy", prompt, blocks).await
    }

    /// The same of another model with the same vocabulary.
    pub(crate) async fn fill_for(&self, model: &str, prompt: &str, blocks: usize) -> Namespace {
        self.fill_salted(model, prompt, &[], blocks).await
    }

    /// The same with something beside the tokens.
    pub(crate) async fn fill_salted(
        &self,
        model: &str,
        prompt: &str,
        extra: &[u8],
        blocks: usize,
    ) -> Namespace {
        let options = ClientOptions { shared_memory: false, ..ClientOptions::new(self.endpoint(), "test") };
        let spec = NamespaceSpec {
            model: model.into(),
            fingerprint: fingerprint().try_into().unwrap(),
            shard: Shard::default(),
            block_tokens: 16,
            block_bytes: 1024,
        };
        let namespace = Client::connect(options).await.unwrap().open(spec).await.unwrap();
        let tokens: Vec<u32> = prompt.bytes().map(u32::from).collect();
        let hashes = namespace.hash_blocks(&tokens, extra);
        let reserved = namespace.reserve(None, &hashes[..blocks]).await.unwrap();
        let leases = reserved.into_iter().map(|one| match one {
            Reserved::Write(lease) => lease,
            other => panic!("not ours to fill: {other:?}"),
        });
        namespace.commit(leases.collect()).await.unwrap();
        namespace
    }

    pub(crate) async fn stop(self) -> SocketAddr {
        self.stop.cancel();
        self.served.await.unwrap();
        self.listen
    }
}

pub(crate) const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

pub(crate) fn prompt() -> String {
    ('a'..='z').cycle().take(400).collect()
}

pub(crate) fn body() -> Value {
    json!({"model": "toy", "prompt": prompt()})
}

pub(crate) async fn cached(router: &TestRouter) -> u64 {
    let response = router.post("/v1/completions", &body()).await;
    assert_eq!(response.status(), 200);
    let answer: Value = response.json().await.unwrap();
    answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
}

async fn connected(router: &TestRouter) {
    router.health_until(|health| health["store"] == "connected").await;
}

#[tokio::test]
async fn stored_blocks_count_as_cached_and_keep_the_prefill_local() {
    let (decode, prefill) = (TestWorker::start(Setup::decode("d")), TestWorker::start(Setup::prefill("p")));
    decode.on_generate(Act::Say { tokens: vec![104], imported: 384 });
    let store = TestStore::start(ANY).await;
    let router =
        TestRouter::configured(&[&decode, &prefill], |config| config.store = Some(store.endpoint())).await;
    connected(&router).await;
    assert_eq!(cached(&router).await, 0, "the worker imported them, but they were not there before");
    assert_eq!(prefill.prefills().len(), 1);
    let _namespace = store.fill(&prompt(), 24).await;
    router.knows(24).await;
    assert_eq!(cached(&router).await, 384);
    assert_eq!(prefill.prefills().len(), 1, "16 tokens are left, which is less than a hand-off");
    assert_eq!(decode.generates().pop().unwrap().wait_blocks, 24);
    assert_eq!(router.metric("kelvin_router_prompt_tokens_cached_total").await, Some(384.0));
    assert_eq!(router.metric("kelvin_router_store_degraded_total").await, Some(0.0));
}

#[tokio::test]
async fn what_was_stored_but_not_imported_is_not_cached() {
    let decode = TestWorker::start(Setup::decode("d"));
    decode.on_generate(Act::Say { tokens: vec![104], imported: 32 });
    let store = TestStore::start(ANY).await;
    let _namespace = store.fill(&prompt(), 10).await;
    let router = TestRouter::configured(&[&decode], |config| config.store = Some(store.endpoint())).await;
    connected(&router).await;
    assert_eq!(cached(&router).await, 32);
    assert_eq!(decode.generates().pop().unwrap().wait_blocks, 10);
}

#[tokio::test]
async fn a_stop_string_reports_what_was_stored() {
    let decode = TestWorker::start(Setup::decode("d"));
    decode.on_generate(Act::SayAndHang("so STOP".bytes().map(u32::from).collect()));
    let store = TestStore::start(ANY).await;
    let _namespace = store.fill(&prompt(), 10).await;
    let router = TestRouter::configured(&[&decode], |config| config.store = Some(store.endpoint())).await;
    connected(&router).await;
    let mut body = body();
    (body["stop"], body["stream"]) = ("STOP".into(), true.into());
    body["stream_options"] = json!({"include_usage": true});
    let events = Events::of(router.post("/v1/completions", &body).await).rest().await;
    let usage: Value = serde_json::from_str(&events[events.len() - 2]).unwrap();
    assert_eq!(usage["usage"]["prompt_tokens_details"]["cached_tokens"], 160);
}

#[tokio::test]
async fn a_store_that_is_away_costs_the_hits_alone() {
    let decode = TestWorker::start(Setup::decode("d"));
    decode.on_generate(Act::Say { tokens: vec![104], imported: 384 });
    let store = TestStore::start(ANY).await;
    let router = TestRouter::configured(&[&decode], |config| config.store = Some(store.endpoint())).await;
    connected(&router).await;
    let listen = store.stop().await;
    let health = router.health_until(|health| health["store"] == "away").await;
    assert_eq!(health["status"], "degraded");
    assert_eq!(cached(&router).await, 0);
    assert!(router.metric("kelvin_router_store_degraded_total").await.unwrap() >= 1.0);

    let store = TestStore::start(listen).await;
    let _namespace = store.fill(&prompt(), 24).await;
    until(|| async { (cached(&router).await == 384).then_some(()) }).await;
}

#[tokio::test]
async fn a_store_that_comes_late_is_found() {
    let decode = TestWorker::start(Setup::decode("d"));
    decode.on_generate(Act::Say { tokens: vec![104], imported: 384 });
    let listen = std::net::TcpListener::bind(ANY).unwrap().local_addr().unwrap();
    let router =
        TestRouter::configured(&[&decode], |config| config.store = Some(format!("http://{listen}"))).await;
    assert_eq!(cached(&router).await, 0);
    assert_eq!(router.health().await["store"], "away");
    let store = TestStore::start(listen).await;
    let _namespace = store.fill(&prompt(), 24).await;
    connected(&router).await;
    assert_eq!(cached(&router).await, 384);
}

#[tokio::test]
async fn a_store_that_wants_a_token_gets_it() {
    let decode = TestWorker::start(Setup::decode("d"));
    let mut config = ServerConfig::new(1 << 20);
    config.tenants[0].token = Some("secret".into());
    let store = TestStore::configured(config).await;
    let router = TestRouter::configured(&[&decode], |config| {
        config.store = Some(store.endpoint());
        config.token = Some("secret".into());
    })
    .await;
    connected(&router).await;
}

#[tokio::test]
async fn hints_reach_the_store_once_the_answer_is_whole() {
    let decode = TestWorker::start(Setup::decode("d"));
    let store = TestStore::start(ANY).await;
    let namespace = store.fill(&prompt(), 24).await;
    let router = TestRouter::configured(&[&decode], |config| config.store = Some(store.endpoint())).await;
    connected(&router).await;
    let ask = async |hints: Value, name: &str| {
        let mut body = body();
        body.as_object_mut().unwrap().extend(hints.as_object().unwrap().clone());
        assert_eq!(router.post("/v1/completions", &body).await.status(), 200);
        let line = format!("kelvin_router_hints_total{{hint=\"{name}\",result=\"done\"}}");
        until(|| async { router.metric(&line).await.filter(|&count| count == 1.0) }).await;
    };
    ask(json!({"prefetch_next_turn": true}), "prefetch").await;
    ask(json!({"session_end": true}), "session_end").await;
    ask(json!({"ttl_s": 60}), "ttl").await;
    let tokens: Vec<u32> = prompt().bytes().map(u32::from).collect();
    let hashes = namespace.hash_blocks(&tokens, &[]);
    let blocks = namespace.explain(&hashes[..24]).await.unwrap();
    assert!(blocks.iter().all(|block| block.pinned), "{blocks:?}");
}

#[tokio::test]
async fn a_salt_finds_nothing_of_others() {
    let decode = TestWorker::start(Setup::decode("d"));
    let store = TestStore::start(ANY).await;
    let _namespace = store.fill(&prompt(), 10).await;
    let router = TestRouter::configured(&[&decode], |config| config.store = Some(store.endpoint())).await;
    connected(&router).await;
    let mut salted = body();
    salted["cache_salt"] = "a".into();
    assert_eq!(router.post("/v1/completions", &salted).await.status(), 200);
    assert_eq!(decode.generates().pop().unwrap().wait_blocks, 0);
    assert_eq!(router.post("/v1/completions", &body()).await.status(), 200);
    assert_eq!(decode.generates().pop().unwrap().wait_blocks, 10);
}
