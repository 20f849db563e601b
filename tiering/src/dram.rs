//! The DRAM tier: equal slots in a memory file that processes on the same host map.
//!
//! A slot is a range of the file. Whoever maps the file fills and reads it in place; the [`Device`] face
//! copies, for clients that cannot.

use std::{fmt, sync::Arc};

use parking_lot::Mutex;

use crate::{
    Arena, Device, DeviceError, MemoryError, Tier, Usage,
    memory::{Slab, SlotAddress},
};

/// Slots start and end on this boundary, so that a tier with direct I/O can read and write them.
const IO_PAGE_BYTES: u64 = 4096;
/// A chunk of the pool, at most and for all but tiny pools at least.
const CHUNK_BYTES_MAX: u64 = 64 << 20;
const CHUNK_BYTES_MIN: u64 = 4 << 20;

/// A pool of slots over one memory file. Cloning shares it.
#[derive(Clone)]
pub struct DramPool(Arc<Shared>);

struct Shared {
    arena: Arena,
    slab: Mutex<Slab>,
}

impl DramPool {
    /// A pool of `bytes` (rounded up to whole chunks, whose size follows from it).
    pub fn new(name: &str, bytes: u64) -> Result<Self, MemoryError> {
        Self::over(Arena::create(name, whole_chunks(bytes))?, bytes)
    }

    /// The same in huge pages that the operator set aside: a disk moves a block to and from them in one piece,
    /// and programs that map the pool need few entries of the TLB for it.
    pub fn in_huge_pages(name: &str, bytes: u64) -> Result<Self, MemoryError> {
        Self::over(Arena::create_in_huge_pages(name, whole_chunks(bytes))?, bytes)
    }

    fn over(arena: Arena, bytes: u64) -> Result<Self, MemoryError> {
        let slab = Slab::new(whole_chunks(bytes), chunk_bytes(bytes));
        Ok(Self(Arc::new(Shared { arena, slab: Mutex::new(slab) })))
    }

    /// The memory file.
    pub fn arena(&self) -> &Arena {
        &self.0.arena
    }

    /// Largest block that fits.
    pub fn block_bytes_max(&self) -> u64 {
        self.0.slab.lock().chunk_bytes()
    }

    /// The chunk a slot lies in, and how many slots of that chunk are out. An empty chunk can take slots of
    /// another size.
    pub fn chunk_of(&self, slot: &DramSlot) -> (u32, u32) {
        self.0.slab.lock().chunk_at(slot.address.offset)
    }

    /// Blocks of this size that the pool holds at most, should it hold no other.
    pub fn blocks_max(&self, block_bytes: u64) -> u64 {
        let chunk = self.block_bytes_max();
        (self.0.arena.bytes() / chunk) * (chunk / slot_bytes(block_bytes))
    }
}

/// A size that no region has stands for one that cannot be rounded up.
fn slot_bytes(block_bytes: u64) -> u64 {
    block_bytes.max(1).checked_next_multiple_of(IO_PAGE_BYTES).unwrap_or(u64::MAX)
}

/// About a thirtieth of the pool, so that several block sizes find room beside each other.
fn chunk_bytes(pool_bytes: u64) -> u64 {
    if pool_bytes <= CHUNK_BYTES_MIN {
        return pool_bytes.max(1).next_multiple_of(IO_PAGE_BYTES);
    }
    (pool_bytes / 32).next_power_of_two().clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX)
}

fn whole_chunks(pool_bytes: u64) -> u64 {
    pool_bytes.max(1).next_multiple_of(chunk_bytes(pool_bytes))
}

/// A slot of a [`DramPool`], owned: dropping it returns it.
pub struct DramSlot {
    pool: Arc<Shared>,
    address: SlotAddress,
    bytes: u64,
}

impl DramSlot {
    /// Offset in the memory file.
    pub fn offset(&self) -> u64 {
        self.address.offset
    }

    /// Bytes that were asked for.
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// Never: a slot has at least one byte.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Bytes that a slot for so many takes in the pool.
    pub fn slot_bytes_for(bytes: u64) -> u64 {
        slot_bytes(bytes)
    }

    /// Bytes it takes in the pool.
    pub fn slot_bytes(&self) -> u64 {
        self.address.bytes
    }

    /// The bytes, for a block that is sealed (nobody writes it) or still filled by this process.
    pub fn bytes(&self) -> &[u8] {
        let start = self.pool.arena.range(self.address.offset, self.bytes).expect("a slot lies in its arena");
        // SAFETY: the range is mapped as long as `pool` lives. No `&mut` to it exists in this process: that
        // takes `&mut self`. Another process may write it while it holds the reservation; the store looks
        // at it then only to make the checksum at commit, by when the writer said that it is done. One that
        // breaks this gets bytes that fail their checksum: they are numbers, and any value of them is valid.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), self.bytes as usize) }
    }

    /// The bytes, to fill.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let start = self.pool.arena.range(self.address.offset, self.bytes).expect("a slot lies in its arena");
        // SAFETY: as in `bytes`; `&mut self` makes it the only reference of this process, and slots do not
        // overlap.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), self.bytes as usize) }
    }
}

impl Drop for DramSlot {
    fn drop(&mut self) {
        self.pool.slab.lock().free(self.address);
    }
}

impl AsRef<[u8]> for DramSlot {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

impl AsMut<[u8]> for DramSlot {
    fn as_mut(&mut self) -> &mut [u8] {
        self.bytes_mut()
    }
}

impl AsRef<DramSlot> for DramSlot {
    fn as_ref(&self) -> &DramSlot {
        self
    }
}

impl fmt::Debug for DramSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DramSlot({}+{})", self.address.offset, self.bytes)
    }
}

/// The range of a place that an operation covers.
fn within(offset: u64, bytes: usize, place_bytes: u64) -> Result<std::ops::Range<usize>, DeviceError> {
    match offset.checked_add(bytes as u64) {
        Some(end) if end <= place_bytes => Ok(offset as usize..end as usize),
        _ => Err(DeviceError::OutOfBounds { offset, bytes: bytes as u64, place_bytes }),
    }
}

impl Device for DramPool {
    type Place = DramSlot;

    fn tier(&self) -> Tier {
        Tier::Dram
    }

    fn allocate(&self, bytes: u64) -> Option<DramSlot> {
        if bytes == 0 {
            return None;
        }
        let address = self.0.slab.lock().allocate(slot_bytes(bytes))?;
        Some(DramSlot { pool: self.0.clone(), address, bytes })
    }

    async fn write<B: AsRef<[u8]> + Send + 'static>(
        &self,
        mut place: DramSlot,
        offset: u64,
        source: B,
    ) -> (DramSlot, B, Result<(), DeviceError>) {
        let result = within(offset, source.as_ref().len(), place.len())
            .map(|range| place.bytes_mut()[range].copy_from_slice(source.as_ref()));
        (place, source, result)
    }

    async fn read<P, B>(&self, place: P, offset: u64, mut target: B) -> (P, B, Result<(), DeviceError>)
    where
        P: AsRef<DramSlot> + Send + 'static,
        B: AsMut<[u8]> + Send + 'static,
    {
        let result = within(offset, target.as_mut().len(), place.as_ref().len())
            .map(|range| target.as_mut().copy_from_slice(&place.as_ref().bytes()[range]));
        (place, target, result)
    }

    fn usage(&self) -> Usage {
        let (used_bytes, places) = self.0.slab.lock().used();
        Usage { capacity_bytes: self.0.arena.bytes(), used_bytes, places }
    }
}

impl fmt::Debug for DramPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DramPool({:?})", self.usage())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fault, Faulty, block_on, check_device};

    #[test]
    fn huge_pages_conform_or_are_refused_with_what_to_do() {
        match DramPool::in_huge_pages("test", 4 << 20) {
            Ok(pool) => check_device(&pool),
            Err(error) => {
                assert!(error.to_string().contains("set 2 more aside (sysctl vm.nr_hugepages)"), "{error}")
            }
        }
        let error = DramPool::in_huge_pages("test", 1 << 45).unwrap_err();
        assert!(matches!(error, MemoryError::HugePages { .. }), "{error}");
    }

    #[test]
    fn conforms() {
        check_device(&DramPool::new("test", 1 << 20).unwrap());
        check_device(&Faulty::new(DramPool::new("test", 1 << 20).unwrap(), 1));
    }

    #[test]
    fn faults_reach_the_caller_with_the_buffers() {
        let device = Faulty::new(DramPool::new("test", 1 << 20).unwrap(), 1);
        let place = device.allocate(8192).unwrap();
        device.inject(Fault::WriteError);
        let (place, source, result) = block_on(device.write(place, 0, vec![1u8; 8192]));
        assert!(result.is_err() && source.len() == 8192);
        device.inject(Fault::TornWrite);
        let (place, source, result) = block_on(device.write(place, 0, source));
        assert!(result.is_ok(), "a torn write is silent");
        let (_, target, result) = block_on(device.read(place, 0, vec![0u8; 8192]));
        assert!(result.is_ok() && target != source);
    }

    #[test]
    fn chunks_follow_the_pool() {
        for (pool, chunk) in [(4096, 4096), (1 << 20, 1 << 20), (8 << 20, 4 << 20), (1 << 30, 32 << 20)] {
            assert_eq!(chunk_bytes(pool), chunk, "{pool}");
        }
        assert_eq!(chunk_bytes(1 << 40), CHUNK_BYTES_MAX);
    }

    #[test]
    fn blocks_max_is_what_can_be_allocated() {
        let pool = DramPool::new("test", 9 << 20).unwrap();
        let mut slots = Vec::new();
        while let Some(slot) = pool.allocate(368_640) {
            slots.push(slot);
        }
        assert_eq!(slots.len() as u64, pool.blocks_max(368_640));
    }
}
