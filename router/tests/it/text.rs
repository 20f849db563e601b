//! `/v1/completions` as clients use it.

use serde_json::{Value, json};

use crate::harness::{Act, Events, Setup, TestRouter, TestWorker};

#[tokio::test]
async fn a_prompt_of_any_form_is_continued() {
    let worker = TestWorker::start(Setup::decode("d"));
    worker.on_generate(Act::say("yes"));
    let router = TestRouter::start(&[&worker]).await;
    for prompt in [json!("hi"), json!(["hi"]), json!([104, 105]), json!([[104, 105]])] {
        let response = router.post("/v1/completions", &json!({"model": "toy", "prompt": prompt})).await;
        let body: Value = response.json().await.unwrap();
        assert_eq!(body["object"], "text_completion");
        assert!(body["id"].as_str().unwrap().starts_with("cmpl-"));
        let choice = json!({"text": "yes", "index": 0, "logprobs": null, "finish_reason": "stop"});
        assert_eq!(body["choices"], json!([choice]));
        assert_eq!(body["usage"]["prompt_tokens"], 2);
        assert_eq!(worker.generates().pop().unwrap().tokens, [104, 105]);
    }
}

#[tokio::test]
async fn a_stream_has_text_and_a_reason() {
    let worker = TestWorker::start(Setup::decode("d"));
    worker.on_generate(Act::say("abc"));
    let router = TestRouter::start(&[&worker]).await;
    let body = json!({"model": "toy", "prompt": "hi", "stream": true, "logprobs": 1});
    let events = Events::of(router.post("/v1/completions", &body).await).rest().await;
    let (done, chunks) = events.split_last().unwrap();
    assert_eq!(done, "[DONE]");
    let chunks: Vec<Value> = chunks.iter().map(|data| serde_json::from_str(data).unwrap()).collect();
    let text: String = chunks.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(text, "abc");
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "stop");
    let offsets: Vec<&Value> =
        chunks[..3].iter().map(|chunk| &chunk["choices"][0]["logprobs"]["text_offset"][0]).collect();
    assert_eq!(offsets, [0, 1, 2]);
}

#[tokio::test]
async fn end_of_text_can_be_ignored() {
    let worker = TestWorker::start(Setup::decode("d"));
    let router = TestRouter::start(&[&worker]).await;
    let body = json!({"model": "toy", "prompt": "hi", "ignore_eos": true, "max_tokens": 5});
    assert_eq!(router.post("/v1/completions", &body).await.status(), 200);
    assert!(worker.generates().pop().unwrap().stop_tokens.is_empty());
}

#[tokio::test]
async fn without_a_limit_the_default_within_the_context_holds() {
    let worker = TestWorker::start(Setup::decode("d"));
    let router = TestRouter::configured(&[&worker], |config| config.tokens_max_default = 300).await;
    for (prompt_tokens, expected) in [(10, 300), (500, 12)] {
        let body = json!({"model": "toy", "prompt": "x".repeat(prompt_tokens)});
        assert_eq!(router.post("/v1/completions", &body).await.status(), 200);
        assert_eq!(worker.generates().pop().unwrap().tokens_max, expected);
    }
}
