//! Copy and checksum in one pass over memory.

use crate::{Checksum, Hasher, stream};

/// Bytes hashed before they are copied: small enough that the copy reads them from L1. Of 2 to 16 KiB,
/// measured on blocks of 64 KiB to 8 MiB, the best.
const PIECE_BYTES: usize = 4 << 10;

/// From this size on the target goes past the caches: a store's block, which another process reads later. A
/// smaller one costs little, and may well be read at once.
const STREAM_BYTES_MIN: usize = 64 << 10;

/// Copies `source` over `target` and returns the checksum of it.
///
/// Where the source is memory that somebody may change meanwhile, the checksum may be that of other bytes than
/// the copy's: then the copy fails its checksum, like any damaged one.
///
/// # Panics
/// When the lengths differ.
pub fn copy_checksummed(source: &[u8], target: &mut [u8]) -> Checksum {
    let mut hasher = Hasher::new();
    hasher.copy(source, target);
    hasher.finish()
}

impl Hasher {
    /// Copies `source` over `target` and adds it: [`copy_checksummed`] for bytes that come in pieces.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn copy(&mut self, source: &[u8], target: &mut [u8]) {
        assert_eq!(source.len(), target.len(), "copy between slices of one length");
        let past_caches = source.len() >= STREAM_BYTES_MIN;
        for (from, to) in source.chunks(PIECE_BYTES).zip(target.chunks_mut(PIECE_BYTES)) {
            self.update(from);
            if past_caches {
                stream::copy(from, to);
            } else {
                to.copy_from_slice(from);
            }
        }
        if past_caches {
            stream::settle();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::checksum;

    proptest! {
        #[test]
        fn copies_and_hashes_like_the_two_steps(
            source in prop::collection::vec(any::<u8>(), 0..90_000), piece in 1usize..80_000,
        ) {
            let mut target = vec![0; source.len()];
            prop_assert_eq!(copy_checksummed(&source, &mut target), checksum(&source));
            prop_assert_eq!(&target, &source);

            let (mut pieces, mut hasher) = (vec![0; source.len()], Hasher::new());
            for (from, to) in source.chunks(piece).zip(pieces.chunks_mut(piece)) {
                hasher.copy(from, to);
            }
            prop_assert_eq!(hasher.finish(), checksum(&source));
            prop_assert_eq!(pieces, source);
        }
    }

    #[test]
    fn a_large_block_is_copied_wherever_it_begins_and_ends() {
        let source: Vec<u8> = (0..STREAM_BYTES_MIN + 100).map(|at| (at * 7) as u8).collect();
        for (start, end) in [(0, 100), (1, 100), (15, 99), (16, 84), (33, 77)] {
            let source = &source[start..source.len() - 100 + end];
            let mut target = vec![0; source.len() + 64];
            for offset in [0, 1, 8, 31] {
                let target = &mut target[offset..][..source.len()];
                target.fill(0);
                assert_eq!(copy_checksummed(source, target), checksum(source));
                assert!(target == source);
            }
        }
    }

    #[test]
    fn checksum_is_xxh3_64() {
        // The reference implementation's value for the empty input and seed 0.
        assert_eq!(checksum(b"").0, 0x2d06_8005_38d3_94c2);
    }

    #[test]
    #[should_panic(expected = "one length")]
    fn lengths_must_agree() {
        copy_checksummed(&[1, 2], &mut [0]);
    }
}
