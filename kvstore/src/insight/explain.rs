//! Explain: a compact record of why blocks are not there.
//!
//! # Overview
//! Whoever drops or refuses a block notes its hash, the reason, the tier and the time. [`Explainer::explain`]
//! finds the latest note about a hash. A block about which nothing is noted was never stored, or is so long
//! gone that its note was overwritten: [`ExplainerUsage::overwritten`] tells whether that can be.
//!
//! # Limits
//! - The table has a fixed size, 16 bytes a note. A hash has 8 places; a ninth note overwrites the oldest of
//!   these, so a table forgets some notes before all its places are used.
//! - Notes are kept by the half of the hash: a wrong answer needs two blocks that agree in 64 bits, of which
//!   4 more decide the places. Nothing but the answer depends on it.
//! - Times are whole milliseconds, up to 8900 years.
//!
//! # Locking
//! One lock a shard, for as long as 8 notes are looked at; none is taken while another is held.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kelvin_tiering::Tier;
use parking_lot::Mutex;

use crate::SequenceHash;

/// Why a block is not there, or not where it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Reason {
    /// Nobody stored it, as far as the record goes back. Never noted: the answer when nothing else is.
    NeverStored,
    /// Made room for others.
    Evicted,
    /// Its time to live was over.
    Expired,
    /// Its namespace held more than its quota.
    Quota,
    /// A copy of it was damaged, and dropped.
    Quarantined,
    /// Refused on its first sight: the tier stores blocks that come back.
    AdmissionRefused,
    /// Its write was given up, since others came faster than the tier takes them.
    TooLate,
    /// Reserved, and then neither committed nor renewed.
    Abandoned,
    /// Taken out on request.
    Removed,
    /// Its tier failed to give it back in time, or at all.
    TierFailed,
    /// Not durable yet when the store was last killed, or its place was lost with the catalog.
    LostAtRestart,
    /// Another namespace of the tenant holds the same tokens.
    OtherNamespace,
}

impl Reason {
    /// All reasons, in the order of their codes.
    pub const ALL: [Reason; 12] = [
        Reason::NeverStored,
        Reason::Evicted,
        Reason::Expired,
        Reason::Quota,
        Reason::Quarantined,
        Reason::AdmissionRefused,
        Reason::TooLate,
        Reason::Abandoned,
        Reason::Removed,
        Reason::TierFailed,
        Reason::LostAtRestart,
        Reason::OtherNamespace,
    ];

    /// Its name for metrics and people: `evicted`.
    pub fn name(self) -> &'static str {
        match self {
            Reason::NeverStored => "never_stored",
            Reason::Evicted => "evicted",
            Reason::Expired => "expired",
            Reason::Quota => "quota",
            Reason::Quarantined => "quarantined",
            Reason::AdmissionRefused => "admission_refused",
            Reason::TooLate => "too_late",
            Reason::Abandoned => "abandoned",
            Reason::Removed => "removed",
            Reason::TierFailed => "tier_failed",
            Reason::LostAtRestart => "lost_at_restart",
            Reason::OtherNamespace => "other_namespace",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The latest note about a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Why it is gone.
    pub reason: Reason,
    /// From where; `None` where no tier is concerned.
    pub tier: Option<Tier>,
    /// When, by the clock of whoever noted it.
    pub at: Duration,
}

/// How full the table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExplainerUsage {
    /// Notes it holds.
    pub records: usize,
    /// Notes it can hold.
    pub records_max: usize,
    /// Notes that were overwritten by those about other blocks.
    pub overwritten: u64,
}

/// Notes by hash fingerprint, in bounded memory.
pub struct Explainer {
    shards: Box<[Mutex<Shard>]>,
    overwritten: AtomicU64,
    noted: [AtomicU64; Reason::ALL.len()],
}

struct Shard {
    sets: Box<[[Note; WAYS]]>,
    used: usize,
}

/// Places of a hash.
const WAYS: usize = 8;
const SHARDS: usize = 16;

/// A fingerprint and what was noted; the place is free while `detail` is 0.
#[derive(Debug, Clone, Copy, Default)]
struct Note {
    fingerprint: u64,
    /// Milliseconds in 48 bits, then the tier plus 1, then the reason (never 0).
    detail: u64,
}

const _: () = assert!(size_of::<Note>() == 16);

impl Note {
    fn new(fingerprint: u64, record: Record) -> Self {
        let at = u64::try_from(record.at.as_millis()).unwrap_or(u64::MAX).min((1 << 48) - 1);
        let tier = record.tier.map_or(0, |tier| tier as u64 + 1);
        Self { fingerprint, detail: at << 16 | tier << 8 | record.reason as u64 }
    }

    fn is_free(self) -> bool {
        self.detail == 0
    }

    fn record(self) -> Option<Record> {
        let reason = *Reason::ALL.get((self.detail & 0xFF) as usize)?;
        let tier = match self.detail >> 8 & 0xFF {
            0 => None,
            1 => Some(Tier::Hbm),
            2 => Some(Tier::Dram),
            3 => Some(Tier::Nvme),
            _ => Some(Tier::Object),
        };
        Some(Record { reason, tier, at: Duration::from_millis(self.detail >> 16) })
    }
}

impl Default for Explainer {
    /// 65,536 notes, 1 MiB.
    fn default() -> Self {
        Self::new(1 << 16)
    }
}

impl fmt::Debug for Explainer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Explainer").field(&self.usage()).finish()
    }
}

impl Explainer {
    /// A table of that many notes, rounded up to a power of two; 16 bytes each.
    pub fn new(records_max: usize) -> Self {
        let sets = records_max.max(1).next_power_of_two().div_ceil(WAYS * SHARDS);
        let shard = || Mutex::new(Shard { sets: vec![[Note::default(); WAYS]; sets].into(), used: 0 });
        Self {
            shards: (0..SHARDS).map(|_| shard()).collect(),
            overwritten: AtomicU64::new(0),
            noted: Default::default(),
        }
    }

    /// Notes why a block is gone or was refused; an older note about it is replaced.
    pub fn note(&self, hash: SequenceHash, reason: Reason, tier: Option<Tier>, at: Duration) {
        self.noted[reason as usize].fetch_add(1, Ordering::Relaxed);
        if reason == Reason::NeverStored {
            return;
        }
        let note = Note::new(fingerprint(hash), Record { reason, tier, at });
        let mut shard = self.shard(hash).lock();
        let set = shard.set(hash);
        // The block's own place, else a free one (0 is before every note), else that of the oldest.
        let own = set.iter().position(|old| !old.is_free() && old.fingerprint == note.fingerprint);
        let way = own.or_else(|| {
            (0..WAYS).min_by_key(|way| set[*way].detail >> 16 | u64::from(!set[*way].is_free()) << 48)
        });
        let Some(place) = way.and_then(|way| set.get_mut(way)) else { return };
        let old = std::mem::replace(place, note);
        if old.is_free() {
            shard.used += 1;
        } else if old.fingerprint != note.fingerprint {
            self.overwritten.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The latest note about the block; `None` if there is none (any more).
    pub fn explain(&self, hash: SequenceHash) -> Option<Record> {
        let wanted = fingerprint(hash);
        let mut shard = self.shard(hash).lock();
        let note = shard.set(hash).iter().find(|note| !note.is_free() && note.fingerprint == wanted)?;
        note.record()
    }

    /// Drops the note about a block, which is there again.
    pub fn forget(&self, hash: SequenceHash) {
        let wanted = fingerprint(hash);
        let mut shard = self.shard(hash).lock();
        let own = shard.set(hash).iter_mut().find(|note| !note.is_free() && note.fingerprint == wanted);
        if let Some(note) = own {
            *note = Note::default();
            shard.used -= 1;
        }
    }

    /// How often a reason was noted so far.
    pub fn noted(&self, reason: Reason) -> u64 {
        self.noted[reason as usize].load(Ordering::Relaxed)
    }

    /// How full it is.
    pub fn usage(&self) -> ExplainerUsage {
        let shards = self.shards.iter().map(|shard| shard.lock());
        let (records, records_max) = shards
            .map(|shard| (shard.used, shard.sets.len() * WAYS))
            .fold((0, 0), |sum, shard| (sum.0 + shard.0, sum.1 + shard.1));
        ExplainerUsage { records, records_max, overwritten: self.overwritten.load(Ordering::Relaxed) }
    }

    /// Memory it takes.
    pub fn memory_bytes(&self) -> usize {
        self.usage().records_max * size_of::<Note>() + size_of_val(&*self.shards) + size_of::<Self>()
    }

    fn shard(&self, hash: SequenceHash) -> &Mutex<Shard> {
        &self.shards[(hash.as_u128() as usize) % SHARDS]
    }
}

impl Shard {
    fn set(&mut self, hash: SequenceHash) -> &mut [Note; WAYS] {
        let sets = self.sets.len();
        &mut self.sets[(hash.as_u128() as usize / SHARDS) % sets]
    }
}

/// The half of the hash that does not choose the places.
fn fingerprint(hash: SequenceHash) -> u64 {
    (hash.as_u128() >> 64) as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hash(number: u64) -> SequenceHash {
        let spread = u128::from(number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835);
        SequenceHash::from_bytes((spread ^ (spread >> 61)).to_le_bytes())
    }

    fn millis(at: u64) -> Duration {
        Duration::from_millis(at)
    }

    #[test]
    fn the_latest_note_counts() {
        let explainer = Explainer::default();
        assert_eq!(explainer.explain(hash(1)), None);
        explainer.note(hash(1), Reason::Abandoned, None, millis(1));
        explainer.note(hash(1), Reason::Evicted, Some(Tier::Nvme), millis(2));
        explainer.note(hash(2), Reason::Quota, Some(Tier::Dram), millis(2));
        let evicted = Record { reason: Reason::Evicted, tier: Some(Tier::Nvme), at: millis(2) };
        assert_eq!(explainer.explain(hash(1)), Some(evicted));
        assert_eq!(explainer.explain(hash(2)).map(|record| record.reason), Some(Reason::Quota));
        assert_eq!(explainer.usage().records, 2);
        assert_eq!(explainer.noted(Reason::Abandoned), 1);
        explainer.forget(hash(1));
        assert_eq!(explainer.explain(hash(1)), None);
        assert_eq!(explainer.usage(), ExplainerUsage { records: 1, records_max: 1 << 16, overwritten: 0 });
    }

    #[test]
    fn a_full_table_keeps_the_newest() {
        let explainer = Explainer::new(1 << 12);
        for number in 0..100_000 {
            explainer.note(hash(number), Reason::Evicted, Some(Tier::Dram), millis(number));
        }
        let usage = explainer.usage();
        assert_eq!((usage.records, usage.records_max), (1 << 12, 1 << 12));
        assert_eq!(usage.overwritten, 100_000 - (1 << 12));
        let known = |numbers: std::ops::Range<u64>| {
            numbers.filter(|number| explainer.explain(hash(*number)).is_some()).count()
        };
        // A set of 8 sees 1/512 of the notes, so of the last 1000 it almost never sees more than 8.
        assert!(known(99_000..100_000) > 990, "{}", known(99_000..100_000));
        assert_eq!(known(0..80_000), 0);
    }

    #[test]
    fn threads_may_note_at_once() {
        let explainer = Explainer::new(1 << 10);
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let explainer = &explainer;
                scope.spawn(move || {
                    for number in 0..20_000 {
                        explainer.note(
                            hash(number % 97),
                            Reason::Expired,
                            Some(Tier::Object),
                            millis(thread),
                        );
                        assert!(explainer.explain(hash(number % 97)).is_some());
                    }
                });
            }
        });
        assert_eq!(explainer.noted(Reason::Expired), 80_000);
        assert_eq!(explainer.usage().records, 97);
    }

    proptest! {
        #[test]
        fn a_note_says_what_was_noted(
            low: u64,
            high: u64,
            reason in 1..Reason::ALL.len(),
            tier in proptest::option::of(proptest::sample::select(vec![
                Tier::Hbm, Tier::Dram, Tier::Nvme, Tier::Object,
            ])),
            at in 0u64..1 << 48,
        ) {
            let hash = SequenceHash::from_bytes((u128::from(high) << 64 | u128::from(low)).to_le_bytes());
            let record = Record { reason: Reason::ALL[reason], tier, at: millis(at) };
            let explainer = Explainer::new(1);
            explainer.note(hash, record.reason, record.tier, record.at);
            prop_assert_eq!(explainer.explain(hash), Some(record));
        }

        #[test]
        fn codes_and_names_are_unique(one in 0..Reason::ALL.len(), other in 0..Reason::ALL.len()) {
            prop_assert_eq!(Reason::ALL[one] as usize, one);
            prop_assert_eq!(one == other, Reason::ALL[one].name() == Reason::ALL[other].name());
        }
    }
}
