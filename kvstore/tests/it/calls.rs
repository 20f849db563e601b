//! Calls over the socket of shared memory: as a client of another make would send them, from the contract alone.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    time::Duration,
};

use kelvin_kvstore::{Reserved, Transport};
use kelvin_proto::kv::v1::{self, BlockStatus, kv_service_client::KvServiceClient};
use prost::Message;

use crate::harness::*;

const CALL: u8 = 1;
const CANCEL: u8 = 2;
const ANSWER: u8 = 3;
const REFUSED: u8 = 4;

/// A socket behind its hand-over.
struct Foreign {
    socket: UnixStream,
    session_id: u64,
}

impl Foreign {
    async fn open(store: &TestStore) -> Self {
        let mut service = KvServiceClient::connect(store.endpoint()).await.unwrap();
        let opened = service.open_namespace(spec().to_wire("foreign")).await.unwrap().into_inner();
        let memory = opened.shared_memory.unwrap();
        assert!(memory.takes_calls);
        let mut socket = UnixStream::connect(memory.socket_path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        socket.write_all(&memory.token).unwrap();
        // The descriptor that comes with it is not wanted here, and closed by the kernel.
        socket.read_exact(&mut [0]).unwrap();
        Self { socket, session_id: opened.session_id }
    }

    fn send(&mut self, call: u32, wait_ms: u32, kind: u8, name: &str, message: &[u8]) {
        let mut frame = Vec::new();
        frame.extend((name.len() as u32 + message.len() as u32).to_le_bytes());
        frame.extend(call.to_le_bytes());
        frame.extend(wait_ms.to_le_bytes());
        frame.extend([kind, name.len() as u8, 0, 0]);
        frame.extend(name.as_bytes());
        frame.extend(message);
        self.socket.write_all(&frame).unwrap();
    }

    /// Number, kind and payload of the next answer; `None` at the end.
    fn hear(&mut self) -> Option<(u32, u8, Vec<u8>)> {
        let mut head = [0; 16];
        self.socket.read_exact(&mut head).ok()?;
        let number = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
        let mut payload = vec![0; number(0) as usize];
        self.socket.read_exact(&mut payload).unwrap();
        Some((number(4), head[12], payload))
    }

    fn acquire(&self, hash: u8, wait_ms: u64) -> Vec<u8> {
        let hashes = vec![vec![hash; 16].into()];
        let session_id = self.session_id;
        v1::AcquireRequest { session_id, hashes, wait_ms, lease_ttl_ms: 1000, ..Default::default() }
            .encode_to_vec()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_answered_as_over_grpc() {
    let store = TestStore::start().await;
    let mut foreign = Foreign::open(&store).await;
    let reserve = v1::ReserveRequest {
        session_id: foreign.session_id,
        hashes: vec![vec![1; 16].into()],
        ..Default::default()
    };
    foreign.send(7, 1000, CALL, "Reserve", &reserve.encode_to_vec());
    let (call, kind, payload) = foreign.hear().unwrap();
    assert_eq!((call, kind), (7, ANSWER));
    let reserved = v1::ReserveResponse::decode(&payload[..]).unwrap();
    assert_eq!(reserved.leases[0].status(), BlockStatus::Reserved);

    // Nobody waits for the second; the third is answered before the first, which waits for the block.
    foreign.send(1, 60_000, CALL, "Acquire", &foreign.acquire(1, 60_000));
    foreign.send(2, 60_000, CALL, "Acquire", &foreign.acquire(1, 60_000));
    foreign.send(2, 0, CANCEL, "", b"");
    foreign.send(3, 1000, CALL, "Stats", b"");
    let (call, kind, payload) = foreign.hear().unwrap();
    assert_eq!((call, kind), (3, ANSWER));
    assert_eq!(v1::StatsResponse::decode(&payload[..]).unwrap().write_leases, 1);
    let abort =
        v1::AbortRequest { session_id: foreign.session_id, lease_ids: vec![reserved.leases[0].lease_id] };
    foreign.send(4, 1000, CALL, "Abort", &abort.encode_to_vec());
    let mut answers = [foreign.hear().unwrap(), foreign.hear().unwrap()];
    answers.sort();
    let [(first, _, payload), (second, ..)] = answers;
    assert_eq!((first, second), (1, 4));
    assert_eq!(v1::AcquireResponse::decode(&payload[..]).unwrap().leases[0].status(), BlockStatus::Missing);
    // A number may be used again; the one that was cancelled never answers.
    foreign.send(2, 1000, CALL, "Stats", b"");
    assert_eq!(foreign.hear().unwrap().0, 2);
    store.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_answered_is_refused_and_the_socket_goes_on() {
    let store = TestStore::start().await;
    let mut foreign = Foreign::open(&store).await;
    let unknown_session =
        v1::AbortRequest { session_id: foreign.session_id ^ 1, lease_ids: vec![1] }.encode_to_vec();
    for (name, message, expected) in [
        ("Watch", &b""[..], "INVALID_ARGUMENT\nno verb `Watch` is answered here"),
        ("Abort", b"\xff\xff", "INVALID_ARGUMENT\na request of Abort: "),
        ("Abort", &unknown_session, "UNKNOWN_SESSION\n"),
    ] {
        foreign.send(5, 1000, CALL, name, message);
        let (call, kind, payload) = foreign.hear().unwrap();
        assert_eq!((call, kind), (5, REFUSED));
        let text = String::from_utf8(payload).unwrap();
        assert!(text.starts_with(expected), "{text}");
    }
    foreign.send(6, 1000, CALL, "Stats", b"");
    assert_eq!(foreign.hear().unwrap().1, ANSWER);
    store.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_makes_no_sense_loses_its_session_and_nobody_else_does() {
    let store = TestStore::start().await;
    let other = store.client("other").await.open(spec()).await.unwrap();
    assert_eq!(other.transport(), Transport::Shm);
    let frames: [&[u8]; 5] = [
        // 4 GiB.
        &[255, 255, 255, 255, 1, 0, 0, 0, 1, 0, 0, 0, CALL, 5, 0, 0],
        // A name longer than its frame.
        &[1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, CALL, 5, 0, 0, b'S'],
        // No kind.
        &[0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 77, 0, 0, 0],
        // An answer.
        &[0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, ANSWER, 0, 0, 0],
        // HTTP.
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ];
    for frame in frames {
        let mut foreign = Foreign::open(&store).await;
        foreign.socket.write_all(frame).unwrap();
        assert_eq!(foreign.hear(), None, "closed: {frame:?}");
    }
    eventually("their sessions ended", async || {
        store.client("stats").await.stats().await.unwrap().sessions == 1
    })
    .await;
    let hashes = other.hash_blocks(&[1; 4], b"");
    store_run(&other, None, &hashes, 1).await;
    assert_eq!(other.match_prefix(&hashes).await.unwrap().blocks, 1);
    store.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_reads_its_answers_is_cut_off() {
    let store = TestStore::start().await;
    let mut foreign = Foreign::open(&store).await;
    let other = store.client("other").await.open(spec()).await.unwrap();
    foreign.socket.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
    // Until the store stops to take more: neither side's memory grows with it.
    let stats = [&[5, 0, 0, 0, 1, 0, 0, 0, 0xe8, 3, 0, 0, CALL, 5, 0, 0][..], b"Stats"].concat();
    let flood = tokio::task::spawn_blocking(move || {
        let many = stats.repeat(1000);
        while foreign.socket.write_all(&many).is_ok() {}
    });
    let hashes = other.hash_blocks(&[1; 4], b"");
    store_run(&other, None, &hashes, 1).await;
    flood.await.unwrap();
    assert_eq!(other.match_prefix(&hashes).await.unwrap().blocks, 1);
    store.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_calls_at_once_each_get_their_own_answer() {
    let store = TestStore::start().await;
    let namespace = store.client("many").await.open(spec()).await.unwrap();
    let hashes = namespace.hash_blocks(&[3; 16], b"");
    store_run(&namespace, None, &hashes, 1).await;
    let calls = (0..512).map(|at| {
        let (namespace, hashes) = (namespace.clone(), hashes.clone());
        let wanted = 1 + at % 4;
        tokio::spawn(async move {
            let acquired = namespace.acquire(&hashes[..wanted], Duration::ZERO).await.unwrap();
            assert_eq!(acquired.leases.len(), wanted);
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
    // Calls that are dropped leave the socket in order for those that follow.
    let filling = namespace.hash_blocks(&[4; 4], b"");
    let Some(Reserved::Write(reserved)) = namespace.reserve(None, &filling).await.unwrap().pop() else {
        panic!("reserved")
    };
    for _ in 0..100 {
        let waiting = namespace.acquire(&filling, Duration::from_secs(60));
        assert!(tokio::time::timeout(Duration::from_millis(1), waiting).await.is_err());
    }
    assert_eq!(namespace.match_prefix(&hashes).await.unwrap().blocks, 4);
    drop(reserved);
    store.stop().await;
}
