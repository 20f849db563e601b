//! Clients on the store's host: blocks filled and read in place.

use std::{
    io::{Read, Write},
    time::Duration,
};

use kelvin_kvstore::{Reserved, Transport};
use kelvin_proto::kv::v1::{self, BlockStatus, kv_service_client::KvServiceClient};

use crate::harness::*;

#[tokio::test]
async fn blocks_pass_between_processes_without_a_copy_or_a_payload_byte_in_grpc() {
    let store = TestStore::start().await;
    let writer = store.client("writer").await.open(spec()).await.unwrap();
    let reader = store.client("reader").await.open(spec()).await.unwrap();
    assert_eq!((writer.transport(), reader.transport()), (Transport::Shm, Transport::Shm));
    let hashes = writer.hash_blocks(&[1, 2, 3, 4, 5, 6, 7, 8, 9], b"");
    assert_eq!(hashes, reader.hash_blocks(&[1, 2, 3, 4, 5, 6, 7, 8], b""));
    store_run(&writer, None, &hashes, 1).await;

    assert_eq!(reader.match_prefix(&hashes).await.unwrap().tokens, 8);
    let acquired = reader.acquire(&hashes, Duration::ZERO).await.unwrap();
    assert_eq!((acquired.leases.len(), acquired.stopped), (2, None));
    for (at, lease) in acquired.leases.iter().enumerate() {
        assert!(lease.verified().unwrap() == content(1 + at as u8));
    }
    let stats = store.client("stats").await.stats().await.unwrap();
    assert_eq!(stats.copied_bytes + stats.grpc_read_bytes + stats.grpc_written_bytes, 0);
    assert_eq!((stats.shm_committed_bytes, stats.shm_leased_bytes), (2 * BLOCK_BYTES, 2 * BLOCK_BYTES));
    assert_eq!(stats.read_leases, 2);

    drop(acquired);
    eventually("leases return when dropped", async || {
        store.client("stats").await.stats().await.unwrap().read_leases == 0
    })
    .await;
    store.stop().await;
}

#[tokio::test]
async fn a_reader_waits_for_a_block_being_filled() {
    let store = TestStore::start().await;
    let writer = store.client("writer").await.open(spec()).await.unwrap();
    let reader = store.client("reader").await.open(spec()).await.unwrap();
    let hashes = writer.hash_blocks(&[1; 8], b"");
    let mut reserved = writer.reserve(None, &hashes).await.unwrap();
    let second = reserved.pop().unwrap();
    let Some(Reserved::Write(mut first)) = reserved.pop() else { panic!("reserved") };
    assert_eq!(reader.match_prefix(&hashes).await.unwrap().filling_blocks, 2);

    let waiting = {
        let (reader, hashes) = (reader.clone(), hashes.clone());
        tokio::spawn(async move { reader.acquire(&hashes, Duration::from_secs(30)).await.unwrap() })
    };
    first.bytes_mut().copy_from_slice(&content(9));
    assert_eq!(writer.commit(vec![first]).await.unwrap(), [BlockStatus::Stored]);
    let acquired = waiting.await.unwrap();
    assert_eq!((acquired.leases.len(), acquired.stopped), (1, Some(BlockStatus::Filling)));

    // What can't come any more ends the wait at once, not at its deadline.
    let waiting = {
        let (reader, hashes) = (reader.clone(), hashes.clone());
        tokio::spawn(async move { reader.acquire(&hashes[1..], Duration::from_secs(600)).await.unwrap() })
    };
    drop(second);
    let acquired = waiting.await.unwrap();
    assert_eq!((acquired.leases.len(), acquired.stopped), (0, Some(BlockStatus::Missing)));
    store.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_dies_gives_everything_back_at_once() {
    // TTLs of a minute: only the closed socket can be what ends the session.
    let store = TestStore::start_with(|config| config.session_ttl = Duration::from_secs(60)).await;
    let mut service = KvServiceClient::connect(store.endpoint()).await.unwrap();
    let opened = service.open_namespace(spec().to_wire("victim")).await.unwrap().into_inner();
    let mut socket = std::os::unix::net::UnixStream::connect(store.socket()).unwrap();
    socket.write_all(&opened.shared_memory.unwrap().token).unwrap();
    socket.read_exact(&mut [0]).unwrap();
    let reserve = v1::ReserveRequest {
        session_id: opened.session_id,
        hashes: vec![vec![1; 16].into()],
        ..Default::default()
    };
    service.reserve(reserve).await.unwrap();
    let client = store.client("watcher").await;
    let before = client.stats().await.unwrap();
    assert_eq!((before.sessions, before.write_leases), (1, 1));

    drop(socket);
    eventually("the session ends with its socket", async || {
        let stats = client.stats().await.unwrap();
        (stats.sessions, stats.write_leases, stats.tiers[0].blocks) == (0, 0, 0)
    })
    .await;
    store.stop().await;
}

#[tokio::test]
async fn a_damaged_block_is_found_by_its_reader_and_dropped() {
    let store = TestStore::start().await;
    let namespace = store.client("one").await.open(spec()).await.unwrap();
    let hashes = namespace.hash_blocks(&[1; 4], b"");
    let mut reserved = namespace.reserve(None, &hashes).await.unwrap();
    let Some(Reserved::Write(mut lease)) = reserved.pop() else { panic!("reserved") };
    lease.bytes_mut().copy_from_slice(&content(0));
    // A writer that breaks the protocol keeps writing after its commit.
    let late: *mut u8 = lease.bytes_mut().as_mut_ptr();
    namespace.commit(vec![lease]).await.unwrap();
    let acquired = namespace.acquire(&hashes, Duration::ZERO).await.unwrap();
    assert!(acquired.leases[0].verified().is_ok());
    // SAFETY: the range stays mapped while `acquired` lives, and nobody reads it during the write.
    unsafe { *late ^= 1 };
    let mismatch = acquired.leases[0].verified().unwrap_err();
    assert_eq!(mismatch.hash, hashes[0]);
    drop(acquired);
    eventually("the damaged block is a miss", async || {
        namespace.match_prefix(&hashes).await.unwrap().blocks == 0
    })
    .await;
    assert_eq!(store.client("stats").await.stats().await.unwrap().damaged_blocks, 1);
    store_run(&namespace, None, &hashes, 5).await;
    let acquired = namespace.acquire(&hashes, Duration::ZERO).await.unwrap();
    assert!(acquired.leases[0].verified().unwrap() == content(5));
    store.stop().await;
}

#[tokio::test]
async fn memory_in_use_is_not_used_again_when_its_session_ends() {
    // Room for two blocks.
    let store = TestStore::start_with(|config| config.tenants[0].dram_bytes = 8 << 20).await;
    let first = store.client("first").await.open(spec()).await.unwrap();
    let hashes = first.hash_blocks(&[1; 8], b"");
    store_run(&first, None, &hashes[..1], 1).await;
    let held = first.acquire(&hashes[..1], Duration::ZERO).await.unwrap();
    let mut reserved = first.reserve(Some(hashes[0]), &hashes[1..]).await.unwrap();
    let Some(Reserved::Write(mut filling)) = reserved.pop() else { panic!("reserved") };
    first.close().await;

    // Both slots rest, whatever others ask for, while their former holder may be at them.
    let second = store.client("second").await.open(spec()).await.unwrap();
    let others = second.hash_blocks(&[2; 8], b"");
    let got = second.reserve(None, &others).await.unwrap();
    assert!(matches!(got[0], Reserved::NoSpace), "{got:?}");
    let stats = store.client("stats").await.stats().await.unwrap();
    assert_eq!((stats.sessions, stats.read_leases, stats.write_leases, stats.parked_slots), (1, 0, 0, 2));
    filling.bytes_mut().fill(9);
    assert!(held.leases[0].verified().unwrap() == content(1));

    drop((held, filling, first));
    eventually("the slots are free", async || {
        matches!(second.reserve(None, &others[..1]).await.unwrap()[0], Reserved::Write(_))
    })
    .await;
    store.stop().await;
}
