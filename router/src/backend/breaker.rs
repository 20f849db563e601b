//! A circuit breaker: an engine's server that fails gets no requests for a while, then one at a time.
//!
//! ```text
//!            FAILURES in a row                   pause over                 one request
//!   closed ───────────────────► open (pause) ──────────────► half open ──────────────────► closed
//!                                  ▲                             │ it fails, pause doubles
//!                                  └─────────────────────────────┘
//! ```
//! Pure: time comes in as a number.

use std::time::Duration;

/// Failures in a row that open it.
const FAILURES: u32 = 3;
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// One server's breaker.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Breaker {
    state: State,
    /// Of the next time that it opens.
    pause: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Closed {
        failures: u32,
    },
    Open {
        until: Duration,
    },
    /// One request is under way, or may be; another one after `until`, should the first say nothing.
    HalfOpen {
        taken: bool,
        until: Duration,
    },
}

/// What a breaker's state is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Circuit {
    Closed,
    Open,
    HalfOpen,
}

impl Circuit {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

impl Default for Breaker {
    fn default() -> Self {
        Self { state: State::Closed { failures: 0 }, pause: PAUSE_MIN }
    }
}

impl Breaker {
    /// Whether a request may go there at `now`.
    pub(crate) fn admits(&self, now: Duration) -> bool {
        match self.state {
            State::Closed { .. } => true,
            State::Open { until } => now >= until,
            State::HalfOpen { taken, until } => !taken || now >= until,
        }
    }

    /// A request goes there.
    pub(crate) fn take(&mut self, now: Duration) {
        if !matches!(self.state, State::Closed { .. }) {
            self.state = State::HalfOpen { taken: true, until: now + self.pause };
        }
    }

    /// A whole answer came, whatever it says.
    pub(crate) fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// None came, or a part of it. Returns whether this opened it.
    pub(crate) fn failed(&mut self, now: Duration) -> bool {
        match self.state {
            State::Closed { failures } if failures + 1 < FAILURES => {
                self.state = State::Closed { failures: failures + 1 };
                false
            }
            // Requests that were under way when it opened say nothing new.
            State::Open { .. } => false,
            State::Closed { .. } | State::HalfOpen { .. } => {
                self.state = State::Open { until: now + self.pause };
                self.pause = (self.pause * 2).min(PAUSE_MAX);
                true
            }
        }
    }

    pub(crate) fn circuit(&self, now: Duration) -> Circuit {
        match self.state {
            State::Closed { .. } => Circuit::Closed,
            State::Open { until } if now < until => Circuit::Open,
            State::Open { .. } | State::HalfOpen { .. } => Circuit::HalfOpen,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn failures_in_a_row_open_it_and_one_success_closes_it() {
        let mut breaker = Breaker::default();
        assert!(!breaker.failed(s(0)));
        assert!(!breaker.failed(s(0)));
        breaker.succeeded();
        assert!(!breaker.failed(s(0)));
        assert!(!breaker.failed(s(0)));
        assert!(breaker.failed(s(10)));
        assert!(!breaker.admits(s(10)));
        assert_eq!(breaker.circuit(s(10)), Circuit::Open);
        assert!(breaker.admits(s(11)));
        breaker.take(s(11));
        assert!(!breaker.admits(s(11)), "one at a time");
        breaker.succeeded();
        assert_eq!(breaker.circuit(s(11)), Circuit::Closed);
    }

    #[test]
    fn a_pause_doubles_to_its_most() {
        let mut breaker = Breaker::default();
        let mut now = s(0);
        for _ in 0..FAILURES {
            breaker.failed(now);
        }
        let mut pauses = Vec::new();
        for _ in 0..7 {
            let State::Open { until } = breaker.state else { panic!("{breaker:?}") };
            pauses.push((until - now).as_secs());
            now = until;
            breaker.take(now);
            assert!(breaker.failed(now));
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn a_trial_that_says_nothing_does_not_close_the_door_for_good() {
        let mut breaker = Breaker::default();
        (0..FAILURES).for_each(|_| {
            breaker.failed(s(0));
        });
        breaker.take(s(1));
        assert!(!breaker.admits(s(2)));
        assert!(breaker.admits(s(3)), "after another pause");
    }

    #[test]
    fn late_failures_of_an_open_one_change_nothing() {
        let mut breaker = Breaker::default();
        (0..FAILURES).for_each(|_| {
            breaker.failed(s(0));
        });
        let before = breaker.clone();
        assert!(!breaker.failed(s(0)));
        assert_eq!(breaker, before);
    }
}
