//! Sequence hashes: the identity of a block and of everything before it.
//!
//! `SequenceHash = BLAKE3-keyed(namespace key, parent ‖ token ids as u32 LE ‖ extra)[..16]`. The key is
//! derived from the tenant's secret and from all that decides a block's bytes, so the same prompt of two
//! tenants, or of two layouts, gives unrelated hashes. Client library and service hash with the one
//! function here.

use std::fmt;

/// Identity of a block and of all blocks before it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceHash(u128);

impl SequenceHash {
    /// Bytes of a hash.
    pub const BYTES: usize = 16;
    /// Of no block: fills memory.
    pub(crate) const ZERO: Self = Self(0);

    /// From its wire form.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_le_bytes(bytes))
    }

    /// Half of it: enough to tell blocks apart where a mistake costs little.
    pub fn fingerprint(self) -> u64 {
        self.0 as u64
    }

    /// Its wire form.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_le_bytes()
    }

    /// As a number, for maps that need no further hashing.
    pub fn as_u128(self) -> u128 {
        self.0
    }
}

impl TryFrom<&[u8]> for SequenceHash {
    type Error = WrongLength;

    fn try_from(bytes: &[u8]) -> Result<Self, WrongLength> {
        bytes.try_into().map(Self::from_bytes).map_err(|_| WrongLength { bytes: bytes.len() })
    }
}

/// A hash or key on the wire has the wrong length.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a hash has {} bytes, not {bytes}", SequenceHash::BYTES)]
pub struct WrongLength {
    bytes: usize,
}

impl fmt::Display for SequenceHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SequenceHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a block of up to 60 tokens is hashed from, without extra.
const BUFFER_BYTES: usize = 256;

fn write_tokens(tokens: &[u32], into: &mut [u8]) {
    for (slot, token) in into.chunks_exact_mut(size_of::<u32>()).zip(tokens) {
        slot.copy_from_slice(&token.to_le_bytes());
    }
}

fn first_bytes(hash: &blake3::Hash) -> SequenceHash {
    let mut first = [0; SequenceHash::BYTES];
    first.copy_from_slice(&hash.as_bytes()[..SequenceHash::BYTES]);
    SequenceHash::from_bytes(first)
}

/// Key under which a namespace's tokens are hashed.
#[derive(Clone, PartialEq, Eq)]
pub struct NamespaceKey([u8; 32]);

impl NamespaceKey {
    /// Derives the key of a namespace from its tenant's secret and the canonical text of all that makes two
    /// namespaces unequal.
    pub fn derive(tenant_secret: &[u8; 32], tenant: &str, namespace: &str) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(tenant_secret);
        hasher.update(b"kelvin namespace key v1\0");
        hasher.update(&(tenant.len() as u64).to_le_bytes());
        hasher.update(tenant.as_bytes());
        hasher.update(namespace.as_bytes());
        Self(*hasher.finalize().as_bytes())
    }

    /// From the handshake.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// For the handshake.
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0
    }

    /// Hash of one block: its parent (`None` at the start of a sequence), its tokens, and `extra`.
    pub fn hash_block(&self, parent: Option<SequenceHash>, tokens: &[u32], extra: &[u8]) -> SequenceHash {
        let parent = parent.map_or([0; SequenceHash::BYTES], SequenceHash::to_bytes);
        let mut buffer = [0; BUFFER_BYTES];
        let bytes = SequenceHash::BYTES + size_of_val(tokens) + extra.len();
        if let Some(buffer) = buffer.get_mut(..bytes) {
            // In one piece it needs no hasher, which is larger than what it hashes.
            let (head, rest) = buffer.split_at_mut(SequenceHash::BYTES);
            let (middle, tail) = rest.split_at_mut(size_of_val(tokens));
            head.copy_from_slice(&parent);
            write_tokens(tokens, middle);
            tail.copy_from_slice(extra);
            return first_bytes(&blake3::keyed_hash(&self.0, buffer));
        }
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&parent);
        for run in tokens.chunks(buffer.len() / size_of::<u32>()) {
            let bytes = &mut buffer[..size_of_val(run)];
            write_tokens(run, bytes);
            hasher.update(bytes);
        }
        hasher.update(extra);
        first_bytes(&hasher.finalize())
    }

    /// Hashes of the whole blocks of a prompt; tokens behind the last whole block are left out.
    pub fn hash_blocks(&self, tokens: &[u32], block_tokens: usize, extra: &[u8]) -> Vec<SequenceHash> {
        let mut parent = None;
        let mut hashes = Vec::with_capacity(tokens.len() / block_tokens);
        for block in tokens.chunks_exact(block_tokens) {
            let hash = self.hash_block(parent, block, extra);
            hashes.push(hash);
            parent = Some(hash);
        }
        hashes
    }
}

impl fmt::Debug for NamespaceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NamespaceKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(tenant: &str) -> NamespaceKey {
        NamespaceKey::derive(&[7; 32], tenant, "layout")
    }

    #[test]
    fn a_hash_is_blake3_of_parent_tokens_and_extra() {
        let all: Vec<u32> = (0..600_u32).map(|token| token.wrapping_mul(0x9E37_79B9)).collect();
        let parent = key("a").hash_block(None, &[1], b"");
        // On both sides of what is hashed in one piece, and of BLAKE3's own chunk.
        for (tokens, extra) in
            [(0, 0), (16, 0), (16, 4), (60, 0), (60, 1), (61, 0), (0, 300), (200, 9), (600, 700)]
        {
            let (tokens, extra) = (&all[..tokens], &vec![7; extra][..]);
            let mut bytes = parent.to_bytes().to_vec();
            tokens.iter().for_each(|token| bytes.extend(token.to_le_bytes()));
            bytes.extend(extra);
            let whole = blake3::keyed_hash(&key("a").to_bytes(), &bytes);
            let expected: [u8; 16] = whole.as_bytes()[..16].try_into().unwrap();
            assert_eq!(key("a").hash_block(Some(parent), tokens, extra), SequenceHash::from_bytes(expected));
        }
    }

    #[test]
    fn hashes_stay_what_they_were() {
        let hashes = NamespaceKey::from_bytes([7; 32]).hash_blocks(&[1, 2, 3, 4], 2, b"x");
        assert_eq!(
            format!("{hashes:?}"),
            "[5d9e5a19c94940a598352c63cc398893, f470e0fc47375ab04241c9e0c1c41544]",
            "they are kept on disks"
        );
    }

    #[test]
    fn hashes_chain_and_leave_out_the_rest() {
        let hashes = key("a").hash_blocks(&[1, 2, 3, 4, 5], 2, b"");
        assert_eq!(hashes.len(), 2);
        assert_eq!(hashes[1], key("a").hash_block(Some(hashes[0]), &[3, 4], b""));
        let other = key("a").hash_blocks(&[9, 2, 3, 4], 2, b"");
        assert_ne!(hashes[1], other[1], "the same block behind another parent is another block");
    }

    #[test]
    fn tenants_and_extras_do_not_meet() {
        let hash = |tenant: &str, extra: &[u8]| key(tenant).hash_block(None, &[1, 2], extra);
        assert_ne!(hash("a", b""), hash("b", b""));
        assert_ne!(hash("a", b""), hash("a", b"salt"));
    }

    #[test]
    fn wire_form_is_checked() {
        let hash = SequenceHash::from_bytes([3; 16]);
        assert_eq!(SequenceHash::try_from(&hash.to_bytes()[..]), Ok(hash));
        assert!(SequenceHash::try_from(&[0u8; 15][..]).is_err());
    }
}
