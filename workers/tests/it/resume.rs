//! Completions that another worker began.

use kelvin_proto::{Reason, worker::v1};
use kelvin_workers::{Role, TOY_END_TOKEN};

use crate::cluster::{Store, Worker, collect, prompt, reference, toy};

const STORE_BYTES: u64 = 4 << 20;
const TOKENS: u32 = 60;

/// What a worker is asked that takes over after `generated`.
fn taken_over(whole: &v1::GenerateRequest, generated: &[u32]) -> v1::GenerateRequest {
    v1::GenerateRequest {
        tokens: [&whole.tokens, generated].concat(),
        generated_tokens: generated.len() as u32,
        tokens_max: whole.tokens_max - generated.len() as u32,
        ..whole.clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rest_is_what_the_first_worker_would_have_said() {
    let store = Store::start(STORE_BYTES).await;
    let [first, second] =
        [Worker::start(Role::Decode, toy(), &store).await, Worker::start(Role::Decode, toy(), &store).await];
    let expected = reference(&toy()).turn(&prompt(100, 1), TOKENS as usize, &[]).unwrap().tokens;
    let drawn = v1::Sampling {
        temperature: 1.0,
        top_p: 0.9,
        presence_penalty: 0.4,
        frequency_penalty: 0.2,
        seed: Some(7),
        ..Default::default()
    };
    // A list of numbers, without an end of its own.
    let grammar = "start: /[0-9]+(,[0-9]+)*;/".to_owned();
    for (sampling, grammar) in [
        (None, String::new()),
        (Some(drawn.clone()), String::new()),
        (None, grammar.clone()),
        (Some(drawn), grammar),
    ] {
        let greedy = sampling.is_none() && grammar.is_empty();
        let request = v1::GenerateRequest { sampling, grammar, ..first.request(&prompt(100, 1), TOKENS) };
        let whole = collect(first.open_generate(request.clone()).await.unwrap()).await.unwrap();
        if greedy {
            assert_eq!(whole.tokens, expected);
        }
        for generated in [1, 12, 13, 40].into_iter().filter(|&count| count < whole.tokens.len()) {
            let request = taken_over(&request, &whole.tokens[..generated]);
            let rest = collect(second.open_generate(request).await.unwrap()).await.unwrap();
            assert_eq!(rest.tokens, whole.tokens[generated..], "after {generated}");
            assert_eq!(rest.finish, whole.finish);
            let usage = rest.usage;
            assert_eq!(usage.generated_tokens as usize, whole.tokens.len() - generated);
            // Blocks that the first one stored come from there; what is left is less than one of them.
            assert_eq!(usage.imported_tokens + usage.evaluated_tokens, 100 + generated as u64);
            assert!(usage.evaluated_tokens <= 16, "after {generated}: {usage:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_store_all_is_evaluated_and_the_rest_is_the_same() {
    let store = Store::start(STORE_BYTES).await;
    let worker = Worker::start(Role::Decode, toy(), &store).await;
    let request = worker.request(&prompt(100, 2), TOKENS);
    let whole = collect(worker.open_generate(request.clone()).await.unwrap()).await.unwrap();
    store.stop().await;
    for generated in [5, 50] {
        let request = taken_over(&request, &whole.tokens[..generated]);
        let rest = collect(worker.open_generate(request).await.unwrap()).await.unwrap();
        assert_eq!(rest.tokens, whole.tokens[generated..]);
        assert_eq!(rest.usage.evaluated_tokens, 100 + generated as u64);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lacks_the_last_message_alone_gets_it() {
    let store = Store::start(STORE_BYTES).await;
    let worker = Worker::start(Role::Decode, toy(), &store).await;
    let generate = async |grammar: &str, text: &str| {
        let output: Vec<u32> = text.bytes().map(u32::from).collect();
        let whole = v1::GenerateRequest {
            grammar: grammar.into(),
            stop_tokens: vec![TOY_END_TOKEN],
            ..worker.request(&prompt(20, 1), 10)
        };
        match worker.open_generate(taken_over(&whole, &output)).await {
            Ok(stream) => collect(stream).await,
            Err(refusal) => Err(refusal),
        }
    };
    let ended = generate(r#"start: "yes""#, "yes").await.unwrap();
    assert_eq!((ended.tokens.len(), ended.finish), (0, v1::FinishReason::Stop));
    let half = generate(r#"start: "yes""#, "ye").await.unwrap();
    assert_eq!((half.tokens, half.finish), (vec![u32::from(b's')], v1::FinishReason::Stop));
    let refusal = generate(r#"start: "yes""#, "no").await.unwrap_err();
    assert_eq!(refusal.reason, Reason::InvalidArgument);
    assert!(refusal.message.contains("generated_tokens"), "{refusal}");

    let mut request = worker.request(&prompt(20, 1), 5);
    request.generated_tokens = 20;
    let refusal = worker.open_generate(request).await.unwrap_err();
    assert!(refusal.message.contains("must be less than the 20 tokens"), "{refusal}");
}
