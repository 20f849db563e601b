//! Workers that fail, before the first token and after it.

use std::time::Duration;

use kelvin_proto::Reason;
use serde_json::Value;

use crate::harness::{Act, Events, NOTHING, Setup, TestRouter, TestWorker, chat_body, error_of, until};

fn tokens(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

fn streamed() -> Value {
    let mut body = chat_body("hi");
    body["stream"] = true.into();
    body
}

/// Text before the failure, and the error event that must be the last.
async fn broken_stream(router: &TestRouter) -> (String, Value) {
    broken(Events::of(router.chat(&streamed()).await)).await
}

async fn broken(events: Events) -> (String, Value) {
    let (text, last) = events.text().await;
    let event: Value = serde_json::from_str(&last).expect("an error event, not [DONE]");
    for key in ["message", "type", "param", "code"] {
        assert!(event["error"].as_object().expect("an error").contains_key(key));
    }
    (text, event["error"].clone())
}

#[tokio::test]
async fn a_worker_that_dies_mid_stream_leaves_an_error_event() {
    let worker = TestWorker::start(Setup::decode("d"));
    worker.on_generate(Act::SayAndHang(tokens("half an ans")));
    let router = TestRouter::start(&[&worker]).await;
    let mut events = Events::of(router.chat(&streamed()).await);
    let mut text = String::new();
    while text != "half an ans" {
        text.push_str(&events.first_text().await);
    }
    worker.kill();
    let (rest, error) = broken(events).await;
    assert_eq!((rest.as_str(), error["code"].as_str()), ("", Some("worker_lost")));
    router.health_until(|health| health["workers"][0]["state"] == "lost").await;
    assert_eq!(router.metric("kelvin_router_errors_total{kind=\"worker_lost\"}").await, Some(1.0));
    let (status, _) = error_of(router.chat(&chat_body("hi")).await).await;
    assert_eq!(status, 503);
}

#[tokio::test]
async fn a_worker_that_dies_mid_answer_is_502() {
    let worker = TestWorker::start(Setup::decode("d"));
    worker.on_generate(Act::SayAndHang(tokens("half")));
    let router = TestRouter::start(&[&worker]).await;
    let body = chat_body("hi");
    let first_token = "kelvin_router_time_to_first_token_seconds_count{prefill=\"local\"}";
    let begun = until(|| async { router.metric(first_token).await.filter(|&count| count == 1.0) });
    let (response, _) = tokio::join!(router.chat(&body), async {
        begun.await;
        worker.kill();
    });
    let (status, error) = error_of(response).await;
    assert_eq!((status, error["code"].as_str()), (502, Some("worker_lost")));
}

#[tokio::test]
async fn the_others_go_on_when_one_dies() {
    let [first, second] = ["d1", "d2"].map(|name| TestWorker::start(Setup::decode(name)));
    first.on_generate(Act::Die);
    let router = TestRouter::start(&[&first, &second]).await;
    for _ in 0..8 {
        let (text, last) = Events::of(router.chat(&streamed()).await).text().await;
        assert_eq!((text.as_str(), last.as_str()), ("hello", "[DONE]"));
    }
    assert!(first.generates().len() <= 1, "a lost worker gets no more requests");
}

#[tokio::test]
async fn a_stream_that_just_ends_is_a_failure() {
    let worker = TestWorker::start(Setup::decode("d"));
    worker.on_generate(Act::SayAndEnd(tokens("half")));
    let router = TestRouter::start(&[&worker]).await;
    let (text, error) = broken_stream(&router).await;
    assert_eq!((text.as_str(), error["code"].as_str()), ("half", Some("worker_lost")));
}

#[tokio::test]
async fn an_engine_that_fails_says_so() {
    let worker = TestWorker::start(Setup::decode("d"));
    worker.on_generate(Act::SayAndFail(tokens("half"), Reason::EngineFailed));
    let router = TestRouter::start(&[&worker]).await;
    let (text, error) = broken_stream(&router).await;
    assert_eq!((text.as_str(), error["code"].as_str()), ("half", Some("engine_failed")));
    assert_eq!(router.health().await["workers"][0]["state"], "ready", "the worker itself is not lost");
}

#[tokio::test]
async fn a_worker_that_falls_silent_is_given_up() {
    let worker = TestWorker::start(Setup::decode("d"));
    worker.on_generate(Act::SayAndHang(tokens("half"))).on_generate(Act::SayAndHang(vec![]));
    let router = TestRouter::configured(&[&worker], |config| {
        config.token_timeout = Duration::from_secs(1);
        config.first_token_timeout = Duration::from_secs(1);
    })
    .await;
    let (text, error) = broken_stream(&router).await;
    assert_eq!((text.as_str(), error["code"].as_str()), ("half", Some("worker_stalled")));
    let (status, error) = error_of(router.chat(&chat_body("hi")).await).await;
    assert_eq!((status, error["code"].as_str()), (504, Some("worker_stalled")));
    until(|| async { (worker.cancelled() == 2).then_some(()) }).await;
}

#[tokio::test]
async fn before_the_first_token_another_worker_gets_the_request() {
    for act in [
        Act::Refuse(Reason::Exhausted),
        Act::Refuse(Reason::Unavailable),
        Act::Die,
        Act::SayAndEnd(vec![]),
        Act::SayAndHang(vec![NOTHING]),
        Act::SayAndFail(vec![], Reason::EngineFailed),
    ] {
        // The worse one looks better, so that it is asked first.
        let bad = TestWorker::start(Setup::decode("bad"));
        let good = TestWorker::start(Setup::decode("good"));
        good.describe(|described| described.load.as_mut().unwrap().running = 3);
        bad.on_generate(act.clone());
        let router = TestRouter::start(&[&bad, &good]).await;
        let (text, last) = Events::of(router.chat(&streamed()).await).text().await;
        assert_eq!((text.as_str(), last.as_str()), ("hello", "[DONE]"), "{act:?}");
        assert_eq!((bad.generates().len(), good.generates().len()), (1, 1), "{act:?}");
        assert_eq!(router.metric("kelvin_router_retries_total").await, Some(1.0));
    }
}

#[tokio::test]
async fn a_request_is_handed_on_once_only() {
    let workers = ["d1", "d2", "d3"].map(|name| TestWorker::start(Setup::decode(name)));
    for worker in &workers {
        worker.on_generate(Act::Refuse(Reason::Exhausted));
    }
    let router = TestRouter::start(&[&workers[0], &workers[1], &workers[2]]).await;
    let response = router.chat(&chat_body("hi")).await;
    assert_eq!(response.headers()["retry-after"], "1");
    let (status, error) = error_of(response).await;
    assert_eq!((status, error["code"].as_str()), (529, Some("overloaded")));
    assert_eq!(workers.iter().map(|worker| worker.generates().len()).sum::<usize>(), 2);
}

#[tokio::test]
async fn what_the_worker_finds_wrong_is_the_clients_error() {
    let [first, second] = ["d1", "d2"].map(|name| TestWorker::start(Setup::decode(name)));
    for worker in [&first, &second] {
        worker.on_generate(Act::Refuse(Reason::InvalidArgument));
    }
    let router = TestRouter::start(&[&first, &second]).await;
    let (status, error) = error_of(router.chat(&chat_body("hi")).await).await;
    assert_eq!((status, error["type"].as_str()), (400, Some("invalid_request_error")));
    assert_eq!(first.generates().len() + second.generates().len(), 1, "another worker would find the same");
}

#[tokio::test]
async fn tokens_that_do_not_exist_are_not_shown() {
    let worker = TestWorker::start(Setup::decode("d"));
    worker.on_generate(Act::Say { tokens: vec![104, 4_000_000_000], imported: 0 });
    let router = TestRouter::start(&[&worker]).await;
    let (text, error) = broken_stream(&router).await;
    assert_eq!((text.as_str(), error["code"].as_str()), ("h", Some("worker_protocol")));
}

#[tokio::test]
async fn a_worker_that_says_nothing_in_many_words_is_given_up() {
    let worker = TestWorker::start(Setup::decode("d"));
    worker.on_generate(Act::SayAndHang(vec![104, NOTHING])).on_generate(Act::SayAndHang(vec![NOTHING]));
    let router = TestRouter::start(&[&worker]).await;
    let (text, error) = broken_stream(&router).await;
    assert_eq!((text.as_str(), error["code"].as_str()), ("h", Some("worker_protocol")));
    let (status, error) = error_of(router.chat(&streamed()).await).await;
    assert_eq!((status, error["code"].as_str()), (502, Some("worker_protocol")));
}
