//! `kelvin store` as an operator uses it: a store on a disk, looked after while it runs and when it is stopped.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use kelvin_kvstore::{Client, ClientOptions, Reserved, SequenceHash};
use kelvin_proto::{Fingerprint, NamespaceSpec, Shard};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{kelvin, run};

const BLOCK_BYTES: u64 = 64 << 10;

/// A running `kelvin store`; killed when dropped.
pub(super) struct Running {
    process: Child,
    pub(super) url: String,
}

impl Running {
    pub(super) fn start(flags: &[&str]) -> Running {
        Running::start_with(flags, &[])
    }

    pub(super) fn start_with(flags: &[&str], env: &[(&str, &str)]) -> Running {
        let mut command = kelvin(&["store", "--listen", "127.0.0.1:0", "--dram", "16MiB"]);
        // Should this test be killed, the store goes too.
        command
            .args(flags)
            .envs(env.iter().copied())
            .env(kelvin_planner::SUPERVISOR_PID, std::process::id().to_string());
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap();
        Running { process, url: format!("http://{}", ready["listen"].as_str().unwrap()) }
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// In order, as a signal does.
    pub(super) fn stop(mut self) {
        let pid = Pid::from_raw(self.process.id().cast_signed()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        assert!(self.process.wait().unwrap().success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Stores a run of blocks; the last one's hash.
async fn store_blocks(url: &str) -> Vec<SequenceHash> {
    let fingerprint = Fingerprint {
        model_digest: "d".into(),
        engine: "test".into(),
        engine_build: "1".into(),
        layout: "bytes".into(),
        dtype: "u8".into(),
        attributes: Default::default(),
    };
    let (shard, block_tokens) = (Shard::default(), 4);
    let spec =
        NamespaceSpec { model: "a-model".into(), fingerprint, shard, block_tokens, block_bytes: BLOCK_BYTES };
    let client = Client::connect(ClientOptions::new(url, "test")).await.unwrap();
    let namespace = client.open(spec).await.unwrap();
    let hashes = namespace.hash_blocks(&[7; 12], b"");
    let mut filled = Vec::new();
    for block in namespace.reserve(None, &hashes).await.unwrap() {
        let Reserved::Write(mut lease) = block else { panic!("not reserved: {block:?}") };
        lease.fill(&vec![filled.len() as u8; BLOCK_BYTES as usize]);
        filled.push(lease);
    }
    namespace.commit(filled).await.unwrap();
    namespace.close().await;
    hashes
}

fn json(args: &[&str]) -> Value {
    let (output, stdout, stderr) = run(&[args, &["--json"]].concat());
    assert!(output.status.success(), "{args:?}: {stderr}");
    serde_json::from_str(&stdout).unwrap()
}

#[tokio::test]
async fn an_operator_looks_after_a_store() {
    let folder = tempfile::tempdir().unwrap();
    let (data, disk) = (folder.path().join("data"), format!("{}=64MiB", folder.path().display()));
    let data = data.to_str().unwrap();
    let store = Running::start(&["--data", data, "--nvme", &disk, "--offload", "eager"]);
    let url = store.url.clone();
    let hashes = store_blocks(&url).await;
    let last = hashes[2].to_string();
    let of = |verb: &'static str| ["store", verb, "--store", &url];

    // Copied in the background.
    let mut tiers = Value::Null;
    for _ in 0..500 {
        tiers = json(&[&of("explain")[..], &[&last]].concat())[0]["tiers"].clone();
        if tiers.as_array().unwrap().len() == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(tiers, serde_json::json!(["dram", "nvme"]));

    let pin = json(&[&of("pin")[..], &[&last, "--owner", "me"]].concat());
    assert_eq!(pin["blocks"], 3);
    let (_, stats, _) = run(&["stats", "--store", &url]);
    for words in ["a-model", "nvme", "offloaded", "3 blocks, 192KiB, by 1 hard and 0 soft pins"] {
        assert!(stats.contains(words), "{words} is not in:\n{stats}");
    }
    assert_eq!(json(&[&of("evict")[..], &["--all"]].concat())["kept_blocks"], 3);
    assert_eq!(json(&[&of("unpin")[..], &["--owner", "me"]].concat())["pins"], 1);
    let evicted = json(&[&of("evict")[..], &[&last, "--tier", "dram"]].concat());
    assert_eq!(evicted["evicted_blocks"], 1);
    assert_eq!(json(&[&of("prefetch")[..], &[&last]].concat())["queued_blocks"], 1);

    let found = json(&of("inspect"));
    assert_eq!(
        (&found["namespaces"][0]["model"], found["files"].as_array().unwrap().len()),
        (&"a-model".into(), 1)
    );
    assert_eq!(json(&of("verify"))["checked_blocks"], 3);
    json(&of("gc"));
    let (output, _, stderr) = run(&[&of("pin")[..], &[&"0".repeat(32)]].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.contains("is not stored"), "{stderr}");
    let (output, _, stderr) = run(&["store", "inspect", "--data", data]);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    store.stop();

    let stopped = json(&["store", "inspect", "--data", data]);
    assert_eq!(stopped["clean"], true);
    assert_eq!(stopped["namespaces"][0]["tiers"][0]["blocks"], 3, "{stopped:#}");
    assert_eq!(json(&["store", "verify", "--data", data])["damaged_blocks"], 0);
}
