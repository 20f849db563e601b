//! Recent: the last requests, and of the last ten minutes the slowest and those that missed most.
//!
//! A busy store has a thousand requests in a second, and the one that somebody asks about was one in a thousand:
//! so the extremes have lists of their own, which others do not push out.
//!
//! Of tens of thousands a second, the newest thousand are those of a moment that has passed before anybody looks, and to
//! keep each of them would cost half a percent of a store's work. So who has that many asks [`Recent::wants`] first.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use parking_lot::Mutex;

const RECENT_MAX: usize = 1024;
const EXTREMES_MAX: usize = 32;
const EXTREMES_FOR: Duration = Duration::from_secs(600);

/// Under steady load, a request that is no extreme is kept this often.
const KEPT_EVERY_NS: u64 = 1_000_000_000 / 256;
/// After a rest, so many are kept at once.
const KEPT_AT_ONCE: u64 = RECENT_MAX as u64;

struct Entry<T> {
    at: Duration,
    score: u64,
    item: T,
}

/// The highest scores of the last ten minutes, in no order.
struct Extremes<T> {
    entries: Vec<Entry<T>>,
    /// Until then, a score that is not above the first is none of them.
    least: (u64, Duration),
}

impl<T> Default for Extremes<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), least: (0, Duration::ZERO) }
    }
}

impl<T: Clone> Extremes<T> {
    fn push(&mut self, at: Duration, score: u64, item: &T) {
        let (least, until) = self.least;
        if score == 0 || score <= least && at < until {
            return;
        }
        let entry = || Entry { at, score, item: item.clone() };
        if self.entries.len() < EXTREMES_MAX {
            return self.entries.push(entry());
        }
        let rank = |old: &Entry<T>| if at.saturating_sub(old.at) > EXTREMES_FOR { 0 } else { old.score };
        if let Some(least) = self.entries.iter_mut().min_by_key(|old| rank(old))
            && rank(least) < score
        {
            *least = entry();
        }
        let ranks = self.entries.iter().map(rank);
        let oldest = self.entries.iter().map(|entry| entry.at).min().unwrap_or_default();
        self.least = (ranks.min().unwrap_or(0), oldest + EXTREMES_FOR);
    }

    fn list(&self, now: Duration) -> Vec<T> {
        let mut fresh: Vec<_> =
            self.entries.iter().filter(|entry| now.saturating_sub(entry.at) <= EXTREMES_FOR).collect();
        fresh.sort_by_key(|entry| std::cmp::Reverse((entry.score, entry.at)));
        fresh.into_iter().map(|entry| entry.item.clone()).collect()
    }
}

struct Inner<T> {
    ring: VecDeque<T>,
    slowest: Extremes<T>,
    worst: Extremes<T>,
}

/// What is kept; see the module. At most 1,088 items.
pub struct Recent<T> {
    inner: Mutex<Inner<T>>,
    /// [`Extremes::least`] of both lists, nanoseconds: what a request is compared with, without the lock.
    slowest: Least,
    worst: Least,
    /// Until when, in nanoseconds, requests have been kept; ahead of the clock if there were many.
    kept_until: AtomicU64,
}

/// Threads that race may see one value new and the other old: then an item more or fewer is kept.
#[derive(Default)]
struct Least {
    score: AtomicU64,
    until_ns: AtomicU64,
}

impl Least {
    fn set(&self, (score, until): (u64, Duration)) {
        self.score.store(score, Relaxed);
        self.until_ns.store(until.as_nanos() as u64, Relaxed);
    }

    fn is_below(&self, score: u64, at_ns: u64) -> bool {
        score > self.score.load(Relaxed) || score > 0 && at_ns >= self.until_ns.load(Relaxed)
    }
}

/// The lists at one moment.
pub struct RecentLists<T> {
    /// The newest first.
    pub recent: Vec<T>,
    /// The slowest first.
    pub slowest: Vec<T>,
    /// Those that missed most first.
    pub worst: Vec<T>,
}

impl<T> Default for Recent<T> {
    fn default() -> Self {
        let inner = Inner { ring: VecDeque::new(), slowest: Extremes::default(), worst: Extremes::default() };
        Self {
            inner: Mutex::new(inner),
            slowest: Least::default(),
            worst: Least::default(),
            kept_until: AtomicU64::new(0),
        }
    }
}

impl<T> std::fmt::Debug for Recent<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recent")
    }
}

impl<T: Clone> Recent<T> {
    /// Whether an item like that says something new: it is an extreme, or there were not that many.
    pub fn wants(&self, at: Duration, took_us: u64, missed: u64) -> bool {
        let at_ns = at.as_nanos() as u64;
        let kept_until = self.kept_until.load(Relaxed).max(at_ns);
        if kept_until - at_ns <= (KEPT_AT_ONCE - 1) * KEPT_EVERY_NS {
            self.kept_until.store(kept_until + KEPT_EVERY_NS, Relaxed);
            return true;
        }
        self.slowest.is_below(took_us, at_ns) || self.worst.is_below(missed, at_ns)
    }

    /// Adds an item of the moment `at`, which took so long and missed so much.
    pub fn push(&self, at: Duration, took_us: u64, missed: u64, item: T) {
        let mut inner = self.inner.lock();
        inner.slowest.push(at, took_us, &item);
        inner.worst.push(at, missed, &item);
        self.slowest.set(inner.slowest.least);
        self.worst.set(inner.worst.least);
        if inner.ring.len() == RECENT_MAX {
            inner.ring.pop_front();
        }
        inner.ring.push_back(item);
    }

    /// The lists, of the recent ones at most `recent_max`.
    pub fn lists(&self, now: Duration, recent_max: usize) -> RecentLists<T> {
        let inner = self.inner.lock();
        RecentLists {
            recent: inner.ring.iter().rev().take(recent_max).cloned().collect(),
            slowest: inner.slowest.list(now),
            worst: inner.worst.list(now),
        }
    }

    /// The newest item that is so.
    pub fn find(&self, mut is_it: impl FnMut(&T) -> bool) -> Option<T> {
        let inner = self.inner.lock();
        let extremes = || inner.slowest.entries.iter().chain(&inner.worst.entries).map(|entry| &entry.item);
        inner.ring.iter().rev().chain(extremes()).find(|item| is_it(item)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extremes_outlast_the_many_for_ten_minutes() {
        let recent = Recent::default();
        let at = Duration::from_secs;
        recent.push(at(0), 1_000_000, 0, 0u32);
        recent.push(at(0), 10, 500, 1);
        (2..5000).for_each(|number| recent.push(at(1), 20, 3, number));
        let lists = recent.lists(at(2), 10);
        assert_eq!(lists.recent, (4990..5000).rev().collect::<Vec<_>>());
        assert_eq!((lists.slowest[0], lists.slowest.len()), (0, EXTREMES_MAX));
        assert_eq!((lists.worst[0], lists.worst.len()), (1, EXTREMES_MAX));
        assert!(recent.find(|item| *item == 0).is_some() && recent.find(|item| *item == 3000).is_none());
        assert!(recent.lists(at(602), 10).slowest.is_empty());
        recent.push(at(602), 1, 0, 9);
        assert_eq!(recent.lists(at(602), 1).slowest[0], 9, "an old one makes room");
        assert_eq!(recent.inner.lock().ring.len(), RECENT_MAX);
    }

    #[test]
    fn of_too_many_all_extremes_are_wanted_and_some_others() {
        let recent = Recent::default();
        // A hundred thousand a second, for three seconds.
        let push = |number: u64, took_us: u64, missed: u64| {
            let at = Duration::from_micros(10 * number);
            let wanted = recent.wants(at, took_us, missed);
            if wanted {
                recent.push(at, took_us, missed, number);
            }
            wanted
        };
        let kept = (0..300_000).filter(|number| push(*number, 20, 0)).count();
        assert!((RECENT_MAX + 700..=RECENT_MAX + 900).contains(&kept), "{kept} were kept");
        assert!(push(300_000, 21, 0) && push(300_001, 20, 1), "each is the first of its kind");
        let lists = recent.lists(Duration::from_secs(3), 2);
        assert_eq!(
            (lists.slowest[0], &lists.worst[..], &lists.recent[..]),
            (300_000, &[300_001][..], &[300_001, 300_000][..])
        );
        assert!(!push(300_002, 20, 0), "one like the others");
        // A second later.
        assert!((0..250).all(|number| push(400_000 + number, 20, 0)));
    }
}
