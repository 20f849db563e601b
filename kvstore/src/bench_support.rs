//! The store's core, without its service: for the benches.
//!
//! One tenant in one process. What a client sees of the store goes through the service; what the store itself
//! costs is measured here.

mod tiered;

use std::{sync::Arc, time::Duration};

use kelvin_kernels::copy_checksummed;
use kelvin_proto::{Fingerprint, NamespaceSpec, Refusal, Shard, kv::v1::BlockStatus};
use kelvin_tiering::MemoryError;

use crate::{
    SequenceHash,
    store::{
        AcquiredBlock, Namespace, Store, StoreOptions, SystemClock, Tenant, TenantOptions,
        meters::{self, Verb, Via},
    },
};

pub use crate::store::{NvmeSpace, ObjectSpace, Offload, TierOptions};
pub use tiered::{Moved, Served, Tiered};

/// Blocks that a namespace's miss-ratio curve follows.
pub const CURVE_SAMPLES_MAX: usize = crate::store::CURVE_SAMPLES_MAX;

/// A day: nothing expires.
const TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// Whether stores of this process measure themselves; they do unless told otherwise here.
pub fn set_measuring(on: bool) {
    meters::set_measuring(on);
}

/// What tracing adds to a call: its span, which is none unless spans are exported.
#[inline(never)]
pub fn span_of_a_call() {
    drop(crate::span::of_verb("match", 96));
}

/// A tenant.
pub struct Core {
    store: Store,
}

/// A session on it, and its namespace.
pub struct Session {
    id: u64,
    namespace: Arc<Namespace>,
}

/// Leases of one call.
pub struct Leases(Vec<AcquiredBlock>);

impl Leases {
    /// Their ids, to release them.
    pub fn ids(&self) -> Vec<u64> {
        let leased = self.0.iter().filter(|block| block.status == BlockStatus::Leased);
        leased.map(|block| block.lease).collect()
    }

    /// Where each leased block lies in the memory file, and its bytes.
    pub fn places(&self) -> impl Iterator<Item = (u64, u64)> {
        let leased = self.0.iter().filter(|block| block.status == BlockStatus::Leased);
        leased.map(|block| (block.offset, block.bytes))
    }
}

impl Core {
    /// A tenant with so much memory.
    pub fn new(dram_bytes: u64) -> Result<Self, MemoryError> {
        Self::with_tiers(dram_bytes, TierOptions::default())
    }

    fn with_tiers(dram_bytes: u64, tiers: TierOptions) -> Result<Self, MemoryError> {
        let options = StoreOptions {
            huge_pages: false,
            tenants: vec![TenantOptions { name: "bench".into(), token: None, dram_bytes, operator: false }],
            secret: [0; 32],
            incarnation: 1,
            session_ttl: TTL,
            lease_ttl_max: TTL,
            tiers,
        };
        Ok(Self { store: Store::new(options, Arc::new(SystemClock::default()))? })
    }

    fn tenant(&self) -> &Tenant {
        self.store.tenant(None).expect("the one tenant has no token")
    }

    /// A session on the namespace of blocks of this size.
    pub fn open(&self, block_bytes: u64) -> Result<Session, Refusal> {
        let text = || "bench".to_owned();
        let fingerprint = Fingerprint {
            model_digest: text(),
            engine: text(),
            engine_build: text(),
            layout: text(),
            dtype: text(),
            attributes: Default::default(),
        };
        let model = format!("blocks of {block_bytes}");
        let spec =
            NamespaceSpec { model, fingerprint, shard: Shard::default(), block_tokens: 16, block_bytes };
        let opened = self.tenant().open(spec, "bench")?;
        Ok(Session { id: opened.session, namespace: opened.namespace })
    }

    /// Stores a sequence: `fill` copies each block's bytes, and makes their checksum, on the way in. How many
    /// blocks were stored.
    pub fn store(
        &self,
        session: &Session,
        hashes: &[SequenceHash],
        mut fill: impl FnMut(usize, &mut [u8]) -> kelvin_kernels::Checksum,
    ) -> Result<usize, Refusal> {
        let blocks = self.tenant().reserve(session.id, None, hashes, TTL)?;
        let reserved = blocks.iter().enumerate().filter(|(_, block)| block.lease != 0);
        let (places, leases): (Vec<_>, Vec<_>) = reserved.map(|(at, block)| (at, block.lease)).unzip();
        let filled = self.tenant().fill(session.id, &leases, |at, bytes| fill(places[at], bytes))?;
        Ok(filled.iter().filter(|&&status| status == BlockStatus::Stored).count())
    }

    /// Stores a sequence with a copy that makes the checksum in the same pass.
    pub fn put<'a>(
        &self,
        session: &Session,
        hashes: &[SequenceHash],
        source: impl Fn(usize) -> &'a [u8],
    ) -> Result<usize, Refusal> {
        self.store(session, hashes, |at, target| copy_checksummed(source(at), target))
    }

    /// Blocks of the longest stored prefix.
    pub fn longest_prefix(&self, session: &Session, hashes: &[SequenceHash]) -> usize {
        self.tenant().longest_prefix(&session.namespace, hashes)
    }

    /// The same as the service does it for `Match`: with what is counted and watched.
    pub fn look_up(&self, session: &Session, hashes: &[SequenceHash]) -> usize {
        let (tenant, namespace) = (self.tenant(), &session.namespace);
        let began = meters::measuring().then(|| tenant.now());
        let found = tenant.match_prefix(namespace, hashes).len();
        if let Some(first) = hashes.get(found) {
            tenant.count_misses(namespace, *first, (hashes.len() - found) as u64);
        }
        if let Some(began) = began {
            tenant.meters().call(Verb::Match, Via::Socket).took(tenant.now().saturating_sub(began));
        }
        found
    }

    /// What the namespace would hit in memory for so many blocks, by the curve that its matches drew.
    pub fn estimated_hit_ratio(&self, session: &Session, blocks: u64) -> f64 {
        session.namespace.curve.lock().hit_ratio(blocks)
    }

    /// Memory of what is kept for metrics.
    pub fn metrics_memory_bytes(&self) -> usize {
        self.tenant().metrics_memory_bytes()
    }

    /// Leases the leading run of `hashes` that is stored.
    pub fn acquire(&self, session: &Session, hashes: &[SequenceHash]) -> Result<Leases, Refusal> {
        self.tenant().acquire(session.id, hashes, TTL).map(Leases)
    }

    /// Gives leases back; how many were live.
    pub fn release(&self, session: &Session, leases: &[u64]) -> Result<usize, Refusal> {
        let statuses = self.tenant().release(session.id, leases)?;
        Ok(statuses.iter().filter(|&&status| status == BlockStatus::Ok).count())
    }

    /// What the store does a few times a second. From then on each block's next use counts again.
    pub fn reap(&self) {
        self.store.reap();
    }

    /// Payload bytes that the store copied itself.
    pub fn copied_bytes(&self) -> u64 {
        self.tenant().counters().copied_bytes.get()
    }

    /// Read and write leases there are.
    pub fn leases(&self) -> (u64, u64) {
        let survey = self.tenant().survey();
        (survey.read_leases, survey.write_leases)
    }
}
