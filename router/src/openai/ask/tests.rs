//! Bodies, and what is asked by them or wrong with them.

use super::*;
use crate::openai::body::parse;

fn ask(kind: Kind, body: &str) -> Result<Ask, String> {
    let parsed = parse::<RequestBody>(body.as_bytes()).and_then(|body| Ask::new(kind, body, 258));
    parsed.map_err(|error| error.to_json())
}

fn chat(fields: &str) -> Result<Ask, String> {
    ask(Kind::Chat, &format!(r#"{{"model":"toy","messages":[{{"role":"user","content":"hi"}}]{fields}}}"#))
}

fn text(fields: &str) -> Result<Ask, String> {
    ask(Kind::Text, &format!(r#"{{"model":"toy"{fields}}}"#))
}

fn said(role: &str, content: &str) -> ChatMessage {
    ChatMessage { role: role.into(), content: content.into(), ..Default::default() }
}

#[track_caller]
fn refused(result: Result<Ask, String>, param: &str, words: &str) {
    let error = result.expect_err("it was accepted");
    let json: Value = serde_json::from_str(&error).unwrap();
    assert_eq!(json["error"]["param"], param, "{error}");
    assert!(json["error"]["message"].as_str().unwrap().contains(words), "{words} is not in {error}");
    assert_eq!(json["error"]["type"], "invalid_request_error");
}

#[test]
fn a_plain_request_has_openais_defaults() {
    let ask = chat("").unwrap();
    assert_eq!(ask.input, Input::Messages(vec![said("user", "hi")]));
    assert_eq!((ask.sampling.temperature, ask.sampling.top_p, ask.sampling.top_k), (1.0, 1.0, 0));
    assert_eq!((ask.tokens_max, ask.logprobs, ask.stream, ask.sampling.seed), (None, None, false, None));
}

#[test]
fn everything_set_arrives() {
    let ask = chat(
        r#","temperature":0,"top_p":0.5,"top_k":-1,"min_p":0.1,"presence_penalty":-2,"frequency_penalty":2,"seed":-1,
        "logit_bias":{"7":-100},"stop":["a","b"],"max_completion_tokens":9,"stream":true,"stream_options":{"include_usage":true},
        "logprobs":true,"top_logprobs":3,"user":"u","n":1,"tools":[{}],"tool_choice":"none","response_format":{"type":"text"},"x":{}"#,
    )
    .unwrap();
    assert_eq!((ask.sampling.temperature, ask.sampling.top_k, ask.sampling.seed), (0.0, 0, Some(u64::MAX)));
    assert_eq!(ask.sampling.logit_bias, HashMap::from([(7, -100.0)]));
    assert_eq!((ask.stops.len(), ask.tokens_max, ask.logprobs), (2, Some(9), Some(3)));
    assert!(ask.stream && ask.include_usage);
}

#[test]
fn nulls_are_as_good_as_absent() {
    assert_eq!(
        chat(r#","stop":null,"n":null,"temperature":null,"logprobs":null,"tools":null,"max_tokens":null"#),
        chat("")
    );
}

#[test]
fn values_out_of_range_are_named() {
    refused(chat(r#","temperature":2.5"#), "temperature", "2.5, but must be 0 to 2");
    refused(chat(r#","top_p":-0.1"#), "top_p", "must be 0 to 1");
    refused(chat(r#","top_k":-2"#), "top_k", "-2");
    refused(chat(r#","min_p":2"#), "min_p", "must be 0 to 1");
    refused(chat(r#","presence_penalty":3"#), "presence_penalty", "-2 to 2");
    refused(chat(r#","max_tokens":0"#), "max_tokens", "at least 1");
    refused(chat(r#","max_tokens":1,"max_completion_tokens":2"#), "max_tokens", "differ");
    refused(chat(r#","stop":["a","b","c","d","e"]"#), "stop", "at most 4");
    refused(chat(r#","stop":"""#), "stop", "1 to 1024 bytes");
    refused(chat(r#","logit_bias":{"258":1}"#), "logit_bias", "below 258");
    refused(chat(r#","logit_bias":{"1":101}"#), "logit_bias", "-100 to 100");
    refused(chat(r#","logprobs":true,"top_logprobs":21"#), "top_logprobs", "0 to 20");
    refused(chat(r#","top_logprobs":1"#), "top_logprobs", "logprobs: true");
    refused(chat(r#","logprobs":3"#), "logprobs", "boolean");
    refused(chat(r#","stream_options":{}"#), "stream_options", "stream: true");
    refused(text(r#","prompt":"x","logprobs":true"#), "logprobs", "count");
}

#[test]
fn a_top_k_above_the_vocabulary_is_all_of_it_and_top_p_may_be_zero() {
    for (top_k, expected) in [("257", 257), ("259", 258), ("9223372036854775807", 258)] {
        let sampling = chat(&format!(r#","top_k":{top_k},"top_p":0"#)).unwrap().sampling;
        assert_eq!((sampling.top_k, sampling.top_p), (expected, 0.0));
    }
}

#[test]
fn more_biases_than_a_worker_takes_are_refused() {
    let biased = |count: u32| {
        let entries: Vec<_> = (0..count).map(|token| format!(r#""{token}":1"#)).collect();
        let body = format!(r#"{{"model":"toy","prompt":"x","logit_bias":{{{}}}}}"#, entries.join(","));
        let parsed = parse::<RequestBody>(body.as_bytes()).unwrap();
        Ask::new(Kind::Text, parsed, 49_152).map_err(|error| error.to_json())
    };
    assert_eq!(biased(1_024).unwrap().sampling.logit_bias.len(), 1_024);
    refused(biased(1_025), "logit_bias", "1025 entries, but at most 1024");
}

#[test]
fn wrong_types_are_named() {
    refused(chat(r#","temperature":"hot""#), "temperature", "invalid type: string");
    refused(chat(r#","max_tokens":-1"#), "max_tokens", "-1");
    refused(chat(r#","stop":7"#), "stop", "expected a string or an array of strings");
    refused(
        ask(Kind::Chat, r#"{"model":"toy","messages":[{"role":"user","content":7}]}"#),
        "messages[0].content",
        "expected a string",
    );
    refused(ask(Kind::Chat, r#"{"model":"toy","messages":"hi"}"#), "messages", "invalid type");
    refused(text(r#","prompt":{"a":1}"#), "prompt", "expected a string");
    refused(ask(Kind::Chat, r#"{"model":7}"#), "model", "invalid type");
}

#[test]
fn what_is_missing_is_named() {
    refused(ask(Kind::Chat, r#"{"messages":[{"role":"user","content":"hi"}]}"#), "model", "missing");
    refused(ask(Kind::Chat, r#"{"model":"toy"}"#), "messages", "missing");
    refused(ask(Kind::Chat, r#"{"model":"toy","messages":[]}"#), "messages", "at least one");
    refused(
        ask(Kind::Chat, r#"{"model":"toy","messages":[{"role":"user"}]}"#),
        "messages[0].content",
        "must have",
    );
    refused(text(""), "prompt", "missing");
}

#[test]
fn what_this_version_does_not_do_is_refused() {
    for (fields, param) in [
        (r#","best_of":2"#, "best_of"),
        (r#","tools":[{"type":"web_search"}]"#, "tools[0].type"),
        (r#","tools":[{}],"tool_choice":"required""#, "tools[0].type"),
        (r#","functions":[{}]"#, "functions"),
        (r#","response_format":{"type":"grammar"}"#, "response_format"),
        (r#","modalities":["text","audio"]"#, "modalities"),
    ] {
        refused(chat(fields), param, "not supported");
    }
    refused(text(r#","prompt":"x","echo":true,"logprobs":1"#), "echo", "not supported");
    refused(text(r#","prompt":"x","suffix":"y""#), "suffix", "not supported");
    refused(text(r#","prompt":["x","y"]"#), "prompt", "More than one prompt");
    let message = |message: &str| ask(Kind::Chat, &format!(r#"{{"model":"toy","messages":[{message}]}}"#));
    refused(message(r#"{"role":"function","content":"x"}"#), "messages[0].role", "not supported");
    refused(message(r#"{"role":"tool","content":"x"}"#), "messages[0].tool_call_id", "must have");
    refused(message(r#"{"role":"king","content":"x"}"#), "messages[0].role", "no role");
    refused(message(r#"{"role":"assistant"}"#), "messages[0].content", "must have");
    refused(
        message(r#"{"role":"assistant","function_call":{}}"#),
        "messages[0].function_call",
        "not supported",
    );
    let call = r#"{"role":"assistant","tool_calls":[{"function":{"name":"f"}},{}]}"#;
    refused(message(call), "messages[0].tool_calls[1].function", "must have");
    refused(
        message(r#"{"role":"user","content":"","tool_calls":[{}]}"#),
        "messages[0].tool_calls",
        "Only messages of role `assistant`",
    );
    let image =
        r#"{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url","image_url":{}}]}"#;
    refused(message(image), "messages[0].content[1]", "`image_url` are not supported");
}

#[test]
fn content_may_come_in_parts() {
    let body = r#"{"model":"toy","messages":[{"role":"developer","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}]}"#;
    let Input::Messages(messages) = ask(Kind::Chat, body).unwrap().input else { panic!("no messages") };
    assert_eq!(messages, [said("system", "a\nb")]);
}

#[test]
fn a_prompt_comes_in_many_forms() {
    let input = |prompt: &str| text(&format!(r#","prompt":{prompt}"#)).map(|ask| ask.input);
    assert_eq!(input(r#""x""#), Ok(Input::Text("x".into())));
    assert_eq!(input(r#"["x"]"#), Ok(Input::Text("x".into())));
    assert_eq!(input("[1,257]"), Ok(Input::Tokens(vec![1, 257])));
    assert_eq!(input("[[1]]"), Ok(Input::Tokens(vec![1])));
    refused(text(r#","prompt":[258]"#), "prompt", "below 258");
    refused(text(r#","prompt":[]"#), "prompt", "empty");
}

#[test]
fn broken_json_is_told_from_wrong_json() {
    let message = |body: &str| {
        let json: Value = serde_json::from_str(&ask(Kind::Chat, body).unwrap_err()).unwrap();
        json["error"]["message"].as_str().unwrap().to_owned()
    };
    assert!(message("{").contains("not valid JSON"));
    assert!(message("").contains("not valid JSON"));
    assert!(message("{}garbage").contains("not valid JSON"));
    assert!(message("[]").contains("must be a JSON object"));
    assert!(message("7").contains("not a request"));
    let deep = "[".repeat(5_000);
    assert!(message(&format!(r#"{{"tool_choice":{deep}"#)).contains("recursion limit"));
}

#[test]
fn choices_and_echo_are_taken() {
    assert_eq!(chat(r#","n":8,"best_of":8"#).unwrap().choices, 8);
    refused(chat(r#","n":0"#), "n", "must be 1 to 8");
    refused(chat(r#","n":9"#), "n", "must be 1 to 8");
    assert!(text(r#","prompt":"x","echo":true"#).unwrap().echo);
    assert!(!chat(r#","echo":true"#).unwrap().echo);
}

#[test]
fn formats_and_tools_make_grammars() {
    assert_eq!(chat("").unwrap().grammar(), "");
    let format =
        r#","response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{"type":"integer"}}}"#;
    let ask = chat(format).unwrap();
    assert!(ask.grammar().starts_with(r#"start: %json {"type":"integer""#), "{}", ask.grammar());
    assert_eq!(ask.grammar_param(), "response_format");
    let tools = r#","tools":[{"type":"function","function":{"name":"f"}}]"#;
    assert_eq!(chat(tools).unwrap().grammar(), "", "auto is free");
    let both = chat(&format!("{tools}{format}")).unwrap().grammar();
    assert!(both.starts_with("start: calls | text\n"), "{both}");
    refused(chat(&format!(r#"{tools}{format},"tool_choice":"required""#)), "response_format", "goes with");
    assert!(chat(&format!(r#"{tools},"tool_choice":"required""#)).unwrap().grammar().contains("body0"));
}

#[test]
fn hints_are_checked_and_what_has_no_effect_has_a_type() {
    let ask = chat(
        r#","priority":-3,"cache_salt":"s","session_id":"c","session_end":true,"ttl_s":60,"prefetch_next_turn":true,
        "metadata":{"a":"b"},"store":false,"service_tier":"auto","user":"u","parallel_tool_calls":false"#,
    );
    let hints = ask.unwrap().hints;
    assert_eq!((hints.priority, hints.session_id.as_deref(), hints.ttl_s), (-3, Some("c"), Some(60)));
    assert!(hints.session_end && hints.prefetch_next_turn && hints.has_after());
    assert_eq!(hints.extra(), b"salt:s");
    assert!(chat("").unwrap().hints.extra().is_empty() && !chat("").unwrap().hints.has_after());
    refused(chat(r#","cache_salt":"""#), "cache_salt", "1 to 256 bytes");
    refused(chat(r#","ttl_s":0"#), "ttl_s", "must be 1 to");
    for (fields, param) in [
        (r#","user":7"#, "user"),
        (r#","metadata":{"a":1}"#, "metadata.a"),
        (r#","store":"yes""#, "store"),
        (r#","service_tier":1"#, "service_tier"),
        (r#","priority":"high""#, "priority"),
        (r#","tools":{}"#, "tools"),
        (r#","parallel_tool_calls":"no""#, "parallel_tool_calls"),
    ] {
        refused(chat(fields), param, "Invalid value");
    }
}
