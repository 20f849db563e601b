//! A router under load: a process group of its own.

use std::{
    net::{SocketAddr, TcpListener},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{io::AsyncWriteExt, net::TcpStream, time::sleep};

use super::{backend::MODEL, wire::Inbox};
use crate::client::http;

/// A Python router imports for a while.
const START_TIME_MAX: Duration = Duration::from_secs(90);

/// A router, ended when dropped.
pub(super) struct Target {
    pub(super) name: String,
    address: SocketAddr,
    child: Child,
    /// Whether it is asked for streams.
    stream: bool,
}

/// How `kelvin router` is started.
pub(super) struct Kelvin<'a> {
    pub(super) program: Option<&'a Path>,
    /// Whose vocabulary it tokenizes with.
    pub(super) model: Option<&'a Path>,
    /// Where the servers' KV events are, in their order; empty without.
    pub(super) events: &'a [String],
    pub(super) stream: bool,
}

impl Target {
    /// `kelvin router` before the servers at `urls`.
    pub(super) async fn kelvin(with: &Kelvin<'_>, urls: &[String]) -> anyhow::Result<Self> {
        let program = match with.program {
            Some(program) => program.to_owned(),
            None => std::env::current_exe()?.with_file_name("kelvin"),
        };
        ensure!(program.exists(), "{} is not there; build it, or name it with --kelvin", program.display());
        let address = free()?;
        let mut command = Command::new(program);
        command.args(["router", "--listen", &address.to_string()]);
        for (at, url) in urls.iter().enumerate() {
            let events = with.events.get(at).map(|endpoint| format!(",events={endpoint}"));
            command.args(["--backend", &format!("{url}{}", events.unwrap_or_default())]);
        }
        if let Some(model) = with.model {
            command.arg("--model").arg(model).args(["--keys", "tokens"]);
        }
        let target = Self::start("kelvin", address, command, with.stream).await?;
        let begun = Instant::now();
        while !with.events.is_empty() && !target.follows().await? {
            ensure!(begun.elapsed() < START_TIME_MAX, "it does not follow the engines' events");
            sleep(Duration::from_millis(200)).await;
        }
        Ok(target)
    }

    /// Whether it knows the engines' caches by their events.
    async fn follows(&self) -> anyhow::Result<bool> {
        let health = http()?.get(format!("http://{}/health", self.address)).send().await?.text().await?;
        Ok(!health.contains(r#""cache":"fallback""#))
    }

    pub(super) async fn peer(
        name: &str,
        command: &str,
        urls: &[String],
        stream: bool,
    ) -> anyhow::Result<Self> {
        let address = free()?;
        let command =
            command.replace("{port}", &address.port().to_string()).replace("{urls}", &urls.join(" "));
        let mut words = command.split_whitespace();
        let mut command = Command::new(words.next().context("an empty command")?);
        command.args(words);
        Self::start(name, address, command, stream).await
    }

    async fn start(
        name: &str,
        address: SocketAddr,
        mut command: Command,
        stream: bool,
    ) -> anyhow::Result<Self> {
        let log = if name == "kelvin" { Stdio::inherit() } else { Stdio::null() };
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
        let child = command.spawn().with_context(|| format!("start {:?}", command.get_program()))?;
        let mut target = Self { name: name.to_owned(), address, child, stream };
        let begun = Instant::now();
        while let Err(error) = target.answers().await {
            if let Some(status) = target.child.try_wait()? {
                bail!("it ended: {status}");
            }
            ensure!(begun.elapsed() < START_TIME_MAX, "it does not answer: {error:#}");
            sleep(Duration::from_millis(200)).await;
        }
        Ok(target)
    }

    /// Whether it brings a request to a backend and back.
    async fn answers(&self) -> anyhow::Result<()> {
        let body = format!(
            r#"{{"model":"{MODEL}","messages":[{{"role":"user","content":"hello"}}],"max_tokens":1,"stream":{}}}"#,
            self.stream
        );
        let mut stream = TcpStream::connect(self.address).await?;
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await?;
        let mut inbox = Inbox::default();
        let head = inbox.head(&mut stream).await?.context("no answer")?;
        ensure!(head.start.contains(" 200 "), "it answers {}", head.start);
        Ok(())
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Processor time of its process group until now.
    pub(super) fn cpu(&self) -> anyhow::Result<Duration> {
        let group = self.child.id();
        let ticks_per_second = rustix::param::clock_ticks_per_second();
        let mut ticks = 0;
        for entry in std::fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
            else {
                continue;
            };
            // A process that ended since is not counted.
            let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
            // Behind the name, which may hold anything: state, parent, group, ... utime and stime are the 12th and 13th.
            let Some((_, fields)) = stat.rsplit_once(") ") else { continue };
            let fields: Vec<_> = fields.split(' ').collect();
            let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
            if number(2) == u64::from(group) {
                ticks += number(11) + number(12);
            }
        }
        Ok(Duration::from_secs_f64(ticks as f64 / ticks_per_second as f64))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let group = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(group) = group {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

/// An address that was free a moment ago: a peer takes no other.
fn free() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
