//! The door for the fuzz target to every decoder of the catalog.

use super::{NamespaceRecord, PackRecord, Places, Record, bytes::seal, files::FileTable, home::Mark};

/// Decodes any bytes as everything the catalog reads; the first one says how many of them are a key. What is
/// decoded must come back from its own encoding.
pub fn decode_any(bytes: &[u8]) {
    let (first, rest) = bytes.split_first().unwrap_or((&0, &[]));
    let (key, value) = rest.split_at(rest.len().min(usize::from(*first)));
    _ = Mark::parse(rest);
    decode(key, value);
    // With a right check, the fields themselves are read.
    decode(key, &seal(key, value.to_vec()));
}

fn decode(key: &[u8], value: &[u8]) {
    if let Some(record) = Record::decode(key, value) {
        let (key, value) = record.encode(record.file);
        assert_eq!(Record::decode(&key, &value), Some(record));
    }
    if let Some(pack) = PackRecord::decode(key, value) {
        let (key, value) = pack.encode();
        assert_eq!(PackRecord::decode(&key, &value), Some(pack));
    }
    if let Some(namespace) = NamespaceRecord::decode(key, value) {
        assert_eq!(NamespaceRecord::decode(key, &namespace.encode()), Some(namespace));
    }
    if let Some(places) = Places::decode(key, value) {
        assert_eq!(Places::decode(key, &places.encode(key)), Some(places));
    }
    if let Some(files) = FileTable::decode(key, value) {
        assert!(FileTable::decode(key, &files.encode(key)).is_some());
    }
}
