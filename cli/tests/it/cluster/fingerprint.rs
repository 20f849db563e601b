//! A worker that makes other bytes under the same name.

use crate::{harness::Cluster, run};

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_another_fingerprint_is_refused_with_both_named() {
    let dir = tempfile::tempdir().unwrap();
    let up = Cluster::start(dir.path(), &[], &[]);
    let (output, _, stderr) =
        run(&["worker", "--role", "decode", "--model", "toy", "--store", up.store(), "--block-tokens", "32"]);
    assert!(!output.status.success());
    for part in ["FINGERPRINT_MISMATCH", "block_tokens=16", "block_tokens=32", "engine=toy", "they differ in"]
    {
        assert!(stderr.contains(part), "{part} in {stderr}");
    }
    up.stop();
}
