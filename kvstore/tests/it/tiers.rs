//! The verbs and the operator's calls on a store with tiers below memory.

use std::{
    io::{Read, Write},
    path::Path,
    time::Duration,
};

use kelvin_kvstore::{
    Client, ClientOptions, Namespace, SequenceHash,
    server::{NvmeSpace, ObjectSpace, Offload, ServerConfig, TenantOptions},
};
use kelvin_proto::{
    Reason,
    kv::v1::{self, MissReason},
};

use crate::harness::*;

/// Tiers in a folder: what is stored is copied at once.
fn with_nvme(config: &mut ServerConfig, folder: &Path) {
    config.tiers.data = Some(folder.join("data"));
    config.tiers.nvme = vec![NvmeSpace { path: folder.to_owned(), bytes: 256 << 20 }];
    config.tiers.offload = Offload::Eager;
}

fn with_bucket(config: &mut ServerConfig, folder: &Path) {
    config.tiers.data = Some(folder.join("data"));
    let url = folder.join("bucket").display().to_string();
    config.tiers.object = Some(ObjectSpace { url, endpoint: None, bytes: None, pack_bytes: None });
    config.tiers.offload = Offload::Eager;
}

async fn tiers_of(namespace: &Namespace, hashes: &[SequenceHash]) -> Vec<Vec<v1::Tier>> {
    let blocks = namespace.explain(hashes).await.unwrap();
    blocks.iter().map(|block| block.tiers().collect()).collect()
}

async fn evict(client: &Client, prefix: v1::Prefix, tier: v1::Tier) -> v1::EvictResponse {
    let request = v1::EvictRequest {
        namespace_id: client.stats().await.unwrap().namespaces[0].namespace_id,
        range: Some(v1::evict_request::Range::Prefix(prefix)),
        tiers: vec![tier.into()],
        ..Default::default()
    };
    client.evict(request).await.unwrap()
}

async fn verify(client: &Client) -> v1::VerifyResponse {
    let mut messages = client.verify(v1::VerifyRequest::default()).await.unwrap();
    loop {
        let message = messages.message().await.unwrap().expect("the last message is done");
        if message.done {
            return message;
        }
    }
}

#[tokio::test]
async fn blocks_go_down_and_come_back_when_they_are_prefetched() {
    let folder = tempfile::tempdir().unwrap();
    let store = TestStore::start_with(|config| with_nvme(config, folder.path())).await;
    let client = store.client("c").await;
    let namespace = client.open(spec()).await.unwrap();
    let hashes = namespace.hash_blocks(&[1; 16], b"");
    store_run(&namespace, None, &hashes, 0).await;
    let both = vec![v1::Tier::Dram, v1::Tier::Nvme];
    eventually("all blocks are on NVMe", async || {
        tiers_of(&namespace, &hashes).await == vec![both.clone(); 4]
    })
    .await;

    let gone = evict(&client, kelvin_kvstore::prefix(&hashes[..3]), v1::Tier::Dram).await;
    assert_eq!((gone.evicted_blocks, gone.kept_blocks), (2, 0));
    assert_eq!(tiers_of(&namespace, &hashes[2..]).await, vec![vec![v1::Tier::Nvme]; 2]);
    assert_eq!(namespace.match_prefix(&hashes).await.unwrap().blocks, 4);

    let begun =
        namespace.prefetch(&[&hashes[..], &[SequenceHash::from_bytes([7; 16])]].concat()).await.unwrap();
    assert_eq!((begun.ready_blocks, begun.queued_blocks, begun.missing_blocks), (2, 2, 1));
    eventually("they are back in memory", async || {
        tiers_of(&namespace, &hashes).await == vec![both.clone(); 4]
    })
    .await;
    let acquired = namespace.acquire(&hashes, Duration::ZERO).await.unwrap();
    for (at, lease) in acquired.leases.iter().enumerate() {
        assert!(lease.verified().unwrap() == content(at as u8), "block {at}");
    }
    drop(acquired);

    let stats = client.stats().await.unwrap();
    let nvme = stats.tiers.iter().find(|tier| tier.tier() == v1::Tier::Nvme).unwrap();
    assert_eq!((nvme.blocks, nvme.offloaded_blocks, nvme.onboarded_blocks), (4, 4, 2));
    assert_eq!((nvme.health(), nvme.reads, nvme.errors), (v1::TierHealth::Ok, 2, 0));
    assert!(nvme.mebibyte_read_us > nvme.read_latency_us && !nvme.policy.is_empty());
    assert!(!stats.namespaces[0].miss_ratio.is_empty());
    let hits = &stats.namespaces[0].hits;
    assert_eq!(
        hits.iter().map(|hits| (hits.tier(), hits.blocks)).collect::<Vec<_>>(),
        [(v1::Tier::Dram, 2), (v1::Tier::Nvme, 2)]
    );
    store.stop().await;
}

#[tokio::test]
async fn a_match_says_from_where_and_how_long() {
    let folder = tempfile::tempdir().unwrap();
    let store = TestStore::start_with(|config| with_nvme(config, folder.path())).await;
    let client = store.client("c").await;
    let namespace = client.open(spec()).await.unwrap();
    let hashes = namespace.hash_blocks(&[1; 8], b"");
    store_run(&namespace, None, &hashes, 0).await;
    eventually("on NVMe", async || tiers_of(&namespace, &hashes[1..]).await[0].len() == 2).await;
    evict(&client, kelvin_kvstore::prefix(&hashes), v1::Tier::Dram).await;
    let mut service = v1::kv_service_client::KvServiceClient::connect(store.endpoint()).await.unwrap();
    let session_id = service.open_namespace(spec().to_wire("raw")).await.unwrap().into_inner().session_id;
    let wire = hashes.iter().map(|hash| hash.to_bytes().to_vec().into()).collect();
    let prefix = Some(v1::match_request::Prefix::Hashes(v1::Hashes { hashes: wire }));
    let found = service
        .r#match(v1::MatchRequest { session_id, prefix, ..Default::default() })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(found.tiers().collect::<Vec<_>>(), [v1::Tier::Dram, v1::Tier::Nvme]);
    assert_eq!(
        found.loads.iter().map(|load| (load.tier(), load.blocks)).collect::<Vec<_>>(),
        [(v1::Tier::Nvme, 1)]
    );
    assert!(found.loads[0].load_us_estimate > 0);
    store.stop().await;
}

#[tokio::test]
async fn evicted_everywhere_is_gone_for_good_and_a_pin_keeps_cold_copies() {
    let folder = tempfile::tempdir().unwrap();
    let store = TestStore::start_with(|config| with_nvme(config, folder.path())).await;
    let client = store.client("c").await;
    let namespace = client.open(spec()).await.unwrap();
    let [pinned, other] = [1, 2].map(|token| namespace.hash_blocks(&[token; 4], b""));
    for hashes in [&pinned, &other] {
        store_run(&namespace, None, hashes, 0).await;
        eventually("on NVMe", async || tiers_of(&namespace, hashes).await[0].len() == 2).await;
    }
    namespace.pin(&pinned, None).await.unwrap();
    let all = v1::EvictRequest {
        namespace_id: client.stats().await.unwrap().namespaces[0].namespace_id,
        range: Some(v1::evict_request::Range::WholeNamespace(true)),
        ..Default::default()
    };
    let gone = client.evict(all).await.unwrap();
    assert_eq!((gone.evicted_blocks, gone.kept_blocks), (1, 1));
    assert_eq!(gone.evicted_bytes, 2 * BLOCK_BYTES, "both copies");
    let explained = namespace.explain(&other).await.unwrap();
    assert_eq!(explained[0].reason(), MissReason::Removed);
    assert_eq!(tiers_of(&namespace, &pinned).await[0].len(), 2);
    store.stop().await;
}

#[tokio::test]
async fn the_operator_looks_into_a_running_store() {
    let folder = tempfile::tempdir().unwrap();
    let store = TestStore::start_with(|config| with_nvme(config, folder.path())).await;
    let client = store.client("c").await;
    let namespace = client.open(spec()).await.unwrap();
    let hashes = namespace.hash_blocks(&[1; 8], b"");
    store_run(&namespace, None, &hashes, 0).await;
    eventually("on NVMe", async || tiers_of(&namespace, &hashes[1..]).await[0].len() == 2).await;

    let found = client.inspect(v1::InspectRequest {}).await.unwrap();
    assert_eq!(found.files.len(), 1);
    let file = &found.files[0];
    assert!(Path::new(&file.path).starts_with(folder.path()), "{}", file.path);
    assert!(
        file.used_bytes >= 2 * BLOCK_BYTES && file.bytes > file.used_bytes && file.writes >= 2,
        "{file:?}"
    );
    assert_eq!((file.health(), file.uuid.len()), (v1::TierHealth::Ok, 32));
    let space = &found.namespaces[0];
    assert_eq!((space.model.as_str(), space.tenant.as_str(), space.id.len()), ("m", "default", 32));
    let stored: Vec<_> = space.tiers.iter().map(|tier| (tier.tier(), tier.blocks, tier.bytes)).collect();
    assert_eq!(stored, [(v1::Tier::Dram, 2, 2 * BLOCK_BYTES), (v1::Tier::Nvme, 2, 2 * BLOCK_BYTES)]);

    let checked = verify(&client).await;
    assert_eq!((checked.checked_blocks, checked.total_blocks, checked.damaged_blocks), (2, 2, 0));
    assert_eq!(checked.checked_bytes, 2 * BLOCK_BYTES);
    client.collect(v1::CollectRequest::default()).await.unwrap();
    let dry = v1::CollectRequest { dry_run: true, ..Default::default() };
    assert!(client.collect(dry).await.unwrap_err().to_string().contains("kelvin store gc --data"));
    let odd = v1::VerifyRequest { tiers: vec![77], ..Default::default() };
    assert!(client.verify(odd).await.unwrap_err().to_string().contains("77 is no tier"));
    store.stop().await;
}

#[tokio::test]
async fn damage_on_the_disk_is_found_dropped_and_explained() {
    let folder = tempfile::tempdir().unwrap();
    let store = TestStore::start_with(|config| with_nvme(config, folder.path())).await;
    let client = store.client("c").await;
    let namespace = client.open(spec()).await.unwrap();
    let hashes = namespace.hash_blocks(&[1; 4], b"");
    store_run(&namespace, None, &hashes, 0).await;
    eventually("on NVMe", async || tiers_of(&namespace, &hashes).await[0].len() == 2).await;
    evict(&client, kelvin_kvstore::prefix(&hashes), v1::Tier::Dram).await;
    // Whatever lies where: every page behind the header.
    let file = std::fs::OpenOptions::new().write(true).open(folder.path().join("kelvin.blocks")).unwrap();
    let bytes = file.metadata().unwrap().len();
    for page in 1..bytes >> 20 {
        std::os::unix::fs::FileExt::write_all_at(&file, &[0xee; 4096], (page << 20) + 8192).unwrap();
    }
    file.sync_all().unwrap();
    let checked = verify(&client).await;
    assert_eq!((checked.checked_blocks, checked.damaged_blocks), (1, 1));
    let explained = namespace.explain(&hashes).await.unwrap();
    assert_eq!((explained[0].reason(), explained[0].lost_from()), (MissReason::Quarantined, v1::Tier::Nvme));
    assert_eq!(namespace.match_prefix(&hashes).await.unwrap().blocks, 0);
    let stats = client.stats().await.unwrap();
    assert_eq!(stats.tiers[1].damaged_blocks, 1);
    assert_eq!(stats.misses.iter().map(v1::MissStats::reason).collect::<Vec<_>>(), [MissReason::Quarantined]);
    store.stop().await;
}

#[tokio::test]
async fn a_bucket_holds_what_memory_had() {
    let folder = tempfile::tempdir().unwrap();
    let store = TestStore::start_with(|config| with_bucket(config, folder.path())).await;
    let client = store.client("c").await;
    let namespace = client.open(spec()).await.unwrap();
    let hashes = namespace.hash_blocks(&[1; 8], b"");
    store_run(&namespace, None, &hashes, 0).await;
    let keys = namespace.hash_blocks(&[1; 8], b"");
    store.stop().await;

    let store = TestStore::start_with(|config| with_bucket(config, folder.path())).await;
    let client_again = store.client("c").await;
    let namespace = client_again.open(spec()).await.unwrap();
    assert_eq!(namespace.hash_blocks(&[1; 8], b""), keys, "the secret is kept");
    assert_eq!(tiers_of(&namespace, &hashes).await, vec![vec![v1::Tier::Object]; 2]);
    let acquired = namespace.acquire(&hashes, Duration::ZERO).await.unwrap();
    assert!(acquired.leases[1].verified().unwrap() == content(1));
    drop(acquired);
    let found = client_again.inspect(v1::InspectRequest {}).await.unwrap();
    assert!(found.packs >= 1 && found.pack_live_bytes >= 2 * BLOCK_BYTES, "{found:?}");
    let checked = verify(&client_again).await;
    assert_eq!((checked.checked_blocks, checked.damaged_blocks, checked.unreadable_blocks), (2, 0, 0));
    let stats = client_again.stats().await.unwrap();
    let object = stats.tiers.iter().find_map(|tier| tier.object).expect("the object tier counts requests");
    assert!(object.gets >= 1 && !object.breaker_open, "{object:?}");
    store.stop().await;
    drop(client);
}

#[tokio::test]
async fn only_an_operator_among_several_tenants_looks_into_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let store = TestStore::start_with(|config| {
        with_nvme(config, folder.path());
        config.tenants[0].operator = true;
        let token = Some("b".to_owned());
        config.tenants.push(TenantOptions {
            name: "b".into(),
            token,
            operator: false,
            ..config.tenants[0].clone()
        });
    })
    .await;
    let options = ClientOptions { token: Some("b".into()), ..ClientOptions::new(store.endpoint(), "b") };
    let other = Client::connect(options).await.unwrap();
    for error in [
        other.inspect(v1::InspectRequest {}).await.unwrap_err(),
        other.verify(v1::VerifyRequest::default()).await.unwrap_err(),
        other.collect(v1::CollectRequest::default()).await.unwrap_err(),
    ] {
        let kelvin_kvstore::client::Error::Refused(refusal) = error else { panic!("{error}") };
        assert_eq!(refusal.reason, Reason::NotOperator);
    }
    let operator = store.client("operator").await;
    operator.inspect(v1::InspectRequest {}).await.unwrap();
    // Pins and ranges are each tenant's own.
    let mine = other.open(spec()).await.unwrap();
    let theirs = operator.open(spec()).await.unwrap();
    let hashes = theirs.hash_blocks(&[1; 4], b"");
    store_run(&theirs, None, &hashes, 0).await;
    let pin = theirs.pin(&hashes, None).await.unwrap().pin_id;
    let unpin = v1::UnpinRequest { pin_ids: vec![pin], owner: "operator".into() };
    assert_eq!(other.unpin(unpin.clone()).await.unwrap().pins, 0);
    let explained = mine.explain(&hashes).await.unwrap();
    assert_eq!(explained[0].reason(), MissReason::NeverStored, "existence of another's block is not told");
    assert_eq!(operator.unpin(unpin).await.unwrap().pins, 1);
    store.stop().await;
}

#[tokio::test]
async fn a_store_in_memory_alone_has_nothing_to_look_into() {
    let store = TestStore::start().await;
    let client = store.client("c").await;
    let error = client.inspect(v1::InspectRequest {}).await.unwrap_err().to_string();
    assert!(error.contains("start it with --data and --nvme or --object"), "{error}");
    store.stop().await;
}

#[tokio::test]
async fn the_admin_page_shows_the_tiers() {
    let folder = tempfile::tempdir().unwrap();
    let store = TestStore::start_with(|config| with_nvme(config, folder.path())).await;
    let namespace = store.client("c").await.open(spec()).await.unwrap();
    let hashes = namespace.hash_blocks(&[1; 8], b"");
    store_run(&namespace, None, &hashes, 0).await;
    eventually("on NVMe", async || tiers_of(&namespace, &hashes[1..]).await[0].len() == 2).await;
    namespace.pin(&hashes, None).await.unwrap();
    namespace.match_prefix(&namespace.hash_blocks(&[9; 8], b"")).await.unwrap();
    namespace.match_prefix(&hashes).await.unwrap();
    let address = store.listening.admin.unwrap();
    let metrics = tokio::task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        write!(stream, "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    })
    .await
    .unwrap();
    for line in [
        "kelvin_tier_blocks{tier=\"nvme\"} 2",
        "kelvin_tier_healthy{tier=\"nvme\"} 1",
        "kelvin_tier_offloaded_blocks_total{tier=\"nvme\"} 2",
        "kelvin_tier_evicted_blocks_total{tier=\"nvme\",policy=\"",
        "kelvin_tier_queue{tier=\"nvme\",direction=\"write\"} 0",
        "kelvin_tier_hit_blocks_total{tenant=\"default\",tier=\"dram\"} 2",
        "kelvin_miss_total{tenant=\"default\",reason=\"never_stored\"} 2",
        "kelvin_store_pinned_blocks{tenant=\"default\"} 2",
        "model=\"m\",",
        "times=\"2\"} ",
        "kelvin_store_hard_pins{tenant=\"default\"} 1",
        "reason=\"quota\"} 0",
    ] {
        assert!(metrics.contains(line), "{line} is not in:\n{metrics}");
    }
    let written = format!("kelvin_tier_written_bytes_total{{tier=\"nvme\"}} {}", 2 * BLOCK_BYTES);
    assert!(metrics.contains(&written), "{written} is not in:\n{metrics}");
    store.stop().await;
}
