//! What the catalog says about a pack in the object tier. The bucket is the truth; this saves reading every
//! footer at start.

use kelvin_kernels::Checksum;

use super::{
    NamespaceId,
    bytes::{Reader, seal, unseal},
};
use crate::SequenceHash;

/// Bytes of a pack's key: namespace and id.
pub(super) const KEY_BYTES: usize = 32;
/// Version of the encoding below.
const VERSION: u8 = 1;
/// Bytes of an entry: flag, hash, parent (zeros where there is none), offset, bytes, checksum. All entries
/// are equally long, so a count that does not fit the bytes is refused before memory is taken for it.
const ENTRY_BYTES: usize = 1 + 16 + 16 + 8 + 4 + 8;

/// A pack: many blocks in one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackRecord {
    /// Its id, ordered by time of creation.
    pub id: [u8; 16],
    /// Where its blocks belong.
    pub namespace: NamespaceId,
    /// Bytes of the object.
    pub bytes: u64,
    /// Its blocks, in the order of their offsets.
    pub entries: Vec<PackEntryRecord>,
}

/// A block in a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackEntryRecord {
    /// Its identity.
    pub hash: SequenceHash,
    /// The block before it.
    pub parent: Option<SequenceHash>,
    /// Where it starts in the object.
    pub offset: u64,
    /// Its bytes.
    pub bytes: u32,
    /// Of its bytes, taken at commit.
    pub checksum: Checksum,
}

pub(super) fn key(namespace: &NamespaceId, id: &[u8; 16]) -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    key[..16].copy_from_slice(namespace);
    key[16..].copy_from_slice(id);
    key
}

impl PackRecord {
    pub(super) fn encode(&self) -> ([u8; KEY_BYTES], Vec<u8>) {
        let key = key(&self.namespace, &self.id);
        let mut value = Vec::with_capacity(16 + self.entries.len() * ENTRY_BYTES);
        value.push(VERSION);
        value.extend(self.bytes.to_le_bytes());
        for entry in &self.entries {
            value.push(u8::from(entry.parent.is_some()));
            value.extend(entry.hash.to_bytes());
            value.extend(entry.parent.map_or([0; 16], SequenceHash::to_bytes));
            value.extend(entry.offset.to_le_bytes());
            value.extend(entry.bytes.to_le_bytes());
            value.extend(entry.checksum.0.to_le_bytes());
        }
        (key, seal(&key, value))
    }

    /// `None` if the bytes are no pack. Any bytes may come.
    pub(super) fn decode(key: &[u8], value: &[u8]) -> Option<Self> {
        let whole: &[u8; KEY_BYTES] = key.try_into().ok()?;
        let (namespace, id) = whole.split_at(16);
        let mut reader = Reader::new(unseal(key, value)?);
        if reader.u8()? != VERSION {
            return None;
        }
        let bytes = reader.u64()?;
        if !reader.left().is_multiple_of(ENTRY_BYTES) {
            return None;
        }
        let mut entries = Vec::with_capacity(reader.left() / ENTRY_BYTES);
        while reader.left() > 0 {
            let has_parent = match reader.u8()? {
                0 => false,
                1 => true,
                _ => return None,
            };
            let hash = SequenceHash::from_bytes(reader.array()?);
            let parent = SequenceHash::from_bytes(reader.array()?);
            entries.push(PackEntryRecord {
                hash,
                parent: has_parent.then_some(parent),
                offset: reader.u64()?,
                bytes: reader.u32()?,
                checksum: Checksum(reader.u64()?),
            });
        }
        Some(Self { id: id.try_into().ok()?, namespace: namespace.try_into().ok()?, bytes, entries })
    }
}
