//! The policy whose ghosts hit most.
//!
//! # Overview
//! A [`GhostBoard`] says what each policy would hit. When one has been clearly better than the policy in force,
//! it is built beside it and told of every use from then on; the old one chooses victims, first among blocks
//! that the new one has not heard of. When there are none of these any more, the new one takes over. So
//! nothing stands still for a change, and closure holds: the new one hears of a block after its ancestors.

use std::fmt;
use std::hash::{BuildHasher, Hash};

use super::ghost::{GhostBoard, GhostRate};
use super::{Policy, PolicyKind, Weight, build};

/// By how much another policy must be better.
const MARGIN: f64 = 0.01;
/// After so many uses the rates are looked at.
const LOOK_USES: usize = 4096;

pub(super) struct Adaptive<K, H> {
    capacity_blocks: usize,
    kind: PolicyKind,
    current: Box<dyn Policy<K>>,
    next: Option<(PolicyKind, Box<dyn Policy<K>>)>,
    board: GhostBoard<K, H>,
    uses: usize,
    /// Of the last block that came in: what is told of blocks that came in before.
    weight: Weight,
}

impl<K, H> fmt::Debug for Adaptive<K, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let next = self.next.as_ref().map(|(kind, _)| kind);
        f.debug_struct("Adaptive").field("kind", &self.kind).field("next", &next).finish_non_exhaustive()
    }
}

impl<K, H> Adaptive<K, H>
where
    K: Copy + Eq + Hash + Send + 'static,
    H: BuildHasher + Default + Send + 'static,
{
    pub(super) fn new() -> Self {
        Self::among(&PolicyKind::FIXED)
    }

    /// Begins with the first of `kinds`.
    pub(super) fn among(kinds: &[PolicyKind]) -> Self {
        let kind = kinds.first().copied().unwrap_or_default();
        Self {
            capacity_blocks: 0,
            kind,
            current: build::<K, H>(kind, 0),
            next: None,
            board: GhostBoard::new(kinds, 0),
            uses: 0,
            weight: Weight::default(),
        }
    }

    #[cfg(test)]
    pub(super) fn kind(&self) -> PolicyKind {
        self.kind
    }

    /// Looks at the rates now and then.
    fn look(&mut self, uses: usize) {
        self.uses += uses;
        if self.uses < LOOK_USES {
            return;
        }
        self.uses = 0;
        if self.next.is_some() || !self.board.is_warm() {
            return;
        }
        let rates = self.board.rates();
        let current = rates.iter().find(|rate| rate.kind == self.kind).map_or(0.0, |rate| rate.hit_rate);
        let best = rates.into_iter().max_by(|a, b| a.hit_rate.total_cmp(&b.hit_rate));
        if let Some(best) = best.filter(|best| best.hit_rate > current + MARGIN) {
            self.change(best.kind);
        }
    }

    /// Begins to hand over to another policy.
    pub(super) fn change(&mut self, kind: PolicyKind) {
        self.next = Some((kind, build::<K, H>(kind, self.capacity_blocks)));
        self.settle();
    }

    /// Tells the next policy of a block that is resident, after its ancestors.
    fn introduce(&mut self, key: K) {
        let Some((_, next)) = &mut self.next else { return };
        let mut unknown = Vec::new();
        let mut above = Some(key);
        while let Some(key) = above.filter(|key| self.current.contains(key) && !next.contains(key)) {
            unknown.push(key);
            above = self.current.parent(&key);
        }
        for key in unknown.into_iter().rev() {
            next.insert(key, self.current.parent(&key), self.weight);
        }
    }

    /// Hands over once the next policy knows all.
    fn settle(&mut self) {
        if let Some((kind, next)) = self.next.take_if(|(_, next)| next.len() == self.current.len()) {
            self.kind = kind;
            self.current = next;
        }
    }
}

impl<K, H> Policy<K> for Adaptive<K, H>
where
    K: Copy + Eq + Hash + Send + 'static,
    H: BuildHasher + Default + Send + 'static,
{
    fn insert(&mut self, key: K, parent: Option<K>, weight: Weight) {
        self.weight = weight;
        self.board.insert(key, parent, weight);
        self.current.insert(key, parent, weight);
        match &mut self.next {
            Some((_, next)) if next.contains(&key) => next.touch(&[key]),
            _ => self.introduce(key),
        }
        self.settle();
        self.look(1);
    }

    fn touch(&mut self, prefix: &[K]) {
        self.board.touch(prefix);
        self.current.touch(prefix);
        if self.next.is_some() {
            prefix.iter().for_each(|key| self.introduce(*key));
            if let Some((_, next)) = &mut self.next {
                next.touch(prefix);
            }
            self.settle();
        }
        self.look(prefix.len());
    }

    fn remove(&mut self, key: K) -> bool {
        let was_resident = self.current.remove(key);
        if let Some((_, next)) = &mut self.next {
            next.remove(key);
            self.settle();
        }
        was_resident
    }

    fn demote(&mut self, key: K) {
        self.introduce(key);
        self.current.demote(key);
        if let Some((_, next)) = &mut self.next {
            next.demote(key);
            self.settle();
        }
    }

    fn victim(&mut self, may_evict: &mut dyn FnMut(&K) -> bool) -> Option<K> {
        let Some((_, next)) = &self.next else { return self.current.victim(may_evict) };
        let old = self.current.victim(&mut |key| !next.contains(key) && may_evict(key));
        old.or_else(|| self.current.victim(&mut |key| next.contains(key) && may_evict(key)))
    }

    fn upcoming(&self, blocks: usize) -> Vec<K> {
        self.current.upcoming(blocks)
    }

    fn set_capacity(&mut self, blocks: usize) {
        self.capacity_blocks = blocks;
        self.board.set_capacity(blocks);
        self.current.set_capacity(blocks);
        if let Some((_, next)) = &mut self.next {
            next.set_capacity(blocks);
        }
    }

    fn reserve(&mut self, blocks: usize) {
        self.current.reserve(blocks);
    }

    fn contains(&self, key: &K) -> bool {
        self.current.contains(key)
    }

    fn parent(&self, key: &K) -> Option<K> {
        self.current.parent(key)
    }

    fn ghost_rates(&self) -> Vec<GhostRate> {
        self.board.rates()
    }

    fn len(&self) -> usize {
        self.current.len()
    }
}
