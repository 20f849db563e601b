//! How long a transfer will take, learnt from those that were.
//!
//! Model: `time = latency + bytes / rate`, fitted by least squares over what was seen, older transfers counting
//! for less. It begins with two made-up transfers that say what such a tier usually does; they fade like others.

use std::time::Duration;

/// What a transfer counts for when the next one comes.
const FADE: f64 = 1.0 - 1.0 / 64.0;
/// Bytes of the larger made-up transfer.
const GUESS_BYTES: u64 = 1 << 20;

/// A running estimate of a tier's speed in one direction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Weighted sums over transfers: their weight, bytes, microseconds, bytes squared, bytes by microseconds.
    weight: f64,
    bytes: f64,
    us: f64,
    bytes_bytes: f64,
    bytes_us: f64,
    samples: u64,
}

impl Rate {
    /// Begins with what such a tier usually does.
    pub fn new(latency: Duration, bytes_per_second: u64) -> Self {
        let mut rate = Self { weight: 0.0, bytes: 0.0, us: 0.0, bytes_bytes: 0.0, bytes_us: 0.0, samples: 0 };
        let transfer_us = GUESS_BYTES as f64 * 1e6 / bytes_per_second.max(1) as f64;
        let latency_us = latency.as_secs_f64() * 1e6;
        rate.add(0.0, latency_us);
        rate.add(GUESS_BYTES as f64, latency_us + transfer_us);
        rate
    }

    fn add(&mut self, bytes: f64, us: f64) {
        self.weight += 1.0;
        self.bytes += bytes;
        self.us += us;
        self.bytes_bytes += bytes * bytes;
        self.bytes_us += bytes * us;
    }

    /// Notes a transfer.
    pub fn note(&mut self, bytes: u64, took: Duration) {
        for sum in
            [&mut self.weight, &mut self.bytes, &mut self.us, &mut self.bytes_bytes, &mut self.bytes_us]
        {
            *sum *= FADE;
        }
        self.add(bytes as f64, took.as_secs_f64() * 1e6);
        self.samples += 1;
    }

    /// Latency in microseconds, and microseconds a byte.
    fn fit(&self) -> (f64, f64) {
        let (mean_bytes, mean_us) = (self.bytes / self.weight, self.us / self.weight);
        let variance = self.bytes_bytes / self.weight - mean_bytes * mean_bytes;
        let covariance = self.bytes_us / self.weight - mean_bytes * mean_us;
        // All of one size say nothing about the slope; and no transfer takes less time for more bytes.
        let slope_max = if mean_bytes > 0.0 { mean_us / mean_bytes } else { 0.0 };
        let slope = if variance > 1.0 { (covariance / variance).clamp(0.0, slope_max) } else { slope_max };
        (mean_us - slope * mean_bytes, slope)
    }

    /// Time that a transfer of so many bytes is expected to take.
    pub fn expect(&self, bytes: u64) -> Duration {
        let (latency_us, us_per_byte) = self.fit();
        Duration::from_secs_f64((latency_us + us_per_byte * bytes as f64).max(0.0) / 1e6)
    }

    /// Bytes a second, without the latency.
    pub fn bytes_per_second(&self) -> u64 {
        (1e6 / self.fit().1.max(1e-9)) as u64
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
            assert!((0.95..1.05).contains(&(expected / real)), "{bytes}: {expected} for {real}");
        }
    }

    #[test]
    fn the_guess_holds_until_something_was_seen() {
        let rate = Rate::new(Duration::from_millis(2), 1_000_000);
        assert!(rate.expect(1_000_000).abs_diff(Duration::from_millis(1002)) < Duration::from_micros(10));
        assert_eq!(rate.samples(), 0);
    }

    #[test]
    fn nothing_transferred_is_no_division_by_zero() {
        let mut rate = Rate::new(Duration::ZERO, 0);
        rate.note(0, Duration::ZERO);
        assert!(rate.expect(0) <= Duration::from_secs(1));
    }
}
