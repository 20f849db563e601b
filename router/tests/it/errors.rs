//! Requests that cannot be served, and how their senders are told.

use serde_json::json;

use crate::harness::{Setup, TestRouter, TestWorker, chat_body, error_of};

#[tokio::test]
async fn malformed_and_mistyped_bodies_are_400() {
    let worker = TestWorker::start(Setup::decode("d"));
    let router = TestRouter::start(&[&worker]).await;
    let url = format!("{}/v1/chat/completions", router.base);
    let send = |body: &'static str| {
        router.http.post(&url).header("content-type", "application/json").body(body).send()
    };
    let (status, error) = error_of(send("{\"model\": ").await.unwrap()).await;
    assert_eq!((status, error["type"].as_str()), (400, Some("invalid_request_error")));
    assert!(error["message"].as_str().unwrap().contains("not valid JSON"));
    let (status, error) =
        error_of(send(r#"{"model":"toy","messages":[],"temperature":"hot"}"#).await.unwrap()).await;
    assert_eq!((status, error["param"].as_str()), (400, Some("temperature")));
    let (status, error) = error_of(send("\u{0}\u{1}garbage").await.unwrap()).await;
    assert_eq!(status, 400, "{error}");
    let (status, error) = error_of(router.http.post(&url).body("{}").send().await.unwrap()).await;
    assert_eq!(status, 400);
    assert!(error["message"].as_str().unwrap().contains("application/json"));
    assert!(worker.generates().is_empty());
}

#[tokio::test]
async fn an_unknown_model_is_404() {
    let worker = TestWorker::start(Setup::decode("d"));
    let router = TestRouter::start(&[&worker]).await;
    let mut body = chat_body("hi");
    body["model"] = "gpt-4".into();
    let (status, error) = error_of(router.chat(&body).await).await;
    assert_eq!(
        (status, error["code"].as_str(), error["param"].as_str()),
        (404, Some("model_not_found"), Some("model"))
    );
    let (status, error) = error_of(router.get("/v1/models/org/other").await).await;
    assert_eq!((status, error["code"].as_str()), (404, Some("model_not_found")));
}

#[tokio::test]
async fn what_does_not_fit_the_context_is_400_with_the_limit() {
    let worker = TestWorker::start(Setup::decode("d"));
    let router = TestRouter::start(&[&worker]).await;
    for body in [
        json!({"model": "toy", "prompt": "x".repeat(512)}),
        json!({"model": "toy", "prompt": "x".repeat(300_000)}),
        json!({"model": "toy", "prompt": vec![1; 513]}),
        json!({"model": "toy", "prompt": "x".repeat(500), "max_tokens": 13}),
    ] {
        let (status, error) = error_of(router.post("/v1/completions", &body).await).await;
        assert_eq!((status, error["code"].as_str()), (400, Some("context_length_exceeded")));
        assert!(error["message"].as_str().unwrap().contains("512 tokens"), "{error}");
    }
    assert!(worker.generates().is_empty());
}

#[tokio::test]
async fn unknown_routes_and_wrong_methods_have_the_same_shape() {
    let worker = TestWorker::start(Setup::decode("d"));
    let router = TestRouter::start(&[&worker]).await;
    let (status, error) = error_of(router.get("/v1/nothing").await).await;
    assert_eq!((status, error["code"].as_str()), (404, Some("unknown_url")));
    let response = router.get("/v1/chat/completions").await;
    assert_eq!(response.headers()["allow"], "POST");
    let (status, error) = error_of(response).await;
    assert_eq!((status, error["code"].as_str()), (405, Some("method_not_allowed")));
}

#[tokio::test]
async fn an_empty_prompt_is_400() {
    let worker = TestWorker::start(Setup::decode("d"));
    let router = TestRouter::start(&[&worker]).await;
    let (status, error) =
        error_of(router.post("/v1/completions", &json!({"model": "toy", "prompt": ""})).await).await;
    assert_eq!((status, error["param"].as_str()), (400, Some("prompt")));
}

#[tokio::test]
async fn without_a_worker_it_is_503_with_retry_after() {
    let worker = TestWorker::start(Setup::prefill("p"));
    let router = TestRouter::start(&[&worker]).await;
    let response = router.chat(&chat_body("hi")).await;
    assert_eq!(response.headers()["retry-after"], "1");
    let (status, error) = error_of(response).await;
    assert_eq!(
        (status, error["code"].as_str(), error["type"].as_str()),
        (503, Some("no_worker"), Some("server_error"))
    );
    assert_eq!(router.get("/health").await.status(), 503);
}
