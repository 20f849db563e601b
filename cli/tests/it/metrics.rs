//! The catalogue of metrics is current, and what a cluster under load shows passes Prometheus' own checks.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use kelvin_proto::catalogue;
use serde_json::json;

use crate::{
    harness::{Cluster, http},
    root,
};

const INTRO: &str = "\
# Metrics

What store and router show at `/metrics`: in Prometheus' text format 0.0.4, or in OpenMetrics 1.0 for who accepts
`application/openmetrics-text`. Names are those of samples; a histogram adds `_bucket`, `_sum` and `_count`.

Labels have few values. `tenant` is one of the operator's. `namespace` is the id that `kelvin stats` shows; a tenant's
first 64 namespaces have lines of their own, later ones are together `namespace=\"other\",model=\"other\"`. The
router's first 64 models have lines of their own, later ones are `model=\"other\"`. `tier` is `dram`, `nvme` or
`object`. Everything else is one of a fixed list.

Written by the test `metrics` of `cli` from what is declared in the code: `KELVIN_BLESS=1 cargo nextest run -E
'test(the_catalogue_is_current)'` writes it anew.
";

#[test]
fn the_catalogue_is_current() {
    let processes = [
        ("store", kelvin_kvstore::server::metrics_catalogue()),
        ("router", kelvin_router::metrics_catalogue()),
    ];
    let expected = catalogue(INTRO, &processes);
    let path = root().join("deploy/METRICS.md");
    if std::env::var_os("KELVIN_BLESS").is_some() {
        std::fs::write(&path, &expected).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = found.lines().zip(expected.lines()).find(|(found, expected)| found != expected);
    assert!(
        found == expected,
        "deploy/METRICS.md is not what the code declares; run this test with KELVIN_BLESS=1. First difference: {differs:#?}"
    );
}

/// What `promtool check metrics` says of a page, `None` without one here.
fn promtool(page: &str) -> Option<(bool, String)> {
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    child.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    Some((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn promtool_finds_no_fault_with_a_cluster_under_load() {
    let (run_dir, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = |name: &str| data.path().join(name).display().to_string();
    let nvme = format!("{}=64MiB", folder("nvme"));
    std::fs::create_dir(data.path().join("nvme")).unwrap();
    let flags =
        ["--dram", "256KiB", "--data", &folder("data"), "--nvme", &nvme, "--object", &folder("bucket")];
    let up = Cluster::start(run_dir.path(), &flags, &[]);
    let client = http().build().unwrap();
    let ask = async |number: usize| {
        let prompt = format!("{:04}", number % 8).repeat(160);
        let body = json!({"model": up.model(), "prompt": prompt, "max_tokens": 8, "temperature": 0});
        let answer = client.post(up.url("/v1/completions")).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), 200);
    };
    let pages =
        ["store_admin", "router_admin"].map(|admin| format!("{}/metrics", up.ready[admin].as_str().unwrap()));
    // Clients are not to see them.
    assert_eq!(client.get(up.url("/metrics")).send().await.unwrap().status(), 404);
    let load = async {
        for number in 0..24 {
            ask(number).await;
        }
    };
    let look = async {
        // Once in the midst of it.
        for url in &pages {
            let page = client.get(url).send().await.unwrap().text().await.unwrap();
            check(url, &page);
        }
    };
    futures::future::join(load, look).await;
    for url in &pages {
        let answer = client.get(url).send().await.unwrap();
        assert_eq!(answer.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
        let page = answer.text().await.unwrap();
        check(url, &page);
        let open = client.get(url).header("accept", "application/openmetrics-text").send().await.unwrap();
        assert_eq!(
            open.headers()["content-type"],
            "application/openmetrics-text; version=1.0.0; charset=utf-8"
        );
        assert!(open.text().await.unwrap().ends_with("# EOF\n"));
    }
    up.stop();
}

fn check(url: &str, page: &str) {
    match promtool(page) {
        None => eprintln!(
            "SKIPPED: there is no promtool here to check {url}: install Debian's package prometheus"
        ),
        Some((passed, said)) => assert!(passed && said.trim().is_empty(), "{url}: {said}\n{page}"),
    }
}
