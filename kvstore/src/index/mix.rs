//! Spreads hashes over tables, whatever their bits are.
//!
//! Hashes that Kelvin makes are uniform, but a client may bring its own, small numbers or chosen ones. So
//! tables place them by a product with two random numbers of this process: whoever does not know the numbers
//! cannot choose hashes that meet in one place.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::LazyLock,
};

/// Drawn once a process.
static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    // The standard library's hasher is keyed by the kernel's random numbers.
    let random = RandomState::new();
    Keys([0_u64, 1].map(|which| random.hash_one(which)))
});

/// What hashes are multiplied with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keys([u64; 2]);

impl Keys {
    /// Those of this process.
    pub(super) fn get() -> Self {
        *KEYS
    }

    /// Both halves of the full product of the number's halves, one upon the other.
    pub(super) fn mix(self, number: u128) -> u64 {
        let low = u128::from(number as u64 ^ self.0[0]);
        let high = u128::from((number >> 64) as u64 ^ self.0[1]);
        let product = low * high;
        product as u64 ^ (product >> 64) as u64
    }
}

/// Hasher for maps whose keys are hashes: of the integers written to it the last counts.
#[derive(Debug, Default, Clone, Copy)]
pub struct HashMixer(u64);

impl Hasher for HashMixer {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(self.0.rotate_left(8) ^ u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = Keys::get().mix(number.into());
    }

    fn write_u128(&mut self, number: u128) {
        self.0 = Keys::get().mix(number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hashes as a careless or hostile client makes them: counted in either half, or in few bits of each.
    #[test]
    fn counted_hashes_spread_like_uniform_ones() {
        const COUNT: usize = 1 << 14;
        let kinds: [fn(u128) -> u128; 5] =
            [|i| i, |i| i << 64, |i| i << 112, |i| i << 64 | i, |i| i << 9 | 0xabc << 96];
        for (kind, hash) in kinds.into_iter().enumerate() {
            for shift in [0, 9, 32, 50] {
                let mut buckets = vec![0u32; COUNT];
                for number in 0..COUNT as u128 {
                    buckets[(Keys::get().mix(hash(number)) >> shift) as usize % COUNT] += 1;
                }
                let fullest = buckets.iter().max().unwrap();
                // Uniform ones leave about 8 in the fullest; what is refused is a pile.
                assert!(*fullest < 100, "kind {kind}, bits from {shift}: {fullest} in one place");
            }
        }
    }
}
