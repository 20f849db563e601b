//! Counting: the bytes that a workload has allocated, as the allocator rounds them.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicIsize, Ordering};

/// The system's allocator, with a count of what was allocated and not freed since counting was switched on.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;
static ON: AtomicBool = AtomicBool::new(false);
static BYTES: AtomicIsize = AtomicIsize::new(0);

/// What glibc takes for a request: 8 bytes of its own, in steps of 16, 32 at least.
fn chunk_bytes(layout: Layout) -> isize {
    ((layout.size() + 8).next_multiple_of(16)).max(32) as isize
}

fn count(bytes: isize) {
    if ON.load(Ordering::Relaxed) {
        BYTES.fetch_add(bytes, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(chunk_bytes(layout));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(chunk_bytes(layout));
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-chunk_bytes(layout));
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // The new size is valid for the layout's alignment: the caller promises it.
        count(chunk_bytes(Layout::from_size_align(size, layout.align()).unwrap_or(layout)));
        count(-chunk_bytes(layout));
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// A count that lasts while this does. One at a time, and nothing else may run beside it.
pub(crate) struct Count(isize);

impl Count {
    pub(crate) fn start() -> Count {
        ON.store(true, Ordering::SeqCst);
        Count(BYTES.load(Ordering::SeqCst))
    }

    /// Bytes allocated since the start and not freed.
    pub(crate) fn bytes(&self) -> isize {
        BYTES.load(Ordering::SeqCst) - self.0
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        ON.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_stays() {
        let layout = |bytes| Layout::from_size_align(bytes, 8).unwrap();
        assert_eq!(chunk_bytes(layout(1)), 32);
        assert_eq!(chunk_bytes(layout(24)), 32);
        assert_eq!(chunk_bytes(layout(25)), 48);
        let count = Count::start();
        let kept = vec![0u8; 1 << 24];
        // Other tests of this process allocate too, but not that much.
        assert!(count.bytes() > 1 << 23);
        drop(kept);
    }
}
