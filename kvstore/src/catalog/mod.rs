//! The catalog: what of a store outlives its process. RocksDB, as the durable copy of structures in memory.
//!
//! # Overview
//! A [`Record`] a block on NVMe, a [`PackRecord`] a pack in the object tier, a [`NamespaceRecord`] a
//! namespace, and a few facts of the store itself. It is written behind the in-memory index and read once,
//! at start: nothing looks up a single block, so there are no bloom filters and hardly a block cache.
//!
//! A data directory holds:
//! ```text
//! catalog/             the database; families: default (facts), namespaces, blocks, packs
//! catalog.lock         held while the catalog is open
//! catalog.mark         format, store id and incarnation once more, outside the database
//! catalog.damaged-N/   a database that could not be read, moved aside; the newest few are kept
//! ```
//! Keys of blocks are `namespace ‖ sequence` (big endian). A store numbers blocks in the order in which they
//! become durable, parents first, so key order brings parents before their children.
//!
//! # Crash consistency
//! - A write is one `WriteBatch` in the write-ahead log, unsynced: it outlives the process (`kill -9`), not
//!   the machine. [`Catalog::sync`] makes all before it outlive the machine; the caller syncs the data first.
//! - After power failure the catalog is a prefix of its own history. A record may then name a slot that was
//!   used again: its bytes fail their checksum, which is a miss.
//! - An older copy put back is also a prefix. It is noticed by `catalog.mark`, said aloud, and safe for the
//!   same reason.
//! - A database that RocksDB refuses is moved aside and a fresh one begins: blocks are lost, never wrong.
//! - Every record carries a check of key and value. What does not decode is skipped, counted and deleted.
//!
//! # Locking
//! `database`: shared by all use, exclusive to reopen after a failed write. `files` is never held together
//! with another lock but `database`, which is taken first.
//!
//! # Limits
//! Memory: at most six write buffers of 4 MiB for blocks and for packs (mostly one of them), the block cache
//! and the table readers, in all about 64 MiB. The log
//! is at most [`WAL_BYTES_MAX`] plus one write buffer, which bounds what a restart after a crash replays.

mod bytes;
mod database;
mod error;
mod files;
mod fuzzing;
mod home;
mod load;
mod namespace;
mod pack;
mod places;
mod record;
mod settings;
#[cfg(test)]
mod tests;

pub use database::{Access, Catalog, CatalogStats};
pub use error::CatalogError;
pub use files::{FILES_MAX, FilesFound};
pub use fuzzing::decode_any;
pub use home::{FORMAT, Opened, Start};
pub use load::LoadStats;
pub use namespace::{NamespaceId, NamespaceRecord, namespace_id};
pub use pack::{PackEntryRecord, PackRecord};
pub use places::Places;
pub use record::{RECORD_BYTES_MAX, Record};
pub use settings::WAL_BYTES_MAX;
