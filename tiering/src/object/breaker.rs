//! A circuit breaker: after some failures in a row nobody asks any more for a while, then one asks first.
//!
//! # States
//! ```text
//!            failures in a row                      time is over, one may ask
//!  Closed ────────────────────────► Open(until) ───────────────────────────────► HalfOpen
//!    ▲                                ▲    it failed: wait twice as long, bounded    │  │
//!    │                                └─────────────────────────────────────────────┘  │
//!    └──────────────────────────────── it succeeded ────────────────────────────────────┘
//! ```
//! Answers to questions that were asked before it opened change nothing: only the one that asks first decides.
//! Time is passed in.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// When a breaker opens, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerOptions {
    /// Failures in a row that open it.
    pub failures: u32,
    /// How long it stays open the first time.
    pub open_for: Duration,
    /// It doubles with every failure after that, up to this.
    pub open_for_max: Duration,
}

impl Default for BreakerOptions {
    fn default() -> Self {
        Self { failures: 8, open_for: Duration::from_secs(1), open_for_max: Duration::from_secs(30) }
    }
}

/// Whether a breaker lets requests through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BreakerState {
    /// All.
    #[default]
    Closed,
    /// One, whose outcome decides.
    HalfOpen,
    /// None.
    Open,
}

#[derive(Debug)]
enum State {
    Closed { failures: u32 },
    Open { until: Instant, open_for: Duration },
    HalfOpen { until: Instant, open_for: Duration },
}

/// See the module.
#[derive(Debug)]
pub(super) struct Breaker {
    options: BreakerOptions,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: State,
    opens: u64,
}

impl Breaker {
    pub(super) fn new(options: BreakerOptions) -> Self {
        Self { options, inner: Mutex::new(Inner { state: State::Closed { failures: 0 }, opens: 0 }) }
    }

    /// Leave to ask, or `None` while it is open.
    pub(super) fn admit(&self, now: Instant) -> Option<Admission<'_>> {
        let mut inner = self.inner.lock();
        match inner.state {
            State::Closed { .. } => Some(Admission { breaker: self, first: false, said: false }),
            State::Open { until, open_for } if until <= now => {
                inner.state = State::HalfOpen { until, open_for };
                Some(Admission { breaker: self, first: true, said: false })
            }
            State::Open { .. } | State::HalfOpen { .. } => None,
        }
    }

    /// Whether `admit` would say yes.
    pub(super) fn admits(&self, now: Instant) -> bool {
        match self.inner.lock().state {
            State::Closed { .. } => true,
            State::Open { until, .. } => until <= now,
            State::HalfOpen { .. } => false,
        }
    }

    pub(super) fn state(&self) -> BreakerState {
        match self.inner.lock().state {
            State::Closed { .. } => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// How often it opened.
    pub(super) fn opens(&self) -> u64 {
        self.inner.lock().opens
    }

    fn open(&self, inner: &mut Inner, now: Instant, open_for: Duration) {
        inner.opens += 1;
        inner.state = State::Open { until: now + open_for, open_for };
    }
}

/// Leave to ask once. Say how it went; one that is dropped in silence was given up and counts as nothing.
#[derive(Debug)]
pub(super) struct Admission<'a> {
    breaker: &'a Breaker,
    first: bool,
    said: bool,
}

impl Admission<'_> {
    /// The other side answered.
    pub(super) fn succeeded(mut self) {
        self.said = true;
        let mut inner = self.breaker.inner.lock();
        if self.first || matches!(inner.state, State::Closed { .. }) {
            inner.state = State::Closed { failures: 0 };
        }
    }

    /// It did not, or refused everything.
    pub(super) fn failed(mut self, now: Instant) {
        self.said = true;
        let options = self.breaker.options;
        let mut inner = self.breaker.inner.lock();
        match (self.first, &mut inner.state) {
            (true, State::HalfOpen { open_for, .. }) => {
                let longer = (*open_for * 2).min(options.open_for_max).max(options.open_for);
                self.breaker.open(&mut inner, now, longer);
            }
            (false, State::Closed { failures }) => {
                *failures += 1;
                if *failures >= options.failures {
                    self.breaker.open(&mut inner, now, options.open_for);
                }
            }
            _ => {}
        }
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        if self.first && !self.said {
            let mut inner = self.breaker.inner.lock();
            if let State::HalfOpen { until, open_for } = inner.state {
                inner.state = State::Open { until, open_for };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn breaker() -> Breaker {
        Breaker::new(BreakerOptions { failures: 3, open_for: SECOND, open_for_max: 3 * SECOND })
    }

    fn fail(breaker: &Breaker, now: Instant) {
        breaker.admit(now).expect("admitted").failed(now);
    }

    #[test]
    fn opens_after_failures_in_a_row() {
        let (breaker, now) = (breaker(), Instant::now());
        for _ in 0..5 {
            fail(&breaker, now);
            fail(&breaker, now);
            breaker.admit(now).unwrap().succeeded();
        }
        assert_eq!((breaker.state(), breaker.opens()), (BreakerState::Closed, 0));
        let late = breaker.admit(now).unwrap();
        (0..3).for_each(|_| fail(&breaker, now));
        assert_eq!((breaker.state(), breaker.opens()), (BreakerState::Open, 1));
        assert!(breaker.admit(now).is_none() && !breaker.admits(now));
        late.succeeded();
        assert_eq!(breaker.state(), BreakerState::Open, "an old answer says nothing");
    }

    #[test]
    fn one_asks_first_and_decides() {
        let (breaker, now) = (breaker(), Instant::now());
        (0..3).for_each(|_| fail(&breaker, now));
        let later = now + SECOND;
        assert!(breaker.admits(later));
        let first = breaker.admit(later).expect("the time is over");
        assert!(breaker.admit(later).is_none(), "one at a time");
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        first.failed(later);
        assert!(breaker.admit(later + SECOND).is_none(), "twice as long now");
        let first = breaker.admit(later + 2 * SECOND).unwrap();
        drop(first);
        assert_eq!(breaker.state(), BreakerState::Open, "given up: the next one asks");
        fail(&breaker, later + 2 * SECOND);
        assert!(breaker.admit(later + 4 * SECOND).is_none(), "four seconds, bounded to three");
        breaker.admit(later + 5 * SECOND).unwrap().succeeded();
        assert_eq!((breaker.state(), breaker.opens()), (BreakerState::Closed, 3));
    }
}
