//! Tails in queues by rank: what all policies but LRU stand on.
//!
//! # Overview
//! [`Ranked`] knows which blocks are resident and which of them are *tails*, blocks without a resident child:
//! only these stand in queues, so that no [`Rule`] can break closure. The rule says where a block stands after
//! each use, and which tail goes next.
//!
//! A tail that may not go is *parked*: it is not asked about again for a while, so that tails on long leases
//! don't cost a question for every victim.
//!
//! # Limits
//! `insert`, `remove`: O(log tails). `touch`: a hash lookup a block, and O(log tails) for a tail. `victim`: what
//! the rule's choice costs, and O(log tails) a refusal; a refused tail is asked about again after
//! [`PARKED_CALLS`] victims, or when there is no other.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::hash::{BuildHasher, Hash};

use super::upcoming::peel;
use super::{GLANCE_KEYS, Policy, Weight, glance};

/// For so many calls of `victim` a refused tail rests.
pub(super) const PARKED_CALLS: u64 = 64;

/// Where a block stands in its queue: lower ones first. The second part makes it unique.
pub(super) type Rank = (u64, u64);

/// Tails by rank.
pub(super) type Queue<K> = BTreeMap<Rank, K>;

/// A queue and a rank there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) queue: usize,
    pub(super) rank: u64,
}

/// What makes a policy of [`Ranked`].
pub(super) trait Rule<K>: Send {
    /// What it keeps of a resident block.
    type Note: Send;

    /// Queues it uses, from 0.
    const QUEUES: usize;

    /// So many blocks are about to be used together.
    fn tick(&mut self, _blocks: usize) {}

    /// A block comes in, behind one of which it kept `above`.
    fn enter(&mut self, key: K, weight: Weight, above: Option<&Self::Note>) -> (Self::Note, Place);

    /// A block is used.
    fn used(&mut self, note: &mut Self::Note) -> Place;

    /// A block got its first child; where it stands from now on, if that changes.
    fn extended(&mut self, _note: &mut Self::Note) -> Option<Place> {
        None
    }

    /// A tail came into a queue.
    fn tail(&mut self, _queue: usize, _rank: Rank) {}

    /// The tail that goes next, if there is one.
    fn pick(&mut self, queues: &[Queue<K>]) -> Option<(usize, Rank)>;

    /// A last word on a picked tail: a place where it goes instead.
    fn spare(&mut self, _note: &mut Self::Note) -> Option<Place> {
        None
    }

    /// A block is gone.
    fn gone(&mut self, key: K, note: Self::Note);

    /// When a tail would go, as things are: those with lower numbers first, and by rank within.
    fn turn(&self, queue: usize, rank: Rank) -> u64;

    /// The tails by [`turn`](Self::turn) and rank.
    fn in_turn<'a>(&'a self, queues: &'a [Queue<K>]) -> Box<dyn Iterator<Item = (Turn, K)> + 'a>
    where
        K: Copy,
    {
        let mut order: Vec<_> = (0..queues.len()).collect();
        order.sort_by_key(|queue| self.turn(*queue, (0, 0)));
        let turn = move |queue: usize, rank| (1 + self.turn(queue, rank), rank);
        Box::new(
            order.into_iter().flat_map(move |queue| {
                queues[queue].iter().map(move |(rank, key)| (turn(queue, *rank), *key))
            }),
        )
    }

    fn set_capacity(&mut self, _blocks: usize) {}
}

/// The order of what comes next: demoted ones have 0.
pub(super) type Turn = (u64, Rank);

/// A policy by a [`Rule`]. `H` hashes the keys.
pub(super) struct Ranked<K, R: Rule<K>, H> {
    blocks: HashMap<K, Block<K, R::Note>, H>,
    tails: Tails<K>,
    /// Refused tails, with when they come back and the number under which they were parked.
    parked: VecDeque<(u64, u64, K)>,
    resident: usize,
    next_number: u64,
    calls: u64,
    rule: R,
}

/// Tails that were not refused lately.
struct Tails<K> {
    queues: Vec<Queue<K>>,
    demoted: Queue<K>,
}

/// A resident block, or one that is gone but has resident children.
struct Block<K, N> {
    parent: Option<K>,
    /// Resident children.
    children: u32,
    resident: Option<Resident<N>>,
}

struct Resident<N> {
    note: N,
    queue: Where,
    rank: Rank,
}

/// Where a tail stands; a block that is not a tail would stand there if it was.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Where {
    Queue(u8),
    Demoted,
    /// With the number of the entry in `Ranked::parked` that counts, and the queue it came from.
    Parked(u64, u8),
}

impl<K, R: Rule<K>, H> fmt::Debug for Ranked<K, R, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ranked").field("resident", &self.resident).finish_non_exhaustive()
    }
}

impl<K: Copy> Tails<K> {
    fn enter<R: Rule<K>>(&mut self, rule: &mut R, queue: usize, rank: Rank, key: K) {
        self.queues[queue].insert(rank, key);
        rule.tail(queue, rank);
    }

    /// Takes a tail out of its queue.
    fn lift(&mut self, queue: Where, rank: Rank) {
        match queue {
            Where::Queue(queue) => drop(self.queues[usize::from(queue)].remove(&rank)),
            Where::Demoted => drop(self.demoted.remove(&rank)),
            Where::Parked(..) => {}
        }
    }

    /// Enters a tail in its queue; one that was parked comes back.
    fn settle<R: Rule<K>>(&mut self, rule: &mut R, key: K, queue: &mut Where, rank: Rank) {
        match *queue {
            Where::Demoted => drop(self.demoted.insert(rank, key)),
            Where::Queue(at) | Where::Parked(_, at) => {
                *queue = Where::Queue(at);
                self.enter(rule, usize::from(at), rank, key);
            }
        }
    }
}

impl<K, R, H> Ranked<K, R, H>
where
    K: Copy + Eq + Hash,
    R: Rule<K>,
    H: BuildHasher + Default,
{
    pub(super) fn new(rule: R) -> Self {
        Self {
            blocks: HashMap::default(),
            tails: Tails { queues: (0..R::QUEUES).map(|_| Queue::new()).collect(), demoted: Queue::new() },
            parked: VecDeque::new(),
            resident: 0,
            next_number: 0,
            calls: 0,
            rule,
        }
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// Notes a use of a resident block.
    fn renew(&mut self, key: K) {
        let Some(block) = self.blocks.get_mut(&key) else { return };
        let Some(resident) = &mut block.resident else { return };
        let place = self.rule.used(&mut resident.note);
        self.next_number += 1;
        let rank = (place.rank, self.next_number);
        if block.children == 0 {
            self.tails.lift(resident.queue, resident.rank);
            self.tails.enter(&mut self.rule, place.queue, rank, key);
        }
        (resident.queue, resident.rank) = (Where::Queue(place.queue as u8), rank);
    }

    /// Counts a child that came in.
    fn add_child(&mut self, key: K) {
        let block = self.blocks.entry(key).or_insert_with(Block::absent);
        block.children += 1;
        let Some(resident) = &mut block.resident else { return };
        if block.children == 1 {
            self.tails.lift(resident.queue, resident.rank);
        }
        if let Some(place) = self.rule.extended(&mut resident.note)
            && resident.queue != Where::Demoted
        {
            resident.queue = Where::Queue(place.queue as u8);
            resident.rank.0 = place.rank;
        }
    }

    /// Counts a child that went.
    fn drop_child(&mut self, key: K) {
        let Some(block) = self.blocks.get_mut(&key) else { return };
        block.children -= 1;
        match &mut block.resident {
            _ if block.children > 0 => {}
            Some(resident) => self.tails.settle(&mut self.rule, key, &mut resident.queue, resident.rank),
            None => drop(self.blocks.remove(&key)),
        }
    }

    /// Lets a refused tail rest.
    fn park(&mut self, key: K) {
        let number = self.number();
        let Some(resident) = self.resident_mut(&key) else { return };
        let queue = match resident.queue {
            Where::Queue(queue) | Where::Parked(_, queue) => queue,
            // In use after all.
            Where::Demoted => self.rule_place(key),
        };
        if let Some(block) = self.blocks.get_mut(&key)
            && let Some(resident) = &mut block.resident
        {
            self.tails.lift(resident.queue, resident.rank);
            resident.queue = Where::Parked(number, queue);
        }
        self.parked.push_back((self.calls + PARKED_CALLS, number, key));
    }

    /// The queue where a demoted block would stand had it been used now.
    fn rule_place(&mut self, key: K) -> u8 {
        self.renew(key);
        match self.resident_mut(&key).map(|resident| resident.queue) {
            Some(Where::Queue(queue)) => queue,
            _ => 0,
        }
    }

    fn resident_mut(&mut self, key: &K) -> Option<&mut Resident<R::Note>> {
        self.blocks.get_mut(key)?.resident.as_mut()
    }

    /// Whether an entry of `parked` counts still.
    fn is_parked(&self, key: &K, number: u64) -> bool {
        let resident =
            self.blocks.get(key).and_then(|block| block.resident.as_ref().map(|r| (r, block.children)));
        resident.is_some_and(|(resident, children)| {
            children == 0 && matches!(resident.queue, Where::Parked(at, _) if at == number)
        })
    }

    /// Brings back what rested for long enough.
    fn unpark(&mut self) {
        while let Some(&(due, number, key)) = self.parked.front() {
            if due > self.calls {
                return;
            }
            self.parked.pop_front();
            if !self.is_parked(&key, number) {
                continue;
            }
            if let Some(resident) = self.blocks.get_mut(&key).and_then(|block| block.resident.as_mut()) {
                self.tails.settle(&mut self.rule, key, &mut resident.queue, resident.rank);
            }
        }
    }

    /// The next tail by the rule.
    fn pick(&mut self) -> Option<K> {
        loop {
            let (queue, rank) = self.rule.pick(&self.tails.queues)?;
            let key = self.tails.queues[queue][&rank];
            let resident = self.blocks.get_mut(&key).and_then(|block| block.resident.as_mut());
            let resident = resident.expect("a tail is resident");
            let Some(place) = self.rule.spare(&mut resident.note) else { return Some(key) };
            self.tails.queues[queue].remove(&rank);
            self.next_number += 1;
            (resident.queue, resident.rank) =
                (Where::Queue(place.queue as u8), (place.rank, self.next_number));
            self.tails.enter(&mut self.rule, place.queue, resident.rank, key);
        }
    }
}

impl<K, R, H> Policy<K> for Ranked<K, R, H>
where
    K: Copy + Eq + Hash + Send,
    R: Rule<K>,
    H: BuildHasher + Default + Send,
{
    fn insert(&mut self, key: K, parent: Option<K>, weight: Weight) {
        self.rule.tick(1);
        if self.contains(&key) {
            self.renew(key);
            return;
        }
        let above = parent.and_then(|parent| self.blocks.get(&parent)?.resident.as_ref());
        let (note, place) = self.rule.enter(key, weight, above.map(|resident| &resident.note));
        let rank = (place.rank, self.number());
        let block = self.blocks.entry(key).or_insert_with(Block::absent);
        block.parent = parent;
        let resident = block.resident.insert(Resident { note, queue: Where::Queue(place.queue as u8), rank });
        if block.children == 0 {
            self.tails.enter(&mut self.rule, place.queue, rank, key);
        } else if let Some(place) = self.rule.extended(&mut resident.note) {
            (resident.queue, resident.rank.0) = (Where::Queue(place.queue as u8), place.rank);
        }
        self.resident += 1;
        if let Some(parent) = parent {
            self.add_child(parent);
        }
    }

    fn touch(&mut self, prefix: &[K]) {
        self.rule.tick(prefix.len());
        for part in prefix.rchunks(GLANCE_KEYS) {
            glance(&self.blocks, part, |block| {
                block.children as usize
                    ^ block.resident.as_ref().map_or(0, |resident| resident.rank.0 as usize)
            });
            part.iter().rev().for_each(|key| self.renew(*key));
        }
    }

    fn remove(&mut self, key: K) -> bool {
        let Some(block) = self.blocks.get_mut(&key) else { return false };
        let Some(resident) = block.resident.take() else { return false };
        let parent = block.parent.take();
        if block.children == 0 {
            self.tails.lift(resident.queue, resident.rank);
            self.blocks.remove(&key);
        }
        self.rule.gone(key, resident.note);
        self.resident -= 1;
        if let Some(parent) = parent {
            self.drop_child(parent);
        }
        true
    }

    fn demote(&mut self, key: K) {
        let number = self.number();
        let Some(block) = self.blocks.get_mut(&key) else { return };
        let Some(resident) = &mut block.resident else { return };
        if block.children == 0 {
            self.tails.lift(resident.queue, resident.rank);
            self.tails.demoted.insert((0, number), key);
        }
        (resident.queue, resident.rank) = (Where::Demoted, (0, number));
    }

    fn victim(&mut self, may_evict: &mut dyn FnMut(&K) -> bool) -> Option<K> {
        self.calls += 1;
        self.unpark();
        // What is parked from here on was asked about in this call.
        let asked_from = self.next_number;
        loop {
            let next = self.tails.demoted.first_key_value().map(|(_, key)| *key);
            let Some(key) = next.or_else(|| self.pick()) else { break };
            if may_evict(&key) {
                return Some(key);
            }
            self.park(key);
        }
        for _ in 0..self.parked.len() {
            let Some((due, number, key)) = self.parked.pop_front() else { break };
            if number > asked_from {
                self.parked.push_front((due, number, key));
                break;
            }
            if !self.is_parked(&key, number) {
                continue;
            }
            if may_evict(&key) {
                self.parked.push_front((due, number, key));
                return Some(key);
            }
            self.park(key);
        }
        None
    }

    fn upcoming(&self, blocks: usize) -> Vec<K> {
        let children = |key: &K| self.blocks.get(key).map_or(0, |block| block.children as usize);
        let turn = |resident: &Resident<R::Note>| match resident.queue {
            Where::Queue(queue) => (1 + self.rule.turn(usize::from(queue), resident.rank), resident.rank),
            Where::Demoted => (0, resident.rank),
            Where::Parked(number, _) => (u64::MAX, (0, number)),
        };
        let above = |key: &K| {
            let parent = self.blocks.get(key)?.parent?;
            Some((turn(self.blocks.get(&parent)?.resident.as_ref()?), parent))
        };
        let demoted = self.tails.demoted.iter().map(|(rank, key)| ((0, *rank), *key));
        let parked = self.parked.iter().filter(|(_, number, key)| self.is_parked(key, *number));
        let parked = parked.map(|(_, number, key)| ((u64::MAX, (0, *number)), *key));
        let tails = demoted.chain(self.rule.in_turn(&self.tails.queues)).chain(parked);
        peel::<K, Turn, H>(blocks, tails, children, above)
    }

    fn set_capacity(&mut self, blocks: usize) {
        self.rule.set_capacity(blocks);
    }

    fn reserve(&mut self, blocks: usize) {
        self.blocks.reserve(blocks);
    }

    fn contains(&self, key: &K) -> bool {
        self.blocks.get(key).is_some_and(|block| block.resident.is_some())
    }

    fn parent(&self, key: &K) -> Option<K> {
        self.blocks.get(key)?.parent
    }

    fn len(&self) -> usize {
        self.resident
    }
}

impl<K, N> Block<K, N> {
    fn absent() -> Self {
        Self { parent: None, children: 0, resident: None }
    }
}
