//! Parts of blocks, and a match that leases.

use std::{borrow::Cow, time::Duration};

use kelvin_kvstore::{Client, ClientOptions, Transport};
use kelvin_proto::kv::v1::{self, BlockStatus, kv_service_client::KvServiceClient};
use tonic::Code;

use crate::harness::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_each_block_comes_by_every_transport() {
    let store = TestStore::start_with(|config| config.data_listen = Some(([127, 0, 0, 1], 0).into())).await;
    let shm = store.client("shm").await.open(spec()).await.unwrap();
    let tcp = store.remote_client("tcp").await.open(spec()).await.unwrap();
    let options = ClientOptions {
        shared_memory: false,
        data_port: false,
        ..ClientOptions::new(store.endpoint(), "grpc")
    };
    let grpc = Client::connect(options).await.unwrap().open(spec()).await.unwrap();
    let hashes = shm.hash_blocks(&[7; 12], b"");
    store_run(&shm, None, &hashes[..1], 1).await;
    store_run(&shm, Some(hashes[0]), &hashes[1..2], 2).await;

    for (way, transport) in [(&shm, Transport::Shm), (&tcp, Transport::Tcp), (&grpc, Transport::Grpc)] {
        assert_eq!(way.transport(), transport);
        let leased = way.lease(&hashes, Duration::ZERO).await.unwrap();
        assert_eq!((leased.leases.len(), leased.stopped), (2, Some(BlockStatus::Missing)));
        // Over more than a frame, a byte, and all of it.
        for range in [1_000_001..2_500_003, 5..6, 0..BLOCK_BYTES] {
            let parts = way.read_parts(&leased.leases, range.clone()).await.unwrap();
            assert_eq!(parts.len(), 2);
            for (at, part) in parts.iter().enumerate() {
                assert_eq!(matches!(part, Cow::Borrowed(_)), transport == Transport::Shm);
                let whole = content(1 + at as u8);
                assert!(
                    part[..] == whole[range.start as usize..range.end as usize],
                    "{transport:?} {range:?} {at}"
                );
            }
        }
        for range in [0..BLOCK_BYTES + 1, 9..9, u64::MAX - 1..u64::MAX] {
            let error = way.read_parts(&leased.leases, range).await.unwrap_err().to_string();
            assert!(error.contains("do not lie in a block of"), "{error}");
        }
    }
    let stats = store.client("stats").await.stats().await.unwrap();
    assert_eq!(stats.tcp_read_bytes, 2 * (1_500_002 + 1 + BLOCK_BYTES), "parts, not blocks");
    eventually("every lease returns", || async {
        store.client("stats").await.stats().await.unwrap().read_leases == 0
    })
    .await;
    store.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_match_can_lease_and_name_what_it_was_asked_for() {
    let store = TestStore::start().await;
    let namespace = store.client("maker").await.open(spec()).await.unwrap();
    let tokens = vec![7; 14];
    let hashes = namespace.hash_blocks(&tokens, b"");
    store_run(&namespace, None, &hashes[..2], 3).await;

    let mut service = KvServiceClient::connect(store.endpoint()).await.unwrap();
    let opened = service.open_namespace(spec().to_wire("raw")).await.unwrap().into_inner();
    let session_id = opened.session_id;
    let prefix = v1::match_request::Prefix::Tokens(v1::TokenIds { ids: tokens, ..Default::default() });
    let ask = |lease_ttl_ms, wait_ms| v1::MatchRequest {
        session_id,
        prefix: Some(prefix.clone()),
        lease_ttl_ms,
        wait_ms,
        return_hashes: true,
    };
    let found = service.r#match(ask(0, 0)).await.unwrap().into_inner();
    assert_eq!((found.blocks, found.leases.len(), found.hashes.len()), (2, 0, 3));
    assert!(found.hashes.iter().zip(&hashes).all(|(wire, hash)| wire[..] == hash.to_bytes()));

    let found = service.r#match(ask(5_000, 0)).await.unwrap().into_inner();
    assert_eq!((found.blocks, found.leases.len()), (2, 2));
    assert!(found.leases.iter().all(|lease| lease.status() == BlockStatus::Leased && lease.lease_id != 0));

    // What they lease is read by parts through gRPC alone, and no part may be outside.
    let lease_ids: Vec<u64> = found.leases.iter().map(|lease| lease.lease_id).collect();
    let read = |offset, bytes| v1::ReadRequest {
        session_id,
        lease_ids: lease_ids.clone(),
        range: Some(v1::ByteRange { offset, bytes }),
    };
    let mut frames = service.read(read(9, 4)).await.unwrap().into_inner();
    for (at, lease_id) in lease_ids.iter().enumerate() {
        let frame = frames.message().await.unwrap().unwrap();
        assert_eq!((frame.lease_id, frame.offset), (*lease_id, 9));
        assert_eq!(frame.data, content(3 + at as u8)[9..13]);
    }
    assert!(frames.message().await.unwrap().is_none());
    for (offset, bytes) in [(0, 0), (BLOCK_BYTES, 1), (u64::MAX, 2), (1, BLOCK_BYTES)] {
        let status = service.read(read(offset, bytes)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }

    // The first block is in the making: the match waits for it.
    let other = v1::TokenIds { ids: vec![9; 8], ..Default::default() };
    let others = namespace.hash_blocks(&other.ids, b"");
    let reserved = namespace.reserve(None, &others[..1]).await.unwrap().remove(0);
    let kelvin_kvstore::Reserved::Write(mut lease) = reserved else { panic!("{reserved:?}") };
    lease.fill(&content(4));
    let mut waiter = service.clone();
    let request = v1::MatchRequest {
        session_id,
        prefix: Some(v1::match_request::Prefix::Tokens(other)),
        lease_ttl_ms: 5_000,
        wait_ms: 30_000,
        ..Default::default()
    };
    let waiting = tokio::spawn(async move { waiter.r#match(request).await.unwrap().into_inner() });
    tokio::task::yield_now().await;
    namespace.commit(vec![lease]).await.unwrap();
    let found = waiting.await.unwrap();
    assert_eq!(found.leases.iter().map(|lease| lease.status()).collect::<Vec<_>>(), [BlockStatus::Leased]);
    store.stop().await;
}
