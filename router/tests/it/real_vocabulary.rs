//! A real model's vocabulary and template, with a scripted worker behind them.

use std::path::PathBuf;

use kelvin_router::ModelSource;
use serde_json::{Value, json};

use crate::harness::{Act, Setup, TestRouter, TestWorker, chat_body};

fn model() -> PathBuf {
    std::env::var_os("KELVIN_TEST_MODEL").map(PathBuf::from).unwrap_or_else(|| {
        let home = std::env::var_os("HOME").expect("HOME is set");
        PathBuf::from(home).join(".cache/kelvin/models/SmolLM2-135M-Instruct.Q4_1.gguf")
    })
}

#[tokio::test]
async fn what_the_worker_says_in_tokens_is_read_in_text() {
    let worker = TestWorker::start(Setup::decode("d"));
    worker.describe(|described| described.vocab_tokens = 49_152);
    let router =
        TestRouter::configured(&[&worker], |config| config.model = Some(ModelSource::Gguf(model()))).await;
    // A prompt's own tokens come back as the answer.
    let text = "The café is 100% open 🦀.";
    let body = json!({"model": "toy", "prompt": text, "max_tokens": 64});
    assert_eq!(router.post("/v1/completions", &body).await.status(), 200);
    let tokens = worker.generates().pop().unwrap().tokens;
    worker.on_generate(Act::Say { tokens, imported: 0 });
    let answer: Value = router.chat(&chat_body("Hi<|im_end|>")).await.json().await.unwrap();
    assert_eq!(answer["choices"][0]["message"]["content"], text);
    let prompt = worker.generates().pop().unwrap();
    // Ids 1 and 2 begin and end a turn: a system turn, the user's, and the beginning of the answer.
    let count = |id: u32| prompt.tokens.iter().filter(|&&token| token == id).count();
    assert_eq!((count(1), count(2)), (3, 2));
    assert!(prompt.stop_tokens.contains(&2));
}
