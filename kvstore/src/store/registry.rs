//! The store: its tenants, and what they share.

use std::{sync::Arc, time::Duration};

use kelvin_proto::{Reason, Refusal};
use kelvin_tiering::{DramPool, MemoryError};

use super::{Clock, Tenant, TierOptions, tenant::TenantLimits};

/// One tenant of a store.
#[derive(Debug, Clone)]
pub struct TenantOptions {
    /// Its name; part of every sequence hash.
    pub name: String,
    /// Bearer token; a tenant without one is whoever brings none.
    pub token: Option<String>,
    /// Bytes of DRAM it has, all its own.
    pub dram_bytes: u64,
    /// Whether it may look into and check the store as a whole: what is on disk concerns all tenants.
    pub operator: bool,
}

/// What a store is made of.
#[derive(Debug, Clone)]
pub(crate) struct StoreOptions {
    /// Tenants; their names and tokens differ.
    pub(crate) tenants: Vec<TenantOptions>,
    /// Their memory in huge pages.
    pub(crate) huge_pages: bool,
    /// Secret from which the tenants' hash keys are derived.
    pub(crate) secret: [u8; 32],
    /// Number of this start.
    pub(crate) incarnation: u64,
    /// Time after which a session that is not renewed ends.
    pub(crate) session_ttl: Duration,
    /// Longest time a lease may ask for.
    pub(crate) lease_ttl_max: Duration,
    /// The tiers below memory, checked.
    pub(crate) tiers: TierOptions,
}

/// The store.
pub(crate) struct Store {
    tenants: Vec<(Option<String>, Arc<Tenant>)>,
    clock: Arc<dyn Clock>,
    incarnation: u64,
}

impl Store {
    /// Takes the memory and opens the tenants.
    pub(crate) fn new(options: StoreOptions, clock: Arc<dyn Clock>) -> Result<Self, MemoryError> {
        let mut tenants = Vec::new();
        for tenant in options.tenants {
            let make_pool = if options.huge_pages { DramPool::in_huge_pages } else { DramPool::new };
            let pool = make_pool(&format!("kelvin-{}", tenant.name), tenant.dram_bytes)?;
            let secret = *blake3::keyed_hash(&options.secret, tenant.name.as_bytes()).as_bytes();
            let limits =
                TenantLimits { session_ttl: options.session_ttl, lease_ttl_max: options.lease_ttl_max };
            let mut state = Tenant::new(
                tenant.name,
                secret,
                pool,
                limits,
                clock.clone(),
                &options.tiers,
                tenant.operator,
            );
            state.place = tenants.len();
            tenants.push((tenant.token, Arc::new(state)));
        }
        Ok(Self { tenants, clock, incarnation: options.incarnation })
    }

    /// The tenant that a bearer token names.
    pub(crate) fn tenant(&self, token: Option<&str>) -> Result<&Arc<Tenant>, Refusal> {
        // Tokens are compared through a hash, so that the time it takes tells nothing about them.
        let digest = |token: Option<&str>| token.map(|token| blake3::hash(token.as_bytes()));
        let wanted = digest(token);
        let found = self.tenants.iter().find(|(known, _)| digest(known.as_deref()) == wanted);
        found.map(|(_, tenant)| tenant).ok_or_else(|| {
            let message = match token {
                None => "this store wants a bearer token",
                Some(_) => "the bearer token is not one of this store's",
            };
            Refusal::new(Reason::Unauthenticated, message)
        })
    }

    pub(crate) fn tenants(&self) -> impl Iterator<Item = &Arc<Tenant>> {
        self.tenants.iter().map(|(_, tenant)| tenant)
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    pub(crate) fn incarnation(&self) -> u64 {
        self.incarnation
    }

    pub(crate) fn uptime(&self) -> Duration {
        self.clock.now()
    }

    /// Ends sessions and leases whose time is over; called a few times a second.
    pub(crate) fn reap(&self) {
        for tenant in self.tenants() {
            tenant.reap();
        }
    }
}
