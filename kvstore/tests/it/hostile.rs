//! Clients that are wrong or mean: clear refusals, nobody else affected.

use std::io::{Read, Write};

use kelvin_kvstore::server::{ServerConfig, TenantOptions, serve};
use kelvin_proto::{
    Reason,
    kv::v1::{self, kv_service_client::KvServiceClient},
    refusal_of,
};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::harness::*;

#[tokio::test]
async fn malformed_calls_are_refused_with_a_reason() {
    let store = TestStore::start().await;
    let mut service = KvServiceClient::connect(store.endpoint()).await.unwrap();
    let session_id = service.open_namespace(spec().to_wire("raw")).await.unwrap().into_inner().session_id;

    let acquire = |hashes: Vec<Vec<u8>>| v1::AcquireRequest {
        session_id,
        hashes: hashes.into_iter().map(Into::into).collect(),
        ..Default::default()
    };
    let error = service.acquire(acquire(vec![vec![1; 15]])).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::InvalidArgument, "a hash has 16 bytes, not 15"));
    let error = service.acquire(acquire(vec![vec![1; 16]; 8193])).await.unwrap_err();
    assert_eq!(refusal_of(&error).reason, Reason::LimitExceeded);
    let packed = |bytes: usize, hashes: Vec<Vec<u8>>| v1::AcquireRequest {
        packed_hashes: vec![1; bytes].into(),
        ..acquire(hashes)
    };
    for (request, expected) in [
        (packed(17, vec![]), "packed_hashes have 16 bytes each, not 17 in all"),
        (packed(16, vec![vec![1; 16]]), "give hashes or packed_hashes, not both"),
    ] {
        let error = service.acquire(request).await.unwrap_err();
        assert_eq!((error.code(), error.message()), (Code::InvalidArgument, expected));
    }
    let error = service.acquire(packed(16 * 8193, vec![])).await.unwrap_err();
    assert_eq!(refusal_of(&error).reason, Reason::LimitExceeded);
    let error = service.r#match(v1::MatchRequest { session_id, ..Default::default() }).await.unwrap_err();
    assert!(error.message().contains("give tokens or hashes"));
    let error = service.r#match(v1::MatchRequest { session_id: 1, ..Default::default() }).await.unwrap_err();
    assert_eq!(refusal_of(&error).reason, Reason::UnknownSession);
    let large = acquire(vec![vec![1; 16]; 400_000]);
    assert_eq!(service.acquire(large).await.unwrap_err().code(), Code::OutOfRange);
    let error = service.open_namespace(v1::OpenNamespaceRequest::default()).await.unwrap_err();
    assert!(error.message().contains("model must have"));
    store.stop().await;
}

#[tokio::test]
async fn a_block_larger_than_the_store_can_hold_is_refused_with_what_to_do() {
    let store = TestStore::start().await;
    let mut spec = spec();
    spec.block_bytes = 16 << 20;
    let error = store.client("big").await.open(spec).await.unwrap_err().to_string();
    assert!(error.contains("start the store with more DRAM"), "{error}");
    store.stop().await;
}

#[tokio::test]
async fn tokens_match_by_ids_as_by_hashes() {
    let store = TestStore::start().await;
    let namespace = store.client("c").await.open(spec()).await.unwrap();
    let tokens: Vec<u32> = (0..10).collect();
    store_run(&namespace, None, &namespace.hash_blocks(&tokens, b"salt"), 0).await;
    let mut service = KvServiceClient::connect(store.endpoint()).await.unwrap();
    let session_id = service.open_namespace(spec().to_wire("raw")).await.unwrap().into_inner().session_id;
    for (extra, tokens_matched) in [("salt", 8), ("", 0)] {
        let ids = v1::TokenIds { ids: tokens.clone(), extra: extra.as_bytes().to_vec().into() };
        let prefix = Some(v1::match_request::Prefix::Tokens(ids));
        let answer = service
            .r#match(v1::MatchRequest { session_id, prefix, ..Default::default() })
            .await
            .unwrap()
            .into_inner();
        assert_eq!(answer.tokens, tokens_matched);
        assert_eq!(answer.restorable_tokens.last().copied().unwrap_or(0), tokens_matched);
    }
    store.stop().await;
}

#[tokio::test]
async fn the_socket_gives_nothing_without_a_session() {
    let store = TestStore::start().await;
    let mut socket = std::os::unix::net::UnixStream::connect(store.socket()).unwrap();
    socket.write_all(&[0; 16]).unwrap();
    let read = tokio::task::spawn_blocking(move || socket.read(&mut [0; 1]).unwrap()).await.unwrap();
    assert_eq!(read, 0, "closed without a descriptor");
    let mut config = ServerConfig::new(1 << 20);
    config.socket = Some(store.socket());
    let error = serve(config, |_| (), CancellationToken::new()).await.unwrap_err().to_string();
    assert!(error.contains("another store listens there"), "{error}");
    assert!(store.socket().exists());
    store.stop().await;
}

#[tokio::test]
async fn tokens_are_wanted_where_tenants_have_them() {
    let store = TestStore::start_with(|config| config.tenants[0].token = Some("secret".into())).await;
    let error = store.client("anonymous").await.open(spec()).await.unwrap_err().to_string();
    assert!(error.contains("wants a bearer token"), "{error}");
    let options = kelvin_kvstore::ClientOptions {
        token: Some("secret".into()),
        ..kelvin_kvstore::ClientOptions::new(store.endpoint(), "known")
    };
    kelvin_kvstore::Client::connect(options).await.unwrap().open(spec()).await.unwrap();
    store.stop().await;
}

#[tokio::test]
async fn settings_that_make_no_sense_are_refused_before_anything_starts() {
    let check = async |change: fn(&mut ServerConfig), expected: &str| {
        let mut config = ServerConfig::new(1 << 20);
        change(&mut config);
        let error = serve(config, |_| (), CancellationToken::new()).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(|config| config.listen = ([0, 0, 0, 0], 0).into(), "not a loopback address").await;
    check(|config| config.tenants[0].dram_bytes = 1, "at least 4096 bytes").await;
    check(|config| config.tenants[0].dram_bytes = 1 << 60, "ask for less").await;
    check(|config| config.tenants.clear(), "at least one tenant").await;
    check(
        |config| {
            config.tenants.push(TenantOptions { operator: false, ..config.tenants[0].clone() });
        },
        "share a name or a token",
    )
    .await;
    check(|config| config.socket = Some("/nowhere/at/all.sock".into()), "bind socket /nowhere/at/all.sock")
        .await;
    check(|config| config.socket = Some("/dev/null".into()), "something that is no socket").await;
}

#[tokio::test]
async fn the_admin_page_shows_the_counts() {
    let store = TestStore::start().await;
    let namespace = store.client("c").await.open(spec()).await.unwrap();
    store_run(&namespace, None, &namespace.hash_blocks(&[1; 8], b""), 0).await;
    let address = store.listening.admin.unwrap();
    let get = |path: &'static str| {
        tokio::task::spawn_blocking(move || {
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        })
    };
    assert!(get("/health").await.unwrap().starts_with("HTTP/1.1 200"));
    let metrics = get("/metrics").await.unwrap();
    for line in [
        format!("kelvin_store_shm_committed_bytes_total{{tenant=\"default\"}} {}", 2 * BLOCK_BYTES),
        "kelvin_store_copied_bytes_total{tenant=\"default\"} 0".to_owned(),
        "kelvin_store_blocks{tenant=\"default\",model=\"m\"} 2".to_owned(),
        "kelvin_store_leases{tenant=\"default\",kind=\"read\"} 0".to_owned(),
    ] {
        assert!(metrics.contains(&line), "{line} in {metrics}");
    }
    store.stop().await;
}
