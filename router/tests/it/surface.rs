//! Tools, formats, several choices, echo and hints, as a worker that says what it is told sees them.

use serde_json::{Value, json};

use crate::harness::{Act, Events, Setup, TestRouter, TestWorker, chat_body, error_of};

const CALL: &str = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call>";

fn with(mut body: Value, fields: Value) -> Value {
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

fn tools() -> Value {
    json!({"tools": [{"type": "function", "function": {"name": "weather", "description": "Says it.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]})
}

/// A worker whose context has room for tools in words.
fn roomy() -> TestWorker {
    let mut setup = Setup::decode("d");
    setup.described.context_tokens_max = 4096;
    TestWorker::start(setup)
}

fn text_of(tokens: &[u32]) -> String {
    tokens.iter().map(|&token| char::from(u8::try_from(token).unwrap())).collect()
}

#[tokio::test]
async fn a_call_in_text_is_a_tool_call() {
    let worker = roomy();
    worker.on_generate(Act::say(CALL));
    let router = TestRouter::start(&[&worker]).await;
    let body: Value = router.chat(&with(chat_body("hi"), tools())).await.json().await.unwrap();
    let choice = &body["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["content"], Value::Null);
    let call = &choice["message"]["tool_calls"][0];
    assert!(call["id"].as_str().unwrap().starts_with("call_"));
    assert_eq!(call["function"], json!({"name": "weather", "arguments": "{\"city\": \"Oslo\"}"}));
    let request = worker.generates().pop().unwrap();
    assert_eq!(request.grammar, "");
    let prompt = text_of(&request.tokens);
    assert!(prompt.contains("You may call functions.") && prompt.contains("\"description\":\"Says it.\""));
}

#[tokio::test]
async fn a_stream_has_calls_in_pieces_and_no_text_of_theirs() {
    let worker = roomy();
    worker.on_generate(Act::say(&format!("Let me see.\n{CALL}")));
    let router = TestRouter::start(&[&worker]).await;
    let body = with(with(chat_body("hi"), tools()), json!({"stream": true}));
    let events = Events::of(router.chat(&body).await).rest().await;
    assert_eq!(events.last().unwrap(), "[DONE]");
    let chunks: Vec<Value> =
        events[..events.len() - 1].iter().map(|data| serde_json::from_str(data).unwrap()).collect();
    let delta = |chunk: &Value| chunk["choices"][0]["delta"].clone();
    let text: String =
        chunks.iter().filter_map(|chunk| delta(chunk)["content"].as_str().map(str::to_owned)).collect();
    assert_eq!(text, "Let me see.");
    let calls: Vec<Value> = chunks.iter().map(|chunk| delta(chunk)["tool_calls"][0].clone()).collect();
    let calls: Vec<&Value> = calls.iter().filter(|call| !call.is_null()).collect();
    assert_eq!((&calls[0]["function"]["name"], &calls[0]["index"]), (&json!("weather"), &json!(0)));
    assert!(calls.len() > 5 && calls[1..].iter().all(|call| call.get("id").is_none()), "{calls:?}");
    let arguments: String =
        calls.iter().map(|call| call["function"]["arguments"].as_str().unwrap()).collect();
    assert_eq!(arguments, "{\"city\": \"Oslo\"}");
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn required_tools_and_schemas_go_to_the_worker_as_a_grammar() {
    let worker = roomy();
    let router = TestRouter::start(&[&worker]).await;
    let required = with(with(chat_body("hi"), tools()), json!({"tool_choice": "required"}));
    assert_eq!(router.chat(&required).await.status(), 200);
    assert!(worker.generates().pop().unwrap().grammar.starts_with("start: calls\n"));
    let format =
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}});
    assert_eq!(router.chat(&with(chat_body("hi"), format.clone())).await.status(), 200);
    assert!(worker.generates().pop().unwrap().grammar.starts_with("start: %json {"));
}

#[tokio::test]
async fn answers_of_tools_are_part_of_the_prompt() {
    let worker = TestWorker::start(Setup::decode("d"));
    let router = TestRouter::start(&[&worker]).await;
    let body = json!({"model": "toy", "messages": [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "c1", "type": "function",
            "function": {"name": "weather", "arguments": "{\"city\": \"Oslo\"}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"}]});
    assert_eq!(router.chat(&body).await.status(), 200);
    let prompt = text_of(&worker.generates().pop().unwrap().tokens);
    assert_eq!(
        prompt,
        "<|user|>hi\n<|assistant|><tool_call>\n{\"name\":\"weather\",\"arguments\":{\"city\":\"Oslo\"}}\n</tool_call>\n<|user|><tool_response>\nsunny\n</tool_response>\n<|assistant|>"
    );
}

#[tokio::test]
async fn choices_have_seeds_indices_and_one_sum() {
    let worker = TestWorker::start(Setup::decode("d"));
    for text in ["a", "bb", "ccc"] {
        worker.on_generate(Act::say(text));
    }
    let router = TestRouter::start(&[&worker]).await;
    let body = with(chat_body("hi"), json!({"n": 3, "seed": 7}));
    let whole: Value = router.chat(&body).await.json().await.unwrap();
    let mut texts: Vec<String> = Vec::new();
    for (index, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
        assert_eq!(choice["index"], index);
        texts.push(choice["message"]["content"].as_str().unwrap().to_owned());
    }
    texts.sort();
    assert_eq!(texts, ["a", "bb", "ccc"]);
    let prompt_tokens = "<|user|>hi\n<|assistant|>".len();
    assert_eq!(
        (&whole["usage"]["prompt_tokens"], &whole["usage"]["completion_tokens"]),
        (&json!(prompt_tokens), &json!(6))
    );
    let requests = worker.generates();
    let mut seeds: Vec<u64> =
        requests.iter().map(|request| request.sampling.as_ref().unwrap().seed.unwrap()).collect();
    seeds.sort_unstable();
    assert_eq!(seeds, [7, 8, 9]);
    let ids: std::collections::HashSet<&str> =
        requests.iter().map(|request| request.request_id.as_str()).collect();
    assert_eq!(ids.len(), 3);
}

#[tokio::test]
async fn streamed_choices_each_begin_and_end() {
    let worker = TestWorker::start(Setup::decode("d"));
    worker.on_generate(Act::say("ab"));
    worker.on_generate(Act::say("cd"));
    let router = TestRouter::start(&[&worker]).await;
    let fields = json!({"n": 2, "stream": true, "stream_options": {"include_usage": true}});
    let events = Events::of(router.chat(&with(chat_body("hi"), fields)).await).rest().await;
    let chunks: Vec<Value> =
        events[..events.len() - 1].iter().map(|data| serde_json::from_str(data).unwrap()).collect();
    for index in 0..2 {
        let own: Vec<&Value> = chunks
            .iter()
            .map(|chunk| &chunk["choices"][0])
            .filter(|choice| choice["index"] == index)
            .collect();
        assert_eq!(own[0]["delta"]["role"], "assistant");
        assert_eq!(own.last().unwrap()["finish_reason"], "stop");
        let text: String = own.iter().filter_map(|choice| choice["delta"]["content"].as_str()).collect();
        assert!(["ab", "cd"].contains(&text.as_str()), "{text}");
    }
    assert_eq!(chunks.last().unwrap()["usage"]["completion_tokens"], 4);
}

#[tokio::test]
async fn every_choice_takes_a_place() {
    let worker = TestWorker::start(Setup::decode("d"));
    let router = TestRouter::configured(&[&worker], |config| config.requests_max = 2).await;
    assert_eq!(router.chat(&with(chat_body("hi"), json!({"n": 2}))).await.status(), 200);
    let (status, error) = error_of(router.chat(&with(chat_body("hi"), json!({"n": 3}))).await).await;
    assert_eq!((status, &error["param"]), (400, &json!("n")));
    assert!(error["message"].as_str().unwrap().contains("at most 2"), "{error}");
    assert_eq!(router.health().await["requests_in_flight"], 0);
}

#[tokio::test]
async fn echo_puts_the_prompt_first() {
    let worker = TestWorker::start(Setup::decode("d"));
    let router = TestRouter::start(&[&worker]).await;
    for prompt in [json!("né"), json!([110, 195, 169])] {
        worker.on_generate(Act::say("!"));
        let body = json!({"model": "toy", "prompt": prompt, "echo": true});
        let whole: Value = router.post("/v1/completions", &body).await.json().await.unwrap();
        assert_eq!(whole["choices"][0]["text"], "né!");
        worker.on_generate(Act::say("!"));
        let stream = router.post("/v1/completions", &with(body, json!({"stream": true}))).await;
        assert_eq!(Events::of(stream).text().await.0, "né!");
    }
}

#[tokio::test]
async fn a_salt_goes_into_the_hashes() {
    let worker = TestWorker::start(Setup::decode("d"));
    let router = TestRouter::start(&[&worker]).await;
    let hints =
        json!({"cache_salt": "team-a", "priority": 3, "session_id": "s", "ttl_s": 5, "session_end": true});
    assert_eq!(router.chat(&with(chat_body("hi"), hints)).await.status(), 200);
    assert_eq!(&worker.generates().pop().unwrap().extra[..], b"salt:team-a");
    assert_eq!(router.chat(&chat_body("hi")).await.status(), 200);
    assert!(worker.generates().pop().unwrap().extra.is_empty());
}
