//! What the catalog says about a block on NVMe.

use kelvin_kernels::Checksum;

use super::{
    NamespaceId,
    bytes::{Reader, seal, unseal},
};
use crate::SequenceHash;

/// Bytes of a block's key: namespace and sequence.
pub(super) const KEY_BYTES: usize = 24;
/// Bytes of the longest value of a block.
pub const RECORD_BYTES_MAX: usize = 40 + 16 + 8 + 4;

const HAS_PARENT: u8 = 1;
const HAS_EXPIRY: u8 = 2;

/// A block that has a copy on NVMe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Where the block belongs.
    pub namespace: NamespaceId,
    /// Its number in the order of durability, larger than that of its parent.
    pub sequence: u64,
    /// Its identity.
    pub hash: SequenceHash,
    /// The block before it.
    pub parent: Option<SequenceHash>,
    /// Index of its file among those given to [`Catalog::set_files`](super::Catalog::set_files).
    pub file: u16,
    /// Where it starts in that file.
    pub offset: u64,
    /// Its bytes.
    pub bytes: u32,
    /// Of its bytes, taken at commit.
    pub checksum: Checksum,
    /// The higher, the longer it stays.
    pub priority: u8,
    /// When it expires, in milliseconds since 1970.
    pub expires_at_unix_ms: Option<u64>,
}

/// Key of a block.
pub(super) fn key(namespace: &NamespaceId, sequence: u64) -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    key[..16].copy_from_slice(namespace);
    // Big endian: the order of keys is that of numbers.
    key[16..].copy_from_slice(&sequence.to_be_bytes());
    key
}

/// Namespace and sequence of a key.
pub(super) fn parse_key(key: &[u8]) -> Option<(NamespaceId, u64)> {
    let key: &[u8; KEY_BYTES] = key.try_into().ok()?;
    let (namespace, sequence) = key.split_at(16);
    Some((namespace.try_into().ok()?, u64::from_be_bytes(sequence.try_into().ok()?)))
}

impl Record {
    /// Key and value, with `file` as the catalog numbers files.
    pub(super) fn encode(&self, file: u16) -> ([u8; KEY_BYTES], Vec<u8>) {
        let key = key(&self.namespace, self.sequence);
        let mut value = Vec::with_capacity(RECORD_BYTES_MAX);
        let parent = if self.parent.is_some() { HAS_PARENT } else { 0 };
        let expiry = if self.expires_at_unix_ms.is_some() { HAS_EXPIRY } else { 0 };
        value.push(parent | expiry);
        value.push(self.priority);
        value.extend(file.to_le_bytes());
        value.extend(self.bytes.to_le_bytes());
        value.extend(self.offset.to_le_bytes());
        value.extend(self.checksum.0.to_le_bytes());
        value.extend(self.hash.to_bytes());
        if let Some(parent) = self.parent {
            value.extend(parent.to_bytes());
        }
        if let Some(at) = self.expires_at_unix_ms {
            value.extend(at.to_le_bytes());
        }
        (key, seal(&key, value))
    }

    /// The record of a key and its value, with `file` as the catalog numbers files; `None` if these bytes are
    /// none. Any bytes may come.
    pub(super) fn decode(key: &[u8], value: &[u8]) -> Option<Self> {
        let (namespace, sequence) = parse_key(key)?;
        if value.len() > RECORD_BYTES_MAX {
            return None;
        }
        let mut reader = Reader::new(unseal(key, value)?);
        let flags = reader.u8()?;
        if flags & !(HAS_PARENT | HAS_EXPIRY) != 0 {
            return None;
        }
        let (priority, file, bytes) = (reader.u8()?, reader.u16()?, reader.u32()?);
        let (offset, checksum) = (reader.u64()?, Checksum(reader.u64()?));
        let hash = SequenceHash::from_bytes(reader.array()?);
        let parent = match flags & HAS_PARENT {
            0 => None,
            _ => Some(SequenceHash::from_bytes(reader.array()?)),
        };
        let expires_at_unix_ms = match flags & HAS_EXPIRY {
            0 => None,
            _ => Some(reader.u64()?),
        };
        reader.end()?;
        Some(Self {
            namespace,
            sequence,
            hash,
            parent,
            file,
            offset,
            bytes,
            checksum,
            priority,
            expires_at_unix_ms,
        })
    }
}
