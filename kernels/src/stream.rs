//! A copy whose target goes past the caches.
//!
//! A plain store first reads the line it writes to, and then turns something else out of the cache. Where the
//! target is large and nobody here reads it soon, storing past the caches saves both: 13 to 14 GB/s a core
//! where `memcpy` of the same blocks has 8 to 11.

/// Copies without reading the target's lines. Weakly ordered: [`settle`] comes before anyone is told of it.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
pub(crate) fn copy(source: &[u8], target: &mut [u8]) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};

    // SAFETY: any 16 bytes are an `__m128i`, and any `__m128i` is 16 bytes.
    let (head, lanes, tail) = unsafe { target.align_to_mut::<__m128i>() };
    let (source_head, rest) = source.split_at(head.len());
    let (source_lanes, source_tail) = rest.split_at(size_of_val(lanes));
    head.copy_from_slice(source_head);
    tail.copy_from_slice(source_tail);
    for (lane, from) in lanes.iter_mut().zip(source_lanes.chunks_exact(16)) {
        // SAFETY: `from` has 16 bytes, and an unaligned load wants no more of them; `lane` is aligned, and
        // ours to write. Both instructions are of SSE2, which every x86-64 has.
        unsafe { _mm_stream_si128(lane, _mm_loadu_si128(from.as_ptr().cast())) };
    }
}

/// Orders the stores of [`copy`] before all that follow.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
pub(crate) fn settle() {
    // SAFETY: a fence touches no memory, and is of SSE, which every x86-64 has.
    unsafe { std::arch::x86_64::_mm_sfence() };
}

/// Elsewhere a copy like any other.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn copy(source: &[u8], target: &mut [u8]) {
    target.copy_from_slice(source);
}

/// Nothing to order.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn settle() {}
