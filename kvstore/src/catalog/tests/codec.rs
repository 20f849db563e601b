//! Encoding and decoding: what was written comes back, and any bytes may come.

use proptest::{collection::vec, option, prelude::*};

use super::*;
use crate::catalog::{files::FileTable, home::Mark};

fn records() -> impl Strategy<Value = Record> {
    let places = (any::<[u8; 16]>(), any::<u64>(), any::<u16>(), any::<u64>(), any::<u32>());
    let rest = (
        any::<[u8; 16]>(),
        option::of(any::<[u8; 16]>()),
        any::<u64>(),
        any::<u8>(),
        option::of(any::<u64>()),
    );
    (places, rest).prop_map(
        |((namespace, sequence, file, offset, bytes), (hash, parent, sum, priority, expiry))| Record {
            namespace,
            sequence,
            hash: SequenceHash::from_bytes(hash),
            parent: parent.map(SequenceHash::from_bytes),
            file,
            offset,
            bytes,
            checksum: Checksum(sum),
            priority,
            expires_at_unix_ms: expiry,
        },
    )
}

fn packs() -> impl Strategy<Value = PackRecord> {
    (any::<[u8; 16]>(), any::<[u8; 16]>(), any::<u64>(), vec(records(), 0..20)).prop_map(
        |(id, namespace, bytes, records)| {
            let entry = |record: Record| {
                let Record { hash, parent, offset, bytes, checksum, .. } = record;
                PackEntryRecord { hash, parent, offset, bytes, checksum }
            };
            PackRecord { id, namespace, bytes, entries: records.into_iter().map(entry).collect() }
        },
    )
}

/// A change to some bytes: what disks and hands do.
#[derive(Debug, Clone)]
enum Change {
    Flip { at: prop::sample::Index, bit: u8 },
    Cut(prop::sample::Index),
    Append(Vec<u8>),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Flip { at, bit } if !bytes.is_empty() => {
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << bit;
            }
            Self::Flip { .. } => {}
            Self::Cut(at) => bytes.truncate(at.index(bytes.len().max(1))),
            Self::Append(more) => bytes.extend(more),
        }
    }
}

fn changes() -> impl Strategy<Value = Change> {
    prop_oneof![
        (any::<prop::sample::Index>(), 0..8u8).prop_map(|(at, bit)| Change::Flip { at, bit }),
        any::<prop::sample::Index>().prop_map(Change::Cut),
        vec(any::<u8>(), 1..64).prop_map(Change::Append),
    ]
}

proptest! {
    #[test]
    fn a_record_survives(record in records()) {
        let (key, value) = record.encode(record.file);
        prop_assert!(value.len() <= RECORD_BYTES_MAX);
        prop_assert_eq!(Record::decode(&key, &value), Some(record));
    }

    #[test]
    fn a_changed_record_is_none(record in records(), change in changes(), in_key: bool) {
        let (key, value) = record.encode(record.file);
        let (mut key, mut value) = (key.to_vec(), value);
        let before = (key.clone(), value.clone());
        change.apply(if in_key { &mut key } else { &mut value });
        prop_assume!((&key, &value) != (&before.0, &before.1));
        // Four bytes of check: one change in 4 billion would pass.
        prop_assert_eq!(Record::decode(&key, &value), None);
    }

    #[test]
    fn a_pack_survives_and_a_changed_one_is_none(pack in packs(), change in changes()) {
        let (key, mut value) = pack.encode();
        prop_assert_eq!(PackRecord::decode(&key, &value), Some(pack));
        let before = value.clone();
        change.apply(&mut value);
        prop_assume!(value != before);
        prop_assert_eq!(PackRecord::decode(&key, &value), None);
    }

    #[test]
    fn a_changed_namespace_is_none(change in changes()) {
        let namespace = NamespaceRecord { id: [5; 16], tenant: "t".to_owned(), spec: spec("model") };
        let mut value = namespace.encode();
        prop_assert_eq!(NamespaceRecord::decode(&[5; 16], &value), Some(namespace));
        let before = value.clone();
        change.apply(&mut value);
        prop_assume!(value != before);
        prop_assert_eq!(NamespaceRecord::decode(&[5; 16], &value), None);
    }

    /// As the fuzz target does, which goes on for longer.
    #[test]
    fn any_bytes_decode_to_something_or_nothing(key in 0..40u8, bytes in vec(any::<u8>(), 0..250)) {
        decode_any(&[vec![key], bytes].concat());
    }

    #[test]
    fn changed_fields_decode_to_something_or_nothing(
        pack in packs(), record in records(), which in 0..3, changes in vec(changes(), 0..4),
    ) {
        let (key, mut value) = match which {
            0 => (vec![4; 16], NamespaceRecord { id: [4; 16], tenant: "t".to_owned(), spec: spec("m") }.encode()),
            1 => (pack.encode().0.to_vec(), pack.encode().1),
            _ => (record.encode(1).0.to_vec(), record.encode(1).1),
        };
        value.truncate(value.len() - bytes::CHECK_BYTES);
        changes.iter().for_each(|change| change.apply(&mut value));
        decode_any(&[&[key.len() as u8][..], &key, &value].concat());
    }

    #[test]
    fn a_list_of_files_survives(uuids in prop::collection::btree_set(any::<[u8; 16]>(), 0..20)) {
        let uuids: Vec<[u8; 16]> = uuids.into_iter().collect();
        let mut table = FileTable::default();
        table.set(&uuids).unwrap();
        let mut again = FileTable::decode(b"files", &table.encode(b"files")).unwrap();
        prop_assert_eq!(again.set(&uuids).unwrap().kept, uuids.len());
        prop_assert!((0..uuids.len() as u16).all(|index| again.index(again.number(index).unwrap()) == Some(index)));
    }

    #[test]
    fn places_survive(
        nvme in vec((".{0,40}", any::<u64>()), 0..5),
        object in option::of(".{0,40}"),
        object_endpoint in option::of(".{0,40}"),
        object_bytes in option::of(any::<u64>()),
    ) {
        let nvme = nvme.into_iter().map(|(path, bytes)| (path.into(), bytes)).collect();
        let places = Places { nvme, object, object_endpoint, object_bytes };
        prop_assert_eq!(Places::decode(b"places", &places.encode(b"places")), Some(places));
    }

    #[test]
    fn a_mark_survives(format: u32, store_uuid: [u8; 16], incarnation: u64) {
        let mark = Mark { format, store_uuid, incarnation };
        prop_assert_eq!(Mark::parse(mark.text().as_bytes()), Some(mark));
    }
}

#[test]
fn files_that_do_not_fit_are_refused_and_change_nothing() {
    let mut table = FileTable::default();
    let uuid = |n: usize| u128::to_le_bytes(n as u128);
    table.set(&[uuid(0)]).unwrap();
    let many: Vec<_> = (0..=FILES_MAX).map(uuid).collect();
    assert_eq!(table.set(&many), None);
    assert_eq!(table.uuids(), [uuid(0)]);
    assert!(table.set(&many[..FILES_MAX]).is_some());
}

#[test]
fn a_namespace_id_depends_on_secret_tenant_and_spec() {
    let id = |secret: u8, tenant: &str, name: &str, model_digest: &str| {
        let mut spec = spec(name);
        spec.fingerprint.model_digest = model_digest.to_owned();
        namespace_id(&[secret; 32], tenant, &spec)
    };
    let all = [
        id(1, "a", "m", "x"),
        id(2, "a", "m", "x"),
        id(1, "b", "m", "x"),
        id(1, "a", "n", "x"),
        id(1, "a", "m", "y"),
    ];
    assert_eq!(all.iter().collect::<std::collections::BTreeSet<_>>().len(), 5);
    assert_eq!(id(1, "a", "m", "x"), all[0]);
}
