//! Virtual time: events in the order in which they are due.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Virtual nanoseconds since the start of a replay.
pub(crate) type Nanos = u64;

/// Nanoseconds of so many milliseconds, at least one if it is any time at all.
pub(crate) fn nanos(milliseconds: f64) -> Nanos {
    (milliseconds * 1e6).ceil() as Nanos
}

/// What is due when; the clock stands at the event that was taken last.
///
/// Events of one moment come out as they went in, so that a replay is the same each time.
#[derive(Debug)]
pub(crate) struct EventQueue<E> {
    heap: BinaryHeap<Reverse<(Nanos, u64, Slot<E>)>>,
    next_number: u64,
    now: Nanos,
}

/// An event, which has no say in the order.
#[derive(Debug)]
struct Slot<E>(E);

impl<E> PartialEq for Slot<E> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl<E> Eq for Slot<E> {}

impl<E> PartialOrd for Slot<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Slot<E> {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

impl<E> EventQueue<E> {
    pub(crate) fn new() -> Self {
        Self { heap: BinaryHeap::new(), next_number: 0, now: 0 }
    }

    /// Plans an event, not before now.
    pub(crate) fn push(&mut self, at: Nanos, event: E) {
        assert!(at >= self.now, "an event at {at} is planned at {}", self.now);
        self.heap.push(Reverse((at, self.next_number, Slot(event))));
        self.next_number += 1;
    }

    /// The next event; the clock moves there.
    pub(crate) fn pop(&mut self) -> Option<(Nanos, E)> {
        let Reverse((at, _, Slot(event))) = self.heap.pop()?;
        self.now = at;
        Some((at, event))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The oracle is a list that is sorted by time, stably.
        #[test]
        fn events_come_in_order_of_time_and_then_of_planning(
            steps in prop::collection::vec(prop::option::weighted(0.6, 0_u64..20), 0..200)
        ) {
            let mut queue = EventQueue::new();
            let mut oracle: Vec<(Nanos, usize)> = Vec::new();
            let mut now = 0;
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Some(wait) => {
                        queue.push(now + wait, number);
                        oracle.push((now + wait, number));
                        oracle.sort_by_key(|(at, _)| *at);
                    }
                    None => {
                        let expected = (!oracle.is_empty()).then(|| oracle.remove(0));
                        prop_assert_eq!(queue.pop(), expected);
                        now = expected.map_or(now, |(at, _)| at);
                    }
                }
            }
            while let Some(event) = queue.pop() {
                prop_assert_eq!(event, oracle.remove(0));
            }
            prop_assert!(oracle.is_empty());
        }
    }

    #[test]
    #[should_panic(expected = "is planned at")]
    fn the_past_stays_as_it_is() {
        let mut queue = EventQueue::new();
        queue.push(5, ());
        queue.pop();
        queue.push(4, ());
    }

    #[test]
    fn a_part_of_a_nanosecond_is_one() {
        assert_eq!((nanos(0.0), nanos(1e-9), nanos(1.5)), (0, 1, 1_500_000));
    }
}
