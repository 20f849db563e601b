//! Copy and checksum in one pass over memory.

use crate::{Checksum, Hasher};

/// Bytes copied before they are hashed: small enough that the hash reads them from L1/L2, large enough
/// that `memcpy` takes its wide path.
const PIECE_BYTES: usize = 16 << 10;

/// Copies `source` over `target` and returns the checksum of what was copied.
///
/// # Panics
/// When the lengths differ.
pub fn copy_checksummed(source: &[u8], target: &mut [u8]) -> Checksum {
    let mut hasher = Hasher::new();
    hasher.copy(source, target);
    hasher.finish()
}

impl Hasher {
    /// Copies `source` over `target` and adds what was copied: [`copy_checksummed`] for bytes that come in
    /// pieces.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn copy(&mut self, source: &[u8], target: &mut [u8]) {
        assert_eq!(source.len(), target.len(), "copy between slices of one length");
        for (from, to) in source.chunks(PIECE_BYTES).zip(target.chunks_mut(PIECE_BYTES)) {
            to.copy_from_slice(from);
            // The target is hashed, not the source: should the source change meanwhile (it may be shared
            // memory), the checksum still is that of the bytes kept.
            self.update(to);
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
            source in prop::collection::vec(any::<u8>(), 0..70_000), piece in 1usize..40_000,
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
