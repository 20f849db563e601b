//! Other engines' servers behind the router: what they do well, and everything they can do wrong.

use std::time::Duration;

use kelvin_router::{BackendSpec, RouterConfig};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::harness::{DONE, Do, Events, TestBackend, TestRouter, completion, error_of, event, until};

fn body(text: &str) -> Value {
    json!({"model": "m", "messages": [{"role": "user", "content": text}], "an_unknown_field": [1, 2]})
}

fn streamed(text: &str) -> Value {
    let mut body = body(text);
    body["stream"] = true.into();
    body
}

async fn content(response: reqwest::Response) -> String {
    assert_eq!(response.status(), 200);
    let answer: Value = response.json().await.unwrap();
    answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_request_and_its_answer_go_through_as_they_are() {
    let backend = TestBackend::start("one").await;
    let router = TestRouter::before(&[&backend], |_| {}).await;
    let response = router
        .http
        .post(format!("{}/v1/chat/completions", router.base))
        .header("authorization", "Bearer key")
        .header("cookie", "private")
        .header("x-request-id", "mine")
        .json(&body("hi"))
        .send()
        .await
        .unwrap();
    assert_eq!(response.headers()["x-request-id"], "mine");
    assert_eq!(
        response.json::<Value>().await.unwrap(),
        serde_json::from_str::<Value>(&completion("one")).unwrap()
    );
    let (head, sent) = backend.requests().remove(0);
    assert_eq!(serde_json::from_str::<Value>(&sent).unwrap(), body("hi"));
    assert!(head.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("authorization: Bearer key"), "{head}");
    assert!(!head.contains("cookie"), "what is not the engine's business stays here: {head}");
    assert_eq!(router.metric("kelvin_router_prompt_tokens_total").await, Some(10.0));
    assert_eq!(router.metric("kelvin_router_prompt_tokens_cached_total").await, Some(4.0));
    let models: Value = router.get("/v1/models").await.json().await.unwrap();
    assert_eq!(models["data"][0]["id"], "m");
    assert_eq!(models["data"][0]["max_model_len"], 4096);
    backend.then([Do::Answer(200, json!({"object": "list", "data": []}).to_string())]);
    let embedded = router.post("/v1/embeddings", &json!({"model": "m", "input": "text"})).await;
    assert_eq!(embedded.status(), 200);
    assert!(backend.requests()[1].0.starts_with("POST /v1/embeddings"));
}

#[tokio::test]
async fn a_stream_goes_through_as_it_comes() {
    let backend = TestBackend::start("one").await;
    let router = TestRouter::before(&[&backend], |_| {}).await;
    backend.then([Do::Stream(vec![event("a"), event("b"), DONE.into()])]);
    let response = router.chat(&streamed("hi")).await;
    let text = response.text().await.unwrap();
    assert_eq!(text, [event("a"), event("b"), DONE.into()].concat());
    backend.then([Do::StreamAndHang(vec![event("first")])]);
    let mut events = Events::of(router.chat(&streamed("hi")).await);
    assert!(events.next().await.unwrap().contains("first"), "it does not wait for the rest");
}

#[tokio::test]
async fn a_client_that_leaves_cancels_the_work() {
    let backend = TestBackend::start("one").await;
    let router = TestRouter::before(&[&backend], |_| {}).await;
    backend.always(Do::StreamAndHang(vec![event("first")]));
    let mut events = Events::of(router.chat(&streamed("hi")).await);
    events.next().await.unwrap();
    drop(events);
    until(|| async { (backend.gone() == 1).then_some(()) }).await;
    backend.always(Do::Hang);
    let request = router.http.post(format!("{}/v1/chat/completions", router.base)).json(&body("hi"));
    let asked = tokio::spawn(request.send());
    until(|| async { (backend.requests().len() == 2).then_some(()) }).await;
    asked.abort();
    until(|| async { (backend.gone() == 2).then_some(()) }).await;
    router
        .health_until(|health| health["requests_in_flight"] == 0 && health["backends"][0]["in_flight"] == 0)
        .await;
}

/// Asks until the bad one of two backends was asked as well; every answer must be the good one's.
async fn good_in_spite_of(act: Do, request: Value, answer: Do) -> TestRouter {
    let (bad, good) = (TestBackend::start("bad").await, TestBackend::start("good").await);
    bad.always(act.clone());
    good.always(answer);
    let router = TestRouter::before(&[&bad, &good], |config| {
        config.first_token_timeout = Duration::from_millis(1500);
    })
    .await;
    until(|| async {
        let response = router.chat(&request).await;
        assert_eq!(response.status(), 200, "{act:?}");
        let text = response.text().await.unwrap();
        assert!(text.contains("good") && !text.contains("bad"), "{act:?}: {text}");
        (!bad.requests().is_empty()).then_some(())
    })
    .await;
    assert_eq!(router.metric("kelvin_router_retries_total").await, Some(1.0), "{act:?}");
    router
}

#[tokio::test]
async fn trouble_before_the_first_token_means_another_backend() {
    let raw = |text: &str| Do::Raw(text.as_bytes().to_vec());
    for (act, kind) in [
        (Do::Close, "backend_unreachable"),
        (Do::Answer(500, "{}".into()), "backend_failed"),
        (Do::Answer(503, "{}".into()), "backend_failed"),
        (Do::Answer(200, "<html>".into()), "backend_garbage"),
        (Do::Hang, "backend_stalled"),
        (raw("nonsense\r\n\r\n"), "backend_unreachable"),
        (
            raw("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{\"half"),
            "backend_cut",
        ),
        (raw("HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 7\r\n\r\n{}"), "backend_unreachable"),
    ] {
        let router = good_in_spite_of(act.clone(), body("hi"), Do::Answer(200, completion("good"))).await;
        let line = format!("kelvin_router_errors_total{{kind=\"{kind}\"}}");
        assert_eq!(router.metric(&line).await, Some(1.0), "{act:?} is {kind}");
    }
    good_in_spite_of(Do::Answer(429, "{}".into()), body("hi"), Do::Answer(200, completion("good"))).await;
}

#[tokio::test]
async fn trouble_before_the_first_piece_of_a_stream_means_another_backend() {
    for (act, kind) in [
        (Do::HalfStream(vec![]), "backend_cut"),
        (Do::Stream(vec![]), "backend_cut"),
        (Do::Answer(200, completion("no stream")), "backend_garbage"),
        (Do::StreamAndHang(vec![]), "backend_stalled"),
    ] {
        let answer = Do::Stream(vec![event("good"), DONE.into()]);
        let router = good_in_spite_of(act.clone(), streamed("hi"), answer).await;
        let line = format!("kelvin_router_errors_total{{kind=\"{kind}\"}}");
        assert_eq!(router.metric(&line).await, Some(1.0), "{act:?} is {kind}");
    }
}

#[tokio::test]
async fn a_failure_of_the_last_backend_is_counted_once() {
    let backend = TestBackend::start("one").await;
    let router = TestRouter::before(&[&backend], |_| {}).await;
    backend.then([Do::Answer(500, "{}".into())]);
    assert_eq!(error_of(router.chat(&body("hi")).await).await.0, 502);
    let line = "kelvin_router_errors_total{kind=\"backend_failed\"}";
    assert_eq!(router.metric(line).await, Some(1.0));
}

#[tokio::test]
async fn a_priority_is_the_routers() {
    let backend = TestBackend::start("one").await;
    let router = TestRouter::before(&[&backend], |_| {}).await;
    for priority in [7, 3_000_000_000_i64] {
        let mut body = body("hi");
        body["priority"] = priority.into();
        assert_eq!(content(router.chat(&body).await).await, "one");
    }
    for (_, sent) in backend.requests() {
        assert_eq!(serde_json::from_str::<Value>(&sent).unwrap(), body("hi"));
    }
    let mut wrong = body("hi");
    wrong["priority"] = "high".into();
    let (status, error) = error_of(router.chat(&wrong).await).await;
    assert_eq!((status, &error["param"]), (400, &json!("priority")));
}

#[tokio::test]
async fn a_refusal_is_the_engines_own_answer() {
    let (one, two) = (TestBackend::start("one").await, TestBackend::start("two").await);
    let router = TestRouter::before(&[&one, &two], |_| {}).await;
    let refusal = json!({"error": {"message": "too hot", "type": "BadRequestError", "param": "temperature", "code": 400}}).to_string();
    for backend in [&one, &two] {
        backend.always(Do::Answer(400, refusal.clone()));
    }
    let response = router.chat(&body("hi")).await;
    assert_eq!(response.status(), 400);
    assert_eq!(response.text().await.unwrap(), refusal);
    assert_eq!(one.requests().len() + two.requests().len(), 1, "nobody else is asked");
    let response = router.chat(&streamed("hi")).await;
    assert_eq!((response.status().as_u16(), response.text().await.unwrap()), (400, refusal));
}

#[tokio::test]
async fn a_stream_that_breaks_ends_with_an_error_event() {
    let backend = TestBackend::start("one").await;
    let router =
        TestRouter::before(&[&backend], |config| config.token_timeout = Duration::from_millis(300)).await;
    for (act, code) in [
        (Do::HalfStream(vec![event("half")]), "backend_cut"),
        (Do::Stream(vec![event("half")]), "backend_cut"),
        (Do::StreamAndHang(vec![event("half")]), "backend_stalled"),
    ] {
        backend.then([act]);
        let (text, last) = Events::of(router.chat(&streamed("hi")).await).text().await;
        assert_eq!(text, "half");
        let error: Value = serde_json::from_str(&last).unwrap();
        assert_eq!(error["error"]["code"], code);
        let line = format!("kelvin_router_errors_total{{kind=\"{code}\"}}");
        assert!(router.metric(&line).await.is_some_and(|count| count > 0.0), "{code}");
        // Three failures in a row would be too many.
        assert_eq!(content(router.chat(&body("hi")).await).await, "one");
    }
    backend.then([Do::HalfStream(vec![event("one"), "data: {\"cut\": ".into()])]);
    let text = router.chat(&streamed("hi")).await.text().await.unwrap();
    let last = text.trim_end().rsplit("\n\n").next().unwrap();
    assert!(last.starts_with("data: {\"error\""), "what was cut does not swallow the error: {text}");
}

#[tokio::test]
async fn a_backend_that_keeps_failing_is_left_alone_and_comes_back() {
    let (bad, good) = (TestBackend::start("bad").await, TestBackend::start("good").await);
    let router = TestRouter::before(&[&bad, &good], |_| {}).await;
    bad.always(Do::Answer(500, "{}".into()));
    until(|| async {
        assert_eq!(content(router.chat(&body("hi")).await).await, "good");
        let health = router.health().await;
        health["backends"]
            .as_array()
            .unwrap()
            .iter()
            .any(|backend| backend["circuit"] == "open")
            .then_some(())
    })
    .await;
    bad.always(Do::Answer(200, completion("bad")));
    until(|| async { (content(router.chat(&body("hi")).await).await == "bad").then_some(()) }).await;
    router.health_until(|health| health["status"] == "ok").await;
}

#[tokio::test]
async fn half_answers_and_nonsense_open_the_circuit_as_well() {
    let acts = [
        (Do::Answer(200, "<html>".into()), false),
        (Do::HalfStream(vec![event("half")]), true),
        (Do::StreamAndHang(vec![event("half")]), true),
        (Do::StreamAndHang(vec![]), true),
    ];
    for (act, is_stream) in acts {
        let bad = TestBackend::start("bad").await;
        let router = TestRouter::before(&[&bad], |config| {
            config.first_token_timeout = Duration::from_millis(100);
            config.token_timeout = Duration::from_millis(100);
        })
        .await;
        bad.always(act);
        let request = if is_stream { streamed("hi") } else { body("hi") };
        until(|| async {
            let _ = router.chat(&request).await.text().await;
            (router.health().await["backends"][0]["circuit"] == "open").then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_backend_that_wants_a_key_gets_it() {
    let backend = TestBackend::start("one").await;
    backend.wants("Bearer secret");
    let without = TestRouter::bare(RouterConfig {
        backends: vec![BackendSpec::new(backend.url())],
        probe_interval: Duration::from_millis(50),
        ..RouterConfig::default()
    })
    .await;
    let why = |health: &Value| health["backends"][0]["why"].as_str().unwrap_or_default().to_owned();
    let health = without.health_until(|health| why(health).contains("401")).await;
    assert_eq!(health["backends"][0]["state"], "starting");
    let router = TestRouter::before(&[], |config| {
        let key = Some("secret".into());
        config.backends = vec![BackendSpec { key, ..BackendSpec::new(backend.url()) }];
    })
    .await;
    router.health_until(|health| health["backends"][0]["state"] == "ready").await;
    assert_eq!(content(router.chat(&body("hi")).await).await, "one");
    // A client's own goes before it.
    let asked = router.http.post(format!("{}/v1/chat/completions", router.base));
    let refused = asked.header("authorization", "Bearer other").json(&body("hi")).send().await.unwrap();
    assert_eq!(refused.status(), 401);
}

#[tokio::test]
async fn a_backend_that_is_not_ready_gets_nothing() {
    let (one, two) = (TestBackend::start("one").await, TestBackend::start("two").await);
    let router = TestRouter::before(&[&one, &two], |_| {}).await;
    one.healthy(503);
    router.health_until(|health| health["backends"].to_string().contains("lost")).await;
    for _ in 0..8 {
        assert_eq!(content(router.chat(&body("hi")).await).await, "two");
    }
    assert_eq!(router.metric("kelvin_router_backends{state=\"lost\"}").await, Some(1.0));
    two.healthy(503);
    router.health_until(|health| health["status"] == "unavailable").await;
    let (status, error) = error_of(router.chat(&body("hi")).await).await;
    assert_eq!((status, &error["code"]), (503, &json!("no_backend")));
    one.healthy(200);
    router.health_until(|health| health["status"] != "unavailable").await;
    assert_eq!(content(router.chat(&body("hi")).await).await, "one");
}

#[tokio::test]
async fn one_that_was_killed_is_replaced_by_the_other_and_found_again() {
    let (one, two) = (TestBackend::start("one").await, TestBackend::start("two").await);
    let router = TestRouter::before(&[&one, &two], |_| {}).await;
    let address = one.address;
    drop(one);
    for _ in 0..8 {
        assert_eq!(content(router.chat(&body("hi")).await).await, "two");
    }
    router.health_until(|health| health["backends"].to_string().contains("lost")).await;
    let _again = TestBackend::at(address, "again").await;
    until(|| async { (content(router.chat(&body("hi")).await).await == "again").then_some(()) }).await;
}

#[tokio::test]
async fn the_file_of_backends_is_followed() {
    let (one, two) = (TestBackend::start("one").await, TestBackend::start("two").await);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("backends.json");
    let write = |backends: Value| std::fs::write(&path, json!({"backends": backends}).to_string()).unwrap();
    write(json!([{"url": one.url()}]));
    let router = TestRouter::before(&[], |config| config.backends_file = Some(path.clone())).await;
    until(|| async { (router.chat(&body("hi")).await.status() == 200).then_some(()) }).await;
    write(json!([{"url": two.url()}]));
    until(|| async {
        let response = router.chat(&body("hi")).await;
        // Between the two nobody is known to have the model, and nobody is known not to.
        assert!([200, 503].contains(&response.status().as_u16()), "{}", response.status());
        (response.status() == 200 && content(response).await == "two").then_some(())
    })
    .await;
    std::fs::write(&path, "{\"backends\": [").unwrap();
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(content(router.chat(&body("hi")).await).await, "two", "half a file changes nothing");
    write(json!([]));
    until(|| async { (router.chat(&body("hi")).await.status() == 404).then_some(()) }).await;
}

#[tokio::test]
async fn models_nobody_has_and_bodies_that_are_none_are_refused_here() {
    let backend = TestBackend::start("one").await;
    let router = TestRouter::before(&[&backend], |_| {}).await;
    let (status, error) =
        error_of(router.chat(&json!({"model": "x", "messages": [{"role": "user", "content": "a"}]})).await)
            .await;
    assert_eq!((status, &error["code"]), (404, &json!("model_not_found")));
    let (status, error) =
        error_of(router.post("/v1/embeddings", &json!({"model": "x", "input": "a"})).await).await;
    assert_eq!((status, &error["code"]), (404, &json!("model_not_found")));
    let (status, error) = error_of(router.chat(&json!({"model": "m", "stream": "yes"})).await).await;
    assert_eq!((status, &error["param"]), (400, &json!("stream")));
    assert!(backend.requests().is_empty());
}

/// Writes bytes on a connection of its own and returns all that comes back until it is closed.
async fn raw(router: &TestRouter, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(router.base.strip_prefix("http://").unwrap()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // A connection that is reset has said what it had to.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn nothing_is_smuggled_past_the_router() {
    let backend = TestBackend::start("one").await;
    let router = TestRouter::before(&[&backend], |config| config.read_timeout = Duration::from_secs(1)).await;
    let body = body("hi").to_string();
    let inner = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}";
    for head in [
        // Two lengths; a length and chunks; a length with a sign; a space before the colon; a folded header.
        format!("content-length: {}\r\ncontent-length: 1\r\n\r\n{body}", body.len()),
        format!("content-length: +{}\r\n\r\n{body}", body.len()),
        format!("content-length : {}\r\n\r\n{body}", body.len()),
        format!("transfer-encoding: chunked, identity\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len()),
        format!("transfer-encoding: xchunked\r\ncontent-length: {}\r\n\r\n{body}", body.len()),
    ] {
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{head}"
        );
        let answer = raw(&router, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{head}: {answer}");
    }
    assert!(backend.requests().is_empty());
    // Chunks win over a length, as the standard has it; what goes on has one length, ours.
    let both = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n{inner}",
        body.len()
    );
    let answer = raw(&router, both.as_bytes()).await;
    assert_eq!(answer.matches("HTTP/1.1").count(), 1, "one request, one answer: {answer}");
    for (head, sent) in backend.requests() {
        assert_eq!(sent, body);
        assert_eq!(head.to_ascii_lowercase().matches("content-length").count(), 1, "{head}");
        assert!(!head.to_ascii_lowercase().contains("transfer-encoding"), "{head}");
    }
    let long =
        format!("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nlong: {}\r\n\r\n", "x".repeat(1 << 20));
    let answer = raw(&router, long.as_bytes()).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    let many = format!("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: b\r\n".repeat(1000));
    let answer = raw(&router, many.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431") || answer.starts_with("HTTP/1.1 400"), "{answer}");
}
