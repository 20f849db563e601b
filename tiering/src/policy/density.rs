//! Hit density: the tail that is expected to earn the fewest hits for the place and time it takes.
//!
//! # Overview
//! Prompts come back after a time to think, and not at a rate that falls with age: soon after its use a block
//! is less likely to be used than a minute later, and after some minutes hardly at all. One that came back
//! before comes back more often. So this policy learns, from resident and from remembered blocks, after
//! which age blocks of a *class* are used again, and drops the tail with the lowest Gittins index: the most
//! hits a unit of time that it can earn from its age on, over all ages up to which it might be kept. New
//! blocks may rank below old ones, which is admission control without a filter of its own.
//!
//! A class is what is known of a block: how often it was used, how often its sequence was continued before it,
//! and whether anything was ever behind it. Time is the count of uses, so the policy reads no clock. Histograms
//! fade, so that it follows what changes.
//!
//! # Limits
//! It counts blocks, not bytes or cost: for a tier of unequal blocks there is GDSF. Learning costs some
//! [`CLASSES`] x [`AGES`] sums once in 4,096 uses, or more rarely in a large tier; a victim costs a
//! search, and one more for each class and age that has no tail any more. It remembers four times the blocks that the tier holds.
//!
//! # Alternatives
//! Least hit density (Beckmann 2018) learns from hits alone, so what it drops early it never sees come back.
//! Frequency of use in ghosts with GDSF is close on small tiers and .011 behind on large ones.

use std::hash::{BuildHasher, Hash};
use std::ops::Range;

use super::Weight;
use super::ranked::{Place, Queue, Rank, Rule, Turn};
use super::remembered::Remembered;

/// Bounds of use counts, of times a sequence was continued, and what was ever extended.
const USES: usize = 7;
const CONTINUED: usize = 3;
pub(super) const CLASSES: usize = USES * CONTINUED * 2;
/// Ages in uses: two an octave, from 16.
pub(super) const AGES: usize = 44;
const _: () = assert!(AGES < u64::BITS as usize, "a bit each");
const FIRST_AGE_LOG2: u32 = 4;
/// Tails are looked at afresh after so many uses, or fewer in a small tier. Meanwhile no age changes, so what
/// was found absent stays so.
const LOOK_USES_MAX: u64 = 64;

/// Remembered blocks for each that the tier holds.
const GHOSTS: usize = 4;
/// Uses between two looks at the histograms, at least, once so many were seen; the first look comes earlier.
const RELEARN_USES: u64 = 4096;
const FIRST_LEARN_USES: u64 = 256;
/// What a histogram keeps from one look to the next.
const FADE: f32 = 0.94;
/// A class borrows so many blocks' experience from all classes.
const BORROWED: f32 = 50.0;

pub(super) struct HitDensity<K, H> {
    /// Uses so far.
    clock: u64,
    /// When the histograms are looked at.
    learn_at: u64,
    relearn_uses: u64,
    look_uses: u64,
    classes: Vec<Experience>,
    /// Classes and ages by index, the lowest first.
    order: Vec<(u8, u8)>,
    /// Where a class's age stands in `order`.
    turns: Vec<[u16; AGES]>,
    /// No tail stands before this in `order`, as of `looked_at`.
    cursor: usize,
    /// Ages that a class's tails may have as of `looked_at`, a bit each; made afresh when `cursor` is 0.
    present: [u64; CLASSES],
    present_at: Option<u64>,
    /// Ages are counted up to here.
    looked_at: u64,
    ghosts: Remembered<K, Seen, H>,
}

/// What became of the blocks of a class.
struct Experience {
    /// Uses that put a block into this class.
    blocks: f32,
    /// Next uses by age.
    reused: [f32; AGES],
}

/// What is known of a block.
#[derive(Clone, Copy)]
pub(super) struct Seen {
    last_use: u64,
    uses: u16,
    continued: u8,
    extended: bool,
    class: u8,
}

/// The class of ages that an age belongs to.
fn age_class(age: u64) -> usize {
    let scaled = age >> (FIRST_AGE_LOG2 - 1);
    match scaled.checked_ilog2() {
        None | Some(0) => 0,
        // Two steps an octave: the bit below the highest says which.
        Some(octave) => (2 * (octave as usize - 1) + 1 + (scaled >> (octave - 1) & 1) as usize).min(AGES - 1),
    }
}

/// The lowest age of a class.
fn age_from(class: usize) -> u64 {
    match class {
        0 => 0,
        _ => (2 + (class as u64 - 1) % 2) << (FIRST_AGE_LOG2 as usize - 1 + (class - 1) / 2),
    }
}

impl Seen {
    fn classify(&self) -> u8 {
        let uses = match self.uses {
            0..=1 => 0,
            2 => 1,
            3 => 2,
            4..=5 => 3,
            6..=8 => 4,
            9..=16 => 5,
            _ => 6,
        };
        ((uses * CONTINUED + usize::from(self.continued)) * 2 + usize::from(self.extended)) as u8
    }
}

impl<K: Copy + Eq + Hash, H: BuildHasher + Default> HitDensity<K, H> {
    pub(super) fn new() -> Self {
        let none = || Experience { blocks: 0.0, reused: [0.0; AGES] };
        let mut policy = Self {
            clock: 0,
            learn_at: FIRST_LEARN_USES,
            relearn_uses: RELEARN_USES,
            look_uses: LOOK_USES_MAX,
            classes: (0..CLASSES).map(|_| none()).collect(),
            order: Vec::with_capacity(CLASSES * AGES),
            turns: vec![[0; AGES]; CLASSES],
            cursor: 0,
            present: [0; CLASSES],
            present_at: None,
            looked_at: 0,
            ghosts: Remembered::new(0),
        };
        policy.learn();
        policy
    }

    /// Notes a use and gives the block its class.
    fn note_use(&mut self, seen: &mut Seen) {
        let age = self.clock - seen.last_use;
        self.classes[usize::from(seen.class)].reused[age_class(age)] += 1.0;
        seen.uses = seen.uses.saturating_add(1);
        self.enter_class(seen);
    }

    fn enter_class(&mut self, seen: &mut Seen) {
        seen.last_use = self.clock;
        seen.class = seen.classify();
        self.classes[usize::from(seen.class)].blocks += 1.0;
    }

    /// Puts classes and ages in order, and lets the histograms fade.
    fn learn(&mut self) {
        let fade = if self.clock < self.relearn_uses { 1.0 } else { FADE };
        self.learn_at = self.clock + self.clock.clamp(FIRST_LEARN_USES, self.relearn_uses);
        let mut all = Experience { blocks: 1.0, reused: [0.0; AGES] };
        for class in &self.classes {
            all.blocks += class.blocks;
            all.reused.iter_mut().zip(&class.reused).for_each(|(all, reused)| *all += reused);
        }
        let unknown = Experience { blocks: 0.0, reused: [0.0; AGES] }.indices(&all);
        let mut indexed = Vec::with_capacity(CLASSES * AGES);
        for (number, class) in self.classes.iter_mut().enumerate() {
            let index = if class.blocks < 0.5 { unknown } else { class.indices(&all) };
            indexed.extend(index.into_iter().enumerate().map(|(age, index)| (index, number, age)));
            class.blocks *= fade;
            class.reused.iter_mut().for_each(|reused| *reused *= fade);
        }
        // Of equal ones the oldest first: before anything was learned this is LRU.
        indexed.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(b.2.cmp(&a.2)).then(a.1.cmp(&b.1)));
        self.cursor = 0;
        self.order.clear();
        for (turn, (_, class, age)) in indexed.into_iter().enumerate() {
            self.order.push((class as u8, age as u8));
            self.turns[class][age] = turn as u16;
        }
    }

    /// Last uses that make a block of this age, as ranks.
    fn ranks(&self, age: usize) -> Option<Range<Rank>> {
        let until = match age {
            0 => u64::MAX,
            _ => self.looked_at.checked_sub(age_from(age))? + 1,
        };
        let from = match age {
            _ if age + 1 == AGES => 0,
            _ => (self.looked_at + 1).saturating_sub(age_from(age + 1)),
        };
        Some((from, 0)..(until, 0))
    }

    /// Notes which ages each queue's tails may have: those from its youngest to its oldest.
    fn find_ages(&mut self, queues: &[Queue<K>]) {
        for (present, queue) in self.present.iter_mut().zip(queues) {
            let age = |rank: &Rank| age_class(self.looked_at.saturating_sub(rank.0));
            *present = match (queue.last_key_value(), queue.first_key_value()) {
                (Some((youngest, _)), Some((oldest, _))) => {
                    let (from, until) = (age(youngest), age(oldest) + 1);
                    ((1 << until) - 1) & !((1 << from) - 1)
                }
                _ => 0,
            };
        }
    }

    fn turn_of(&self, queue: usize, rank: Rank) -> u16 {
        self.turns[queue][age_class(self.looked_at.saturating_sub(rank.0))]
    }
}

impl Experience {
    /// Gittins index by age: of all ages up to which a block might be kept, the best ratio of hits to time.
    fn indices(&self, all: &Self) -> [f32; AGES] {
        let borrowed = BORROWED / all.blocks;
        let mut alive = self.blocks + BORROWED;
        let (mut hits, mut time) = ([0.0; AGES], [0.0; AGES]);
        for age in 0..AGES {
            hits[age] = self.reused[age] + borrowed * all.reused[age];
            let left = (alive - hits[age]).max(0.0);
            let width =
                age_from((age + 1).min(AGES - 1)).max(1) - if age + 1 == AGES { 0 } else { age_from(age) };
            time[age] = (0.5 * (alive + left)).max(1e-6) * width as f32;
            alive = left;
        }
        let mut best = [0.0_f32; AGES];
        for (from, best) in best.iter_mut().enumerate() {
            let (mut hits_until, mut time_until) = (0.0, 0.0);
            for age in from..AGES {
                hits_until += hits[age];
                time_until += time[age];
                *best = best.max(hits_until / time_until);
            }
        }
        best
    }
}

impl<K, H> Rule<K> for HitDensity<K, H>
where
    K: Copy + Eq + Hash + Send,
    H: BuildHasher + Default + Send,
{
    type Note = Seen;

    const QUEUES: usize = CLASSES;

    fn tick(&mut self, blocks: usize) {
        self.clock += blocks as u64;
        if self.clock >= self.learn_at {
            self.learn();
        }
        if self.clock - self.looked_at >= self.look_uses {
            self.looked_at = self.clock;
            self.cursor = 0;
        }
    }

    fn enter(&mut self, key: K, _weight: Weight, above: Option<&Seen>) -> (Seen, Place) {
        let seen = match self.ghosts.take(&key) {
            Some(mut seen) => {
                self.note_use(&mut seen);
                seen
            }
            None => {
                let continued = above.map_or(0, |above| above.continued + u8::from(above.uses >= 2));
                let continued = continued.min(CONTINUED as u8 - 1);
                let mut seen = Seen { last_use: self.clock, uses: 1, continued, extended: false, class: 0 };
                self.enter_class(&mut seen);
                seen
            }
        };
        (seen, seen.place())
    }

    fn used(&mut self, seen: &mut Seen) -> Place {
        self.note_use(seen);
        seen.place()
    }

    fn extended(&mut self, seen: &mut Seen) -> Option<Place> {
        if seen.extended {
            return None;
        }
        seen.extended = true;
        let before = &mut self.classes[usize::from(seen.class)].blocks;
        *before = (*before - 1.0).max(0.0);
        seen.class = seen.classify();
        self.classes[usize::from(seen.class)].blocks += 1.0;
        Some(seen.place())
    }

    fn tail(&mut self, queue: usize, rank: Rank) {
        self.present[queue] |= 1 << age_class(self.looked_at.saturating_sub(rank.0));
        self.cursor = self.cursor.min(usize::from(self.turn_of(queue, rank)));
    }

    fn pick(&mut self, queues: &[Queue<K>]) -> Option<(usize, Rank)> {
        if self.present_at != Some(self.looked_at) {
            self.present_at = Some(self.looked_at);
            self.find_ages(queues);
        }
        while let Some(&(class, age)) = self.order.get(self.cursor) {
            let queue = &queues[usize::from(class)];
            if self.present[usize::from(class)] >> age & 1 == 1
                && let Some((rank, _)) =
                    self.ranks(usize::from(age)).and_then(|ranks| queue.range(ranks).next())
            {
                return Some((usize::from(class), *rank));
            }
            self.cursor += 1;
        }
        None
    }

    fn gone(&mut self, key: K, seen: Seen) {
        self.ghosts.insert(key, seen);
    }

    fn turn(&self, queue: usize, rank: Rank) -> u64 {
        u64::from(self.turn_of(queue, rank))
    }

    fn in_turn<'a>(&'a self, queues: &'a [Queue<K>]) -> Box<dyn Iterator<Item = (Turn, K)> + 'a>
    where
        K: Copy,
    {
        Box::new(self.order.iter().enumerate().flat_map(|(turn, (class, age))| {
            let queue = &queues[usize::from(*class)];
            let ranks = self.ranks(usize::from(*age)).filter(|_| !queue.is_empty());
            let tails = ranks.into_iter().flat_map(|ranks| queue.range(ranks));
            tails.map(move |(rank, key)| ((1 + turn as u64, *rank), *key))
        }))
    }

    fn set_capacity(&mut self, blocks: usize) {
        self.relearn_uses = (blocks as u64 / 32).max(RELEARN_USES);
        self.look_uses = (blocks as u64 / 64).clamp(4, LOOK_USES_MAX);
        self.ghosts.set_capacity(blocks.saturating_mul(GHOSTS));
    }
}

impl Seen {
    fn place(&self) -> Place {
        Place { queue: usize::from(self.class), rank: self.last_use }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_of_ages_are_half_octaves() {
        for class in 0..AGES {
            assert_eq!(age_class(age_from(class)), class);
            if class > 0 {
                assert_eq!(age_class(age_from(class) - 1), class - 1);
            }
        }
        assert_eq!([age_from(1), age_from(2), age_from(3), age_from(4)], [16, 24, 32, 48]);
        assert_eq!(age_class(u64::MAX), AGES - 1);
    }

    #[test]
    fn an_index_looks_ahead_to_the_age_of_reuse() {
        let all = Experience { blocks: 1.0, reused: [0.0; AGES] };
        let mut class = Experience { blocks: 1000.0, reused: [0.0; AGES] };
        class.reused[8] = 500.0;
        let index = class.indices(&all);
        assert!(index[7] > index[0] && index[8] > index[7], "nearer is better: {index:?}");
        assert_eq!(index[9], 0.0, "past it nothing is expected");
    }
}
