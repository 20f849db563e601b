//! Randomness for names and for jitter.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Random bytes of the kernel.
///
/// # Panics
/// When the kernel gives none, which it does not do once it is up.
pub(super) fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("getrandom: {error}"),
        }
    }
    bytes
}

/// Spreads retries, so that those who failed together don't come back together. SplitMix64.
#[derive(Debug)]
pub(super) struct Jitter(AtomicU64);

impl Jitter {
    pub(super) fn new() -> Self {
        Self::seeded(u64::from_le_bytes(bytes()))
    }

    pub(super) fn seeded(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// Between half of `time` and all of it.
    pub(super) fn spread(&self, time: Duration) -> Duration {
        const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.0.fetch_add(GAMMA, Ordering::Relaxed).wrapping_add(GAMMA);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let share = ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64;
        time.mul_f64(0.5 + share / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_over_the_upper_half() {
        let jitter = Jitter::seeded(7);
        let times: Vec<_> = (0..1000).map(|_| jitter.spread(Duration::from_secs(2)).as_secs_f64()).collect();
        assert!(times.iter().all(|&time| (1.0..=2.0).contains(&time)));
        let mean = times.iter().sum::<f64>() / 1000.0;
        assert!((1.4..1.6).contains(&mean), "{mean}");
    }
}
