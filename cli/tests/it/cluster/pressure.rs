//! A store at its limit.

use super::client::{completion, post};
use crate::harness::Cluster;

#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_evicts_and_requests_go_on() {
    // Room for 64 blocks; each prompt has 40.
    let dir = tempfile::tempdir().unwrap();
    let up = Cluster::start(dir.path(), &["--dram", "256KiB"], &[]);
    let prompt = |n: usize| format!("{n:04}").repeat(160);
    let mut first = None;
    for n in 0..12 {
        let (status, answer) =
            post(&up.url(""), "/v1/completions", &completion(up.model(), &prompt(n), 20)).await;
        assert_eq!(status, 200, "{answer}");
        let text = answer["choices"][0]["text"].clone();
        first.get_or_insert((text, answer["usage"]["completion_tokens"].clone()));
    }
    let stats = up.stats().await;
    assert!(stats.evictions > 0);
    assert!(stats.tiers[0].used_bytes <= stats.tiers[0].capacity_bytes);

    // What was evicted is computed again, and comes out the same.
    let (_, again) = post(&up.url(""), "/v1/completions", &completion(up.model(), &prompt(0), 20)).await;
    let again = (again["choices"][0]["text"].clone(), again["usage"]["completion_tokens"].clone());
    assert_eq!(Some(again), first);
    up.stop();
}
