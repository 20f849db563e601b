//! `kelvin store` without a subcommand: runs the block store.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use kelvin_kvstore::server::{self, Listening, ServerConfig};

use super::places::Places;
use super::rules::Rules;
use crate::admin::AdminToken;
use crate::ready;
use crate::shutdown::Shutdown;
use crate::values::{self, Size};

#[derive(Debug, clap::Args)]
#[group(skip)]
pub(crate) struct Args {
    /// Address of the gRPC KV API; port 0 takes a free one
    #[arg(long, env = "KELVIN_STORE_LISTEN", value_name = "IP:PORT", default_value = "127.0.0.1:7440", value_parser = values::loopback)]
    listen: SocketAddr,

    /// Address of the built-in page (/ui) and of /metrics over HTTP [default: none]
    #[arg(long, env = "KELVIN_STORE_ADMIN_LISTEN", value_name = "IP:PORT", value_parser = values::loopback)]
    admin_listen: Option<SocketAddr>,

    #[command(flatten)]
    admin: AdminToken,

    /// Unix socket over which processes of this host get at the blocks without a copy; without it, all
    /// bytes go over the network [default: none]
    #[arg(long, env = "KELVIN_STORE_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,

    /// Address of the data port, over which clients that cannot map the memory move blocks without gRPC
    /// [default: a free port of the same address]
    #[arg(long, env = "KELVIN_STORE_DATA_LISTEN", value_name = "IP:PORT", value_parser = values::loopback)]
    data_listen: Option<SocketAddr>,

    /// Memory for blocks; above it, blocks make room for others, and stay in the tiers below if there are any
    #[arg(long, env = "KELVIN_STORE_DRAM", value_name = "SIZE", default_value_t = Size(1 << 30))]
    dram: Size,

    /// That memory in huge pages, which the machine must have set aside (sysctl vm.nr_hugepages, in 2 MiB): disks
    /// move a block to and from them in one piece
    #[arg(long, env = "KELVIN_STORE_HUGE_PAGES")]
    huge_pages: bool,

    /// Bearer token that clients must bring; better given by the variable than by the flag [default: none]
    #[arg(long, env = "KELVIN_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: Option<String>,

    /// A client that is silent for this long loses its session and every lease of it
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = values::duration)]
    session_ttl: Duration,

    /// Longest time a lease lasts without being renewed
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = values::duration)]
    lease_ttl_max: Duration,

    #[command(flatten)]
    places: Places,

    #[command(flatten)]
    rules: Rules,
}

/// Runs until a signal.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let drain = Shutdown::listen_and_exit()?;
    let secret = args.rules.secret()?;
    let tiers = args.rules.on(args.places.tiers());
    let mut config = ServerConfig {
        listen: args.listen,
        admin_listen: args.admin_listen,
        admin_token: args.admin.read()?,
        socket: args.socket,
        data_listen: Some(args.data_listen.unwrap_or(SocketAddr::new(args.listen.ip(), 0))),
        huge_pages: args.huge_pages,
        session_ttl: args.session_ttl,
        lease_ttl_max: args.lease_ttl_max,
        secret,
        tiers,
        ..ServerConfig::new(args.dram.0)
    };
    config.tenants[0].token = args.token;
    let ready = |at: Listening| {
        let facts = [
            ("listen", Some(at.grpc.to_string())),
            ("admin", at.admin.map(|admin| admin.to_string())),
            ("socket", at.socket.map(|socket| socket.display().to_string())),
            ("data", at.data.map(|data| data.to_string())),
        ];
        ready::say("store", facts);
    };
    server::serve(config, ready, drain).await.context("run the store")
}
