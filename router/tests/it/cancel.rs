//! Clients that leave.

use std::time::Duration;

use crate::harness::{Act, Events, Setup, TestRouter, TestWorker, chat_body, until};

#[tokio::test]
async fn a_client_that_leaves_a_stream_stops_the_worker() {
    let worker = TestWorker::start(Setup::decode("d"));
    worker.on_generate(Act::SayAndHang(vec![104, 105]));
    let router = TestRouter::start(&[&worker]).await;
    let mut body = chat_body("hi");
    body["stream"] = true.into();
    let mut events = Events::of(router.chat(&body).await);
    assert_eq!(events.first_text().await, "h");
    drop(events);
    until(|| async { (worker.cancelled() == 1).then_some(()) }).await;
    router.health_until(|health| health["requests_in_flight"] == 0).await;
    router.health_until(|health| health["workers"][0]["in_flight"] == 0).await;
}

#[tokio::test]
async fn a_client_that_leaves_before_the_first_token_stops_both_workers() {
    let (decode, prefill) = (TestWorker::start(Setup::decode("d")), TestWorker::start(Setup::prefill("p")));
    decode.on_generate(Act::SayAndHang(vec![]));
    prefill.on_prefill(Act::SayAndHang(vec![1]));
    let router = TestRouter::start(&[&decode, &prefill]).await;
    let body = chat_body(&"x".repeat(400));
    let request = router.http.post(format!("{}/v1/chat/completions", router.base)).json(&body);
    let left = request.timeout(Duration::from_millis(500)).send().await;
    assert!(left.unwrap_err().is_timeout());
    until(|| async { (decode.cancelled() == 1 && prefill.cancelled() == 1).then_some(()) }).await;
    router.health_until(|health| health["requests_in_flight"] == 0).await;
}

#[tokio::test]
async fn a_client_that_never_reads_is_cut_off() {
    let worker = TestWorker::start(Setup::decode("d"));
    let tokens = 400_000;
    worker.describe(|described| described.context_tokens_max = 2 * tokens);
    worker.on_generate(Act::Say { tokens: vec![104; tokens as usize], imported: 0 });
    let router = TestRouter::configured(&[&worker], |config| {
        config.client_timeout = Duration::from_millis(200);
    })
    .await;
    let mut body = chat_body("hi");
    (body["stream"], body["max_tokens"]) = (true.into(), tokens.into());
    let unread = router.chat(&body).await;
    until(|| async { (worker.cancelled() == 1).then_some(()) }).await;
    router.health_until(|health| health["requests_in_flight"] == 0).await;
    assert!(unread.bytes().await.is_err(), "a cut stream must not look whole");
}
