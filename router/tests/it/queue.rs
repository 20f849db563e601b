//! More requests than are in work at once.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::harness::{
    Act, Do, Events, Setup, TestBackend, TestRouter, TestWorker, chat_body, error_of, event, until,
};

/// A worker that says nothing before it is told to, to whoever asks first; the others get their answer at once.
fn busy() -> (TestWorker, CancellationToken) {
    let (worker, told) = (TestWorker::start(Setup::decode("d")), CancellationToken::new());
    worker.on_generate(Act::SayOnce(told.clone(), "first")).on_generate(Act::say("hello"));
    (worker, told)
}

fn prompt(text: &str, hints: Value) -> Value {
    let mut body = json!({"model": "toy", "prompt": text});
    body.as_object_mut().unwrap().extend(hints.as_object().unwrap().clone());
    body
}

/// Sends a request and returns once it is in the queue, or has a place.
async fn asked(router: &TestRouter, body: Value, line: &str, count: f64) -> JoinHandle<reqwest::Response> {
    let request = router.http.post(format!("{}/v1/completions", router.base)).json(&body);
    let asked = tokio::spawn(async move { request.send().await.expect("an answer") });
    until(|| async { router.metric(line).await.filter(|&value| value == count) }).await;
    asked
}

const RUNNING: &str = "kelvin_router_requests_in_flight";
const SHORT: &str = "kelvin_router_queue_depth{class=\"short\"}";
const LONG: &str = "kelvin_router_queue_depth{class=\"long\"}";

/// The prompts that a worker got, by their first letter.
fn order(worker: &TestWorker) -> String {
    let first = |tokens: &[u32]| char::from(u8::try_from(tokens[0]).unwrap());
    worker.generates().iter().map(|request| first(&request.tokens)).collect()
}

#[tokio::test]
async fn requests_wait_and_go_by_priority() {
    let (worker, told) = busy();
    let router = TestRouter::configured(&[&worker], |config| config.requests_max = 1).await;
    let mut all = vec![asked(&router, prompt("0", json!({})), RUNNING, 1.0).await];
    for (index, (name, priority)) in [("a", 0), ("b", 2), ("c", 0), ("d", 2)].into_iter().enumerate() {
        let body = prompt(name, json!({"priority": priority}));
        all.push(asked(&router, body, SHORT, (index + 1) as f64).await);
    }
    told.cancel();
    for answer in all {
        assert_eq!(answer.await.unwrap().status(), 200);
    }
    assert_eq!(order(&worker), "0bdac");
    assert_eq!(router.metric(SHORT).await, Some(0.0));
    assert_eq!(router.metric("kelvin_router_queue_wait_seconds_count{class=\"short\"}").await, Some(5.0));
}

#[tokio::test]
async fn long_prompts_let_short_ones_by() {
    let (worker, told) = busy();
    let router = TestRouter::configured(&[&worker], |config| {
        (config.requests_max, config.long_tokens, config.long_max) = (2, 100, Some(1));
    })
    .await;
    let long = |name: &str| prompt(&name.repeat(200), json!({"priority": 9}));
    let mut all = vec![asked(&router, long("L"), RUNNING, 1.0).await];
    all.push(asked(&router, long("M"), LONG, 1.0).await);
    assert_eq!(router.post("/v1/completions", &prompt("s", json!({}))).await.status(), 200);
    assert_eq!(order(&worker), "Ls");
    told.cancel();
    for answer in all {
        assert_eq!(answer.await.unwrap().status(), 200);
    }
    assert_eq!(order(&worker), "LsM");
}

#[tokio::test]
async fn a_full_queue_and_a_deadline_are_429_with_retry_after() {
    let (worker, told) = busy();
    let router = TestRouter::configured(&[&worker], |config| {
        (config.requests_max, config.queue_max) = (1, 1);
    })
    .await;
    let first = asked(&router, prompt("0", json!({})), RUNNING, 1.0).await;
    let late = router.post("/v1/completions", &prompt("l", json!({"deadline_ms": 50}))).await;
    assert_eq!(late.headers()["retry-after"], "1");
    let (status, error) = error_of(late).await;
    assert_eq!((status, error["code"].as_str()), (429, Some("rate_limit_exceeded")));
    assert!(error["message"].as_str().unwrap().contains("within 50ms"), "{error}");

    let waits = asked(&router, prompt("w", json!({})), SHORT, 1.0).await;
    let (status, error) = error_of(router.post("/v1/completions", &prompt("f", json!({}))).await).await;
    assert_eq!((status, error["type"].as_str()), (429, Some("rate_limit_error")));
    assert!(
        error["message"].as_str().unwrap().contains("1 completions are in work and 1 requests wait"),
        "{error}"
    );
    let high = prompt("h", json!({"priority": 1}));
    let request = router.http.post(format!("{}/v1/completions", router.base)).json(&high);
    let high = tokio::spawn(async move { request.send().await.unwrap() });
    let displaced = waits.await.unwrap();
    assert_eq!(displaced.headers()["retry-after"], "1");
    assert_eq!(error_of(displaced).await.0, 429);
    told.cancel();
    assert_eq!(first.await.unwrap().status(), 200);
    assert_eq!(high.await.unwrap().status(), 200);
    assert_eq!(order(&worker), "0h");
    for (kind, count) in [("queue_timeout", 1.0), ("queue_full", 1.0), ("queue_displaced", 1.0)] {
        let line = format!("kelvin_router_errors_total{{kind=\"{kind}\"}}");
        assert_eq!(router.metric(&line).await, Some(count), "{kind}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_the_queue_is_forgotten() {
    let (worker, told) = busy();
    let router = TestRouter::configured(&[&worker], |config| config.requests_max = 1).await;
    let first = asked(&router, prompt("0", json!({})), RUNNING, 1.0).await;
    let leaves = asked(&router, prompt("x", json!({})), SHORT, 1.0).await;
    leaves.abort();
    until(|| async { router.metric(SHORT).await.filter(|&depth| depth == 0.0) }).await;
    let next = asked(&router, prompt("n", json!({})), SHORT, 1.0).await;
    told.cancel();
    assert_eq!(first.await.unwrap().status(), 200);
    assert_eq!(next.await.unwrap().status(), 200);
    assert_eq!(order(&worker), "0n");
}

#[tokio::test]
async fn the_workers_slots_decide_how_many_are_handed_on() {
    let (worker, told) = busy();
    worker.describe(|described| described.load.as_mut().unwrap().slots = 1);
    let router = TestRouter::configured(&[&worker], |config| config.requests_per_slot = 1).await;
    let first = asked(&router, prompt("0", json!({})), RUNNING, 1.0).await;
    let second = asked(&router, prompt("1", json!({})), SHORT, 1.0).await;
    // A worker with more of them makes room, without anybody asking.
    worker.describe(|described| described.load.as_mut().unwrap().slots = 2);
    assert_eq!(second.await.unwrap().status(), 200);
    told.cancel();
    assert_eq!(first.await.unwrap().status(), 200);
}

#[tokio::test]
async fn requests_for_other_engines_wait_as_well() {
    let backend = TestBackend::start("hello").await;
    backend.then([Do::StreamAndHang(vec![event("so")])]);
    let router = TestRouter::before(&[&backend], |config| config.requests_max = 1).await;
    let mut body = chat_body("hi");
    (body["model"], body["stream"]) = ("m".into(), true.into());
    let mut running = Events::of(router.chat(&body).await);
    assert_eq!(running.first_text().await, "so");
    body["stream"] = false.into();
    let request = router.http.post(format!("{}/v1/chat/completions", router.base)).json(&body);
    let waits = tokio::spawn(async move { request.send().await.unwrap() });
    until(|| async { router.metric(SHORT).await.filter(|&depth| depth == 1.0) }).await;
    assert_eq!(backend.requests().len(), 1);
    drop(running);
    assert_eq!(waits.await.unwrap().status(), 200);
}

fn passed(text: &str, stream: bool) -> Value {
    let mut body = chat_body(text);
    (body["model"], body["stream"]) = ("m".into(), stream.into());
    body
}

/// Sends a request for another engine and returns once it is in the queue.
async fn passed_and_waits(router: &TestRouter) -> JoinHandle<reqwest::Response> {
    let url = format!("{}/v1/chat/completions", router.base);
    let request = router.http.post(url).json(&passed("waits", false));
    let waits = tokio::spawn(async move { request.send().await.unwrap() });
    until(|| async { router.metric(SHORT).await.filter(|&depth| depth == 1.0) }).await;
    waits
}

#[tokio::test]
async fn what_a_backend_does_not_take_waits() {
    let backend = TestBackend::start("hello").await;
    backend.then([Do::StreamAndHang(vec![event("so")])]);
    let router = TestRouter::before(&[&backend], |config| config.backends[0].requests_max = 1).await;
    let mut running = Events::of(router.chat(&passed("runs", true)).await);
    assert_eq!(running.first_text().await, "so");
    let waits = passed_and_waits(&router).await;
    drop(running);
    assert_eq!(waits.await.unwrap().status(), 200);
    assert_eq!(router.metric("kelvin_router_errors_total{kind=\"backends_busy\"}").await, None);
}

#[tokio::test]
async fn who_waited_goes_where_the_backends_are_by_then() {
    let (one, two) = (TestBackend::start("one").await, TestBackend::start("two").await);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("backends.json");
    let write = |url: String| std::fs::write(&path, json!({"backends": [{"url": url}]}).to_string()).unwrap();
    write(one.url());
    let router = TestRouter::before(&[], |config| {
        (config.backends_file, config.requests_max) = (Some(path.clone()), 1);
    })
    .await;
    let has = |url: String| {
        let router = &router;
        async move {
            let ready = json!([[url, "ready"]]);
            router
                .health_until(|health| {
                    let all = health["backends"].as_array().cloned().unwrap_or_default();
                    let all: Vec<Value> =
                        all.iter().map(|backend| json!([backend["url"], backend["state"]])).collect();
                    Value::from(all) == ready
                })
                .await;
        }
    };
    has(one.url()).await;
    one.then([Do::StreamAndHang(vec![event("so")])]);
    let mut running = Events::of(router.chat(&passed("runs", true)).await);
    assert_eq!(running.first_text().await, "so");
    let waits = passed_and_waits(&router).await;
    write(two.url());
    has(two.url()).await;
    drop(running);
    assert!(waits.await.unwrap().text().await.unwrap().contains("two"));
    assert_eq!((one.requests().len(), two.requests().len()), (1, 1));
}

#[tokio::test]
async fn who_waits_goes_on_waiting_while_the_only_worker_is_started_again() {
    let (worker, _told) = busy();
    worker.describe(|described| described.load.as_mut().unwrap().slots = 1);
    let router = TestRouter::configured(&[&worker], |config| {
        (config.requests_per_slot, config.migration_wait) = (1, Duration::from_secs(30));
    })
    .await;
    let mut all = vec![asked(&router, prompt("0", json!({})), RUNNING, 1.0).await];
    until(|| async { (worker.generates().len() == 1).then_some(()) }).await;
    for (index, name) in ["a", "b"].into_iter().enumerate() {
        all.push(asked(&router, prompt(name, json!({})), SHORT, (index + 1) as f64).await);
    }
    let listen = worker.listen();
    worker.kill();
    router.health_until(|health| health["workers"][0]["state"] == "lost").await;
    // Time for a few looks at how many places there are.
    tokio::time::sleep(Duration::from_millis(350)).await;
    assert_eq!((router.metric(RUNNING).await, router.metric(SHORT).await), (Some(1.0), Some(2.0)));
    until(|| async { std::net::TcpListener::bind(listen).ok().map(drop) }).await;
    let again = TestWorker::start(Setup { listen, ..Setup::decode("d") });
    for answer in all {
        assert_eq!(answer.await.unwrap().status(), 200);
    }
    assert_eq!(again.generates().len(), 3);
}

#[tokio::test]
async fn who_waits_at_the_end_hears_of_it() {
    let (worker, _told) = busy();
    let router = TestRouter::configured(&[&worker], |config| {
        (config.requests_max, config.drain_grace) = (1, Duration::ZERO);
    })
    .await;
    let first = asked(&router, prompt("0", json!({})), RUNNING, 1.0).await;
    let waits = asked(&router, prompt("1", json!({})), SHORT, 1.0).await;
    router.shutdown.cancel();
    for answer in [first, waits] {
        let (status, error) = error_of(answer.await.unwrap()).await;
        assert_eq!((status, error["code"].as_str()), (503, Some("shutting_down")));
    }
    router.ended().await.unwrap();
}

#[tokio::test]
async fn a_conversation_stays_with_its_worker() {
    let workers = ["d0", "d1", "d2"].map(|name| TestWorker::start(Setup::decode(name)));
    let router = TestRouter::start(&[&workers[0], &workers[1], &workers[2]]).await;
    for turn in 0..6 {
        let body = prompt(&"turn ".repeat(turn + 1), json!({"session_id": "s"}));
        assert_eq!(router.post("/v1/completions", &body).await.status(), 200);
        router.health_until(|health| health["requests_in_flight"] == 0).await;
    }
    let mut counts = workers.each_ref().map(|worker| worker.generates().len());
    counts.sort_unstable();
    assert_eq!(counts, [0, 0, 6]);
    let turns = |worker: &str| format!("kelvin_router_session_turns_total{{worker=\"{worker}\"}}");
    assert_eq!(router.metric(&turns("first")).await, Some(1.0));
    assert_eq!(router.metric(&turns("same")).await, Some(5.0));
    assert_eq!(router.metric("kelvin_router_sessions").await, Some(1.0));
    let last = prompt("bye", json!({"session_id": "s", "session_end": true}));
    assert_eq!(router.post("/v1/completions", &last).await.status(), 200);
    assert_eq!(router.metric("kelvin_router_sessions").await, Some(0.0));
}
