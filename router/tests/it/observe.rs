//! What operators see.

use serde_json::{Value, json};

use crate::harness::{Act, DONE, Do, Setup, TestBackend, TestRouter, TestWorker, chat_body, event, until};

/// The newest of the recent requests that are over, once there are so many.
async fn newest(router: &TestRouter, count: usize) -> Value {
    until(|| async {
        let lists: Value = router.admin("/ui/api/requests").await.json().await.unwrap();
        let recent = lists["recent"].as_array().unwrap();
        (recent.len() == count).then(|| recent[0].clone())
    })
    .await
}

#[tokio::test]
async fn requests_to_other_engines_are_listed_with_what_was_expected() {
    let backend = TestBackend::start("one").await;
    let router = TestRouter::before(&[&backend], |_| {}).await;
    let text = "what everybody asks ".repeat(100);
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": text}]});
    router.chat(&body).await.bytes().await.unwrap();
    let first = newest(&router, 1).await;
    // What the engine says it was, not what was estimated.
    assert_eq!((&first["prompt_tokens"], &first["cached_tokens"]), (&json!(10), &json!(4)));
    assert_eq!((&first["matched_tokens"], &first["why"]), (&json!(0), &json!("other_engine")));
    // The second time the router knows that it sent this there, and this engine says nothing of what it used.
    body["stream"] = true.into();
    backend.then([Do::Stream(vec![event("a"), DONE.into()])]);
    router.chat(&body).await.bytes().await.unwrap();
    let second = newest(&router, 2).await;
    let tokens = |field: &str| second[field].as_u64().unwrap();
    assert!(tokens("prompt_tokens") > 400 && tokens("matched_tokens") > 300, "{second}");
    assert!(tokens("matched_tokens") <= tokens("prompt_tokens"), "{second}");
}

#[tokio::test]
async fn requests_say_why_nothing_is_known_of_the_store() {
    for (store, why) in [(None, "no_store"), (Some("http://127.0.0.1:9".to_owned()), "store_away")] {
        let worker = TestWorker::start(Setup::decode("d"));
        worker.on_generate(Act::say("abc"));
        let router = TestRouter::configured(&[&worker], |config| config.store = store).await;
        router.chat(&chat_body("hi")).await.bytes().await.unwrap();
        let seen = newest(&router, 1).await;
        assert_eq!((&seen["why"], &seen["first_missing_hash"]), (&json!(why), &Value::Null));
    }
}

#[tokio::test]
async fn metrics_are_not_for_clients() {
    let worker = TestWorker::start(Setup::decode("d"));
    let router = TestRouter::start(&[&worker]).await;
    assert_eq!(router.get("/metrics").await.status(), 404);
    for (path, host, status) in [
        ("/metrics", "localhost", 200),
        ("/health", "127.0.0.1", 200),
        ("/metrics", "elsewhere.example", 403),
        ("/health", "elsewhere.example", 403),
    ] {
        let asked = router.http.get(format!("{}{path}", router.admin)).header("host", host);
        assert_eq!(asked.send().await.unwrap().status(), status, "{path} of {host}");
    }
}

#[tokio::test]
async fn metrics_count_requests_tokens_and_workers() {
    let worker = TestWorker::start(Setup::decode("d"));
    worker.on_generate(Act::say("abc"));
    let router = TestRouter::start(&[&worker]).await;
    assert_eq!(router.chat(&chat_body("hi")).await.status(), 200);
    assert_eq!(router.get("/nowhere").await.status(), 404);
    for (line, expected) in [
        ("kelvin_router_requests_total{route=\"/v1/chat/completions\",code=\"200\"}", 1.0),
        ("kelvin_router_requests_total{route=\"other\",code=\"404\"}", 1.0),
        ("kelvin_router_prompt_tokens_total", 24.0),
        ("kelvin_router_prompt_tokens_cached_total", 0.0),
        ("kelvin_router_generated_tokens_total", 3.0),
        ("kelvin_router_time_to_first_token_seconds_count{prefill=\"local\"}", 1.0),
        ("kelvin_router_inter_token_seconds_count", 3.0),
        ("kelvin_router_requests_in_flight", 0.0),
        ("kelvin_router_workers{role=\"decode\",state=\"ready\"}", 1.0),
        ("kelvin_router_workers{role=\"decode\",state=\"lost\"}", 0.0),
    ] {
        assert_eq!(router.metric(line).await, Some(expected), "{line}");
    }
}

#[tokio::test]
async fn every_answer_has_the_requests_id() {
    let worker = TestWorker::start(Setup::decode("d"));
    let router = TestRouter::start(&[&worker]).await;
    let url = format!("{}/health", router.base);
    let given = router.http.get(&url).header("x-request-id", "mine-7").send().await.unwrap();
    assert_eq!(given.headers()["x-request-id"], "mine-7");
    let made = [router.get("/health").await, router.get("/nowhere").await];
    let ids = made.map(|response| response.headers()["x-request-id"].to_str().unwrap().to_owned());
    assert!(ids[0] != ids[1] && ids.iter().all(|id| id.len() >= 16));
}

#[tokio::test]
async fn health_shows_every_worker() {
    let (decode, prefill) = (TestWorker::start(Setup::decode("d")), TestWorker::start(Setup::prefill("p")));
    let router = TestRouter::start(&[&decode, &prefill]).await;
    let response = router.get("/health").await;
    assert_eq!(response.status(), 200);
    let health: serde_json::Value = response.json().await.unwrap();
    assert_eq!((health["status"].as_str(), health["store"].as_str()), (Some("ok"), Some("none")));
    assert_eq!(health["model"], "toy");
    let roles: Vec<&str> =
        health["workers"].as_array().unwrap().iter().map(|worker| worker["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["decode", "prefill"]);
    assert!(health["fingerprint"].as_str().unwrap().contains("dtype=f16"));
}
