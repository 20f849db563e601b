//! What a worker says of itself, and what it refuses.

use std::time::Duration;

use kelvin_proto::{Reason, worker::v1};
use kelvin_workers::{ModelSource, Role, TOY_END_TOKEN, TOY_VOCAB_TOKENS, ToyOptions, WorkerConfig};
use tokio_util::sync::CancellationToken;

use crate::cluster::{Store, Worker, collect, config, prompt, reference, toy, within};

const STORE_BYTES: u64 = 4 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_describes_itself() {
    let store = Store::start(STORE_BYTES).await;
    let mut config = config(Role::Decode, toy(), &store.endpoint);
    config.model_name = Some("my-model".to_owned());
    config.name = "decode-7".to_owned();
    let mut worker = Worker::start_with(config).await;
    let answer = worker.client.describe(v1::DescribeRequest {}).await.unwrap().into_inner();
    assert_eq!((answer.role(), answer.model.as_str()), (v1::Role::Decode, "my-model"));
    assert_eq!((answer.block_tokens, answer.block_bytes, answer.chunk_tokens), (16, 16 * 64, 64));
    assert_eq!((answer.context_tokens_max, answer.vocab_tokens), (512, TOY_VOCAB_TOKENS));
    assert_eq!(answer.name, "decode-7");
    assert_eq!(answer.fingerprint.unwrap().engine, "toy");
    let load = answer.load.unwrap();
    assert_eq!(load.slots, 4);
    assert!(load.prefill_tokens_per_second > 0.0, "measured by the warm-up");
    let first = answer.incarnation;
    worker.stop().await;
    let mut worker = Worker::start(Role::Decode, toy(), &store).await;
    let again = worker.client.describe(v1::DescribeRequest {}).await.unwrap().into_inner();
    assert_ne!(again.incarnation, first);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_reflection_are_on() {
    use tonic_health::pb::{
        HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
    };
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };

    let store = Store::start(STORE_BYTES).await;
    let worker = Worker::start(Role::Prefill, toy(), &store).await;
    let endpoint = tonic::transport::Endpoint::from_shared(worker.endpoint.clone()).unwrap();
    let channel = endpoint.connect().await.unwrap();
    let mut health = HealthClient::new(channel.clone());
    let request = HealthCheckRequest { service: "kelvin.worker.v1.WorkerService".into() };
    let answer = health.check(request).await.unwrap().into_inner();
    assert_eq!(answer.status(), ServingStatus::Serving);

    let mut reflection = ServerReflectionClient::new(channel);
    let list = MessageRequest::ListServices(String::new());
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(list) };
    let mut answers =
        reflection.server_reflection_info(futures::stream::iter([request])).await.unwrap().into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) =
        answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("not a list");
    };
    assert!(list.service.iter().any(|service| service.name == "kelvin.worker.v1.WorkerService"));
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_say_what_to_change() {
    let store = Store::start(STORE_BYTES).await;
    let decode = Worker::start(Role::Decode, toy(), &store).await;
    let check = async |change: fn(&mut v1::GenerateRequest), reason: Reason, expected: &str| {
        let mut request = decode.request(&prompt(20, 1), 5);
        change(&mut request);
        let refusal = decode.open_generate(request).await.unwrap_err();
        assert_eq!(refusal.reason, reason, "{refusal}");
        assert!(refusal.message.contains(expected), "{refusal}");
    };
    check(|r| r.model = "gpt".into(), Reason::UnknownModel, "`toy` is").await;
    check(|r| r.tokens.clear(), Reason::InvalidArgument, "tokens must not be empty").await;
    check(|r| r.tokens[3] = 258, Reason::InvalidArgument, "token 258 is not in the vocabulary").await;
    check(|r| r.tokens = prompt(512, 1), Reason::LimitExceeded, "512 tokens; the limit is 511").await;
    check(|r| r.tokens_max = 0, Reason::InvalidArgument, "tokens_max must be at least 1").await;
    check(|r| r.extra = vec![0; 5000].into(), Reason::LimitExceeded, "5000 bytes; the limit is 4096").await;
    check(|r| r.logprobs = Some(30), Reason::InvalidArgument, "logprobs must be at most 20").await;
    check(|r| r.stop_tokens = prompt(300, 1), Reason::InvalidArgument, "stop_tokens").await;
    let hot = |r: &mut v1::GenerateRequest| {
        r.sampling = Some(v1::Sampling { temperature: 9.0, top_p: 1.0, ..Default::default() });
    };
    check(hot, Reason::InvalidArgument, "temperature must be 0 to 2").await;
    let refusal = decode.open_prefill(&prompt(20, 1)).await.unwrap_err();
    assert!(refusal.message.contains("ask a prefill worker"), "{refusal}");

    let prefill = Worker::start(Role::Prefill, toy(), &store).await;
    let refusal = prefill.open_generate(prefill.request(&prompt(20, 1), 5)).await.unwrap_err();
    assert!(refusal.message.contains("ask a decode worker"), "{refusal}");
    assert_eq!(prefill.open_prefill(&[]).await.unwrap_err().reason, Reason::InvalidArgument);
    let last = *prefill.prefill(&prompt(16, 1)).await.last().unwrap();
    assert_eq!((last.cached_blocks, last.reserved_blocks), (0, 0), "a prompt without a whole block");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_context_ends_a_completion() {
    let store = Store::start(STORE_BYTES).await;
    let decode = Worker::start(Role::Decode, toy(), &store).await;
    let answer = decode.generate(&prompt(500, 1), 100).await;
    assert_eq!((answer.tokens.len(), answer.finish), (12, v1::FinishReason::Length));
    assert_eq!(decode.generate(&prompt(511, 1), 1).await.tokens.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn sampling_stop_tokens_and_logprobs_reach_the_sampler() {
    let store = Store::start(STORE_BYTES).await;
    let decode = Worker::start(Role::Decode, toy(), &store).await;
    let tokens = prompt(20, 1);
    let mut request = decode.request(&tokens, 10);
    request.stop_tokens = vec![TOY_END_TOKEN];
    let bias = [(TOY_END_TOKEN, 100.0)].into();
    request.sampling = Some(v1::Sampling { top_p: 1.0, logit_bias: bias, ..Default::default() });
    let answer = collect(decode.open_generate(request).await.unwrap()).await.unwrap();
    assert_eq!((answer.tokens.len(), answer.finish), (0, v1::FinishReason::Stop));

    let seeded = async |seed| {
        let mut request = decode.request(&tokens, 30);
        let sampling = v1::Sampling { temperature: 1.0, top_p: 0.9, seed: Some(seed), ..Default::default() };
        request.sampling = Some(sampling);
        collect(decode.open_generate(request).await.unwrap()).await.unwrap().tokens
    };
    assert_eq!(seeded(1).await, seeded(1).await);
    assert_ne!(seeded(1).await, seeded(2).await);

    let mut request = decode.request(&tokens, 3);
    request.logprobs = Some(2);
    let mut stream = decode.open_generate(request).await.unwrap();
    let message = within("a token", stream.message()).await.unwrap().unwrap();
    let token = &message.tokens[0];
    assert_eq!(token.top.len(), 2);
    assert_eq!(token.top[0].token, token.token);
    assert!(token.logprob.unwrap() <= 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_waits_for_its_store() {
    let store = Store::start(STORE_BYTES).await;
    let endpoint = store.endpoint.clone();
    let stopped = store.stop().await;
    let starting = tokio::spawn(Worker::start_with(config(Role::Decode, toy(), &endpoint)));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!starting.is_finished());
    let _store = stopped.start().await;
    let worker = within("the worker starts", starting).await.unwrap();
    let expected = reference(&toy()).turn(&prompt(40, 1), 5, &[]).unwrap().tokens;
    assert_eq!(worker.generate(&prompt(40, 1), 5).await.tokens, expected);

    // And one that waits can be stopped.
    let shutdown = CancellationToken::new();
    let waiting = config(Role::Decode, toy(), "http://127.0.0.1:9");
    let serving = tokio::spawn(kelvin_workers::serve(waiting, |_| (), shutdown.clone()));
    shutdown.cancel();
    within("the waiting worker stops", serving).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_fingerprint_is_refused_with_both_named() {
    let store = Store::start(STORE_BYTES).await;
    let _first = Worker::start(Role::Decode, toy(), &store).await;
    let other = ModelSource::Toy(ToyOptions { token_bytes: 128, ..ToyOptions::default() });
    let serve = async |config: WorkerConfig| {
        let served = kelvin_workers::serve(config, |_| (), CancellationToken::new());
        within("a refusal", served).await.unwrap_err().to_string()
    };
    let error = serve(config(Role::Prefill, other, &store.endpoint)).await;
    assert!(error.contains("token_bytes=64") && error.contains("token_bytes=128"), "{error}");

    let missing = ModelSource::Gguf("/nonexistent/model.gguf".into());
    let error = serve(config(Role::Prefill, missing, &store.endpoint)).await;
    assert!(error.contains("/nonexistent/model.gguf") && error.contains("readable GGUF file"), "{error}");
}
