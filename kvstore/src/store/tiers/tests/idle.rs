//! The tasks by themselves: what makes them look, and that nothing does while nothing happens.

use super::*;
use crate::store::Offload;

#[tokio::test(flavor = "multi_thread")]
async fn blocks_near_eviction_are_copied_and_then_nobody_looks() {
    let dir = TempDir::new().unwrap();
    let bench = Bench::start(20, nvme(dir.path())).await;
    bench.commit(1, 0, 10);
    bench.commit(2, 0, 6);
    eventually("the fullest fifth is copied", || bench.report(Tier::Nvme).blocks > 0).await;
    let looks = || bench.tenant().below.looks.get();
    // The last look finds nothing, and nothing happens behind it.
    let mut quiet = 0;
    for _ in 0..100 {
        let before = looks();
        tokio::time::sleep(Duration::from_millis(150)).await;
        quiet = if looks() == before { quiet + 1 } else { 0 };
        if quiet == 3 {
            break;
        }
    }
    assert_eq!(quiet, 3, "an idle store looks for nothing");
    let before = looks();
    bench.commit(3, 0, 1);
    eventually("a commit is looked at", || looks() > before).await;
    bench.crash().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn admission_that_is_reached_is_looked_at() {
    let dir = TempDir::new().unwrap();
    let options = TierOptions { admission: 2, ..nvme(dir.path()) };
    let bench = Bench::start(8, options).await;
    bench.commit(1, 0, 7);
    assert_eq!(bench.tenant().flush(bench.tiers()).await, 0);
    bench.matched(1, 7);
    bench.matched(1, 7);
    eventually("it was asked for twice", || bench.report(Tier::Nvme).blocks > 0).await;
    bench.crash().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn eager_blocks_wait_for_enough_to_make_a_pack_of() {
    let dir = TempDir::new().unwrap();
    let options = TierOptions { offload: Offload::Eager, ..packs(dir.path(), "data") };
    let bench = Bench::start(1024, options).await;
    // Half a pack is 256 of them.
    for n in 0..300 {
        bench.commit(1, n, n + 1);
        tokio::task::yield_now().await;
    }
    eventually("they are packed", || bench.report(Tier::Object).blocks >= 256).await;
    bench.crash().await;
}
