//! What operators see.

use crate::harness::{Act, Setup, TestRouter, TestWorker, chat_body};

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
