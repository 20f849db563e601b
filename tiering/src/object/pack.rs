//! The format of a pack: many blocks of one namespace in one object, and a footer that finds them.
//!
//! # Overview
//! Little endian throughout.
//! ```text
//! header   64 bytes   "KELVPACK", version u32, header bytes u32, namespace, pack id, zero u64, XXH3-64
//! blocks              one behind the other, in the order in which they were given
//! entries  56 bytes   hash, parent, offset u64, bytes u32, flags u32 (bit 0: has a parent), XXH3-64 of the block
//! trailer  64 bytes   "KELVFOOT", version u32, entries u32, namespace, pack id, object bytes u64, XXH3-64
//! ```
//! The trailer's checksum covers the entries and the trailer; the header's covers the header. Entries and
//! trailer are the footer: one request for the end of the object brings it. The header is there for tools
//! that meet the object alone.
//!
//! # Invariants
//! Decoding is total: any bytes give a pack or a [`PackError`]. Entries ascend by offset, don't overlap and lie
//! between header and footer.

use std::{fmt, str::FromStr, time::SystemTime};

use kelvin_kernels::{Checksum, checksum};

/// Blocks that a pack holds at most, so that its footer stays below 4 MiB.
pub const PACK_ENTRIES_MAX: usize = 1 << 16;
/// Bytes of a pack at most: below the 5 GiB of an S3 PUT, and what a retry has to send again.
pub const PACK_BYTES_MAX: u64 = 1 << 30;

pub(super) const HEADER_BYTES: usize = 64;
const ENTRY_BYTES: usize = 56;
const TRAILER_BYTES: usize = 64;
const VERSION: u32 = 1;
const HEADER_MAGIC: &[u8; 8] = b"KELVPACK";
const TRAILER_MAGIC: &[u8; 8] = b"KELVFOOT";
const HAS_PARENT: u32 = 1;

/// A namespace as the tiers know it.
pub type Namespace = [u8; 16];

/// Identity of a pack: 48 bits of Unix milliseconds, big endian, and 80 random bits. Orders by age.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PackId(pub [u8; 16]);

impl PackId {
    /// A new one; two are never alike.
    pub fn generate() -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut id = [0; 16];
        id[..6].copy_from_slice(&(since.as_millis() as u64).to_be_bytes()[2..]);
        id[6..].copy_from_slice(&super::random::bytes::<10>());
        Self(id)
    }

    /// When it was made, by its maker's clock.
    pub fn created_unix_ms(&self) -> u64 {
        self.0[..6].iter().fold(0, |ms, &byte| ms << 8 | u64::from(byte))
    }
}

impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Debug for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

/// A text that is no [`PackId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a pack id is 32 digits of lower-case hex")]
pub struct PackIdError;

impl FromStr for PackId {
    type Err = PackIdError;

    fn from_str(text: &str) -> Result<Self, PackIdError> {
        from_hex(text).map(Self).ok_or(PackIdError)
    }
}

pub(super) fn hex(bytes: &[u8; 16], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

/// Lower case only, as `hex` writes it: one name a value.
pub(super) fn from_hex(text: &str) -> Option<[u8; 16]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let text: &[u8; 32] = text.as_bytes().try_into().ok()?;
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// One block of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackEntry {
    /// Its sequence hash.
    pub hash: [u8; 16],
    /// The hash before it; `None` at the start of a sequence.
    pub parent: Option<[u8; 16]>,
    /// First byte in the object.
    pub offset: u64,
    /// Length.
    pub bytes: u32,
    /// XXH3-64 taken at commit.
    pub checksum: Checksum,
}

impl PackEntry {
    /// The byte behind it, or `None` where no object is that long.
    pub(super) fn end(&self) -> Option<u64> {
        self.offset.checked_add(u64::from(self.bytes))
    }
}

/// What a pack's footer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackInfo {
    /// Its identity.
    pub id: PackId,
    /// Whose blocks it holds.
    pub namespace: Namespace,
    /// Length of the object.
    pub bytes: u64,
    /// Its blocks by ascending offset.
    pub entries: Vec<PackEntry>,
}

/// Why bytes are no pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// Shorter than the smallest pack, or than what it says of itself.
    #[error("the object is cut short")]
    Short,
    /// Something else.
    #[error("the object is no pack")]
    Magic,
    /// Written by a later version.
    #[error("the pack has format version {0}, known is {VERSION}")]
    Version(u32),
    /// The footer was damaged.
    #[error("the footer fails its checksum")]
    Checksum,
    /// The footer is whole but makes no sense.
    #[error("the footer contradicts itself: {0}")]
    Contradiction(&'static str),
    /// Another pack's bytes under this name.
    #[error("the object holds another pack")]
    Other,
}

/// What the end of an object told.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Footer {
    Whole(PackInfo),
    /// So many bytes from the end are needed.
    Needs(u64),
}

/// The header of a pack.
pub(super) fn encode_header(namespace: &Namespace, id: PackId) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(HEADER_MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&(HEADER_BYTES as u32).to_le_bytes());
    header[16..32].copy_from_slice(namespace);
    header[32..48].copy_from_slice(&id.0);
    let sum = checksum(&header[..56]);
    header[56..].copy_from_slice(&sum.0.to_le_bytes());
    header
}

/// Whose pack starts with these bytes.
#[cfg(test)]
pub(super) fn decode_header(bytes: &[u8]) -> Result<(Namespace, PackId), PackError> {
    let header: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(PackError::Short)?;
    if &header[..8] != HEADER_MAGIC {
        return Err(PackError::Magic);
    }
    let version = u32_at(header, 8);
    if version != VERSION {
        return Err(PackError::Version(version));
    }
    if checksum(&header[..56]).0 != u64_at(header, 56) {
        return Err(PackError::Checksum);
    }
    Ok((id_at(header, 16), PackId(id_at(header, 32))))
}

/// Bytes of the footer of a pack of so many blocks.
pub(super) fn footer_bytes(entries: usize) -> u64 {
    (entries * ENTRY_BYTES + TRAILER_BYTES) as u64
}

/// The footer of a pack.
pub(super) fn encode_footer(pack: &PackInfo) -> Vec<u8> {
    let mut footer = Vec::with_capacity(footer_bytes(pack.entries.len()) as usize);
    for entry in &pack.entries {
        footer.extend_from_slice(&entry.hash);
        footer.extend_from_slice(&entry.parent.unwrap_or_default());
        footer.extend_from_slice(&entry.offset.to_le_bytes());
        footer.extend_from_slice(&entry.bytes.to_le_bytes());
        footer.extend_from_slice(&(if entry.parent.is_some() { HAS_PARENT } else { 0 }).to_le_bytes());
        footer.extend_from_slice(&entry.checksum.0.to_le_bytes());
    }
    footer.extend_from_slice(TRAILER_MAGIC);
    footer.extend_from_slice(&VERSION.to_le_bytes());
    footer.extend_from_slice(&(pack.entries.len() as u32).to_le_bytes());
    footer.extend_from_slice(&pack.namespace);
    footer.extend_from_slice(&pack.id.0);
    footer.extend_from_slice(&pack.bytes.to_le_bytes());
    let sum = checksum(&footer);
    footer.extend_from_slice(&sum.0.to_le_bytes());
    footer
}

/// Reads the footer out of the last bytes of an object of `object_bytes`.
pub(super) fn decode_footer(tail: &[u8], object_bytes: u64) -> Result<Footer, PackError> {
    if tail.len() as u64 > object_bytes {
        return Err(PackError::Contradiction("more bytes than the object has"));
    }
    let trailer: &[u8; TRAILER_BYTES] = tail.last_chunk().ok_or(PackError::Short)?;
    if &trailer[..8] != TRAILER_MAGIC {
        return Err(PackError::Magic);
    }
    let version = u32_at(trailer, 8);
    if version != VERSION {
        return Err(PackError::Version(version));
    }
    let count = u32_at(trailer, 12) as usize;
    if count > PACK_ENTRIES_MAX {
        return Err(PackError::Contradiction("too many blocks"));
    }
    let bytes = footer_bytes(count);
    if bytes + HEADER_BYTES as u64 > object_bytes {
        return Err(PackError::Short);
    }
    if bytes > tail.len() as u64 {
        return Ok(Footer::Needs(bytes));
    }
    let footer = &tail[tail.len() - bytes as usize..];
    if checksum(&footer[..footer.len() - 8]).0 != u64_at(trailer, 56) {
        return Err(PackError::Checksum);
    }
    if u64_at(trailer, 48) != object_bytes {
        return Err(PackError::Contradiction("its length is not the object's"));
    }
    let mut entries = Vec::with_capacity(count);
    let mut free_from = HEADER_BYTES as u64;
    for raw in footer[..footer.len() - TRAILER_BYTES].chunks_exact(ENTRY_BYTES) {
        let entry = decode_entry(raw)?;
        if entry.offset < free_from {
            return Err(PackError::Contradiction("blocks overlap"));
        }
        match entry.end() {
            Some(end) if end <= object_bytes - bytes => free_from = end,
            _ => return Err(PackError::Contradiction("a block leaves the object")),
        }
        entries.push(entry);
    }
    let (namespace, id) = (id_at(trailer, 16), PackId(id_at(trailer, 32)));
    Ok(Footer::Whole(PackInfo { id, namespace, bytes: object_bytes, entries }))
}

fn decode_entry(raw: &[u8]) -> Result<PackEntry, PackError> {
    let parent: [u8; 16] = id_at(raw, 16);
    let parent = match u32_at(raw, 44) {
        HAS_PARENT => Some(parent),
        0 if parent == [0; 16] => None,
        _ => return Err(PackError::Contradiction("unknown flags")),
    };
    let bytes = u32_at(raw, 40);
    if bytes == 0 {
        return Err(PackError::Contradiction("an empty block"));
    }
    Ok(PackEntry {
        hash: id_at(raw, 0),
        parent,
        offset: u64_at(raw, 32),
        bytes,
        checksum: Checksum(u64_at(raw, 48)),
    })
}

/// The callers have checked that `bytes` reach so far: these cannot be out of range.
fn id_at(bytes: &[u8], at: usize) -> [u8; 16] {
    std::array::from_fn(|i| bytes[at + i])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packs() -> impl Strategy<Value = PackInfo> {
        let block = (any::<[u8; 16]>(), any::<Option<[u8; 16]>>(), 1u32..5000, any::<u64>(), 0u64..300);
        (any::<[u8; 16]>(), any::<[u8; 16]>(), prop::collection::vec(block, 0..40)).prop_map(
            |(id, namespace, blocks)| {
                let mut free = HEADER_BYTES as u64;
                let mut entries = Vec::new();
                for (hash, parent, bytes, sum, gap) in blocks {
                    let entry =
                        PackEntry { hash, parent, offset: free + gap, bytes, checksum: Checksum(sum) };
                    free = entry.offset + u64::from(bytes);
                    entries.push(entry);
                }
                let bytes = free + footer_bytes(entries.len());
                PackInfo { id: PackId(id), namespace, bytes, entries }
            },
        )
    }

    proptest! {
        #[test]
        fn a_footer_comes_back(pack in packs(), before in prop::collection::vec(any::<u8>(), 0..64)) {
            let footer = encode_footer(&pack);
            // More than the footer may be at hand.
            let mut tail = before;
            tail.extend_from_slice(&footer);
            prop_assert_eq!(decode_footer(&tail, pack.bytes), Ok(Footer::Whole(pack.clone())));
            // Less than the footer asks for the rest, and less than the trailer is no pack.
            if !pack.entries.is_empty() {
                let needs = Footer::Needs(footer.len() as u64);
                prop_assert_eq!(decode_footer(&footer[1..], pack.bytes), Ok(needs));
            }
            prop_assert_eq!(decode_footer(&footer[footer.len() - 63..], pack.bytes), Err(PackError::Short));
        }

        #[test]
        fn a_footer_with_a_change_is_refused(
            pack in packs(), at in any::<prop::sample::Index>(), flip in 1u8..=255,
        ) {
            let mut footer = encode_footer(&pack);
            let at = at.index(footer.len());
            footer[at] ^= flip;
            let decoded = decode_footer(&footer, pack.bytes);
            prop_assert!(!matches!(decoded, Ok(Footer::Whole(_))), "{:?}", decoded);
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..600), more in 0u64..2000) {
            let _ = decode_footer(&bytes, bytes.len() as u64 + more);
            let _ = decode_footer(&bytes, more);
            let _ = decode_header(&bytes);
        }

        /// Beyond the checksum: what a faulty or hostile writer signs must not get through either.
        #[test]
        fn signed_nonsense_is_refused_or_sane(
            pack in packs(), at in any::<prop::sample::Index>(), value in any::<u64>(), object in any::<u64>(),
        ) {
            let mut footer = encode_footer(&pack);
            let last = footer.len() - 8;
            let at = at.index(last - 7);
            footer[at..at + 8].copy_from_slice(&value.to_le_bytes());
            let sum = checksum(&footer[..last]).0;
            footer[last..].copy_from_slice(&sum.to_le_bytes());
            for object_bytes in [pack.bytes, object] {
                if let Ok(Footer::Whole(found)) = decode_footer(&footer, object_bytes) {
                    let mut free = HEADER_BYTES as u64;
                    for entry in &found.entries {
                        prop_assert!(entry.offset >= free && entry.bytes > 0);
                        free = entry.end().unwrap();
                    }
                    prop_assert!(free + footer_bytes(found.entries.len()) <= object_bytes);
                }
            }
        }

        #[test]
        fn a_header_comes_back(
            namespace in any::<[u8; 16]>(), id in any::<[u8; 16]>(), at in 0usize..64, flip in 1u8..=255,
        ) {
            let mut header = encode_header(&namespace, PackId(id));
            prop_assert_eq!(decode_header(&header), Ok((namespace, PackId(id))));
            header[at] ^= flip;
            prop_assert!(decode_header(&header).is_err());
        }

        #[test]
        fn an_id_comes_back_from_its_text(id in any::<[u8; 16]>(), text in "[0-9a-fA-F]{31,33}|.{0,40}") {
            prop_assert_eq!(PackId(id).to_string().parse(), Ok(PackId(id)));
            if let Ok(id) = text.parse::<PackId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }

    #[test]
    fn the_format_stays_what_it_is() {
        let entry =
            PackEntry { hash: [1; 16], parent: Some([2; 16]), offset: 64, bytes: 3, checksum: Checksum(4) };
        let pack =
            PackInfo { id: PackId([5; 16]), namespace: [6; 16], bytes: 64 + 3 + 120, entries: vec![entry] };
        let mut bytes = encode_header(&pack.namespace, pack.id).to_vec();
        bytes.extend_from_slice(&encode_footer(&pack));
        // Version 1 for ever: a change here breaks the packs in every bucket.
        assert_eq!(checksum(&bytes).0, GOLDEN_CHECKSUM, "{:#018x}", checksum(&bytes).0);
    }

    const GOLDEN_CHECKSUM: u64 = 0x8634_a6dd_79e8_021c;

    #[test]
    fn a_later_version_says_so() {
        let pack = PackInfo { id: PackId([0; 16]), namespace: [0; 16], bytes: 128, entries: vec![] };
        let mut footer = encode_footer(&pack);
        footer[8] = 2;
        assert_eq!(decode_footer(&footer, 128), Err(PackError::Version(2)));
    }

    #[test]
    fn ids_order_by_age() {
        let id = PackId::generate();
        assert!(id.created_unix_ms() > 1_700_000_000_000);
        assert!(PackId([0xff; 16]) > id && id != PackId::generate());
    }
}
