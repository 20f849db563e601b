//! How to run a store, and the checks of it before anything starts.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use super::ServeError;
use crate::store::{TenantOptions, TierOptions};

/// How to run a store.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// gRPC address; loopback only, port 0 for any free one.
    pub listen: SocketAddr,
    /// HTTP address of the page (`/ui`), `/metrics` and `/health`; loopback only.
    pub admin_listen: Option<SocketAddr>,
    /// Bearer token with which the page may change something of every tenant. A tenant's own token lets it change
    /// what is that tenant's; without any of them the page shows only.
    pub admin_token: Option<String>,
    /// Unix socket of the same-host transport; without it every byte goes through gRPC.
    pub socket: Option<PathBuf>,
    /// TCP address of the data port; loopback only, port 0 for any free one. Without it every byte that does not
    /// go through shared memory goes through gRPC.
    pub data_listen: Option<SocketAddr>,
    /// Tenants; one without a token serves whoever brings none.
    pub tenants: Vec<TenantOptions>,
    /// Blocks' memory in huge pages (2 MiB) that the operator set aside.
    pub huge_pages: bool,
    /// Secret behind the hash keys. Without one it is made once and kept in the data directory; without that
    /// too it is random, and hashes change with every start.
    pub secret: Option<[u8; 32]>,
    /// Time after which a session that is not renewed ends.
    pub session_ttl: Duration,
    /// Longest lease.
    pub lease_ttl_max: Duration,
    /// Time that open streams get at a stop.
    pub drain: Duration,
    /// The tiers below memory.
    pub tiers: TierOptions,
}

impl ServerConfig {
    /// A store with one open tenant of `dram_bytes` on any free loopback port.
    pub fn new(dram_bytes: u64) -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            admin_listen: None,
            admin_token: None,
            socket: None,
            data_listen: None,
            tenants: vec![TenantOptions { name: "default".into(), token: None, dram_bytes, operator: true }],
            huge_pages: false,
            secret: None,
            session_ttl: Duration::from_secs(10),
            lease_ttl_max: Duration::from_secs(60),
            drain: Duration::from_secs(5),
            tiers: TierOptions::default(),
        }
    }

    /// Refuses what makes no sense.
    pub(super) fn check(&self) -> Result<(), ServeError> {
        let refuse = |message: String| Err(ServeError::Config(message));
        for address in [Some(self.listen), self.admin_listen, self.data_listen].into_iter().flatten() {
            if !address.ip().is_loopback() {
                return refuse(format!(
                    "{address} is not a loopback address: this version has no TLS, so it listens on \
                     127.0.0.0/8 or [::1] only"
                ));
            }
        }
        if self.tenants.is_empty() {
            return refuse("a store needs at least one tenant".into());
        }
        for (at, tenant) in self.tenants.iter().enumerate() {
            if tenant.name.is_empty() || tenant.name.len() > 64 {
                return refuse("a tenant's name has 1 to 64 bytes".into());
            }
            if tenant.dram_bytes < 4096 {
                return refuse(format!("tenant `{}` needs at least 4096 bytes of DRAM", tenant.name));
            }
            for other in &self.tenants[..at] {
                if other.name == tenant.name || other.token == tenant.token {
                    return refuse(format!(
                        "tenants `{}` and `{}` share a name or a token",
                        other.name, tenant.name
                    ));
                }
            }
        }
        if self.admin_token.as_ref().is_some_and(|token| token.trim().is_empty()) {
            return refuse("the admin token is empty: give one of some length, or none".into());
        }
        if self.session_ttl < Duration::from_millis(100) || self.lease_ttl_max < Duration::from_millis(100) {
            return refuse("session and lease TTLs must be at least 100 ms".into());
        }
        let asked: u64 = self.tenants.iter().fold(0, |sum, tenant| sum.saturating_add(tenant.dram_bytes));
        // Huge pages are not part of what is available, and lacking ones are refused when they are taken.
        if !self.huge_pages
            && let Some(available) = memory_available()
            && asked > available
        {
            return refuse(format!(
                "{asked} bytes of DRAM are asked for, but this machine has {available} available: ask for less"
            ));
        }
        self.tiers.check(asked).map_err(ServeError::Config)
    }
}

/// `MemAvailable` of the kernel, in bytes.
fn memory_available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}
