//! Who is begun next: a pure structure, told the time.
//!
//! # Overview
//! A request takes `places` of a capacity; those that find none wait. Of the waiting the one with the highest
//! priority goes first. Among equal priorities the two [`Class`]es share what the workers compute: each has a tag
//! that grows by what its requests cost, and the class with the lower tag is next (start-time fair queueing). Within
//! a class the older goes first. So long prompts do not starve short ones, nor the other way round.
//!
//! Long prompts have at most so many places, half of them as a rule, and half of the waiting room.
//!
//! # Invariants
//! - Nobody overtakes an equal of the class, and nobody waits while there is a place that it may have and no better
//!   one wants: a request for several places is waited for once it is next.
//! - In a full room a request takes the place of the last of a lower priority, or is refused.
//! - Higher priorities can starve lower ones, up to their deadlines: that is what they are for.

use std::{cmp::Reverse, collections::BTreeMap, time::Duration};

/// What every request costs beside its prompt, in tokens: its answer.
const ANSWER_TOKENS: u64 = 256;
/// Weight of a new interval between two places that became free: the last ten or so count.
const WEIGHT: f64 = 0.1;

/// Kinds of requests that are kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Class {
    /// Few tokens to compute before the first one comes out.
    Short,
    /// Many.
    Long,
}

impl Class {
    pub(crate) const ALL: [Self; 2] = [Self::Short, Self::Long];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::Long => "long",
        }
    }
}

/// Bounds that do not change.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Requests that wait, at most.
    pub(super) waiting_max: usize,
    /// Places that long prompts have at once, at most; half of the capacity without. One is always begun.
    pub(super) long_max: Option<usize>,
}

/// A request for places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) class: Class,
    /// The higher, the sooner.
    pub(super) priority: i32,
    /// At least one, and not more than there can ever be.
    pub(super) places: usize,
    /// Prompt tokens that have to be computed.
    pub(super) tokens: u64,
}

/// What becomes of a request that comes.
#[derive(Debug)]
pub(super) enum Arrival<T> {
    /// It has its places.
    Begun,
    /// It waits, under this number; somebody else had to leave for it.
    Waits(u64, Option<T>),
    /// No room is left to wait in.
    Full,
}

#[derive(Debug)]
struct Waiting<T> {
    ask: Ask,
    /// Who is told.
    told: T,
}

/// The higher priority first, then the older.
type Turn = (Reverse<i32>, u64);

/// Requests that have places, and those that wait. See the module.
#[derive(Debug)]
pub(super) struct Queue<T> {
    limits: Limits,
    running: [usize; 2],
    waiting: [BTreeMap<Turn, Waiting<T>>; 2],
    /// Priority of each that waits, by its number.
    turns: BTreeMap<u64, (Class, i32)>,
    /// Tags of the classes, and that of the request begun last, in tokens.
    tags: [u64; 2],
    tag: u64,
    next: u64,
    /// When a place became free last while somebody waited, and how long that takes on average, seconds.
    freed: Option<Duration>,
    interval: Option<f64>,
}

impl<T> Queue<T> {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            running: [0; 2],
            waiting: [BTreeMap::new(), BTreeMap::new()],
            turns: BTreeMap::new(),
            tags: [0; 2],
            tag: 0,
            next: 0,
            freed: None,
            interval: None,
        }
    }

    pub(super) fn waiting(&self, class: Class) -> usize {
        self.waiting[class as usize].len()
    }

    /// Places taken.
    pub(super) fn running(&self) -> usize {
        self.running.iter().sum()
    }

    /// How long a request that comes now will wait, judged by how fast places have become free of late; `None`
    /// before that is known.
    pub(super) fn expected_wait(&self, priority: i32) -> Option<Duration> {
        let before = self.waiting.iter().flatten().filter(|((Reverse(other), _), _)| *other >= priority);
        let places: usize = before.map(|(_, waiting)| waiting.ask.places).sum();
        let seconds = self.interval? * (places + 1) as f64;
        Duration::try_from_secs_f64(seconds).ok()
    }

    /// Whether there is no room for a request of this class and priority, not even in another's place.
    pub(super) fn refuses(&self, class: Class, priority: i32) -> bool {
        let (room, lower) = self.room(class, priority);
        !room && lower.is_none()
    }

    /// Whether a request that comes now would have to wait, though everybody was begun who could be.
    pub(super) fn makes_wait(&self, ask: &Ask, capacity: usize) -> bool {
        let key = (Reverse(ask.priority), self.tag_of(ask.class));
        let first = self.first(capacity).map(|(class, (priority, _))| (priority, self.tags[class as usize]));
        let own = self.waiting[ask.class as usize].first_key_value();
        let is_behind = first.is_some_and(|first| first <= key) || own.is_some_and(|(own, _)| own.0 <= key.0);
        is_behind || !self.fits(ask, capacity)
    }

    /// Takes a request in; `told` is given back when it is begun later, or has to leave. What it waits for may have
    /// become free: [`Queue::begin`] is to be called next.
    pub(super) fn arrive(&mut self, ask: Ask, capacity: usize, told: T) -> Arrival<T> {
        if self.turns.is_empty() && self.fits(&ask, capacity) {
            self.take(&ask);
            return Arrival::Begun;
        }
        let (room, lower) = self.room(ask.class, ask.priority);
        let displaced = match (room, lower) {
            (true, _) => None,
            (false, Some(lower)) => self.leave(lower),
            (false, None) => return Arrival::Full,
        };
        let class = ask.class as usize;
        self.tags[class] = self.tag_of(ask.class);
        self.next += 1;
        self.turns.insert(self.next, (ask.class, ask.priority));
        self.waiting[class].insert((Reverse(ask.priority), self.next), Waiting { ask, told });
        Arrival::Waits(self.next, displaced)
    }

    /// Gives places to those that are next, as far as the capacity goes; they are told.
    pub(super) fn begin(&mut self, capacity: usize) -> Vec<T> {
        let mut begun = Vec::new();
        while let Some((class, turn)) = self.first(capacity) {
            let running = self.running();
            let waiting = &mut self.waiting[class as usize];
            let fits = |next: &Waiting<T>| running == 0 || running + next.ask.places <= capacity;
            if !waiting.get(&turn).is_some_and(fits) {
                break;
            }
            let Some(next) = waiting.remove(&turn) else { break };
            self.turns.remove(&turn.1);
            self.take(&next.ask);
            self.tag = self.tags[class as usize];
            self.tags[class as usize] += next.ask.tokens.saturating_add(ANSWER_TOKENS);
            begun.push(next.told);
        }
        begun
    }

    /// Gives places back. [`Queue::begin`] is to be called next.
    pub(super) fn end(&mut self, class: Class, places: usize, now: Duration) {
        self.running[class as usize] -= places;
        if self.turns.is_empty() {
            // Nobody waited for it: it says nothing about how fast places become free. Nor does what was seen before
            // this, which would refuse those who do not wait that long for ever.
            (self.freed, self.interval) = (None, None);
            return;
        }
        if let Some(freed) = self.freed.replace(now) {
            let interval = now.saturating_sub(freed).as_secs_f64() / places.max(1) as f64;
            let average = self.interval.get_or_insert(interval);
            *average += WEIGHT * (interval - *average);
        }
    }

    /// Forgets one that waits; `None` if it does not, since it was begun.
    pub(super) fn leave(&mut self, number: u64) -> Option<T> {
        let (class, priority) = self.turns.remove(&number)?;
        let left = self.waiting[class as usize].remove(&(Reverse(priority), number));
        left.map(|waiting| waiting.told)
    }

    /// The tag of a class once one more of it waits.
    fn tag_of(&self, class: Class) -> u64 {
        let tag = self.tags[class as usize];
        // A class that had nothing to do has no claim on what it did not use.
        if self.waiting[class as usize].is_empty() { tag.max(self.tag) } else { tag }
    }

    fn take(&mut self, ask: &Ask) {
        self.running[ask.class as usize] += ask.places;
    }

    fn fits(&self, ask: &Ask, capacity: usize) -> bool {
        let running = self.running();
        self.class_allows(ask, capacity) && (running == 0 || running + ask.places <= capacity)
    }

    fn class_allows(&self, ask: &Ask, capacity: usize) -> bool {
        let running = self.running[ask.class as usize];
        let max = self.limits.long_max.unwrap_or(capacity / 2);
        ask.class == Class::Short || running == 0 || running + ask.places <= max
    }

    /// Who is next of those whose class may have more places.
    fn first(&self, capacity: usize) -> Option<(Class, Turn)> {
        let heads = Class::ALL.into_iter().filter_map(|class| {
            let (turn, head) = self.waiting[class as usize].first_key_value()?;
            self.class_allows(&head.ask, capacity).then_some((class, *turn))
        });
        heads.min_by_key(|&(class, (priority, number))| (priority, self.tags[class as usize], number))
    }

    /// Whether a request of this class may still wait, and who would have to leave for it else: the youngest of
    /// the lowest priority below its own.
    fn room(&self, class: Class, priority: i32) -> (bool, Option<u64>) {
        let long_max = (self.limits.waiting_max / 2).max(1);
        let long_full = class == Class::Long && self.waiting(Class::Long) >= long_max;
        let full = self.turns.len() >= self.limits.waiting_max;
        let leaves = if long_full { &self.waiting[Class::Long as usize..] } else { &self.waiting[..] };
        let last = leaves.iter().filter_map(|waiting| waiting.last_key_value());
        let last = last.map(|(turn, _)| *turn).max().filter(|(Reverse(other), _)| *other < priority);
        (!full && !long_full, last.map(|(_, number)| number))
    }
}

#[cfg(test)]
mod tests;
