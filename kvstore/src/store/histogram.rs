//! Histograms that many threads write at once.
//!
//! A bucket's bound is twice the one before, so that finding it takes a few instructions, and an observation
//! two additions without a lock. Bounds are fixed by the type: what a histogram takes is known at compile time.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Counts of values up to 2^`FIRST`, then of each doubling, `BOUNDS` bounds in all, and of what is beyond.
#[derive(Debug)]
pub(crate) struct Histogram<const FIRST: u32, const BOUNDS: usize> {
    buckets: [Bucket; BOUNDS],
    beyond: Bucket,
}

/// How many values, and what they add up to: side by side, so that an observation touches one cache line.
#[derive(Debug, Default)]
#[repr(align(16))]
struct Bucket {
    count: AtomicU64,
    sum: AtomicU64,
}

impl Bucket {
    fn read(&self) -> (u64, u64) {
        (self.count.load(Ordering::Relaxed), self.sum.load(Ordering::Relaxed))
    }
}

/// Of times in nanoseconds: 4 us to 17 s.
pub(crate) type Times = Histogram<12, 23>;
/// Of sizes in bytes: 4 KiB to 1 GiB.
pub(crate) type Sizes = Histogram<12, 19>;

/// A histogram at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Distribution {
    /// Upper bounds and how many values were between this and the one before; the last bound is `u64::MAX`.
    pub(crate) buckets: Vec<(u64, u64)>,
    pub(crate) sum: u64,
}

impl<const FIRST: u32, const BOUNDS: usize> Default for Histogram<FIRST, BOUNDS> {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| Bucket::default()), beyond: Bucket::default() }
    }
}

impl<const FIRST: u32, const BOUNDS: usize> Histogram<FIRST, BOUNDS> {
    /// Counts a value.
    pub(crate) fn observe(&self, value: u64) {
        // The exponent of the least power of two that is not below the value.
        let exponent = u64::BITS - value.saturating_sub(1).leading_zeros();
        let bucket = self.buckets.get(exponent.saturating_sub(FIRST) as usize).unwrap_or(&self.beyond);
        // Statistics order nothing.
        bucket.count.fetch_add(1, Ordering::Relaxed);
        bucket.sum.fetch_add(value, Ordering::Relaxed);
    }

    /// The counts now. Values that come meanwhile are counted or not, each by itself.
    pub(crate) fn read(&self) -> Distribution {
        let bounds = (FIRST..).map(|exponent| 1 << exponent).take(BOUNDS).chain([u64::MAX]);
        let mut sum = 0_u64;
        let buckets = self.buckets.iter().chain([&self.beyond]).map(|bucket| {
            let (count, values) = bucket.read();
            sum = sum.wrapping_add(values);
            count
        });
        let buckets = bounds.zip(buckets).collect();
        Distribution { buckets, sum }
    }
}

impl Times {
    /// Counts a time.
    pub(crate) fn took(&self, time: Duration) {
        self.observe(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }
}

impl Distribution {
    /// Values in all.
    pub(crate) fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }

    /// The value that a share `q` of all are not above, even between two bounds; `None` without values. Beyond the
    /// last bound it is that bound.
    pub(crate) fn quantile(&self, q: f64) -> Option<u64> {
        let rank = q * self.count() as f64;
        let (mut below, mut low) = (0, 0);
        for &(bound, count) in self.buckets.iter().filter(|(bound, _)| *bound < u64::MAX) {
            if count > 0 && (below + count) as f64 >= rank {
                let share = ((rank - below as f64) / count as f64).clamp(0.0, 1.0);
                return Some(low + ((bound - low) as f64 * share) as u64);
            }
            (below, low) = (below + count, bound);
        }
        (self.count() > 0).then_some(low)
    }

    /// Adds another one with the same bounds.
    pub(crate) fn add(&mut self, other: &Self) {
        if self.buckets.is_empty() {
            self.buckets.clone_from(&other.buckets);
        } else {
            for (own, other) in self.buckets.iter_mut().zip(&other.buckets) {
                own.1 += other.1;
            }
        }
        self.sum = self.sum.wrapping_add(other.sum);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantiles_are_between_the_bounds_of_their_bucket() {
        let of = |values: &[u64]| {
            let histogram = Times::default();
            values.iter().for_each(|value| histogram.observe(*value));
            [0.5, 0.99].map(|q| histogram.read().quantile(q))
        };
        assert_eq!(of(&[]), [None, None]);
        // Of 100 values up to 8192 and 100 up to 16384: the middle is the bound between them.
        let values = [vec![5000; 100], vec![9000; 100]].concat();
        assert_eq!(of(&values), [Some(8192), Some(8192 + 8192 * 98 / 100)]);
        assert_eq!(of(&[u64::MAX]), [Some(1 << 34), Some(1 << 34)], "beyond the last bound");
    }

    proptest! {
        #[test]
        fn a_value_is_in_the_first_bucket_whose_bound_it_does_not_exceed(
            values in prop::collection::vec(prop_oneof![0..1u64 << 14, 0..1u64 << 40, Just(u64::MAX >> 8)], 0..50),
        ) {
            let histogram = Times::default();
            values.iter().for_each(|value| histogram.observe(*value));
            let read = histogram.read();
            prop_assert_eq!(read.buckets.len(), 24);
            prop_assert_eq!(read.sum, values.iter().sum::<u64>());
            let mut below = 0;
            for (bound, count) in &read.buckets {
                below += count;
                prop_assert_eq!(below, values.iter().filter(|value| *value <= bound).count() as u64);
            }
        }
    }

    #[test]
    fn distributions_add_up() {
        let (one, other) = (Sizes::default(), Sizes::default());
        one.observe(4096);
        other.observe(4097);
        other.observe(1 << 40);
        let mut sum = Distribution::default();
        sum.add(&one.read());
        sum.add(&other.read());
        assert_eq!((sum.count(), sum.sum), (3, 4096 + 4097 + (1 << 40)));
        assert_eq!(sum.buckets[..2], [(4096, 1), (8192, 1)]);
        assert_eq!(sum.buckets.last(), Some(&(u64::MAX, 1)));
    }
}
