//! Digest of a weights file that takes milliseconds, whatever the file's size.
//!
//! BLAKE3 over the file's size, its first MiB (a GGUF's metadata and tensor table begin there), its last MiB,
//! and 64 evenly spaced samples of 64 KiB. Two different trainings, quantizations or conversions of a model differ
//! almost everywhere, so the samples tell them apart; a file altered on purpose in one unsampled place
//! would not be told apart, which the namespace does not promise.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

const END_BYTES: u64 = 1 << 20;
const SAMPLES: u64 = 64;
const SAMPLE_BYTES: u64 = 64 << 10;

/// Digest of a file, lowercase hex.
pub(crate) fn weights_digest(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"kelvin weights digest v1\0");
    hasher.update(&bytes.to_le_bytes());
    let last = bytes.saturating_sub(END_BYTES);
    let samples = (0..SAMPLES).map(|index| (sample_offset(bytes, index), SAMPLE_BYTES));
    let mut buffer = Vec::new();
    for (offset, length) in [(0, END_BYTES), (last, END_BYTES)].into_iter().chain(samples) {
        file.seek(SeekFrom::Start(offset))?;
        buffer.clear();
        (&mut file).take(length).read_to_end(&mut buffer)?;
        hasher.update(&buffer);
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// Where sample `index` starts: evenly spaced from the start, the last one ending with the file.
fn sample_offset(bytes: u64, index: u64) -> u64 {
    let span = u128::from(bytes.saturating_sub(SAMPLE_BYTES));
    // At most `bytes`, so it fits.
    (span * u128::from(index) / u128::from(SAMPLES - 1)) as u64
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn digest_of(content: &[u8]) -> String {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        weights_digest(file.path()).unwrap()
    }

    #[test]
    fn size_head_tail_and_samples_count() {
        let mut content: Vec<u8> = (0..8u32 << 20).map(|i| (i >> 3) as u8).collect();
        let digest = digest_of(&content);
        assert_eq!(digest.len(), 64);
        assert_eq!(digest, digest_of(&content), "equal files have equal digests");
        let sampled = sample_offset(content.len() as u64, 31) as usize;
        for offset in [0, 1000, sampled, content.len() - 1] {
            content[offset] ^= 1;
            assert_ne!(digest, digest_of(&content), "byte {offset} does not count");
            content[offset] ^= 1;
        }
        content.push(0);
        assert_ne!(digest, digest_of(&content), "the size does not count");
    }

    #[test]
    fn small_and_empty_files_have_digests() {
        assert_ne!(digest_of(b""), digest_of(b"x"));
        assert_ne!(digest_of(b"x"), digest_of(b"y"));
    }

    #[test]
    fn samples_cover_the_file_to_its_end() {
        assert_eq!(sample_offset(40 << 30, 0), 0);
        assert_eq!(sample_offset(40 << 30, SAMPLES - 1), (40 << 30) - SAMPLE_BYTES);
        assert_eq!(sample_offset(10, SAMPLES - 1), 0);
    }
}
