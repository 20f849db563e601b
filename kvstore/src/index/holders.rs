//! Holder sets: who has a copy of a block, as bits.

use std::fmt;

/// A small set of holders, numbered from 0.
pub trait HolderSet: Copy + Default + Eq + fmt::Debug + Send + Sync + 'static {
    /// Holders are numbered below this.
    const HOLDERS_MAX: u32;

    /// Adds a holder; whether it was not there before.
    ///
    /// # Panics
    /// If `holder` is not below [`HOLDERS_MAX`](Self::HOLDERS_MAX).
    fn insert(&mut self, holder: u32) -> bool;

    /// Takes a holder out; whether it was there.
    fn remove(&mut self, holder: u32) -> bool;

    /// Whether the holder is in the set; never so for one out of range.
    fn contains(self, holder: u32) -> bool;

    /// Whether nobody is.
    fn is_empty(self) -> bool;

    /// The holders of both sets.
    fn intersection(self, other: Self) -> Self;

    /// The holders of either set.
    fn union(self, other: Self) -> Self;

    /// How many there are.
    fn count(self) -> usize;

    /// Its holders, lowest first.
    fn iter(self) -> impl Iterator<Item = u32>;
}

macro_rules! holder_set {
    ($(#[$doc:meta])* $name:ident, $bits:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq)]
        pub struct $name($bits);

        impl HolderSet for $name {
            const HOLDERS_MAX: u32 = <$bits>::BITS;

            fn insert(&mut self, holder: u32) -> bool {
                assert!(holder < Self::HOLDERS_MAX, "holder {holder} is not below {}", Self::HOLDERS_MAX);
                let fresh = !self.contains(holder);
                self.0 |= 1 << holder;
                fresh
            }

            fn remove(&mut self, holder: u32) -> bool {
                let present = self.contains(holder);
                if present {
                    self.0 &= !(1 << holder);
                }
                present
            }

            fn contains(self, holder: u32) -> bool {
                holder < Self::HOLDERS_MAX && self.0 & (1 << holder) != 0
            }

            fn is_empty(self) -> bool {
                self.0 == 0
            }

            fn intersection(self, other: Self) -> Self {
                Self(self.0 & other.0)
            }

            fn union(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }

            fn count(self) -> usize {
                self.0.count_ones() as usize
            }

            fn iter(self) -> impl Iterator<Item = u32> {
                (0..Self::HOLDERS_MAX).filter(move |holder| self.contains(*holder))
            }
        }

        impl $name {
            /// From its bits: bit `n` is holder `n`.
            pub fn from_bits(bits: $bits) -> Self {
                Self(bits)
            }

            /// Its bits.
            pub fn bits(self) -> $bits {
                self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_set().entries(self.iter()).finish()
            }
        }
    };
}

holder_set! {
    /// Tiers that hold a block: up to 8.
    TierSet, u8
}

holder_set! {
    /// Workers that hold a block: up to 64.
    WorkerSet, u64
}
