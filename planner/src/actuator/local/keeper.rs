//! Keeps one child running.
//!
//! # States
//! ```text
//!                    ready line
//!      ┌─ Starting ─────────────► Ready
//!      │     ▲  │ exit, silence     │ exit, probes failed
//!      │     │  ▼                   │
//!      │    BackingOff ◄────────────┘
//!      │     │                      │
//!      └─────┴── stop ──────────────┴──► Draining ──► Stopped
//! ```
//! A child that ends before its very first ready line goes to `Stopped` at once, with the cause.
//! `BackingOff` and `Stopped` have no process; a child that is alive but useless is killed on the way there.

use std::fmt;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::process::{Process, ReadyLine};
use super::spawner::Spawner;
use super::{Child, Probe, SupervisorOptions};

/// Where a child is in its life. The drawing is at the head of the module's source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Started, not ready yet.
    Starting,
    /// Said that it is ready.
    Ready,
    /// Ended; a pause before the next start.
    BackingOff,
    /// Asked to end.
    Draining,
    /// Ended, not to be started again.
    Stopped,
}

/// Why a child ended without being asked to.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Cause {
    /// With this exit code.
    Exited(i32),
    /// By this signal.
    Signalled(i32),
    /// Killed, since it did not say that it is ready within this time.
    NotReady(Duration),
    /// Killed, since its probe failed this many times in a row.
    ProbesFailed {
        /// How many.
        failures: u32,
        /// What the last one said.
        last: String,
    },
    /// It could not be started at all, or not be waited for.
    NotSpawned(Arc<io::Error>),
}

impl From<io::Result<ExitStatus>> for Cause {
    fn from(status: io::Result<ExitStatus>) -> Cause {
        match status {
            Ok(status) => match status.code() {
                Some(code) => Cause::Exited(code),
                None => Cause::Signalled(status.signal().unwrap_or_default()),
            },
            Err(error) => Cause::NotSpawned(Arc::new(error)),
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Exited(code) => write!(f, "exited with code {code}"),
            Cause::Signalled(signal) => match signal_name(*signal) {
                Some(name) => write!(f, "killed by signal {signal} ({name})"),
                None => write!(f, "killed by signal {signal}"),
            },
            Cause::NotReady(after) => write!(f, "not ready within {after:?}"),
            Cause::ProbesFailed { failures, last } => {
                write!(f, "{failures} probes failed in a row, the last: {last}")
            }
            Cause::NotSpawned(error) => write!(f, "cannot be run: {error}"),
        }
    }
}

fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        _ => return None,
    })
}

/// What is known of a child.
#[derive(Clone, Debug)]
pub struct Status {
    /// Where it is in its life.
    pub state: State,
    /// Of the process that runs now.
    pub pid: Option<u32>,
    /// Starts after the first one.
    pub restarts: u64,
    /// What it said when it was last ready.
    pub ready: Option<ReadyLine>,
    /// Why it last ended.
    pub cause: Option<Cause>,
}

/// How one run of the child ended.
enum End {
    /// By itself or killed as useless, after having been ready for this long.
    Unasked(Cause, Duration),
    Asked,
}

pub(super) struct Keeper {
    child: Child,
    options: SupervisorOptions,
    spawner: Spawner,
    stop: CancellationToken,
    hurry: CancellationToken,
    status: watch::Sender<Status>,
}

impl Keeper {
    pub(super) fn new(
        child: Child,
        options: SupervisorOptions,
        spawner: Spawner,
        stop: CancellationToken,
        hurry: CancellationToken,
    ) -> (Keeper, watch::Receiver<Status>) {
        let (status, watcher) = watch::channel(Status {
            state: State::Starting,
            pid: None,
            restarts: 0,
            ready: None,
            cause: None,
        });
        (Keeper { child, options, spawner, stop, hurry, status }, watcher)
    }

    /// Runs until it is told to stop, or until a first start that fails.
    pub(super) async fn run(self) {
        let name = self.child.name.clone();
        let mut ended = 0;
        loop {
            let (cause, ready) = match self.run_once().await {
                End::Unasked(cause, ready) => (cause, ready),
                End::Asked => break,
            };
            if self.status.borrow().ready.is_none() {
                self.status.send_modify(|status| status.cause = Some(cause));
                break;
            }
            ended = self.options.backoff.count(ended, ready);
            let pause = self.options.backoff.pause(ended);
            tracing::warn!(child = %name, %cause, ?pause, "{name} {cause}; restarting in {pause:?}");
            self.status.send_modify(|status| {
                status.state = State::BackingOff;
                status.pid = None;
                status.cause = Some(cause);
            });
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = sleep(pause) => {}
            }
            self.status.send_modify(|status| {
                status.state = State::Starting;
                status.restarts += 1;
            });
        }
        self.status.send_modify(|status| {
            status.state = State::Stopped;
            status.pid = None;
        });
    }

    async fn run_once(&self) -> End {
        let spawned = Process::spawn(&self.child, &self.spawner, &self.options.output).await;
        let (mut process, ready) = match spawned {
            Ok(spawned) => spawned,
            Err(error) => return End::Unasked(Cause::NotSpawned(Arc::new(error)), Duration::ZERO),
        };
        self.status.send_modify(|status| status.pid = process.pid());
        let line = tokio::select! {
            biased;
            () = self.stop.cancelled() => return self.drain(process).await,
            line = ready => line,
            status = process.wait() => return End::Unasked(status.into(), Duration::ZERO),
            () = sleep(self.child.ready_timeout) => {
                process.kill().await;
                return End::Unasked(Cause::NotReady(self.child.ready_timeout), Duration::ZERO);
            }
        };
        let since = Instant::now();
        let restarts = self.status.borrow().restarts;
        if restarts > 0 {
            tracing::info!(child = %self.child.name, restarts, "{} is back", self.child.name);
        }
        self.status.send_modify(|status| {
            status.state = State::Ready;
            status.ready = Some(line);
        });
        tokio::select! {
            () = self.stop.cancelled() => self.drain(process).await,
            status = process.wait() => End::Unasked(status.into(), since.elapsed()),
            cause = useless(self.child.probe.as_ref()) => {
                process.kill().await;
                End::Unasked(cause, since.elapsed())
            }
        }
    }

    async fn drain(&self, mut process: Process) -> End {
        self.status.send_modify(|status| status.state = State::Draining);
        if !process.stop(self.options.grace, &self.hurry).await {
            let name = &self.child.name;
            tracing::warn!(child = %name, "{name} did not end on SIGTERM and was killed");
        }
        End::Asked
    }
}

/// Returns when the probe has failed too often in a row; never without a probe.
async fn useless(probe: Option<&Probe>) -> Cause {
    let Some(probe) = probe else { return std::future::pending().await };
    let mut failures = 0;
    loop {
        sleep(probe.interval).await;
        let answer = timeout(probe.timeout, (probe.ask)()).await;
        let last = match answer {
            Ok(Ok(())) => {
                failures = 0;
                continue;
            }
            Ok(Err(reason)) => reason,
            Err(_) => format!("no answer within {:?}", probe.timeout),
        };
        failures += 1;
        if failures >= probe.failures_max {
            return Cause::ProbesFailed { failures, last };
        }
    }
}
