//! The object tier: packs of blocks in S3 or in a directory.
//!
//! # Overview
//! Object stores charge by the request and answer late, so blocks travel in packs: one object holds a run of a
//! namespace's blocks and a footer that finds them (`pack`). Any node with the namespace's id lists, reads and
//! collects any node's packs; nothing but the objects themselves is shared. Names are
//! `prefix/<namespace>/<pack>.pack`, both in hex; ids order by age.
//!
//! # Invariants
//! - A pack is put once, on the condition that its name is free, and never changes.
//! - A block is handed out only after its checksum held, taken over the bytes in the caller's buffer.
//! - No call takes longer than its deadline. A store that fails is left alone for a while (`breaker`): until
//!   then every read is a miss at once.
//!
//! # Crash consistency
//! A put that was cut leaves no pack. A put whose answer was lost is recognised by its footer when it is made
//! again. A pack that no catalog knows is found by `list`.

mod breaker;
mod error;
mod lane;
mod options;
mod pack;
mod plan;
mod random;
mod read;
mod stats;
#[cfg(test)]
mod tests;

use std::{collections::HashSet, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, future::join_all};
use object_store::{GetOptions, GetRange, ObjectStoreExt, PutMode, PutOptions, PutPayload, path::Path};
use tokio::time::{Instant, timeout_at};

pub use breaker::{BreakerOptions, BreakerState};
pub use error::{ObjectError, ReadFailure};
pub use options::{Credentials, ObjectOptions};
pub use pack::{
    Namespace, PACK_BYTES_MAX, PACK_ENTRIES_MAX, PackEntry, PackError, PackId, PackIdError, PackInfo,
};
pub use stats::ObjectStats;

use error::Fault;
use lane::Lane;
use options::Place;
use pack::{Footer, HEADER_BYTES};
use plan::{Cut, plan};
use read::{Wanted, read_run};
use stats::Counters;

/// What is read from the end of a pack at first: the footer of more than a thousand blocks.
const FOOTER_GUESS_BYTES: u64 = 64 << 10;
/// Packs of a namespace that `list` gives at most.
const PACKS_LISTED_MAX: usize = 1 << 22;
/// Names that S3 gives with one LIST.
const LIST_PAGE: u64 = 1000;
/// The ending of a pack's name.
const SUFFIX: &str = "pack";

/// Packs of blocks in S3 or in a directory. Cloning shares it.
#[derive(Clone)]
pub struct PackStore(Arc<Shared>);

struct Shared {
    options: ObjectOptions,
    place: Place,
    reads: Lane,
    writes: Lane,
    counters: Arc<Counters>,
}

impl PackStore {
    /// Opens a place for packs; makes the directory where it is one. Asks no server: see [`PackStore::check`].
    pub fn open(options: &ObjectOptions) -> Result<Self, ObjectError> {
        let place = Place::open(options)?;
        let counters = Arc::new(Counters::default());
        let lane = || Lane::new(options.concurrency, options.retries, options.breaker, counters.clone());
        let (reads, writes) = (lane(), lane());
        Ok(Self(Arc::new(Shared { options: options.clone(), place, reads, writes, counters })))
    }

    /// Puts, reads, lists and deletes a small object: whether the place can be used, and if not, why.
    pub async fn check(&self) -> Result<(), ObjectError> {
        const ACTION: &str = "try the object store";
        let (shared, store) = (&*self.0, &self.0.place.store);
        let path = self.path(&format!("check-{}", PackId::generate()));
        let text = Bytes::from_static(b"kelvin");
        let fails = |fault| self.error(ACTION, fault, shared.options.write_deadline);
        let deadline = self.write_deadline();
        let put = || store.put(&path, PutPayload::from(text.clone()));
        shared.writes.request(&shared.counters.puts, deadline, put).await.map_err(fails)?;
        let get = || async { store.get(&path).await?.bytes().await };
        let found = shared.reads.request(&shared.counters.gets, deadline, get).await.map_err(fails)?;
        if found != text {
            let text = "it gave back other bytes than were put".to_owned();
            return Err(ObjectError::Failed { action: ACTION, text });
        }
        self.namespaces().await?;
        self.remove(ACTION, &path).await
    }

    /// Writes blocks as one pack. The offsets given don't matter; the answer has the true ones.
    ///
    /// The checksums are believed: they were taken at commit, and the bytes are checked against them when
    /// they are read.
    pub async fn put<B>(
        &self,
        namespace: Namespace,
        blocks: Vec<(PackEntry, B)>,
    ) -> Result<PackInfo, ObjectError>
    where
        B: AsRef<[u8]> + Send + Sync + 'static,
    {
        const ACTION: &str = "put pack";
        if blocks.is_empty() || blocks.len() > PACK_ENTRIES_MAX {
            return Err(ObjectError::Invalid("a pack has 1 to 65536 blocks"));
        }
        let id = PackId::generate();
        let mut pack = PackInfo { id, namespace, bytes: HEADER_BYTES as u64, entries: Vec::new() };
        pack.entries.reserve_exact(blocks.len());
        let mut pieces = Vec::with_capacity(blocks.len() + 2);
        pieces.push(Bytes::copy_from_slice(&pack::encode_header(&namespace, id)));
        for (entry, block) in blocks {
            let block = Bytes::from_owner(block);
            if block.is_empty() || block.len() as u64 != u64::from(entry.bytes) {
                return Err(ObjectError::Invalid("a block's bytes are not as many as its entry says"));
            }
            pack.entries.push(PackEntry { offset: pack.bytes, ..entry });
            pack.bytes += u64::from(entry.bytes);
            pieces.push(block);
        }
        let block_bytes = pack.bytes - HEADER_BYTES as u64;
        pack.bytes += pack::footer_bytes(pack.entries.len());
        if pack.bytes > PACK_BYTES_MAX {
            return Err(ObjectError::Invalid("a pack has at most 1 GiB"));
        }
        pieces.push(Bytes::from(pack::encode_footer(&pack)));
        let payload = PutPayload::from_iter(pieces);

        let (shared, path, deadline) = (&*self.0, self.pack_path(&namespace, id), self.write_deadline());
        let put = || {
            let options = PutOptions::from(PutMode::Create);
            shared.place.store.put_opts(&path, payload.clone(), options)
        };
        match shared.writes.request(&shared.counters.puts, deadline, put).await {
            Ok(_) => {}
            // Nobody else makes this id: an earlier try got through and its answer was lost.
            Err(Fault::Exists) if self.footer(namespace, id).await? == pack => {}
            Err(fault) => return Err(self.error(ACTION, fault, shared.options.write_deadline)),
        }
        shared.counters.blocks_written.add(pack.entries.len() as u64);
        shared.counters.bytes_written.add(block_bytes);
        Ok(pack)
    }

    /// Reads blocks of a pack into their buffers, which have the blocks' lengths, and checks them. The answer
    /// has the order of the question. The bytes of a buffer that was not filled are undefined.
    pub async fn get<B>(
        &self,
        namespace: Namespace,
        pack: PackId,
        wanted: Vec<(PackEntry, B)>,
    ) -> Vec<(B, Result<(), ReadFailure>)>
    where
        B: AsMut<[u8]> + Send + 'static,
    {
        let (shared, path) = (&*self.0, self.pack_path(&namespace, pack));
        let deadline = Instant::now() + shared.options.read_deadline;
        let (mut wanted, mut done): (Vec<_>, Vec<_>) = wanted
            .into_iter()
            .enumerate()
            .map(|(index, (entry, buffer))| Wanted::new(index, entry, buffer))
            .partition(|wanted| wanted.outcome.is_none());
        wanted.sort_by_key(|wanted| wanted.entry.offset);
        let entries: Vec<PackEntry> = wanted.iter().map(|wanted| wanted.entry).collect();
        let ObjectOptions { get_bytes_max, get_blocks_min, gap_bytes_max, .. } = shared.options;
        let mut wanted = wanted.into_iter();
        let runs = plan(&entries, &Cut { get_bytes_max, get_blocks_min, gap_bytes_max })
            .into_iter()
            .map(|range| read_run(shared, &path, wanted.by_ref().take(range.len()).collect(), deadline));
        let runs: Vec<_> = runs.collect();
        done.extend(join_all(runs).await.into_iter().flatten());
        done.sort_unstable_by_key(|wanted| wanted.index);
        let unread = || Err(ReadFailure::Failed("not read".into()));
        done.into_iter().map(|wanted| (wanted.buffer, wanted.outcome.unwrap_or_else(unread))).collect()
    }

    /// The packs of a namespace, whoever wrote them, oldest first.
    pub async fn list(&self, namespace: Namespace) -> Result<Vec<PackId>, ObjectError> {
        let shared = &*self.0;
        let folder = self.path(&Hex(&namespace).to_string());
        let (mut packs, mut last): (Vec<PackId>, Option<Path>) = (Vec::new(), None);
        for tried in 1.. {
            let deadline = Instant::now() + shared.options.read_deadline;
            match self.list_from(&folder, &mut last, &mut packs, deadline).await {
                Ok(()) => break,
                Err(fault) if shared.reads.again(&fault, tried, deadline).await => {}
                Err(fault) => return Err(self.error("list packs", fault, shared.options.read_deadline)),
            }
        }
        packs.sort_unstable();
        packs.dedup();
        Ok(packs)
    }

    /// Goes on behind `last`. Every page has the whole deadline.
    async fn list_from(
        &self,
        folder: &Path,
        last: &mut Option<Path>,
        packs: &mut Vec<PackId>,
        mut deadline: Instant,
    ) -> Result<(), Fault> {
        let shared = &*self.0;
        let turn = shared.reads.turn(deadline).await?;
        shared.counters.lists.add(1);
        let mut names = match &*last {
            Some(last) => shared.place.store.list_with_offset(Some(folder), last),
            None => shared.place.store.list(Some(folder)),
        };
        let mut count = 0;
        let result = loop {
            match timeout_at(deadline, names.next()).await {
                Ok(None) => break Ok(()),
                Ok(Some(Ok(object))) => {
                    packs.extend(pack_of(&object.location));
                    *last = Some(object.location);
                    count += 1;
                    if count % LIST_PAGE == 0 {
                        shared.counters.lists.add(1);
                        deadline = Instant::now() + shared.options.read_deadline;
                    }
                    if packs.len() > PACKS_LISTED_MAX {
                        break Err(Fault::Lasting("more than 4 Mi packs in one namespace".into()));
                    }
                }
                Ok(Some(Err(error))) => break Err(Fault::of(&error)),
                Err(_) => break Err(Fault::Timeout),
            }
        };
        // A directory that is not there yet has no packs.
        let result = result.or_else(|fault| if fault == Fault::Missing { Ok(()) } else { Err(fault) });
        turn.end(result.as_ref().err());
        result
    }

    /// The namespaces that have packs here.
    pub async fn namespaces(&self) -> Result<Vec<Namespace>, ObjectError> {
        let (shared, deadline) = (&*self.0, Instant::now() + self.0.options.read_deadline);
        let prefix = (!shared.place.prefix.is_root()).then_some(&shared.place.prefix);
        let list = || shared.place.store.list_with_delimiter(prefix);
        let found = match shared.reads.request(&shared.counters.lists, deadline, list).await {
            Ok(found) => found,
            Err(Fault::Missing) => return Ok(Vec::new()),
            Err(fault) => return Err(self.error("list namespaces", fault, shared.options.read_deadline)),
        };
        Ok(found.common_prefixes.iter().filter_map(|path| pack::from_hex(path.filename()?)).collect())
    }

    /// Reads what a pack holds. A footer that fails its checksum is read once more.
    pub async fn footer(&self, namespace: Namespace, pack: PackId) -> Result<PackInfo, ObjectError> {
        const ACTION: &str = "read footer";
        let (shared, path) = (&*self.0, self.pack_path(&namespace, pack));
        let deadline = Instant::now() + shared.options.read_deadline;
        let (mut wanted, mut tries) = (FOOTER_GUESS_BYTES, 0);
        loop {
            let get = || async {
                let options = GetOptions::new().with_range(Some(GetRange::Suffix(wanted)));
                let answer = shared.place.store.get_opts(&path, options).await?;
                let object_bytes = answer.meta.size;
                Ok((answer.bytes().await?, object_bytes))
            };
            let answer = shared.reads.request(&shared.counters.gets, deadline, get).await;
            let decoded = match answer {
                Ok((tail, object_bytes)) => pack::decode_footer(&tail, object_bytes),
                Err(Fault::OutOfRange) => Err(PackError::Short),
                Err(fault) => return Err(self.error(ACTION, fault, shared.options.read_deadline)),
            };
            tries += 1;
            let damage = match decoded {
                Ok(Footer::Whole(info)) if info.id == pack && info.namespace == namespace => return Ok(info),
                Ok(Footer::Whole(_)) => PackError::Other,
                Ok(Footer::Needs(bytes)) if bytes > wanted => {
                    wanted = bytes;
                    continue;
                }
                Ok(Footer::Needs(_)) => PackError::Short,
                Err(damage) => damage,
            };
            shared.counters.damaged.add(1);
            if tries > 1 {
                return Err(ObjectError::Damaged { action: ACTION, source: damage });
            }
        }
    }

    /// Deletes a pack; one that is not there is as good.
    pub async fn delete(&self, namespace: Namespace, pack: PackId) -> Result<(), ObjectError> {
        self.remove("delete pack", &self.pack_path(&namespace, pack)).await
    }

    async fn remove(&self, action: &'static str, path: &Path) -> Result<(), ObjectError> {
        let shared = &*self.0;
        let delete = || shared.place.store.delete(path);
        match shared.writes.request(&shared.counters.deletes, self.write_deadline(), delete).await {
            Ok(()) | Err(Fault::Missing) => Ok(()),
            Err(fault) => Err(self.error(action, fault, shared.options.write_deadline)),
        }
    }

    /// Writes the live blocks of a pack as a new one. The old one stays: delete it when the new one is known
    /// wherever the old one was. Blocks that turn out damaged or gone are left out; any other failure is an
    /// error, for it may pass.
    pub async fn rewrite(&self, pack: &PackInfo, live: &[[u8; 16]]) -> Result<PackInfo, ObjectError> {
        let live: HashSet<&[u8; 16]> = live.iter().collect();
        let entries: Vec<PackEntry> =
            pack.entries.iter().copied().filter(|entry| live.contains(&entry.hash)).collect();
        let bytes: u64 = entries.iter().map(|entry| u64::from(entry.bytes)).sum();
        if bytes > PACK_BYTES_MAX {
            return Err(ObjectError::Invalid("a pack has at most 1 GiB"));
        }
        let wanted = entries.iter().map(|&entry| (entry, vec![0u8; entry.bytes as usize])).collect();
        let read = self.get(pack.namespace, pack.id, wanted).await;
        let mut blocks = Vec::with_capacity(entries.len());
        for (entry, (block, result)) in entries.into_iter().zip(read) {
            match result {
                Ok(()) => blocks.push((entry, block)),
                Err(ReadFailure::Damaged | ReadFailure::Missing) => {}
                Err(failure) => {
                    let text = failure.to_string();
                    return Err(ObjectError::Failed { action: "rewrite pack", text });
                }
            }
        }
        if blocks.is_empty() {
            return Err(ObjectError::Invalid("none of the live blocks can be read"));
        }
        self.put(pack.namespace, blocks).await
    }

    /// What was done so far.
    pub fn stats(&self) -> ObjectStats {
        let shared = &*self.0;
        ObjectStats {
            reads_queued: shared.reads.queued(),
            writes_queued: shared.writes.queued(),
            read_breaker: shared.reads.breaker.state(),
            write_breaker: shared.writes.breaker.state(),
            breaker_opens: shared.reads.breaker.opens() + shared.writes.breaker.opens(),
            ..shared.counters.snapshot()
        }
    }

    /// Whether a read would be tried now, or refused since the store failed lately.
    pub fn answers(&self) -> bool {
        self.0.reads.breaker.admits(std::time::Instant::now())
    }

    /// The same for a write.
    pub fn takes(&self) -> bool {
        self.0.writes.breaker.admits(std::time::Instant::now())
    }

    /// The place, for people.
    pub fn name(&self) -> &str {
        &self.0.place.name
    }

    fn path(&self, name: &str) -> Path {
        self.0.place.prefix.clone().join(name)
    }

    fn pack_path(&self, namespace: &Namespace, pack: PackId) -> Path {
        self.path(&Hex(namespace).to_string()).join(format!("{pack}.{SUFFIX}"))
    }

    fn write_deadline(&self) -> Instant {
        Instant::now() + self.0.options.write_deadline
    }

    fn error(&self, action: &'static str, fault: Fault, deadline: Duration) -> ObjectError {
        let place = || self.name().to_owned();
        match fault {
            Fault::Missing => ObjectError::Missing { action },
            Fault::NoBucket => ObjectError::NoBucket { action, place: place() },
            Fault::Refused(text) => ObjectError::Refused { action, place: place(), text },
            Fault::Timeout => ObjectError::Timeout { action, deadline },
            Fault::Unavailable => ObjectError::Unavailable { action },
            Fault::OutOfRange => ObjectError::Damaged { action, source: PackError::Short },
            Fault::Exists | Fault::Passing(_) | Fault::Lasting(_) => {
                ObjectError::Failed { action, text: fault.to_string() }
            }
        }
    }
}

impl fmt::Debug for PackStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackStore({})", self.name())
    }
}

struct Hex<'a>(&'a [u8; 16]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        pack::hex(self.0, f)
    }
}

/// Decodes any bytes as the end of a pack, and as its name. For fuzzing. The first eight say how long the object
/// is, where they agree with the rest.
pub fn decode_any(bytes: &[u8]) {
    let (length, tail) = bytes.split_at(bytes.len().min(8));
    let claimed = length.iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    for object_bytes in [tail.len() as u64, claimed] {
        if let Ok(Footer::Whole(info)) = pack::decode_footer(tail, object_bytes) {
            assert!(info.bytes == object_bytes && info.entries.len() <= PACK_ENTRIES_MAX);
        }
    }
    _ = std::str::from_utf8(bytes).map(str::parse::<PackId>);
}

/// The pack of this name; other objects are none of ours.
fn pack_of(path: &Path) -> Option<PackId> {
    path.filename()?.strip_suffix(SUFFIX)?.strip_suffix('.')?.parse().ok()
}
