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
    std::fs::remove_dir_all(folder).unwrap();
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
    let socket = store.socket();
    store.stop().await;
    assert!(!socket.exists());
}

#[tokio::test]
async fn a_busy_client_keeps_its_session() {
    let ttl = Duration::from_millis(600);
    let store = TestStore::start_with(|config| config.session_ttl = ttl).await;
    let client = store.client("busy").await;
    let namespace = client.open(spec()).await.unwrap();
    let hashes = namespace.hash_blocks(&[1; 4], b"");
    store_run(&namespace, None, &hashes, 0).await;
    // Gives a lease back far more often than the session is renewed, for three times its TTL.
    let end = tokio::time::Instant::now() + 3 * ttl;
    while tokio::time::Instant::now() < end {
        let acquired = namespace.acquire(&hashes, Duration::ZERO).await.unwrap();
        assert_eq!(acquired.leases.len(), 1);
        tokio::time::sleep(ttl / 20).await;
    }
    store.stop().await;
}
