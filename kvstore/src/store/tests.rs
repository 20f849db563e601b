//! Scenarios on one tenant, with a clock that stands still.

mod batches;
mod concurrent;
mod leases;
mod table;

use std::{sync::Arc, time::Duration};

use kelvin_kernels::{Checksum, checksum};
use kelvin_proto::{Fingerprint, NamespaceSpec, Reason, Shard, kv::v1::BlockStatus};
use kelvin_tiering::Device;

use super::*;
use crate::SequenceHash;

const BLOCK_BYTES: u64 = 4096;
const TTL: Duration = Duration::from_secs(5);

struct Bench {
    clock: Arc<ManualClock>,
    store: Store,
}

fn bench(blocks: u64) -> Bench {
    let clock = Arc::new(ManualClock::default());
    let options = StoreOptions {
        huge_pages: false,
        tenants: vec![TenantOptions {
            name: "a".into(),
            token: None,
            dram_bytes: blocks * BLOCK_BYTES,
            operator: true,
        }],
        secret: [1; 32],
        incarnation: 1,
        session_ttl: Duration::from_secs(10),
        lease_ttl_max: Duration::from_secs(60),
        tiers: TierOptions::default(),
    };
    Bench { store: Store::new(options, clock.clone()).unwrap(), clock }
}

fn spec(dtype: &str) -> NamespaceSpec {
    let fingerprint = Fingerprint {
        model_digest: "d".into(),
        engine: "e".into(),
        engine_build: "b".into(),
        layout: "l".into(),
        dtype: dtype.into(),
        attributes: Default::default(),
    };
    let (shard, block_bytes) = (Shard::default(), BLOCK_BYTES);
    NamespaceSpec { model: "m".into(), fingerprint, shard, block_tokens: 16, block_bytes }
}

fn hash(n: u8) -> SequenceHash {
    SequenceHash::from_bytes([n; 16])
}

impl Bench {
    fn tenant(&self) -> &Arc<Tenant> {
        self.store.tenant(None).unwrap()
    }

    fn open(&self) -> u64 {
        self.tenant().open(spec("f16"), "test").unwrap().session
    }

    /// A session whose process mapped the pool.
    fn open_mapped(&self) -> u64 {
        let opened = self.tenant().open(spec("f16"), "test").unwrap();
        assert_eq!(self.tenant().map_memory(&opened.token), Some(opened.session));
        assert_eq!(self.tenant().map_memory(&opened.token), None, "a token counts once");
        opened.session
    }

    fn reserve(&self, session: u64, parent: Option<u8>, hashes: &[u8]) -> Vec<ReservedBlock> {
        let hashes: Vec<_> = hashes.iter().copied().map(hash).collect();
        self.tenant().reserve(session, parent.map(hash), &hashes, TTL).unwrap()
    }

    /// Fills a reservation with a byte and gives the checksum of that.
    fn fill(&self, session: u64, lease: u64, byte: u8) -> Checksum {
        let mut block = self.tenant().take_write(session, lease).unwrap();
        block.slot.bytes_mut().fill(byte);
        assert!(self.tenant().put_write(session, lease, block));
        checksum(&[byte; BLOCK_BYTES as usize])
    }

    /// Reserves, fills and commits a run.
    fn store(&self, session: u64, parent: Option<u8>, hashes: &[u8]) {
        let leases = self.reserve(session, parent, hashes);
        for (lease, &n) in leases.iter().zip(hashes) {
            assert_eq!(lease.status, BlockStatus::Reserved);
            let sum = self.fill(session, lease.lease, n);
            let status = self.tenant().commit(session, &[(lease.lease, sum)]).unwrap();
            assert_eq!(status, [BlockStatus::Stored]);
        }
    }

    fn acquire(&self, session: u64, hashes: &[u8]) -> Vec<AcquiredBlock> {
        let hashes: Vec<_> = hashes.iter().copied().map(hash).collect();
        self.tenant().acquire(session, &hashes, TTL).unwrap()
    }

    fn statuses(&self, session: u64, hashes: &[u8]) -> Vec<BlockStatus> {
        let blocks = self.acquire(session, hashes);
        let leases: Vec<_> = blocks.iter().map(|block| block.lease).filter(|&lease| lease != 0).collect();
        self.tenant().release(session, &leases).unwrap();
        blocks.into_iter().map(|block| block.status).collect()
    }

    fn leases(&self) -> (u64, u64) {
        let survey = self.tenant().survey();
        (survey.read_leases, survey.write_leases)
    }
}

use BlockStatus::*;

#[test]
fn a_block_is_visible_after_commit_and_not_before() {
    let bench = bench(8);
    let (writer, reader) = (bench.open(), bench.open());
    assert_eq!(bench.statuses(reader, &[1]), [Missing]);
    let lease = bench.reserve(writer, None, &[1])[0].lease;
    assert_eq!(bench.statuses(reader, &[1]), [Filling]);
    let sum = bench.fill(writer, lease, 7);
    assert_eq!(bench.tenant().commit(writer, &[(lease, sum)]).unwrap(), [Stored]);
    let leased = bench.acquire(reader, &[1]);
    assert_eq!(leased[0].checksum, sum.0);
    let block = bench.tenant().leased(reader, leased[0].lease).unwrap();
    assert_eq!(block.slot().bytes(), [7; BLOCK_BYTES as usize]);
}

#[test]
fn acquire_leases_a_leading_run_and_says_why_it_ended() {
    let bench = bench(8);
    let session = bench.open();
    bench.store(session, None, &[1, 2]);
    assert_eq!(bench.statuses(session, &[1, 2, 3, 4]), [Leased, Leased, Missing, Skipped]);
}

#[test]
fn wrong_bytes_are_not_stored() {
    let bench = bench(8);
    let session = bench.open();
    let lease = bench.reserve(session, None, &[1])[0].lease;
    bench.fill(session, lease, 1);
    assert_eq!(bench.tenant().commit(session, &[(lease, Checksum(5))]).unwrap(), [ChecksumMismatch]);
    assert_eq!(bench.statuses(session, &[1]), [Missing]);
    assert_eq!(bench.tenant().counters().checksum_failures.get(), 1);
    assert_eq!((bench.leases(), bench.tenant().usage().places), ((0, 0), 0));
}

#[test]
fn a_second_writer_is_told() {
    let bench = bench(8);
    let (one, two) = (bench.open(), bench.open());
    let lease = bench.reserve(one, None, &[1])[0].lease;
    assert_eq!(bench.reserve(two, None, &[1])[0].status, BlockStatus::Filling);
    let sum = bench.fill(one, lease, 1);
    bench.tenant().commit(one, &[(lease, sum)]).unwrap();
    assert_eq!(bench.reserve(two, None, &[1])[0].status, AlreadyStored);
}

#[test]
fn leases_of_others_are_refused() {
    let bench = bench(8);
    let (one, two) = (bench.open(), bench.open());
    bench.store(one, None, &[1]);
    let read = bench.acquire(one, &[1])[0].lease;
    let write = bench.reserve(one, Some(1), &[2])[0].lease;
    let tenant = bench.tenant();
    assert_eq!(tenant.release(two, &[read, 999]).unwrap(), [StaleLease, StaleLease]);
    assert_eq!(tenant.abort(two, &[write]).unwrap(), [StaleLease]);
    assert_eq!(tenant.commit(two, &[(write, Checksum(0))]).unwrap(), [StaleLease]);
    assert_eq!(tenant.renew(two, &[write], false, TTL).unwrap(), [StaleLease]);
    assert!(tenant.leased(two, read).is_none());
    assert_eq!(
        tenant.release(one, &[write]).unwrap(),
        [StaleLease],
        "a reservation is aborted, not released"
    );
    assert_eq!(bench.leases(), (1, 1));
}

#[test]
fn an_unknown_session_is_refused_with_a_reason() {
    let bench = bench(8);
    let refused = bench.tenant().acquire(12, &[hash(1)], TTL).unwrap_err();
    assert_eq!(refused.reason, Reason::UnknownSession);
}

#[test]
fn another_fingerprint_of_the_same_model_is_refused_with_both() {
    let bench = bench(8);
    let first = bench.open();
    let refused = bench.tenant().open(spec("q8_0"), "test").map(|_| ()).unwrap_err();
    assert_eq!(refused.reason, Reason::FingerprintMismatch);
    for part in ["dtype=f16", "dtype=q8_0", "differ in dtype"] {
        assert!(refused.message.contains(part), "{part} in {}", refused.message);
    }
    bench.tenant().end_session(first);
    assert!(bench.tenant().open(spec("q8_0"), "test").is_ok(), "once nobody serves the other one");
}

#[test]
fn the_store_evicts_tails_first_and_never_what_is_leased() {
    let bench = bench(4);
    let session = bench.open();
    bench.store(session, None, &[1, 2, 3, 4]);
    let held = bench.acquire(session, &[1]);
    bench.store(session, None, &[11, 12]);
    assert_eq!(bench.statuses(session, &[1, 2, 3]), [Leased, Leased, Missing]);
    bench.store(session, None, &[21]);
    assert_eq!(bench.tenant().counters().evictions.get(), 3);
    bench.tenant().release(session, &[held[0].lease]).unwrap();
}

#[test]
fn a_full_store_says_so_and_keeps_what_it_promised() {
    let bench = bench(4);
    let session = bench.open();
    bench.store(session, None, &[1, 2]);
    bench.acquire(session, &[1, 2]);
    let got: Vec<_> = bench.reserve(session, None, &[11, 12, 13, 14]).iter().map(|b| b.status).collect();
    assert_eq!(got, [Reserved, Reserved, NoSpace, Skipped]);
    assert_eq!(bench.tenant().counters().no_space.get(), 1);
}

#[test]
fn the_parent_of_a_block_being_filled_stays() {
    let bench = bench(2);
    let session = bench.open();
    bench.store(session, None, &[1]);
    let child = bench.reserve(session, Some(1), &[2])[0].lease;
    assert_eq!(bench.reserve(session, None, &[9])[0].status, NoSpace);
    let sum = bench.fill(session, child, 2);
    assert_eq!(bench.tenant().commit(session, &[(child, sum)]).unwrap(), [Stored]);
    assert_eq!(bench.statuses(session, &[1, 2]), [Leased, Leased]);
}

#[test]
fn children_committed_before_their_parent_wait_for_it() {
    let bench = bench(8);
    let session = bench.open();
    let leases = bench.reserve(session, None, &[1, 2, 3]);
    for at in [2, 1] {
        let sum = bench.fill(session, leases[at].lease, 0);
        assert_eq!(bench.tenant().commit(session, &[(leases[at].lease, sum)]).unwrap(), [Stored]);
    }
    assert_eq!(bench.statuses(session, &[1]), [BlockStatus::Filling]);
    let sum = bench.fill(session, leases[0].lease, 0);
    bench.tenant().commit(session, &[(leases[0].lease, sum)]).unwrap();
    assert_eq!(bench.statuses(session, &[1, 2, 3]), [Leased; 3]);
}

#[test]
fn an_abort_takes_what_was_committed_behind_it() {
    let bench = bench(8);
    let session = bench.open();
    let leases = bench.reserve(session, None, &[1, 2, 3]);
    let sum = bench.fill(session, leases[1].lease, 0);
    bench.tenant().commit(session, &[(leases[1].lease, sum)]).unwrap();
    assert_eq!(bench.tenant().abort(session, &[leases[0].lease]).unwrap(), [Ok]);
    let sum = bench.fill(session, leases[2].lease, 0);
    assert_eq!(bench.tenant().commit(session, &[(leases[2].lease, sum)]).unwrap(), [NoParent]);
    assert_eq!(bench.statuses(session, &[1, 2, 3]), [Missing, Skipped, Skipped]);
    assert_eq!((bench.leases(), bench.tenant().usage().places), ((0, 0), 0));
}

#[test]
fn leases_end_at_their_ttl_and_live_when_renewed() {
    let bench = bench(8);
    let session = bench.open();
    bench.store(session, None, &[1]);
    bench.acquire(session, &[1]);
    bench.clock.advance(Duration::from_secs(4));
    bench.tenant().renew(session, &[], true, TTL).unwrap();
    bench.clock.advance(Duration::from_secs(4));
    bench.store.reap();
    assert_eq!(bench.leases(), (1, 0));
    bench.clock.advance(Duration::from_secs(2));
    bench.store.reap();
    assert_eq!(bench.leases(), (0, 0));
    assert_eq!(bench.tenant().counters().leases_expired.get(), 1);
}

#[test]
fn a_session_that_is_not_renewed_ends_with_all_it_holds() {
    let bench = bench(8);
    let session = bench.open();
    bench.store(session, None, &[1]);
    bench.acquire(session, &[1]);
    bench.reserve(session, Some(1), &[2]);
    bench.clock.advance(Duration::from_secs(11));
    bench.store.reap();
    assert_eq!(bench.leases(), (0, 0));
    assert_eq!(bench.tenant().usage().places, 1, "the committed block stays");
}

#[test]
fn an_expired_reservation_commits_nothing_and_its_slot_rests() {
    let bench = bench(8);
    let (late, other) = (bench.open_mapped(), bench.open());
    let lease = bench.reserve(late, None, &[1])[0].lease;
    let sum = bench.fill(late, lease, 1);
    bench.clock.advance(Duration::from_secs(6));
    bench.store.reap();
    let slot_before = bench.tenant().usage().places;
    assert_eq!(slot_before, 1, "its holder may still write into it");
    assert_eq!(bench.tenant().commit(late, &[(lease, sum)]).unwrap(), [StaleLease]);

    // Somebody else stores the block; then the late commit learns how its bytes compare.
    bench.store(other, None, &[1]);
    assert_eq!(bench.tenant().commit(late, &[(lease, sum)]).unwrap(), [AlreadyStored]);
    assert_eq!(bench.tenant().commit(late, &[(lease, Checksum(3))]).unwrap(), [Conflict]);
    assert_eq!(bench.tenant().counters().conflicts.get(), 1);
    bench.tenant().end_session(late);
    assert_eq!(bench.tenant().usage().places, 2, "its process is still there");
    bench.tenant().unmap_memory(late);
    assert_eq!(bench.tenant().usage().places, 1, "and is free when its process is gone");
}

#[test]
fn a_session_that_hoards_expired_reservations_is_ended() {
    let bench = bench(256);
    let session = bench.open_mapped();
    for n in 0..80 {
        bench.reserve(session, None, &[n]);
    }
    bench.clock.advance(Duration::from_secs(6));
    bench.store.reap();
    assert!(bench.tenant().namespace_of(session).is_err());
    assert_eq!((bench.leases(), bench.tenant().survey().parked_slots), ((0, 0), 80));
    bench.tenant().unmap_memory(session);
    assert_eq!(bench.tenant().usage().places, 0);
}

#[test]
fn tokens_choose_the_tenant() {
    let clock = Arc::new(ManualClock::default());
    let tenant = |name: &str, token: Option<&str>| TenantOptions {
        name: name.into(),
        token: token.map(str::to_owned),
        dram_bytes: 1 << 16,
        operator: false,
    };
    let options = StoreOptions {
        huge_pages: false,
        tenants: vec![tenant("a", Some("ta")), tenant("b", Some("tb"))],
        secret: [1; 32],
        incarnation: 1,
        session_ttl: TTL,
        lease_ttl_max: TTL,
        tiers: TierOptions::default(),
    };
    let store = Store::new(options, clock).unwrap();
    assert_eq!(store.tenant(Some("tb")).unwrap().name(), "b");
    for token in [None, Some("x")] {
        assert_eq!(store.tenant(token).map(|_| ()).unwrap_err().reason, Reason::Unauthenticated);
    }
    let key = |token| {
        let opened = store.tenant(Some(token)).unwrap().open(spec("f16"), "x").unwrap();
        opened.namespace.key.to_bytes()
    };
    assert_ne!(key("ta"), key("tb"), "the same prompt of two tenants has unrelated hashes");
}

#[test]
fn events_follow_blocks() {
    let bench = bench(2);
    let session = bench.open();
    bench.store(session, None, &[1, 2]);
    bench.store(session, None, &[9]);
    let namespace = bench.tenant().namespace_of(session).unwrap();
    let events: Vec<_> =
        namespace.events.read(0, 10).unwrap().events.iter().map(|e| (e.kind, e.hash, e.parent)).collect();
    use EventKind::*;
    let expected = [
        (Stored, hash(1), None),
        (Stored, hash(2), Some(hash(1))),
        (Removed, hash(2), Some(hash(1))),
        (Stored, hash(9), None),
    ];
    assert_eq!(events, expected);
}

#[test]
fn a_lease_that_is_not_named_is_not_renewed() {
    let bench = bench(8);
    let session = bench.open();
    bench.store(session, None, &[1]);
    let (known, lost) = (bench.acquire(session, &[1])[0].lease, bench.acquire(session, &[1])[0].lease);
    for _ in 0..2 {
        bench.clock.advance(Duration::from_secs(3));
        bench.tenant().renew(session, &[known], false, TTL).unwrap();
    }
    assert_eq!(bench.leases(), (1, 0));
    assert!(
        bench.tenant().leased(session, known).is_some() && bench.tenant().leased(session, lost).is_none()
    );
}

#[test]
fn two_reservations_cannot_be_each_others_parents() {
    let bench = bench(8);
    let session = bench.open();
    let first = bench.reserve(session, None, &[1])[0].lease;
    let second = bench.reserve(session, Some(1), &[2])[0].lease;
    bench.tenant().abort(session, &[first]).unwrap();
    assert_eq!(bench.reserve(session, Some(2), &[1])[0].status, NoParent);
    let sum = bench.fill(session, second, 0);
    assert_eq!(bench.tenant().commit(session, &[(second, sum)]).unwrap(), [NoParent]);
    bench.store(session, None, &[1, 2]);
    assert_eq!(bench.statuses(session, &[1, 2]), [Leased; 2]);
}

/// Hashes that differ, as many as wanted.
fn many(count: u128) -> Vec<SequenceHash> {
    (1..=count).map(|n| SequenceHash::from_bytes((n << 64 | n).to_le_bytes())).collect()
}

#[test]
fn a_long_chain_of_orphans_goes_without_deep_recursion() {
    let bench = bench(20_000);
    let session = bench.open();
    let leases = bench.tenant().reserve(session, None, &many(15_000), TTL).unwrap();
    let sum = checksum(&[0; BLOCK_BYTES as usize]);
    let rest: Vec<_> = leases[1..].iter().map(|lease| (lease.lease, sum)).collect();
    assert!(bench.tenant().commit(session, &rest).unwrap().iter().all(|&status| status == Stored));
    bench.tenant().abort(session, &[leases[0].lease]).unwrap();
    assert_eq!(bench.tenant().usage().places, 0);
}

#[test]
fn a_size_without_a_block_gets_a_whole_chunk_of_another() {
    // 16 MiB in chunks of 4 MiB.
    let bench = bench(4096);
    let small = bench.open();
    let hashes = many(4096);
    let sum = checksum(&[0; BLOCK_BYTES as usize]);
    for &hash in &hashes {
        let lease = bench.tenant().reserve(small, None, &[hash], TTL).unwrap()[0].lease;
        bench.tenant().commit(small, &[(lease, sum)]).unwrap();
    }
    let large = NamespaceSpec { model: "large".into(), block_bytes: 3 << 20, ..spec("f16") };
    let large = bench.tenant().open(large, "test").unwrap().session;

    // With a leased block in every chunk nothing is evicted in vain.
    let lease = |hash: &SequenceHash| bench.tenant().acquire(small, &[*hash], TTL).unwrap()[0].lease;
    let leases: Vec<_> = hashes.iter().step_by(1024).map(lease).collect();
    assert_eq!(bench.reserve(large, None, &[1])[0].status, NoSpace);
    assert_eq!(bench.tenant().counters().evictions.get(), 0);
    bench.tenant().release(small, &leases).unwrap();
    assert_eq!(bench.reserve(large, None, &[1])[0].status, Reserved);
    assert_eq!(bench.tenant().counters().evictions.get(), 1024);
}

#[test]
fn what_a_live_session_lets_expire_rests_for_a_while_only() {
    let bench = bench(8);
    let session = bench.open_mapped();
    bench.store(session, None, &[1]);
    bench.acquire(session, &[1]);
    bench.reserve(session, Some(1), &[2]);
    let parked = |bench: &Bench| bench.tenant().survey().parked_slots;
    let wait = |seconds| {
        for _ in 0..seconds {
            bench.clock.advance(Duration::from_secs(1));
            bench.tenant().renew(session, &[], false, TTL).unwrap();
        }
    };
    wait(6);
    assert_eq!((bench.leases(), parked(&bench)), ((0, 0), 2));
    wait(60);
    assert_eq!((bench.leases(), parked(&bench)), ((0, 0), 0));
    assert_eq!(bench.tenant().usage().places, 1, "the stored block alone");
    assert!(bench.tenant().namespace_of(session).is_ok());
}

/// A block that came from a colder tier, as it lies in its slot.
fn onboard(bench: &Bench, session: u64, parent: Option<u8>, n: u8) -> ImmutableBlock {
    let namespace = bench.tenant().namespace_of(session).unwrap();
    let mut slot = bench.tenant().pool().allocate(BLOCK_BYTES).unwrap();
    slot.bytes_mut().fill(n);
    let key = BlockKey { namespace: namespace.id, hash: hash(n) };
    let sum = checksum(&[n; BLOCK_BYTES as usize]);
    bench.tenant().onboarded(&namespace, key, parent.map(hash), slot, sum, Keep::default())
}

#[test]
fn an_onboarded_block_is_stored_and_stays_while_its_guard_lives() {
    let bench = bench(2);
    let session = bench.open();
    let guard = onboard(&bench, session, None, 1);
    assert!(onboard(&bench, session, None, 1).is_same(&guard), "the first one stays");
    assert!(bench.tenant().sealed(guard.key()).unwrap().is_same(&guard));
    bench.store(session, Some(1), &[2]);
    bench.store(session, None, &[3]);
    assert_eq!(
        bench.reserve(session, None, &[4, 5]).iter().map(|b| b.status).collect::<Vec<_>>(),
        [Reserved, NoSpace]
    );
    assert_eq!(bench.statuses(session, &[1, 2]), [Leased, Missing]);
    drop(guard);
    assert_eq!(bench.reserve(session, None, &[5])[0].status, Reserved);
}

#[test]
fn an_onboarded_block_does_not_cross_a_writer_or_a_lost_parent() {
    let bench = bench(8);
    let session = bench.open();
    let lease = bench.reserve(session, None, &[1])[0].lease;
    let apart = onboard(&bench, session, None, 1);
    assert_eq!(bench.statuses(session, &[1]), [BlockStatus::Filling]);
    let sum = bench.fill(session, lease, 1);
    assert_eq!(bench.tenant().commit(session, &[(lease, sum)]).unwrap(), [Stored]);
    assert!(!bench.tenant().sealed(apart.key()).unwrap().is_same(&apart));
    assert!(bench.tenant().sealed(onboard(&bench, session, Some(9), 10).key()).is_none());
    drop(apart);
    assert_eq!(bench.tenant().usage().places, 1);
}
