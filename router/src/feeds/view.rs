//! One engine's cache as its events tell: its hashes beside ours. Pure but for the directory it fills.

use std::collections::{BTreeMap, HashMap};

use kelvin_kvstore::SequenceHash;

use super::{
    Mode,
    decode::{Batch, EngineHash, Event, Medium},
};
use crate::directory::{Directory, Room, Scope};

/// Most blocks of one engine: 64 million tokens in blocks of 16.
const BLOCKS_MAX: usize = 4 << 20;

/// What the allocator adds to a piece of memory, about.
const ALLOCATION_BYTES: usize = 16;

/// Whose block: the number of the publisher, the cache group, and the engine's hash.
type Key = (u64, u64, EngineHash);

/// One block of the engine.
#[derive(Debug)]
struct Block {
    ours: SequenceHash,
    /// Whether it is in the engine's own fast memory, and behind it.
    gpu: bool,
    behind: bool,
}

/// What applying events came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Applied {
    pub(super) stored: u64,
    pub(super) removed: u64,
    pub(super) cleared: u64,
    /// Blocks whose parent is not known, or for which there is no room.
    pub(super) lost: u64,
}

/// See the module.
pub(super) struct View {
    worker: u32,
    model: String,
    blocks: HashMap<Key, Block>,
    /// In how many places of the engine one of our blocks is, over ranks and groups.
    places: HashMap<SequenceHash, u32>,
    /// Of the group that counts, the first that stored a block; 0 before.
    block_tokens: u32,
    group: u64,
    /// Of each rank's publisher.
    modes: BTreeMap<u64, Mode>,
    /// What the maps take of the directory's budget, and what of that hangs on their keys.
    room: Room,
    key_bytes: usize,
}

impl View {
    /// Of a worker whose caches are told of by so many publishers; for that `directory` alone.
    pub(super) fn new(directory: &Directory, worker: u32, model: String, ranks: u64) -> Self {
        Self {
            worker,
            model,
            blocks: HashMap::new(),
            places: HashMap::new(),
            block_tokens: 0,
            group: 0,
            modes: (0..ranks.max(1)).map(|rank| (rank, Mode::Fallback)).collect(),
            room: directory.room(),
            key_bytes: 0,
        }
    }

    /// Of the rank of which least is known.
    pub(super) fn mode(&self) -> Mode {
        self.modes.values().copied().min().unwrap_or_default()
    }

    /// Tokens of the engine's blocks; 0 as long as none was stored.
    pub(super) fn block_tokens(&self) -> u32 {
        self.block_tokens
    }

    /// Everything of this rank from here on is seen, from an empty cache on.
    pub(super) fn begin(&mut self, directory: &Directory, rank: u64) {
        self.clear(directory, rank);
        self.modes.insert(rank, Mode::Exact);
    }

    /// Something was missed: what is known may be there no more.
    pub(super) fn missed(&mut self, directory: &Directory, rank: u64) {
        self.clear(directory, rank);
        self.modes.insert(rank, Mode::Degraded);
    }

    /// The publisher is gone, and what it said with it.
    pub(super) fn gone(&mut self, directory: &Directory, rank: u64) {
        self.clear(directory, rank);
        self.modes.insert(rank, Mode::Fallback);
    }

    /// Applies what the publisher of `rank` said.
    pub(super) fn apply(&mut self, directory: &Directory, rank: u64, batch: Batch) -> Applied {
        let mut applied = Applied::default();
        for event in batch.events {
            match event {
                Event::Cleared => {
                    applied.cleared += 1;
                    self.begin(directory, rank);
                }
                Event::Removed { hashes, medium, group } => {
                    for hash in hashes {
                        applied.removed += u64::from(self.remove(directory, (rank, group, hash), medium));
                    }
                }
                stored @ Event::Stored { .. } => self.store(directory, rank, stored, &mut applied),
            }
        }
        if applied.lost > 0 {
            self.modes.insert(rank, Mode::Degraded);
        }
        applied
    }

    fn store(&mut self, directory: &Directory, rank: u64, event: Event, applied: &mut Applied) {
        let Event::Stored { hashes, parent, tokens, block_tokens, medium, group, lora, salt, extras } = event
        else {
            return;
        };
        if self.block_tokens == 0 {
            (self.block_tokens, self.group) = (block_tokens, group);
        }
        // Every group has every prompt; one of them tells all. A block that is not full is nobody's prefix.
        if group != self.group || block_tokens != self.block_tokens {
            return;
        }
        let scope = Scope::new(lora.as_deref().unwrap_or(&self.model), &salt);
        let mut before = match parent {
            None => None,
            Some(parent) => match self.blocks.get(&(rank, group, parent)) {
                Some(block) => Some(block.ours),
                None => {
                    applied.lost += hashes.len() as u64;
                    return;
                }
            },
        };
        let blocks = tokens.chunks_exact(block_tokens as usize);
        for (at, (hash, block)) in hashes.into_iter().zip(blocks).enumerate() {
            let key = (rank, group, hash);
            if !self.blocks.contains_key(&key) {
                let heap_bytes = heap_bytes(&key);
                if self.blocks.len() >= BLOCKS_MAX || !self.has_room(directory, 1, heap_bytes) {
                    applied.lost += 1;
                    return;
                }
                self.key_bytes += heap_bytes;
            }
            let extra = extras.get(at).map_or(&[][..], Vec::as_slice);
            let ours = directory.hash_block(&scope, before, block, extra);
            let known = self.blocks.entry(key).or_insert(Block { ours, gpu: false, behind: false });
            let was_there = known.gpu;
            match medium {
                Medium::Gpu => known.gpu = true,
                Medium::Behind => known.behind = true,
            }
            if known.gpu && !was_there {
                let places = self.places.entry(ours).or_default();
                *places += 1;
                let first = *places == 1;
                // Behind a block that is not in that memory it is not taken in.
                let follows = before.is_none_or(|before| self.places.contains_key(&before));
                if first && !directory.stored(self.worker, before, &[ours]) && follows {
                    // With no room, what is known is not all.
                    applied.lost += 1;
                }
            }
            applied.stored += 1;
            before = Some(ours);
        }
    }

    /// Whether the budget has so many blocks more, whose keys have so many bytes elsewhere.
    fn has_room(&mut self, directory: &Directory, more: usize, heap_bytes: usize) -> bool {
        let bytes = table_bytes::<Key, Block>(self.blocks.len() + more, self.blocks.capacity())
            + table_bytes::<SequenceHash, u32>(self.places.len() + more, self.places.capacity());
        self.room.set(directory, bytes + self.key_bytes + heap_bytes)
    }

    /// Whether it was there.
    fn remove(&mut self, directory: &Directory, key: Key, medium: Option<Medium>) -> bool {
        let Some(block) = self.blocks.get_mut(&key) else { return false };
        let had = block.gpu;
        match medium.unwrap_or(Medium::Gpu) {
            Medium::Gpu => block.gpu = false,
            Medium::Behind => block.behind = false,
        }
        let (ours, gone) = (block.ours, had && !block.gpu);
        if !block.gpu && !block.behind {
            self.blocks.remove(&key);
            self.key_bytes -= heap_bytes(&key);
        }
        if gone {
            self.unplace(directory, ours);
        }
        true
    }

    fn unplace(&mut self, directory: &Directory, ours: SequenceHash) {
        let Some(places) = self.places.get_mut(&ours) else { return };
        *places -= 1;
        if *places == 0 {
            self.places.remove(&ours);
            directory.removed(self.worker, ours);
        }
    }

    fn clear(&mut self, directory: &Directory, rank: u64) {
        let mut gone = Vec::new();
        self.blocks.retain(|(of, _, _), block| {
            let stays = *of != rank;
            if !stays && block.gpu {
                gone.push(block.ours);
            }
            stays
        });
        gone.into_iter().for_each(|ours| self.unplace(directory, ours));
        self.key_bytes = self.blocks.keys().map(heap_bytes).sum();
        self.blocks.shrink_to_fit();
        self.places.shrink_to_fit();
        self.has_room(directory, 0, 0);
        if self.blocks.is_empty() {
            // An engine that starts again may have others.
            self.block_tokens = 0;
        }
    }
}

/// What a key has elsewhere.
fn heap_bytes((_, _, hash): &Key) -> usize {
    match hash {
        EngineHash::Int(_) => 0,
        EngineHash::Bytes(bytes) => bytes.len() + ALLOCATION_BYTES,
    }
}

/// What a map of that capacity takes once it has `len` entries: an eighth of its places stays empty, their number is a
/// power of two, and each has a byte beside its entry.
fn table_bytes<K, V>(len: usize, capacity: usize) -> usize {
    let entries = len.max(capacity);
    let places = if entries == 0 { 0 } else { (entries * 8).div_ceil(7).next_power_of_two() };
    places * (size_of::<(K, V)>() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(hashes: &[u64], parent: Option<u64>, first: u32) -> Event {
        Event::Stored {
            hashes: hashes.iter().map(|hash| EngineHash::Int(*hash)).collect(),
            parent: parent.map(EngineHash::Int),
            tokens: (first..first + hashes.len() as u32 * 4).collect(),
            block_tokens: 4,
            medium: Medium::Gpu,
            group: 0,
            lora: None,
            salt: vec![],
            extras: vec![],
        }
    }

    fn removed(hash: u64) -> Event {
        Event::Removed { hashes: vec![EngineHash::Int(hash)], medium: Some(Medium::Gpu), group: 0 }
    }

    fn batch(events: Vec<Event>) -> Batch {
        Batch { events, rank: None, unknown: 0 }
    }

    fn setup() -> (Directory, View) {
        let directory = Directory::new(&[1; 16], 64 << 20);
        let mut view = View::new(&directory, 5, "m".into(), 1);
        view.begin(&directory, 0);
        (directory, view)
    }

    /// Blocks of the prompt 0, 1, 2, ... that worker 5 has.
    fn has(directory: &Directory, scope: &Scope) -> u32 {
        let hashes = directory.hash_tokens(scope, &(0..64).collect::<Vec<_>>(), 4);
        let mut found = 0;
        directory.prefixes(&hashes, |worker, blocks| {
            assert_eq!((worker, found), (5, 0));
            found = blocks;
        });
        found
    }

    #[test]
    fn the_engines_hashes_need_not_be_ours() {
        let (directory, mut view) = setup();
        let scope = Scope::new("m", b"");
        let applied =
            view.apply(&directory, 0, batch(vec![stored(&[900, 17], None, 0), stored(&[3], Some(17), 8)]));
        assert_eq!((applied.stored, applied.lost), (3, 0));
        assert_eq!((has(&directory, &scope), view.block_tokens(), view.mode()), (3, 4, Mode::Exact));
        view.apply(&directory, 0, batch(vec![removed(3), removed(12345)]));
        assert_eq!(has(&directory, &scope), 2);
        view.apply(&directory, 0, batch(vec![Event::Cleared]));
        assert_eq!((has(&directory, &scope), directory.len()), (0, 0));
    }

    #[test]
    fn an_unknown_parent_degrades_and_a_cleared_cache_mends_it() {
        let (directory, mut view) = setup();
        let applied = view.apply(&directory, 0, batch(vec![stored(&[3, 4], Some(17), 8)]));
        assert_eq!((applied.stored, applied.lost, view.mode()), (0, 2, Mode::Degraded));
        view.apply(&directory, 0, batch(vec![Event::Cleared]));
        assert_eq!(view.mode(), Mode::Exact);
    }

    #[test]
    fn a_block_is_there_as_long_as_one_rank_has_it() {
        let (directory, mut view) = setup();
        let scope = Scope::new("m", b"");
        for rank in [0, 1] {
            view.apply(&directory, rank, batch(vec![stored(&[1, 2], None, 0)]));
        }
        view.apply(&directory, 0, batch(vec![removed(2), removed(1)]));
        assert_eq!(has(&directory, &scope), 2);
        view.apply(&directory, 1, batch(vec![Event::Cleared]));
        assert_eq!(directory.len(), 0);
    }

    #[test]
    fn what_is_behind_the_fast_memory_is_not_in_it() {
        let (directory, mut view) = setup();
        let scope = Scope::new("m", b"");
        let mut behind = stored(&[1, 2], None, 0);
        if let Event::Stored { medium, .. } = &mut behind {
            *medium = Medium::Behind;
        }
        view.apply(&directory, 0, batch(vec![behind]));
        assert_eq!(has(&directory, &scope), 0);
        view.apply(&directory, 0, batch(vec![stored(&[1], None, 0), stored(&[9], Some(1), 4), removed(9)]));
        assert_eq!(has(&directory, &scope), 1);
        view.apply(&directory, 0, batch(vec![stored(&[8], Some(2), 8)]));
        assert_eq!(has(&directory, &scope), 1, "the block between is behind");
    }

    #[test]
    fn salts_never_meet() {
        let (directory, mut view) = setup();
        let mut salted = stored(&[1, 2], None, 0);
        if let Event::Stored { salt, .. } = &mut salted {
            *salt = b"mine".to_vec();
        }
        view.apply(&directory, 0, batch(vec![salted]));
        assert_eq!(has(&directory, &Scope::new("m", b"")), 0);
        assert_eq!(has(&directory, &Scope::new("m", b"mine")), 2);
    }

    #[test]
    fn one_group_of_one_block_size_counts() {
        let (directory, mut view) = setup();
        let scope = Scope::new("m", b"");
        let mut other = stored(&[1, 2], None, 100);
        if let Event::Stored { group, .. } = &mut other {
            *group = 1;
        }
        let mut partial = stored(&[3], Some(2), 8);
        if let Event::Stored { block_tokens, tokens, .. } = &mut partial {
            *block_tokens = 2;
            tokens.truncate(2);
        }
        view.apply(&directory, 0, batch(vec![stored(&[1, 2], None, 0), other, partial]));
        assert_eq!((directory.len(), has(&directory, &scope)), (2, 2));
        assert_eq!((view.block_tokens(), view.mode()), (4, Mode::Exact));
    }

    #[test]
    fn an_adapter_is_a_model_and_an_image_its_own_block() {
        let (directory, mut view) = setup();
        let mut adapted = stored(&[1, 2], None, 0);
        if let Event::Stored { lora, extras, .. } = &mut adapted {
            *lora = Some("adapter".into());
            *extras = vec![vec![], b"image".to_vec()];
        }
        view.apply(&directory, 0, batch(vec![adapted]));
        assert_eq!(has(&directory, &Scope::new("m", b"")), 0);
        assert_eq!(has(&directory, &Scope::new("adapter", b"")), 1);
    }

    #[test]
    fn with_no_room_the_mode_is_not_exact() {
        let directory = Directory::new(&[1; 16], 10_000);
        let mut view = View::new(&directory, 5, "m".into(), 1);
        view.begin(&directory, 0);
        let hashes: Vec<u64> = (0..4000).collect();
        view.apply(&directory, 0, batch(vec![stored(&hashes, None, 0)]));
        assert_eq!(view.mode(), Mode::Degraded);
    }

    #[test]
    fn what_was_missed_frees_everything() {
        let (directory, mut view) = setup();
        view.apply(&directory, 0, batch(vec![stored(&[1, 2], None, 0)]));
        view.missed(&directory, 0);
        assert_eq!((directory.len(), view.mode()), (0, Mode::Degraded));
        view.begin(&directory, 0);
        assert_eq!(view.mode(), Mode::Exact);
    }

    #[test]
    fn what_is_known_of_engines_hashes_is_in_the_budget() {
        let (directory, mut view) = setup();
        let before = directory.memory_bytes();
        let mut behind = stored(&(0..4000).collect::<Vec<_>>(), None, 0);
        if let Event::Stored { medium, hashes, .. } = &mut behind {
            *medium = Medium::Behind;
            hashes[0] = EngineHash::Bytes(vec![7; 32].into());
        }
        view.apply(&directory, 0, batch(vec![behind.clone()]));
        let bytes = directory.memory_bytes() - before;
        assert!(bytes > 4000 * size_of::<(Key, Block)>(), "{bytes}");
        view.apply(&directory, 0, batch(vec![Event::Cleared]));
        assert!(directory.memory_bytes() - before < bytes / 100, "{}", directory.memory_bytes());
        view.apply(&directory, 0, batch(vec![behind.clone()]));
        drop(view);
        assert_eq!(directory.memory_bytes(), before);

        let directory = Directory::new(&[1; 16], before + bytes / 2);
        let mut view = View::new(&directory, 5, "m".into(), 1);
        view.begin(&directory, 0);
        let applied = view.apply(&directory, 0, batch(vec![behind]));
        assert!(applied.stored > 0 && applied.lost > 0, "{applied:?}");
        assert!(directory.memory_bytes() <= before + bytes / 2);
        assert_eq!(view.mode(), Mode::Degraded);
    }
}
