//! Prompts on their way through prefill worker, store and decode worker.

use std::time::Duration;

use kelvin_proto::worker::v1;
use kelvin_workers::{ModelSource, Role, ToyOptions};

use crate::cluster::{BLOCK_TOKENS, Store, Worker, collect, prompt, reference, slow_toy, toy, within};

const STORE_BYTES: u64 = 16 << 20;

/// Two turns of a conversation through the whole path equal one engine doing it alone.
async fn equals_one_engine(shared_memory: bool) {
    let store = Store::start_with(STORE_BYTES, shared_memory).await;
    let prefill = Worker::start(Role::Prefill, toy(), &store).await;
    let decode = Worker::start(Role::Decode, toy(), &store).await;
    for seed in 0..20 {
        let mut alone = reference(&toy());
        let mut conversation = prompt(20 + seed * 17, seed);
        for turn in 0..2 {
            let blocks = (conversation.len() - 1) / BLOCK_TOKENS;
            let filled = prefill.prefill(&conversation).await;
            let last = filled.last().unwrap();
            assert_eq!((last.cached_blocks + last.committed_blocks) as usize, blocks);
            let answer = decode.generate(&conversation, 25).await;
            let expected = alone.turn(&conversation, 25, &[]).unwrap();
            assert_eq!(answer.tokens, expected.tokens, "prompt {seed}, turn {turn}");
            assert_eq!(answer.usage.imported_tokens as usize, blocks * BLOCK_TOKENS);
            assert_eq!(last.cached_blocks as usize * BLOCK_TOKENS, expected.reused_tokens);
            conversation.extend(answer.tokens);
            conversation.extend(prompt(30, seed + 100));
        }
    }
    let stats = store.settled().await;
    assert_eq!(stats.conflicts + stats.checksum_failures + stats.leases_expired, 0);
    assert_eq!(stats.copied_bytes == 0, shared_memory);
    assert_eq!(stats.grpc_read_bytes + stats.grpc_written_bytes == 0, shared_memory);
    prefill.stop().await;
    decode.stop().await;
    assert_eq!(store.stats().await.sessions, 0, "stopped workers leave no session");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_turns_equal_one_engine_in_shared_memory() {
    equals_one_engine(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_turns_equal_one_engine_through_grpc() {
    equals_one_engine(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_turn_finds_the_blocks_of_the_answer() {
    let store = Store::start(STORE_BYTES).await;
    let decode = Worker::start(Role::Decode, toy(), &store).await;
    let first = prompt(40, 1);
    let answer = decode.generate(&first, 30).await;
    assert_eq!((answer.usage.imported_tokens, answer.usage.evaluated_tokens), (0, 40));
    let again = decode.generate(&first, 30).await;
    assert_eq!(again.tokens, answer.tokens);
    assert_eq!((again.usage.imported_tokens, again.usage.evaluated_tokens), (32, 8));
    // 40 + 30 tokens are known, 69 are evaluated: four whole blocks, at once.
    let next = [first, answer.tokens, prompt(5, 9)].concat();
    let answer = decode.generate(&next, 3).await;
    assert_eq!((answer.usage.imported_tokens, answer.usage.evaluated_tokens), (64, 11));
    assert_eq!(answer.tokens, reference(&toy()).turn(&next, 3, &[]).unwrap().tokens);
    let load = decode.load().await;
    assert!(load.prefill_tokens_per_second > 0.0 && load.decode_step_us > 0.0 && load.import_block_us > 0.0);
    assert_eq!((load.running, load.waiting, load.finished, load.pending_prompt_tokens), (0, 0, 3, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn decode_imports_blocks_while_prefill_still_fills() {
    let store = Store::start(STORE_BYTES).await;
    let slow = slow_toy(Duration::ZERO, Duration::from_micros(500));
    let prefill = Worker::start(Role::Prefill, slow, &store).await;
    let decode = Worker::start(Role::Decode, toy(), &store).await;
    let tokens = prompt(300, 3);
    let mut filling = prefill.open_prefill(&tokens).await.unwrap();
    let first = within("the reservation", filling.message()).await.unwrap().unwrap();
    assert_eq!((first.cached_blocks, first.reserved_blocks, first.committed_blocks), (0, 18, 0));
    let answer = decode.generate(&tokens, 5).await;
    assert_eq!((answer.usage.imported_tokens, answer.usage.evaluated_tokens), (288, 12));
    assert_eq!(answer.tokens, reference(&toy()).turn(&tokens, 5, &[]).unwrap().tokens);
    let mut last = first;
    while let Some(message) = within("progress", filling.message()).await.unwrap() {
        assert!(message.committed_blocks >= last.committed_blocks);
        last = message;
    }
    assert_eq!((last.done, last.committed_blocks, last.evaluated_tokens), (true, 18, 288));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_prefills_of_one_prefix_do_not_do_it_twice() {
    let store = Store::start(STORE_BYTES).await;
    let slow = slow_toy(Duration::ZERO, Duration::from_micros(500));
    let first = Worker::start(Role::Prefill, slow.clone(), &store).await;
    let second = Worker::start(Role::Prefill, slow, &store).await;
    let shared = prompt(256, 3);
    let (one, two) = ([shared.clone(), prompt(40, 4)].concat(), [shared, prompt(40, 5)].concat());
    let (one, two) = tokio::join!(first.prefill(&one), second.prefill(&two));
    let evaluated = one.last().unwrap().evaluated_tokens + two.last().unwrap().evaluated_tokens;
    assert_eq!(evaluated, 256 + 32 + 32, "18 blocks each, 16 of them shared");
    let stats = store.settled().await;
    assert_eq!(stats.namespaces[0].blocks, 16 + 2 + 2);
    assert_eq!(stats.conflicts, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_sequences_share_a_worker() {
    let store = Store::start(STORE_BYTES).await;
    let decode = Worker::start(Role::Decode, toy(), &store).await;
    let answers = (0..8).map(|seed| {
        let decode = &decode;
        async move { decode.generate(&prompt(30 + seed * 7, seed), 20).await }
    });
    for (seed, answer) in (0..).zip(futures::future::join_all(answers).await) {
        let expected = reference(&toy()).turn(&prompt(30 + seed * 7, seed), 20, &[]).unwrap();
        assert_eq!(answer.tokens, expected.tokens, "prompt {seed}");
        assert_eq!(answer.finish, v1::FinishReason::Length);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_evicts_and_a_tiny_one_fills_what_fits() {
    // Room for 40 blocks of a page; prompts of 18 blocks each.
    let toy = || ModelSource::Toy(ToyOptions { token_bytes: 256, ..ToyOptions::default() });
    let store = Store::start(40 * 4096).await;
    let prefill = Worker::start(Role::Prefill, toy(), &store).await;
    let decode = Worker::start(Role::Decode, toy(), &store).await;
    for seed in 0..6 {
        let tokens = prompt(300, seed);
        prefill.prefill(&tokens).await;
        let answer = decode.generate(&tokens, 5).await;
        assert_eq!(answer.tokens, reference(&toy()).turn(&tokens, 5, &[]).unwrap().tokens);
        assert_eq!(answer.usage.imported_tokens, 288);
        // Leases go back behind the answer, and what is leased is not evicted for the next prompt.
        store.settled().await;
    }
    assert!(store.settled().await.evictions > 0);

    let tiny = Store::start(8 * 4096).await;
    let prefill = Worker::start(Role::Prefill, toy(), &tiny).await;
    let decode = Worker::start(Role::Decode, toy(), &tiny).await;
    let tokens = prompt(300, 7);
    let last = *prefill.prefill(&tokens).await.last().unwrap();
    assert!(last.committed_blocks > 0 && last.committed_blocks <= 8, "{last:?}");
    assert_eq!(last.committed_blocks, last.reserved_blocks);
    let mut request = decode.request(&tokens, 5);
    request.wait_blocks = last.committed_blocks;
    let answer = collect(decode.open_generate(request).await.unwrap()).await.unwrap();
    assert_eq!(answer.tokens, reference(&toy()).turn(&tokens, 5, &[]).unwrap().tokens);
    assert_eq!(answer.usage.imported_tokens, u64::from(last.committed_blocks) * 16);
    tiny.settled().await;
}
