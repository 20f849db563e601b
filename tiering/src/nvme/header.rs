//! The first page of a file of blocks: whose it is, and how it is cut.
//!
//! ```text
//! 0 magic (8) | 8 version u32 | 12 zero u32 | 16 uuid (16) | 32 extent bytes u64 | 40 room bytes u64
//! 48 XXH3-64 of the 48 bytes before
//! ```
//! Numbers are little endian. The rest of the page is zero.

use kelvin_kernels::checksum;

/// Bytes of a page of direct I/O.
pub(super) const PAGE_BYTES: u64 = 4096;
/// Bytes before the room for blocks: the header page, a page that health checks may write, and nothing more,
/// so that blocks start on a boundary that arrays of disks like.
pub(super) const LEAD_BYTES: u64 = 1 << 20;
/// Where health checks write.
pub(super) const SCRATCH_OFFSET: u64 = PAGE_BYTES;

const MAGIC: [u8; 8] = *b"KELVBLKS";
const VERSION: u32 = 1;
const CHECKED_BYTES: usize = 48;

const _: () = assert!(LEAD_BYTES >= SCRATCH_OFFSET + PAGE_BYTES && LEAD_BYTES.is_multiple_of(PAGE_BYTES));

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) uuid: [u8; 16],
    pub(super) extent_bytes: u64,
    /// Bytes of the room for blocks.
    pub(super) room_bytes: u64,
}

/// Why a page is no header that can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeaderFault {
    /// All zero: a fresh file.
    Blank,
    /// Something that is not ours.
    Foreign,
    /// Ours, of a format that this build does not read.
    Version(u32),
    /// Ours, but damaged.
    Damaged,
}

impl Header {
    pub(super) fn encode(&self) -> [u8; PAGE_BYTES as usize] {
        let mut page = [0; PAGE_BYTES as usize];
        page[..8].copy_from_slice(&MAGIC);
        page[8..12].copy_from_slice(&VERSION.to_le_bytes());
        page[16..32].copy_from_slice(&self.uuid);
        page[32..40].copy_from_slice(&self.extent_bytes.to_le_bytes());
        page[40..48].copy_from_slice(&self.room_bytes.to_le_bytes());
        let sum = checksum(&page[..CHECKED_BYTES]).0;
        page[48..56].copy_from_slice(&sum.to_le_bytes());
        page
    }

    /// Reads a page that may hold anything.
    pub(super) fn decode(page: &[u8; PAGE_BYTES as usize]) -> Result<Self, HeaderFault> {
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| page[at + i]));
        if page.iter().all(|&byte| byte == 0) {
            return Err(HeaderFault::Blank);
        }
        if page[..8] != MAGIC {
            return Err(HeaderFault::Foreign);
        }
        let version = u32::from_le_bytes(std::array::from_fn(|i| page[8 + i]));
        if version != VERSION {
            return Err(HeaderFault::Version(version));
        }
        let header = Self {
            uuid: std::array::from_fn(|i| page[16 + i]),
            extent_bytes: u64_at(32),
            room_bytes: u64_at(40),
        };
        let sane = header.extent_bytes >= PAGE_BYTES
            && header.extent_bytes.is_multiple_of(PAGE_BYTES)
            && header.room_bytes >= header.extent_bytes;
        if !sane || u64_at(48) != checksum(&page[..CHECKED_BYTES]).0 {
            return Err(HeaderFault::Damaged);
        }
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> impl Strategy<Value = Header> {
        (any::<[u8; 16]>(), 1..1u64 << 30, 1..1u64 << 20).prop_map(|(uuid, pages, extents)| {
            let extent_bytes = pages * PAGE_BYTES;
            Header { uuid, extent_bytes, room_bytes: extent_bytes * extents }
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(header in header()) {
            prop_assert_eq!(Header::decode(&header.encode()), Ok(header));
        }

        /// A changed byte is never taken for another header.
        #[test]
        fn damage_is_found(header in header(), at in 0..56usize, change in 1..=255u8) {
            let mut page = header.encode();
            page[at] ^= change;
            let found = Header::decode(&page);
            // Four bytes carry nothing, but are under the checksum.
            prop_assert!(found.is_err(), "{found:?}");
        }

        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..64), ours in any::<bool>()) {
            let mut page = [0; PAGE_BYTES as usize];
            page[..bytes.len()].copy_from_slice(&bytes);
            if ours {
                page[..12].copy_from_slice(&Header { uuid: [0; 16], extent_bytes: 4096, room_bytes: 4096 }.encode()[..12]);
            }
            prop_assert!(Header::decode(&page).is_err());
        }
    }

    #[test]
    fn faults_have_names() {
        let mut page = [0; PAGE_BYTES as usize];
        assert_eq!(Header::decode(&page), Err(HeaderFault::Blank));
        page[4000] = 1;
        assert_eq!(Header::decode(&page), Err(HeaderFault::Foreign));
        let header = Header { uuid: [7; 16], extent_bytes: 1 << 20, room_bytes: 1 << 24 };
        let mut page = header.encode();
        page[8] = 9;
        assert_eq!(Header::decode(&page), Err(HeaderFault::Version(9)));
        let mut page = header.encode();
        page[33] ^= 1;
        assert_eq!(Header::decode(&page), Err(HeaderFault::Damaged));
    }
}
