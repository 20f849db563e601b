//! Packs that are gone, written anew, or written by somebody who got it wrong.

use std::collections::HashSet;

use kelvin_tiering::PackEntry;

use super::*;
use crate::store::tiers::LoadFailure;

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_was_deleted_is_a_miss_with_its_reason() {
    let dir = TempDir::new().unwrap();
    let bench = Bench::start(64, packs(dir.path(), "data")).await;
    bench.commit(1, 0, 6);
    bench.tenant().flush(bench.tiers()).await;
    bench.store(2, 0, 6).await;
    bench.drop_from(&[Tier::Dram], 1);
    bench.drop_from(&[Tier::Dram], 2);
    let objects = bench.tiers().objects().unwrap();
    let pack = objects.copies.get(&bench.key(1, 0)).unwrap().pack;
    objects.packs().delete(bench.namespace.persistent, pack).await.unwrap();
    assert_eq!(bench.readable(1, 6).await, 0);
    assert_eq!((bench.matched(1, 6), bench.report(Tier::Object).counts.lost), (0, 6));
    assert_eq!(bench.why(1, 0), Some((Reason::TierFailed, Some(Tier::Object))));
    // One that a listing does not find any more is forgotten before anybody asks.
    let pack = objects.copies.get(&bench.key(2, 5)).unwrap().pack;
    objects.forget_packs(&bench.namespace, &HashSet::from([pack]));
    assert_eq!((bench.matched(2, 6), bench.why(2, 5).unwrap().0), (5, Reason::TierFailed));
    assert_eq!(bench.readable(2, 6).await, 5);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sparse_pack_is_written_anew_and_a_reader_of_the_old_one_harms_nothing() {
    let dir = TempDir::new().unwrap();
    let bench = Bench::start(64, packs(dir.path(), "data")).await;
    bench.commit(1, 0, 10);
    bench.tenant().flush(bench.tiers()).await;
    let objects = bench.tiers().objects().unwrap();
    bench.drop_behind(&[Tier::Dram, Tier::Object], 1, 3);
    bench.drop_from(&[Tier::Dram], 1);
    let (key, old) = (bench.key(1, 0), objects.copies.get(&bench.key(1, 0)).unwrap());
    assert_eq!(bench.tiers().collect().await, (1, 1));
    assert_eq!(bench.tiers().collect().await, (0, 0), "all of the new one is live");
    let (count, _, live_bytes) = objects.survey();
    assert_eq!((count, live_bytes), (1, 3 * BLOCK_BYTES));
    // Somebody looked the block up before it moved.
    let slot = bench.tenant().slot(BLOCK_BYTES).unwrap();
    let (_, _, result) = objects.load(old.pack, vec![(key, old, slot)]).await.remove(0);
    assert_eq!(result.unwrap_err(), LoadFailure::Gone);
    assert_eq!((bench.matched(1, 10), bench.readable(1, 10).await), (3, 3));
    assert_eq!(bench.report(Tier::Object).counts.lost, 0);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_was_written_anew_and_not_deleted_is_deleted_later() {
    let dir = TempDir::new().unwrap();
    let bench = Bench::start(64, packs(dir.path(), "data")).await;
    bench.commit(1, 0, 10);
    bench.tenant().flush(bench.tiers()).await;
    let objects = bench.tiers().objects().unwrap();
    let pack = objects.copies.get(&bench.key(1, 0)).unwrap().pack;
    bench.drop_behind(&[Tier::Dram, Tier::Object], 1, 3);
    assert!(objects.rewrite(pack, &bench.namespace).await);
    assert_eq!(objects.survey().0, 2);
    assert_eq!(bench.tiers().collect().await, (1, 0));
    bench.drop_from(&[Tier::Dram], 1);
    assert_eq!((objects.survey().0, bench.readable(1, 10).await), (1, 3));
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn packs_of_blocks_that_do_not_fit_are_not_shown() {
    let dir = TempDir::new().unwrap();
    let bench = Bench::start(64, packs(dir.path(), "data")).await;
    let objects = bench.tiers().objects().unwrap();
    let blocks = (0..2).map(|n| {
        let bytes = vec![n as u8; BLOCK_BYTES as usize >> n];
        let entry = PackEntry {
            hash: hash(1, n).to_bytes(),
            parent: n.checked_sub(1).map(|n| hash(1, n).to_bytes()),
            offset: 0,
            bytes: bytes.len() as u32,
            checksum: checksum(&bytes),
        };
        (entry, bytes)
    });
    let info = objects.packs().put(bench.namespace.persistent, blocks.collect()).await.unwrap();
    objects.enter(&bench.namespace, &info, false);
    assert_eq!(bench.matched(1, 2), 1, "the second has half the bytes of a block");
    bench.stop().await;
}
