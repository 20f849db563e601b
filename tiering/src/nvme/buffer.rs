//! Memory that direct I/O takes: whole pages on a page boundary, in huge pages where it is large.
//!
//! A disk is given memory as a list of pieces that are physically whole. In 4 KiB pages half a MiB may be 128 of
//! them, which is half of what some disks take at a time; in a huge page it is one.

use std::{
    alloc::{Layout, handle_alloc_error},
    ptr::NonNull,
    sync::Arc,
};

use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::header::PAGE_BYTES;

/// A huge page of the architectures that Kelvin runs on.
const HUGE_BYTES: usize = 2 << 20;

/// Private memory from the kernel.
#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
}

impl Mapping {
    fn new(bytes: usize) -> Self {
        // SAFETY: a fresh private mapping at an address of the kernel's choice aliases nothing.
        let base = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        };
        let base = base.ok().and_then(|base| NonNull::new(base.cast())).unwrap_or_else(|| {
            handle_alloc_error(Layout::from_size_align(bytes, 1).expect("a size that memory can have"))
        });
        Self { base, bytes }
    }
}

// SAFETY: plain memory, reached only through pages, whose ranges do not overlap.
unsafe impl Send for Mapping {}
// SAFETY: as above; a mapping itself hands out nothing.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length; all pages that point into it hold it.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// Pages of a mapping, zero at first.
#[derive(Debug)]
pub(super) struct Pages {
    start: NonNull<u8>,
    bytes: usize,
    _mapping: Arc<Mapping>,
}

// SAFETY: the memory belongs to this value alone, as a boxed slice's would.
unsafe impl Send for Pages {}
// SAFETY: shared access only reads.
unsafe impl Sync for Pages {}

impl Pages {
    /// `bytes` rounded up to whole pages, at least one.
    pub(super) fn new(bytes: usize) -> Self {
        Self::row(1, bytes).remove(0)
    }

    /// As many side by side, each of `bytes` rounded up to whole pages. From half a huge page on they lie in
    /// huge pages, if the kernel has any to give.
    pub(super) fn row(count: usize, bytes: usize) -> Vec<Self> {
        let bytes = bytes.max(1).next_multiple_of(PAGE_BYTES as usize);
        let total = bytes * count;
        let huge = total >= HUGE_BYTES / 2;
        let length = if huge { total.next_multiple_of(HUGE_BYTES) + HUGE_BYTES } else { total.max(bytes) };
        let mapping = Mapping::new(length);
        let mut lead = 0;
        if huge {
            lead = mapping.base.as_ptr().align_offset(HUGE_BYTES);
            // SAFETY: within the mapping, which is one huge page longer than what is used of it.
            let first = unsafe { mapping.base.add(lead) };
            // SAFETY: the range lies in the mapping, and the advice does not change what is in it.
            let _ = unsafe {
                rustix::mm::madvise(first.as_ptr().cast(), length - HUGE_BYTES, Advice::LinuxHugepage)
            };
        }
        let mapping = Arc::new(mapping);
        let pages = (0..count).map(|number| {
            // SAFETY: `count` times `bytes` after the lead lie within the mapping.
            let start = unsafe { mapping.base.add(lead + number * bytes) };
            Self { start, bytes, _mapping: mapping.clone() }
        });
        pages.collect()
    }

    pub(super) fn len(&self) -> usize {
        self.bytes
    }

    pub(super) fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: the pages are initialized, no other value's, and live as long as `self`, which is borrowed
        // alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl AsRef<[u8]> for Pages {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the pages are initialized, no other value's, and live as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }
}

impl AsMut<[u8]> for Pages {
    fn as_mut(&mut self) -> &mut [u8] {
        self.as_mut_slice()
    }
}

// SAFETY: the pages stay where they are when the value moves, and are initialized.
unsafe impl tokio_uring::buf::IoBuf for Pages {
    fn stable_ptr(&self) -> *const u8 {
        self.as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.len()
    }

    fn bytes_total(&self) -> usize {
        self.len()
    }
}

// SAFETY: as above; all of it is initialized already, so that there is nothing to note.
unsafe impl tokio_uring::buf::IoBufMut for Pages {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.as_ptr()
    }

    unsafe fn set_init(&mut self, _bytes: usize) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_does_not_overlap_and_begins_on_its_boundary() {
        for (count, bytes, boundary) in [(3, 5000, 4096), (8, 1 << 20, HUGE_BYTES), (1, 1 << 20, HUGE_BYTES)]
        {
            let mut row = Pages::row(count, bytes);
            assert!(row.len() == count && (row[0].as_ptr() as usize).is_multiple_of(boundary));
            for (number, pages) in row.iter_mut().enumerate() {
                assert!(pages.len() >= bytes && pages.as_ref().iter().all(|&byte| byte == 0));
                pages.as_mut_slice().fill(number as u8 + 1);
            }
            let last = row.pop().unwrap();
            drop(row);
            assert!(last.as_ref().iter().all(|&byte| byte == count as u8));
        }
    }
}
