//! A cluster of real processes: `kelvin up`, a client, and a look at what is left.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use kelvin_kvstore::{Client, ClientOptions};
use kelvin_proto::kv::v1::StatsResponse;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::kelvin;

/// Longest wait for something that does happen; only a hang gets there.
const PATIENCE: Duration = Duration::from_secs(90);

/// A client of HTTP. Its TLS wants a provider, though nothing here is encrypted.
pub(crate) fn http() -> reqwest::ClientBuilder {
    // An error says that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
}

/// A running `kelvin up`; killed, with all its children, when dropped.
pub(crate) struct Cluster {
    up: Child,
    stderr: Option<std::thread::JoinHandle<String>>,
    pub(crate) run_dir: PathBuf,
    /// What it said when it was ready.
    pub(crate) ready: Value,
}

impl Cluster {
    /// Starts one with the toy model on free ports; returns when it is ready.
    pub(crate) fn start(run_dir: &Path, flags: &[&str], env: &[(&str, &str)]) -> Cluster {
        Cluster::serve("toy", run_dir, flags, env)
    }

    /// As `start`, with any model.
    pub(crate) fn serve(model: &str, run_dir: &Path, flags: &[&str], env: &[(&str, &str)]) -> Cluster {
        let mut command = kelvin(&["up", "--model", model, "--json", "--listen", "127.0.0.1:0"]);
        command.args(["--run-dir".as_ref(), run_dir.as_os_str()]).args(flags).envs(env.iter().copied());
        // Should this test be killed, the cluster goes too.
        command.env(kelvin_planner::SUPERVISOR_PID, std::process::id().to_string());
        let mut up = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = up.stderr.take().unwrap();
        let stderr = std::thread::spawn(move || {
            let mut text = Vec::new();
            stderr.read_to_end(&mut text).unwrap();
            String::from_utf8_lossy(&text).into_owned()
        });
        let mut line = String::new();
        BufReader::new(up.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let mut cluster = Cluster { up, stderr: Some(stderr), run_dir: run_dir.into(), ready: Value::Null };
        match serde_json::from_str(&line) {
            Ok(ready) => cluster.ready = ready,
            Err(error) => panic!("no ready line but {line:?} ({error}), and: {}", cluster.wait().1),
        }
        cluster
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.ready["listen"].as_str().unwrap())
    }

    /// The model's public name.
    pub(crate) fn model(&self) -> &str {
        self.ready["model"].as_str().unwrap()
    }

    /// Where the store serves the KV API.
    pub(crate) fn store(&self) -> &str {
        self.ready["store"].as_str().unwrap()
    }

    pub(crate) async fn stats(&self) -> StatsResponse {
        let options = ClientOptions::new(self.store(), "test");
        Client::connect(options).await.unwrap().stats().await.unwrap()
    }

    /// Stops it in order; nothing may be left.
    pub(crate) fn stop(mut self) {
        let traces = Traces::of(&self);
        self.signal(Signal::TERM);
        let (status, stderr) = self.wait();
        assert!(status.success(), "{stderr}");
        assert!(traces.gone());
        assert!(entries(&self.run_dir).is_empty());
    }

    /// The process of a child, by its place in the cluster: `store`, `prefill-0`, `router`.
    pub(crate) fn child(&self, name: &str) -> u32 {
        let found = children(self.up.id()).into_iter().find(|(_, words)| {
            words.get(1).is_some_and(|word| word == name)
                || words.windows(2).any(|pair| pair[0] == "--name" && pair[1] == name)
        });
        found.unwrap_or_else(|| panic!("no child is {name}: {:?}", children(self.up.id()))).0
    }

    pub(crate) fn children(&self) -> BTreeSet<u32> {
        children(self.up.id()).into_iter().map(|(pid, _)| pid).collect()
    }

    /// Every port of the cluster, by the flags of its children.
    pub(crate) fn ports(&self) -> BTreeSet<u16> {
        let words = children(self.up.id()).into_iter().flat_map(|(_, words)| words);
        words.filter_map(|word| word.strip_prefix("127.0.0.1:")?.parse().ok()).collect()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self::signal(self.up.id(), signal);
    }

    /// Waits for its end; also what it wrote to stderr.
    pub(crate) fn wait(&mut self) -> (ExitStatus, String) {
        let status = self.up.wait().unwrap();
        (status, self.stderr.take().unwrap().join().unwrap())
    }

    /// One chat completion, whole.
    pub(crate) async fn chat(&self, question: &str) -> reqwest::Result<Value> {
        let body = json!({
            "model": "toy",
            "messages": [{"role": "user", "content": question}],
            "max_tokens": 8,
            "temperature": 0,
        });
        let http = http().timeout(PATIENCE).build()?;
        http.post(self.url("/v1/chat/completions")).json(&body).send().await?.error_for_status()?.json().await
    }

    /// Waits until the router reached the store: it does so a moment after its start, and serves without until then.
    pub(crate) async fn with_store(&self) {
        until("the store, seen by the router", async || {
            let health = http().build().unwrap().get(self.url("/health")).send().await.unwrap();
            health.json::<Value>().await.unwrap()["store"] == "connected"
        })
        .await;
    }

    /// Asks until an answer comes: a cluster in repair may refuse for a moment.
    pub(crate) async fn chat_until_answered(&self, question: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.chat(question).await {
                Ok(answer) => return answer,
                Err(error) => assert!(Instant::now() < deadline, "no answer any more: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Everything of a cluster that must be gone after it.
pub(crate) struct Traces {
    pub(crate) processes: Vec<u32>,
    pub(crate) ports: Vec<u16>,
}

impl Traces {
    pub(crate) fn of(cluster: &Cluster) -> Traces {
        Traces {
            processes: cluster.children().into_iter().collect(),
            ports: cluster.ports().into_iter().collect(),
        }
    }

    pub(crate) fn gone(&self) -> bool {
        !self.processes.iter().any(|pid| runs(*pid)) && self.ports.iter().all(|port| closed(*port))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.up.kill();
        let _ = self.up.wait();
    }
}

pub(crate) fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

/// Waits until something holds.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "it never came: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Whether a process still runs; a zombie does not.
pub(crate) fn runs(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != "Z")
}

/// Whether nothing listens there.
pub(crate) fn closed(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}

/// Names of what is in a directory.
pub(crate) fn entries(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Processes with this parent that run, and their command lines.
fn children(parent: u32) -> Vec<(u32, Vec<String>)> {
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| stat(*pid).is_some_and(|(state, of)| of == parent && state != "Z"))
        .map(|pid: u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words = line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
            (pid, words.collect())
        })
        .collect()
}

/// State and parent of a process.
fn stat(pid: u32) -> Option<(String, u32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it is in parentheses and may hold anything.
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}
