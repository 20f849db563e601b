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
