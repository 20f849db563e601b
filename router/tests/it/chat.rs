//! `/v1/chat/completions` as clients use it.

use serde_json::{Value, json};

use crate::harness::{Act, Events, Setup, TestRouter, TestWorker, chat_body};

#[tokio::test]
async fn a_whole_answer_has_text_reason_and_counts() {
    let worker = TestWorker::start(Setup::decode("d"));
    worker.on_generate(Act::say("héllo"));
    let router = TestRouter::start(&[&worker]).await;
    let response = router.chat(&chat_body("hi")).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/json");
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["object"], "chat.completion");
    assert!(body["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert!(body["created"].as_u64().unwrap() > 1_700_000_000);
    assert_eq!(body["model"], "toy");
    let choice = &body["choices"][0];
    assert_eq!(choice["message"], json!({"role": "assistant", "content": "héllo", "refusal": null}));
    assert_eq!((choice["finish_reason"].as_str(), &choice["logprobs"]), (Some("stop"), &Value::Null));
    let prompt_tokens = "<|user|>hi\n<|assistant|>".len();
    assert_eq!(
        body["usage"],
        json!({"prompt_tokens": prompt_tokens, "completion_tokens": 6, "total_tokens": prompt_tokens + 6,
               "prompt_tokens_details": {"cached_tokens": 0}})
    );
}

#[tokio::test]
async fn the_worker_gets_tokens_and_sampling() {
    let worker = TestWorker::start(Setup::decode("d"));
    let router = TestRouter::start(&[&worker]).await;
    let mut body = chat_body("hi");
    let fields = json!({"temperature": 0.0, "top_p": 0.5, "top_k": 7, "min_p": 0.25, "seed": 42, "max_tokens": 3,
        "presence_penalty": 1.0, "frequency_penalty": -1.0, "logit_bias": {"104": -100}});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    assert_eq!(router.chat(&body).await.status(), 200);
    let request = worker.generates().pop().unwrap();
    let expected: Vec<u32> = "<|user|>hi\n<|assistant|>".bytes().map(u32::from).collect();
    assert_eq!(request.tokens, expected);
    assert_eq!((request.model.as_str(), request.tokens_max, request.stop_tokens), ("toy", 3, vec![257]));
    assert_eq!((request.wait_blocks, request.logprobs), (0, None));
    assert!(!request.request_id.is_empty() && request.wait_ms > 0);
    let sampling = request.sampling.unwrap();
    assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p), (0.0, 0.5, 7, 0.25));
    assert_eq!((sampling.seed, sampling.presence_penalty, sampling.frequency_penalty), (Some(42), 1.0, -1.0));
    assert_eq!(sampling.logit_bias.into_iter().collect::<Vec<_>>(), [(104, -100.0)]);
}

#[tokio::test]
async fn a_stream_is_role_text_reason_usage_done() {
    let worker = TestWorker::start(Setup::decode("d"));
    worker.on_generate(Act::say("né!"));
    let router = TestRouter::start(&[&worker]).await;
    let mut body = chat_body("hi");
    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    let events = Events::of(router.chat(&body).await).rest().await;
    let (done, chunks) = events.split_last().unwrap();
    assert_eq!(done, "[DONE]");
    let chunks: Vec<Value> = chunks.iter().map(|data| serde_json::from_str(data).unwrap()).collect();
    assert!(
        chunks
            .iter()
            .all(|chunk| chunk["object"] == "chat.completion.chunk" && chunk["id"] == chunks[0]["id"])
    );
    let choices: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"][0]).collect();
    assert_eq!(choices[0]["delta"], json!({"role": "assistant", "content": ""}));
    let texts: Vec<&Value> = choices[1..4].iter().map(|choice| &choice["delta"]["content"]).collect();
    assert_eq!(texts, ["n", "é", "!"], "a character never comes in halves");
    assert_eq!((&choices[4]["delta"], &choices[4]["finish_reason"]), (&json!({}), &json!("stop")));
    assert!(chunks[..5].iter().all(|chunk| chunk["usage"].is_null()));
    assert_eq!(chunks[5]["choices"], json!([]));
    assert_eq!(chunks[5]["usage"]["completion_tokens"], 4);
    assert_eq!(chunks.len(), 6);
}

#[tokio::test]
async fn without_include_usage_no_chunk_has_usage() {
    let worker = TestWorker::start(Setup::decode("d"));
    let router = TestRouter::start(&[&worker]).await;
    let mut body = chat_body("hi");
    body["stream"] = true.into();
    let events = Events::of(router.chat(&body).await).rest().await;
    assert!(events.len() > 3 && events.iter().all(|data| !data.contains("usage")));
}

#[tokio::test]
async fn a_stop_string_over_tokens_ends_the_answer_and_the_work() {
    let worker = TestWorker::start(Setup::decode("d"));
    worker.on_generate(Act::SayAndHang("one. STOP here".bytes().map(u32::from).collect()));
    let router = TestRouter::start(&[&worker]).await;
    let mut body = chat_body("hi");
    body["stop"] = json!(["never", "STOP"]);
    let whole: Value = router.chat(&body).await.json().await.unwrap();
    assert_eq!(whole["choices"][0]["message"]["content"], "one. ");
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    assert_eq!(whole["usage"]["completion_tokens"], 9);
    body["stream"] = true.into();
    let (text, last) = Events::of(router.chat(&body).await).text().await;
    assert_eq!((text.as_str(), last.as_str()), ("one. ", "[DONE]"));
    crate::harness::until(|| async { (worker.cancelled() == 2).then_some(()) }).await;
}

#[tokio::test]
async fn a_beginning_of_a_stop_string_comes_out_at_the_end() {
    let worker = TestWorker::start(Setup::decode("d"));
    worker.on_generate(Act::say("to the ST"));
    let router = TestRouter::start(&[&worker]).await;
    let mut body = chat_body("hi");
    body["stop"] = "STOP".into();
    let whole: Value = router.chat(&body).await.json().await.unwrap();
    assert_eq!(whole["choices"][0]["message"]["content"], "to the ST");
}

#[tokio::test]
async fn the_token_limit_shows_as_length() {
    let worker = TestWorker::start(Setup::decode("d"));
    let router = TestRouter::start(&[&worker]).await;
    let mut body = chat_body("hi");
    body["max_completion_tokens"] = 2.into();
    let whole: Value = router.chat(&body).await.json().await.unwrap();
    assert_eq!(whole["choices"][0]["message"]["content"], "he");
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn log_probabilities_come_with_their_text() {
    let worker = TestWorker::start(Setup::decode("d"));
    worker.on_generate(Act::say("ab"));
    let router = TestRouter::start(&[&worker]).await;
    let mut body = chat_body("hi");
    body["logprobs"] = true.into();
    body["top_logprobs"] = 2.into();
    let whole: Value = router.chat(&body).await.json().await.unwrap();
    let content = whole["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 2);
    assert_eq!((content[1]["token"].as_str(), content[1]["logprob"].as_f64()), (Some("b"), Some(-0.25)));
    assert_eq!(content[1]["bytes"], json!([98]));
    assert_eq!(content[1]["top_logprobs"].as_array().unwrap().len(), 2);
    body["stream"] = true.into();
    let events = Events::of(router.chat(&body).await).rest().await;
    let with_logs = events.iter().filter(|data| data.contains("\"top_logprobs\"")).count();
    assert_eq!(with_logs, 2);
}
