//! How RocksDB is set up: small memory, a bounded log, background work that leaves the disk to the blocks.

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DBCompressionType, DBRecoveryMode, LogLevel, Options,
    ReadOptions, WriteOptions,
};

/// Facts about the store. The family every database has.
pub(super) const FACTS: &str = rocksdb::DEFAULT_COLUMN_FAMILY_NAME;
pub(super) const NAMESPACES: &str = "namespaces";
pub(super) const BLOCKS: &str = "blocks";
pub(super) const PACKS: &str = "packs";
pub(super) const FAMILIES: [&str; 4] = [FACTS, NAMESPACES, BLOCKS, PACKS];

/// The log is cut here: a restart after a crash replays about this much, 80,000 blocks in about 0.1 s.
pub const WAL_BYTES_MAX: u64 = 8 << 20;
/// Five of them may wait to be written out before a write is refused.
const WRITE_BUFFER_BYTES: usize = 4 << 20;
/// Blocks are read once, in order: a cache would only hold what is not asked for again.
const BLOCK_CACHE_BYTES: usize = 8 << 20;
/// Large, for reading in order: fewer index entries, fewer reads.
const TABLE_BLOCK_BYTES: usize = 32 << 10;
const TABLE_BYTES: u64 = 32 << 20;
/// What flush and compaction may write a second, so that they do not delay blocks. It also bounds how fast a
/// restart after a crash turns the log into a table.
const BACKGROUND_BYTES_S: i64 = 64 << 20;
const READAHEAD_BYTES: usize = 1 << 20;

/// For the database as a whole.
pub(super) fn database() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_paranoid_checks(true);
    // After a crash: everything up to the first record of the log that is torn, and nothing behind it.
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options.set_max_total_wal_size(WAL_BYTES_MAX);
    options.set_max_background_jobs(2);
    options.set_max_subcompactions(1);
    options.set_ratelimiter(BACKGROUND_BYTES_S, 100_000, 10);
    options.set_bytes_per_sync(1 << 20);
    // Otherwise each table's statistics are read at open.
    options.set_skip_stats_update_on_db_open(true);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options.set_max_manifest_file_size(4 << 20);
    options.set_manifest_preallocation_size(64 << 10);
    // RocksDB's own log file, kept small.
    options.set_log_level(LogLevel::Warn);
    options.set_max_log_file_size(1 << 20);
    options.set_keep_log_file_num(2);
    options
}

/// The families, each with its options: `open_cf` would open them with the defaults.
pub(super) fn families() -> Vec<ColumnFamilyDescriptor> {
    let cache = Cache::new_lru_cache(BLOCK_CACHE_BYTES);
    FAMILIES.into_iter().map(|name| ColumnFamilyDescriptor::new(name, family(name, &cache))).collect()
}

fn family(name: &str, cache: &Cache) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_block_size(TABLE_BLOCK_BYTES);
    table.set_format_version(6);
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    // Hashes and checksums do not compress; the texts of namespaces do.
    options.set_compression_type(match name {
        NAMESPACES => DBCompressionType::Lz4,
        _ => DBCompressionType::None,
    });
    options.set_write_buffer_size(match name {
        BLOCKS | PACKS => WRITE_BUFFER_BYTES,
        _ => 1 << 20,
    });
    options.set_max_write_buffer_number(6);
    options.set_target_file_size_base(TABLE_BYTES);
    options.set_max_bytes_for_level_base(4 * TABLE_BYTES);
    options.set_level_compaction_dynamic_level_bytes(true);
    // A burst may leave many young tables; they are merged behind it, and writes go on meanwhile.
    options.set_level_zero_file_num_compaction_trigger(4);
    options.set_level_zero_slowdown_writes_trigger(32);
    options.set_level_zero_stop_writes_trigger(64);
    // Eviction deletes old blocks by the run: their tables are merged before a restart has to wade through.
    options.add_compact_on_deletion_collector_factory(4096, 2048, 0.5);
    options
}

/// Reading in order, past the cache.
pub(super) fn scan() -> ReadOptions {
    let mut options = ReadOptions::default();
    options.fill_cache(false);
    options.set_verify_checksums(true);
    options.set_readahead_size(READAHEAD_BYTES);
    options
}

/// A write that is refused rather than delayed: new copies can wait.
pub(super) fn if_not_stalled() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.set_no_slowdown(true);
    options
}

/// A write that is on the disk when it returns.
pub(super) fn synced() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.set_sync(true);
    options
}
