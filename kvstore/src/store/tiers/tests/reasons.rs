//! Each reason for a miss, staged: a real store does what loses or refuses a block, `Explain` names it, and a match
//! counts it under it.

use super::*;
use crate::store::{Keep, Quota, What};

/// What `Explain` says of the n-th block of a sequence, and from which tier it went.
fn explained(bench: &Bench, sequence: u8, n: u32) -> (Reason, Option<Tier>) {
    let answer = bench.tenant().explain(&bench.namespace, &[hash(sequence, n)], None);
    match answer[0].what {
        What::Gone { reason, tier, .. } => (reason, tier),
        What::NeverStored => (Reason::NeverStored, None),
        ref other => panic!("block {n} of {sequence} is no miss: {other:?}"),
    }
}

/// Asks for a sequence of so many blocks, as `Match` does; under which reason what is missing was counted.
fn counted(bench: &Bench, sequence: u8, blocks: u32) -> Reason {
    let counts = || {
        let counters = bench.tenant().counters();
        Reason::ALL.map(|reason| {
            (counters.misses[reason as usize].get(), counters.miss_tokens[reason as usize].get())
        })
    };
    let before = counts();
    let found = bench.matched(sequence, blocks);
    let missed = u64::from(blocks) - found as u64;
    assert!(missed > 0, "all of sequence {sequence} is there");
    bench.tenant().count_misses(&bench.namespace, hash(sequence, found as u32), missed);
    let tokens = missed * u64::from(bench.namespace.spec.block_tokens);
    let after = counts();
    let mut changed =
        Reason::ALL.into_iter().filter(|reason| before[*reason as usize] != after[*reason as usize]);
    let reason = changed.next().unwrap();
    assert_eq!(changed.next(), None, "one reason is counted");
    let (was, is) = (before[reason as usize], after[reason as usize]);
    assert_eq!((is.0 - was.0, is.1 - was.1), (missed, tokens));
    reason
}

#[tokio::test(flavor = "multi_thread")]
async fn never_stored() {
    let bench = Bench::start(8, TierOptions::default()).await;
    bench.commit(1, 0, 2);
    assert_eq!(explained(&bench, 1, 2), (Reason::NeverStored, None));
    assert_eq!(counted(&bench, 1, 5), Reason::NeverStored);
    assert_eq!(counted(&bench, 9, 3), Reason::NeverStored);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn evicted_from_dram() {
    let bench = Bench::start(8, TierOptions::default()).await;
    bench.commit(1, 0, 6);
    bench.commit(2, 0, 6);
    // The ends of sequences go first.
    assert_eq!(explained(&bench, 1, 5), (Reason::Evicted, Some(Tier::Dram)));
    assert_eq!(counted(&bench, 1, 6), Reason::Evicted);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn evicted_from_nvme() {
    let dir = TempDir::new().unwrap();
    let bench = Bench::start(24, nvme(dir.path())).await;
    for sequence in 1..=8 {
        bench.store(sequence, 0, 20).await;
        bench.drop_from(&[Tier::Dram], sequence);
    }
    assert_eq!(explained(&bench, 1, 19), (Reason::Evicted, Some(Tier::Nvme)));
    assert_eq!(counted(&bench, 1, 20), Reason::Evicted);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn evicted_from_packs() {
    let dir = TempDir::new().unwrap();
    let mut options = packs(dir.path(), "one");
    options.object.as_mut().unwrap().bytes = Some(20 * BLOCK_BYTES);
    let bench = Bench::start(64, options).await;
    for sequence in 1..=3 {
        bench.commit(sequence, 0, 16);
        bench.tenant().flush(bench.tiers()).await;
        bench.drop_from(&[Tier::Dram], sequence);
    }
    assert_eq!(explained(&bench, 1, 15), (Reason::Evicted, Some(Tier::Object)));
    assert_eq!(counted(&bench, 1, 16), Reason::Evicted);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn expired() {
    let bench = Bench::start(8, TierOptions::default()).await;
    let (tenant, keep) =
        (bench.tenant(), Keep { expires_at: Some(Duration::from_secs(60)), ..Keep::default() });
    let reserved = tenant.reserve_to_keep(bench.session, None, &[hash(1, 0)], TTL, keep).unwrap();
    let filled = tenant.fill(bench.session, &[reserved[0].lease], |_, bytes| checksum(bytes)).unwrap();
    assert_eq!(filled, [BlockStatus::Stored]);
    tenant.renew(bench.session, &[], true, TTL).unwrap();
    bench.clock.advance(Duration::from_secs(9));
    bench.store.reap();
    assert_eq!(bench.matched(1, 1), 1, "not yet");
    bench.clock.advance(Duration::from_secs(52));
    bench.store.reap();
    assert_eq!(explained(&bench, 1, 0), (Reason::Expired, Some(Tier::Dram)));
    assert_eq!(counted(&bench, 1, 1), Reason::Expired);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_quota() {
    let quota = Quota { tier: Tier::Dram, model: "m".into(), bytes: 4 * BLOCK_BYTES };
    let bench = Bench::start(16, TierOptions { quotas: vec![quota], ..TierOptions::default() }).await;
    bench.commit(1, 0, 4);
    bench.commit(2, 0, 2);
    assert_eq!(explained(&bench, 1, 3), (Reason::Quota, Some(Tier::Dram)));
    assert_eq!(counted(&bench, 1, 4), Reason::Quota);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn quarantined() {
    let dir = TempDir::new().unwrap();
    let bench = Bench::start(8, nvme(dir.path())).await;
    bench.store(1, 0, 1).await;
    bench.drop_from(&[Tier::Dram], 1);
    bench.tiers().nvme().unwrap().device().faulty().inject(Fault::BitFlip);
    assert_eq!(bench.readable(1, 1).await, 0);
    assert_eq!(explained(&bench, 1, 0), (Reason::Quarantined, Some(Tier::Nvme)));
    assert_eq!(counted(&bench, 1, 1), Reason::Quarantined);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_another_namespace() {
    let bench = Bench::start(8, TierOptions::default()).await;
    let mut newer = spec();
    newer.model = "m, another build".into();
    newer.fingerprint.engine_build = "b2".into();
    let other = bench.tenant().open(newer, "test").unwrap();
    let tokens: Vec<u32> = (0..32).collect();
    let stored = other.namespace.key.hash_blocks(&tokens, 16, b"");
    let reserved = bench.tenant().reserve(other.session, None, &stored[..1], TTL).unwrap();
    bench.tenant().fill(other.session, &[reserved[0].lease], |_, bytes| checksum(bytes)).unwrap();

    let asked = bench.namespace.key.hash_blocks(&tokens, 16, b"");
    let explain = |tokens| bench.tenant().explain(&bench.namespace, &asked, tokens);
    let told = explain(Some((&tokens[..], &b""[..])));
    assert_eq!(told[0].what, What::Elsewhere(other.namespace.id));
    assert_eq!(told[1].what, What::NeverStored, "nobody has it");
    // By its hash alone nobody can tell: that is another one in each namespace.
    assert_eq!(explain(None)[0].what, What::NeverStored);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_at_admission() {
    let dir = TempDir::new().unwrap();
    let bench = Bench::start(8, TierOptions { admission: 2, ..nvme(dir.path()) }).await;
    bench.store(1, 0, 6).await;
    bench.store(2, 0, 6).await;
    assert_eq!(explained(&bench, 1, 5), (Reason::AdmissionRefused, Some(Tier::Dram)));
    assert_eq!(counted(&bench, 1, 6), Reason::AdmissionRefused);
    assert_eq!(bench.report(Tier::Nvme).counts.uncopied, 0);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_late() {
    let dir = TempDir::new().unwrap();
    let bench = Bench::start(8, nvme(dir.path())).await;
    {
        // A batch that is under way for as long as others come.
        let _batch = bench.tenant().below.offloading.lock().await;
        bench.commit(1, 0, 6);
        bench.commit(2, 0, 6);
    }
    assert_eq!(explained(&bench, 1, 5), (Reason::TooLate, Some(Tier::Dram)));
    assert_eq!(counted(&bench, 1, 6), Reason::TooLate);
    assert!(bench.report(Tier::Nvme).counts.uncopied > 0);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn not_copied_to_a_tier_that_takes_nothing() {
    let dir = TempDir::new().unwrap();
    let bench = Bench::start(8, nvme(dir.path())).await;
    bench.tiers().nvme().unwrap().device().faulty().inject(Fault::Vanish);
    bench.commit(1, 0, 6);
    bench.commit(2, 0, 6);
    assert_eq!(explained(&bench, 1, 5), (Reason::TierFailed, Some(Tier::Nvme)));
    assert_eq!(counted(&bench, 1, 6), Reason::TierFailed);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn abandoned() {
    let bench = Bench::start(8, TierOptions::default()).await;
    let hashes = hashes(1, 2);
    let reserved = bench.tenant().reserve(bench.session, None, &hashes, TTL).unwrap();
    assert_eq!(reserved[1].status, BlockStatus::Reserved);
    bench.clock.advance(TTL);
    bench.store.reap();
    for n in 0..2 {
        assert_eq!(explained(&bench, 1, n), (Reason::Abandoned, None));
    }
    assert_eq!(counted(&bench, 1, 2), Reason::Abandoned);
    bench.stop().await;
}
