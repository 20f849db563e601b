//! Streams of other engines whose server is lost on the way: another one goes on behind what was told.

use std::time::Duration;

use kelvin_router::RouterConfig;
use serde_json::{Value, json};

use crate::harness::{DONE, Do, Events, TestBackend, TestRouter, event, until};

const SESSION: &str = "s";

fn chat() -> Value {
    json!({"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": true, "max_tokens": 10,
        "session_id": SESSION, "an_unknown_field": [1, 2]})
}

/// A piece of a text completion.
fn piece(text: &str) -> String {
    let chunk = json!({"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "text": text, "finish_reason": null}], "usage": null});
    format!("data: {chunk}\n\n")
}

/// As engines begin and end a chat.
fn opening(id: &str) -> String {
    let chunk = json!({"id": id, "created": 5, "model": "m", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": null}]});
    format!("data: {chunk}\n\n")
}

fn end(reason: &str) -> String {
    let chunk = json!({"id": "z", "created": 5, "model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]});
    format!("data: {chunk}\n\n")
}

fn usage(prompt: u64, cached: u64, generated: u64) -> String {
    let chunk = json!({"id": "z", "created": 5, "model": "m", "choices": [], "usage": {"prompt_tokens": prompt,
        "completion_tokens": generated, "total_tokens": prompt + generated, "prompt_tokens_details": {"cached_tokens": cached}}});
    format!("data: {chunk}\n\n")
}

/// A router before two servers, of which the first has the session.
async fn two(change: impl FnOnce(&mut RouterConfig)) -> (TestRouter, TestBackend, TestBackend) {
    let (one, two) = (TestBackend::start("one").await, TestBackend::start("two").await);
    let router = TestRouter::before(&[&one, &two], change).await;
    let mut body = chat();
    body["stream"] = false.into();
    let answer = router.chat(&body).await.text().await.unwrap();
    if answer.contains("\"one\"") { (router, one, two) } else { (router, two, one) }
}

fn sent(backend: &TestBackend) -> Value {
    serde_json::from_str(&backend.requests().pop().expect("a request").1).unwrap()
}

async fn stayed(router: &TestRouter, why: &str) -> Option<f64> {
    router.metric(&format!("kelvin_router_backend_streams_stayed_total{{why=\"{why}\"}}")).await
}

#[tokio::test]
async fn a_chat_goes_on_where_it_was() {
    let (router, first, second) = two(|_| {}).await;
    first.then([Do::HalfStream(vec![event("so "), event("far"), "data: {\"id\": \"half".into()])]);
    let more = [opening("z"), event(" so"), event(" good"), end("stop"), usage(22, 12, 3), DONE.into()];
    second.then([Do::Stream(more.into())]);
    let mut body = chat();
    body["stream_options"] = json!({"include_usage": true});
    let events = Events::of(router.chat(&body).await).rest().await;
    let texts: Vec<Value> =
        events[..events.len() - 1].iter().map(|e| serde_json::from_str(e).unwrap()).collect();
    let said: String =
        texts.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!((said.as_str(), events.last().unwrap().as_str()), ("so far so good", "[DONE]"));
    assert_eq!(events.len(), 7, "neither the half event nor the second opening: {events:?}");
    assert!(texts.iter().all(|event| event["id"] == "chatcmpl-1" && event["created"] == 1), "{texts:?}");
    let told = &texts[5]["usage"];
    assert_eq!((&told["prompt_tokens"], &told["completion_tokens"]), (&json!(20), &json!(5)));
    assert_eq!(told["total_tokens"], 25);

    let sent = sent(&second);
    let mut expected = chat();
    expected.as_object_mut().unwrap().remove("session_id");
    expected["messages"] =
        json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "so far"}]);
    expected["stream_options"] = json!({"include_usage": true});
    expected["max_tokens"] = json!(8);
    expected["continue_final_message"] = json!(true);
    expected["add_generation_prompt"] = json!(false);
    assert_eq!(sent, expected);
    let metric = async |name: &str| router.metric(&format!("kelvin_router_{name}")).await.unwrap();
    until(|| async { (metric("migration_tokens_total").await == 22.0).then_some(()) }).await;
    assert_eq!(metric("migrations_total").await, 1.0);
    assert_eq!(metric("migration_recomputed_tokens_total").await, 10.0);
    assert_eq!(metric("migration_pause_seconds_count").await, 1.0);
    assert_eq!(metric("errors_total{kind=\"backend_cut\"}").await, 1.0);
    assert_eq!(metric("requests_in_flight").await, 0.0);
    // Ten and two of the request before.
    assert_eq!(metric("prompt_tokens_total").await, 30.0);
    assert_eq!(metric("generated_tokens_total").await, 7.0);
    let health = router.health().await;
    assert!(health["backends"].as_array().unwrap().iter().all(|backend| backend["in_flight"] == 0));
    // The session stays where it went.
    let mut body = chat();
    body["stream"] = false.into();
    let answer = router.chat(&body).await.text().await.unwrap();
    assert_eq!(second.requests().len(), 2, "{answer}");
}

#[tokio::test]
async fn a_text_goes_on_and_nobody_hears_what_nobody_asked_for() {
    let (router, first, second) = two(|_| {}).await;
    first.then([Do::Stream(vec![piece("so ")])]);
    let more = [piece("far"), end("stop"), usage(22, 12, 1), DONE.into()];
    second.then([Do::Stream(more.into())]);
    let body =
        json!({"model": "m", "prompt": "It is ", "stream": true, "max_tokens": 9, "session_id": SESSION});
    let (text, last) = Events::of(router.post("/v1/completions", &body).await).text().await;
    assert_eq!((text.as_str(), last.as_str()), ("so far", "[DONE]"));
    let sent = sent(&second);
    assert_eq!((&sent["prompt"], &sent["max_tokens"]), (&json!("It is so "), &json!(8)));
}

#[tokio::test]
async fn silence_and_an_engines_own_failure_are_a_loss_as_well() {
    let (router, first, second) = two(|config| config.token_timeout = Duration::from_millis(300)).await;
    let failed = "data: {\"error\": {\"message\": \"the engine is dead\", \"code\": 500}}\n\n";
    let more = || Do::Stream(vec![event("far"), end("stop"), DONE.into()]);
    first.then([Do::StreamAndHang(vec![opening("a")])]);
    second.then([more()]);
    let (text, last) = Events::of(router.chat(&chat()).await).text().await;
    assert_eq!((text.as_str(), last.as_str()), ("far", "[DONE]"));
    let mut as_it_was = sent(&second);
    as_it_was.as_object_mut().unwrap().remove("stream_options");
    as_it_was["session_id"] = SESSION.into();
    assert_eq!(as_it_was, chat(), "nothing was told, so it begins again");
    // It is the second one's session now.
    second.then([Do::Stream(vec![event("so "), failed.into(), DONE.into()])]);
    first.then([more()]);
    let (text, last) = Events::of(router.chat(&chat()).await).text().await;
    assert_eq!((text.as_str(), last.as_str()), ("so far", "[DONE]"));
    // With nobody to go on it is the engine that says what happened.
    first.then([Do::Stream(vec![event("so "), failed.into(), DONE.into()])]);
    second.then([Do::Close]);
    let (text, last) = Events::of(router.chat(&chat()).await).text().await;
    assert!(text == "so " && last.contains("the engine is dead"), "{last}");
    assert_eq!(stayed(&router, "nobody").await, Some(1.0));
}

#[tokio::test]
async fn an_end_that_was_lost_is_told() {
    let (router, first, second) = two(|config| config.token_timeout = Duration::from_millis(300)).await;
    let all = || vec![event("all"), end("length")];
    let failed = "data: {\"error\": {\"message\": \"the engine is dead\", \"code\": 500}}\n\n";
    let mut body = chat();
    body["stream_options"] = json!({"include_usage": true});
    for act in [
        Do::HalfStream(all()),
        Do::Stream(all()),
        Do::StreamAndHang(all()),
        Do::Stream([all(), vec![failed.into()]].concat()),
        // Nothing is missing but the end of the body.
        Do::StreamAndHang([all(), vec![DONE.into()]].concat()),
        Do::HalfStream([all(), vec![DONE.into()]].concat()),
    ] {
        first.then([act.clone()]);
        let events = Events::of(router.chat(&body).await).rest().await;
        assert_eq!((events.len(), events[2].as_str()), (3, "[DONE]"), "{act:?}: {events:?}");
        // Three failures in a row would be too many.
        let mut whole = chat();
        whole["stream"] = false.into();
        assert_eq!(router.chat(&whole).await.status(), 200);
    }
    assert_eq!(second.requests().len(), 0);
}

#[tokio::test]
async fn what_could_not_go_on_has_its_end_as_well() {
    let (router, first, second) = two(|_| {}).await;
    let schema = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {}}});
    first.then([Do::HalfStream(vec![event("{}"), end("stop")])]);
    let mut body = chat();
    body["response_format"] = schema;
    let (text, last) = Events::of(router.chat(&body).await).text().await;
    assert_eq!((text.as_str(), last.as_str()), ("{}", "[DONE]"));
    let refused = "data: {\"error\": {\"message\": \"no\", \"code\": 400}}\n\n";
    first.then([Do::Stream(vec![refused.into()])]);
    let text = router.chat(&chat()).await.text().await.unwrap();
    assert_eq!(text, refused, "the engine's own answer, and all of it");
    assert_eq!(second.requests().len(), 0);
}

#[tokio::test]
async fn one_end_of_two_is_none() {
    let (router, first, second) = two(|_| {}).await;
    let one_of_two = || Do::HalfStream(vec![piece("all"), end("stop")]);
    for body in [
        json!({"model": "m", "prompt": ["a", "b"], "stream": true, "max_tokens": 9, "session_id": SESSION}),
        json!({"model": "m", "prompt": "a", "n": 2, "stream": true, "max_tokens": 9, "session_id": SESSION}),
    ] {
        first.then([one_of_two()]);
        let (_, last) = Events::of(router.post("/v1/completions", &body).await).text().await;
        assert!(last.contains("backend_cut"), "{last}");
    }
    assert_eq!(second.requests().len(), 0);
}

#[tokio::test]
async fn an_answer_that_had_not_begun_is_whole() {
    let (router, first, second) = two(|_| {}).await;
    first.then([Do::HalfStream(vec![": ping\n\n".into()])]);
    second.then([Do::Stream(vec![opening("z"), event("all"), end("stop"), DONE.into()])]);
    let text = router.chat(&chat()).await.text().await.unwrap();
    assert_eq!(text.matches("\"role\":\"assistant\"").count(), 1, "{text}");
    assert!(text.ends_with(DONE) && text.contains("\"z\""), "{text}");
}

#[tokio::test]
async fn what_nobody_can_go_on_behind_ends_with_an_error_event() {
    let (router, first, second) = two(|_| {}).await;
    let schema = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {}}});
    let call = "data: {\"choices\": [{\"index\": 0, \"delta\": {\"tool_calls\": [{\"index\": 0}]}}]}\n\n";
    for (change, said, why) in [
        (json!({"response_format": schema}), event("{\"a"), "constrained"),
        (json!({"n": 2}), event("a"), "several"),
        (json!({}), call.to_owned(), "not_text"),
    ] {
        first.then([Do::HalfStream(vec![said])]);
        let mut body = chat();
        body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let events = Events::of(router.chat(&body).await).rest().await;
        let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
        assert_eq!(last["error"]["code"], "backend_cut", "{why}");
        assert_eq!(stayed(&router, why).await, Some(1.0), "{why}");
        // Three failures in a row would be too many.
        let mut whole = chat();
        whole["stream"] = false.into();
        assert_eq!(router.chat(&whole).await.status(), 200);
    }
    assert_eq!(second.requests().len(), 0);
}

#[tokio::test]
async fn a_stream_moves_as_often_as_it_may() {
    let (router, first, second) = two(|config| config.migrations_max = 1).await;
    let third = || Do::HalfStream(vec![event("b")]);
    first.then([Do::HalfStream(vec![event("a")])]);
    second.then([third()]);
    let (text, last) = Events::of(router.chat(&chat()).await).text().await;
    assert!(text == "ab" && last.contains("backend_cut"), "{last}");
    assert_eq!(stayed(&router, "too_often").await, Some(1.0));
    let (router, first, second) = two(|config| config.migrations_max = 0).await;
    first.then([Do::HalfStream(vec![event("a")])]);
    let (text, last) = Events::of(router.chat(&chat()).await).text().await;
    assert!(text == "a" && last.contains("backend_cut") && second.requests().is_empty(), "{last}");
}

#[tokio::test]
async fn one_that_refuses_to_go_on_ends_it() {
    let (router, first, second) = two(|_| {}).await;
    first.then([Do::HalfStream(vec![event("a")])]);
    second.then([Do::Answer(400, json!({"error": {"message": "no such field"}}).to_string())]);
    let (text, last) = Events::of(router.chat(&chat()).await).text().await;
    assert!(text == "a" && last.contains("backend_failed"), "{last}");
    assert_eq!(stayed(&router, "nobody").await, Some(1.0));
}

#[tokio::test]
async fn the_only_one_may_come_back() {
    let first = TestBackend::start("one").await;
    let router =
        TestRouter::before(&[&first], |config| config.migration_wait = Duration::from_secs(30)).await;
    let address = first.address;
    first.always(Do::StreamAndHang(vec![event("so ")]));
    // More than open its circuit.
    let mut streams = Vec::new();
    for _ in 0..8 {
        let mut events = Events::of(router.chat(&chat()).await);
        assert_eq!(events.first_text().await, "so ");
        streams.push(events);
    }
    drop(first);
    router.health_until(|health| health["backends"].to_string().contains("lost")).await;
    let again = TestBackend::at(address, "again").await;
    again.always(Do::Stream(vec![event("far"), end("stop"), DONE.into()]));
    for events in streams {
        let (text, last) = events.text().await;
        assert_eq!((text.as_str(), last.as_str()), ("far", "[DONE]"));
    }
    assert_eq!(sent(&again)["messages"][1]["content"], "so");
    assert_eq!(router.metric("kelvin_router_migrations_total").await, Some(8.0));
}

#[tokio::test]
async fn the_only_one_may_come_back_before_anybody_sees_that_it_was_away() {
    let first = TestBackend::start("one").await;
    let router =
        TestRouter::before(&[&first], |config| config.migration_wait = Duration::from_secs(30)).await;
    first
        .then([Do::HalfStream(vec![event("so ")]), Do::Stream(vec![event("far"), end("stop"), DONE.into()])]);
    let (text, last) = Events::of(router.chat(&chat()).await).text().await;
    assert_eq!((text.as_str(), last.as_str()), ("so far", "[DONE]"));
}

#[tokio::test]
async fn a_client_that_leaves_during_a_move_cancels_it() {
    let (router, first, second) = two(|_| {}).await;
    first.then([Do::HalfStream(vec![event("so ")])]);
    second.then([Do::Hang]);
    let mut events = Events::of(router.chat(&chat()).await);
    assert_eq!(events.first_text().await, "so ");
    until(|| async { (!second.requests().is_empty()).then_some(()) }).await;
    drop(events);
    until(|| async { (second.gone() == 1).then_some(()) }).await;
    router.health_until(|health| health["requests_in_flight"] == 0).await;
}
