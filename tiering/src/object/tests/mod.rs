//! Packs in a directory; the suite in `suite` is what every kind of place must pass.

#[cfg(feature = "s3-sim")]
mod s3;
mod seaweed;
mod suite;

use std::time::Duration;

use suite::{block, blocks, buffers, hash, open};

use super::*;

/// A fresh directory as a place.
fn directory() -> (tempfile::TempDir, ObjectOptions) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let options = ObjectOptions::new(directory.path().to_str().expect("a path in UTF-8"));
    (directory, options)
}

#[tokio::test]
async fn a_directory_passes_the_suite() {
    let (_keep, options) = directory();
    suite::run(&options).await;
    suite::long_list(&options).await;
}

#[tokio::test]
async fn a_file_url_is_a_directory_too() {
    let (keep, mut options) = directory();
    options.url = format!("file://{}/packs", keep.path().display());
    let pack = open(&options).put([1; 16], blocks(1, &[10])).await.unwrap();
    assert!(keep.path().join("packs").join("01".repeat(16)).join(format!("{}.pack", pack.id)).is_file());
}

#[tokio::test]
async fn neighbours_share_requests() {
    let (_keep, mut options) = directory();
    (options.get_bytes_max, options.get_blocks_min, options.gap_bytes_max) = (4096, 3, 1000);
    let store = open(&options);
    let pack = store.put([1; 16], blocks(5, &[1000; 20])).await.unwrap();
    let read = async |indices: &[usize]| {
        let before = store.stats();
        let entries: Vec<_> = indices.iter().map(|&index| pack.entries[index]).collect();
        for (index, (bytes, result)) in
            store.get([1; 16], pack.id, buffers(&entries)).await.iter().enumerate()
        {
            assert_eq!(result, &Ok(()));
            assert!(bytes == &block(5, indices[index], 1000));
        }
        let after = store.stats();
        (after.gets - before.gets, after.bytes_gaps - before.bytes_gaps)
    };
    assert_eq!(read(&[0, 1, 2, 3]).await, (1, 0));
    assert_eq!(read(&[3, 1, 0]).await, (1, 1000), "one gap is read along, in whatever order");
    assert_eq!(read(&[0, 3]).await, (2, 0), "two are not");
    assert_eq!(read(&(0..20).collect::<Vec<_>>()).await, (5, 0), "four a request");
    assert_eq!(read(&[7, 7]).await, (2, 0), "asked twice, read twice");
}

#[tokio::test]
async fn a_damaged_block_is_read_twice_and_spoils_no_other() {
    let (keep, options) = directory();
    let store = open(&options);
    let pack = store.put([1; 16], blocks(3, &[5000; 4])).await.unwrap();
    let path = keep.path().join("01".repeat(16)).join(format!("{}.pack", pack.id));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[pack.entries[2].offset as usize + 4999] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let read = store.get([1; 16], pack.id, buffers(&pack.entries)).await;
    let results: Vec<_> = read.iter().map(|(_, result)| result.clone()).collect();
    assert_eq!(results, [Ok(()), Ok(()), Err(ReadFailure::Damaged), Ok(())]);
    let stats = store.stats();
    assert_eq!((stats.damaged, stats.gets, stats.retries), (2, 2, 1));
    assert_eq!(stats.read_breaker, BreakerState::Closed);

    // Its other blocks can be saved.
    let live: Vec<_> = pack.entries.iter().map(|entry| entry.hash).collect();
    let saved = store.rewrite(&pack, &live).await.unwrap();
    let hashes: Vec<_> = saved.entries.iter().map(|entry| entry.hash).collect();
    assert_eq!(hashes, [hash(3, 0), hash(3, 1), hash(3, 3)]);

    // A pack that was cut has the blocks before the cut, and no footer.
    std::fs::write(&path, &bytes[..pack.entries[1].offset as usize + 10]).unwrap();
    let read = store.get([1; 16], pack.id, buffers(&pack.entries[1..])).await;
    assert!(read.iter().all(|(_, result)| result == &Err(ReadFailure::Missing)), "{read:?}");
    let read = store.get([1; 16], pack.id, buffers(&pack.entries[..1])).await;
    assert_eq!(read[0].1, Ok(()));
    assert!(matches!(store.footer([1; 16], pack.id).await, Err(ObjectError::Damaged { .. })));
}

#[tokio::test]
async fn a_put_whose_answer_was_lost_is_recognised() {
    let (_keep, options) = directory();
    let store = open(&options);
    let pack = store.put([1; 16], blocks(1, &[100])).await.unwrap();
    // What `put` finds when its first try got through: the name is taken, by the same pack.
    let path = store.pack_path(&pack.namespace, pack.id);
    let put = PutOptions::from(PutMode::Create);
    let again = store.0.place.store.put_opts(&path, PutPayload::from_static(b"x"), put).await;
    assert_eq!(Fault::of(&again.unwrap_err()), Fault::Exists);
    assert_eq!(store.footer(pack.namespace, pack.id).await.unwrap(), pack);
}

#[tokio::test]
async fn a_directory_that_fails_is_left_alone_and_comes_back() {
    let (keep, mut options) = directory();
    options.retries = 0;
    options.breaker = BreakerOptions {
        failures: 3,
        open_for: Duration::from_millis(1),
        open_for_max: Duration::from_millis(1),
    };
    let store = open(&options);
    let pack = store.put([1; 16], blocks(1, &[100])).await.unwrap();
    let path = keep.path().join("01".repeat(16)).join(format!("{}.pack", pack.id));
    let bytes = std::fs::read(&path).unwrap();
    // A link to itself cannot be opened, which is no miss but a failure.
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(&path, &path).unwrap();
    let mut last = Ok(());
    while store.stats().breaker_opens < 2 {
        last = store.get([1; 16], pack.id, buffers(&pack.entries)).await.remove(0).1;
        assert!(matches!(last, Err(ReadFailure::Failed(_) | ReadFailure::Unavailable)), "{last:?}");
    }
    assert_ne!(last, Ok(()));
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, bytes).unwrap();
    while store.get([1; 16], pack.id, buffers(&pack.entries)).await.remove(0).1.is_err() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(store.stats().read_breaker, BreakerState::Closed);
}
