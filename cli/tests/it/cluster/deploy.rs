//! The rules in `deploy` name metrics that a running cluster has.

use std::collections::BTreeSet;

use crate::{harness::Cluster, root};

/// Words that can be metric names.
fn metrics(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("kelvin_router_") || word.starts_with("kelvin_store_")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_name_metrics_that_exist() {
    let dir = tempfile::tempdir().unwrap();
    let up = Cluster::start(dir.path(), &[], &[]);
    // A histogram shows itself once something was measured.
    up.chat("Is everything measured?").await.unwrap();
    let mut shown = String::new();
    for admin in ["router_admin", "store_admin"] {
        let url = format!("{}/metrics", up.ready[admin].as_str().unwrap());
        shown.push_str(&reqwest::get(url).await.unwrap().text().await.unwrap());
    }
    let rules = std::fs::read_to_string(root().join("deploy/prometheus/kelvin.rules.yml")).unwrap();
    let (mut named, shown) = (metrics(&rules), metrics(&shown));
    // Of a router before other engines, which this cluster has not; deploy/tests has one.
    named.remove("kelvin_router_backends");
    assert!(named.len() >= 8, "{named:?}");
    let missing: Vec<_> = named.difference(&shown).collect();
    assert!(missing.is_empty(), "{missing:?}");
    up.stop();
}
