//! Prefetch: lets several cache misses overlap that would else wait for each other.

/// Asks for the cache line at an address, which may be any; nothing where the processor has no such hint.
pub(super) fn prefetch(address: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint that reads nothing the program sees and never faults, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::without_provenance(address)) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Asks for the first `bytes_max` bytes of a slice.
pub(super) fn prefetch_slice<T>(slice: &[T], bytes_max: usize) {
    let bytes = size_of_val(slice).min(bytes_max);
    (0..bytes).step_by(64).for_each(|at| prefetch(slice.as_ptr().addr() + at));
}
