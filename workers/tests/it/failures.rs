//! Clients that go, stores that go, workers that stop.

use std::time::Duration;

use kelvin_proto::Reason;
use kelvin_workers::Role;

use crate::cluster::{Store, Worker, collect, config, prompt, reference, slow_toy, toy, within};

const STORE_BYTES: u64 = 16 << 20;
const STEP: Duration = Duration::from_millis(5);

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_ends_its_sequence_and_no_other() {
    let store = Store::start(STORE_BYTES).await;
    let decode = Worker::start(Role::Decode, slow_toy(STEP, Duration::ZERO), &store).await;
    let stays = decode.open_generate(decode.request(&prompt(40, 1), 60)).await.unwrap();
    let mut goes = decode.open_generate(decode.request(&prompt(40, 2), 400)).await.unwrap();
    within("a token", goes.message()).await.unwrap();
    drop(goes);
    decode.until_load("the cancelled one is gone", |load| load.running == 1).await;
    let answer = collect(stays).await.unwrap();
    assert_eq!(answer.tokens, reference(&toy()).turn(&prompt(40, 1), 60, &[]).unwrap().tokens);
    store.settled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_while_waiting_for_blocks_frees_its_slot() {
    let store = Store::start(STORE_BYTES).await;
    let slow = slow_toy(Duration::ZERO, Duration::from_millis(2));
    let prefill = Worker::start(Role::Prefill, slow, &store).await;
    let decode = Worker::start(Role::Decode, toy(), &store).await;
    let tokens = prompt(300, 1);
    let mut filling = prefill.open_prefill(&tokens).await.unwrap();
    within("the reservation", filling.message()).await.unwrap();
    let waits = decode.open_generate(decode.request(&tokens, 5)).await.unwrap();
    decode.until_load("it waits", |load| load.running == 1).await;
    drop(waits);
    decode.until_load("its slot is free", |load| load.running == 0).await;
    // The prefill's client goes too: what was not filled is given back.
    drop(filling);
    prefill.until_load("the prefill ended", |load| load.running == 0).await;
    let stats = store.settled().await;
    assert!(stats.namespaces[0].blocks < 18, "it did not run to its end");
    let last = *prefill.prefill(&tokens[..100]).await.last().unwrap();
    assert_eq!(last.cached_blocks + last.committed_blocks, 6, "the next one works");
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_that_never_come_are_evaluated() {
    let store = Store::start(STORE_BYTES).await;
    let slow = slow_toy(Duration::ZERO, Duration::from_millis(2));
    let prefill = Worker::start(Role::Prefill, slow, &store).await;
    let decode = Worker::start(Role::Decode, toy(), &store).await;
    let tokens = prompt(300, 1);
    let mut filling = prefill.open_prefill(&tokens).await.unwrap();
    within("the reservation", filling.message()).await.unwrap();
    let waits = decode.open_generate(decode.request(&tokens, 5)).await.unwrap();
    decode.until_load("it waits", |load| load.running == 1).await;
    drop(filling);
    let answer = collect(waits).await.unwrap();
    assert_eq!(answer.tokens, reference(&toy()).turn(&tokens, 5, &[]).unwrap().tokens);
    assert_eq!(answer.usage.imported_tokens + answer.usage.evaluated_tokens, 300);
    assert!(answer.usage.imported_tokens < 288);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_is_a_miss_for_decode() {
    let store = Store::start(STORE_BYTES).await;
    let prefill = Worker::start(Role::Prefill, toy(), &store).await;
    let decode = Worker::start(Role::Decode, toy(), &store).await;
    let tokens = prompt(100, 1);
    let expected = reference(&toy()).turn(&tokens, 20, &[]).unwrap().tokens;
    assert_eq!(decode.generate(&tokens, 20).await.tokens, expected);

    let stopped = store.stop().await;
    let answer = decode.generate(&tokens, 20).await;
    assert_eq!((answer.tokens, answer.usage.imported_tokens), (expected.clone(), 0));
    let mut filling = prefill.open_prefill(&tokens).await.unwrap();
    let refused = within("a refusal", filling.message()).await.unwrap_err();
    assert_eq!(kelvin_proto::refusal_of(&refused).reason, Reason::Unavailable);

    let _store = stopped.start().await;
    within("the store is used again", async {
        loop {
            let answer = decode.generate(&tokens, 20).await;
            assert_eq!(answer.tokens, expected);
            if answer.usage.imported_tokens == 96 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses() {
    let store = Store::start(STORE_BYTES).await;
    let mut config = config(Role::Decode, slow_toy(STEP, Duration::ZERO), &store.endpoint);
    (config.slots, config.queue_max) = (1, 1);
    let decode = Worker::start_with(config).await;
    let _running = decode.open_generate(decode.request(&prompt(5, 1), 400)).await.unwrap();
    let waiting = decode.open_generate(decode.request(&prompt(5, 2), 400)).await.unwrap();
    decode.until_load("one waits", |load| (load.running, load.waiting) == (1, 1)).await;
    let refusal = decode.open_generate(decode.request(&prompt(5, 3), 5)).await.unwrap_err();
    assert_eq!(refusal.reason, Reason::Exhausted);
    drop(waiting);
    within("a place is free", async {
        while decode.open_generate(decode.request(&prompt(5, 3), 5)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_lets_requests_finish_within_the_grace() {
    let store = Store::start(STORE_BYTES).await;
    let decode = Worker::start(Role::Decode, slow_toy(STEP, Duration::ZERO), &store).await;
    let mut stream = decode.open_generate(decode.request(&prompt(40, 1), 50)).await.unwrap();
    let first = within("a token", stream.message()).await.unwrap().unwrap().tokens[0].token;
    let answer = tokio::spawn(collect(stream));
    decode.stop().await;
    let expected = reference(&toy()).turn(&prompt(40, 1), 50, &[]).unwrap().tokens;
    assert_eq!(first, expected[0]);
    let answer = answer.await.unwrap().unwrap();
    assert_eq!(answer.usage.generated_tokens, 50);
    assert_eq!(answer.tokens[answer.tokens.len() - 10..], expected[40..]);
    assert_eq!(store.stats().await.sessions, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_cuts_requests_with_an_error_after_the_grace() {
    let store = Store::start(STORE_BYTES).await;
    for role in [Role::Decode, Role::Prefill] {
        let model = slow_toy(STEP, Duration::from_millis(5));
        let mut config = config(role, model, &store.endpoint);
        config.grace = Duration::from_millis(50);
        let worker = Worker::start_with(config).await;
        let refusal = match role {
            Role::Decode => {
                let stream = worker.open_generate(worker.request(&prompt(20, 1), 400)).await.unwrap();
                let answer = tokio::spawn(collect(stream));
                worker.stop().await;
                answer.await.unwrap().unwrap_err()
            }
            Role::Prefill => {
                let mut stream = worker.open_prefill(&prompt(500, 1)).await.unwrap();
                let messages = tokio::spawn(async move {
                    loop {
                        if let Err(status) = stream.message().await.transpose().expect("no silent end") {
                            return kelvin_proto::refusal_of(&status);
                        }
                    }
                });
                worker.stop().await;
                messages.await.unwrap()
            }
        };
        assert_eq!(refusal.reason, Reason::Unavailable, "{refusal}");
    }
    let stats = store.settled().await;
    assert_eq!(stats.sessions, 0);
}
