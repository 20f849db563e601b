//! Long prompts with a prefill worker at hand.

use futures::future::join_all;
use kelvin_proto::Reason;
use kelvin_router::PrefillPolicy;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::harness::{Act, Events, Setup, TestRouter, TestWorker, until};

/// 400 tokens: 24 whole blocks of 16 and 16 tokens behind them, one of which must be left for decode.
fn long(stream: bool) -> Value {
    json!({"model": "toy", "prompt": "x".repeat(400), "stream": stream})
}

async fn pair() -> (TestWorker, TestWorker, TestRouter) {
    let (decode, prefill) = (TestWorker::start(Setup::decode("d")), TestWorker::start(Setup::prefill("p")));
    let router = TestRouter::start(&[&decode, &prefill]).await;
    (decode, prefill, router)
}

async fn served(router: &TestRouter) {
    let (text, last) = Events::of(router.post("/v1/completions", &long(true)).await).text().await;
    assert_eq!((text.as_str(), last.as_str()), ("hello", "[DONE]"));
}

#[tokio::test]
async fn a_long_prompt_is_prefilled_remotely_and_waited_for() {
    let (decode, prefill, router) = pair().await;
    served(&router).await;
    let (opened, generated) = (prefill.prefills(), decode.generates());
    assert_eq!((opened.len(), generated.len()), (1, 1));
    assert_eq!(opened[0].tokens, generated[0].tokens);
    assert_eq!(opened[0].request_id, generated[0].request_id);
    assert_eq!(generated[0].wait_blocks, 24);
    assert_eq!(router.metric("kelvin_router_decisions_total{prefill=\"remote\"}").await, Some(1.0));
}

#[tokio::test]
async fn a_short_prompt_is_not() {
    let (decode, prefill, router) = pair().await;
    let body = json!({"model": "toy", "prompt": "short"});
    assert_eq!(router.post("/v1/completions", &body).await.status(), 200);
    assert!(prefill.prefills().is_empty());
    assert_eq!(decode.generates()[0].wait_blocks, 0);
    assert_eq!(router.metric("kelvin_router_decisions_total{prefill=\"local\"}").await, Some(1.0));
}

#[tokio::test]
async fn a_prefill_worker_that_refuses_leaves_the_prompt_to_decode() {
    let (decode, prefill, router) = pair().await;
    prefill.on_prefill(Act::Refuse(Reason::Exhausted));
    served(&router).await;
    assert_eq!(decode.generates()[0].wait_blocks, 0, "there is nothing to wait for");
    assert_eq!(router.metric("kelvin_router_errors_total{kind=\"prefill_failed\"}").await, Some(1.0));
}

#[tokio::test]
async fn a_prefill_worker_that_dies_on_the_way_costs_nothing_but_time() {
    let (decode, prefill, router) = pair().await;
    prefill.on_prefill(Act::SayAndHang(vec![1]));
    let told = CancellationToken::new();
    decode.on_generate(Act::SayOnce(told.clone(), "hello"));
    tokio::join!(served(&router), async {
        until(|| async { decode.generates().pop() }).await;
        prefill.kill();
        router.health_until(|health| health["workers"][1]["state"] == "lost").await;
        told.cancel();
    });
    assert_eq!(decode.generates()[0].wait_blocks, 24);
    served(&router).await;
    assert_eq!(router.get("/health").await.status(), 200, "degraded, and serving");
}

#[tokio::test]
async fn the_prefill_ends_with_the_request() {
    let (_decode, prefill, router) = pair().await;
    prefill.on_prefill(Act::SayAndHang(vec![1]));
    served(&router).await;
    until(|| async { (prefill.cancelled() == 1).then_some(()) }).await;
}

#[tokio::test]
async fn a_second_decode_worker_uses_the_same_prefill() {
    let [bad, good] = ["bad", "good"].map(|name| TestWorker::start(Setup::decode(name)));
    let prefill = TestWorker::start(Setup::prefill("p"));
    good.describe(|described| described.load.as_mut().unwrap().running = 3);
    bad.on_generate(Act::Refuse(Reason::Exhausted));
    let router = TestRouter::start(&[&bad, &good, &prefill]).await;
    served(&router).await;
    assert_eq!(prefill.prefills().len(), 1);
    assert_eq!(good.generates()[0].wait_blocks, 24);
}

#[tokio::test]
async fn requests_that_wait_for_a_prefill_count_at_their_decode_workers() {
    let decodes = ["d1", "d2"].map(|name| TestWorker::start(Setup::decode(name)));
    let prefill = TestWorker::start(Setup::prefill("p"));
    prefill.on_prefill(Act::SayAndHang(vec![]));
    let router = TestRouter::configured(&[&decodes[0], &decodes[1], &prefill], |config| {
        config.prefill = PrefillPolicy::Remote;
    })
    .await;
    let body = long(true);
    let in_flight = |health: &Value| [0, 1, 2].map(|index| health["workers"][index]["in_flight"].as_u64());
    tokio::select! {
        _ = join_all((0..6).map(|_| router.post("/v1/completions", &body))) => panic!("no prefill answers"),
        health = router.health_until(|health| in_flight(health)[2] == Some(6)) => {
            assert_eq!(in_flight(&health), [Some(3), Some(3), Some(6)]);
        }
    }
    assert!(decodes.iter().all(|decode| decode.generates().is_empty()));
    router.health_until(|health| in_flight(health) == [Some(0); 3]).await;
}
