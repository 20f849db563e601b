//! Which blocks stay: priority, time to live, quota.

use std::time::Duration;

use kelvin_kvstore::{
    Keep, Namespace, SequenceHash,
    server::{PolicyKind, Quota, Tier},
};
use kelvin_proto::kv::v1::{BlockExplanation, MissReason};

use crate::harness::*;

async fn reasons(namespace: &Namespace, hashes: &[SequenceHash]) -> Vec<MissReason> {
    namespace.explain(hashes).await.unwrap().iter().map(BlockExplanation::reason).collect()
}

#[tokio::test]
async fn what_has_a_low_priority_goes_first() {
    let store = TestStore::start_with(|config| config.tenants[0].dram_bytes = 12 << 20).await;
    let namespace = store.client("c").await.open(spec()).await.unwrap();
    let [high, usual, low] = [1, 2, 3].map(|token| namespace.hash_blocks(&[token; 4], b""));
    for (hashes, priority) in [(&high, 1), (&usual, 0), (&low, -1)] {
        store_run_to_keep(&namespace, None, hashes, 0, Keep { priority, ttl: None }).await;
    }
    let next = |token| namespace.hash_blocks(&[token; 4], b"");
    // Used last, and yet the first to go; then what is usual, though used after what is high.
    store_run_to_keep(&namespace, None, &next(4), 0, Keep { priority: 1, ttl: None }).await;
    assert_eq!(reasons(&namespace, &low).await, [MissReason::Evicted]);
    store_run_to_keep(&namespace, None, &next(5), 0, Keep { priority: 1, ttl: None }).await;
    assert_eq!(reasons(&namespace, &usual).await, [MissReason::Evicted]);
    assert_eq!(reasons(&namespace, &high).await, [MissReason::Stored]);
    store.stop().await;
}

#[tokio::test]
async fn a_block_whose_time_is_over_is_dropped() {
    let store = TestStore::start().await;
    let namespace = store.client("c").await.open(spec()).await.unwrap();
    let hashes = namespace.hash_blocks(&[1; 8], b"");
    let keep = Keep { priority: 127, ttl: Some(Duration::from_millis(1)) };
    store_run_to_keep(&namespace, None, &hashes, 0, keep).await;
    eventually("both blocks expire", async || reasons(&namespace, &hashes).await == [MissReason::Expired; 2])
        .await;
    assert_eq!(namespace.match_prefix(&hashes).await.unwrap().blocks, 0);
    store.stop().await;
}

#[tokio::test]
async fn a_model_over_its_quota_makes_room_itself() {
    let store = TestStore::start_with(|config| {
        let quota = Quota { tier: Tier::Dram, model: "m".into(), bytes: 2 * BLOCK_BYTES };
        config.tiers.quotas = vec![quota];
        config.tiers.policies.insert(Tier::Dram, PolicyKind::Lru);
    })
    .await;
    let namespace = store.client("c").await.open(spec()).await.unwrap();
    let mut other_spec = spec();
    other_spec.model = "other".into();
    let other = store.client("o").await.open(other_spec).await.unwrap();
    let bystander = other.hash_blocks(&[9; 12], b"");
    store_run(&other, None, &bystander, 0).await;
    let [first, second, third] = [1, 2, 3].map(|token| namespace.hash_blocks(&[token; 4], b""));
    for hashes in [&first, &second, &third] {
        store_run(&namespace, None, hashes, 0).await;
    }
    let kept = [&first[..], &second, &third].concat();
    let expected = [MissReason::Quota, MissReason::Stored, MissReason::Stored];
    assert_eq!(reasons(&namespace, &kept).await, expected, "the one used least lately goes");
    assert_eq!(other.match_prefix(&bystander).await.unwrap().blocks, 3, "others are left alone");
    store.stop().await;
}
