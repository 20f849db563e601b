//! Reading bytes that may be anything, and the check behind every value.

use kelvin_kernels::checksum;

/// Bytes of the check at the end of a value.
pub(super) const CHECK_BYTES: usize = 4;

/// What is left to read; every step tells whether there was enough.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// Bytes behind their length.
    pub(super) fn text_bytes(&mut self) -> Option<&'a [u8]> {
        let count = self.u16()?;
        self.take(usize::from(count))
    }

    /// Text behind its length.
    pub(super) fn text(&mut self) -> Option<String> {
        String::from_utf8(self.text_bytes()?.to_vec()).ok()
    }

    pub(super) fn left(&self) -> usize {
        self.0.len()
    }

    /// Nothing is left over.
    pub(super) fn end(self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

/// Appends text behind its length.
pub(super) fn put_text(bytes: &mut Vec<u8>, text: &str) {
    put_bytes(bytes, text.as_bytes());
}

/// Appends bytes behind their length.
///
/// # Panics
/// On more than 64 KiB: names and paths are bounded where they enter the store.
pub(super) fn put_bytes(bytes: &mut Vec<u8>, text: &[u8]) {
    let count = u16::try_from(text.len()).expect("names and paths have at most 64 KiB");
    bytes.extend(count.to_le_bytes());
    bytes.extend(text);
}

/// The check of a value under its key.
pub(super) fn check(key: &[u8], value: &[u8]) -> [u8; CHECK_BYTES] {
    // The short ones, of blocks, come by the million: one pass over a copy is faster than two passes.
    let sum = if key.len() + value.len() <= 128 {
        let mut whole = [0; 128];
        whole[..key.len()].copy_from_slice(key);
        whole[key.len()..key.len() + value.len()].copy_from_slice(value);
        checksum(&whole[..key.len() + value.len()])
    } else {
        let mut hasher = kelvin_kernels::Hasher::new();
        hasher.update(key);
        hasher.update(value);
        hasher.finish()
    };
    let [a, b, c, d, ..] = sum.0.to_le_bytes();
    [a, b, c, d]
}

/// Appends the check.
pub(super) fn seal(key: &[u8], mut value: Vec<u8>) -> Vec<u8> {
    let check = check(key, &value);
    value.extend(check);
    value
}

/// What stands before the check, if the check is right.
pub(super) fn unseal<'a>(key: &[u8], value: &'a [u8]) -> Option<&'a [u8]> {
    let (body, found) = value.split_at_checked(value.len().checked_sub(CHECK_BYTES)?)?;
    (check(key, body) == found).then_some(body)
}
