//! The data port: blocks over TCP, its faults and its enemies.

use std::{io::ErrorKind, net::SocketAddr, time::Duration};

use kelvin_kernels::checksum;
use kelvin_kvstore::{Client, ClientOptions, Transport};
use kelvin_proto::kv::v1::{self, BlockStatus, kv_service_client::KvServiceClient};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::harness::*;

async fn start() -> TestStore {
    TestStore::start_with(|config| config.data_listen = Some(([127, 0, 0, 1], 0).into())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_blocks_through_every_transport() {
    let store = start().await;
    let tcp = store.remote_client("tcp").await.open(spec()).await.unwrap();
    let shm = store.client("shm").await.open(spec()).await.unwrap();
    let options = ClientOptions {
        shared_memory: false,
        data_port: false,
        ..ClientOptions::new(store.endpoint(), "grpc")
    };
    let grpc = Client::connect(options).await.unwrap().open(spec()).await.unwrap();
    let ways = [&tcp, &shm, &grpc];
    assert_eq!(ways.map(|way| way.transport()), [Transport::Tcp, Transport::Shm, Transport::Grpc]);
    let hashes = tcp.hash_blocks(&[7; 12], b"");
    for (at, way) in ways.into_iter().enumerate() {
        store_run(way, at.checked_sub(1).map(|above| hashes[above]), &hashes[at..=at], 1 + at as u8).await;
    }
    for way in ways {
        let acquired = way.acquire(&hashes, Duration::ZERO).await.unwrap();
        assert_eq!(acquired.leases.len(), 3);
        for (at, lease) in acquired.leases.iter().enumerate() {
            assert!(lease.verified().unwrap() == content(1 + at as u8), "block {at}");
        }
    }
    let stats = store.client("stats").await.stats().await.unwrap();
    assert_eq!((stats.tcp_written_bytes, stats.tcp_read_bytes), (BLOCK_BYTES, 3 * BLOCK_BYTES));
    assert_eq!(stats.copied_bytes, 4 * BLOCK_BYTES, "only gRPC copies");
    store.stop().await;
}

/// A session over plain gRPC with one reservation, and a data connection of it.
struct Raw {
    service: KvServiceClient<tonic::transport::Channel>,
    session_id: u64,
    token: Vec<u8>,
    lease_id: u64,
    address: SocketAddr,
}

const HEAD: usize = 32;
const STALE: u8 = BlockStatus::StaleLease as u8;

fn head(kind: u8, lease: u64, offset: u64, bytes: u64) -> Vec<u8> {
    let mut head = vec![kind, 0, 0, 0, 9, 0, 0, 0];
    [lease, offset, bytes].iter().for_each(|number| head.extend_from_slice(&number.to_le_bytes()));
    head
}

fn number(head: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(head[at..at + 8].try_into().unwrap())
}

impl Raw {
    async fn open(store: &TestStore) -> Self {
        let mut service = KvServiceClient::connect(store.endpoint()).await.unwrap();
        let opened = service.open_namespace(spec().to_wire("raw")).await.unwrap().into_inner();
        let session_id = opened.session_id;
        let reserve =
            v1::ReserveRequest { session_id, hashes: vec![vec![1; 16].into()], ..Default::default() };
        let lease_id = service.reserve(reserve).await.unwrap().into_inner().leases[0].lease_id;
        let token = opened.data_port.unwrap().token.to_vec();
        Self { service, session_id, token, lease_id, address: store.data_port() }
    }

    async fn connect(&self) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let hello = [&b"KLVD\x01\0\0\0"[..], &self.token].concat();
        stream.write_all(&hello).await.unwrap();
        let mut welcome = [0; 8];
        stream.read_exact(&mut welcome).await.unwrap();
        assert_eq!(&welcome, b"KLVD\x01\0\x01\0");
        stream
    }

    async fn commit(&mut self, bytes: &[u8]) -> BlockStatus {
        let blocks = vec![v1::CommitBlock { lease_id: self.lease_id, checksum: checksum(bytes).0 }];
        let request = v1::CommitRequest { session_id: self.session_id, blocks };
        self.service.commit(request).await.unwrap().into_inner().statuses().next().unwrap()
    }

    async fn lease(&mut self) -> u64 {
        let hashes = vec![vec![1; 16].into()];
        let request = v1::AcquireRequest { session_id: self.session_id, hashes, ..Default::default() };
        self.service.acquire(request).await.unwrap().into_inner().leases[0].lease_id
    }
}

async fn answer(stream: &mut TcpStream) -> (Vec<u8>, Vec<u8>) {
    let mut head = vec![0; HEAD];
    stream.read_exact(&mut head).await.unwrap();
    let mut payload = vec![0; number(&head, 24) as usize];
    stream.read_exact(&mut payload).await.unwrap();
    (head, payload)
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_are_written_and_read() {
    let store = start().await;
    let mut raw = Raw::open(&store).await;
    let mut stream = raw.connect().await;
    let (bytes, middle) = (content(5), 1_000_001);
    // The second half first.
    for range in [middle..bytes.len(), 0..middle] {
        let request = head(2, raw.lease_id, range.start as u64, range.len() as u64);
        stream.write_all(&[&request, &bytes[range.clone()]].concat()).await.unwrap();
        let (head, _) = answer(&mut stream).await;
        assert_eq!((head[0], head[1]), (2, BlockStatus::Ok as u8));
        assert_eq!(number(&head, 8), checksum(&bytes[range]).0);
    }
    assert_eq!(raw.commit(&bytes).await, BlockStatus::Stored);
    let lease = raw.lease().await;
    for range in [0..bytes.len(), 10..11, 4096..2_000_000] {
        stream.write_all(&head(1, lease, range.start as u64, range.len() as u64)).await.unwrap();
        let (head, payload) = answer(&mut stream).await;
        assert!(payload == bytes[range.clone()], "{range:?}");
        assert_eq!(number(&head, 8), checksum(&payload).0);
        assert_eq!(u32::from_le_bytes(head[4..8].try_into().unwrap()), 9, "its tag comes back");
    }
    store.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_may_rest_between_requests() {
    let store = TestStore::start_with(|config| {
        config.data_listen = Some(([127, 0, 0, 1], 0).into());
        config.session_ttl = Duration::from_secs(60);
    })
    .await;
    let mut raw = Raw::open(&store).await;
    let (mut stream, mut fresh) = (raw.connect().await, raw.connect().await);
    let bytes = content(5);
    stream.write_all(&[&head(2, raw.lease_id, 0, bytes.len() as u64)[..], &bytes].concat()).await.unwrap();
    answer(&mut stream).await;
    assert_eq!(raw.commit(&bytes).await, BlockStatus::Stored);
    // Longer than the middle of a block may take: ten seconds.
    tokio::time::sleep(Duration::from_secs(11)).await;
    let lease = raw.lease().await;
    for stream in [&mut stream, &mut fresh] {
        stream.write_all(&head(1, lease, 0, bytes.len() as u64)).await.unwrap();
        assert!(answer(stream).await.1 == bytes);
    }
    store.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_of_others_and_of_nobody_are_stale() {
    let store = start().await;
    let (mut raw, other) = (Raw::open(&store).await, TestStore::start().await);
    let bytes = content(1);
    let thief = {
        let mut service = KvServiceClient::connect(store.endpoint()).await.unwrap();
        let opened = service.open_namespace(spec().to_wire("thief")).await.unwrap().into_inner();
        let token = opened.data_port.unwrap().token.to_vec();
        Raw { service, session_id: opened.session_id, token, lease_id: 0, address: store.data_port() }
    };
    let mut stolen = thief.connect().await;
    for lease in [raw.lease_id, 0, u64::MAX] {
        let write = [&head(2, lease, 0, bytes.len() as u64)[..], &bytes].concat();
        stolen.write_all(&write).await.unwrap();
        assert_eq!(answer(&mut stolen).await.0[1], STALE);
        stolen.write_all(&head(1, lease, 0, 1)).await.unwrap();
        assert_eq!(answer(&mut stolen).await.0[1], STALE);
    }
    // A read of what is only reserved, and a write of what is stored.
    let mut own = raw.connect().await;
    own.write_all(&head(1, raw.lease_id, 0, 1)).await.unwrap();
    assert_eq!(answer(&mut own).await.0[1], STALE);
    own.write_all(&[&head(2, raw.lease_id, 0, bytes.len() as u64)[..], &bytes].concat()).await.unwrap();
    answer(&mut own).await;
    assert_eq!(raw.commit(&bytes).await, BlockStatus::Stored);
    own.write_all(&[&head(2, raw.lease_id, 0, 1)[..], b"x"].concat()).await.unwrap();
    assert_eq!(answer(&mut own).await.0[1], STALE);
    other.stop().await;
    store.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused_and_others_go_on() {
    let store = start().await;
    let mut raw = Raw::open(&store).await;
    let cases = [
        ("beyond the block", head(1, 1, BLOCK_BYTES, 1)),
        ("around the end of numbers", head(2, 1, u64::MAX, 2)),
        ("nothing", head(1, 1, 0, 0)),
        ("another kind", head(77, 1, 0, 1)),
    ];
    for (what, request) in cases {
        let mut stream = raw.connect().await;
        stream.write_all(&request).await.unwrap();
        let (head, text) = answer(&mut stream).await;
        assert_eq!(head[0], 255, "{what}");
        assert!(!text.is_empty(), "{what}");
        assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0, "{what}: it closes");
    }
    // Greetings: another protocol, another version, another token, half of one.
    for greeting in [&b"GET / HTTP/1.1\r\nHost: kv\r\n\r\n"[..], b"KLVD\x02\0\0\0aaaaaaaaaaaaaaaa"] {
        let mut stream = TcpStream::connect(raw.address).await.unwrap();
        stream.write_all(greeting).await.unwrap();
        let end = stream.read(&mut [0; 8]).await;
        assert!(matches!(end, Ok(0)) || end.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
    }
    let mut stranger = TcpStream::connect(raw.address).await.unwrap();
    stranger.write_all(b"KLVD\x01\0\0\0aaaaaaaaaaaaaaaa").await.unwrap();
    let mut welcome = [0; 8];
    stranger.read_exact(&mut welcome).await.unwrap();
    assert_eq!(welcome[6], 0, "an unknown token");
    // A thousand that say nothing, one that never reads, and one in the middle of a write.
    let mut idle = Vec::new();
    for _ in 0..1000 {
        idle.push(TcpStream::connect(raw.address).await.unwrap());
    }
    let bytes = content(3);
    let mut own = raw.connect().await;
    own.write_all(&[&head(2, raw.lease_id, 0, bytes.len() as u64)[..], &bytes].concat()).await.unwrap();
    answer(&mut own).await;
    assert_eq!(raw.commit(&bytes).await, BlockStatus::Stored);
    let lease = raw.lease().await;
    let mut deaf = raw.connect().await;
    let greedy = head(1, lease, 0, BLOCK_BYTES).repeat(100);
    deaf.write_all(&greedy).await.unwrap();
    own.write_all(&head(1, lease, 0, BLOCK_BYTES)).await.unwrap();
    assert!(answer(&mut own).await.1 == bytes, "others are served");
    drop((idle, deaf));
    store.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_breaks_off_leaves_the_reservation() {
    let store = start().await;
    let mut raw = Raw::open(&store).await;
    let bytes = content(9);
    let mut broken = raw.connect().await;
    broken.write_all(&head(2, raw.lease_id, 0, bytes.len() as u64)).await.unwrap();
    broken.write_all(&bytes[..1_000_000]).await.unwrap();
    drop(broken);
    eventually("the reservation can be filled again", async || {
        let mut stream = raw.connect().await;
        stream
            .write_all(&[&head(2, raw.lease_id, 0, bytes.len() as u64)[..], &bytes].concat())
            .await
            .unwrap();
        answer(&mut stream).await.0[1] == BlockStatus::Ok as u8
    })
    .await;
    assert_eq!(raw.commit(&bytes).await, BlockStatus::Stored);
    store.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_arrive_wrong_are_not_committed() {
    let store = start().await;
    let mut raw = Raw::open(&store).await;
    let mut stream = raw.connect().await;
    let mut wrong = content(4);
    wrong[12345] ^= 1;
    stream.write_all(&[&head(2, raw.lease_id, 0, wrong.len() as u64)[..], &wrong].concat()).await.unwrap();
    answer(&mut stream).await;
    assert_eq!(raw.commit(&content(4)).await, BlockStatus::ChecksumMismatch);
    store.stop().await;
}

/// Passes bytes on to the data port, and cuts each of the first connections after so many of them.
async fn cutter(target: SocketAddr, after: Vec<usize>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut after = after.into_iter();
        while let Ok((mut client, _)) = listener.accept().await {
            let left = after.next();
            tokio::spawn(async move {
                let mut server = TcpStream::connect(target).await.unwrap();
                let Some(mut left) = left else {
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                    return;
                };
                let (mut up, mut down) = (vec![0; 65536], vec![0; 65536]);
                while left > 0 {
                    let moved = tokio::select! {
                        Ok(bytes @ 1..) = client.read(&mut up) => server.write_all(&up[..bytes]).await.map(|()| bytes),
                        Ok(bytes @ 1..) = server.read(&mut down) => client.write_all(&down[..bytes]).await.map(|()| bytes),
                        else => break,
                    };
                    let Ok(moved) = moved else { break };
                    left = left.saturating_sub(moved);
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn transfers_go_on_after_a_cut() {
    let store = start().await;
    // The handshake names the data port itself, so the way through the cutter is asked for.
    let cut = cutter(store.data_port(), vec![1_000_000, 4_000_000, 100, 5_000_000]).await;
    let options = ClientOptions {
        shared_memory: false,
        data_address: Some(cut.to_string()),
        ..ClientOptions::new(store.endpoint(), "cut")
    };
    let namespace = Client::connect(options).await.unwrap().open(spec()).await.unwrap();
    assert_eq!(namespace.transport(), Transport::Tcp);
    let hashes = namespace.hash_blocks(&[7; 16], b"");
    store_run(&namespace, None, &hashes, 1).await;
    let acquired = namespace.acquire(&hashes, Duration::ZERO).await.unwrap();
    assert_eq!(acquired.leases.len(), 4);
    for (at, lease) in acquired.leases.iter().enumerate() {
        assert!(lease.verified().unwrap() == content(1 + at as u8), "block {at}");
    }
    store.stop().await;
}

#[tokio::test]
async fn where_the_data_port_is_out_of_reach_grpc_takes_over() {
    let store = start().await;
    let options = ClientOptions {
        shared_memory: false,
        data_address: Some("127.0.0.1:1".into()),
        ..ClientOptions::new(store.endpoint(), "far")
    };
    let namespace = Client::connect(options).await.unwrap().open(spec()).await.unwrap();
    assert_eq!(namespace.transport(), Transport::Grpc);
    let hashes = namespace.hash_blocks(&[7; 4], b"");
    store_run(&namespace, None, &hashes, 1).await;
    store.stop().await;
}
