//! Devices and catalogs that fail: right bytes or a miss, the other tiers serve, and a count tells.

use kelvin_tiering::Device;

use super::*;
use crate::store::{Offload, What, tiers::LoadFailure};

const HOUR: Duration = Duration::from_secs(3600);

/// NVMe, and a directory for a bucket.
fn both(dir: &Path) -> TierOptions {
    TierOptions { object: packs(dir, "data").object, ..nvme(dir) }
}

/// Of six blocks each: sequence 1 on NVMe and in packs, 2 on NVMe alone, 3 in DRAM too.
async fn spread(bench: &Bench) {
    bench.store(1, 0, 6).await;
    while bench.tiers().cascade_once(true).await.copied > 0 {}
    bench.store(2, 0, 6).await;
    bench.store(3, 0, 6).await;
    bench.drop_from(&[Tier::Dram], 1);
    bench.drop_from(&[Tier::Dram], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_vanishes_is_passed_over_and_comes_back_as_it_was() {
    let dir = TempDir::new().unwrap();
    let bench = Bench::start(48, both(dir.path())).await;
    spread(&bench).await;
    let faulty = bench.tiers().nvme().unwrap().device().faulty();

    faulty.inject(Fault::Vanish);
    assert!(!bench.report(Tier::Nvme).healthy);
    assert_eq!((bench.matched(1, 6), bench.matched(2, 6), bench.matched(3, 6)), (6, 0, 6));
    assert_eq!(bench.why(2, 0), Some((Reason::TierFailed, Some(Tier::Nvme))), "so the miss is counted");
    let said = || bench.tenant().explain(&bench.namespace, &[hash(2, 0)], None).remove(0).what;
    let failed = What::Gone { reason: Reason::TierFailed, tier: Some(Tier::Nvme), age: Duration::ZERO };
    assert_eq!(said(), failed, "and explained");
    assert_eq!((bench.readable(3, 6).await, bench.readable(2, 6).await), (6, 0));
    assert_eq!(bench.readable(1, 6).await, 6, "packs have it too");
    assert!(bench.report(Tier::Object).counts.onboarded >= 6);
    // Stores go on, and nothing on NVMe makes room that cannot be had.
    bench.store(4, 0, 6).await;
    assert_eq!(bench.readable(4, 6).await, 6);
    let report = bench.report(Tier::Nvme);
    assert_eq!((report.blocks, report.counts.evicted_policy, report.counts.damaged), (18, 0, 0));

    faulty.heal();
    assert!(bench.report(Tier::Nvme).healthy);
    assert_eq!(said(), What::Stored(vec![Tier::Nvme]));
    assert_eq!((bench.matched(2, 6), bench.readable(2, 6).await), (6, 6));
    bench.tenant().flush(bench.tiers()).await;
    assert_eq!(bench.report(Tier::Nvme).blocks, 24, "writes resume");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_meets_no_device_keeps_the_copy() {
    let dir = TempDir::new().unwrap();
    let bench = Bench::start(16, nvme(dir.path())).await;
    bench.store(1, 0, 4).await;
    let nvme = bench.tiers().nvme().unwrap();
    let (key, copy) = (bench.key(1, 0), nvme.copies.get(&bench.key(1, 0)).unwrap());
    nvme.device().faulty().inject(Fault::Vanish);
    let slot = bench.tenant().slot(BLOCK_BYTES).unwrap();
    assert_eq!(nvme.load(&key, &copy, slot).await.unwrap_err(), LoadFailure::Busy);
    assert_eq!(nvme.read_quietly(&key, &copy).await.unwrap_err(), LoadFailure::Busy);
    let found = bench.tiers().verify_nvme(None, |_| {}).await;
    assert_eq!((found.blocks, found.unreadable, found.damaged), (4, 4, 0));
    assert_eq!(bench.report(Tier::Nvme).blocks, 4);
    assert!(bench.report(Tier::Nvme).lane.errors > 0);
    nvme.device().faulty().heal();
    assert_eq!(bench.readable(1, 4).await, 4);
    bench.stop().await;
}

/// An engine that makes a block again may make other bytes.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_out_of_reach_conflicts_with_nothing() {
    let dir = TempDir::new().unwrap();
    let bench = Bench::start(16, nvme(dir.path())).await;
    bench.store(1, 0, 4).await;
    bench.drop_from(&[Tier::Dram], 1);
    let other = content(9, 9);
    assert_eq!(bench.commit_bytes(1, 0, &other), BlockStatus::Conflict);
    bench.tiers().nvme().unwrap().device().faulty().inject(Fault::Vanish);
    assert_eq!(bench.commit_bytes(1, 0, &other), BlockStatus::Stored);
    assert_eq!(bench.matched(1, 4), 1);
    bench.crash().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_device_is_a_timeout_and_keeps_its_copies() {
    let dir = TempDir::new().unwrap();
    let options = both(dir.path());
    let grounds = Grounds { nvme_read_deadline: Duration::from_secs(1), ..Grounds::of(&options) };
    let bench = Bench::start_on(48, options, grounds).await;
    spread(&bench).await;
    let faulty = bench.tiers().nvme().unwrap().device().faulty();
    faulty.inject(Fault::SlowDown(HOUR));
    assert_eq!(bench.readable(2, 6).await, 0);
    assert_eq!(bench.report(Tier::Nvme).counts.timeouts, 6);
    assert_eq!(bench.why(2, 0), Some((Reason::TierFailed, Some(Tier::Nvme))));
    assert_eq!((bench.readable(1, 6).await, bench.readable(3, 6).await), (6, 6), "others are served");
    faulty.heal();
    assert_eq!(bench.report(Tier::Nvme).blocks, 18);
    assert_eq!((bench.matched(2, 6), bench.readable(2, 6).await), (6, 6));
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_device_holds_little_of_dram_while_it_is_written_to() {
    let dir = TempDir::new().unwrap();
    let bench = Bench::start(24, nvme(dir.path())).await;
    bench.tiers().nvme().unwrap().device().faulty().inject(Fault::SlowDown(HOUR));
    bench.commit(1, 0, 20);
    eventually("a batch is on its way", || bench.report(Tier::Nvme).lane.in_flight_bytes > 0).await;
    // Each of these is `Reserved`, or this fails.
    bench.commit(2, 0, 20);
    assert_eq!(bench.readable(2, 20).await, 20);
    assert!(bench.report(Tier::Nvme).counts.uncopied > 0, "what was not copied in time is counted");
    bench.crash().await;
}

/// The file is there, but what was in it is not: every read fails.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_fails_every_read_loses_few_copies() {
    let dir = TempDir::new().unwrap();
    let options = nvme(dir.path());
    let mut grounds = Grounds::of(&options);
    // Not within this test.
    grounds.nvme.as_mut().unwrap().retry_after = HOUR;
    let bench = Bench::start_on(64, options, grounds).await;
    for sequence in 1..=4 {
        bench.store(sequence, 0, 16).await;
    }
    (1..=3).for_each(|sequence| bench.drop_from(&[Tier::Dram], sequence));
    let file = std::fs::OpenOptions::new().write(true).open(dir.path().join("nvme/kelvin.blocks")).unwrap();
    file.set_len(4096).unwrap();
    for sequence in 1..=3 {
        assert_eq!(bench.readable(sequence, 16).await, 0);
    }
    let report = bench.report(Tier::Nvme);
    assert!(!report.healthy && report.blocks >= 64 - 8 && report.lane.errors >= 8, "{report:?}");
    assert_eq!((bench.matched(3, 16), bench.matched(4, 16), bench.readable(4, 16).await), (0, 16, 16));
    // Nor is it emptied for what it would not take.
    bench.store(5, 0, 16).await;
    assert_eq!(bench.report(Tier::Nvme).blocks, report.blocks);
    bench.crash().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_costs_copies_until_it_has_room() {
    let dir = TempDir::new().unwrap();
    let bench = Bench::start(16, nvme(dir.path())).await;
    let faulty = bench.tiers().nvme().unwrap().device().faulty();
    faulty.inject(Fault::NoSpace);
    bench.store(1, 0, 1).await;
    let report = bench.report(Tier::Nvme);
    assert_eq!((report.blocks, report.lane.errors, bench.readable(1, 1).await), (0, 1, 1));
    bench.store(1, 1, 6).await;
    assert_eq!(bench.report(Tier::Nvme).blocks, 6);
    bench.drop_from(&[Tier::Dram], 1);
    assert_eq!(bench.readable(1, 6).await, 6);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn eager_offload_tries_again_what_was_not_taken() {
    let dir = TempDir::new().unwrap();
    let options = TierOptions { offload: Offload::Eager, ..nvme(dir.path()) };
    let bench = Bench::start(32, options).await;
    let faulty = bench.tiers().nvme().unwrap().device().faulty();
    faulty.inject(Fault::NoSpace);
    bench.commit(1, 0, 4);
    eventually("what failed is written", || bench.report(Tier::Nvme).blocks == 4).await;
    assert_eq!(bench.report(Tier::Nvme).lane.errors, 1);
    faulty.inject(Fault::Vanish);
    bench.commit(2, 0, 4);
    faulty.heal();
    eventually("what came meanwhile too", || bench.report(Tier::Nvme).blocks == 8).await;
    bench.crash().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_cannot_be_read_is_given_up_for_the_next_tier() {
    let dir = TempDir::new().unwrap();
    let bench = Bench::start(48, both(dir.path())).await;
    spread(&bench).await;
    let nvme = bench.tiers().nvme().unwrap();
    for fault in [Fault::ShortRead, Fault::ReadError] {
        let (blocks, errors) = (bench.report(Tier::Nvme).blocks, bench.report(Tier::Nvme).lane.errors);
        nvme.device().faulty().inject(fault);
        assert_eq!(bench.readable(1, 6).await, 6, "{fault:?}: its pack has it");
        let report = bench.report(Tier::Nvme);
        assert_eq!((report.blocks, report.lane.errors, report.counts.damaged), (blocks - 1, errors + 1, 0));
        bench.drop_from(&[Tier::Dram], 1);
    }
    assert!((0..6).all(|n| bench.why(1, n).is_none()), "it is not gone");
    // What nothing else has is.
    nvme.device().faulty().inject(Fault::ShortRead);
    let read = bench.readable(2, 6).await;
    let lost = (0..6).find(|n| !bench.tiers().contains(Tier::Nvme, &bench.key(2, *n))).unwrap();
    assert_eq!((read, bench.matched(2, 6)), (lost as usize, lost as usize));
    assert_eq!(bench.why(2, lost), Some((Reason::TierFailed, Some(Tier::Nvme))));
    bench.store(2, lost, lost + 1).await;
    assert_eq!(bench.readable(2, 6).await, 6);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_say_why_they_went() {
    let dir = TempDir::new().unwrap();
    let bench = Bench::start(24, nvme(dir.path())).await;
    for sequence in 1..=10 {
        bench.store(sequence, 0, 20).await;
    }
    let evicted = Some((Reason::Evicted, Some(Tier::Nvme)));
    assert!((1..=10).any(|sequence| bench.why(sequence, 19) == evicted));
    bench.drop_from(&[Tier::Dram, Tier::Nvme], 10);
    assert_eq!(bench.why(10, 0), Some((Reason::Removed, Some(Tier::Nvme))));
    bench.stop().await;
}

fn copy_all(source: &Path, target: &Path) {
    std::fs::create_dir_all(target).unwrap();
    for entry in std::fs::read_dir(source).unwrap() {
        let entry = entry.unwrap();
        let target = target.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_all(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalog_older_than_the_data_serves_nothing_wrong() {
    let dir = TempDir::new().unwrap();
    let (data, kept) = (dir.path().join("data"), dir.path().join("kept"));
    let bench = Bench::start(64, nvme(dir.path())).await;
    bench.store(1, 0, 20).await;
    bench.store(2, 0, 20).await;
    bench.stop().await;
    copy_all(&data, &kept);
    // Others take the places of sequence 1.
    let bench = Bench::start(64, nvme(dir.path())).await;
    bench.drop_from(&[Tier::Nvme], 1);
    for sequence in 3..=7 {
        bench.store(sequence, 0, 20).await;
    }
    bench.store(8, 0, 8).await;
    assert_eq!(bench.tiers().nvme().unwrap().device().usage().places, 128, "every place");
    bench.stop().await;
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&kept, &data).unwrap();

    let bench = Bench::start(64, nvme(dir.path())).await;
    assert_eq!(bench.readable(2, 20).await, 20, "those places are as they were");
    assert_eq!(bench.readable(1, 20).await, 0);
    let report = bench.report(Tier::Nvme);
    assert!(report.counts.damaged >= 1 && report.quarantined >= 1, "{report:?}");
    assert_eq!(bench.why(1, 0), Some((Reason::Quarantined, Some(Tier::Nvme))));
    assert_eq!(bench.matched(1, 20) + bench.matched(3, 20), 0);
    for sequence in [1, 3] {
        for n in 0..20 {
            // Behind the first, some may be left that are wrong: each is found out, and stored anew.
            if bench.matched(sequence, 20) <= n as usize
                || bench.readable(sequence, n + 1).await <= n as usize
            {
                bench.store(sequence, n, n + 1).await;
            }
        }
        assert_eq!(bench.readable(sequence, 20).await, 20);
    }
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_catalog_a_store_starts_empty_and_goes_on() {
    let dir = TempDir::new().unwrap();
    let bench = Bench::start(16, nvme(dir.path())).await;
    bench.store(1, 0, 10).await;
    bench.stop().await;
    std::fs::remove_dir_all(dir.path().join("data")).unwrap();
    let bench = Bench::start(16, nvme(dir.path())).await;
    assert_eq!((bench.matched(1, 10), bench.readable(1, 10).await), (0, 0));
    assert_eq!(bench.tiers().nvme().unwrap().device().usage().places, 0, "all places are free");
    bench.store(1, 0, 10).await;
    bench.stop().await;
    let bench = Bench::start(16, nvme(dir.path())).await;
    assert_eq!(bench.readable(1, 10).await, 10);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_lost_file_had_is_counted() {
    let dir = TempDir::new().unwrap();
    let bench = Bench::start(16, nvme(dir.path())).await;
    bench.store(1, 0, 10).await;
    bench.stop().await;
    std::fs::remove_file(dir.path().join("nvme/kelvin.blocks")).unwrap();
    let bench = Bench::start(16, nvme(dir.path())).await;
    assert_eq!((bench.matched(1, 10), bench.report(Tier::Nvme).counts.lost), (0, 10));
    bench.store(1, 0, 10).await;
    assert_eq!(bench.readable(1, 10).await, 10);
    bench.stop().await;
}
