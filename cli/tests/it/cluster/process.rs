//! A running `kelvin up`, and a way to find and kill its children.

use std::{
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, ChildStdout, ExitStatus, Stdio},
    time::Duration,
};

use kelvin_kvstore::{Client, ClientOptions};
use kelvin_proto::kv::v1::StatsResponse;
use rustix::process::{Pid, Signal, kill_process};

use crate::kelvin;

/// A cluster; killed, children and all, should the test not stop it.
pub(crate) struct Up {
    supervisor: Child,
    /// Held open: closing it would break the supervisor's prints.
    _stdout: BufReader<ChildStdout>,
    pub(crate) url: String,
    pub(crate) model: String,
    pub(crate) store: String,
    pub(crate) folder: tempfile::TempDir,
}

impl Up {
    /// Starts `kelvin up` with these flags on free ports and waits until it is ready.
    pub(crate) fn start(flags: &[&str], environment: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let run_dir = folder.path().to_str().unwrap();
        let mut flags = flags.to_vec();
        flags.extend(["--listen", "127.0.0.1:0", "--run-dir", run_dir, "--json"]);
        let mut command = kelvin(&["up"]);
        command.args(flags).envs(environment.iter().copied()).stdout(Stdio::piped());
        let mut supervisor = command.spawn().unwrap();
        let mut stdout = BufReader::new(supervisor.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let ready: serde_json::Value =
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("no ready line but {line:?}: {error}"));
        let text = |name: &str| ready[name].as_str().unwrap_or_else(|| panic!("{name} in {line}")).to_owned();
        Self {
            url: format!("http://{}", text("listen")),
            model: text("model"),
            store: text("store"),
            supervisor,
            _stdout: stdout,
            folder,
        }
    }

    /// Process ids of the children whose command line has all these words.
    pub(crate) fn children(&self, words: &[&str]) -> Vec<u32> {
        let parent = self.supervisor.id();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            let Some(line) = child_of(&entry.path(), parent) else { continue };
            let line: Vec<&str> = line.split('\0').collect();
            if words.iter().all(|word| line.contains(word)) {
                found.push(pid);
            }
        }
        found
    }

    /// `kill -9` of the one child with these words.
    pub(crate) fn kill(&self, words: &[&str]) -> u32 {
        let found = self.children(words);
        let [pid] = found[..] else { panic!("{words:?} names {found:?}") };
        signal(pid, Signal::KILL);
        pid
    }

    pub(crate) async fn stats(&self) -> StatsResponse {
        let options = ClientOptions::new(self.store.clone(), "test");
        Client::connect(options).await.unwrap().stats().await.unwrap()
    }

    /// `kill -9` of the supervisor itself.
    pub(crate) fn kill_supervisor(&mut self) {
        self.supervisor.kill().unwrap();
        self.supervisor.wait().unwrap();
    }

    /// SIGTERM, then the exit status; everything must be gone by then.
    pub(crate) fn stop(mut self) -> ExitStatus {
        let children = self.children(&[]);
        signal(self.supervisor.id(), Signal::TERM);
        let status = self.supervisor.wait().unwrap();
        for pid in children {
            let path = format!("/proc/{pid}");
            assert!(!Path::new(&path).exists() || is_zombie(&path), "child {pid} outlives the supervisor");
        }
        let left: Vec<_> = std::fs::read_dir(self.folder.path()).unwrap().flatten().collect();
        assert!(left.is_empty(), "left behind: {left:?}");
        for url in [&self.url, &self.store] {
            let address = url.strip_prefix("http://").unwrap();
            assert!(std::net::TcpStream::connect(address).is_err(), "{url} still listens");
        }
        status
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // Its children notice the death of their parent by themselves.
        let _ = self.supervisor.kill();
        let _ = self.supervisor.wait();
    }
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

/// The command line of a process, when it is a living child of `parent`.
fn child_of(process: &Path, parent: u32) -> Option<String> {
    let stat = std::fs::read_to_string(process.join("stat")).ok()?;
    // `pid (name) state parent ...`; the name may hold anything.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let (state, found) = (fields.next()?, fields.next()?.parse::<u32>().ok()?);
    if found != parent || state == "Z" {
        return None;
    }
    let mut line = String::new();
    std::fs::File::open(process.join("cmdline")).ok()?.read_to_string(&mut line).ok()?;
    Some(line)
}

fn is_zombie(process: &str) -> bool {
    let stat = std::fs::read_to_string(Path::new(process).join("stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
}

/// Polls until `probe` holds; bounded, and only for what happens in the background by design.
pub(crate) async fn eventually(what: &str, mut probe: impl AsyncFnMut() -> bool) {
    for _ in 0..1200 {
        if probe().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("did not come true: {what}");
}
