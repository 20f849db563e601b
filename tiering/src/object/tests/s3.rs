//! Packs in the simulated S3, and what goes wrong with it.

use super::*;
use crate::testing::{S3Faults, S3Sim, S3SimOptions};

const NAMESPACE: Namespace = [0x42; 16];

fn sim() -> S3Sim {
    S3Sim::start(S3SimOptions::default()).expect("start the simulator")
}

/// Fails fast, and asks again soon.
fn hasty(sim: &S3Sim) -> ObjectOptions {
    let wait = Duration::from_millis(30);
    ObjectOptions {
        breaker: BreakerOptions { failures: 4, open_for: wait, open_for_max: wait },
        ..sim.client("a/b")
    }
}

/// A pack that was written while all was well.
async fn written(store: &PackStore, sizes: &[usize]) -> PackInfo {
    store.put(NAMESPACE, blocks(6, sizes)).await.expect("put")
}

async fn read(store: &PackStore, pack: &PackInfo) -> Vec<Result<(), ReadFailure>> {
    let read = store.get(NAMESPACE, pack.id, buffers(&pack.entries)).await;
    assert_eq!(read.len(), pack.entries.len());
    read.into_iter()
        .enumerate()
        .map(|(index, (bytes, result))| {
            let right = block(6, index, pack.entries[index].bytes as usize);
            assert!(result.is_err() || bytes == right, "block {index} came wrong");
            result
        })
        .collect()
}

/// Waits until reads go through again: the one that asks first decides.
async fn recovered(store: &PackStore, pack: &PackInfo) {
    while read(store, pack).await.iter().any(Result::is_err) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(store.stats().read_breaker, BreakerState::Closed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_simulator_passes_the_suite() {
    let sim = sim();
    suite::run(&sim.client("some/prefix")).await;
    suite::long_list(&sim.client("")).await;
    suite::refusals(&sim.client("x")).await;
    assert!(!sim.cpu_time().is_zero());
}

#[tokio::test]
async fn reads_share_requests_and_run_side_by_side_within_bounds() {
    let sim = S3Sim::start(S3SimOptions { latency: Duration::from_millis(20), ..S3SimOptions::default() });
    let sim = sim.expect("start the simulator");
    let options =
        ObjectOptions { get_bytes_max: 100_000, get_blocks_min: 1, concurrency: 3, ..sim.client("") };
    let store = open(&options);
    let pack = written(&store, &[50_000; 24]).await;
    assert!(read(&store, &pack).await.iter().all(Result::is_ok));
    let requests = sim.requests();
    assert_eq!((requests.gets, requests.gets_at_once_max), (12, 3));
    assert_eq!(requests.bytes_out, 24 * 50_000);
    assert_eq!(store.stats().reads_queued, 0);
}

#[tokio::test]
async fn a_busy_server_is_asked_again() {
    let sim = sim();
    let store = open(&ObjectOptions { retries: 9, ..sim.client("") });
    let pack = written(&store, &[10_000; 8]).await;
    sim.faults(S3Faults { unavailable: 0.4, ..S3Faults::default() });
    for _ in 0..10 {
        assert!(read(&store, &pack).await.iter().all(Result::is_ok));
        written(&store, &[100]).await;
    }
    let stats = store.stats();
    assert!(stats.retries > 0 && stats.errors >= stats.retries, "{stats:?}");
}

#[tokio::test]
async fn the_breaker_opens_and_closes() {
    let sim = sim();
    let store = open(&ObjectOptions { retries: 0, ..hasty(&sim) });
    let pack = written(&store, &[1000]).await;
    sim.faults(S3Faults { unavailable: 1.0, ..S3Faults::default() });
    for _ in 0..4 {
        assert!(matches!(read(&store, &pack).await[0], Err(ReadFailure::Failed(_))));
    }
    assert_eq!((store.stats().read_breaker, store.stats().breaker_opens), (BreakerState::Open, 1));
    // Writes have their own.
    assert_eq!(store.stats().write_breaker, BreakerState::Closed);
    let put = store.put(NAMESPACE, blocks(1, &[5])).await;
    assert!(matches!(&put, Err(error @ ObjectError::Failed { .. }) if error.is_retryable()), "{put:?}");
    // Nobody asks while it is open.
    let before = (store.stats().refusals, sim.requests().gets);
    while store.stats().refusals == before.0 {
        read(&store, &pack).await;
    }
    let refused = store.get(NAMESPACE, pack.id, buffers(&pack.entries)).await.remove(0).1;
    assert!(matches!(refused, Err(ReadFailure::Unavailable | ReadFailure::Failed(_))));
    sim.faults(S3Faults::default());
    recovered(&store, &pack).await;
    assert!(store.stats().refusals > before.0);
}

#[tokio::test]
async fn a_slow_server_is_a_timeout_and_the_buffers_come_back() {
    let sim = sim();
    let options = ObjectOptions {
        read_deadline: Duration::from_millis(150),
        write_deadline: Duration::from_millis(150),
        ..hasty(&sim)
    };
    let store = open(&options);
    let pack = written(&store, &[1000; 3]).await;
    sim.faults(S3Faults { slow: 1.0, slow_by: Duration::from_secs(600), ..S3Faults::default() });
    assert_eq!(read(&store, &pack).await, vec![Err(ReadFailure::Timeout); 3]);
    let put = store.put(NAMESPACE, blocks(1, &[5])).await;
    assert!(matches!(put, Err(ObjectError::Timeout { .. })), "{put:?}");
    let footer = store.footer(NAMESPACE, pack.id).await;
    assert!(
        matches!(footer, Err(ObjectError::Timeout { .. } | ObjectError::Unavailable { .. })),
        "{footer:?}"
    );
    let stats = store.stats();
    assert!(stats.timeouts > 0 && stats.reads_queued == 0 && stats.writes_queued == 0, "{stats:?}");
    sim.faults(S3Faults::default());
    recovered(&store, &pack).await;
}

#[tokio::test]
async fn a_hedge_overtakes_a_slow_answer() {
    let sim = sim();
    let options = ObjectOptions {
        hedge_after: Some(Duration::from_millis(10)),
        read_deadline: Duration::from_secs(6),
        retries: 9,
        ..sim.client("")
    };
    let store = open(&options);
    let pack = written(&store, &[1000]).await;
    sim.faults(S3Faults { slow: 0.3, slow_by: Duration::from_secs(600), ..S3Faults::default() });
    while store.stats().hedges_won == 0 {
        assert_eq!(read(&store, &pack).await, [Ok(())]);
    }
    assert!(store.stats().hedges >= store.stats().hedges_won);
}

#[tokio::test]
async fn a_cut_body_is_read_on_from_the_first_block_not_done() {
    let sim = sim();
    let store = open(&ObjectOptions { retries: 20, ..sim.client("") });
    let pack = written(&store, &[40_000; 10]).await;
    sim.faults(S3Faults { cut: 0.5, ..S3Faults::default() });
    for _ in 0..5 {
        assert!(read(&store, &pack).await.iter().all(Result::is_ok));
    }
    assert!(store.stats().retries > 0);
    // What came whole before the cut was not asked for again: ten bodies and the halves that were cut.
    let stats = store.stats();
    assert_eq!(stats.blocks_read, 50);
    assert!(sim.requests().bytes_out < 50 * 40_000 * 3, "{:?}", sim.requests());

    let store = open(&hasty(&sim));
    let pack = written(&store, &[100_000]).await;
    sim.faults(S3Faults { cut: 1.0, ..S3Faults::default() });
    assert!(matches!(read(&store, &pack).await[0], Err(ReadFailure::Failed(_))));
    sim.faults(S3Faults::default());
    recovered(&store, &pack).await;
}

#[tokio::test]
async fn wrong_bytes_are_never_handed_out() {
    let sim = sim();
    let store = open(&ObjectOptions { retries: 3, ..sim.client("") });
    let pack = written(&store, &[5000; 6]).await;
    sim.faults(S3Faults { wrong: 1.0, ..S3Faults::default() });
    let mut damaged = 0;
    for _ in 0..10 {
        // `read` compares every block that is said to be right.
        let results = read(&store, &pack).await;
        damaged += results.iter().filter(|result| **result == Err(ReadFailure::Damaged)).count();
        assert!(results.iter().all(|result| matches!(result, Ok(()) | Err(ReadFailure::Damaged))));
    }
    assert!(damaged > 0 && store.stats().damaged > 0);
    assert_eq!(store.stats().read_breaker, BreakerState::Closed, "the server is there");
    let footer = store.footer(NAMESPACE, pack.id).await;
    assert!(matches!(footer, Ok(_) | Err(ObjectError::Damaged { .. })), "the flip may hit a block");
    sim.faults(S3Faults { wrong: 0.3, ..S3Faults::default() });
    while read(&store, &pack).await.iter().any(Result::is_err) {}
}

#[tokio::test]
async fn a_server_that_refuses_or_has_lost_the_bucket_says_so_and_is_left_alone() {
    for (faults, refused) in [
        (S3Faults { refuse: true, ..S3Faults::default() }, true),
        (S3Faults { gone: true, ..S3Faults::default() }, false),
    ] {
        let sim = sim();
        let store = open(&hasty(&sim));
        let pack = written(&store, &[1000]).await;
        store.check().await.expect("all is well");
        sim.faults(faults);
        let said = |error: &ObjectError| match error {
            ObjectError::Refused { .. } => refused,
            ObjectError::NoBucket { .. } => !refused,
            _ => false,
        };
        let error = store.check().await.expect_err("nothing works");
        assert!(said(&error) && !error.is_retryable(), "{error}");
        let error = store.put(NAMESPACE, blocks(1, &[5])).await.expect_err("no put");
        assert!(said(&error), "{error}");
        let error = store.list(NAMESPACE).await.expect_err("no list");
        assert!(said(&error), "{error}");
        let error = store.delete(NAMESPACE, pack.id).await.expect_err("no delete");
        assert!(said(&error), "{error}");
        while store.stats().read_breaker != BreakerState::Open {
            assert!(read(&store, &pack).await[0].is_err());
        }
        sim.faults(S3Faults::default());
        recovered(&store, &pack).await;
    }
}

#[tokio::test]
async fn a_put_whose_answer_is_lost_is_one_pack() {
    let sim = sim();
    let store = open(&sim.client(""));
    sim.faults(S3Faults { lost_answer: 1.0, ..S3Faults::default() });
    let pack = written(&store, &[1000; 3]).await;
    assert!(sim.requests().puts > 1);
    assert_eq!(store.list(NAMESPACE).await.unwrap(), [pack.id]);
    assert!(read(&store, &pack).await.iter().all(Result::is_ok));
}

#[tokio::test]
async fn a_read_that_is_given_up_gives_back_its_turn() {
    let sim = S3Sim::start(S3SimOptions { latency: Duration::from_millis(50), ..S3SimOptions::default() });
    let sim = sim.expect("start the simulator");
    let store = open(&ObjectOptions { concurrency: 1, ..sim.client("") });
    let pack = written(&store, &[1000; 2]).await;
    for _ in 0..5 {
        let get = store.get(NAMESPACE, pack.id, buffers(&pack.entries));
        assert!(tokio::time::timeout(Duration::from_millis(5), get).await.is_err());
    }
    assert_eq!(store.stats().reads_queued, 0);
    assert!(read(&store, &pack).await.iter().all(Result::is_ok));
}

#[tokio::test]
async fn a_server_that_is_not_there_is_no_stall() {
    let mut options = hasty(&sim());
    options.endpoint = Some("http://127.0.0.1:1".into());
    let store = open(&options);
    let error = store.check().await.expect_err("nobody listens");
    assert!(error.is_retryable(), "{error}");
    let entry = blocks(1, &[10]).remove(0).0;
    let entry = PackEntry { offset: 64, ..entry };
    let read = store.get(NAMESPACE, PackId([1; 16]), buffers(&[entry])).await.remove(0).1;
    assert!(matches!(read, Err(ReadFailure::Failed(_))), "{read:?}");
}
