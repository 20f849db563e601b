//! Which processes a cluster consists of, and with what flags.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use futures::FutureExt;
use kelvin_planner::{Child, Probe};

use super::Args;
use super::ports::Ports;
use super::probe::{Health, http_get};
use super::run_dir::RunDir;
use crate::admin::AdminToken;
use crate::logging::LogFormat;
use crate::router::Limits;
use crate::store::Places;
use crate::values::{self, Model, Size};
use crate::worker::Role;

/// A model of many gigabytes takes this long to load from a slow disk.
const LOAD_TIME_MAX: Duration = Duration::from_secs(600);

/// The store and the router have nothing to load.
const START_TIME_MAX: Duration = Duration::from_secs(30);

/// A socket's path has to fit `sockaddr_un`: 108 bytes with the final zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Everything about the children that is decided once and stays over their restarts.
pub(super) struct Plan {
    program: PathBuf,
    log_format: LogFormat,
    otlp: Option<String>,
    pub(super) model: Model,
    model_name: Option<String>,
    pub(super) listen: SocketAddr,
    pub(super) dram: Size,
    places: Places,
    limits: Limits,
    pub(super) threads: u32,
    context_tokens: u32,
    socket: PathBuf,
    store: SocketAddr,
    store_admin: SocketAddr,
    router_admin: SocketAddr,
    admin: AdminToken,
    workers: Vec<Worker>,
}

struct Worker {
    role: Role,
    name: String,
    listen: SocketAddr,
}

impl Plan {
    pub(super) fn make(
        args: &Args,
        run_dir: &RunDir,
        log_format: LogFormat,
        otlp: Option<String>,
    ) -> anyhow::Result<Plan> {
        let socket = run_dir.path().join("store.sock");
        if socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            bail!(
                "the run directory's path is too long for a socket in it ({} is {} bytes, at most \
                 {SOCKET_PATH_BYTES_MAX} are possible); give a shorter --run-dir",
                socket.display(),
                socket.as_os_str().len()
            );
        }
        let mut ports = Ports::new(args.listen)?;
        let mut internal = || anyhow::Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, ports.take()?)));
        let (store, store_admin, router_admin) = (internal()?, internal()?, internal()?);
        let roles = [(Role::Prefill, args.prefill), (Role::Decode, args.decode)];
        let mut workers = Vec::new();
        for (role, count) in roles {
            for index in 0..count {
                workers.push(Worker {
                    role,
                    name: format!("{}-{index}", role.as_flag()),
                    listen: internal()?,
                });
            }
        }
        let mut listen = args.listen;
        if listen.port() == 0 {
            listen.set_port(internal()?.port());
        }
        Ok(Plan {
            program: std::env::current_exe().context("find this executable")?,
            log_format,
            otlp,
            model: args.model.clone(),
            model_name: args.model_name.clone(),
            listen,
            dram: args.dram,
            places: args.places.clone(),
            limits: args.limits.clone(),
            threads: args
                .threads
                .unwrap_or_else(|| threads_each(values::cores(), args.prefill + args.decode)),
            context_tokens: args.context,
            socket,
            store,
            store_admin,
            router_admin,
            admin: args.admin.clone(),
            workers,
        })
    }

    pub(super) fn store_url(&self) -> String {
        url(self.store)
    }

    pub(super) fn store_admin_url(&self) -> String {
        url(self.store_admin)
    }

    pub(super) fn router_admin_url(&self) -> String {
        url(self.router_admin)
    }

    pub(super) fn store(&self) -> Child {
        let mut child = self.child("store");
        child.args.extend(flags([("--listen", self.store.to_string()), ("--dram", self.dram.0.to_string())]));
        child.args.extend(flags([("--admin-listen", self.store_admin.to_string())]));
        child.env.extend(self.admin.env());
        child.args.extend([OsString::from("--socket"), self.socket.clone().into()]);
        child.args.extend(self.places.flags());
        child.ready_timeout = START_TIME_MAX;
        child.probe = Some(health_probe(self.store_url()));
        child
    }

    pub(super) fn workers(&self) -> Vec<Child> {
        self.workers.iter().map(|worker| self.worker(worker)).collect()
    }

    fn worker(&self, worker: &Worker) -> Child {
        let mut child = self.child("worker");
        child.name.clone_from(&worker.name);
        child.args.extend(self.model_flag());
        child.args.extend(self.model_name.iter().flat_map(|name| flags([("--model-name", name.clone())])));
        child.args.extend(flags([
            ("--role", worker.role.as_flag().into()),
            ("--name", worker.name.clone()),
            ("--listen", worker.listen.to_string()),
            ("--store", self.store_url()),
            ("--threads", self.threads.to_string()),
            ("--context", self.context_tokens.to_string()),
        ]));
        child.ready_timeout = LOAD_TIME_MAX;
        child.probe = Some(health_probe(url(worker.listen)));
        child
    }

    pub(super) fn router(&self) -> Child {
        let mut child = self.child("router");
        child.args.extend(self.model_flag());
        child.args.extend(flags([("--listen", self.listen.to_string()), ("--store", self.store_url())]));
        child.args.extend(flags([("--admin-listen", self.router_admin.to_string())]));
        child.args.extend(flags([("--store-page", format!("{}/ui/", self.store_admin_url()))]));
        child.args.extend(self.limits.flags());
        child.args.extend(self.workers.iter().flat_map(|worker| flags([("--worker", url(worker.listen))])));
        child.ready_timeout = START_TIME_MAX;
        let router = self.listen;
        child.probe =
            // Not /health, which is about the workers: a router without one is no reason to start it again.
            Some(probe(move || async move { http_get(router, "/v1/models").await.map(|_| ()) }.boxed()));
        child
    }

    fn child(&self, subcommand: &str) -> Child {
        let mut child = Child::new(subcommand, &self.program);
        child.args = vec![subcommand.into()];
        child.args.extend(flags([("--log-format", self.log_format.as_flag().into())]));
        child.args.extend(self.otlp.iter().flat_map(|url| flags([("--otlp", url.clone())])));
        child
    }

    fn model_flag(&self) -> [OsString; 2] {
        let value = match &self.model {
            Model::Toy => "toy".into(),
            Model::Gguf(path) => path.clone().into(),
        };
        ["--model".into(), value]
    }
}

fn flags<const N: usize>(pairs: [(&str, String); N]) -> impl Iterator<Item = OsString> {
    pairs.map(|(name, value)| [OsString::from(name), value.into()]).into_iter().flatten()
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}

fn health_probe(url: String) -> Probe {
    let health = Health::new(&url);
    probe(move || {
        let health = health.clone();
        async move { health?.check().await }.boxed()
    })
}

/// Patient, because a machine whose cores are all computing answers late: a process counts as stuck after three
/// probes in a row, half a minute if it is silent.
fn probe(
    ask: impl Fn() -> futures::future::BoxFuture<'static, Result<(), String>> + Send + Sync + 'static,
) -> Probe {
    Probe {
        interval: Duration::from_secs(3),
        timeout: Duration::from_secs(7),
        failures_max: 3,
        ask: Arc::new(ask),
    }
}

/// More threads than cores make llama.cpp's pool slower, so the cores are shared out.
fn threads_each(cores: u32, workers: u32) -> u32 {
    (cores / workers.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::{Cli, Command};

    fn plan(flags: &[&str]) -> Plan {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = RunDir::create(Some(dir.path())).unwrap();
        let words = ["kelvin", "up", "--model", "toy"];
        let Command::Up(args) = Cli::try_parse_from(words.iter().chain(flags)).unwrap().command else {
            panic!("not up")
        };
        let otlp = Some("http://127.0.0.1:4317".to_owned());
        Plan::make(&args, &run_dir, LogFormat::Json, otlp).unwrap()
    }

    // A channel wants a runtime, even one that never connects.
    #[tokio::test]
    async fn every_child_takes_its_flags() {
        let plan = plan(&["--prefill", "2", "--decode", "3", "--listen", "127.0.0.1:0", "--dram", "64MiB"]);
        let children = [vec![plan.store()], plan.workers(), vec![plan.router()]].concat();
        let names: Vec<_> = children.iter().map(|child| child.name.as_str()).collect();
        assert_eq!(names, ["store", "prefill-0", "prefill-1", "decode-0", "decode-1", "decode-2", "router"]);
        for child in &children {
            let words = [vec![OsString::from("kelvin")], child.args.clone()].concat();
            let cli = Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{}: {error}", child.name));
            assert_eq!(cli.otlp.as_deref(), Some("http://127.0.0.1:4317"));
        }
        let workers = children[6].args.iter().filter(|word| *word == "--worker").count();
        assert_eq!(workers, 5);
    }

    #[test]
    fn ports_are_all_different() {
        let plan = plan(&["--prefill", "8", "--decode", "8", "--listen", "127.0.0.1:0"]);
        let mut ports: Vec<_> = plan.workers.iter().map(|worker| worker.listen.port()).collect();
        ports.extend([plan.store.port(), plan.listen.port(), plan.router_admin.port()]);
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 19);
    }

    #[test]
    fn cores_are_shared_out() {
        for (cores, workers, threads) in [(1, 2, 1), (2, 2, 1), (8, 2, 4), (8, 3, 2), (8, 0, 8)] {
            assert_eq!(threads_each(cores, workers), threads, "{cores} cores, {workers} workers");
        }
    }
}
