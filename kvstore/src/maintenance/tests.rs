use kelvin_kernels::{Checksum, checksum};
use kelvin_proto::kv::v1::{InspectResponse, Tier as WireTier, VerifyResponse};
use kelvin_proto::{Fingerprint, NamespaceSpec, Shard};
use kelvin_tiering::{Device, Tier};
use std::fs;
use std::os::unix::fs::FileExt;

use super::*;
use crate::catalog::{Record, namespace_id};

const BLOCK_BYTES: usize = 64 << 10;
const ROOM_BYTES: u64 = 64 << 20;

fn spec() -> NamespaceSpec {
    let text = |text: &str| text.to_owned();
    NamespaceSpec {
        model: text("m"),
        fingerprint: Fingerprint {
            model_digest: text("ab"),
            engine: text("toy"),
            engine_build: text("1"),
            layout: text("l"),
            dtype: text("f16"),
            attributes: [].into(),
        },
        shard: Shard::default(),
        block_tokens: 16,
        block_bytes: BLOCK_BYTES as u64,
    }
}

fn hash(n: u8) -> SequenceHash {
    SequenceHash::from_bytes([n; 16])
}

fn block(n: u8) -> Vec<u8> {
    vec![n; BLOCK_BYTES]
}

fn pack_entry(n: u8, parent: Option<u8>) -> PackEntry {
    PackEntry {
        hash: [n; 16],
        parent: parent.map(|n| [n; 16]),
        offset: 0,
        bytes: BLOCK_BYTES as u32,
        checksum: checksum(&block(n)),
    }
}

/// A store's directory with blocks 1 to 9 on NVMe, each the child of the one before.
struct Home {
    dir: tempfile::TempDir,
    id: NamespaceId,
    records: Vec<Record>,
}

impl Home {
    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("nvme/kelvin.blocks")
    }

    fn packs(&self) -> PackStore {
        PackStore::open(&ObjectOptions::new(self.dir.path().join("packs").to_str().unwrap())).unwrap()
    }

    async fn make() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (data, nvme) = (dir.path().join("data"), dir.path().join("nvme"));
        let id = namespace_id(&[0; 32], "t", &spec());
        let (catalog, _) = Catalog::open(&data).unwrap();
        let object = dir.path().join("packs").to_str().unwrap().to_owned();
        catalog
            .set_places(&Places {
                nvme: vec![(nvme.clone(), ROOM_BYTES)],
                object: Some(object),
                ..Places::default()
            })
            .unwrap();
        catalog.put_namespace(&NamespaceRecord { id, tenant: "t".to_owned(), spec: spec() }).unwrap();
        let paths = vec![NvmePath { path: nvme, bytes: ROOM_BYTES }];
        let device = NvmeDevice::open(&NvmeOptions { paths, ..NvmeOptions::default() }).unwrap();
        catalog.set_files(&[device.files()[0].uuid]).unwrap();
        let mut records = Vec::new();
        let mut slots = Vec::new();
        for n in 1..=9 {
            let slot = device.allocate(BLOCK_BYTES as u64).unwrap();
            let address = slot.address();
            let (slot, _, result) = device.write(slot, 0, block(n)).await;
            result.unwrap();
            slots.push(slot);
            records.push(Record {
                namespace: id,
                sequence: catalog.next_sequence(1),
                hash: hash(n),
                parent: (n > 1).then(|| hash(n - 1)),
                file: address.file,
                offset: address.offset,
                bytes: BLOCK_BYTES as u32,
                checksum: checksum(&block(n)),
                priority: 0,
                expires_at_unix_ms: None,
            });
        }
        catalog.append(&records).unwrap();
        catalog.mark_clean(true).unwrap();
        Self { dir, id, records }
    }

    fn open(&self, purpose: Purpose) -> StoppedStore {
        StoppedStore::open(&self.data(), purpose).unwrap()
    }

    fn inspect(&self) -> InspectResponse {
        self.open(Purpose::Look).inspect().unwrap()
    }

    async fn verify(&self, tiers: &[Tier]) -> (VerifyResponse, Vec<VerifyResponse>) {
        let mut said = Vec::new();
        let found = self.open(Purpose::Verify).verify(tiers, |message| said.push(message)).await.unwrap();
        (found, said)
    }

    /// As a store that starts and is stopped again.
    fn with_catalog(&self, work: impl FnOnce(&Catalog)) {
        let (catalog, _) = Catalog::open(&self.data()).unwrap();
        let uuids = catalog.places().unwrap().unwrap();
        let paths = uuids.nvme.into_iter().map(|(path, bytes)| NvmePath { path, bytes }).collect();
        let device = NvmeDevice::open(&NvmeOptions { paths, ..NvmeOptions::default() }).unwrap();
        catalog.set_files(&[device.files()[0].uuid]).unwrap();
        work(&catalog);
        catalog.mark_clean(true).unwrap();
    }
}

#[tokio::test]
async fn a_sound_store_is_counted_and_verified() {
    let home = Home::make().await;
    let found = home.inspect();
    assert_eq!((found.catalog_records, found.recovered_blocks, found.clean), (9, 9, true));
    assert_eq!(found.dropped, []);
    let [file] = &found.files[..] else { panic!("{found:?}") };
    assert_eq!((file.bytes, file.used_bytes), (ROOM_BYTES, 9 * BLOCK_BYTES as u64));
    let [namespace] = &found.namespaces[..] else { panic!("{found:?}") };
    assert_eq!((namespace.tenant.as_str(), namespace.id.clone()), ("t", hex(&home.id)));
    let [tier] = &namespace.tiers[..] else { panic!("{found:?}") };
    assert_eq!((tier.tier(), tier.blocks, tier.bytes), (WireTier::Nvme, 9, 9 * BLOCK_BYTES as u64));

    let (found, said) = home.verify(&[]).await;
    assert_eq!((found.checked_blocks, found.total_blocks, found.damaged_blocks), (9, 9, 0));
    assert!(found.done && said.last() == Some(&found));
    assert_eq!(home.verify(&[Tier::Object]).await.0.total_blocks, 0);
    let done = home.open(Purpose::Collect).collect(0).await.unwrap();
    assert_eq!(done, Default::default());
}

#[tokio::test]
async fn a_store_that_runs_is_left_alone() {
    let home = Home::make().await;
    let (_catalog, _) = Catalog::open(&home.data()).unwrap();
    let error = StoppedStore::open(&home.data(), Purpose::Look).err().unwrap().to_string();
    assert!(error.contains("in use by another process"), "{error}");
}

#[tokio::test]
async fn damage_is_found_and_dropped_with_what_stands_behind_it() {
    let home = Home::make().await;
    let file = fs::File::options().write(true).open(home.file()).unwrap();
    let hurt = &home.records[6];
    file.write_all_at(b"x", hurt.offset + 77).unwrap();
    let (found, said) = home.verify(&[Tier::Nvme]).await;
    assert_eq!((found.checked_blocks, found.damaged_blocks, found.unreadable_blocks), (9, 1, 0));
    let damaged: Vec<_> = said.iter().flat_map(|message| message.damaged.clone()).collect();
    assert!(
        damaged
            .iter()
            .any(|block| block.hash[..] == hurt.hash.to_bytes() && block.namespace == hex(&home.id))
    );

    // Its children cannot be found any more.
    let found = home.inspect();
    assert_eq!(found.recovered_blocks, 6);
    let dropped: Vec<_> =
        found.dropped.iter().map(|dropped| (dropped.reason.as_str(), dropped.blocks)).collect();
    assert_eq!(dropped, [("no parent", 2)]);
    let would = home.open(Purpose::Look).collect(0).await.unwrap();
    assert_eq!((would.records_removed, would.slots_freed), (2, 2));
    assert_eq!(home.open(Purpose::Collect).collect(0).await.unwrap(), would);
    assert_eq!(home.open(Purpose::Collect).collect(0).await.unwrap(), Default::default());
    assert!(home.inspect().clean, "the next start sees a store that was stopped in order");
}

#[tokio::test]
async fn records_that_no_start_takes_over_are_named() {
    let home = Home::make().await;
    let first = home.records[0];
    home.with_catalog(|catalog| {
        let with = |slot: u64, change: fn(&mut Record)| {
            let sequence = catalog.next_sequence(1);
            let offset = first.offset + slot * BLOCK_BYTES as u64;
            let mut record = Record { sequence, offset, hash: hash(99), parent: None, ..first };
            change(&mut record);
            record
        };
        let odd = [
            with(20, |record| record.namespace = [0xee; 16]),
            // In another extent: it is cut otherwise.
            with(20, |record| (record.bytes, record.offset) = (1, record.offset + (32 << 20))),
            with(20, |record| record.offset = 1 << 60),
            with(21, |record| record.parent = Some(hash(200))),
            // The first block once more: this one stands.
            with(22, |record| (record.hash, record.checksum) = (hash(1), Checksum(1))),
        ];
        catalog.append(&odd).unwrap();
    });
    let found = home.inspect();
    let reasons: Vec<&str> = found.dropped.iter().map(|dropped| dropped.reason.as_str()).collect();
    assert_eq!(reasons, ["no namespace", "no parent", "no slot", "other size", "written twice"]);
    assert_eq!((found.recovered_blocks, found.catalog_records), (9, 14));
    assert_eq!(home.open(Purpose::Collect).collect(0).await.unwrap().records_removed, 5);
    assert_eq!(home.inspect().dropped, []);
}

#[tokio::test]
async fn a_file_that_is_away_costs_nothing_until_a_start() {
    let home = Home::make().await;
    let away = home.dir.path().join("away");
    fs::rename(home.file(), &away).unwrap();
    let store = home.open(Purpose::Collect);
    assert_eq!(store.missing(), [home.dir.path().join("nvme")]);
    assert_eq!(store.collect(0).await.unwrap().records_removed, 0);
    drop(store);
    let found = home.inspect();
    assert_eq!((found.dropped[0].reason.as_str(), found.dropped[0].blocks), ("other file", 9));
    assert!(!home.file().exists(), "looking makes no file");
    fs::rename(&away, home.file()).unwrap();
    assert_eq!(home.inspect().recovered_blocks, 9);
}

#[tokio::test]
async fn packs_are_verified_and_collected() {
    let home = Home::make().await;
    let packs = home.packs();
    let put = |blocks: &[(u8, Option<u8>)]| {
        let blocks = blocks.iter().map(|(n, parent)| (pack_entry(*n, *parent), block(*n))).collect();
        packs.put(home.id, blocks)
    };
    // Another node's, and not in the catalog: 10. Behind it 11, 12. Superseded: 13, of which 14 is a child.
    let other = put(&[(10, None)]).await.unwrap();
    let sound = put(&[(11, Some(10)), (12, Some(11))]).await.unwrap();
    let old = put(&[(13, None), (14, Some(13)), (15, Some(99))]).await.unwrap();
    let young = put(&[(13, None)]).await.unwrap();
    let dead = put(&[(16, Some(99))]).await.unwrap();
    let gone = put(&[(17, None)]).await.unwrap();
    packs.delete(home.id, gone.id).await.unwrap();
    home.with_catalog(|catalog| {
        for pack in [&sound, &old, &young, &dead, &gone] {
            catalog.put_pack(&pack_record(pack)).unwrap();
        }
    });
    let found = home.inspect();
    assert_eq!((found.packs, found.namespaces[0].tiers[1].blocks), (5, 8));
    let (found, _) = home.verify(&[Tier::Object]).await;
    assert_eq!((found.checked_blocks, found.damaged_blocks, found.unreadable_blocks), (8, 0, 1));

    let would = home.open(Purpose::Look).collect(0).await.unwrap();
    let done = home.open(Purpose::Collect).collect(0).await.unwrap();
    assert_eq!((done.packs_deleted, done.packs_rewritten, done.records_removed), (1, 1, 1));
    assert_eq!((would.packs_deleted, would.packs_rewritten, would.records_removed), (1, 1, 1));
    assert!(done.pack_bytes_freed > 2 * BLOCK_BYTES as u64);
    let listed = packs.list(home.id).await.unwrap();
    assert!(listed.contains(&other.id) && listed.contains(&sound.id) && listed.contains(&young.id));
    assert!(!listed.contains(&old.id) && !listed.contains(&dead.id) && listed.len() == 4);
    let (found, _) = home.verify(&[Tier::Object]).await;
    assert_eq!((found.checked_blocks, found.unreadable_blocks), (4, 0));
    assert_eq!(home.open(Purpose::Collect).collect(0).await.unwrap(), Default::default());

    // Damage in a pack is told.
    let path = home.dir.path().join(format!("packs/{}/{}.pack", hex(&home.id), sound.id));
    fs::File::options().write(true).open(path).unwrap().write_all_at(b"x", sound.entries[1].offset).unwrap();
    let (found, _) = home.verify(&[]).await;
    assert_eq!((found.damaged_blocks, found.checked_blocks), (1, 13));
}
