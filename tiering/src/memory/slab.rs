//! Cuts a region into chunks and the chunks into equal slots.
//!
//! # Overview
//! The region is a row of equal chunks. A chunk that holds anything is bound to one slot size; an empty
//! chunk is bound to none, so that sizes can change places as models come and go. Slots are handed out from
//! the fullest chunk of their size, to let the others run empty. This is bookkeeping only: it touches no
//! memory and takes no lock.
//!
//! # Limits
//! A slot larger than a chunk cannot be had. The end of a chunk that no whole slot fits in is lost
//! (below one part in `chunk / slot`).

use std::collections::{BTreeMap, BTreeSet};

/// Where a slot lies in the region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SlotAddress {
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

#[derive(Debug)]
struct Chunk {
    slot_bytes: u64,
    /// Free slots of this chunk, by number; the last is handed out next.
    free: Vec<u32>,
    used: u32,
}

/// The bookkeeping of a region.
#[derive(Debug)]
pub(crate) struct Slab {
    chunk_bytes: u64,
    chunks: Vec<Option<Chunk>>,
    empty: Vec<u32>,
    /// Chunks with a free slot: slot size -> (slots used, chunk number), fullest last.
    open: BTreeMap<u64, BTreeSet<(u32, u32)>>,
    used_bytes: u64,
    used_slots: u64,
}

impl Slab {
    pub(crate) fn new(region_bytes: u64, chunk_bytes: u64) -> Self {
        assert!(chunk_bytes > 0, "a chunk has bytes");
        let count = u32::try_from(region_bytes / chunk_bytes).expect("fewer than 2^32 chunks");
        Self {
            chunk_bytes,
            chunks: (0..count).map(|_| None).collect(),
            empty: (0..count).rev().collect(),
            open: BTreeMap::new(),
            used_bytes: 0,
            used_slots: 0,
        }
    }

    /// Bytes in slots that are handed out, and how many slots those are.
    pub(crate) fn used(&self) -> (u64, u64) {
        (self.used_bytes, self.used_slots)
    }

    pub(crate) fn chunk_bytes(&self) -> u64 {
        self.chunk_bytes
    }

    /// Slots handed out of the chunk that this offset lies in, and the chunk's number.
    pub(crate) fn chunk_at(&self, offset: u64) -> (u32, u32) {
        let number = (offset / self.chunk_bytes) as u32;
        (number, self.chunks[number as usize].as_ref().map_or(0, |chunk| chunk.used))
    }

    pub(crate) fn allocate(&mut self, slot_bytes: u64) -> Option<SlotAddress> {
        if slot_bytes == 0 || slot_bytes > self.chunk_bytes {
            return None;
        }
        let fullest = self.open.get_mut(&slot_bytes).and_then(BTreeSet::pop_last);
        let number = match fullest {
            Some((_, number)) => number,
            None => {
                let number = self.empty.pop()?;
                let slots = (self.chunk_bytes / slot_bytes) as u32;
                self.chunks[number as usize] =
                    Some(Chunk { slot_bytes, free: (0..slots).rev().collect(), used: 0 });
                number
            }
        };
        let chunk = self.chunks[number as usize].as_mut().expect("an open chunk is bound");
        let slot = chunk.free.pop().expect("an open chunk has a free slot");
        chunk.used += 1;
        if !chunk.free.is_empty() {
            let used = chunk.used;
            self.open.entry(slot_bytes).or_default().insert((used, number));
        }
        self.used_bytes += slot_bytes;
        self.used_slots += 1;
        let offset = u64::from(number) * self.chunk_bytes + u64::from(slot) * slot_bytes;
        Some(SlotAddress { offset, bytes: slot_bytes })
    }

    /// Takes back a slot that `allocate` gave.
    pub(crate) fn free(&mut self, address: SlotAddress) {
        let number = (address.offset / self.chunk_bytes) as u32;
        let place = &mut self.chunks[number as usize];
        let chunk = place.as_mut().expect("a slot comes back to a bound chunk");
        assert_eq!(chunk.slot_bytes, address.bytes, "a slot comes back with its size");
        let slot = ((address.offset % self.chunk_bytes) / chunk.slot_bytes) as u32;
        debug_assert!(!chunk.free.contains(&slot), "a slot comes back once");
        let open = self.open.entry(address.bytes).or_default();
        open.remove(&(chunk.used, number));
        chunk.free.push(slot);
        chunk.used -= 1;
        if chunk.used == 0 {
            *place = None;
            self.empty.push(number);
        } else {
            open.insert((chunk.used, number));
        }
        if open.is_empty() {
            self.open.remove(&address.bytes);
        }
        self.used_bytes -= address.bytes;
        self.used_slots -= 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Op {
        Allocate(u64),
        Free(prop::sample::Index),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            3 => prop::sample::select(vec![1, 3, 4, 10, 11]).prop_map(Op::Allocate),
            2 => any::<prop::sample::Index>().prop_map(Op::Free),
        ]
    }

    proptest! {
        /// The oracle knows only which ranges are out: no two overlap, all lie inside a chunk, and a size is
        /// refused only when no empty chunk and no free slot of that size is left.
        #[test]
        fn slots_never_overlap(ops in prop::collection::vec(op(), 1..200)) {
            let (region, chunk) = (40, 10);
            let mut slab = Slab::new(region, chunk);
            let mut out: Vec<SlotAddress> = Vec::new();
            for op in ops {
                match op {
                    Op::Allocate(bytes) => match slab.allocate(bytes) {
                        Some(slot) => {
                            prop_assert_eq!(slot.bytes, bytes);
                            prop_assert!(slot.offset / chunk == (slot.offset + bytes - 1) / chunk);
                            prop_assert!(slot.offset + bytes <= region);
                            for other in &out {
                                let apart = slot.offset + slot.bytes <= other.offset
                                    || other.offset + other.bytes <= slot.offset;
                                prop_assert!(apart, "{slot:?} overlaps {other:?}");
                            }
                            out.push(slot);
                        }
                        None => {
                            let in_chunk = |n: u64| out.iter().filter(move |s| s.offset / chunk == n);
                            let room = (0..region / chunk).any(|n| {
                                let used = in_chunk(n).count() as u64;
                                used == 0 || (in_chunk(n).all(|s| s.bytes == bytes) && used < chunk / bytes)
                            });
                            prop_assert!(bytes > chunk || !room, "refused {bytes} with room left");
                        }
                    },
                    Op::Free(index) if !out.is_empty() => slab.free(out.swap_remove(index.index(out.len()))),
                    Op::Free(_) => {}
                }
                let bytes: u64 = out.iter().map(|slot| slot.bytes).sum();
                prop_assert_eq!(slab.used(), (bytes, out.len() as u64));
            }
        }
    }

    #[test]
    fn an_emptied_chunk_serves_another_size() {
        let mut slab = Slab::new(10, 10);
        let slot = slab.allocate(4).unwrap();
        assert_eq!(slab.allocate(5), None);
        slab.free(slot);
        assert!(slab.allocate(5).is_some());
    }
}
