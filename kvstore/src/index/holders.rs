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

/// Members of a large fleet that hold a block: up to 1,024.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct FleetSet([u64; 16]);

impl HolderSet for FleetSet {
    const HOLDERS_MAX: u32 = 1_024;

    fn insert(&mut self, holder: u32) -> bool {
        assert!(holder < Self::HOLDERS_MAX, "holder {holder} is not below {}", Self::HOLDERS_MAX);
        let fresh = !self.contains(holder);
        self.0[holder as usize / 64] |= 1 << (holder % 64);
        fresh
    }

    fn remove(&mut self, holder: u32) -> bool {
        let present = self.contains(holder);
        if present {
            self.0[holder as usize / 64] &= !(1 << (holder % 64));
        }
        present
    }

    fn contains(self, holder: u32) -> bool {
        holder < Self::HOLDERS_MAX && self.0[holder as usize / 64] & (1 << (holder % 64)) != 0
    }

    fn is_empty(self) -> bool {
        self.0.iter().all(|bits| *bits == 0)
    }

    fn intersection(self, other: Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] & other.0[word]))
    }

    fn union(self, other: Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] | other.0[word]))
    }

    fn count(self) -> usize {
        self.0.iter().map(|bits| bits.count_ones() as usize).sum()
    }

    fn iter(self) -> impl Iterator<Item = u32> {
        // A set of so many is nearly empty as a rule: from bit to bit, not from holder to holder.
        (0..).zip(self.0).flat_map(|(word, mut bits)| {
            std::iter::from_fn(move || {
                let bit = (bits != 0).then(|| bits.trailing_zeros())?;
                bits &= bits - 1;
                Some(word * 64 + bit)
            })
        })
    }
}

impl FleetSet {
    /// The holders of this set that are not in the other.
    pub fn without(self, other: Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] & !other.0[word]))
    }
}

impl fmt::Debug for FleetSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_fleets_set_is_a_set(
            changes in prop::collection::vec((0..1_024u32, any::<bool>()), 0..60),
            others in prop::collection::btree_set(0..1_024u32, 0..40),
        ) {
            let (mut set, mut model) = (FleetSet::default(), BTreeSet::new());
            for (holder, is_in) in changes {
                let changed = if is_in { set.insert(holder) } else { set.remove(holder) };
                prop_assert_eq!(changed, if is_in { model.insert(holder) } else { model.remove(&holder) });
            }
            let mut other = FleetSet::default();
            others.iter().for_each(|holder| assert!(other.insert(*holder)));
            let list = |set: FleetSet| set.iter().collect::<Vec<_>>();
            prop_assert_eq!(list(set), model.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(set.count(), model.len());
            prop_assert_eq!(list(set.intersection(other)), model.intersection(&others).copied().collect::<Vec<_>>());
            prop_assert_eq!(list(set.union(other)), model.union(&others).copied().collect::<Vec<_>>());
            prop_assert_eq!(list(set.without(other)), model.difference(&others).copied().collect::<Vec<_>>());
            prop_assert!(!set.contains(1_024));
        }
    }
}
