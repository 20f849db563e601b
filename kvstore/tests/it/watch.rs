//! Block events: what is there, then what changes.

use std::collections::BTreeSet;

use kelvin_proto::kv::v1::{self, block_event::Kind};

use crate::harness::*;

/// Reads messages until the set of known blocks has `count`.
async fn follow(
    stream: &mut tonic::Streaming<v1::WatchResponse>,
    known: &mut BTreeSet<Vec<u8>>,
    count: usize,
) -> v1::WatchResponse {
    loop {
        let message = stream.message().await.unwrap().expect("the stream goes on");
        assert_eq!(message.lost, 0);
        if message.snapshot_begin {
            known.clear();
        }
        for event in &message.events {
            match event.kind() {
                Kind::Stored => known.insert(event.hash.to_vec()),
                Kind::Removed => known.remove(&event.hash.to_vec()),
                Kind::Unspecified => panic!("an event has a kind"),
            };
        }
        if known.len() == count {
            return message;
        }
    }
}

#[tokio::test]
async fn a_snapshot_then_live_events_then_on_from_a_cursor() {
    let store = TestStore::start().await;
    let client = store.client("c").await;
    let namespace = client.open(spec()).await.unwrap();
    let hashes = namespace.hash_blocks(&[3; 16], b"");
    store_run(&namespace, None, &hashes[..2], 0).await;
    let id = client.stats().await.unwrap().namespaces[0].namespace_id;

    let mut known = BTreeSet::new();
    let mut stream = client.watch(id, 0, 0).await.unwrap();
    let snapshot = follow(&mut stream, &mut known, 2).await;
    assert!(snapshot.snapshot_begin && snapshot.snapshot_end);
    store_run(&namespace, Some(hashes[1]), &hashes[2..3], 0).await;
    let live = follow(&mut stream, &mut known, 3).await;
    assert!(!live.snapshot_begin);
    drop(stream);

    store_run(&namespace, Some(hashes[2]), &hashes[3..], 0).await;
    let mut stream = client.watch(id, live.cursor, live.incarnation).await.unwrap();
    let resumed = follow(&mut stream, &mut known, 4).await;
    assert!(!resumed.snapshot_begin, "nothing is told twice");
    assert_eq!(known, hashes.iter().map(|hash| hash.to_bytes().to_vec()).collect());

    let mut stream = client.watch(id, live.cursor, live.incarnation + 1).await.unwrap();
    let other = follow(&mut stream, &mut known, 4).await;
    assert!(other.snapshot_begin, "a cursor of another start begins anew");
    assert!(client.watch(12345, 0, 0).await.is_err());

    // By the session, without knowing the namespace's number.
    let mut stream = namespace.watch(0, 0).await.unwrap();
    let own = follow(&mut stream, &mut known, 4).await;
    assert!(own.snapshot_begin && own.described.is_some());
    let mut stream = namespace.watch(live.cursor, live.incarnation).await.unwrap();
    let resumed = stream.message().await.unwrap().unwrap();
    assert!(!resumed.snapshot_begin && resumed.cursor > live.cursor);
    store.stop().await;
}

#[tokio::test]
async fn evictions_are_told() {
    // Room for a few blocks only.
    let store = TestStore::start_with(|config| config.tenants[0].dram_bytes = 12 << 20).await;
    let client = store.client("c").await;
    let namespace = client.open(spec()).await.unwrap();
    let id = client.stats().await.unwrap().namespaces[0].namespace_id;
    let mut stream = client.watch(id, 0, 0).await.unwrap();
    let first = namespace.hash_blocks(&[1; 8], b"");
    let second = namespace.hash_blocks(&[2; 8], b"");
    store_run(&namespace, None, &first, 0).await;
    store_run(&namespace, None, &second, 0).await;
    let stats = client.stats().await.unwrap();
    let (held, evicted) = (stats.tiers[0].blocks as usize, stats.evictions as usize);
    assert_eq!((held, held + evicted), (3, 4));
    let mut known = BTreeSet::new();
    follow(&mut stream, &mut known, 2).await;
    follow(&mut stream, &mut known, held).await;
    let expected = [first[0], second[0], second[1]].map(|hash| hash.to_bytes().to_vec());
    assert_eq!(known, expected.into(), "the tail of what was used least went");
    store.stop().await;
}
