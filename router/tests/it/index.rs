//! The workers' store, followed by its block events: a real store behind a proxy.

use std::time::Duration;

use kelvin_kvstore::{Namespace, RadixIndex, Reserved, SequenceHash, TierSet, server::ServerConfig};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::{
    harness::{Act, Proxy, Setup, TestRouter, TestWorker, until},
    store::{ANY, TestStore, body, cached, prompt},
};

/// Longer than any scenario may take: who waits for this waits for ever.
const NEVER: Duration = Duration::from_secs(600);
/// Most time for what must happen.
const PATIENCE: Duration = Duration::from_secs(30);

fn decode() -> TestWorker {
    let decode = TestWorker::start(Setup::decode("d"));
    decode.on_generate(Act::Say { tokens: vec![104], imported: 384 });
    decode
}

async fn lookups(router: &TestRouter, by: &str) -> f64 {
    router.metric(&format!("kelvin_router_store_lookups_total{{by=\"{by}\"}}")).await.unwrap()
}

async fn looks(router: &TestRouter, result: &str) -> f64 {
    router.metric(&format!("kelvin_router_store_looks_total{{result=\"{result}\"}}")).await.unwrap()
}

async fn compared(router: &TestRouter, index: &str) -> f64 {
    router.metric(&format!("kelvin_router_store_compared_blocks_total{{index=\"{index}\"}}")).await.unwrap()
}

async fn fed(router: &TestRouter, kind: &str) -> Option<f64> {
    router.metric(&format!("kelvin_router_feed_events_total{{kind=\"{kind}\"}}")).await
}

/// A router of one decode worker that reaches the store through a proxy, and waits for ever where it waits for it.
async fn patient(decode: &TestWorker, proxy: &Proxy) -> TestRouter {
    TestRouter::configured(&[decode], |config| {
        config.store = Some(proxy.endpoint());
        config.store_timeout = NEVER;
    })
    .await
}

#[tokio::test]
async fn hits_are_found_while_the_store_says_nothing() {
    let (decode, store) = (decode(), TestStore::start(ANY).await);
    let namespace = store.fill(&prompt(), 24).await;
    let proxy = Proxy::before(store.listen()).await;
    let router = patient(&decode, &proxy).await;
    router.knows(24).await;
    // On a slow machine the probe may find the store silent before the request comes: then once more.
    until(|| async {
        router.knows(24).await;
        proxy.hold(true);
        let before = lookups(&router, "index").await;
        let cached = timeout(PATIENCE, cached(&router)).await.expect("nobody waits for the store");
        let by_index = lookups(&router, "index").await > before;
        proxy.hold(false);
        by_index.then(|| assert_eq!(cached, 384))
    })
    .await;
    assert_eq!(decode.generates().pop().unwrap().wait_blocks, 24);
    // Its own word comes, and is the same.
    until(|| async { (looks(&router, "answered").await > 0.0).then_some(()) }).await;
    assert!(compared(&router, "same").await >= 24.0);
    assert_eq!((compared(&router, "fewer").await, compared(&router, "more").await), (0.0, 0.0));
    assert_eq!(lookups(&router, "store").await, 0.0);
    assert_eq!(router.metric("kelvin_router_stores{mode=\"exact\"}").await, Some(1.0));
    let health = router.health().await;
    assert_eq!(
        (&health["stores"][0]["used_by"], &health["stores"][0]["known"], &health["status"]),
        (&json!("workers"), &json!("exact"), &json!("ok"))
    );
    drop(namespace);
}

#[tokio::test]
async fn a_silent_store_is_not_waited_for_and_followed_again_from_where_it_was() {
    let (decode, store) = (decode(), TestStore::start(ANY).await);
    let namespace = store.fill(&prompt(), 20).await;
    let proxy = Proxy::before(store.listen()).await;
    let router = patient(&decode, &proxy).await;
    router.knows(20).await;
    assert_eq!(cached(&router).await, 320);
    proxy.hold(true);
    router
        .health_until(|health| health["store"] == "away" && health["stores"][0]["known"] == "fallback")
        .await;
    assert_eq!(timeout(PATIENCE, cached(&router)).await.expect("at once"), 0);
    assert_eq!(lookups(&router, "nobody").await, 1.0);
    assert_eq!(router.metric("kelvin_router_store_degraded_total").await, Some(1.0));
    fill(&namespace, &prompt(), 24).await;
    proxy.hold(false);
    router.knows(24).await;
    assert_eq!(cached(&router).await, 384);
    assert_eq!(fed(&router, "store_snapshots").await, Some(1.0), "nothing was told twice");
}

/// Stores a prompt's blocks up to so many.
async fn fill(namespace: &Namespace, prompt: &str, blocks: usize) {
    let tokens: Vec<u32> = prompt.bytes().map(u32::from).collect();
    let hashes = namespace.hash_blocks(&tokens, &[]);
    let reserved = namespace.reserve(None, &hashes[..blocks]).await.unwrap();
    let leases = reserved.into_iter().filter_map(|one| match one {
        Reserved::Write(lease) => Some(lease),
        _ => None,
    });
    namespace.commit(leases.collect()).await.unwrap();
}

#[tokio::test]
async fn after_a_gap_there_is_a_new_snapshot() {
    let (decode, store) = (decode(), TestStore::start(ANY).await);
    let namespace = store.fill(&prompt(), 20).await;
    let proxy = Proxy::before(store.listen()).await;
    let router = patient(&decode, &proxy).await;
    router.knows(20).await;
    proxy.hold(true);
    router.health_until(|health| health["store"] == "away").await;
    // More events than the store keeps.
    let other = "y".repeat(200 * 16);
    let tokens: Vec<u32> = other.bytes().map(u32::from).collect();
    let hashes = namespace.hash_blocks(&tokens, &[]);
    for _ in 0..170 {
        fill(&namespace, &other, 200).await;
        namespace.evict(&hashes[..1]).await.unwrap();
    }
    fill(&namespace, &prompt(), 24).await;
    proxy.hold(false);
    router.knows(24).await;
    assert_eq!(cached(&router).await, 384);
    assert_eq!(fed(&router, "store_snapshots").await, Some(2.0));
    assert!(fed(&router, "store_lost").await.unwrap() > 0.0);
}

#[tokio::test]
async fn another_start_of_the_store_has_nothing() {
    let (decode, store) = (decode(), TestStore::start(ANY).await);
    let namespace = store.fill(&prompt(), 24).await;
    let router = TestRouter::configured(&[&decode], |config| config.store = Some(store.endpoint())).await;
    router.knows(24).await;
    assert_eq!(cached(&router).await, 384);
    drop(namespace);
    let listen = store.stop().await;
    router.health_until(|health| health["stores"][0]["known"] == "fallback").await;
    let again = TestStore::start(listen).await;
    router.knows(0).await;
    assert_eq!(cached(&router).await, 0);
    let _namespace = again.fill(&prompt(), 24).await;
    router.knows(24).await;
    assert_eq!(cached(&router).await, 384);
    assert_eq!(fed(&router, "store_snapshots").await, Some(2.0));
}

#[tokio::test]
async fn beyond_its_budget_the_index_leaves_the_answer_to_the_store() {
    let (decode, store) = (decode(), TestStore::start(ANY).await);
    let _namespace = store.fill(&prompt(), 24).await;
    let router = TestRouter::configured(&[&decode], |config| {
        config.store = Some(store.endpoint());
        config.directory_bytes = 1;
    })
    .await;
    router.health_until(|health| health["stores"][0]["known"] == "degraded").await;
    assert_eq!(cached(&router).await, 384);
    assert_eq!((lookups(&router, "store").await, lookups(&router, "index").await), (1.0, 0.0));
    assert_eq!(router.metric("kelvin_router_stores{mode=\"degraded\"}").await, Some(1.0));
}

/// Bytes of an index of so many blocks of one sequence.
fn index_bytes(hashes: &[SequenceHash]) -> usize {
    let index = RadixIndex::<TierSet>::new();
    index.insert_run(None, hashes, 2, 0).unwrap();
    index.memory_bytes()
}

#[tokio::test]
async fn with_room_again_the_index_is_exact_again() {
    const MANY: usize = 8_000;
    let (decode, store) = (decode(), TestStore::configured(ServerConfig::new(32 << 20)).await);
    let namespace = store.fill(&prompt(), 24).await;
    let hashes = namespace.hash_blocks(&[7; 16 * MANY], &[]);
    let (few, many) = (index_bytes(&hashes[..24]), index_bytes(&hashes));
    assert!(3 * few < many, "{few} bytes, {many} bytes");
    for (at, part) in hashes.chunks(1_000).enumerate() {
        let parent = (at * 1_000).checked_sub(1).map(|at| hashes[at]);
        let reserved = namespace.reserve(parent, part).await.unwrap();
        let leases = reserved.into_iter().map(|one| match one {
            Reserved::Write(lease) => lease,
            other => panic!("not ours to fill: {other:?}"),
        });
        namespace.commit(leases.collect()).await.unwrap();
    }
    let router = TestRouter::configured(&[&decode], |config| {
        config.store = Some(store.endpoint());
        config.directory_bytes = 3 * few;
    })
    .await;
    router.health_until(|health| health["stores"][0]["known"] == "degraded").await;
    namespace.evict(&hashes[..1]).await.unwrap();
    router.knows(24).await;
    assert_eq!(cached(&router).await, 384);
    assert_eq!(lookups(&router, "index").await, 1.0);
}

#[tokio::test]
async fn the_store_still_says_why_a_block_is_missing() {
    let (decode, store) = (decode(), TestStore::start(ANY).await);
    let namespace = store.fill(&prompt(), 24).await;
    let router = TestRouter::configured(&[&decode], |config| config.store = Some(store.endpoint())).await;
    router.knows(24).await;
    let tokens: Vec<u32> = prompt().bytes().map(u32::from).collect();
    namespace.evict(&namespace.hash_blocks(&tokens, &[])[..1]).await.unwrap();
    router.knows(0).await;
    assert_eq!(router.post("/v1/completions", &body()).await.status(), 200);
    until(|| async { (looks(&router, "answered").await == 1.0).then_some(()) }).await;
    // It is back: what the page says is what was so when the request came.
    fill(&namespace, &prompt(), 24).await;
    let lists: Value = router.admin("/ui/api/requests").await.json().await.unwrap();
    let first = namespace.hash_blocks(&tokens, &[])[0].to_string();
    assert_eq!(lists["recent"][0]["first_missing_hash"], first);
    let id = lists["recent"][0]["unique"].as_str().unwrap();
    let one: Value = router.admin(&format!("/ui/api/requests/{id}")).await.json().await.unwrap();
    assert_ne!(one["explain"]["reason"], "stored", "{one:#}");
    assert_eq!(one["explain"]["tiers"], json!(["dram"]), "{one:#}");
}

#[tokio::test]
async fn a_salted_prompt_is_looked_up_by_its_own_hashes() {
    let (decode, store) = (decode(), TestStore::start(ANY).await);
    let _namespace = store.fill_salted("toy", &prompt(), b"salt:a", 10).await;
    let router = TestRouter::configured(&[&decode], |config| config.store = Some(store.endpoint())).await;
    router.knows(10).await;
    let mut salted = body();
    salted["cache_salt"] = "a".into();
    for (body, blocks) in [(salted, 10), (body(), 0)] {
        assert_eq!(router.post("/v1/completions", &body).await.status(), 200);
        assert_eq!(decode.generates().pop().unwrap().wait_blocks, blocks);
    }
    assert_eq!(lookups(&router, "index").await, 2.0);
}

#[tokio::test]
async fn blocks_that_a_prefill_of_this_router_makes_are_waited_for() {
    let (decode, prefill) = (decode(), TestWorker::start(Setup::prefill("p")));
    let store = TestStore::start(ANY).await;
    let router =
        TestRouter::configured(&[&decode, &prefill], |config| config.store = Some(store.endpoint())).await;
    router.knows(0).await;
    prefill.on_prefill(Act::SayAndHang(vec![1]));
    let told = CancellationToken::new();
    // The first of these has begun the script already.
    decode.on_generate(Act::SayOnce(told.clone(), "hello"));
    decode.on_generate(Act::say("hello"));
    assert_eq!(
        router.post("/v1/completions", &json!({"model": "toy", "prompt": "short"})).await.status(),
        200
    );
    let filling = "kelvin_router_store_filling_blocks";
    assert_eq!(router.metric(filling).await, Some(0.0));
    tokio::join!(cached(&router), async {
        until(|| async { router.metric(filling).await.filter(|&blocks| blocks == 25.0) }).await;
        prefill.describe(|described| described.load.as_mut().unwrap().pending_prompt_tokens = 1 << 30);
        router
            .health_until(|health| health["workers"][1]["pending_prompt_tokens"].as_u64() == Some(1 << 30))
            .await;
        until(|| async { (decode.generates().len() == 2).then_some(()) }).await;
        // This one is computed where it is answered, and waits for what the other has computed.
        assert_eq!(cached(&router).await, 0);
        assert_eq!(prefill.prefills().len(), 1);
        assert_eq!(decode.generates().pop().unwrap().wait_blocks, 24);
        told.cancel();
    });
    until(|| async { router.metric(filling).await.filter(|&blocks| blocks == 0.0) }).await;
}
