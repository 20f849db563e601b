//! The local actuator: supervises child processes of this machine.
//!
//! # Overview
//! [`Supervisor::start`] starts one child and waits until it said that it is ready, so that the
//! caller's order of calls is the start order. From then on a task of its own (`keeper`) watches the
//! child: an exit or a row of failed probes leads to a restart with exponential back-off.
//! [`Supervisor::drain`] stops the children in reverse order.
//!
//! # Invariants
//! - No child outlives the supervisor: it is drained, or killed when its handle is dropped, and when
//!   the supervisor itself is killed with -9 the kernel kills a child that called
//!   [`bind_to_supervisor`].
//! - A process is signalled only before it was reaped, so a signal never meets a recycled pid.
//! - Children have a process group of their own: Ctrl-C in a terminal reaches the supervisor alone, which
//!   then drains in order.
//!
//! # Cancellation
//! Dropping the future of `start` leaves the child with the supervisor; `drain` stops it.

mod backoff;
mod keeper;
mod lifeline;
mod process;
mod spawner;

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use backoff::Backoff;
pub use keeper::{Cause, State, Status};
pub use lifeline::{SUPERVISOR_PID, bind_to_supervisor};
pub use process::{Output, ReadyLine, stderr_output};

use keeper::Keeper;
use spawner::Spawner;

/// A child to keep alive.
#[derive(Clone)]
pub struct Child {
    /// Unique among the children of a supervisor; prefix of its output.
    pub name: String,
    /// The executable.
    pub program: PathBuf,
    /// Its arguments, the same at every start.
    pub args: Vec<OsString>,
    /// Added to the environment it inherits.
    pub env: Vec<(OsString, OsString)>,
    /// Most time from start to the ready line on its stdout.
    pub ready_timeout: Duration,
    /// Asked periodically once it is ready; without one, only its exit counts.
    pub probe: Option<Probe>,
}

impl Child {
    /// A child without a probe that has a minute to become ready.
    pub fn new(name: impl Into<String>, program: impl Into<PathBuf>) -> Child {
        Child {
            name: name.into(),
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            ready_timeout: Duration::from_secs(60),
            probe: None,
        }
    }
}

/// A periodic question whether a child still does its work.
#[derive(Clone)]
pub struct Probe {
    /// Pause between two questions.
    pub interval: Duration,
    /// No answer within this time is a failure.
    pub timeout: Duration,
    /// Failures in a row after which the child is killed and restarted; at least 1.
    pub failures_max: u32,
    /// The question; the error says in a few words what is wrong.
    pub ask: Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>,
}

/// How a [`Supervisor`] treats its children.
#[derive(Clone)]
pub struct SupervisorOptions {
    /// Pauses before restarts.
    pub backoff: Backoff,
    /// Time between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// Where the children's output goes, line by line, prefixed with `name | `.
    pub output: Output,
}

impl Default for SupervisorOptions {
    fn default() -> Self {
        SupervisorOptions {
            backoff: Backoff::default(),
            grace: Duration::from_secs(10),
            output: stderr_output(),
        }
    }
}

/// Why a child could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The thread that starts the processes could not be made.
    #[error("start the thread that starts processes")]
    Spawner(#[source] std::io::Error),
    /// The child ended, or kept silent, before its first ready line. It is not tried again: what fails at
    /// the very first start is a mistake in its flags or surroundings more often than bad luck.
    #[error("{name} did not start: {cause}")]
    NotStarted {
        /// Which child.
        name: String,
        /// How it ended.
        cause: Cause,
    },
    /// Two children must not share a name.
    #[error("a child named {0} is there already")]
    NameTaken(String),
    /// The supervisor is draining.
    #[error("{0} is not started any more, since everything is being stopped")]
    Draining(String),
}

impl Error {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Error::NotStarted { cause: Cause::NotReady(_) | Cause::NotSpawned(_), .. })
    }
}

/// Keeps child processes running. See the module's head for the rules.
pub struct Supervisor {
    options: SupervisorOptions,
    spawner: Spawner,
    hurry: CancellationToken,
    children: Mutex<Children>,
}

#[derive(Default)]
struct Children {
    kept: Vec<Kept>,
    draining: bool,
}

struct Kept {
    name: String,
    stop: CancellationToken,
    status: watch::Receiver<Status>,
    task: JoinHandle<()>,
}

impl Supervisor {
    /// A supervisor without children. Must be called within a tokio runtime.
    pub fn new(options: SupervisorOptions) -> Result<Supervisor, Error> {
        Ok(Supervisor {
            options,
            spawner: Spawner::new().map_err(Error::Spawner)?,
            hurry: CancellationToken::new(),
            children: Mutex::default(),
        })
    }

    /// Starts a child and returns what it said when it was ready.
    pub async fn start(&self, child: Child) -> Result<ReadyLine, Error> {
        let name = child.name.clone();
        let mut status = self.keep(child)?;
        let seen = status.wait_for(|now| now.ready.is_some() || now.state == State::Stopped).await;
        let (ready, cause) = match seen {
            Ok(now) => (now.ready.clone(), now.cause.clone()),
            Err(_) => (None, None),
        };
        match (ready, cause) {
            (Some(ready), _) => Ok(ready),
            (None, Some(cause)) => Err(Error::NotStarted { name, cause }),
            (None, None) => Err(Error::Draining(name)),
        }
    }

    fn keep(&self, child: Child) -> Result<watch::Receiver<Status>, Error> {
        let mut children = self.children.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if children.draining {
            return Err(Error::Draining(child.name));
        }
        if children.kept.iter().any(|kept| kept.name == child.name) {
            return Err(Error::NameTaken(child.name));
        }
        let name = child.name.clone();
        let stop = CancellationToken::new();
        let (keeper, status) =
            Keeper::new(child, self.options.clone(), self.spawner.clone(), stop.clone(), self.hurry.clone());
        let task = tokio::spawn(keeper.run());
        children.kept.push(Kept { name, stop, status: status.clone(), task });
        Ok(status)
    }

    /// The present and every later status of a child.
    pub fn watch(&self, name: &str) -> Option<watch::Receiver<Status>> {
        let children = self.children.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        children.kept.iter().find(|kept| kept.name == name).map(|kept| kept.status.clone())
    }

    /// Stops every child, the last started first: SIGTERM, the grace period, then SIGKILL. Returns when the
    /// last one is gone.
    pub async fn drain(&self) {
        let kept = {
            let mut children = self.children.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            children.draining = true;
            std::mem::take(&mut children.kept)
        };
        for Kept { name, stop, task, .. } in kept.into_iter().rev() {
            tracing::debug!(child = %name, "stopping");
            stop.cancel();
            if let Err(error) = task.await {
                tracing::error!(child = %name, %error, "the child's keeper failed");
            }
        }
    }

    /// Cuts short every grace period, those under way included. For an impatient second Ctrl-C.
    pub fn hurry(&self) {
        self.hurry.cancel();
    }
}

impl fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervisor").finish_non_exhaustive()
    }
}
