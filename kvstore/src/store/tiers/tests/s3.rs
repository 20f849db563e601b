//! An object store that fails: what only it has is a counted miss, never a stall; DRAM and NVMe serve throughout.

use kelvin_tiering::{
    BreakerOptions, ObjectOptions,
    testing::{S3Faults, S3Sim, S3SimOptions},
};

use super::*;
use crate::store::tiers::report::TierCounts;

const HOUR: Duration = Duration::from_secs(3600);

/// A store on NVMe and a simulated S3, with six blocks of each sequence: 1 in packs alone, 2 on NVMe alone, 3 in
/// DRAM too.
struct Remote {
    sim: S3Sim,
    bench: Bench,
    _dir: TempDir,
}

/// Fails at once, and asks again soon.
fn hasty(options: ObjectOptions) -> ObjectOptions {
    let wait = Duration::from_millis(30);
    let breaker = BreakerOptions { failures: 4, open_for: wait, open_for_max: wait };
    ObjectOptions { retries: 0, breaker, ..options }
}

impl Remote {
    async fn start(tune: impl FnOnce(ObjectOptions) -> ObjectOptions) -> Self {
        let dir = TempDir::new().unwrap();
        let sim = S3Sim::start(S3SimOptions::default()).unwrap();
        let url = "s3://kelvin/packs".to_owned();
        let object = ObjectSpace { url, endpoint: Some(sim.endpoint()), bytes: None, pack_bytes: None };
        let options = TierOptions { object: Some(object), ..nvme(dir.path()) };
        let grounds = Grounds { object: Some(tune(sim.client("packs"))), ..Grounds::of(&options) };
        let bench = Bench::start_on(48, options, grounds).await;
        bench.store(1, 0, 6).await;
        while bench.tiers().cascade_once(true).await.copied > 0 {}
        bench.drop_from(&[Tier::Dram, Tier::Nvme], 1);
        bench.store(2, 0, 6).await;
        bench.drop_from(&[Tier::Dram], 2);
        bench.store(3, 0, 6).await;
        Self { sim, bench, _dir: dir }
    }

    /// What else there is can be had, and more be stored.
    async fn serves_the_rest(&self) {
        assert_eq!((self.bench.matched(2, 6), self.bench.matched(3, 6)), (6, 6));
        assert_eq!((self.bench.readable(2, 6).await, self.bench.readable(3, 6).await), (6, 6));
        self.bench.drop_from(&[Tier::Dram], 2);
        self.bench.store(4, 0, 6).await;
        self.bench.drop_from(&[Tier::Dram], 4);
        assert_eq!(self.bench.readable(4, 6).await, 6);
        self.bench.drop_from(&[Tier::Dram, Tier::Nvme], 4);
    }

    /// All is as it was before.
    async fn recovers(self) {
        self.sim.faults(S3Faults::default());
        for _ in 0..1000 {
            if self.bench.readable(1, 6).await == 6 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(self.bench.readable(1, 6).await, 6);
        // The breaker of writes may be open still.
        let packed = |n| self.bench.tiers().contains(Tier::Object, &self.bench.key(3, n));
        for _ in 0..1000 {
            self.bench.tiers().cascade_once(true).await;
            if packed(5) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!((0..6).all(packed));
        self.bench.stop().await;
    }

    fn counts(&self) -> TierCounts {
        self.bench.report(Tier::Object).counts
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_503_opens_the_breaker_and_then_nobody_asks() {
    let breaker = BreakerOptions { failures: 4, open_for: HOUR, open_for_max: HOUR };
    let remote = Remote::start(|options| ObjectOptions { retries: 0, breaker, ..options }).await;
    let bench = &remote.bench;
    remote.sim.faults(S3Faults { unavailable: 1.0, ..S3Faults::default() });
    assert_eq!(bench.matched(1, 6), 6, "nobody knows yet");
    let mut asked = 0;
    while bench.matched(1, 6) > 0 {
        assert_eq!(bench.readable(1, 6).await, 0);
        asked += 1;
        assert!(asked <= 4, "a call asks once");
    }
    assert_eq!(bench.why(1, 0), Some((Reason::TierFailed, Some(Tier::Object))), "so the miss is counted");
    assert!(!bench.report(Tier::Object).healthy);
    assert_eq!(bench.tiers().objects().unwrap().requests().breaker_opens, 1);
    let gets = remote.sim.requests().gets;
    assert_eq!((bench.matched(1, 6), bench.readable(1, 6).await), (0, 0));
    assert_eq!(remote.sim.requests().gets, gets);
    remote.serves_the_rest().await;
    assert_eq!(bench.report(Tier::Object).blocks, 6, "the copies are there still");
    remote.bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_out_of_reach_is_back_once_it_answers() {
    for faults in [
        S3Faults { unavailable: 1.0, ..S3Faults::default() },
        S3Faults { cut: 1.0, ..S3Faults::default() },
        S3Faults { refuse: true, ..S3Faults::default() },
        S3Faults { gone: true, ..S3Faults::default() },
    ] {
        let remote = Remote::start(hasty).await;
        remote.sim.faults(faults);
        for _ in 0..6 {
            assert_eq!(remote.bench.readable(1, 6).await, 0, "{faults:?}");
        }
        let report = remote.bench.report(Tier::Object);
        assert!(report.lane.errors >= 1, "{faults:?}: {report:?}");
        assert_eq!((report.blocks, report.counts.lost, report.counts.damaged), (6, 0, 0), "{faults:?}");
        assert_eq!(remote.bench.why(1, 0), Some((Reason::TierFailed, Some(Tier::Object))));
        remote.serves_the_rest().await;
        remote.recovers().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_store_is_a_timeout_and_a_stop_does_not_wait_for_it() {
    let deadline = Duration::from_secs(1);
    let remote = Remote::start(|options| ObjectOptions {
        read_deadline: deadline,
        write_deadline: HOUR,
        ..hasty(options)
    })
    .await;
    remote.sim.faults(S3Faults { slow: 1.0, slow_by: HOUR, ..S3Faults::default() });
    assert_eq!(remote.bench.readable(1, 6).await, 0);
    assert_eq!((remote.counts().timeouts, remote.bench.report(Tier::Object).blocks), (6, 6));
    remote.serves_the_rest().await;
    // A pack is on its way for an hour.
    let tiers = remote.bench.tiers().clone();
    let stuck = tokio::spawn(async move { tiers.cascade_once(true).await });
    let lane = || remote.bench.report(Tier::Object).lane;
    eventually("the pack is on its way", || lane().in_flight_bytes > 0).await;
    remote.bench.stop().await;
    stuck.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_are_quarantined_and_stored_anew() {
    let remote = Remote::start(hasty).await;
    let bench = &remote.bench;
    remote.sim.faults(S3Faults { wrong: 1.0, ..S3Faults::default() });
    let read = bench.readable(1, 6).await;
    assert!(read < 6);
    remote.serves_the_rest().await;
    remote.sim.faults(S3Faults::default());
    let damaged = remote.counts().damaged;
    assert!(damaged >= 1);
    for n in 0..6 {
        if bench.matched(1, 6) > n as usize {
            continue;
        }
        assert_eq!(bench.why(1, n), Some((Reason::Quarantined, Some(Tier::Object))));
        bench.store(1, n, n + 1).await;
    }
    assert_eq!((bench.matched(1, 6), bench.readable(1, 6).await), (6, 6));
    assert_eq!(remote.counts().damaged, damaged);
    remote.bench.stop().await;
}
