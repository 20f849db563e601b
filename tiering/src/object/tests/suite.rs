//! What every place for packs must do, as one function.

use kelvin_kernels::checksum;

use super::*;

pub(super) fn open(options: &ObjectOptions) -> PackStore {
    PackStore::open(options).expect("open the place")
}

/// The bytes of block `index` of a series.
pub(super) fn block(series: u8, index: usize, bytes: usize) -> Vec<u8> {
    let mut state = u64::from(series) << 32 | index as u64 | 1 << 63;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

pub(super) fn hash(series: u8, index: usize) -> [u8; 16] {
    let mut hash = [series; 16];
    hash[..8].copy_from_slice(&(index as u64).to_le_bytes());
    hash
}

/// A chain of blocks of these sizes.
pub(super) fn blocks(series: u8, sizes: &[usize]) -> Vec<(PackEntry, Vec<u8>)> {
    let mut parent = None;
    sizes
        .iter()
        .enumerate()
        .map(|(index, &bytes)| {
            let block = block(series, index, bytes);
            let entry = PackEntry {
                hash: hash(series, index),
                parent: parent.replace(hash(series, index)),
                offset: u64::MAX,
                bytes: bytes as u32,
                checksum: checksum(&block),
            };
            (entry, block)
        })
        .collect()
}

pub(super) fn buffers(entries: &[PackEntry]) -> Vec<(PackEntry, Vec<u8>)> {
    entries.iter().map(|&entry| (entry, vec![0; entry.bytes as usize])).collect()
}

/// Panics where the place, fresh and empty, does not do what [`PackStore`] says.
pub(super) async fn run(options: &ObjectOptions) {
    let (writer, reader) = (open(options), open(options));
    let (ours, theirs) = ([0xa1; 16], [0xb2; 16]);
    writer.check().await.expect("the place can be used");
    assert_eq!(writer.list(ours).await.unwrap(), []);

    // Another node finds and reads what this one wrote.
    let sizes = [1, 100_000, 4096, 65_537, 1 << 20, 7, 300_000];
    let pack = writer.put(ours, blocks(1, &sizes)).await.unwrap();
    let other = writer.put(theirs, blocks(2, &[10, 20])).await.unwrap();
    assert_eq!(reader.list(ours).await.unwrap(), [pack.id]);
    assert_eq!(reader.list(theirs).await.unwrap(), [other.id]);
    let mut namespaces = reader.namespaces().await.unwrap();
    namespaces.sort_unstable();
    assert_eq!(namespaces, [ours, theirs]);
    assert_eq!(reader.footer(ours, pack.id).await.unwrap(), pack);
    for order in [[0, 1, 2, 3, 4, 5, 6].as_slice(), &[6, 0, 4], &[5, 3, 1], &[2]] {
        let entries: Vec<_> = order.iter().map(|&index| pack.entries[index]).collect();
        for (&index, (bytes, result)) in order.iter().zip(reader.get(ours, pack.id, buffers(&entries)).await)
        {
            assert_eq!(result, Ok(()), "block {index}");
            assert!(bytes == block(1, index, sizes[index]), "block {index}");
        }
    }

    misses(&reader, ours, &pack).await;
    conditions(&writer, options).await;
    junk(&writer).await;
    collection(&writer, &reader, ours, &pack).await;

    // More blocks than the first guess at the footer covers.
    let many = writer.put(theirs, blocks(4, &[33; 1500])).await.unwrap();
    assert_eq!(reader.footer(theirs, many.id).await.unwrap(), many);
    assert_eq!(reader.list(theirs).await.unwrap(), [other.id, many.id], "oldest first");
    let stats = reader.stats();
    assert_eq!((stats.reads_queued, stats.writes_queued, stats.breaker_opens), (0, 0, 0));
}

/// Whatever was asked for wrongly is a miss, not a panic and not another's bytes.
async fn misses(reader: &PackStore, namespace: Namespace, pack: &PackInfo) {
    let get = async |id, entry: PackEntry, room: usize| {
        reader.get(namespace, id, vec![(entry, vec![0; room])]).await.remove(0).1
    };
    let entry = pack.entries[1];
    let room = entry.bytes as usize;
    let wrong = PackEntry { checksum: pack.entries[2].checksum, ..entry };
    assert_eq!(get(pack.id, wrong, room).await, Err(ReadFailure::Damaged));
    let moved = PackEntry { offset: entry.offset + 1, ..entry };
    assert_eq!(get(pack.id, moved, room).await, Err(ReadFailure::Damaged));
    for offset in [pack.bytes - 5, pack.bytes, pack.bytes + 1, 1 << 40] {
        let beyond = PackEntry { offset, ..entry };
        assert_eq!(get(pack.id, beyond, room).await, Err(ReadFailure::Missing), "at {offset}");
    }
    let nowhere = PackEntry { offset: u64::MAX, ..entry };
    assert!(matches!(get(pack.id, nowhere, room).await, Err(ReadFailure::Failed(_))));
    assert!(matches!(get(pack.id, entry, room - 1).await, Err(ReadFailure::Failed(_))));
    assert_eq!(get(PackId([0; 16]), entry, room).await, Err(ReadFailure::Missing));
    let none: Vec<(PackEntry, Vec<u8>)> = Vec::new();
    assert!(reader.get(namespace, pack.id, none).await.is_empty());
    assert!(matches!(reader.footer(namespace, PackId([0; 16])).await, Err(ObjectError::Missing { .. })));
    assert!(matches!(reader.footer([0xcc; 16], pack.id).await, Err(ObjectError::Missing { .. })));
}

/// Of several writers of one name one wins.
async fn conditions(writer: &PackStore, options: &ObjectOptions) {
    for round in 0..5 {
        let path = writer.path(&format!("race-{round}"));
        let stores: Vec<_> = (0..8).map(|_| open(options)).collect();
        let puts = stores.iter().map(|store| {
            let put = PutOptions::from(PutMode::Create);
            store.0.place.store.put_opts(&path, PutPayload::from_static(b"mine"), put)
        });
        let results = join_all(puts).await;
        let won = results.iter().filter(|result| result.is_ok()).count();
        assert_eq!(won, 1, "{results:?}");
        writer.remove("delete", &path).await.unwrap();
    }
}

/// Objects that are no packs are not listed, and not believed under a pack's name.
async fn junk(writer: &PackStore) {
    let namespace = [0xee; 16];
    let folder = writer.path(&Hex(&namespace).to_string());
    for name in ["notes.txt", "abc.pack", "00.pack"] {
        let payload = PutPayload::from_static(b"x");
        writer.0.place.store.put(&folder.clone().join(name), payload).await.unwrap();
    }
    assert_eq!(writer.list(namespace).await.unwrap(), []);
    let pack = writer.put(namespace, blocks(9, &[50])).await.unwrap();
    let path = writer.pack_path(&namespace, pack.id);
    let whole = writer.0.place.store.get(&path).await.unwrap().bytes().await.unwrap();
    let (header_namespace, id) = pack::decode_header(&whole).unwrap();
    assert_eq!((header_namespace, id), (namespace, pack.id));
    let mut swapped = whole.to_vec();
    swapped.truncate(swapped.len() - 1);
    for bytes in [swapped, whole[..64].to_vec(), vec![7; 1000], vec![1]] {
        let junk = PackId::generate();
        writer.0.place.store.put(&writer.pack_path(&namespace, junk), bytes.into()).await.unwrap();
        let found = writer.footer(namespace, junk).await;
        assert!(matches!(found, Err(ObjectError::Damaged { .. })), "{found:?}");
    }
    // Another pack's bytes, whole, under a wrong name.
    let junk = PackId::generate();
    writer.0.place.store.put(&writer.pack_path(&namespace, junk), whole.into()).await.unwrap();
    let found = writer.footer(namespace, junk).await;
    assert!(matches!(found, Err(ObjectError::Damaged { source: PackError::Other, .. })), "{found:?}");
    for id in writer.list(namespace).await.unwrap() {
        writer.delete(namespace, id).await.unwrap();
    }
}

/// The live blocks of a pack move; the rest goes with the old pack.
async fn collection(writer: &PackStore, reader: &PackStore, namespace: Namespace, pack: &PackInfo) {
    let live = [pack.entries[6].hash, pack.entries[1].hash, hash(99, 99)];
    let new = reader.rewrite(pack, &live).await.unwrap();
    let hashes: Vec<_> = new.entries.iter().map(|entry| entry.hash).collect();
    assert_eq!(hashes, [live[1], live[0]], "in the old order");
    assert_eq!(new.entries[0].parent, pack.entries[1].parent);
    assert_eq!(writer.list(namespace).await.unwrap(), [pack.id, new.id]);
    reader.delete(namespace, pack.id).await.unwrap();
    reader.delete(namespace, pack.id).await.expect("gone is as good");
    assert_eq!(writer.list(namespace).await.unwrap(), [new.id]);
    let read = writer.get(namespace, pack.id, buffers(&pack.entries)).await;
    assert!(read.iter().all(|(_, result)| result == &Err(ReadFailure::Missing)));
    for (bytes, result) in writer.get(namespace, new.id, buffers(&new.entries)).await {
        assert_eq!(result, Ok(()));
        assert!(bytes == block(1, 1, 100_000) || bytes == block(1, 6, 300_000));
    }
    assert!(matches!(reader.rewrite(pack, &live).await, Err(ObjectError::Invalid(_))), "nothing to save");
}

/// What is wrong with the options of a client is said as such.
pub(super) async fn refusals(options: &ObjectOptions) {
    let key = |key: &str, secret: &str| {
        Some(Credentials { key_id: key.into(), secret: secret.into(), token: None })
    };
    let right = options.credentials.clone().expect("a server with keys");
    for credentials in [key(&right.key_id, "wrong"), key("unknown", &right.secret)] {
        let error = open(&ObjectOptions { credentials, ..options.clone() }).check().await;
        assert!(matches!(error, Err(ObjectError::Refused { .. })), "{error:?}");
    }
    let other = ObjectOptions { url: "s3://no-such-bucket/x".into(), ..options.clone() };
    let error = open(&other).check().await;
    assert!(matches!(error, Err(ObjectError::NoBucket { .. })), "{error:?}");
}

/// A list of more than a page.
pub(super) async fn long_list(options: &ObjectOptions) {
    let (store, namespace) = (open(options), [0x11; 16]);
    let mut ids: Vec<PackId> = (0..1100).map(|_| PackId::generate()).collect();
    for some in ids.chunks(50) {
        let puts = some.iter().map(async |&id| {
            let path = store.pack_path(&namespace, id);
            store.0.place.store.put(&path, PutPayload::from_static(b"x")).await.unwrap()
        });
        join_all(puts).await;
    }
    ids.sort_unstable();
    assert_eq!(store.list(namespace).await.unwrap(), ids);
}
