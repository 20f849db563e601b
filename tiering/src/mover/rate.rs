//! How long a transfer will take, learnt from those that were.
//!
//! Model: `time = latency + bytes / rate`, both as exponentially weighted means of what was seen. Small
//! transfers tell the latency, large ones the rate; a transfer's time is split between the two in the
//! proportion in which the model expected them, so that both converge without a fit.

use std::time::Duration;

/// Weight of a new sample.
const WEIGHT: f64 = 1.0 / 16.0;

/// A running estimate of a tier's speed in one direction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    latency_us: f64,
    us_per_byte: f64,
    samples: u64,
}

impl Rate {
    /// Begins with what such a tier usually does.
    pub fn new(latency: Duration, bytes_per_second: u64) -> Self {
        let us_per_byte = 1e6 / bytes_per_second.max(1) as f64;
        Self { latency_us: latency.as_micros() as f64, us_per_byte, samples: 0 }
    }

    /// Notes a transfer.
    pub fn note(&mut self, bytes: u64, took: Duration) {
        let took_us = took.as_secs_f64() * 1e6;
        let expected_latency = self.latency_us.max(0.1);
        let expected_transfer = (self.us_per_byte * bytes as f64).max(0.1);
        let share = expected_latency / (expected_latency + expected_transfer);
        // The first samples count for more: the beginning is a guess.
        let weight = WEIGHT.max(1.0 / (self.samples + 1) as f64);
        self.latency_us += weight * (took_us * share - self.latency_us);
        if bytes > 0 {
            self.us_per_byte += weight * (took_us * (1.0 - share) / bytes as f64 - self.us_per_byte);
        }
        self.samples += 1;
    }

    /// Time that a transfer of so many bytes is expected to take.
    pub fn expect(&self, bytes: u64) -> Duration {
        Duration::from_secs_f64((self.latency_us + self.us_per_byte * bytes as f64).max(0.0) / 1e6)
    }

    /// Bytes a second, without the latency.
    pub fn bytes_per_second(&self) -> u64 {
        (1e6 / self.us_per_byte.max(1e-9)) as u64
    }

    /// Transfers it has seen.
    pub fn samples(&self) -> u64 {
        self.samples
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn converges_to_what_it_sees() {
        let mut rate = Rate::new(Duration::from_millis(1), 1 << 30);
        let took = |bytes: u64| Duration::from_micros(200 + bytes / 500);
        for round in 0..400 {
            let bytes = [4096, 524_288, 2 << 20][round % 3];
            rate.note(bytes, took(bytes));
        }
        for bytes in [524_288u64, 2 << 20] {
            let (expected, real) = (rate.expect(bytes).as_secs_f64(), took(bytes).as_secs_f64());
            assert!((0.6..1.6).contains(&(expected / real)), "{bytes}: {expected} for {real}");
        }
    }

    #[test]
    fn the_guess_holds_until_something_was_seen() {
        let rate = Rate::new(Duration::from_millis(2), 1_000_000);
        assert_eq!(rate.expect(1_000_000), Duration::from_millis(1002));
        assert_eq!(rate.samples(), 0);
    }

    #[test]
    fn nothing_transferred_is_no_division_by_zero() {
        let mut rate = Rate::new(Duration::ZERO, 0);
        rate.note(0, Duration::ZERO);
        assert!(rate.expect(0) <= Duration::from_secs(1));
    }
}
