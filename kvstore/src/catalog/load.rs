//! Reading every block of the catalog, once, at start.
//!
//! The keys are cut in *pieces*: ranges of sequences of one namespace. Threads read pieces in order and
//! decode them; the caller gets their records in the order of the keys, one chunk after the other, while
//! the next ones are being read. So reading and what the caller does with it overlap, whatever the number
//! of threads, and memory is bounded by the chunks that wait.

use std::sync::{
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    mpsc::{SyncSender, sync_channel},
};

use parking_lot::Mutex;
use rocksdb::DB;

use super::{
    Access, Catalog, CatalogError, NamespaceId, Record,
    database::family,
    home,
    record::{self, KEY_BYTES},
    settings::{self, BLOCKS},
};

/// Records that are handed over at once: half a MiB, which stays in a core's cache, and enough for a bulk load
/// that sets itself up each time.
const CHUNK_RECORDS: usize = 4096;
/// Chunks that wait for the caller, a piece.
const CHUNKS_WAITING: usize = 4;
/// Sequences of a piece: small enough to share the work among threads, large against the cost of a seek.
const PIECE_SEQUENCES: u64 = 1 << 16;
/// A namespace of few blocks, far apart, is not cut finer than this.
const PIECES_MAX: u64 = 64;
/// Jumps over damage, each twice the one before, before the rest of a piece is given up.
const JUMPS_MAX: u32 = 20;

/// What loading found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LoadStats {
    /// Records handed to the caller.
    pub records: u64,
    /// Namespaces that have records.
    pub namespaces: u64,
    /// Records that could not be decoded; a store that starts deletes them.
    pub undecodable: u64,
    /// Records of files that are not there; a store that starts deletes them.
    pub absent: u64,
    /// Places where the database could not be read; an unknown number of records is lost at each.
    pub damaged: u64,
}

#[derive(Debug, Clone, Copy)]
struct Piece {
    namespace: NamespaceId,
    /// First and last sequence.
    from: u64,
    to: u64,
}

#[derive(Default)]
struct Tally {
    undecodable: AtomicU64,
    absent: AtomicU64,
    damaged: AtomicU64,
}

impl Catalog {
    /// Hands every record to `each`, in the order of namespace and sequence: parents before their children.
    ///
    /// `threads` read and decode; `each` runs on the calling thread. After [`set_files`](Self::set_files).
    pub fn load(&self, threads: usize, mut each: impl FnMut(Vec<Record>)) -> Result<LoadStats, CatalogError> {
        let database = self.database()?;
        let tally = Tally::default();
        let (pieces, namespaces) = pieces(&database, &tally);
        let mut stats = LoadStats { namespaces, ..LoadStats::default() };
        let (senders, receivers): (Vec<_>, Vec<_>) = pieces
            .iter()
            .map(|_| sync_channel(CHUNKS_WAITING))
            .map(|(sender, receiver)| (Mutex::new(Some(sender)), receiver))
            .unzip();
        let (next, stopped) = (AtomicUsize::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for _ in 0..threads.clamp(1, pieces.len().max(1)) {
                scope.spawn(|| {
                    while !stopped.load(Ordering::Relaxed) {
                        // In order: the piece the caller waits for is always one that a thread has begun.
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(piece) = pieces.get(index) else { break };
                        let Some(sender) = senders[index].lock().take() else { break };
                        if self.read_piece(&database, *piece, &sender, &tally).is_none() {
                            stopped.store(true, Ordering::Relaxed);
                        }
                    }
                });
            }
            // Moved in: should `each` panic, the receivers go, and the threads stop instead of waiting.
            for receiver in receivers {
                for chunk in receiver {
                    stats.records += chunk.len() as u64;
                    each(chunk);
                }
            }
        });
        drop(database);
        stats.undecodable = tally.undecodable.into_inner();
        stats.absent = tally.absent.into_inner();
        stats.damaged = tally.damaged.into_inner();
        if self.access != Access::Serve {
            return Ok(stats);
        }
        if stats.damaged > 0 {
            home::flag_damage(&self.dir);
            tracing::error!(
                places = stats.damaged,
                "the catalog has damaged places: their blocks are lost, and the next start begins a fresh one"
            );
        }
        if stats.undecodable > 0 {
            tracing::warn!(records = stats.undecodable, "records of the catalog could not be read");
        }
        if stats.absent > 0 {
            tracing::warn!(
                records = stats.absent,
                "blocks of files that are not there any more were dropped"
            );
        }
        self.forget_absent_files(&stats)?;
        Ok(stats)
    }

    /// Frees the numbers of files that are gone, if no record can name them any more.
    fn forget_absent_files(&self, stats: &LoadStats) -> Result<(), CatalogError> {
        let mut table = self.files.read().clone();
        if stats.damaged == 0 && table.forget_absent() {
            self.put_files(table)?;
        }
        Ok(())
    }

    /// `None` when nobody listens any more.
    fn read_piece(
        &self,
        database: &DB,
        piece: Piece,
        sender: &SyncSender<Vec<Record>>,
        tally: &Tally,
    ) -> Option<()> {
        let mut options = settings::scan();
        options.set_iterate_lower_bound(record::key(&piece.namespace, piece.from));
        // Exclusive: one byte more than the last key.
        options.set_iterate_upper_bound([&record::key(&piece.namespace, piece.to)[..], &[0]].concat());
        let mut iterator = database.raw_iterator_cf_opt(family(database, BLOCKS), options);
        iterator.seek_to_first();
        let mut chunk = Vec::with_capacity(CHUNK_RECORDS);
        let mut dropped: Vec<[u8; KEY_BYTES]> = Vec::new();
        let mut reached = piece.from;
        let files = self.files.read().clone();
        loop {
            while let Some((key, value)) = iterator.item() {
                match Record::decode(key, value) {
                    Some(mut record) => {
                        reached = record.sequence;
                        match files.index(record.file) {
                            Some(index) => {
                                record.file = index;
                                chunk.push(record);
                            }
                            None => {
                                tally.absent.fetch_add(1, Ordering::Relaxed);
                                dropped.push(record::key(&record.namespace, record.sequence));
                            }
                        }
                    }
                    None => {
                        tally.undecodable.fetch_add(1, Ordering::Relaxed);
                        dropped.extend(<[u8; KEY_BYTES]>::try_from(key).ok());
                    }
                }
                if chunk.len() == CHUNK_RECORDS {
                    let full = std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK_RECORDS));
                    sender.send(full).ok()?;
                }
                if dropped.len() == CHUNK_RECORDS {
                    self.drop_records(&mut dropped);
                }
                iterator.next();
            }
            if iterator.status().is_ok() {
                break;
            }
            // A table block is damaged, or the disk fails. Which keys it held is not known: jump ahead.
            tally.damaged.fetch_add(1, Ordering::Relaxed);
            let jumps = (0..JUMPS_MAX).map(|jump| reached.saturating_add(64 << jump));
            let mut landed = false;
            for target in jumps.take_while(|target| *target <= piece.to) {
                iterator.seek(record::key(&piece.namespace, target));
                landed = iterator.valid() || iterator.status().is_ok();
                if landed {
                    reached = target;
                    break;
                }
            }
            if !landed {
                break;
            }
        }
        self.drop_records(&mut dropped);
        if !chunk.is_empty() {
            sender.send(chunk).ok()?;
        }
        Some(())
    }

    /// A failure is no loss: they are met again at the next start.
    fn drop_records(&self, keys: &mut Vec<[u8; KEY_BYTES]>) {
        if self.access != Access::Serve {
            keys.clear();
        }
        _ = self.remove_keys(BLOCKS, keys.drain(..), "delete records of no use from the catalog");
    }
}

/// The keys there are, cut in pieces, in order; and the number of namespaces.
fn pieces(database: &DB, tally: &Tally) -> (Vec<Piece>, u64) {
    let blocks = family(database, BLOCKS);
    let mut iterator = database.raw_iterator_cf_opt(blocks, settings::scan());
    let mut pieces = Vec::new();
    let mut namespaces = 0;
    iterator.seek_to_first();
    loop {
        let Some(key) = iterator.key() else {
            // Keys may lie behind the damage, but without one there is no telling where.
            if iterator.status().is_err() {
                tally.damaged.fetch_add(1, Ordering::Relaxed);
            }
            break;
        };
        let Some((namespace, from)) = record::parse_key(key) else {
            tally.undecodable.fetch_add(1, Ordering::Relaxed);
            iterator.next();
            continue;
        };
        namespaces += 1;
        iterator.seek_for_prev(record::key(&namespace, u64::MAX));
        let last = iterator.key().and_then(record::parse_key).filter(|(found, _)| *found == namespace);
        // Damage at the end: read as far as there is anything.
        let to = last.map_or(u64::MAX, |(_, sequence)| sequence);
        let span = to.saturating_sub(from);
        let count = (span / PIECE_SEQUENCES + 1).min(PIECES_MAX);
        let step = span / count + 1;
        let mut start = from;
        loop {
            let end = start.saturating_add(step - 1).min(to);
            pieces.push(Piece { namespace, from: start, to: end });
            if end >= to {
                break;
            }
            start = end + 1;
        }
        let Some(after) = u128::from_be_bytes(namespace).checked_add(1) else { break };
        iterator.seek(after.to_be_bytes());
    }
    (pieces, namespaces)
}
