//! Cases, and any course of events against a list that is searched.

use proptest::prelude::*;

use super::*;

/// Of four places.
const LONG_MAX: usize = 2;
const LIMITS: Limits = Limits { waiting_max: 8, long_max: Some(LONG_MAX) };

fn ask(class: Class, priority: i32, places: usize) -> Ask {
    let tokens = if class == Class::Long { 8_000 } else { 100 };
    Ask { class, priority, places, tokens }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A queue of names; all its places are taken by short requests.
fn full(capacity: usize) -> Queue<&'static str> {
    let mut queue = Queue::new(LIMITS);
    for _ in 0..capacity {
        assert!(matches!(queue.arrive(ask(Class::Short, 0, 1), capacity, "first"), Arrival::Begun));
    }
    queue
}

#[track_caller]
fn waits(queue: &mut Queue<&'static str>, ask: Ask, name: &'static str) -> u64 {
    match queue.arrive(ask, queue.running(), name) {
        Arrival::Waits(number, None) => number,
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn the_higher_priority_goes_first_and_then_the_older() {
    let mut queue = full(4);
    waits(&mut queue, ask(Class::Short, 0, 1), "a");
    waits(&mut queue, ask(Class::Short, 5, 1), "b");
    waits(&mut queue, ask(Class::Long, 5, 1), "c");
    waits(&mut queue, ask(Class::Short, 0, 1), "d");
    assert!(queue.begin(4).is_empty());
    for expected in ["b", "c", "a", "d"] {
        queue.end(Class::Short, 1, seconds(1));
        assert_eq!(queue.begin(4), [expected]);
    }
}

#[test]
fn classes_share_by_what_they_cost() {
    let mut queue = full(1);
    let limits = Limits { waiting_max: 400, long_max: None };
    queue.limits = limits;
    for _ in 0..100 {
        waits(&mut queue, ask(Class::Long, 0, 1), "long");
    }
    for _ in 0..200 {
        waits(&mut queue, ask(Class::Short, 0, 1), "short");
    }
    let (mut longs, mut shorts, mut last) = (0, 0, Class::Short);
    for _ in 0..120 {
        queue.end(last, 1, seconds(1));
        match queue.begin(1)[..] {
            ["long"] => (longs, last) = (longs + 1, Class::Long),
            ["short"] => (shorts, last) = (shorts + 1, Class::Short),
            ref other => panic!("{other:?}"),
        }
    }
    // 8,256 tokens against 356: one long prompt to 23 short ones.
    assert!((4..=7).contains(&longs), "{longs} long and {shorts} short");
}

#[test]
fn long_prompts_leave_places_to_short_ones() {
    let mut queue = Queue::new(LIMITS);
    for _ in 0..2 {
        assert!(matches!(queue.arrive(ask(Class::Long, 0, 1), 4, "l"), Arrival::Begun));
    }
    waits(&mut queue, ask(Class::Long, 9, 1), "third");
    // Waiting ones that may not be begun block nobody.
    waits(&mut queue, ask(Class::Short, 0, 1), "short");
    assert_eq!(queue.begin(4), ["short"]);
    queue.end(Class::Long, 1, seconds(1));
    assert_eq!(queue.begin(4), ["third"]);
}

#[test]
fn several_places_are_waited_for() {
    let mut queue = full(4);
    waits(&mut queue, ask(Class::Short, 0, 3), "three");
    waits(&mut queue, ask(Class::Short, 0, 1), "one");
    for _ in 0..2 {
        queue.end(Class::Short, 1, seconds(1));
        assert!(queue.begin(4).is_empty(), "nobody overtakes");
    }
    queue.end(Class::Short, 1, seconds(1));
    assert_eq!(queue.begin(4), ["three"]);
    // More than there are is begun alone: the workers may have become fewer.
    let mut queue = full(1);
    waits(&mut queue, ask(Class::Short, 0, 3), "three");
    queue.end(Class::Short, 1, seconds(1));
    assert_eq!(queue.begin(1), ["three"]);
}

#[test]
fn a_full_room_is_left_by_the_last_of_a_lower_priority() {
    let mut queue = full(1);
    for _ in 0..7 {
        waits(&mut queue, ask(Class::Short, 0, 1), "x");
    }
    waits(&mut queue, ask(Class::Short, 0, 1), "last");
    assert!(queue.refuses(Class::Short, 0) && !queue.refuses(Class::Short, 1));
    assert!(matches!(queue.arrive(ask(Class::Short, 0, 1), 1, "y"), Arrival::Full));
    let Arrival::Waits(_, Some("last")) = queue.arrive(ask(Class::Short, 1, 1), 1, "high") else { panic!() };
    // Long prompts have half of the room.
    let mut queue = full(1);
    for _ in 0..4 {
        waits(&mut queue, ask(Class::Long, 0, 1), "long");
    }
    assert!(matches!(queue.arrive(ask(Class::Long, 0, 1), 1, "y"), Arrival::Full));
    waits(&mut queue, ask(Class::Short, -3, 1), "low");
    let Arrival::Waits(_, Some("long")) = queue.arrive(ask(Class::Long, 1, 1), 1, "high") else { panic!() };
    assert_eq!((queue.waiting(Class::Short), queue.waiting(Class::Long)), (1, 4));
    // And no room at all is a queue that there is not.
    let mut queue = Queue::new(Limits { waiting_max: 0, long_max: None });
    assert!(matches!(queue.arrive(ask(Class::Long, 0, 1), 1, "x"), Arrival::Begun));
    assert!(matches!(queue.arrive(ask(Class::Long, 9, 1), 1, "y"), Arrival::Full));
}

#[test]
fn the_wait_is_judged_by_the_last_places() {
    let mut queue = full(4);
    assert_eq!(queue.expected_wait(0), None);
    for _ in 0..6 {
        waits(&mut queue, ask(Class::Short, 0, 1), "x");
    }
    for now in [10, 12, 14] {
        queue.end(Class::Short, 1, seconds(now));
        queue.begin(4);
    }
    assert_eq!(queue.expected_wait(0), Some(seconds(8)), "three wait, and a place comes every 2 s");
    assert_eq!(queue.expected_wait(1), Some(seconds(2)));
}

#[test]
fn a_slow_time_is_forgotten_once_nobody_waits() {
    let mut queue = full(1);
    for _ in 0..2 {
        waits(&mut queue, ask(Class::Short, 0, 1), "x");
    }
    for now in [10, 16] {
        queue.end(Class::Short, 1, seconds(now));
        queue.begin(1);
    }
    assert_eq!(queue.expected_wait(0), Some(seconds(6)));
    queue.end(Class::Short, 1, seconds(17));
    assert_eq!(queue.expected_wait(0), None);
}

#[test]
fn who_would_have_to_wait_is_told_from_who_would_not() {
    let mut queue = full(1);
    let (low, high) = (ask(Class::Short, 0, 1), ask(Class::Short, 1, 1));
    assert!(queue.makes_wait(&low, 1) && !queue.makes_wait(&low, 2));
    waits(&mut queue, ask(Class::Short, 0, 3), "three");
    assert!(queue.makes_wait(&low, 2), "it may not overtake");
    assert!(queue.makes_wait(&high, 1) && !queue.makes_wait(&high, 2), "it may");
}

/// What was asked, in the order in which it came.
struct Model {
    running: Vec<Ask>,
    waiting: Vec<(u64, Ask)>,
}

#[derive(Debug, Clone)]
enum Op {
    Arrive(Ask),
    /// The request of this index, modulo those that run.
    End(usize),
    Leave(usize),
    Capacity(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let class = prop_oneof![Just(Class::Short), Just(Class::Long)];
    let asked = (class, -1..2i32, 1..4usize, 0..9_000u64)
        .prop_map(|(class, priority, places, tokens)| Op::Arrive(Ask { class, priority, places, tokens }));
    prop_oneof![
        4 => asked,
        4 => (0..64usize).prop_map(Op::End),
        1 => (0..64usize).prop_map(Op::Leave),
        1 => (0..6usize).prop_map(Op::Capacity),
    ]
}

impl Model {
    fn places(&self, of: impl Fn(&Ask) -> bool) -> usize {
        self.running.iter().filter(|ask| of(ask)).map(|ask| ask.places).sum()
    }

    /// Whether the queue's choice is one that its rules allow.
    fn begun(&mut self, number: u64, capacity: usize) {
        let index = self.waiting.iter().position(|(other, _)| *other == number).expect("it waits");
        let ask = self.waiting[index].1;
        assert!(self.may_begin(&ask, capacity), "it does not fit: {ask:?}");
        for (before, other) in self.waiting.iter().take(index) {
            let equal = other.class == ask.class && other.priority == ask.priority;
            assert!(!equal, "{before} was overtaken by {number}");
        }
        for other in self.heads() {
            let allowed = self.class_allows(&other);
            assert!(!allowed || other.priority <= ask.priority, "{other:?} ought to go before {ask:?}");
        }
        self.waiting.remove(index);
        self.running.push(ask);
    }

    /// The next of each class.
    fn heads(&self) -> impl Iterator<Item = Ask> {
        let of = |class| self.waiting.iter().filter(move |(_, ask)| ask.class == class);
        let first = move |class| of(class).min_by_key(|(number, ask)| (Reverse(ask.priority), *number));
        Class::ALL.into_iter().filter_map(first).map(|(_, ask)| *ask)
    }

    fn class_allows(&self, ask: &Ask) -> bool {
        let long = self.places(|ask| ask.class == Class::Long);
        ask.class == Class::Short || long == 0 || long + ask.places <= LONG_MAX
    }

    fn may_begin(&self, ask: &Ask, capacity: usize) -> bool {
        let running = self.places(|_| true);
        self.class_allows(ask) && (running == 0 || running + ask.places <= capacity)
    }
}

proptest! {
    #[test]
    fn any_course_keeps_the_rules(ops in prop::collection::vec(op(), 1..200)) {
        let mut queue: Queue<u64> = Queue::new(LIMITS);
        let mut model = Model { running: Vec::new(), waiting: Vec::new() };
        let mut capacity = 4;
        let mut numbers = 0;
        for (step, op) in ops.into_iter().enumerate() {
            match op {
                Op::Arrive(ask) => {
                    // The name of a request is its number: every one that waits takes the next.
                    match queue.arrive(ask, capacity, numbers + 1) {
                        Arrival::Begun => {
                            assert!(model.waiting.is_empty() && model.may_begin(&ask, capacity));
                            model.running.push(ask);
                        }
                        Arrival::Waits(number, displaced) => {
                            numbers += 1;
                            assert_eq!(number, numbers);
                            if let Some(displaced) = displaced {
                                let index = model.waiting.iter().position(|(other, _)| *other == displaced);
                                let (_, left) = model.waiting.remove(index.expect("it waited"));
                                assert!(left.priority < ask.priority);
                            }
                            model.waiting.push((number, ask));
                        }
                        Arrival::Full => {
                            let long = model.waiting.iter().filter(|(_, ask)| ask.class == Class::Long).count();
                            let long_full = ask.class == Class::Long && long >= LIMITS.waiting_max / 2;
                            assert!(model.waiting.len() == LIMITS.waiting_max || long_full);
                        }
                    }
                }
                Op::End(index) if !model.running.is_empty() => {
                    let ended = model.running.swap_remove(index % model.running.len());
                    queue.end(ended.class, ended.places, seconds(step as u64));
                }
                Op::Leave(index) if !model.waiting.is_empty() => {
                    let (number, _) = model.waiting.remove(index % model.waiting.len());
                    assert_eq!(queue.leave(number), Some(number));
                    assert_eq!(queue.leave(number), None);
                }
                Op::Capacity(changed) => capacity = changed,
                Op::End(_) | Op::Leave(_) => {}
            }
            for begun in queue.begin(capacity) {
                model.begun(begun, capacity);
            }
            let waiting: usize = Class::ALL.iter().map(|&class| queue.waiting(class)).sum();
            prop_assert_eq!((queue.running(), waiting), (model.places(|_| true), model.waiting.len()));
            prop_assert!(waiting <= LIMITS.waiting_max);
            // Whoever is next does not fit, or it would have been begun.
            let heads: Vec<Ask> = model.heads().filter(|ask| model.class_allows(ask)).collect();
            if let Some(best) = heads.iter().map(|ask| ask.priority).max() {
                let mut next = heads.iter().filter(|ask| ask.priority == best);
                prop_assert!(next.any(|ask| !model.may_begin(ask, capacity)));
            }
        }
    }
}
