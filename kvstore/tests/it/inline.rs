//! Clients that cannot map memory: bytes inside gRPC.

use std::time::Duration;

use kelvin_kvstore::Transport;
use kelvin_proto::kv::v1::{self, BlockStatus, kv_service_client::KvServiceClient};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::harness::*;

#[tokio::test]
async fn the_same_blocks_through_grpc() {
    let store = TestStore::start().await;
    let remote = store.remote_client("remote").await.open(spec()).await.unwrap();
    let local = store.client("local").await.open(spec()).await.unwrap();
    assert_eq!(remote.transport(), Transport::Grpc);
    let hashes = remote.hash_blocks(&[7; 12], b"");
    store_run(&remote, None, &hashes[..2], 1).await;
    store_run(&local, Some(hashes[1]), &hashes[2..], 3).await;

    for namespace in [&remote, &local] {
        let acquired = namespace.acquire(&hashes, Duration::ZERO).await.unwrap();
        assert_eq!(acquired.leases.len(), 3);
        for (at, lease) in acquired.leases.iter().enumerate() {
            assert!(lease.verified().unwrap() == content(1 + at as u8), "block {at}");
        }
    }
    let stats = store.client("stats").await.stats().await.unwrap();
    assert_eq!((stats.grpc_written_bytes, stats.grpc_read_bytes), (2 * BLOCK_BYTES, 3 * BLOCK_BYTES));
    assert_eq!(stats.copied_bytes, 5 * BLOCK_BYTES);
    store.stop().await;
}

#[tokio::test]
async fn where_the_socket_is_out_of_reach_grpc_takes_over() {
    let store = TestStore::start().await;
    std::fs::remove_file(store.socket()).unwrap();
    let namespace = store.client("far").await.open(spec()).await.unwrap();
    assert_eq!(namespace.transport(), Transport::Grpc);
    let hashes = namespace.hash_blocks(&[7; 4], b"");
    store_run(&namespace, None, &hashes, 1).await;
    store.stop().await;
}

#[tokio::test]
async fn writes_that_do_not_fit_are_refused_and_leave_the_reservation() {
    let store = TestStore::start().await;
    let mut service = KvServiceClient::connect(store.endpoint()).await.unwrap();
    let opened = service.open_namespace(spec().to_wire("raw")).await.unwrap().into_inner();
    let session_id = opened.session_id;
    let reserve = v1::ReserveRequest { session_id, hashes: vec![vec![1; 16].into()], ..Default::default() };
    let lease_id = service.reserve(reserve).await.unwrap().into_inner().leases[0].lease_id;
    let frame = |bytes: usize, checksum| v1::WriteRequest {
        session_id,
        lease_id,
        data: vec![0; bytes].into(),
        checksum,
    };
    let mib = 1 << 20;
    let cases = [
        ("too short", vec![frame(10, Some(0))]),
        ("too long", vec![frame(mib, None), frame(mib, None), frame(mib, None), frame(1, Some(0))]),
        ("no checksum", vec![frame(10, None)]),
        ("nothing", vec![]),
    ];
    for (what, frames) in cases {
        let error = service.write(futures::stream::iter(frames)).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{what}: {error}");
    }
    let whole = vec![frame(mib, None), frame(mib, None), frame(mib, Some(1))];
    let status = service.write(futures::stream::iter(whole)).await.unwrap().into_inner().status();
    assert_eq!(status, BlockStatus::ChecksumMismatch);
    let again = service.write(futures::stream::iter(vec![frame(1, None)])).await.unwrap().into_inner();
    assert_eq!(again.status(), BlockStatus::StaleLease, "a failed commit gives the slot back");
    store.stop().await;
}

#[tokio::test]
async fn a_reservation_survives_a_stream_that_breaks_off() {
    let store = TestStore::start().await;
    let mut service = KvServiceClient::connect(store.endpoint()).await.unwrap();
    let session_id = service.open_namespace(spec().to_wire("raw")).await.unwrap().into_inner().session_id;
    let reserve = v1::ReserveRequest { session_id, hashes: vec![vec![1; 16].into()], ..Default::default() };
    let lease_id = service.reserve(reserve).await.unwrap().into_inner().leases[0].lease_id;
    let frame = |checksum| v1::WriteRequest { session_id, lease_id, data: vec![7; 1 << 20].into(), checksum };

    let (frames, receiver) = tokio::sync::mpsc::channel(1);
    let mut broken = service.clone();
    let call = tokio::spawn(async move { broken.write(ReceiverStream::new(receiver)).await });
    frames.send(frame(None)).await.unwrap();
    let client = store.client("stats").await;
    eventually("a frame arrives", async || client.stats().await.unwrap().grpc_written_bytes > 0).await;
    call.abort();
    assert!(call.await.is_err());
    drop(frames);

    let sum = kelvin_kernels::checksum(&[7; 3 << 20]).0;
    eventually("the reservation can be filled again", async || {
        let whole = futures::stream::iter([frame(None), frame(None), frame(Some(sum))]);
        service.clone().write(whole).await.unwrap().into_inner().status() == BlockStatus::Stored
    })
    .await;
    store.stop().await;
}
