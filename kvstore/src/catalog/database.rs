//! [`Catalog`]: every write, and what is read of it but the blocks.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use parking_lot::{MappedRwLockReadGuard, Mutex, RwLock, RwLockReadGuard};
use rocksdb::{ColumnFamily, DB, ErrorKind, IteratorMode, WriteBatch, WriteOptions};

use super::{
    CatalogError, FilesFound, NamespaceId, NamespaceRecord, PackRecord, Places, Record,
    bytes::seal,
    error::is_busy,
    files::{FILES_MAX, FileTable},
    home::{self, Lock},
    pack, record,
    settings::{self, BLOCKS, FACTS, NAMESPACES, PACKS},
};

pub(super) const FORMAT_KEY: &[u8] = b"format";
pub(super) const STORE_KEY: &[u8] = b"store";
pub(super) const INCARNATION_KEY: &[u8] = b"incarnation";
pub(super) const CLEAN_KEY: &[u8] = b"clean";
pub(super) const SEQUENCE_KEY: &[u8] = b"sequence";
pub(super) const FILES_KEY: &[u8] = b"files";
const PLACES_KEY: &[u8] = b"places";

/// Numbers set aside at once: a start skips at most so many.
const SEQUENCES_RESERVED: u64 = 1 << 20;
/// A database that failed is not opened more often than this.
const REOPEN_EVERY: Duration = Duration::from_secs(1);

/// What may be done with a catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everything; a store runs.
    Serve,
    /// Records may be deleted; the store is stopped, and its next start must not notice.
    Change,
    /// Nothing; the store is stopped.
    Read,
}

/// The durable copy of what a store knows. Cheap to share by reference; every method may block on the disk.
pub struct Catalog {
    pub(super) dir: PathBuf,
    pub(super) access: Access,
    /// `None` after a write failed, until it could be opened again.
    database: RwLock<Option<DB>>,
    /// A write failed and the database is still open: somebody was reading it.
    broken: AtomicBool,
    pub(super) files: RwLock<FileTable>,
    /// The next block's number.
    sequence: AtomicU64,
    /// Numbers below are not used again after a restart.
    sequence_reserved: AtomicU64,
    writes_failed: AtomicU64,
    reopened_at: Mutex<Option<Instant>>,
    /// Last: others may come in when all the rest is closed.
    _lock: Lock,
}

/// How large a catalog is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CatalogStats {
    /// Blocks on NVMe, estimated by RocksDB.
    pub records: u64,
    /// Packs, estimated by RocksDB.
    pub packs: u64,
    /// Bytes of its files.
    pub disk_bytes: u64,
    /// Bytes of write buffers, table readers and the cache.
    pub memory_bytes: u64,
    /// Writes that failed since it was opened.
    pub writes_failed: u64,
    /// Whether the last write failed, and it could not be opened again since.
    pub closed: bool,
}

impl Catalog {
    pub(super) fn with(
        dir: &Path,
        access: Access,
        lock: Lock,
        database: DB,
        files: FileTable,
        sequence: u64,
    ) -> Self {
        Self {
            dir: dir.to_owned(),
            access,
            database: RwLock::new(Some(database)),
            broken: AtomicBool::new(false),
            files: RwLock::new(files),
            sequence: AtomicU64::new(sequence),
            sequence_reserved: AtomicU64::new(sequence),
            writes_failed: AtomicU64::new(0),
            reopened_at: Mutex::new(None),
            _lock: lock,
        }
    }

    /// What may be done with it.
    pub fn access(&self) -> Access {
        self.access
    }

    /// The data directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The first of `count` numbers in a row that were never given before.
    ///
    /// They become durable with the first record that uses one.
    pub fn next_sequence(&self, count: u64) -> u64 {
        self.sequence.fetch_add(count, Ordering::Relaxed)
    }

    /// Writes records, all or none. When it returns they outlive the process, not yet the machine.
    ///
    /// # Errors
    /// When the disk is full or fails, or RocksDB would have to wait for its background work: the records are
    /// then not durable, and a later try may succeed.
    pub fn append(&self, records: &[Record]) -> Result<(), CatalogError> {
        let Some(last) = records.iter().map(|record| record.sequence).max() else { return Ok(()) };
        let database = self.database()?;
        let blocks = family(&database, BLOCKS);
        let mut batch = WriteBatch::with_capacity_bytes(records.len() * (record::RECORD_BYTES_MAX + 32));
        let reserve = (last >= self.sequence_reserved.load(Ordering::Relaxed))
            .then(|| last.saturating_add(SEQUENCES_RESERVED));
        if let Some(reserve) = reserve {
            batch.put(SEQUENCE_KEY, seal(SEQUENCE_KEY, reserve.to_le_bytes().to_vec()));
        }
        {
            let files = self.files.read();
            for record in records {
                let number = files
                    .number(record.file)
                    .ok_or(CatalogError::UnknownFile { file: record.file, files: files.len() })?;
                let (key, value) = record.encode(number);
                batch.put_cf(blocks, key, value);
            }
        }
        drop(database);
        self.write(batch, &settings::if_not_stalled(), "write records to the catalog")?;
        if let Some(reserve) = reserve {
            self.sequence_reserved.fetch_max(reserve, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Deletes records, all or none; those that are not there are no error.
    ///
    /// # Errors
    /// As for [`append`](Self::append). The slots must then not be used again.
    pub fn remove(&self, records: &[(NamespaceId, u64)]) -> Result<(), CatalogError> {
        let keys = records.iter().map(|(namespace, sequence)| record::key(namespace, *sequence));
        self.remove_keys(BLOCKS, keys, "delete records from the catalog")
    }

    pub(super) fn remove_keys<K: AsRef<[u8]>>(
        &self,
        from: &str,
        keys: impl Iterator<Item = K>,
        context: &'static str,
    ) -> Result<(), CatalogError> {
        let mut batch = WriteBatch::default();
        let database = self.database()?;
        let from = family(&database, from);
        keys.for_each(|key| batch.delete_cf(from, key));
        drop(database);
        if batch.is_empty() {
            return Ok(());
        }
        self.write(batch, &WriteOptions::default(), context)
    }

    /// Makes everything written so far outlive the machine. The caller syncs the data first.
    pub fn sync(&self) -> Result<(), CatalogError> {
        let result = self.database()?.flush_wal(true);
        result.map_err(|error| self.failed("sync the catalog", error))
    }

    /// Takes the NVMe files as they are now: `file` in records is an index in this list from here on. Before
    /// [`load`](Self::load), and once.
    pub fn set_files(&self, uuids: &[[u8; 16]]) -> Result<FilesFound, CatalogError> {
        let mut table = self.files.read().clone();
        let found = table.set(uuids).ok_or(CatalogError::TooManyFiles { max: FILES_MAX })?;
        match self.access {
            Access::Serve => self.put_files(table)?,
            Access::Change | Access::Read => *self.files.write() = table,
        }
        Ok(found)
    }

    pub(super) fn put_files(&self, table: FileTable) -> Result<(), CatalogError> {
        let mut batch = WriteBatch::default();
        batch.put(FILES_KEY, table.encode(FILES_KEY));
        self.write(batch, &settings::synced(), "write the list of files to the catalog")?;
        *self.files.write() = table;
        Ok(())
    }

    /// The files given last.
    pub fn files(&self) -> Vec<[u8; 16]> {
        self.files.read().uuids()
    }

    /// Notes where the copies are, for those who have only the data directory.
    pub fn set_places(&self, places: &Places) -> Result<(), CatalogError> {
        let mut batch = WriteBatch::default();
        batch.put(PLACES_KEY, places.encode(PLACES_KEY));
        self.write(batch, &settings::synced(), "write the places of copies to the catalog")
    }

    /// Where the copies were at the last start; `None` if that was not noted.
    pub fn places(&self) -> Result<Option<Places>, CatalogError> {
        let value = self.database()?.get(PLACES_KEY);
        let value = value.map_err(CatalogError::database("read the places of copies from the catalog"))?;
        Ok(value.and_then(|value| Places::decode(PLACES_KEY, &value)))
    }

    /// Writes a namespace, or writes it again.
    pub fn put_namespace(&self, namespace: &NamespaceRecord) -> Result<(), CatalogError> {
        let mut batch = WriteBatch::default();
        let value = namespace.encode();
        batch.put_cf(family(&*self.database()?, NAMESPACES), namespace.id, value);
        self.write(batch, &WriteOptions::default(), "write a namespace to the catalog")
    }

    /// Deletes a namespace with its records and packs.
    pub fn remove_namespace(&self, id: &NamespaceId) -> Result<(), CatalogError> {
        let mut batch = WriteBatch::default();
        let database = self.database()?;
        let end = u128::from_be_bytes(*id).checked_add(1).map(u128::to_be_bytes);
        for from in [BLOCKS, PACKS] {
            // Keys begin with the namespace; behind the last one there is none, so a long key will do.
            let end = end.map_or_else(|| vec![0xff; 64], |end| end.to_vec());
            batch.delete_range_cf(family(&database, from), id.to_vec(), end);
        }
        batch.delete_cf(family(&database, NAMESPACES), id);
        drop(database);
        self.write(batch, &WriteOptions::default(), "delete a namespace from the catalog")
    }

    /// The namespaces, and how many were skipped because they could not be read.
    pub fn namespaces(&self) -> Result<(Vec<NamespaceRecord>, u64), CatalogError> {
        let database = self.database()?;
        let (mut namespaces, mut skipped) = (Vec::new(), 0);
        for item in
            database.iterator_cf_opt(family(&database, NAMESPACES), settings::scan(), IteratorMode::Start)
        {
            let (key, value) = item.map_err(CatalogError::database("read the namespaces of the catalog"))?;
            match NamespaceRecord::decode(&key, &value) {
                Some(namespace) => namespaces.push(namespace),
                None => skipped += 1,
            }
        }
        Ok((namespaces, skipped))
    }

    /// Writes a pack, or writes it again.
    pub fn put_pack(&self, pack: &PackRecord) -> Result<(), CatalogError> {
        let (key, value) = pack.encode();
        let mut batch = WriteBatch::default();
        batch.put_cf(family(&*self.database()?, PACKS), key, value);
        self.write(batch, &settings::if_not_stalled(), "write a pack to the catalog")
    }

    /// Deletes a pack; one that is not there is no error.
    pub fn remove_pack(&self, namespace: &NamespaceId, id: &[u8; 16]) -> Result<(), CatalogError> {
        self.remove_keys(PACKS, [pack::key(namespace, id)].into_iter(), "delete a pack from the catalog")
    }

    /// The packs of a namespace in the order of their ids, and how many were skipped because they could not be
    /// read. Ids are ordered by time, but a pack that garbage collection wrote can hold the parents of older
    /// ones.
    pub fn packs(&self, namespace: &NamespaceId) -> Result<(Vec<PackRecord>, u64), CatalogError> {
        let database = self.database()?;
        let mut options = settings::scan();
        options.set_iterate_range(rocksdb::PrefixRange(namespace.to_vec()));
        let (mut packs, mut skipped) = (Vec::new(), 0);
        for item in database.iterator_cf_opt(family(&database, PACKS), options, IteratorMode::Start) {
            let (key, value) = item.map_err(CatalogError::database("read the packs of the catalog"))?;
            match PackRecord::decode(&key, &value) {
                Some(pack) => packs.push(pack),
                None => skipped += 1,
            }
        }
        Ok((packs, skipped))
    }

    /// Notes whether the process is done in good order. With `true` everything is on the disk when it returns,
    /// and the next start has no log to replay.
    pub fn mark_clean(&self, clean: bool) -> Result<(), CatalogError> {
        self.put_facts(&[(CLEAN_KEY, &[u8::from(clean)])])?;
        if clean {
            let database = self.database()?;
            let families = settings::FAMILIES.map(|name| family(&database, name));
            let families: Vec<_> = families.iter().collect();
            let flushed = database.flush_cfs_opt(&families, &rocksdb::FlushOptions::default());
            drop(database);
            flushed.map_err(|error| self.failed("flush the catalog", error))?;
        }
        Ok(())
    }

    /// How large it is.
    pub fn stats(&self) -> CatalogStats {
        let mut stats = CatalogStats {
            disk_bytes: disk_bytes(&home::database_dir(&self.dir)),
            writes_failed: self.writes_failed.load(Ordering::Relaxed),
            ..CatalogStats::default()
        };
        let database = self.database.read_recursive();
        let Some(database) = database.as_ref().filter(|_| !self.broken.load(Ordering::Relaxed)) else {
            return CatalogStats { closed: true, ..stats };
        };
        let number = |from: &str, property: &str| {
            database.property_int_value_cf(family(database, from), property).ok().flatten().unwrap_or(0)
        };
        stats.records = number(BLOCKS, "rocksdb.estimate-num-keys");
        stats.packs = number(PACKS, "rocksdb.estimate-num-keys");
        // One cache serves all families.
        stats.memory_bytes = number(FACTS, "rocksdb.block-cache-usage");
        for name in settings::FAMILIES {
            stats.memory_bytes += number(name, "rocksdb.cur-size-all-mem-tables");
            stats.memory_bytes += number(name, "rocksdb.estimate-table-readers-mem");
        }
        stats
    }

    pub(super) fn put_facts(&self, facts: &[(&[u8], &[u8])]) -> Result<(), CatalogError> {
        let mut batch = WriteBatch::default();
        for (key, value) in facts {
            batch.put(key, seal(key, value.to_vec()));
        }
        self.write(batch, &settings::synced(), "write the facts of the catalog")
    }

    fn write(
        &self,
        batch: WriteBatch,
        options: &WriteOptions,
        context: &'static str,
    ) -> Result<(), CatalogError> {
        if self.access == Access::Read {
            return Err(CatalogError::ReadOnly);
        }
        let result = self.database()?.write_opt(batch, options);
        result.map_err(|error| self.failed(context, error))
    }

    /// The open database, opened again if a write failed before and it is time to try.
    pub(super) fn database(&self) -> Result<MappedRwLockReadGuard<'_, DB>, CatalogError> {
        if self.broken.load(Ordering::Relaxed) {
            // Never waits: whoever loads deletes as well, so the reader may be the caller itself.
            let mut database = self.database.try_write().ok_or(CatalogError::Closed)?;
            *database = None;
            self.broken.store(false, Ordering::Relaxed);
        }
        if let Ok(open) = RwLockReadGuard::try_map(self.database.read_recursive(), Option::as_ref) {
            return Ok(open);
        }
        let due = {
            let mut at = self.reopened_at.lock();
            let due = at.is_none_or(|at| at.elapsed() >= REOPEN_EVERY);
            if due {
                *at = Some(Instant::now());
            }
            due
        };
        if due {
            self.reopen();
        }
        let database = self.database.read_recursive();
        RwLockReadGuard::try_map(database, Option::as_ref).map_err(|_| CatalogError::Closed)
    }

    /// A write failed. RocksDB then refuses all others until it is opened again, which comes with the next use.
    fn failed(&self, context: &'static str, source: rocksdb::Error) -> CatalogError {
        self.writes_failed.fetch_add(1, Ordering::Relaxed);
        if !is_busy(&source) {
            tracing::warn!(error = %source, "{context}");
            if source.kind() == ErrorKind::Corruption {
                home::flag_damage(&self.dir);
            }
            self.broken.store(true, Ordering::Relaxed);
        }
        CatalogError::Database { context, source }
    }

    pub(super) fn reopen(&self) {
        let mut database = self.database.write();
        if self.broken.swap(false, Ordering::Relaxed) {
            *database = None;
        }
        if database.is_some() {
            return;
        }
        match home::open_database(&self.dir) {
            Ok(open) => {
                tracing::info!(dir = %self.dir.display(), "the catalog is open again");
                *database = Some(open);
            }
            Err(refused) => tracing::warn!(?refused, "the catalog stays closed"),
        }
    }
}

/// The families were named when the database was opened, or it would not have opened.
pub(super) fn family<'a>(database: &'a DB, name: &str) -> &'a ColumnFamily {
    database.cf_handle(name).expect("the database was opened with this family")
}

fn disk_bytes(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .filter_map(|entry| entry.metadata().ok())
        .filter(fs::Metadata::is_file)
        .map(|file| file.len())
        .sum()
}
