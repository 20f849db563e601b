//! The whole path with a real model: text in, text out, KV through the store.

use kelvin_workers::testing::test_model;
use serde_json::{Value, json};

use super::client::{Events, post};
use crate::harness::Cluster;

/// About a thousand tokens that two questions share.
fn system() -> String {
    let facts =
        (0..60).map(|n| format!("Fact {n}: the town of number {n} lies {} miles inland.", n * 37 % 90));
    facts.collect::<Vec<_>>().join(" ")
}

fn chat(model: &str, question: &str) -> Value {
    json!({
        "model": model,
        "messages": [{"role": "system", "content": system()}, {"role": "user", "content": question}],
        "max_tokens": 12,
        "temperature": 0,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_prefix_is_cached_and_no_payload_is_copied() {
    let model = test_model();
    let dir = tempfile::tempdir().unwrap();
    let up = Cluster::serve(model.to_str().unwrap(), dir.path(), &["--context", "2048"], &[]);
    let ask = async |question: &str| {
        Events::open(&up.url(""), "/v1/chat/completions", &chat(up.model(), question)).await.collect().await
    };
    let cold = ask("Which town lies farthest inland?").await;
    let cached = |usage: &Value| usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert!(cold.done && !cold.text.is_empty() && cold.error.is_none(), "{cold:?}");
    assert_eq!(cached(&cold.usage), 0);

    let warm = ask("Name a town.").await;
    let prompt_tokens = warm.usage["prompt_tokens"].as_u64().unwrap();
    assert!(prompt_tokens > 1000, "{prompt_tokens}");
    // All but the question and the block it begins in.
    assert!(cached(&warm.usage) + 48 > prompt_tokens, "{}", warm.usage);
    let again = ask("Name a town.").await;
    assert_eq!(again.text, warm.text);
    assert!(cached(&again.usage) >= cached(&warm.usage));

    let stats = up.stats().await;
    assert!(stats.shm_committed_bytes > 1000 * 20_000 && stats.shm_leased_bytes > stats.shm_committed_bytes);
    assert_eq!(stats.grpc_read_bytes + stats.grpc_written_bytes, 0, "no payload byte goes through gRPC");
    assert_eq!(stats.copied_bytes, 0, "the store copies nothing");
    assert_eq!(stats.conflicts + stats.checksum_failures, 0);

    refusals(&up).await;
    up.stop();
}

/// Bad requests get OpenAI's error shape and say what to change.
async fn refusals(up: &Cluster) {
    let long = json!({"model": up.model(), "prompt": "word ".repeat(4000), "max_tokens": 4});
    let (status, answer) = post(&up.url(""), "/v1/completions", &long).await;
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("context_length_exceeded")), "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("2048"), "{answer}");

    let (status, answer) = post(&up.url(""), "/v1/chat/completions", &chat("gpt-5", "Hm?")).await;
    assert_eq!((status, &answer["error"]["code"]), (404, &json!("model_not_found")), "{answer}");

    let two = json!({"model": up.model(), "prompt": "a", "n": 2, "max_tokens": 4});
    let (status, answer) = post(&up.url(""), "/v1/completions", &two).await;
    assert_eq!((status, answer["choices"].as_array().map(Vec::len)), (200, Some(2)), "{answer}");

    let many = json!({"model": up.model(), "prompt": "a", "n": 99});
    let (status, answer) = post(&up.url(""), "/v1/completions", &many).await;
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("n")), "{answer}");
}
