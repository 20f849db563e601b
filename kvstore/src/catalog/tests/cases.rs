//! The catalog as its users see it.

use super::*;

#[test]
fn what_was_written_is_found_again_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let (catalog, opened) = open(dir.path());
    assert_eq!((opened.start.clone(), opened.clean), (Start::First, false));
    let first = catalog.next_sequence(3000);
    let mut records: Vec<Record> =
        (0..3000).map(|n| record(if n % 3 == 0 { 9 } else { 2 }, first + n)).collect();
    records.chunks(64).for_each(|batch| catalog.append(batch).unwrap());
    let gone: Vec<_> =
        records.iter().filter(|r| r.sequence % 10 == 4).map(|r| (r.namespace, r.sequence)).collect();
    catalog.remove(&gone).unwrap();
    catalog.sync().unwrap();
    records.retain(|record| record.sequence % 10 != 4);
    records.sort_by_key(|record| (record.namespace, record.sequence));
    for threads in [1, 2, 5] {
        assert_eq!(load(&catalog, threads).0, records);
    }
    drop(catalog);

    let (catalog, again) = open(dir.path());
    assert_eq!((again.start, again.clean), (Start::Kept, false));
    assert_eq!(again.store_uuid, opened.store_uuid);
    assert!(again.incarnation > opened.incarnation);
    let (found, stats) = load(&catalog, 2);
    assert_eq!(found, records);
    assert_eq!(stats, LoadStats { records: records.len() as u64, namespaces: 2, ..LoadStats::default() });
    assert!(catalog.next_sequence(1) > first + 3000, "numbers are not given twice");
    catalog.mark_clean(true).unwrap();
    drop(catalog);
    assert!(open(dir.path()).1.clean);
    assert!(!open(dir.path()).1.clean, "a start that was not closed in good order");
}

#[test]
fn namespaces_and_packs_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let (catalog, _) = open(dir.path());
    let namespaces: Vec<NamespaceRecord> = ["a", "b"]
        .into_iter()
        .map(|model| {
            let id = namespace_id(&[1; 32], model, &spec(model));
            NamespaceRecord { id, tenant: model.to_owned(), spec: spec(model) }
        })
        .collect();
    namespaces.iter().for_each(|namespace| catalog.put_namespace(namespace).unwrap());
    let pack = |id: u8, count: u64| PackRecord {
        id: [id; 16],
        namespace: namespaces[0].id,
        bytes: 1 << 25,
        entries: (0..count)
            .map(|n| {
                let Record { hash, parent, offset, bytes, checksum, .. } = record(1, n);
                PackEntryRecord { hash, parent, offset, bytes, checksum }
            })
            .collect(),
    };
    let packs = [pack(1, 500), pack(2, 0), pack(3, 1)];
    packs.iter().for_each(|pack| catalog.put_pack(pack).unwrap());
    catalog.remove_pack(&namespaces[0].id, &[2; 16]).unwrap();
    catalog.append(&[record(1, 1)]).unwrap();
    drop(catalog);

    let (catalog, _) = open(dir.path());
    let (mut found, skipped) = catalog.namespaces().unwrap();
    found.sort_by_key(|namespace| namespace.tenant.clone());
    assert_eq!((found, skipped), (namespaces.clone(), 0));
    assert_eq!(catalog.packs(&namespaces[0].id).unwrap(), (vec![packs[0].clone(), packs[2].clone()], 0));
    assert_eq!(catalog.packs(&namespaces[1].id).unwrap(), (vec![], 0));
    catalog.remove_namespace(&namespaces[0].id).unwrap();
    assert_eq!(catalog.packs(&namespaces[0].id).unwrap().0, []);
    assert_eq!(catalog.namespaces().unwrap().0, namespaces[1..]);
    catalog.remove_namespace(&[1; 16]).unwrap();
    assert_eq!(load(&catalog, 2).0, []);
}

#[test]
fn a_namespace_of_the_last_id_can_be_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (catalog, _) = open(dir.path());
    catalog.append(&[record(0xff, 1), record(0xff, 1 << 50), record(0xfe, 1)]).unwrap();
    catalog.remove_namespace(&[0xff; 16]).unwrap();
    assert_eq!(load(&catalog, 1).0, [record(0xfe, 1)]);
}

#[test]
fn files_are_known_by_id_not_by_place() {
    let dir = tempfile::tempdir().unwrap();
    let (catalog, _) = Catalog::open(dir.path()).unwrap();
    let found = catalog.set_files(&[[1; 16], [2; 16]]).unwrap();
    assert_eq!(found, FilesFound { kept: 0, added: 2, absent: 0 });
    let records: Vec<Record> = (1..=10).map(|n| Record { file: (n % 2) as u16, ..record(1, n) }).collect();
    catalog.append(&records).unwrap();
    let unknown = catalog.append(&[Record { file: 2, ..record(1, 11) }]).unwrap_err();
    assert!(unknown.to_string().contains("file 2 is not one of the 2 files"), "{unknown}");
    drop(catalog);

    // They changed places.
    let (catalog, _) = Catalog::open(dir.path()).unwrap();
    assert_eq!(catalog.set_files(&[[2; 16], [1; 16]]).unwrap(), FilesFound { kept: 2, added: 0, absent: 0 });
    let swapped: Vec<Record> = records.iter().map(|r| Record { file: 1 - r.file, ..*r }).collect();
    assert_eq!(load(&catalog, 2).0, swapped);
    drop(catalog);

    // One was replaced: its records are dropped, once, and its number is used again by a third file.
    let (catalog, _) = Catalog::open(dir.path()).unwrap();
    assert_eq!(catalog.set_files(&[[2; 16], [3; 16]]).unwrap(), FilesFound { kept: 1, added: 1, absent: 1 });
    let kept: Vec<Record> = swapped.iter().filter(|record| record.file == 0).copied().collect();
    let (found, stats) = load(&catalog, 2);
    assert_eq!((found, stats.absent), (kept.clone(), 5));
    assert_eq!(load(&catalog, 2).1.absent, 0);
    drop(catalog);
    let (catalog, _) = Catalog::open(dir.path()).unwrap();
    assert_eq!(catalog.set_files(&[[4; 16], [2; 16]]).unwrap(), FilesFound { kept: 1, added: 1, absent: 1 });
    let kept: Vec<Record> = kept.into_iter().map(|record| Record { file: 1, ..record }).collect();
    assert_eq!(load(&catalog, 1).0, kept);
    assert_eq!(catalog.files(), [[4; 16], [2; 16]]);
}

#[test]
fn records_are_all_written_or_none() {
    let dir = tempfile::tempdir().unwrap();
    let (catalog, _) = open(dir.path());
    catalog.append(&[record(1, 1), Record { file: 9, ..record(1, 2) }]).unwrap_err();
    assert_eq!(load(&catalog, 1).0, []);
}

#[test]
fn it_says_how_large_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (catalog, _) = open(dir.path());
    let records: Vec<Record> = (1..=1000).map(|n| record(1, n)).collect();
    catalog.append(&records).unwrap();
    let stats = catalog.stats();
    assert_eq!((stats.records, stats.packs, stats.writes_failed, stats.closed), (1000, 0, 0, false));
    assert!(stats.disk_bytes > 64_000 && stats.memory_bytes > 64_000, "{stats:?}");
}

#[test]
fn a_stopped_store_is_looked_at_without_a_trace() {
    let dir = tempfile::tempdir().unwrap();
    let absent = Catalog::open_stopped(dir.path(), Access::Read).err().unwrap();
    assert!(absent.to_string().contains("there is no catalog in"), "{absent}");
    let (catalog, opened) = open(dir.path());
    let places = Places { nvme: vec![("/mnt/a".into(), 1 << 30)], ..Places::default() };
    catalog.set_places(&places).unwrap();
    let records: Vec<Record> = (1..=10).map(|n| record(1, n)).collect();
    catalog.append(&records).unwrap();
    assert!(matches!(Catalog::open_stopped(dir.path(), Access::Read), Err(CatalogError::InUse { .. })));
    catalog.mark_clean(true).unwrap();
    drop(catalog);

    for access in [Access::Read, Access::Change] {
        let (catalog, found) = Catalog::open_stopped(dir.path(), access).unwrap();
        assert_eq!((found.incarnation, found.clean, found.start), (opened.incarnation, true, Start::Kept));
        assert_eq!(catalog.places().unwrap(), Some(places.clone()));
        // Its file is not there, and that changes nothing.
        assert_eq!(catalog.set_files(&[]).unwrap().absent, 1);
        assert_eq!(load(&catalog, 2).1.absent, 10);
        assert_eq!(catalog.remove(&[([1; 16], 3)]).is_ok(), access == Access::Change);
    }
    let (catalog, again) = open(dir.path());
    assert!(again.clean && again.incarnation == opened.incarnation + 1);
    assert_eq!(load(&catalog, 1).0.len(), 9);
}
