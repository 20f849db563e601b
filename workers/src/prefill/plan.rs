//! What to do about each block of a prompt, in order.

use std::collections::VecDeque;

use kelvin_kvstore::{ReadLease, Reserved, WriteLease};

/// One block's part of the work.
pub(super) enum Slot<R = ReadLease, W = WriteLease> {
    /// It is stored: import it.
    Stored(R),
    /// It is ours: evaluate, export, commit.
    Ours(W),
    /// Another worker has it or makes it: wait, then import.
    Elsewhere,
    /// Nobody can store it: evaluate only, for the sake of those behind it.
    Unstored,
}

/// The blocks that are not in the engine yet, front first.
pub(super) struct Plan<R = ReadLease, W = WriteLease> {
    slots: VecDeque<Slot<R, W>>,
}

impl<R, W> Plan<R, W> {
    /// Stored ones first, then what reserving the rest gave. The plan ends where no reservation was to be had,
    /// and behind the last one that is ours: what others make is theirs to make.
    pub(super) fn new(stored: Vec<R>, rest: impl IntoIterator<Item = Slot<R, W>>) -> Self {
        let mut slots: VecDeque<_> = stored.into_iter().map(Slot::Stored).chain(rest).collect();
        let ours = slots.iter().rposition(|slot| matches!(slot, Slot::Ours(_)));
        slots.truncate(ours.map_or(0, |index| index + 1));
        Self { slots }
    }

    /// The next block, if there is one.
    pub(super) fn front(&self) -> Option<&Slot<R, W>> {
        self.slots.front()
    }

    /// Blocks that are ours.
    pub(super) fn ours(&self) -> usize {
        self.slots.iter().filter(|slot| matches!(slot, Slot::Ours(_))).count()
    }

    /// Takes up to `max` leading blocks that can be imported.
    pub(super) fn take_stored(&mut self, max: usize) -> Vec<R> {
        let mut taken = Vec::new();
        while taken.len() < max {
            match self.slots.pop_front() {
                Some(Slot::Stored(lease)) => taken.push(lease),
                Some(other) => {
                    self.slots.push_front(other);
                    break;
                }
                None => break,
            }
        }
        taken
    }

    /// Takes up to `max` leading blocks that must be evaluated, each with its reservation if it has one.
    pub(super) fn take_chunk(&mut self, max: usize) -> Vec<Option<W>> {
        let mut taken = Vec::new();
        while taken.len() < max {
            match self.slots.pop_front() {
                Some(Slot::Ours(lease)) => taken.push(Some(lease)),
                Some(Slot::Unstored) => taken.push(None),
                Some(other) => {
                    self.slots.push_front(other);
                    break;
                }
                None => break,
            }
        }
        taken
    }

    /// Leading blocks that are elsewhere.
    pub(super) fn leading_elsewhere(&self) -> usize {
        self.slots.iter().take_while(|slot| matches!(slot, Slot::Elsewhere)).count()
    }

    /// Replaces as many leading blocks.
    pub(super) fn replace_front(&mut self, with: impl IntoIterator<Item = Slot<R, W>>) {
        for (old, new) in self.slots.iter_mut().zip(with) {
            *old = new;
        }
    }

    /// Puts blocks back that were taken from the front, to be evaluated instead.
    pub(super) fn evaluate_instead(&mut self, count: usize) {
        (0..count).for_each(|_| self.slots.push_front(Slot::Unstored));
    }
}

/// What a reservation's answer means for the plan; `None` ends it.
pub(super) fn slot_of(reserved: Reserved) -> Option<Slot> {
    match reserved {
        Reserved::Write(lease) => Some(Slot::Ours(lease)),
        Reserved::AlreadyStored | Reserved::Filling => Some(Slot::Elsewhere),
        Reserved::NoSpace | Reserved::NoParent | Reserved::Other(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Toy = Slot<u32, char>;

    #[test]
    fn runs_come_in_order_and_within_the_limit() {
        let rest = [Toy::Ours('a'), Toy::Ours('b'), Toy::Elsewhere, Toy::Elsewhere, Toy::Ours('c')];
        let mut plan = Plan::new(vec![1, 2, 3], rest);
        assert_eq!(plan.ours(), 3);
        assert_eq!(plan.take_chunk(8), [], "stored ones are in front");
        assert_eq!(plan.take_stored(2), [1, 2]);
        assert_eq!(plan.take_stored(2), [3]);
        assert_eq!(plan.take_chunk(1), [Some('a')]);
        assert_eq!(plan.take_chunk(8), [Some('b')]);
        assert_eq!(plan.leading_elsewhere(), 2);
        plan.replace_front([Toy::Stored(4)]);
        assert_eq!(plan.take_stored(8), [4]);
        plan.replace_front([Toy::Unstored]);
        assert_eq!(plan.take_chunk(8), [None, Some('c')]);
        assert!(plan.front().is_none());
    }

    #[test]
    fn nothing_is_done_for_others_alone() {
        let mut plan = Plan::new(vec![1], [Toy::Ours('a'), Toy::Elsewhere, Toy::Elsewhere]);
        assert_eq!(plan.take_stored(8), [1]);
        assert_eq!(plan.take_chunk(8), [Some('a')]);
        assert!(plan.front().is_none());
        assert!(Plan::<u32, char>::new(vec![1, 2], [Toy::Elsewhere]).front().is_none());
    }

    #[test]
    fn a_failed_import_is_evaluated() {
        let mut plan = Plan::new(vec![1, 2], [Toy::Ours('a')]);
        assert_eq!(plan.take_stored(8).len(), 2);
        plan.evaluate_instead(2);
        assert_eq!(plan.take_chunk(8), [None, None, Some('a')]);
    }
}
