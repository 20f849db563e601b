//! What one store has of one model, as its block events tell. Pure but for its lock.
//!
//! A snapshot is built beside what was known before, and takes its place when it is whole: nobody sees half of it.

use kelvin_kvstore::{HolderSet, InsertError, NamespaceKey, RadixIndex, SequenceHash, TierSet};
use kelvin_proto::kv::v1::{self, Tier, block_event::Kind};
use parking_lot::RwLock;

use super::Mode;
use crate::expected::Held;

/// What blocks of a namespace are made of.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(super) key: NamespaceKey,
    pub(super) block_tokens: u32,
    pub(super) block_bytes: u64,
}

/// A prompt's hashes, made once for all stores whose blocks are made of the same.
pub(crate) struct Hashed<'a> {
    tokens: &'a [u32],
    known: Vec<(Shape, Vec<SequenceHash>)>,
}

impl<'a> Hashed<'a> {
    pub(super) fn new(tokens: &'a [u32]) -> Self {
        Self { tokens, known: Vec::new() }
    }

    fn of(&mut self, shape: &Shape) -> &[SequenceHash] {
        let is_same = |known: &Shape| known.key == shape.key && known.block_tokens == shape.block_tokens;
        let at = self.known.iter().position(|(known, _)| is_same(known)).unwrap_or_else(|| {
            let hashes = shape.key.hash_blocks(self.tokens, shape.block_tokens as usize, &[]);
            self.known.push((shape.clone(), hashes));
            self.known.len() - 1
        });
        &self.known[at].1
    }
}

/// What it takes to bring blocks from each tier into an engine's memory, by `Tier as usize`: of what is in memory and
/// has to be copied, and of the others as they are measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rates {
    /// Microseconds a mebibyte.
    mebibyte_us: [f64; 5],
    /// Microseconds until the first block comes.
    latency_us: [f64; 5],
    /// Nothing comes from there at the moment.
    is_out_of_reach: [bool; 5],
}

impl Default for Rates {
    /// 8, 2 and 0.2 GB/s, and 50 ms for an object store, until the store has measured what it reads from.
    fn default() -> Self {
        let mut rates = Self { mebibyte_us: [0.0; 5], latency_us: [0.0; 5], is_out_of_reach: [false; 5] };
        for (tier, us) in
            [(Tier::Hbm, 130.0), (Tier::Dram, 130.0), (Tier::Nvme, 520.0), (Tier::Object, 5_200.0)]
        {
            rates.mebibyte_us[tier as usize] = us;
        }
        rates.latency_us[Tier::Object as usize] = 50_000.0;
        rates
    }
}

impl Rates {
    /// As the store has measured them.
    pub(crate) fn of(stats: &v1::StatsResponse) -> Self {
        let mut rates = Self::default();
        for tier in &stats.tiers {
            let at = tier.tier() as usize;
            if at >= rates.mebibyte_us.len() || matches!(tier.tier(), Tier::Hbm | Tier::Dram) {
                continue;
            }
            rates.is_out_of_reach[at] = tier.health() == v1::TierHealth::Failed;
            if tier.mebibyte_read_us > 0 {
                rates.latency_us[at] = tier.read_latency_us.min(tier.mebibyte_read_us) as f64;
                rates.mebibyte_us[at] = tier.mebibyte_read_us as f64 - rates.latency_us[at];
            }
        }
        rates
    }

    fn reaches(&self, tier: u32) -> bool {
        !self.is_out_of_reach.get(tier as usize).copied().unwrap_or(false)
    }

    /// Microseconds to bring so many bytes from a tier.
    fn load_us(&self, tier: Tier, bytes: f64) -> f64 {
        let at = tier as usize;
        if bytes > 0.0 {
            self.latency_us[at] + bytes / f64::from(1 << 20) * self.mebibyte_us[at]
        } else {
            0.0
        }
    }
}

/// What applying a message came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Applied {
    pub(super) stored: u64,
    pub(super) removed: u64,
    /// Blocks that found no place: their parent is not known, or there is no room.
    pub(super) lost: u64,
    /// Of those, those for which there was no room.
    pub(super) crowded: u64,
    pub(super) snapshots: u64,
}

/// See the module.
pub(crate) struct Holdings {
    budget_bytes: usize,
    inner: RwLock<Inner>,
}

struct Inner {
    shape: Option<Shape>,
    /// Of what is known; nothing counts while the store is away.
    mode: Mode,
    is_away: bool,
    index: RadixIndex<TierSet>,
    /// A snapshot in the making, and whether all of it found its place.
    next: Option<(RadixIndex<TierSet>, bool)>,
    /// Whether something found no place for want of room, since the last snapshot began.
    is_crowded: bool,
}

impl Holdings {
    /// Of at most so many bytes; twice that while a snapshot is read.
    pub(super) fn new(budget_bytes: usize) -> Self {
        let index = RadixIndex::with_budget(budget_bytes);
        let inner =
            Inner { shape: None, mode: Mode::Fallback, is_away: true, index, next: None, is_crowded: false };
        Self { budget_bytes, inner: RwLock::new(inner) }
    }

    /// Applies a message of the stream, from one task at a time; what it describes is what its hashes are made with.
    pub(super) fn apply(&self, message: &v1::WatchResponse) -> Applied {
        let mut applied = Applied::default();
        if message.described.is_some() || message.snapshot_begin {
            self.begin(message);
            applied.snapshots += u64::from(message.snapshot_begin);
        }
        // The index takes changes beside lookups.
        let inner = self.inner.read();
        let index = inner.next.as_ref().map_or(&inner.index, |(index, _)| index);
        applied.lost = message.events.iter().filter(|event| !one(index, event, &mut applied)).count() as u64;
        drop(inner);
        if applied.lost > 0 || message.snapshot_end {
            let before = self.end(&applied, message.snapshot_end);
            // Nobody waits for its memory to be given back.
            drop(before);
        }
        applied
    }

    /// What a message says before its events.
    fn begin(&self, message: &v1::WatchResponse) {
        let inner = &mut *self.inner.write();
        if let Some(described) = &message.described
            && let Ok(key) = <[u8; 32]>::try_from(described.namespace_key.as_ref())
        {
            inner.shape = Some(Shape {
                key: NamespaceKey::from_bytes(key),
                block_tokens: described.block_tokens,
                block_bytes: described.block_bytes,
            });
        }
        if message.snapshot_begin {
            inner.next = Some((RadixIndex::with_budget(self.budget_bytes), true));
            inner.is_crowded = false;
        }
    }

    /// What it says behind them, which came to this; gives back what is known no more.
    fn end(&self, applied: &Applied, is_whole: bool) -> Option<RadixIndex<TierSet>> {
        let inner = &mut *self.inner.write();
        let all_found = applied.lost == 0;
        inner.is_crowded |= applied.crowded > 0;
        match &mut inner.next {
            Some((_, whole)) => *whole &= all_found,
            None if !all_found => inner.mode = Mode::Degraded,
            None => {}
        }
        let (index, whole) = inner.next.take_if(|_| is_whole)?;
        inner.mode = if whole { Mode::Exact } else { Mode::Degraded };
        inner.is_away = false;
        Some(std::mem::replace(&mut inner.index, index))
    }

    /// The stream goes on where a former one ended, or says that it does not.
    pub(super) fn resumed(&self) {
        self.inner.write().is_away = false;
    }

    /// Whether a snapshot is not whole yet.
    pub(super) fn is_in_snapshot(&self) -> bool {
        self.inner.read().next.is_some()
    }

    /// The store is away: what is known of it stays, and nothing is expected of it.
    pub(crate) fn away(&self) {
        let mut inner = self.inner.write();
        inner.is_away = true;
        inner.next = None;
    }

    pub(crate) fn mode(&self) -> Mode {
        self.inner.read().mode()
    }

    pub(crate) fn blocks(&self) -> usize {
        self.inner.read().index.len()
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        let inner = self.inner.read();
        inner.index.memory_bytes() + inner.next.as_ref().map_or(0, |(index, _)| index.memory_bytes())
    }

    /// Whether something found no place, and a new snapshot may find one: not as long as there is no room.
    pub(super) fn can_be_whole(&self) -> bool {
        let inner = self.inner.read();
        let has_room = !inner.is_crowded || inner.index.memory_bytes() < self.budget_bytes / 2;
        inner.mode() == Mode::Degraded && has_room
    }

    /// How many of a prompt's blocks it has, from the first on, and the microseconds until all of those are in the
    /// store's memory: what the store's own `Match` says. `None` where that is not known exactly.
    pub(crate) fn matched(&self, hashes: &[SequenceHash], rates: &Rates) -> Option<(usize, f64)> {
        let inner = self.inner.read();
        let shape = inner.shape.as_ref().filter(|_| inner.mode() == Mode::Exact)?;
        let found = inner.index.longest_prefix(hashes, None);
        // Lower numbers are hotter.
        let hottest = |tiers: &TierSet| tiers.iter().find(|tier| rates.reaches(*tier));
        let (mut blocks, mut by_tier) = (0, [0u64; 5]);
        for tier in found.iter().map_while(hottest) {
            blocks += 1;
            if let Some(count) = by_tier.get_mut(tier as usize) {
                *count += 1;
            }
        }
        // What is in memory is there.
        let below = [Tier::Nvme, Tier::Object].into_iter();
        let load_us = below.map(|tier| {
            let bytes = by_tier[tier as usize] as f64 * shape.block_bytes as f64;
            rates.load_us(tier, bytes)
        });
        Some((blocks, load_us.sum()))
    }

    /// What it has of a prompt, from its beginning on, by the hottest tier of each part.
    pub(super) fn held(&self, prompt: &mut Hashed<'_>, rates: &Rates) -> Vec<Held> {
        let inner = self.inner.read();
        let Some(shape) = inner.shape.as_ref().filter(|_| inner.mode() != Mode::Fallback) else {
            return Vec::new();
        };
        if shape.block_tokens == 0 {
            return Vec::new();
        }
        let token_mib = shape.block_bytes as f64 / f64::from(shape.block_tokens) / f64::from(1 << 20);
        let mut held: Vec<Held> = Vec::new();
        let mut last = None;
        for tiers in inner.index.longest_prefix(prompt.of(shape), None) {
            // Lower numbers are hotter.
            let tier = tiers.iter().next().unwrap_or(0);
            if last == Some(tier)
                && let Some(held) = held.last_mut()
            {
                held.tokens += u64::from(shape.block_tokens);
                continue;
            }
            last = Some(tier);
            held.push(Held {
                tokens: shape.block_tokens.into(),
                us_per_token: rates.mebibyte_us.get(tier as usize).copied().unwrap_or(0.0) * token_mib,
                latency_us: rates.latency_us.get(tier as usize).copied().unwrap_or(0.0),
            });
        }
        held
    }
}

impl Inner {
    fn mode(&self) -> Mode {
        if self.is_away { Mode::Fallback } else { self.mode }
    }
}

/// Applies one event; whether it found its place.
fn one(index: &RadixIndex<TierSet>, event: &v1::BlockEvent, applied: &mut Applied) -> bool {
    let Ok(hash) = SequenceHash::try_from(event.hash.as_ref()) else { return false };
    let parent = match event.parent.is_empty() {
        true => None,
        false => match SequenceHash::try_from(event.parent.as_ref()) {
            Ok(parent) => Some(parent),
            Err(_) => return false,
        },
    };
    // An enum of the contract, which fits in a set of tiers.
    let tier = event.tier().max(Tier::Unspecified) as u32;
    match event.kind() {
        Kind::Stored => {
            applied.stored += 1;
            let inserted = index.insert(parent, hash, tier, 0);
            applied.crowded += u64::from(matches!(inserted, Err(InsertError::Full { .. })));
            inserted.is_ok()
        }
        Kind::Removed => {
            applied.removed += 1;
            index.remove(hash, tier);
            true
        }
        Kind::Unspecified => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 32] = [3; 32];

    fn hashes(tokens: &[u32]) -> Vec<SequenceHash> {
        NamespaceKey::from_bytes(KEY).hash_blocks(tokens, 4, &[])
    }

    fn event(kind: Kind, hashes: &[SequenceHash], at: usize, tier: Tier) -> v1::BlockEvent {
        let bytes = |hash: SequenceHash| hash.to_bytes().to_vec().into();
        v1::BlockEvent {
            kind: kind.into(),
            hash: bytes(hashes[at]),
            parent: at.checked_sub(1).map(|at| bytes(hashes[at])).unwrap_or_default(),
            tier: tier.into(),
        }
    }

    fn message(events: Vec<v1::BlockEvent>, begin: bool, end: bool) -> v1::WatchResponse {
        let described = v1::NamespaceDescription {
            namespace_key: KEY.to_vec().into(),
            block_tokens: 4,
            block_bytes: 1 << 20,
        };
        v1::WatchResponse {
            events,
            snapshot_begin: begin,
            snapshot_end: end,
            described: begin.then_some(described),
            ..Default::default()
        }
    }

    #[test]
    fn a_prompt_is_told_by_the_hottest_tier_of_each_part() {
        let (holdings, rates) = (Holdings::new(1 << 20), Rates::default());
        let tokens: Vec<u32> = (0..18).collect();
        let all = hashes(&tokens);
        let stored = |at, tier| event(Kind::Stored, &all, at, tier);
        holdings.apply(&message(vec![stored(0, Tier::Dram), stored(0, Tier::Nvme)], true, false));
        assert_eq!((holdings.mode(), holdings.blocks()), (Mode::Fallback, 0), "half a snapshot");
        assert!(holdings.held(&mut Hashed::new(&tokens), &rates).is_empty());
        let rest = vec![stored(1, Tier::Dram), stored(2, Tier::Nvme), stored(3, Tier::Object)];
        holdings.apply(&message(rest, false, true));
        assert_eq!((holdings.mode(), holdings.blocks()), (Mode::Exact, 4));
        let held = holdings.held(&mut Hashed::new(&tokens), &rates);
        let parts: Vec<_> =
            held.iter().map(|held| (held.tokens, held.us_per_token, held.latency_us)).collect();
        assert_eq!(parts, [(8, 32.5, 0.0), (4, 130.0, 0.0), (4, 1_300.0, 50_000.0)]);
        holdings.apply(&message(vec![event(Kind::Removed, &all, 0, Tier::Dram)], false, false));
        assert_eq!(holdings.held(&mut Hashed::new(&tokens), &rates)[0].tokens, 4);
        assert!(holdings.held(&mut Hashed::new(&[9; 16]), &rates).is_empty());
        holdings.away();
        assert!(holdings.held(&mut Hashed::new(&tokens), &rates).is_empty() && holdings.blocks() == 4);
        holdings.resumed();
        assert_eq!(
            (holdings.mode(), holdings.held(&mut Hashed::new(&tokens), &rates).len()),
            (Mode::Exact, 4),
            "it goes on"
        );
    }

    #[test]
    fn a_match_is_told_as_the_store_would() {
        let holdings = Holdings::new(1 << 20);
        let tokens: Vec<u32> = (0..18).collect();
        let all = NamespaceKey::from_bytes(KEY).hash_blocks(&tokens, 4, b"salt");
        let stored = |at, tier| event(Kind::Stored, &all, at, tier);
        let tier = |tier: Tier, mebibyte_read_us, read_latency_us| v1::TierStats {
            tier: tier.into(),
            mebibyte_read_us,
            read_latency_us,
            ..Default::default()
        };
        let tiers =
            vec![tier(Tier::Dram, 7, 7), tier(Tier::Nvme, 900, 100), tier(Tier::Object, 9_000, 5_000)];
        let mut stats = v1::StatsResponse { tiers, ..Default::default() };
        let events = vec![
            stored(0, Tier::Dram),
            stored(0, Tier::Nvme),
            stored(1, Tier::Nvme),
            stored(2, Tier::Nvme),
            stored(3, Tier::Object),
        ];
        holdings.apply(&message(events.clone(), true, false));
        assert_eq!(holdings.matched(&all, &Rates::of(&stats)), None, "half a snapshot");
        holdings.apply(&message(vec![], false, true));
        let matched =
            |hashes: &[SequenceHash], stats: &v1::StatsResponse| holdings.matched(hashes, &Rates::of(stats));
        let nvme_us = 100.0 + 2.0 * 800.0;
        assert_eq!(matched(&all, &stats), Some((4, nvme_us + 5_000.0 + 4_000.0)));
        assert_eq!(matched(&all[..3], &stats), Some((3, nvme_us)));
        assert_eq!(matched(&all[..1], &stats), Some((1, 0.0)), "what is in memory is there");
        assert_eq!(matched(&hashes(&tokens), &stats), Some((0, 0.0)), "without the salt");
        stats.tiers[1].health = v1::TierHealth::Failed.into();
        assert_eq!(matched(&all, &stats), Some((1, 0.0)), "the rest is out of reach");
        holdings.apply(&message(
            vec![stored(0, Tier::Unspecified), event(Kind::Unspecified, &all, 0, Tier::Dram)],
            false,
            false,
        ));
        assert_eq!((holdings.mode(), matched(&all, &stats)), (Mode::Degraded, None));
    }

    #[test]
    fn what_is_in_a_tier_that_failed_comes_from_the_next() {
        let holdings = Holdings::new(1 << 20);
        let all = hashes(&(0..4).collect::<Vec<_>>());
        let stored = |tier| event(Kind::Stored, &all, 0, tier);
        holdings.apply(&message(vec![stored(Tier::Nvme), stored(Tier::Object)], true, true));
        let mut rates = Rates::default();
        let load_us = |tier: Tier| (1, rates.latency_us[tier as usize] + rates.mebibyte_us[tier as usize]);
        let (nvme, object) = (load_us(Tier::Nvme), load_us(Tier::Object));
        assert_eq!(holdings.matched(&all, &rates), Some(nvme));
        rates.is_out_of_reach[Tier::Nvme as usize] = true;
        assert_eq!(holdings.matched(&all, &rates), Some(object));
    }

    #[test]
    fn what_finds_no_place_degrades_until_the_next_snapshot() {
        let holdings = Holdings::new(1 << 20);
        let all = hashes(&(0..16).collect::<Vec<_>>());
        holdings.apply(&message(vec![], true, true));
        let orphan = event(Kind::Stored, &all, 2, Tier::Dram);
        assert_eq!(holdings.apply(&message(vec![orphan.clone()], false, false)).lost, 1);
        assert_eq!(holdings.mode(), Mode::Degraded);
        holdings.apply(&message(vec![event(Kind::Stored, &all, 0, Tier::Dram)], true, true));
        assert_eq!(holdings.mode(), Mode::Exact);
        let odd = v1::BlockEvent { hash: vec![1].into(), ..orphan };
        assert_eq!(holdings.apply(&message(vec![odd], true, true)).lost, 1);
        assert_eq!((holdings.mode(), holdings.blocks()), (Mode::Degraded, 0));
    }

    #[test]
    fn a_prompt_is_hashed_once_for_all_stores_that_are_alike() {
        let tokens: Vec<u32> = (0..18).collect();
        let mut hashed = Hashed::new(&tokens);
        let shape = |key, block_tokens, block_bytes| Shape {
            key: NamespaceKey::from_bytes([key; 32]),
            block_tokens,
            block_bytes,
        };
        for (shape, count) in [
            (shape(3, 4, 1), 1),
            (shape(3, 4, 2), 1),
            (shape(4, 4, 1), 2),
            (shape(3, 8, 1), 3),
            (shape(3, 4, 1), 3),
        ] {
            let expected = shape.key.hash_blocks(&tokens, shape.block_tokens as usize, &[]);
            assert_eq!(hashed.of(&shape), expected);
            assert_eq!(hashed.known.len(), count);
        }
    }
}
