//! Whole runs on small traces.

use super::*;
use clap::Parser;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

fn args(flags: &[&str]) -> Args {
    Cli::try_parse_from(["replay"].iter().chain(flags)).unwrap().args
}

#[test]
fn a_smoke_run_writes_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let (csv, svg, json) = (path("a.csv"), path("a.svg"), path("a.json"));
    let files = ["--smoke", "--device-blocks", "2048", "--csv", &csv, "--svg", &svg, "--json", &json];
    run(&args(&files)).unwrap();
    let text = std::fs::read_to_string(&csv).unwrap();
    let columns: Vec<_> = text.lines().map(|line| line.split(',').count()).collect();
    assert!(columns.len() > 15 && columns.iter().all(|count| *count == columns[0]), "{text}");
    assert!(std::fs::read_to_string(&svg).unwrap().contains("ideal"));
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let value = |name: &str| {
        let results = json["results"].as_array().unwrap().iter();
        results.clone().find(|figure| figure["name"] == name).unwrap()["value"].as_f64().unwrap()
    };
    assert!(value("kelvin_store.reuse") > value("round_robin.reuse"));
    assert!(value("kelvin_store.ttft_mean") < value("round_robin.ttft_mean"));
    assert!(value("kelvin_ideal.reuse") <= value("ideal.reuse") + 1e-9);
}

#[test]
fn every_tier_is_behind_the_movers_lines() {
    let dir = tempfile::tempdir().unwrap();
    let csv = dir.path().join("a.csv").to_string_lossy().into_owned();
    let run_with = |more: &[&str]| {
        let flags = [
            "--smoke",
            "--router",
            "kelvin",
            "--workers",
            "6",
            "--workers-per-node",
            "2",
            "--device-blocks",
            "2048",
            "--dram",
            "0.1",
            "--bytes-per-token",
            "8192",
            "--csv",
            &csv,
        ];
        run(&args(&[&flags, more].concat())).unwrap();
        let text = std::fs::read_to_string(&csv).unwrap();
        let mut lines = text.lines().map(|line| line.split(',').map(str::to_owned).collect::<Vec<_>>());
        let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
        move |name: &str| -> f64 {
            values[names.iter().position(|other| other == name).unwrap()].parse().unwrap()
        }
    };
    let alone = run_with(&[]);
    let tiers = run_with(&["--nvme", "0.3", "--s3"]);
    for tokens in ["dram_tokens", "dram_of_other_nodes_tokens", "nvme_tokens", "s3_tokens"] {
        assert!(tiers(tokens) > 0.0, "{tokens}");
    }
    assert!(tiers("reuse") > alone("reuse"));
    let coarse = run_with(&["--nvme", "0.3", "--s3", "--store-block-tokens", "512"]);
    assert!(coarse("reuse") > alone("reuse") && coarse("reuse") < tiers("reuse") + 0.02);
    let admitted = run_with(&["--nvme", "0.3", "--admission", "15"]);
    assert!(admitted("nvme_tokens") < tiers("nvme_tokens"));
}

#[test]
fn a_bad_trace_is_named_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.jsonl");
    let error = |text: &str, flags: &[&str]| {
        std::fs::write(&path, text).unwrap();
        let path = path.to_string_lossy().into_owned();
        let flags = [&["--trace", path.as_str()], flags].concat();
        format!("{:#}", run(&args(&flags)).unwrap_err())
    };
    let good = "{\"timestamp\": 0, \"input_length\": 600, \"output_length\": 5, \"hash_ids\": [0, 1]}\n";
    assert!(error("", &[]).contains("no requests"));
    assert!(error(&format!("{good}nonsense\n"), &[]).contains("line 2"));
    assert!(error(&good.replace("600", "60000"), &[]).contains("60000 tokens in 2 blocks"));
    assert!(error(&good.replace("600", "0").replace("0, 1", ""), &[]).contains("empty prompt"));
    assert!(error(good, &["--device-blocks", "5"]).contains("more than the memory of an engine"));
    assert!(error(good, &["--speed", "0"]).contains("speed"));
    std::fs::remove_file(&path).unwrap();
    let gone = path.to_string_lossy().into_owned();
    let error = run(&args(&["--trace", gone.as_str()])).unwrap_err();
    assert!(format!("{error:#}").contains("bad.jsonl"));
}
