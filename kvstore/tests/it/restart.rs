//! A store that goes away and comes back.

use std::time::Duration;

use crate::harness::*;

#[tokio::test]
async fn a_client_finds_a_restarted_store_by_itself() {
    let first = TestStore::start().await;
    let (address, socket) = (first.listening.grpc, first.socket());
    let namespace = first.client("worker").await.open(spec()).await.unwrap();
    let before = namespace.hash_blocks(&[1; 4], b"");
    store_run(&namespace, None, &before, 0).await;
    let held = namespace.acquire(&before, Duration::ZERO).await.unwrap();
    let folder = first.folder.path().to_owned();
    let keep = first.folder.path().join("keep");
    first.stop().await;
    let error = namespace.match_prefix(&before).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");

    std::fs::create_dir_all(&folder).unwrap();
    let second = TestStore::start_with(|config| {
        config.listen = address;
        config.socket = Some(socket);
    })
    .await;
    eventually("the session opens again", async || namespace.match_prefix(&before).await.is_ok()).await;
    assert!(held.leases[0].verified().is_ok(), "a lease keeps its bytes");
    let after = namespace.hash_blocks(&[1; 4], b"");
    assert_ne!(before, after, "a store without a secret of its own hashes with a new one");
    store_run(&namespace, None, &after, 0).await;
    assert_eq!(namespace.match_prefix(&after).await.unwrap().blocks, 1);
    second.stop().await;
    let _ = std::fs::remove_dir_all(folder);
    drop(keep);
}

#[tokio::test]
async fn a_closed_namespace_leaves_nothing() {
    let store = TestStore::start().await;
    let client = store.client("c").await;
    let namespace = client.open(spec()).await.unwrap();
    let hashes = namespace.hash_blocks(&[1; 8], b"");
    store_run(&namespace, None, &hashes, 0).await;
    let _held = namespace.acquire(&hashes, Duration::ZERO).await.unwrap();
    namespace.close().await;
    let stats = client.stats().await.unwrap();
    assert_eq!((stats.sessions, stats.read_leases), (0, 0));
    assert_eq!(stats.tiers[0].blocks, 2, "the blocks stay");
    store.stop().await;
    assert!(!std::path::Path::new("kv.sock").exists());
}
