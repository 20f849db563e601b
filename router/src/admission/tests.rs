//! The gate under tasks that come and go.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures::{FutureExt, future::join_all};

use super::*;

fn gate(requests_max: usize, queue_max: usize) -> (Admission, Arc<AtomicUsize>) {
    let places = Arc::new(AtomicUsize::new(usize::MAX));
    let limits = AdmissionLimits {
        requests_max,
        queue_max,
        queue_timeout: Duration::from_secs(3_600),
        long_tokens: 1_000,
        long_max: Some(1),
    };
    let capacity = places.clone();
    let capacity = move || capacity.load(Ordering::Relaxed);
    (Admission::new(limits, capacity, Arc::new(Metrics::new())), places)
}

fn ticket(priority: i32) -> Ticket {
    Ticket { places: 1, priority, uncached_tokens: 10, wait: None }
}

fn depth(gate: &Admission) -> usize {
    gate.0.queue.lock().waiting(Class::Short)
}

fn running(gate: &Admission) -> usize {
    gate.0.queue.lock().running()
}

#[tokio::test]
async fn a_place_that_is_given_back_goes_to_the_next() {
    let (gate, _) = gate(1, 8);
    let first = gate.admit(ticket(0)).await.unwrap();
    assert!(!first.has_waited());
    let (mut low, mut high) = (Box::pin(gate.admit(ticket(0))), Box::pin(gate.admit(ticket(1))));
    assert!(low.as_mut().now_or_never().is_none() && high.as_mut().now_or_never().is_none());
    assert_eq!(depth(&gate), 2);
    drop(first);
    assert!(low.as_mut().now_or_never().is_none(), "the higher priority is next");
    let high = high.await.unwrap();
    assert!(high.has_waited());
    drop(high);
    drop(low.await.unwrap());
    assert_eq!((running(&gate), depth(&gate), gate.0.metrics.in_flight.get()), (0, 0, 0));
}

#[tokio::test]
async fn who_leaves_the_queue_takes_nothing_along() {
    let (gate, _) = gate(1, 8);
    let first = gate.admit(ticket(0)).await.unwrap();
    let mut leaves = Box::pin(gate.admit(ticket(0)));
    let mut told = Box::pin(gate.admit(ticket(0)));
    let mut stays = Box::pin(gate.admit(ticket(0)));
    for waits in [&mut leaves, &mut told, &mut stays] {
        assert!(waits.as_mut().now_or_never().is_none());
    }
    drop(leaves);
    assert_eq!(depth(&gate), 2);
    // Its turn comes, and it leaves before it hears of it.
    drop(first);
    assert_eq!((running(&gate), depth(&gate)), (1, 1));
    drop(told);
    drop(stays.await.unwrap());
    assert_eq!((running(&gate), depth(&gate)), (0, 0));
}

#[tokio::test]
async fn a_full_queue_refuses_and_the_displaced_take_no_place() {
    let (gate, _) = gate(1, 1);
    let first = gate.admit(ticket(0)).await.unwrap();
    assert!(gate.check(0).is_ok());
    let mut low = Box::pin(gate.admit(ticket(0)));
    let mut unheard = Box::pin(gate.admit(ticket(1)));
    assert!(low.as_mut().now_or_never().is_none());
    let refused = gate.check(0).unwrap_err();
    assert_eq!(refused, Refused::Full { running: 1, waiting: 1, retry_s: 1 });
    assert_eq!(gate.admit(ticket(0)).await.err(), Some(refused));
    assert!(gate.check(1).is_ok() && unheard.as_mut().now_or_never().is_none());
    assert!(matches!(low.await.err(), Some(Refused::Displaced { .. })));
    // Displaced in its turn, and gone before it hears of it.
    let mut high = Box::pin(gate.admit(ticket(2)));
    assert!(high.as_mut().now_or_never().is_none());
    drop(unheard);
    assert_eq!((running(&gate), depth(&gate)), (1, 1));
    drop(first);
    drop(high.await.unwrap());
    assert_eq!(running(&gate), 0);
}

#[tokio::test]
async fn nobody_waits_for_longer_than_asked() {
    let (gate, _) = gate(1, 8);
    let _first = gate.admit(ticket(0)).await.unwrap();
    let wait = Duration::from_millis(20);
    let refused = gate.admit(Ticket { wait: Some(wait), ..ticket(0) }).await.err();
    assert_eq!(refused, Some(Refused::TimedOut { wait, retry_s: 1 }));
    assert_eq!((running(&gate), depth(&gate)), (1, 0));
    let limits = AdmissionLimits { queue_timeout: wait, ..gate.0.limits };
    let gate = Admission::new(limits, || usize::MAX, Arc::new(Metrics::new()));
    let _first = gate.admit(ticket(0)).await.unwrap();
    let longer = Some(Duration::from_secs(3_600));
    let refused = gate.admit(Ticket { wait: longer, ..ticket(0) }).await.err();
    assert_eq!(refused, Some(Refused::TimedOut { wait, retry_s: 1 }), "the client can only make it less");
}

#[tokio::test]
async fn the_depth_of_all_gates_is_told() {
    let (one, _) = gate(1, 8);
    let two = Admission::new(one.0.limits, || usize::MAX, one.0.metrics.clone());
    let depth = || {
        let text = one.0.metrics.encode();
        let lines =
            text.lines().filter_map(|line| line.strip_prefix("kelvin_router_queue_depth{class=\"short\"} "));
        lines.map(|value| value.parse::<i64>().unwrap()).sum::<i64>()
    };
    let (first, other) = (one.admit(ticket(0)).await.unwrap(), two.admit(ticket(0)).await.unwrap());
    let mut waits = [Box::pin(one.admit(ticket(0))), Box::pin(two.admit(ticket(0)))];
    for waits in &mut waits {
        assert!(waits.as_mut().now_or_never().is_none());
    }
    assert_eq!(depth(), 2);
    two.look();
    assert_eq!(depth(), 2);
    drop(other);
    one.look();
    assert_eq!(depth(), 1, "the other's waits no more");
    drop(first);
    assert_eq!(depth(), 0);
}

/// One waits behind the one that runs, as if a place became free every ten seconds.
fn slow(gate: &Admission) {
    let mut queue = gate.0.queue.lock();
    let mut arrive = |capacity| {
        let ask = Ask { class: Class::Short, priority: 0, places: 1, tokens: 10 };
        queue.arrive(ask, capacity, oneshot::channel().0)
    };
    assert!(matches!((arrive(8), arrive(8)), (Arrival::Begun, Arrival::Begun)));
    assert!(matches!(arrive(1), Arrival::Waits(_, None)));
    for now in [0, 10] {
        queue.end(Class::Short, 1, Duration::from_secs(now));
    }
}

#[tokio::test]
async fn a_hopeless_request_takes_nobodys_place() {
    let (gate, places) = gate(8, 2);
    places.store(1, Ordering::Relaxed);
    let _first = gate.admit(ticket(0)).await.unwrap();
    slow(&gate);
    let mut low = Box::pin(gate.admit(ticket(0)));
    assert!(low.as_mut().now_or_never().is_none());
    let wait = Duration::from_secs(1);
    let refused = gate.admit(Ticket { wait: Some(wait), ..ticket(1) }).await.err();
    assert_eq!(refused, Some(Refused::Late { expected: Duration::from_secs(10), wait, retry_s: 10 }));
    assert!(low.as_mut().now_or_never().is_none(), "it waits on");
    assert_eq!((running(&gate), depth(&gate)), (1, 2));
}

#[tokio::test]
async fn places_follow_the_capacity() {
    let (gate, places) = gate(3, 8);
    places.store(1, Ordering::Relaxed);
    let first = gate.admit(ticket(0)).await.unwrap();
    let mut others: Vec<_> = (0..3).map(|_| Box::pin(gate.admit(ticket(0)))).collect();
    for waits in &mut others {
        assert!(waits.as_mut().now_or_never().is_none());
    }
    places.store(100, Ordering::Relaxed);
    gate.look();
    assert_eq!((running(&gate), depth(&gate)), (3, 1), "as many as are allowed at all");
    drop(first);
    assert_eq!(join_all(others).await.into_iter().filter(Result::is_ok).count(), 3);
}

#[tokio::test]
async fn classes_are_told_apart_by_uncached_tokens() {
    let (gate, _) = gate(4, 8);
    let long = || gate.admit(Ticket { uncached_tokens: 1_000, ..ticket(0) });
    let first = long().await.unwrap();
    let mut second = Box::pin(long());
    assert!(second.as_mut().now_or_never().is_none());
    let _short = gate.admit(ticket(0)).await.unwrap();
    drop(first);
    second.await.unwrap();
}
