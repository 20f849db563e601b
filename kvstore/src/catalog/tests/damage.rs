//! Directories that were hurt: the catalog opens, or says why not, and never tells of a block that was not
//! written.

use std::{collections::BTreeMap, fs, path::PathBuf};

use proptest::prelude::*;

use super::*;
use crate::catalog::home::Mark;

const RECORDS: u64 = 10_000;

/// A catalog with tables on the disk and more in its log.
fn written(dir: &Path) -> BTreeMap<u64, Record> {
    let (catalog, _) = open(dir);
    let records: Vec<Record> = (1..=RECORDS).map(|n| record(1, n)).collect();
    let (old, young) = records.split_at(records.len() * 3 / 4);
    catalog.append(old).unwrap();
    catalog.mark_clean(true).unwrap();
    catalog.append(young).unwrap();
    records.into_iter().map(|record| (record.sequence, record)).collect()
}

fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(dir.join("catalog")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        path.extension().is_some_and(|found| found == extension) || name.starts_with(extension)
    });
    files.sort();
    files
}

/// Opens, loads, writes and opens again; gives what was found at first. Fails on a record that was not written.
fn use_it(dir: &Path, written: &BTreeMap<u64, Record>) -> (Opened, Vec<Record>, LoadStats) {
    let (catalog, opened) = open(dir);
    let (found, stats) = load(&catalog, 2);
    for record in &found {
        assert_eq!(written.get(&record.sequence), Some(record), "a record that was never written");
    }
    // Damage that was met shows at the next start, which begins afresh; then all is well.
    drop(catalog);
    let (catalog, _) = open(dir);
    let young = record(2, catalog.next_sequence(1));
    catalog.append(&[young]).unwrap();
    catalog.mark_clean(true).unwrap();
    drop(catalog);
    let (catalog, _) = open(dir);
    assert!(load(&catalog, 2).0.contains(&young));
    (opened, found, stats)
}

#[test]
fn a_deleted_catalog_begins_empty_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let all = written(dir.path());
    let before = Mark::read(dir.path()).unwrap();
    fs::remove_dir_all(dir.path().join("catalog")).unwrap();
    let (opened, found, _) = use_it(dir.path(), &all);
    assert_eq!((opened.start, found.len()), (Start::Deleted, 0));
    assert_eq!(opened.store_uuid, before.store_uuid);
    assert!(opened.incarnation > before.incarnation);
}

#[test]
fn an_older_copy_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let all = written(dir.path());
    let backup = image(dir.path());
    for n in 0..2 {
        let (catalog, _) = open(dir.path());
        catalog.append(&[record(1, RECORDS + 1 + n)]).unwrap();
    }
    fs::remove_dir_all(dir.path().join("catalog")).unwrap();
    fs::create_dir(dir.path().join("catalog")).unwrap();
    copy_all(&backup.path().join("catalog"), &dir.path().join("catalog")).unwrap();
    let (opened, found, _) = use_it(dir.path(), &all);
    assert_eq!((opened.start, found.len() as u64), (Start::Older { starts: 2 }, RECORDS));
}

#[test]
fn a_lost_mark_is_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let all = written(dir.path());
    fs::write(dir.path().join("catalog.mark"), b"\xff\0 not a mark").unwrap();
    let (opened, found, _) = use_it(dir.path(), &all);
    assert_eq!((opened.start, found.len() as u64), (Start::Kept, RECORDS));
    assert!(Mark::read(dir.path()).is_some());
}

#[test]
fn a_database_that_cannot_be_read_is_moved_aside() {
    type Hurt = fn(&Path);
    let hurt: [(&str, &str, Hurt); 5] = [
        ("no manifest", "MANIFEST", |path| fs::remove_file(path).unwrap()),
        ("an empty manifest", "MANIFEST", |path| fs::write(path, b"").unwrap()),
        ("no pointer's sense", "CURRENT", |path| fs::write(path, b"nothing").unwrap()),
        ("a missing table", "sst", |path| fs::remove_file(path).unwrap()),
        ("a cut table", "sst", |path| {
            fs::File::options().write(true).open(path).unwrap().set_len(100_000).unwrap();
        }),
    ];
    for (what, file, hurt) in hurt {
        let dir = tempfile::tempdir().unwrap();
        let all = written(dir.path());
        // The largest: the table of the blocks.
        let victims = files(dir.path(), file);
        hurt(victims.iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap());
        let (opened, found, _) = use_it(dir.path(), &all);
        let Start::Damaged { moved_to, why } = opened.start else { panic!("{what}: {:?}", opened.start) };
        assert!(moved_to.is_dir() && !why.is_empty());
        assert_eq!(found.len(), 0, "{what}");
    }
}

#[test]
fn damage_inside_a_table_costs_the_blocks_around_it() {
    let dir = tempfile::tempdir().unwrap();
    let all = written(dir.path());
    let tables = files(dir.path(), "sst");
    let table = tables.iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let mut bytes = fs::read(table).unwrap();
    for at in [200_000, 450_000] {
        bytes[at] ^= 0x10;
    }
    fs::write(table, bytes).unwrap();
    let (opened, found, stats) = use_it(dir.path(), &all);
    assert_eq!((opened.start, stats.damaged), (Start::Kept, 2));
    assert!(found.len() as u64 > RECORDS - 4000, "{} of {RECORDS} are left", found.len());
    assert!(dir.path().join("catalog.damaged-0").is_dir(), "the start after that moves it aside");
}

#[test]
fn few_damaged_databases_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..5 {
        drop(open(dir.path()));
        fs::write(dir.path().join("catalog/CURRENT"), b"nothing").unwrap();
    }
    drop(open(dir.path()));
    let kept = crate::catalog::home::damaged(dir.path());
    assert_eq!(kept, [2, 3, 4]);
}

#[test]
fn a_newer_format_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let mark = Mark { format: 7, ..Mark::read(dir.path()).unwrap() };
    mark.write(dir.path()).unwrap();
    let error = Catalog::open(dir.path()).err().unwrap();
    assert!(matches!(error, CatalogError::NewerFormat { found: 7, known: 1, .. }) && !error.is_retryable());
    assert!(error.to_string().contains("run the newer Kelvin"), "{error}");
    assert!(dir.path().join("catalog/CURRENT").is_file(), "it is left as it is");

    // Without the mark, the database tells.
    fs::remove_file(dir.path().join("catalog.mark")).unwrap();
    {
        let database = crate::catalog::home::open_database(dir.path()).unwrap();
        database.put(b"format", crate::catalog::bytes::seal(b"format", 9u32.to_le_bytes().to_vec())).unwrap();
    }
    let error = Catalog::open(dir.path()).err().unwrap();
    assert!(matches!(error, CatalogError::NewerFormat { found: 9, .. }), "{error}");

    // Or a family that this build does not know.
    let other = tempfile::tempdir().unwrap();
    let mut options = rocksdb::Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    drop(rocksdb::DB::open_cf(&options, other.path().join("catalog"), ["unheard-of"]).unwrap());
    let error = Catalog::open(other.path()).err().unwrap();
    assert!(matches!(error, CatalogError::NewerFormat { .. }), "{error}");
}

#[test]
fn a_directory_has_one_catalog_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let (catalog, _) = open(dir.path());
    let error = Catalog::open(dir.path()).err().unwrap();
    let pid = std::process::id();
    assert!(error.to_string().contains(&format!("in use by another process (pid {pid})")), "{error}");
    drop(catalog);
    drop(open(dir.path()));
}

#[test]
fn a_directory_that_cannot_be_made_is_an_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = Catalog::open(&file.path().join("data")).err().unwrap();
    assert!(error.to_string().contains("make the data directory"), "{error}");
}

#[derive(Debug, Clone)]
enum Hurt {
    Flip { at: prop::sample::Index, bit: u8 },
    Zero { at: prop::sample::Index, bytes: usize },
    Cut { at: prop::sample::Index },
    Remove,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    /// Whatever happens to one of its files.
    #[test]
    fn a_hurt_directory_never_tells_of_blocks_that_were_not_written(
        which: prop::sample::Index,
        hurt in prop_oneof![
            4 => (any::<prop::sample::Index>(), 0..8u8).prop_map(|(at, bit)| Hurt::Flip { at, bit }),
            2 => (any::<prop::sample::Index>(), 1..5000usize).prop_map(|(at, bytes)| Hurt::Zero { at, bytes }),
            2 => any::<prop::sample::Index>().prop_map(|at| Hurt::Cut { at }),
            1 => Just(Hurt::Remove),
        ],
    ) {
        let dir = tempfile::tempdir().unwrap();
        let all = written(dir.path());
        let all_files = files(dir.path(), "");
        let path = which.get(&all_files);
        let mut bytes = fs::read(path).unwrap();
        match hurt {
            Hurt::Flip { at, bit } if !bytes.is_empty() => {
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << bit;
            }
            Hurt::Zero { at, bytes: count } if !bytes.is_empty() => {
                let at = at.index(bytes.len());
                let end = (at + count).min(bytes.len());
                bytes[at..end].fill(0);
            }
            Hurt::Cut { at } => bytes.truncate(at.index(bytes.len().max(1))),
            _ => {}
        }
        match hurt {
            Hurt::Remove => fs::remove_file(path).unwrap(),
            _ => fs::write(path, bytes).unwrap(),
        }
        use_it(dir.path(), &all);
    }
}
