//! `kelvin up` with the toy model: it serves, repairs itself, and leaves nothing behind.

use std::time::Duration;

use rustix::process::Signal;

use super::harness::{Cluster, Traces, entries, runs, signal, until};
use super::run;

/// Of a whole cluster, with one worker of each role.
fn traces(cluster: &Cluster) -> Traces {
    let traces = Traces::of(cluster);
    assert_eq!(traces.processes.len(), 4, "store, two workers, router");
    assert_eq!(traces.ports.len(), 6, "one each, and the pages of store and router");
    traces
}

#[tokio::test]
async fn cluster_serves_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), &[], &[]);
    assert_eq!(cluster.ready["model"], "toy");
    let traces = traces(&cluster);
    assert_eq!(entries(&cluster.run_dir).len(), 1);

    let prompt = "What is a cache? ".repeat(20);
    let answer = cluster.chat(&prompt).await.unwrap();
    assert_eq!(answer["usage"]["completion_tokens"], 8);
    assert_eq!(cluster.chat(&prompt).await.unwrap()["choices"], answer["choices"]);

    let store = cluster.ready["store"].as_str().unwrap();
    let (output, table, _) = run(&["stats", "--store", store]);
    assert!(output.status.success() && table.contains("toy"), "{table}");
    let (_, json, _) = run(&["stats", "--store", store, "--json"]);
    let stats: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(stats["tiers"][0]["blocks"].as_u64().unwrap() > 0, "{stats}");

    cluster.signal(Signal::INT);
    let (status, stderr) = cluster.wait();
    assert!(status.success(), "{stderr}");
    assert!(traces.gone());
    assert!(entries(dir.path()).is_empty());
    assert!(!stderr.contains("ERROR") && !stderr.contains("WARN"), "{stderr}");
}

#[tokio::test]
async fn cluster_restarts_a_child_that_was_killed() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), &[], &[]);
    let ports = cluster.ports();
    for name in ["decode-0", "prefill-0", "store", "router"] {
        let pid = cluster.child(name);
        signal(pid, Signal::KILL);
        until("four children again", async || {
            !cluster.children().contains(&pid) && cluster.children().len() == 4
        })
        .await;
        let answer = cluster.chat_until_answered(&format!("Is {name} back? ").repeat(10)).await;
        assert_eq!(answer["usage"]["completion_tokens"], 8, "{name}");
    }
    assert_eq!(cluster.ports(), ports, "the ports stay");
    cluster.signal(Signal::TERM);
    let (status, stderr) = cluster.wait();
    assert!(status.success(), "{stderr}");
    for name in ["decode-0", "prefill-0", "store", "router"] {
        assert!(
            stderr.contains(&format!("{name} killed by signal 9 (SIGKILL); restarting in ")),
            "{name}: {stderr}"
        );
        assert!(stderr.contains(&format!("{name} is back")), "{name}: {stderr}");
    }
}

#[tokio::test]
async fn cluster_goes_with_its_supervisor() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), &[], &[]);
    let traces = traces(&cluster);
    cluster.signal(Signal::KILL);
    assert!(!cluster.wait().0.success());
    until("no child runs", async || traces.gone()).await;

    // Nobody was left to remove its directory; the next cluster does.
    let stale = entries(dir.path());
    assert_eq!(stale.len(), 1);
    let mut next = Cluster::start(dir.path(), &[], &[]);
    assert!(!entries(dir.path()).contains(&stale[0]));
    next.signal(Signal::TERM);
    assert!(next.wait().0.success());
    assert!(entries(dir.path()).is_empty());
}

#[tokio::test]
async fn cluster_does_not_wait_after_a_second_signal() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), &[], &[("KELVIN_TOY_STEP_TIME", "200ms")]);
    let traces = traces(&cluster);
    // An answer of minutes: no drain ends by itself while it goes on.
    let body = serde_json::json!({"model": "toy", "prompt": "Go on.", "max_tokens": 2000, "stream": true});
    let request = crate::harness::http().build().unwrap().post(cluster.url("/v1/completions")).json(&body);
    let mut answer = request.send().await.unwrap().error_for_status().unwrap();
    assert!(answer.chunk().await.unwrap().is_some());

    cluster.signal(Signal::INT);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(traces.processes.iter().all(|pid| runs(*pid)), "the answer goes on");
    cluster.signal(Signal::INT);
    let (status, stderr) = cluster.wait();
    assert!(status.success(), "{stderr}");
    assert!(stderr.contains("not waiting any longer"), "{stderr}");
    assert!(traces.gone());
    assert!(entries(dir.path()).is_empty());
}

#[test]
fn a_model_that_cannot_be_loaded_ends_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("broken.gguf");
    std::fs::write(&model, b"GGUF and nothing more").unwrap();
    let run_dir = dir.path().join("run");
    let flags = ["up", "--listen", "127.0.0.1:0", "--model", model.to_str().unwrap()];
    let (output, stdout, stderr) = run(&[&flags[..], &["--run-dir", run_dir.to_str().unwrap()]].concat());
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stdout.is_empty(), "{stdout}");
    assert!(stderr.contains("did not start: exited with code 1"), "{stderr}");
    assert!(stderr.contains("broken.gguf"), "{stderr}");
    assert!(entries(&run_dir).is_empty());
}
