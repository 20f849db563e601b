//! Verbs on ranges over a real server: pin, unpin, evict, end of a conversation, explain; and bad input to them.

use std::time::Duration;

use kelvin_kvstore::{Client, Namespace, SequenceHash, prefix, prefix_up_to};
use kelvin_proto::{
    Reason,
    kv::v1::{self, MissReason, kv_service_client::KvServiceClient},
    refusal_of,
};
use tonic::Code;

use crate::harness::*;

/// Room for three blocks.
async fn small_store() -> TestStore {
    TestStore::start_with(|config| config.tenants[0].dram_bytes = 12 << 20).await
}

async fn namespace_id(client: &Client) -> u64 {
    client.stats().await.unwrap().namespaces[0].namespace_id
}

async fn reasons(namespace: &Namespace, hashes: &[SequenceHash]) -> Vec<MissReason> {
    namespace.explain(hashes).await.unwrap().iter().map(v1::BlockExplanation::reason).collect()
}

#[tokio::test]
async fn pinned_blocks_stay_until_unpinned() {
    let store = small_store().await;
    let client = store.client("c").await;
    let namespace = client.open(spec()).await.unwrap();
    let first = namespace.hash_blocks(&[1; 8], b"");
    store_run(&namespace, None, &first, 0).await;
    let pinned = namespace.pin(&first, None).await.unwrap();
    assert_eq!((pinned.blocks, pinned.bytes, pinned.missing_blocks), (2, 2 * BLOCK_BYTES, 0));
    for salt in 0..4u32 {
        let other = namespace.hash_blocks(&[100 + salt; 4], b"");
        store_run(&namespace, None, &other, 0).await;
    }
    assert_eq!(namespace.match_prefix(&first).await.unwrap().blocks, 2, "others made room");
    let stats = client.stats().await.unwrap().pins.unwrap();
    assert_eq!((stats.hard, stats.soft, stats.blocks, stats.bytes), (1, 0, 2, 2 * BLOCK_BYTES));
    assert!(namespace.explain(&first[..1]).await.unwrap()[0].pinned);

    let unpin = |pin_ids: Vec<u64>, owner: &str| v1::UnpinRequest { pin_ids, owner: owner.into() };
    let none = client.unpin(unpin(vec![12345], "")).await.unwrap();
    assert_eq!((none.pins, none.blocks), (0, 0));
    let ended = client.unpin(unpin(vec![pinned.pin_id], "")).await.unwrap();
    assert_eq!((ended.pins, ended.blocks), (1, 2));
    let long = namespace.hash_blocks(&[7; 12], b"");
    store_run(&namespace, None, &long, 0).await;
    assert_eq!(namespace.match_prefix(&first).await.unwrap().blocks, 0);
    store.stop().await;
}

#[tokio::test]
async fn a_soft_pin_ends_by_itself_and_an_owner_ends_its_own() {
    let store = TestStore::start().await;
    let client = store.client("owner-a").await;
    let namespace = client.open(spec()).await.unwrap();
    let hashes = namespace.hash_blocks(&[1; 16], b"");
    store_run(&namespace, None, &hashes, 0).await;
    namespace.pin(&hashes[..1], Some(Duration::from_millis(1))).await.unwrap();
    eventually("the soft pin ends", async || client.stats().await.unwrap().pins.unwrap().expired == 1).await;

    let id = namespace_id(&client).await;
    let request = v1::PinRequest {
        namespace_id: id,
        prefix: Some(prefix_up_to(hashes[1])),
        subtree: true,
        owner: "me".into(),
        ..Default::default()
    };
    assert_eq!(client.pin(request.clone()).await.unwrap().blocks, 4, "the path and what is behind");
    let alone = v1::PinRequest { subtree: false, ..request };
    assert_eq!(client.pin(alone).await.unwrap().blocks, 2);
    let owner = |owner: &str| v1::UnpinRequest { pin_ids: vec![], owner: owner.into() };
    assert_eq!(client.unpin(owner("you")).await.unwrap().pins, 0);
    let ended = client.unpin(owner("me")).await.unwrap();
    assert_eq!((ended.pins, ended.blocks), (2, 4));
    let nothing = namespace.pin(&namespace.hash_blocks(&[9; 8], b""), None).await.unwrap();
    assert_eq!((nothing.pin_id, nothing.blocks, nothing.missing_blocks), (0, 0, 2));
    store.stop().await;
}

#[tokio::test]
async fn pins_leave_room_for_others() {
    let store = small_store().await;
    let namespace = store.client("c").await.open(spec()).await.unwrap();
    let hashes = namespace.hash_blocks(&[1; 12], b"");
    store_run(&namespace, None, &hashes, 0).await;
    // Three blocks of 3 MiB in a store of 12 MiB: three quarters of it.
    assert_eq!(namespace.pin(&hashes, None).await.unwrap().blocks, 3);
    let again = namespace.pin(&hashes, None).await.unwrap();
    assert_eq!(again.blocks, 3, "what is pinned already takes nothing more");
    store.stop().await;
}

#[tokio::test]
async fn a_subtree_is_evicted_but_not_what_is_leased_or_pinned_nor_what_is_before_it() {
    let store = TestStore::start().await;
    let client = store.client("c").await;
    let namespace = client.open(spec()).await.unwrap();
    let stem = namespace.hash_blocks(&[1; 16], b"");
    store_run(&namespace, None, &stem, 0).await;
    let branch: Vec<u32> = [[1; 8], [2; 8]].concat();
    let branch = namespace.hash_blocks(&branch, b"");
    store_run(&namespace, Some(branch[1]), &branch[2..], 5).await;
    let id = namespace_id(&client).await;
    let evict = |range| v1::EvictRequest { namespace_id: id, range: Some(range), ..Default::default() };
    let behind = |hash| evict(v1::evict_request::Range::Prefix(prefix_up_to(hash)));

    let held = namespace.acquire(&branch[..3], Duration::ZERO).await.unwrap();
    assert_eq!(held.leases.len(), 3);
    let done = client.evict(behind(stem[1])).await.unwrap();
    // Of stem[1], stem[2], stem[3], branch[2], branch[3]: the leased branch[2] keeps stem[1].
    assert_eq!((done.evicted_blocks, done.evicted_bytes, done.kept_blocks), (3, 3 * BLOCK_BYTES, 2));
    assert_eq!(namespace.match_prefix(&stem).await.unwrap().blocks, 2);
    assert_eq!(namespace.match_prefix(&branch).await.unwrap().blocks, 3);
    assert_eq!(
        reasons(&namespace, &stem).await,
        [MissReason::Stored, MissReason::Stored, MissReason::Removed, MissReason::Removed]
    );
    drop(held);
    let other = v1::EvictRequest { tiers: vec![v1::Tier::Nvme.into()], ..behind(stem[0]) };
    assert_eq!(client.evict(other).await.unwrap().evicted_blocks, 0, "nothing is in that tier");

    namespace.pin(&stem[..1], None).await.unwrap();
    eventually("the rest goes when the leases are back", async || {
        client.evict(evict(v1::evict_request::Range::WholeNamespace(true))).await.unwrap();
        client.stats().await.unwrap().namespaces[0].blocks == 1
    })
    .await;
    assert_eq!(namespace.match_prefix(&stem).await.unwrap().blocks, 1, "pinned");
    store.stop().await;
}

#[tokio::test]
async fn a_conversation_that_is_over_goes_first() {
    let store = small_store().await;
    let namespace = store.client("c").await.open(spec()).await.unwrap();
    let [over, kept] = [1, 2].map(|salt| namespace.hash_blocks(&[salt; 4], b""));
    let both = namespace.hash_blocks(&[1; 8], b"");
    store_run(&namespace, None, &kept, 0).await;
    store_run(&namespace, None, &over, 0).await;
    assert_eq!(namespace.end_session(&both).await.unwrap().demoted_blocks, 0, "its end is not stored");
    assert_eq!(namespace.end_session(&over).await.unwrap().demoted_blocks, 1);
    let more = namespace.hash_blocks(&[3; 8], b"");
    store_run(&namespace, None, &more, 0).await;
    // Though it was used last.
    assert_eq!(namespace.match_prefix(&over).await.unwrap().blocks, 0);
    assert_eq!(namespace.match_prefix(&kept).await.unwrap().blocks, 1);
    assert_eq!(reasons(&namespace, &over).await, [MissReason::Evicted]);
    store.stop().await;
}

#[tokio::test]
async fn a_miss_has_a_reason() {
    let store = small_store().await;
    let client = store.client("c").await;
    let namespace = client.open(spec()).await.unwrap();
    let tokens = [1; 8];
    let first = namespace.hash_blocks(&tokens, b"");
    assert_eq!(reasons(&namespace, &first).await, [MissReason::NeverStored; 2]);
    let reserved = namespace.reserve(None, &first[..1]).await.unwrap();
    assert_eq!(reasons(&namespace, &first[..1]).await, [MissReason::Filling]);
    drop(reserved);
    eventually("the reservation is given up", async || {
        reasons(&namespace, &first[..1]).await == [MissReason::Abandoned]
    })
    .await;
    store_run(&namespace, None, &first, 0).await;
    let stored = namespace.explain(&first[..1]).await.unwrap();
    assert_eq!(
        (stored[0].reason(), stored[0].tiers().collect::<Vec<_>>()),
        (MissReason::Stored, vec![v1::Tier::Dram])
    );
    let long = namespace.hash_blocks(&[5; 12], b"");
    store_run(&namespace, None, &long, 0).await;
    let gone = namespace.explain(&first[1..]).await.unwrap();
    assert_eq!((gone[0].reason(), gone[0].lost_from()), (MissReason::Evicted, v1::Tier::Dram));
    assert!(gone[0].age_ms.is_some());
    assert_eq!(namespace.match_prefix(&first).await.unwrap().blocks, 0);
    let misses = client.stats().await.unwrap().misses;
    let evicted = misses.iter().find(|miss| miss.reason() == MissReason::Evicted).map(|miss| miss.blocks);
    assert_eq!(evicted, Some(2), "{misses:?}");

    // Another build of the engine: the same tokens, but not the same bytes.
    namespace.close().await;
    let mut other_spec = spec();
    other_spec.fingerprint.engine_build = "2".into();
    let other = client.open(other_spec).await.unwrap();
    let stats = client.stats().await.unwrap();
    let ids: Vec<u64> = stats.namespaces.iter().map(|space| space.namespace_id).collect();
    let mut elsewhere = Vec::new();
    for namespace_id in &ids {
        let tokens = v1::TokenIds { ids: vec![5; 8], extra: Default::default() };
        let blocks = Some(v1::explain_request::Blocks::Tokens(tokens));
        let request = v1::ExplainRequest { namespace_id: *namespace_id, blocks, ..Default::default() };
        let answer = client.explain(request).await.unwrap().blocks;
        elsewhere.extend(answer.iter().map(|block| (block.reason(), block.other_namespace_id)));
    }
    assert_eq!(elsewhere.iter().filter(|(reason, _)| *reason == MissReason::Stored).count(), 2);
    let in_other: Vec<u64> = elsewhere
        .iter()
        .filter(|(reason, _)| *reason == MissReason::OtherNamespace)
        .map(|(_, id)| *id)
        .collect();
    assert!(in_other.len() == 2 && ids.contains(&in_other[0]), "{elsewhere:?}");
    drop(other);
    store.stop().await;
}

#[tokio::test]
async fn ranges_that_make_no_sense_are_refused_with_what_to_change() {
    let store = TestStore::start().await;
    let client = store.client("c").await;
    let namespace = client.open(spec()).await.unwrap();
    let hashes = namespace.hash_blocks(&[1; 4], b"");
    store_run(&namespace, None, &hashes, 0).await;
    let namespace_id = namespace_id(&client).await;
    let mut service = KvServiceClient::connect(store.endpoint()).await.unwrap();
    let pin = |prefix: Option<v1::Prefix>| v1::PinRequest { namespace_id, prefix, ..Default::default() };
    let of = |blocks| Some(v1::Prefix { blocks: Some(blocks) });
    let unknown = SequenceHash::from_bytes([9; 16]);
    let short = v1::TokenIds { ids: vec![1; 3], extra: Default::default() };
    let cases = [
        (pin(None), Code::InvalidArgument, "give tokens, hashes or last_hash"),
        (pin(Some(v1::Prefix { blocks: None })), Code::InvalidArgument, "prefix is missing"),
        (pin(Some(prefix(&[]))), Code::InvalidArgument, "no whole block"),
        (pin(of(v1::prefix::Blocks::Tokens(short))), Code::InvalidArgument, "no whole block"),
        (
            pin(of(v1::prefix::Blocks::LastHash(vec![1; 15].into()))),
            Code::InvalidArgument,
            "16 bytes, not 15",
        ),
        (pin(Some(prefix_up_to(unknown))), Code::NotFound, "is not stored"),
        (pin(Some(prefix(&vec![unknown; 8193]))), Code::OutOfRange, "the limit is 8192"),
        (
            v1::PinRequest { owner: "x".repeat(129), ..pin(Some(prefix(&hashes))) },
            Code::InvalidArgument,
            "owner has more than 128 bytes",
        ),
        (
            v1::PinRequest { namespace_id: 1, ..pin(Some(prefix(&hashes))) },
            Code::InvalidArgument,
            "namespace 1 is not known",
        ),
        (
            v1::PinRequest { session_id: 1, ..pin(Some(prefix(&hashes))) },
            Code::FailedPrecondition,
            "open the namespace again",
        ),
    ];
    for (request, code, words) in cases {
        let error = service.pin(request).await.unwrap_err();
        assert_eq!(error.code(), code, "{words}: {error}");
        assert!(error.message().contains(words), "{words} is not in: {error}");
    }
    let error = service.unpin(v1::UnpinRequest::default()).await.unwrap_err();
    assert!(error.message().contains("give pin_ids or owner"), "{error}");
    let many = v1::UnpinRequest { pin_ids: vec![1; 4097], owner: String::new() };
    assert_eq!(refusal_of(&service.unpin(many).await.unwrap_err()).reason, Reason::LimitExceeded);

    let evict = |range, tiers| v1::EvictRequest { namespace_id, range, tiers, ..Default::default() };
    for range in [None, Some(v1::evict_request::Range::WholeNamespace(false))] {
        let error = service.evict(evict(range, vec![])).await.unwrap_err();
        assert!(error.message().contains("range is missing"), "{error}");
    }
    let whole = Some(v1::evict_request::Range::WholeNamespace(true));
    for tier in [0, 9, -1] {
        let error = service.evict(evict(whole.clone(), vec![tier])).await.unwrap_err();
        assert!(error.message().contains("is no tier"), "{error}");
    }
    assert_eq!(namespace.match_prefix(&hashes).await.unwrap().blocks, 1, "nothing was evicted");

    let explain = v1::ExplainRequest { namespace_id, ..Default::default() };
    assert!(service.explain(explain).await.unwrap_err().message().contains("give tokens or hashes"));
    let end = v1::EndSessionRequest { namespace_id, ..Default::default() };
    assert!(service.end_session(end).await.unwrap_err().message().contains("prefix is missing"));
    let prefetch = v1::PrefetchRequest { namespace_id, ..Default::default() };
    assert!(service.prefetch(prefetch).await.unwrap_err().message().contains("prefix is missing"));

    let session_id = service.open_namespace(spec().to_wire("raw")).await.unwrap().into_inner().session_id;
    for priority in [-129, 128, i32::MAX] {
        let hashes = vec![vec![3; 16].into()];
        let request = v1::ReserveRequest { session_id, hashes, priority, ..Default::default() };
        let error = service.reserve(request).await.unwrap_err();
        assert!(error.message().contains("is not in -128..=127"), "{error}");
    }
    let forever = v1::ReserveRequest {
        session_id,
        hashes: vec![vec![3; 16].into()],
        priority: -128,
        block_ttl_ms: u64::MAX,
        ..Default::default()
    };
    assert_eq!(
        service.reserve(forever).await.unwrap().into_inner().leases[0].status(),
        v1::BlockStatus::Reserved
    );
    store.stop().await;
}

#[tokio::test]
async fn a_namespace_evicts_its_own_blocks() {
    let store = TestStore::start().await;
    let client = store.client("c").await;
    let namespace = client.open(spec()).await.unwrap();
    assert_eq!(namespace.namespace_id(), namespace_id(&client).await);
    let hashes = namespace.hash_blocks(&[1; 12], b"");
    store_run(&namespace, None, &hashes, 0).await;
    let found = namespace.match_prefix(&hashes).await.unwrap();
    assert_eq!((found.tiers, found.restorable_tokens), (vec![v1::Tier::Dram; 3], vec![4, 8, 12]));
    assert!(found.loads.is_empty(), "all of it is in memory");
    let leases = namespace.acquire(&hashes, Duration::ZERO).await.unwrap().leases;
    assert_eq!(leases.iter().map(|lease| lease.tier()).collect::<Vec<_>>(), [v1::Tier::Dram; 3]);
    drop(leases);
    eventually("the leases are back", async || {
        namespace.evict(&hashes[..2]).await.unwrap();
        namespace.match_prefix(&hashes).await.unwrap().blocks == 1
    })
    .await;
    assert_eq!(namespace.evict(&[]).await.unwrap().evicted_blocks, 1);
    assert_eq!(namespace.match_prefix(&hashes).await.unwrap().blocks, 0);
    store.stop().await;
}
