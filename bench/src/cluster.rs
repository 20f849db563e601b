//! A cluster for the time of one run: the sibling `kelvin` binary, supervised.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use kelvin_planner::{Child, Supervisor, SupervisorOptions};

/// A large model takes its time to load.
const START_TIME_MAX: Duration = Duration::from_secs(900);

/// The cluster drains its own children first.
const GRACE: Duration = Duration::from_secs(30);

const TOY_PROMPT_TOKEN_TIME: &str = "500us";

pub(crate) struct Cluster {
    supervisor: Supervisor,
    pub(crate) url: String,
}

impl Cluster {
    /// Runs `kelvin up` on a free port; `flags` are added to its own.
    pub(crate) async fn start(
        program: Option<&Path>,
        model: &str,
        flags: &[String],
    ) -> anyhow::Result<Cluster> {
        let program = match program {
            Some(program) => program.to_owned(),
            None => sibling()?,
        };
        if !program.exists() {
            bail!(
                "{} is not there; build it (cargo build --release -p kelvin-cli), name it with --kelvin, \
                 or measure a running cluster with --url",
                program.display()
            );
        }
        let supervisor = Supervisor::new(SupervisorOptions { grace: GRACE, ..SupervisorOptions::default() })?;
        let mut child = Child::new("kelvin", program);
        child.args =
            ["up", "--json", "--listen", "127.0.0.1:0", "--model", model].map(OsString::from).to_vec();
        child.args.extend(flags.iter().map(OsString::from));
        if model == "toy" {
            // About the pace of a small model, so that the ratio of cold to warm says something.
            child.env = vec![("KELVIN_TOY_PROMPT_TOKEN_TIME".into(), TOY_PROMPT_TOKEN_TIME.into())];
        }
        child.ready_timeout = START_TIME_MAX;
        let ready = supervisor.start(child).await?;
        let listen = ready.get("listen").context("the cluster did not say where it listens")?;
        Ok(Cluster { url: format!("http://{listen}"), supervisor })
    }

    pub(crate) async fn stop(self) {
        self.supervisor.drain().await;
    }
}

/// `kelvin` beside this executable.
fn sibling() -> anyhow::Result<PathBuf> {
    Ok(std::env::current_exe().context("find this executable")?.with_file_name("kelvin"))
}
