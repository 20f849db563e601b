//! Cuts the room of one file into extents, and the extents into slots.
//!
//! # Overview
//! The room is a row of equal extents. An extent that holds anything is bound to one slot size; an empty one
//! is bound to none, so that sizes can change places as models come and go. New slots come from the first
//! open extent of their size, which lets the later ones run empty and keeps writes close together. This is
//! bookkeeping only: no I/O, no lock. A restart takes the slots that the catalog names with
//! [`Extents::claim`], in any order.
//!
//! # Limits
//! A slot larger than an extent cannot be had. The end of an extent that no whole slot fits in is lost
//! (below one part in `extent / slot`). Bookkeeping takes one bit a slot.

use std::collections::{BTreeSet, HashMap};

const WORD_BITS: u32 = u64::BITS;

#[derive(Debug)]
struct Extent {
    slot_bytes: u64,
    slots: u32,
    used: u32,
    /// A bit a slot, set while it is free.
    free: Box<[u64]>,
    /// No word before this one has a free slot.
    first: u32,
}

impl Extent {
    fn new(extent_bytes: u64, slot_bytes: u64) -> Self {
        let slots = u32::try_from(extent_bytes / slot_bytes).expect("slots of a page or more");
        let mut free = vec![u64::MAX; slots.div_ceil(WORD_BITS) as usize].into_boxed_slice();
        if let rest @ 1.. = slots % WORD_BITS {
            free[(slots / WORD_BITS) as usize] = (1 << rest) - 1;
        }
        Self { slot_bytes, slots, used: 0, free, first: 0 }
    }

    fn full(&self) -> bool {
        self.used == self.slots
    }

    fn take_any(&mut self) -> Option<u32> {
        let skipped = self.free[self.first as usize..].iter().position(|&word| word != 0)?;
        self.first += skipped as u32;
        let word = &mut self.free[self.first as usize];
        let bit = word.trailing_zeros();
        *word &= !(1 << bit);
        self.used += 1;
        Some(self.first * WORD_BITS + bit)
    }

    /// False when the slot is out already.
    fn take(&mut self, slot: u32) -> bool {
        let (word, bit) = (&mut self.free[(slot / WORD_BITS) as usize], 1 << (slot % WORD_BITS));
        let free = *word & bit != 0;
        *word &= !bit;
        self.used += u32::from(free);
        free
    }

    /// False when the slot is free already.
    fn put(&mut self, slot: u32) -> bool {
        let (number, bit) = (slot / WORD_BITS, 1 << (slot % WORD_BITS));
        let word = &mut self.free[number as usize];
        let out = *word & bit == 0;
        *word |= bit;
        self.first = self.first.min(number);
        self.used -= u32::from(out);
        out
    }
}

/// The bookkeeping of one file's room. Offsets are from the start of the room.
#[derive(Debug)]
pub(super) struct Extents {
    extent_bytes: u64,
    extents: Vec<Option<Extent>>,
    empty: BTreeSet<u32>,
    /// Extents with a free slot, by slot size.
    open: HashMap<u64, BTreeSet<u32>>,
    used_bytes: u64,
    used_slots: u64,
}

impl Extents {
    /// `count` empty extents.
    pub(super) fn new(extent_bytes: u64, count: u32) -> Self {
        assert!(extent_bytes > 0, "an extent has bytes");
        Self {
            extent_bytes,
            extents: (0..count).map(|_| None).collect(),
            empty: (0..count).collect(),
            open: HashMap::new(),
            used_bytes: 0,
            used_slots: 0,
        }
    }

    pub(super) fn capacity_bytes(&self) -> u64 {
        self.extents.len() as u64 * self.extent_bytes
    }

    /// Bytes in slots that are out, and how many slots those are.
    pub(super) fn used(&self) -> (u64, u64) {
        (self.used_bytes, self.used_slots)
    }

    /// Number of the extent that this offset lies in, and its slots that are out.
    pub(super) fn extent_at(&self, offset: u64) -> (u32, u32) {
        let number = (offset / self.extent_bytes) as u32;
        (number, self.extents[number as usize].as_ref().map_or(0, |extent| extent.used))
    }

    /// A free slot's offset, or `None` while there is none of this size and no empty extent.
    pub(super) fn allocate(&mut self, slot_bytes: u64) -> Option<u64> {
        if slot_bytes == 0 || slot_bytes > self.extent_bytes {
            return None;
        }
        let number = match self.open.get(&slot_bytes).and_then(BTreeSet::first) {
            Some(&number) => number,
            None => self.bind(*self.empty.first()?, slot_bytes),
        };
        let extent = self.extents[number as usize].as_mut().expect("an open extent is bound");
        let slot = extent.take_any().expect("an open extent has a free slot");
        self.taken(number, slot_bytes);
        Some(u64::from(number) * self.extent_bytes + u64::from(slot) * slot_bytes)
    }

    /// Takes one certain slot. False when it is out already, or cannot be: outside the room, across an
    /// extent's end, or in an extent of another slot size.
    pub(super) fn claim(&mut self, offset: u64, slot_bytes: u64) -> bool {
        if slot_bytes == 0 || slot_bytes > self.extent_bytes || offset >= self.capacity_bytes() {
            return false;
        }
        let (number, within) = ((offset / self.extent_bytes) as u32, offset % self.extent_bytes);
        if !within.is_multiple_of(slot_bytes) || within / slot_bytes >= self.extent_bytes / slot_bytes {
            return false;
        }
        match &mut self.extents[number as usize] {
            Some(extent) if extent.slot_bytes != slot_bytes => return false,
            Some(_) => {}
            None => _ = self.bind(number, slot_bytes),
        }
        let extent = self.extents[number as usize].as_mut().expect("bound above");
        if !extent.take((within / slot_bytes) as u32) {
            return false;
        }
        self.taken(number, slot_bytes);
        true
    }

    /// Takes back a slot that `allocate` or `claim` gave.
    pub(super) fn free(&mut self, offset: u64, slot_bytes: u64) {
        let number = (offset / self.extent_bytes) as u32;
        let place = &mut self.extents[number as usize];
        let extent = place.as_mut().expect("a slot comes back to a bound extent");
        assert_eq!(extent.slot_bytes, slot_bytes, "a slot comes back with its size");
        let was_full = extent.full();
        let slot = ((offset % self.extent_bytes) / slot_bytes) as u32;
        assert!(extent.put(slot), "a slot comes back once");
        if extent.used == 0 {
            *place = None;
            self.empty.insert(number);
            if !was_full {
                self.close(number, slot_bytes);
            }
        } else if was_full {
            self.open.entry(slot_bytes).or_default().insert(number);
        }
        self.used_bytes -= slot_bytes;
        self.used_slots -= 1;
    }

    fn bind(&mut self, number: u32, slot_bytes: u64) -> u32 {
        self.empty.remove(&number);
        self.extents[number as usize] = Some(Extent::new(self.extent_bytes, slot_bytes));
        self.open.entry(slot_bytes).or_default().insert(number);
        number
    }

    fn taken(&mut self, number: u32, slot_bytes: u64) {
        self.used_bytes += slot_bytes;
        self.used_slots += 1;
        if self.extents[number as usize].as_ref().is_some_and(Extent::full) {
            self.close(number, slot_bytes);
        }
    }

    fn close(&mut self, number: u32, slot_bytes: u64) {
        if let Some(open) = self.open.get_mut(&slot_bytes) {
            open.remove(&number);
            if open.is_empty() {
                self.open.remove(&slot_bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const EXTENT: u64 = 200;
    const COUNT: u32 = 4;
    const ROOM: u64 = EXTENT * COUNT as u64;

    #[derive(Debug, Clone)]
    enum Op {
        Allocate(u64),
        Claim(u64, u64),
        Free(prop::sample::Index),
    }

    /// Sizes with a whole, a broken and more than one word of slots an extent.
    fn size() -> impl Strategy<Value = u64> {
        prop::sample::select(vec![1, 2, 3, 70, 100, 101, 200, 201])
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => size().prop_map(Op::Allocate),
            2 => (0..ROOM + 10, size()).prop_map(|(offset, size)| Op::Claim(offset, size)),
            2 => (0..ROOM, size()).prop_map(|(offset, size)| Op::Claim(offset / size * size, size)),
            4 => any::<prop::sample::Index>().prop_map(Op::Free),
        ]
    }

    /// What the bookkeeping must know, from first principles: the slots that are out.
    #[derive(Default)]
    struct Oracle(BTreeMap<u64, u64>);

    impl Oracle {
        fn of_extent(&self, number: u64) -> impl Iterator<Item = (u64, u64)> {
            self.0.range(number * EXTENT..(number + 1) * EXTENT).map(|(&offset, &size)| (offset, size))
        }

        fn fits(&self, number: u64, size: u64) -> bool {
            self.of_extent(number).all(|(_, other)| other == size)
        }

        /// Whether a slot could be taken there.
        fn could(&self, offset: u64, size: u64) -> bool {
            let (number, within) = (offset / EXTENT, offset % EXTENT);
            offset < ROOM
                && within % size == 0
                && within + size <= EXTENT
                && self.fits(number, size)
                && !self.0.contains_key(&offset)
        }

        fn could_any(&self, size: u64) -> bool {
            let numbers = 0..u64::from(COUNT);
            size <= EXTENT
                && numbers.into_iter().any(|number| {
                    self.fits(number, size) && (self.of_extent(number).count() as u64) < EXTENT / size
                })
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_oracle(ops in prop::collection::vec(op(), 1..300)) {
            let mut extents = Extents::new(EXTENT, COUNT);
            let mut oracle = Oracle::default();
            for op in ops {
                match op {
                    Op::Allocate(size) => {
                        let possible = oracle.could_any(size);
                        let given = extents.allocate(size);
                        prop_assert_eq!(given.is_some(), possible);
                        if let Some(offset) = given {
                            prop_assert!(oracle.could(offset, size), "{size} at {offset}");
                            oracle.0.insert(offset, size);
                        }
                    }
                    Op::Claim(offset, size) => {
                        let possible = oracle.could(offset, size);
                        prop_assert_eq!(extents.claim(offset, size), possible, "{} at {}", size, offset);
                        if possible {
                            oracle.0.insert(offset, size);
                        }
                    }
                    Op::Free(index) if !oracle.0.is_empty() => {
                        let (&offset, &size) = oracle.0.iter().nth(index.index(oracle.0.len())).unwrap();
                        extents.free(offset, size);
                        oracle.0.remove(&offset);
                    }
                    Op::Free(_) => {}
                }
                let bytes = oracle.0.values().sum();
                prop_assert_eq!(extents.used(), (bytes, oracle.0.len() as u64));
                for number in 0..u64::from(COUNT) {
                    let used = oracle.of_extent(number).count() as u32;
                    prop_assert_eq!(extents.extent_at(number * EXTENT), (number as u32, used));
                }
            }
        }
    }

    #[test]
    fn an_emptied_extent_serves_another_size() {
        let mut extents = Extents::new(10, 1);
        let slot = extents.allocate(4).unwrap();
        assert_eq!(extents.allocate(5), None);
        extents.free(slot, 4);
        assert!(extents.allocate(5).is_some());
    }

    #[test]
    #[should_panic(expected = "comes back once")]
    fn a_slot_comes_back_once() {
        let mut extents = Extents::new(10, 1);
        let slots = [extents.allocate(4).unwrap(), extents.allocate(4).unwrap()];
        extents.free(slots[0], 4);
        extents.free(slots[0], 4);
    }
}
