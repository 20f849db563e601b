use std::path::Path;

use kelvin_kernels::Checksum;
use kelvin_proto::{Fingerprint, NamespaceSpec, Shard};

use super::*;
use crate::SequenceHash;

mod cases;
mod codec;
mod damage;
mod full_disk;
mod oracle;

const FILE: [u8; 16] = [0xf1; 16];

fn spec(model: &str) -> NamespaceSpec {
    NamespaceSpec {
        model: model.to_owned(),
        fingerprint: Fingerprint {
            model_digest: "ab".to_owned(),
            engine: "toy".to_owned(),
            engine_build: "1".to_owned(),
            layout: "l".to_owned(),
            dtype: "f16".to_owned(),
            attributes: [("rope".to_owned(), "1=e4\n".to_owned())].into(),
        },
        shard: Shard::default(),
        block_tokens: 16,
        block_bytes: 4096,
    }
}

fn record(namespace: u8, sequence: u64) -> Record {
    let hash = |n: u64| SequenceHash::from_bytes((u128::from(n) * 0x9e37_79b9_7f4a_7c15 + 1).to_le_bytes());
    Record {
        namespace: [namespace; 16],
        sequence,
        hash: hash(sequence),
        parent: (!sequence.is_multiple_of(7)).then(|| hash(sequence - 1)),
        file: 0,
        offset: sequence % (1 << 40) * 4096,
        bytes: 4096,
        checksum: Checksum(sequence ^ 0xabcd),
        priority: (sequence % 3) as u8,
        expires_at_unix_ms: sequence.is_multiple_of(5).then_some(1_700_000_000_000 + sequence),
    }
}

/// Opens with one file.
fn open(dir: &Path) -> (Catalog, Opened) {
    let (catalog, opened) = Catalog::open(dir).unwrap();
    catalog.set_files(&[FILE]).unwrap();
    (catalog, opened)
}

fn load(catalog: &Catalog, threads: usize) -> (Vec<Record>, LoadStats) {
    let mut records = Vec::new();
    let stats = catalog.load(threads, |chunk| records.extend(chunk)).unwrap();
    assert_eq!(stats.records, records.len() as u64);
    (records, stats)
}

/// What a process that is killed right now leaves: the files as they are, without a word to the catalog. The
/// database deletes files it no longer needs whenever it likes; where one goes while it is being copied, the
/// copy is of no one moment and is made anew.
fn image(dir: &Path) -> tempfile::TempDir {
    loop {
        let copy = tempfile::tempdir().unwrap();
        match copy_all(dir, copy.path()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            copied => {
                copied.unwrap();
                return copy;
            }
        }
    }
}

fn copy_all(source: &Path, target: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(source)? {
        let entry = entry?;
        let target = target.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            std::fs::create_dir(&target)?;
            copy_all(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
