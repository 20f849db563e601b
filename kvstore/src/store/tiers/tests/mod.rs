//! Scenarios on a store with cold tiers: real files, real catalog, a directory for a bucket.

mod faults;
mod full_disk;
mod idle;
mod packs;
mod reasons;
mod s3;

use std::{os::unix::fs::FileExt, path::Path, sync::Arc, time::Duration};

use kelvin_kernels::checksum;
use kelvin_proto::{Fingerprint, NamespaceSpec, Shard, kv::v1::BlockStatus};
use kelvin_tiering::{Tier, testing::Fault};
use tempfile::TempDir;

use super::{TierReport, Tiers, life::TierTasks, open::Grounds};
use crate::{
    SequenceHash,
    index::{HolderSet, TierSet},
    insight::{Reason, Record},
    store::{
        BlockKey, ManualClock, Namespace, NvmeSpace, ObjectSpace, Store, StoreOptions, Tenant, TenantOptions,
        TierOptions, ranges::Range,
    },
};

const BLOCK_BYTES: u64 = 64 << 10;
const TTL: Duration = Duration::from_secs(5);

/// A store on a directory of its own.
struct Bench {
    store: Store,
    clock: Arc<ManualClock>,
    tasks: Option<TierTasks>,
    session: u64,
    namespace: Arc<Namespace>,
}

fn spec() -> NamespaceSpec {
    let fingerprint = Fingerprint {
        model_digest: "d".into(),
        engine: "e".into(),
        engine_build: "b".into(),
        layout: "l".into(),
        dtype: "f16".into(),
        attributes: Default::default(),
    };
    let (shard, block_bytes) = (Shard::default(), BLOCK_BYTES);
    NamespaceSpec { model: "m".into(), fingerprint, shard, block_tokens: 16, block_bytes }
}

/// The n-th block of a sequence.
fn hash(sequence: u8, n: u32) -> SequenceHash {
    let mut bytes = [sequence; 16];
    bytes[..4].copy_from_slice(&(n.wrapping_mul(0x9e37_79b9)).to_le_bytes());
    bytes[8..12].copy_from_slice(&(n.wrapping_mul(0x85eb_ca6b) ^ u32::from(sequence)).to_le_bytes());
    SequenceHash::from_bytes(bytes)
}

fn hashes(sequence: u8, blocks: u32) -> Vec<SequenceHash> {
    (0..blocks).map(|n| hash(sequence, n)).collect()
}

/// What a block holds, which is nothing that another one does.
fn content(sequence: u8, n: u32) -> Vec<u8> {
    let seed = (u64::from(sequence) << 32 | u64::from(n)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..BLOCK_BYTES / 8)
        .flat_map(|at| (seed ^ at.wrapping_mul(0xbf58_476d_1ce4_e5b9)).to_le_bytes())
        .collect()
}

fn nvme(dir: &Path) -> TierOptions {
    std::fs::create_dir_all(dir.join("data")).unwrap();
    std::fs::create_dir_all(dir.join("nvme")).unwrap();
    let space = NvmeSpace { path: dir.join("nvme"), bytes: 8 << 20 };
    TierOptions { data: Some(dir.join("data")), nvme: vec![space], ..TierOptions::default() }
}

fn packs(dir: &Path, node: &str) -> TierOptions {
    std::fs::create_dir_all(dir.join(node)).unwrap();
    std::fs::create_dir_all(dir.join("bucket")).unwrap();
    let url = dir.join("bucket").display().to_string();
    let object = ObjectSpace { url, endpoint: None, bytes: None, pack_bytes: None };
    TierOptions { data: Some(dir.join(node)), object: Some(object), ..TierOptions::default() }
}

impl Bench {
    /// A store with DRAM for so many blocks.
    async fn start(dram_blocks: u64, tiers: TierOptions) -> Self {
        let grounds = Grounds::of(&tiers);
        Self::start_on(dram_blocks, tiers, grounds).await
    }

    async fn start_on(dram_blocks: u64, tiers: TierOptions, grounds: Grounds) -> Self {
        let options = StoreOptions {
            huge_pages: false,
            tenants: vec![TenantOptions {
                name: "a".into(),
                token: None,
                dram_bytes: dram_blocks * BLOCK_BYTES,
                operator: true,
            }],
            secret: [1; 32],
            incarnation: 1,
            session_ttl: Duration::from_secs(10),
            lease_ttl_max: Duration::from_secs(60),
            tiers: tiers.clone(),
        };
        let clock = Arc::new(ManualClock::default());
        let store = Store::new(options, clock.clone()).unwrap();
        let tasks = store.start_tiers_on(&tiers, &grounds).await.unwrap();
        let opened = store.tenant(None).unwrap().open(spec(), "test").unwrap();
        Self { session: opened.session, namespace: opened.namespace, store, clock, tasks }
    }

    fn tenant(&self) -> &Arc<Tenant> {
        self.store.tenant(None).unwrap()
    }

    fn tiers(&self) -> &Arc<Tiers> {
        self.tenant().tiers().unwrap()
    }

    fn key(&self, sequence: u8, n: u32) -> BlockKey {
        BlockKey { namespace: self.namespace.id, hash: hash(sequence, n) }
    }

    /// Stores a sequence's blocks `from..to`, and copies them to the cold tiers.
    async fn store(&self, sequence: u8, from: u32, to: u32) {
        for n in from..to {
            self.commit(sequence, n, n + 1);
            self.tenant().flush(self.tiers()).await;
        }
    }

    /// Stores a sequence's blocks `from..to` in DRAM.
    fn commit(&self, sequence: u8, from: u32, to: u32) {
        for n in from..to {
            assert_eq!(self.commit_bytes(sequence, n, &content(sequence, n)), BlockStatus::Stored);
        }
    }

    fn commit_bytes(&self, sequence: u8, n: u32, bytes: &[u8]) -> BlockStatus {
        let parent = n.checked_sub(1).map(|n| hash(sequence, n));
        let reserved = self.tenant().reserve(self.session, parent, &[hash(sequence, n)], TTL).unwrap();
        assert_eq!(reserved[0].status, BlockStatus::Reserved, "block {n} of {sequence}");
        let lease = reserved[0].lease;
        let mut block = self.tenant().take_write(self.session, lease).unwrap();
        block.slot.bytes_mut().copy_from_slice(bytes);
        assert!(self.tenant().put_write(self.session, lease, block));
        self.tenant().commit(self.session, &[(lease, checksum(bytes))]).unwrap()[0]
    }

    /// Takes a sequence out of tiers.
    fn drop_from(&self, tiers: &[Tier], sequence: u8) {
        self.drop_behind(tiers, sequence, 0);
    }

    /// The same from its n-th block on.
    fn drop_behind(&self, tiers: &[Tier], sequence: u8, n: u32) {
        let mut set = TierSet::default();
        for tier in tiers {
            set.insert(*tier as u32);
        }
        let gone = self.tenant().evict_range(&self.namespace, Range::From(hash(sequence, n)), set);
        assert_eq!(gone.kept, 0, "nobody leases them");
    }

    /// What one of the tiers has and did.
    fn report(&self, tier: Tier) -> TierReport {
        self.tiers().reports().into_iter().find(|report| report.tier == tier).unwrap()
    }

    /// Why a block is said to be gone, and from where.
    fn why(&self, sequence: u8, n: u32) -> Option<(Reason, Option<Tier>)> {
        let record = self.namespace.gone.explain(hash(sequence, n));
        record.map(|Record { reason, tier, .. }| (reason, tier))
    }

    /// Blocks of a sequence that can be leased, all with the right bytes.
    async fn readable(&self, sequence: u8, blocks: u32) -> usize {
        let hashes = hashes(sequence, blocks);
        let held = self.tenant().onboard(&self.namespace, &hashes).await;
        for (n, block) in held.iter().enumerate() {
            assert!(block.slot().bytes() == content(sequence, n as u32), "block {n} of {sequence} is wrong");
        }
        let leased = self.tenant().acquire(self.session, &hashes[..held.len()], TTL).unwrap();
        assert!(leased.iter().all(|block| block.status == BlockStatus::Leased));
        let leases: Vec<u64> = leased.iter().map(|block| block.lease).collect();
        self.tenant().release(self.session, &leases).unwrap();
        held.len()
    }

    fn matched(&self, sequence: u8, blocks: u32) -> usize {
        self.tenant().match_prefix(&self.namespace, &hashes(sequence, blocks)).len()
    }

    /// Ends the store as a crash would: nothing is flushed or closed in order, but its tasks end.
    async fn crash(mut self) {
        if let Some(tasks) = self.tasks.take() {
            tasks.abandon().await;
        }
    }

    async fn stop(mut self) {
        if let Some(tasks) = self.tasks.take() {
            tasks.stop(Duration::from_secs(30)).await;
        }
    }
}

/// Waits for what the tasks of the tiers do by themselves.
async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not in 10 seconds: {what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_beyond_dram_come_back_from_nvme() {
    let dir = TempDir::new().unwrap();
    let bench = Bench::start(8, nvme(dir.path())).await;
    for sequence in 1..=5 {
        bench.store(sequence, 0, 6).await;
    }
    for sequence in 1..=5 {
        assert_eq!(bench.matched(sequence, 9), 6, "a match sees all tiers");
        assert_eq!(bench.readable(sequence, 6).await, 6);
    }
    let report = &bench.tiers().reports()[0];
    assert_eq!((report.blocks, report.counts.damaged), (30, 0));
    assert!(report.counts.onboarded >= 22, "{report:?}");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_loses_nothing_that_was_written() {
    let dir = TempDir::new().unwrap();
    let bench = Bench::start(8, nvme(dir.path())).await;
    bench.store(1, 0, 7).await;
    bench.store(2, 0, 5).await;
    bench.crash().await;
    let bench = Bench::start(8, nvme(dir.path())).await;
    assert_eq!((bench.matched(1, 9), bench.matched(2, 9)), (7, 5));
    assert_eq!(bench.readable(2, 5).await, 5);
    assert_eq!(bench.readable(1, 7).await, 7);
    // And it goes on from there.
    bench.store(2, 5, 7).await;
    bench.stop().await;
    let bench = Bench::start(8, nvme(dir.path())).await;
    assert_eq!((bench.matched(1, 9), bench.matched(2, 9)), (7, 7));
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nvme_makes_room_from_the_ends_of_sequences() {
    let dir = TempDir::new().unwrap();
    let bench = Bench::start(24, nvme(dir.path())).await;
    for sequence in 1..=10 {
        bench.store(sequence, 0, 20).await;
    }
    let nvme = bench.tiers().nvme().unwrap();
    let mut held = 0;
    for sequence in 1..=10 {
        let has: Vec<bool> = (0..20).map(|n| nvme.copies.contains(&bench.key(sequence, n))).collect();
        let prefix = has.iter().take_while(|has| **has).count();
        assert!(has[prefix..].iter().all(|has| !has), "no copy without its parent: {has:?}");
        held += prefix;
    }
    assert!((90..=128).contains(&held), "{held} of 128 slots are used");
    assert_eq!(bench.tiers().reports()[0].blocks as usize, held);
    assert!(bench.tiers().reports()[0].counts.evicted_policy > 0);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_on_the_device_is_a_miss_and_is_explained() {
    let dir = TempDir::new().unwrap();
    let bench = Bench::start(8, nvme(dir.path())).await;
    bench.store(1, 0, 7).await;
    let at = bench.tiers().nvme().unwrap().copies.get(&bench.key(1, 3)).unwrap().slot.address();
    bench.crash().await;
    let file = std::fs::OpenOptions::new().write(true).open(dir.path().join("nvme/kelvin.blocks")).unwrap();
    file.write_all_at(b"rot", at.offset + 100).unwrap();
    file.sync_all().unwrap();

    let bench = Bench::start(8, nvme(dir.path())).await;
    assert_eq!(bench.matched(1, 7), 7, "nobody looked yet");
    assert_eq!(bench.readable(1, 7).await, 3);
    assert_eq!(bench.matched(1, 7), 3);
    let report = &bench.tiers().reports()[0];
    assert_eq!((report.counts.damaged, report.quarantined), (1, 1));
    let why = bench.namespace.gone.explain(hash(1, 3)).unwrap();
    assert_eq!((why.reason, why.tier), (Reason::Quarantined, Some(Tier::Nvme)));
    // Stored again, what stands behind it is in reach again.
    bench.store(1, 3, 4).await;
    assert_eq!(bench.matched(1, 7), 7);
    assert_eq!(bench.readable(1, 7).await, 7);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn verifying_finds_damage_nobody_asked_for() {
    let dir = TempDir::new().unwrap();
    let bench = Bench::start(24, nvme(dir.path())).await;
    bench.store(1, 0, 20).await;
    let at = bench.tiers().nvme().unwrap().copies.get(&bench.key(1, 19)).unwrap().slot.address();
    let file = std::fs::OpenOptions::new().write(true).open(dir.path().join("nvme/kelvin.blocks")).unwrap();
    file.write_all_at(&[0; 4096], at.offset).unwrap();
    file.sync_all().unwrap();
    let found = bench.tiers().verify_nvme(None, |_| {}).await;
    assert_eq!((found.blocks, found.damaged, found.unreadable), (20, 1, 0));
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn packs_take_what_dram_drops_and_another_node_reads_them() {
    let dir = TempDir::new().unwrap();
    let bench = Bench::start(64, packs(dir.path(), "one")).await;
    bench.store(1, 0, 1).await;
    for n in 1..40 {
        bench.store(1, n, n + 1).await;
    }
    bench.crash().await;
    let again = Bench::start(64, packs(dir.path(), "one")).await;
    assert_eq!(again.matched(1, 50), 40);
    assert_eq!(again.readable(1, 40).await, 40);
    again.crash().await;

    let other = Bench::start(64, packs(dir.path(), "two")).await;
    eventually("another node finds what the first one wrote", || other.matched(1, 50) == 40).await;
    assert_eq!(other.readable(1, 40).await, 40);
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nvme_drops_goes_to_packs() {
    let dir = TempDir::new().unwrap();
    let bucket = packs(dir.path(), "data");
    let options = TierOptions { object: bucket.object, ..nvme(dir.path()) };
    let bench = Bench::start(24, options).await;
    for sequence in 1..=10 {
        bench.store(sequence, 0, 20).await;
        while bench.tiers().cascade_once(true).await.copied > 0 {}
    }
    for sequence in 1..=10 {
        assert_eq!(bench.matched(sequence, 20), 20, "sequence {sequence}");
        assert_eq!(bench.readable(sequence, 20).await, 20, "sequence {sequence}");
    }
    let in_packs = |n| bench.tiers().contains(Tier::Object, &bench.key(1, n));
    assert!((0..20).all(in_packs));
    let report = bench.tiers().reports();
    assert!(report[0].blocks <= 128 && report[1].blocks == 200, "{report:?}");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exclusive_tiers_hold_a_block_once() {
    let dir = TempDir::new().unwrap();
    let bench = Bench::start(8, TierOptions { exclusive: true, ..nvme(dir.path()) }).await;
    bench.store(1, 0, 6).await;
    let nvme = bench.tiers().nvme().unwrap();
    assert!(nvme.copies.contains(&bench.key(1, 5)));
    assert_eq!(bench.readable(1, 6).await, 6);
    let left = (0..6).filter(|&n| nvme.copies.contains(&bench.key(1, n))).count();
    assert_eq!(left, 0, "what came to DRAM left NVMe");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn admission_waits_for_the_second_sight() {
    let dir = TempDir::new().unwrap();
    let bench = Bench::start(8, TierOptions { admission: 2, ..nvme(dir.path()) }).await;
    bench.store(1, 0, 4).await;
    assert_eq!(bench.tiers().reports()[0].blocks, 0, "asked for once at most");
    bench.matched(1, 4);
    bench.matched(1, 4);
    bench.tenant().flush(bench.tiers()).await;
    assert_eq!(bench.tiers().reports()[0].blocks, 4);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_the_device_are_misses() {
    let dir = TempDir::new().unwrap();
    let bench = Bench::start(8, nvme(dir.path())).await;
    let faulty = bench.tiers().nvme().unwrap().device().faulty();
    // A write that fails is tried again with the next look, and costs nothing else.
    faulty.inject(Fault::WriteError);
    bench.store(1, 0, 3).await;
    bench.tenant().flush(bench.tiers()).await;
    assert_eq!(bench.tiers().reports()[0].blocks, 3);
    // A torn write is silent until it is read.
    bench.store(2, 0, 5).await;
    faulty.inject(Fault::TornWrite);
    bench.store(2, 5, 6).await;
    bench.store(3, 0, 7).await;
    assert_eq!(bench.matched(2, 6), 6);
    assert!(bench.tenant().sealed(bench.key(2, 5)).is_none(), "the end of a sequence goes first");
    assert_eq!(bench.readable(2, 6).await, 5);
    assert_eq!(bench.tiers().reports()[0].counts.damaged, 1);
    // A read that fails, and one that lies.
    assert!(bench.tenant().sealed(bench.key(1, 2)).is_none());
    faulty.inject(Fault::ReadError);
    assert!(bench.readable(1, 3).await < 3);
    bench.store(4, 0, 7).await;
    faulty.inject(Fault::BitFlip);
    assert!(bench.readable(3, 7).await < 7);
    assert_eq!(bench.tiers().reports()[0].counts.damaged, 2);
    assert_eq!(bench.readable(4, 7).await, 7, "the others are as they were");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_who_want_a_block_share_one_read() {
    let dir = TempDir::new().unwrap();
    let bench = Bench::start(32, nvme(dir.path())).await;
    bench.store(1, 0, 16).await;
    bench.crash().await;
    let bench = Bench::start(32, nvme(dir.path())).await;
    let hashes = hashes(1, 16);
    let both = futures::future::join(
        bench.tenant().onboard(&bench.namespace, &hashes),
        bench.tenant().onboard(&bench.namespace, &hashes),
    );
    let (one, two) = both.await;
    assert_eq!((one.len(), two.len()), (16, 16));
    assert_eq!(bench.tiers().reports()[0].lane.reads, 16, "each block was read once");
    bench.stop().await;
}
