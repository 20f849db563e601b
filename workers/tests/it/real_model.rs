//! The whole path with llama.cpp: tokens through prefill worker, store and decode worker equal one engine's.

use kelvin_workers::{ModelSource, Role, testing::test_model};

use crate::cluster::{BLOCK_TOKENS, Store, Worker, reference};

#[tokio::test(flavor = "multi_thread")]
async fn two_turns_equal_one_engine() {
    let model = ModelSource::Gguf(test_model());
    let store = Store::start(256 << 20).await;
    let prefill = Worker::start(Role::Prefill, model.clone(), &store).await;
    let decode = Worker::start(Role::Decode, model.clone(), &store).await;
    let mut alone = reference(&model);
    for seed in 0..20 {
        let mut conversation: Vec<u32> =
            (0..40 + seed * 5).map(|i| 500 + (i * 7919 + seed * 613) % 9000).collect();
        for turn in 0..2 {
            let blocks = (conversation.len() - 1) / BLOCK_TOKENS;
            prefill.prefill(&conversation).await;
            let answer = decode.generate(&conversation, 24).await;
            let expected = alone.turn(&conversation, 24, &[]).unwrap();
            assert_eq!(answer.tokens, expected.tokens, "prompt {seed}, turn {turn}");
            assert_eq!(answer.usage.imported_tokens as usize, blocks * BLOCK_TOKENS);
            conversation.extend(answer.tokens);
            conversation.extend((0..20).map(|i| 700 + (i * 31 + seed) % 5000));
        }
        // So that a prompt finds nothing but what its own turns stored, on either side.
        alone.forget();
    }
    let stats = store.settled().await;
    assert_eq!(stats.conflicts + stats.checksum_failures + stats.copied_bytes, 0);
    assert_eq!(stats.grpc_read_bytes + stats.grpc_written_bytes, 0, "no payload went through gRPC");
}
