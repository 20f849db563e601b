//! One running process: its ready line, its output, its end.

use std::io::{self, Write};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::Command;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::lifeline::SUPERVISOR_PID;
use super::spawner::Spawner;

/// Longer lines of output are cut into pieces of this size.
const LINE_BYTES_MAX: usize = 16 << 10;

/// What a process wrote before its end is worth this much waiting. More would only be needed when a
/// grandchild keeps the pipe open.
const OUTPUT_WAIT: Duration = Duration::from_millis(500);

/// Takes a child's output, one prefixed line a call, without the line feed.
pub type Output = Arc<dyn Fn(&str) + Send + Sync>;

/// Writes the lines to this process's stderr. A closed stderr is no reason to fail.
pub fn stderr_output() -> Output {
    Arc::new(|line| {
        let _ = writeln!(io::stderr().lock(), "{line}");
    })
}

/// The one JSON line a child prints on stdout when it is ready:
/// `{"event":"ready","service":"store","listen":"127.0.0.1:7440"}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadyLine(serde_json::Value);

impl ReadyLine {
    /// A string member of the line.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.as_str()
    }

    fn parse(line: &str) -> Option<ReadyLine> {
        let value: serde_json::Value = serde_json::from_str(line).ok()?;
        (value.get("event")?.as_str()? == "ready").then_some(ReadyLine(value))
    }
}

pub(super) struct Process {
    child: tokio::process::Child,
    readers: [JoinHandle<()>; 2],
}

impl Process {
    /// Starts a process. The future is its ready line; it pends for ever if stdout closes without one,
    /// since the process may still end or run out of time.
    pub(super) async fn spawn(
        child: &super::Child,
        spawner: &Spawner,
        output: &Output,
    ) -> io::Result<(Process, impl Future<Output = ReadyLine> + use<>)> {
        let mut command = Command::new(&child.program);
        command
            .args(&child.args)
            .envs(child.env.iter().map(|(name, value)| (name, value)))
            .env(SUPERVISOR_PID, std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        let mut process = spawner.spawn(command).await?;
        let (stdout, stderr) = match (process.stdout.take(), process.stderr.take()) {
            (Some(stdout), Some(stderr)) => (stdout, stderr),
            _ => return Err(io::Error::other("the child has no pipes")),
        };
        let (found, ready) = oneshot::channel();
        let mut found = Some(found);
        let print = printer(&child.name, output);
        let stdout = read_lines(stdout, move |line| match found.take() {
            None => print(line),
            Some(sender) => match ReadyLine::parse(line) {
                Some(ready) => drop(sender.send(ready)),
                None => {
                    found = Some(sender);
                    print(line);
                }
            },
        });
        let stderr = read_lines(stderr, printer(&child.name, output));
        let ready = async move {
            match ready.await {
                Ok(line) => line,
                Err(_) => std::future::pending().await,
            }
        };
        Ok((Process { child: process, readers: [tokio::spawn(stdout), tokio::spawn(stderr)] }, ready))
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Its end; what it wrote before has been passed on then.
    pub(super) async fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait().await?;
        for reader in &mut self.readers {
            if !reader.is_finished() && tokio::time::timeout(OUTPUT_WAIT, &mut *reader).await.is_err() {
                reader.abort();
            }
        }
        Ok(status)
    }

    /// Kills it and whatever it started, and reaps it.
    pub(super) async fn kill(&mut self) {
        // `id` is None once it was reaped, so the number still names this process.
        if let Some(pid) = self.raw_pid() {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let _ = self.wait().await;
    }

    /// Asks it to end, and kills it when the grace period is over or `hurry` says so.
    /// True: it ended by itself.
    pub(super) async fn stop(&mut self, grace: Duration, hurry: &CancellationToken) -> bool {
        if let Some(pid) = self.raw_pid() {
            let _ = kill_process(pid, Signal::TERM);
        }
        tokio::select! {
            _ = self.wait() => return true,
            () = hurry.cancelled() => {}
            () = tokio::time::sleep(grace) => {}
        }
        self.kill().await;
        false
    }

    fn raw_pid(&self) -> Option<Pid> {
        self.child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        for reader in &self.readers {
            reader.abort();
        }
    }
}

fn printer(name: &str, output: &Output) -> impl Fn(&str) + Send + use<> {
    let (name, output) = (name.to_owned(), output.clone());
    move |line| output(&format!("{name} | {line}"))
}

/// Feeds `line` until the pipe closes. Bytes that are no UTF-8 are replaced.
async fn read_lines(pipe: impl AsyncRead + Unpin, mut line: impl FnMut(&str)) {
    let mut pipe = BufReader::new(pipe);
    let mut buffer = Vec::new();
    loop {
        buffer.clear();
        let read = (&mut pipe).take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut buffer).await;
        if !matches!(read, Ok(bytes) if bytes > 0) {
            return;
        }
        line(String::from_utf8_lossy(&buffer).trim_end_matches(['\n', '\r']));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_ready_event_is_a_ready_line() {
        let line = ReadyLine::parse(r#"{"event":"ready","listen":"127.0.0.1:1","n":1}"#).unwrap();
        assert_eq!(line.get("listen"), Some("127.0.0.1:1"));
        assert_eq!(line.get("n"), None);
        for other in ["", "ready", "{}", r#"{"event":"loading"}"#, r#""ready""#] {
            assert_eq!(ReadyLine::parse(other), None, "{other}");
        }
    }

    #[tokio::test]
    async fn long_lines_are_cut() {
        let bytes = [vec![b'a'; LINE_BYTES_MAX + 1], b"\r\nb\xff".to_vec()].concat();
        let mut lines = Vec::new();
        read_lines(&bytes[..], |line| lines.push(line.to_owned())).await;
        assert_eq!(lines, ["a".repeat(LINE_BYTES_MAX), "a".into(), "b\u{fffd}".into()]);
    }
}
