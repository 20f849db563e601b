//! `/metrics` of a real store: all that is declared and nothing else, sums that agree, both formats.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    net::SocketAddr,
    time::Duration,
};

use kelvin_kvstore::{
    Client, ClientOptions, SequenceHash,
    server::{NvmeSpace, ObjectSpace, Offload, ServerConfig, metrics_catalogue},
};
use kelvin_proto::{MetricInfo, describe};

use crate::harness::*;

/// The page, as a scraper that accepts this gets it, with its content type.
async fn scrape(address: SocketAddr, accept: &'static str) -> (String, String) {
    let answer = tokio::task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        let head = format!("GET /metrics HTTP/1.0\r\nhost: localhost\r\naccept: {accept}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    })
    .await
    .unwrap();
    let (head, page) = answer.split_once("\r\n\r\n").unwrap();
    let content_type = head.lines().find_map(|line| line.strip_prefix("content-type: ")).unwrap();
    (content_type.to_owned(), page.to_owned())
}

const OPENMETRICS: &str = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5";

/// Samples by everything before their number.
fn samples(page: &str) -> BTreeMap<String, f64> {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    let samples = lines.map(|line| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("a number in {line}")))
    });
    let samples: Vec<_> = samples.collect();
    let count = samples.len();
    let samples = BTreeMap::from_iter(samples);
    assert_eq!(samples.len(), count, "no sample stands twice in\n{page}");
    samples
}

fn sum(samples: &BTreeMap<String, f64>, name: &str) -> f64 {
    let of_name = samples.iter().filter(|(key, _)| key.split('{').next() == Some(name));
    of_name.map(|(_, value)| value).sum()
}

fn with_all_tiers(config: &mut ServerConfig, folder: &std::path::Path) {
    config.tiers.data = Some(folder.join("data"));
    std::fs::create_dir(folder.join("nvme")).unwrap();
    config.tiers.nvme = vec![NvmeSpace { path: folder.join("nvme"), bytes: 256 << 20 }];
    let url = folder.join("bucket").display().to_string();
    config.tiers.object = Some(ObjectSpace { url, endpoint: None, bytes: None, pack_bytes: None });
    config.tiers.offload = Offload::Eager;
}

#[tokio::test]
async fn the_page_has_what_is_declared_and_its_sums_agree() {
    let folder = tempfile::tempdir().unwrap();
    let store = TestStore::start_with(|config| {
        with_all_tiers(config, folder.path());
        config.data_listen = Some(([127, 0, 0, 1], 0).into());
    })
    .await;
    let address = store.listening.admin.unwrap();
    let client = store.client("c").await;
    let namespace = client.open(spec()).await.unwrap();
    let hashes = namespace.hash_blocks(&[1; 12], b"");
    store_run(&namespace, None, &hashes, 0).await;
    let asked = [&hashes[..], &[SequenceHash::from_bytes([7; 16])]].concat();
    assert_eq!(namespace.match_prefix(&asked).await.unwrap().blocks, 3);
    namespace.pin(&hashes[..1], None).await.unwrap();
    let held = namespace.acquire(&hashes, Duration::ZERO).await.unwrap();
    // The other ways of the payload.
    let remote = store.remote_client("r").await.open(spec()).await.unwrap();
    for lease in remote.acquire(&hashes[..1], Duration::ZERO).await.unwrap().leases {
        lease.verified().unwrap();
    }
    let options =
        ClientOptions { data_port: false, shared_memory: false, ..ClientOptions::new(store.endpoint(), "g") };
    let inline = Client::connect(options).await.unwrap().open(spec()).await.unwrap();
    for lease in inline.acquire(&hashes[..1], Duration::ZERO).await.unwrap().leases {
        lease.verified().unwrap();
    }

    eventually("copies are on NVMe, leases are given back, the bucket was listed", async || {
        let found = samples(&scrape(address, OPENMETRICS).await.1);
        let is = |name: &str, value: f64| found.get(name) == Some(&value);
        is("kelvin_tier_blocks{tier=\"nvme\"}", 3.0)
            && is("kelvin_store_leases{tenant=\"default\",kind=\"read\"}", 3.0)
            && !is("kelvin_object_requests_total{kind=\"list\"}", 0.0)
    })
    .await;
    let (content_type, page) = scrape(address, OPENMETRICS).await;
    assert_eq!(content_type, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(page.ends_with("# EOF\n"));

    let tidy = |metrics: Vec<MetricInfo>| metrics.into_iter().collect::<BTreeSet<_>>();
    let (shown, declared) = (tidy(describe(&page)), tidy(metrics_catalogue()));
    let unknown: Vec<_> = shown.difference(&declared).collect();
    assert!(unknown.is_empty(), "{unknown:#?}");
    let hidden: Vec<_> = declared.difference(&shown).map(|metric| metric.name.as_str()).collect();
    // Ghosts say something once they saw enough.
    assert_eq!(hidden, ["kelvin_policy_hit_ratio"]);

    let found = samples(&page);
    let tokens = |name| sum(&found, name) / f64::from(BLOCK_TOKENS);
    assert_eq!(tokens("kelvin_store_requested_tokens_total"), 4.0);
    assert_eq!(tokens("kelvin_store_hit_tokens_total"), 3.0);
    assert_eq!(tokens("kelvin_store_miss_tokens_total"), 1.0);
    assert_eq!(tokens("kelvin_store_filling_tokens_total"), 0.0);
    let block = BLOCK_BYTES as f64;
    for (sample, expected) in [
        ("kelvin_store_miss_tokens_total{tenant=\"default\",reason=\"never_stored\"}", 4.0),
        ("kelvin_store_pinned_blocks{tenant=\"default\"}", 1.0),
        ("kelvin_transport_transfer_bytes_sum{transport=\"tcp\",direction=\"read\"}", block),
        ("kelvin_transport_transfer_bytes_sum{transport=\"grpc\",direction=\"read\"}", block),
        ("kelvin_transport_transfer_bytes_sum{transport=\"shm\",direction=\"write\"}", 3.0 * block),
        ("kelvin_tier_move_bytes_sum{from=\"dram\",to=\"nvme\"}", 3.0 * block),
        ("kelvin_store_call_seconds_count{verb=\"match\",via=\"socket\"}", 1.0),
        ("kelvin_object_request_cost_dollars_total{kind=\"delete\"}", 0.0),
    ] {
        assert_eq!(found.get(sample), Some(&expected), "{sample} in\n{page}");
    }
    let age =
        |kind| found[&format!("kelvin_store_lease_oldest_age_seconds{{tenant=\"default\",kind=\"{kind}\"}}")];
    assert!(age("read") > 0.0 && age("write") == 0.0);
    assert!(found["kelvin_store_pin_oldest_age_seconds{tenant=\"default\",kind=\"hard\"}"] > 0.0);
    assert!(found["kelvin_catalog_disk_bytes"] > 0.0 && found["kelvin_store_metrics_memory_bytes"] > 1e6);

    // The same numbers for who reads plain text.
    let (content_type, text) = scrape(address, "text/html, */*").await;
    assert_eq!(content_type, "text/plain; version=0.0.4; charset=utf-8");
    assert!(text.contains("# TYPE kelvin_store_requested_tokens_total counter\n") && !text.contains("# EOF"));
    let names = |page| samples(page).into_keys().collect::<BTreeSet<_>>();
    assert_eq!(names(&text), names(&page));
    drop(held);
    store.stop().await;
}

#[tokio::test]
async fn a_hundred_namespaces_are_no_more_than_so_many_lines() {
    let store = TestStore::start().await;
    let address = store.listening.admin.unwrap();
    let client = store.client("c").await;
    for number in 0..100 {
        let mut spec = spec();
        spec.model = format!("model \"{number}\"");
        let namespace = client.open(spec).await.unwrap();
        let hashes = namespace.hash_blocks(&[number; 8], b"");
        namespace.match_prefix(&hashes).await.unwrap();
    }
    let (_, page) = scrape(address, OPENMETRICS).await;
    let found = samples(&page);
    let of = |name: &str| found.keys().filter(|key| key.split('{').next() == Some(name)).count();
    assert_eq!(of("kelvin_store_requested_tokens_total"), 65);
    assert_eq!(of("kelvin_store_match_blocks_total"), 65);
    assert_eq!(of("kelvin_memory_hit_ratio"), 4 * 64);
    assert_eq!(sum(&found, "kelvin_store_requested_tokens_total"), 100.0 * 2.0 * f64::from(BLOCK_TOKENS));
    let other = "kelvin_store_requested_tokens_total{tenant=\"default\",model=\"other\",namespace=\"other\"}";
    assert_eq!(found.get(other), Some(&(36.0 * 2.0 * f64::from(BLOCK_TOKENS))));
    assert!(page.contains("model=\"model \\\"0\\\"\""), "escaped");
    store.stop().await;
}
