//! Shares: the holder sets of a run, of which neighbours are mostly equal.

use std::ops::Range;

use super::HolderSet;
use super::account::allocated;

/// Holder sets of a run's blocks, by length: one set in place when all are equal.
pub(super) enum Shares<S> {
    /// All blocks have these.
    One(S),
    /// Several stretches; neighbours differ, and the last ends with the run.
    #[expect(clippy::box_collection, reason = "the rare case takes 8 bytes in every run, not 24")]
    Many(Box<Vec<Stretch<S>>>),
}

/// Blocks up to `end` with the same holders.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Stretch<S> {
    end: u32,
    holders: S,
}

impl<S: HolderSet> Shares<S> {
    /// Stretches one after the other; those that are empty or equal to the one before are merged.
    fn collect(stretches: impl Iterator<Item = (usize, S)>) -> Self {
        let mut stretches = stretches.filter(|(blocks, _)| *blocks > 0);
        let Some((blocks, first)) = stretches.next() else { return Self::One(S::default()) };
        let (mut end, mut many) = (blocks, Vec::new());
        let mut last = Stretch { end: end as u32, holders: first };
        for (blocks, holders) in stretches {
            end += blocks;
            if holders != last.holders {
                many.push(last);
                last.holders = holders;
            }
            last.end = end as u32;
        }
        if many.is_empty() {
            return Self::One(first);
        }
        many.push(last);
        many.shrink_to_fit();
        Self::Many(Box::new(many))
    }

    /// `(blocks, holders)` of the stretches within `range`, of a run of at least that many blocks.
    pub(super) fn stretches(&self, range: Range<usize>) -> impl Iterator<Item = (usize, S)> {
        let (one, many) = match self {
            Self::One(holders) => (Some((range.len(), *holders)), &[][..]),
            Self::Many(many) => (None, &many[..]),
        };
        let skipped = many.partition_point(|stretch| stretch.end as usize <= range.start);
        let mut start = range.start;
        let within = many[skipped..].iter().map_while(move |stretch| {
            let end = range.end.min(stretch.end as usize);
            let blocks = end.checked_sub(start).filter(|blocks| *blocks > 0)?;
            start = end;
            Some((blocks, stretch.holders))
        });
        one.into_iter().chain(within)
    }

    pub(super) fn at(&self, offset: usize) -> S {
        match self {
            Self::One(holders) => *holders,
            Self::Many(_) => {
                self.stretches(offset..offset + 1).next().map(|(_, holders)| holders).unwrap_or_default()
            }
        }
    }

    /// The shares of a run of `blocks` after a change to those in `range`.
    pub(super) fn changed(&self, blocks: usize, range: Range<usize>, change: impl Fn(S) -> S) -> Self {
        match self {
            Self::One(holders) if range.len() == blocks || change(*holders) == *holders => {
                Self::One(if range.is_empty() { *holders } else { change(*holders) })
            }
            _ => Self::collect(
                self.stretches(0..range.start)
                    .chain(self.stretches(range.clone()).map(|(blocks, holders)| (blocks, change(holders))))
                    .chain(self.stretches(range.end..blocks)),
            ),
        }
    }

    /// Those in `range` alone.
    pub(super) fn part(&self, range: Range<usize>) -> Self {
        match self {
            Self::One(holders) => Self::One(*holders),
            Self::Many(_) => Self::collect(self.stretches(range)),
        }
    }

    /// Those of a run of `blocks` and of one of `more` behind it.
    pub(super) fn joined(&self, blocks: usize, behind: &Self, more: usize) -> Self {
        match (self, behind) {
            (Self::One(holders), Self::One(others)) if blocks == 0 || holders == others => Self::One(*others),
            _ => Self::collect(self.stretches(0..blocks).chain(behind.stretches(0..more))),
        }
    }

    /// Of the first `blocks`, those up to the last one that somebody holds.
    pub(super) fn held(&self, blocks: usize) -> usize {
        let (mut end, mut held) = (0, 0);
        for (blocks, holders) in self.stretches(0..blocks) {
            end += blocks;
            if !holders.is_empty() {
                held = end;
            }
        }
        held
    }

    /// Memory beside that in place.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::One(_) => 0,
            Self::Many(many) => allocated::<Vec<Stretch<S>>>(1) + allocated::<Stretch<S>>(many.capacity()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::index::TierSet;

    fn sets() -> impl Strategy<Value = Vec<TierSet>> {
        proptest::collection::vec((0u8..3).prop_map(TierSet::from_bits), 0..12)
    }

    fn shares(sets: &[TierSet]) -> Shares<TierSet> {
        Shares::collect(sets.iter().map(|set| (1, *set)))
    }

    fn check(shares: &Shares<TierSet>, sets: &[TierSet]) {
        let all: Vec<_> = shares.stretches(0..sets.len()).collect();
        assert!(all.windows(2).all(|pair| pair[0].1 != pair[1].1), "neighbours are equal");
        let expanded = all.into_iter().flat_map(|(blocks, set)| std::iter::repeat_n(set, blocks));
        assert_eq!(expanded.collect::<Vec<_>>(), sets);
        assert!(sets.iter().enumerate().all(|(at, set)| shares.at(at) == *set));
        let held = sets.iter().rposition(|set| !set.is_empty()).map_or(0, |last| last + 1);
        assert_eq!(shares.held(sets.len()), held);
        assert!(shares.bytes() > 0 || sets.windows(2).all(|pair| pair[0] == pair[1]));
    }

    proptest! {
        #[test]
        fn it_is_a_list_of_sets(one in sets(), other in sets(), start in 0usize..12, length in 0usize..12, bits in 0u8..3) {
            check(&shares(&one), &one);
            check(&shares(&one).joined(one.len(), &shares(&other), other.len()), &[&one[..], &other].concat());
            let start = start.min(one.len());
            let range = start..(start + length).min(one.len());
            check(&shares(&one).part(range.clone()), &one[range.clone()]);
            let mut changed = one.clone();
            changed[range.clone()].iter_mut().for_each(|set| *set = TierSet::from_bits(set.bits() ^ bits));
            let change = |set: TierSet| TierSet::from_bits(set.bits() ^ bits);
            check(&shares(&one).changed(one.len(), range, change), &changed);
        }
    }

    #[test]
    fn it_is_small() {
        assert_eq!(size_of::<Shares<TierSet>>(), 16);
        assert_eq!(size_of::<Shares<crate::index::WorkerSet>>(), 16);
    }
}
