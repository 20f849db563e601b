//! How long to wait before a restart.

use std::time::Duration;

/// Doubling pauses with a ceiling; a child that ran long enough starts over with the first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Pause before the first restart.
    pub first: Duration,
    /// Longest pause.
    pub max: Duration,
    /// A child that was ready for this long is taken as healthy again.
    pub stable: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff {
            first: Duration::from_millis(250),
            max: Duration::from_secs(30),
            stable: Duration::from_secs(60),
        }
    }
}

impl Backoff {
    /// The pause after `ended`, the number of ends in a row without a stable time between them (1 for the
    /// first): `first * 2^(ended - 1)`, at most `max`.
    pub(super) fn pause(&self, ended: u32) -> Duration {
        let factor = 1u32.checked_shl(ended.saturating_sub(1)).unwrap_or(u32::MAX);
        self.first.saturating_mul(factor).min(self.max)
    }

    /// The new count of ends in a row for a child that ended after having been ready for `ready`.
    pub(super) fn count(&self, ended: u32, ready: Duration) -> u32 {
        if ready >= self.stable { 1 } else { ended.saturating_add(1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff {
        first: Duration::from_millis(100),
        max: Duration::from_secs(1),
        stable: Duration::from_secs(60),
    };

    #[test]
    fn pauses_double_up_to_the_ceiling() {
        let millis: Vec<_> = (1..=6).map(|ended| BACKOFF.pause(ended).as_millis()).collect();
        assert_eq!(millis, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(BACKOFF.pause(u32::MAX), BACKOFF.max);
    }

    #[test]
    fn a_stable_time_starts_over() {
        assert_eq!(BACKOFF.count(7, Duration::from_secs(59)), 8);
        assert_eq!(BACKOFF.count(7, Duration::from_secs(60)), 1);
        assert_eq!(BACKOFF.count(0, Duration::ZERO), 1);
    }
}
