//! The order in which a tier's blocks go: expired, over quota, by priority, and then by the policy.
//!
//! # Overview
//! Blocks of one priority make a *class* with a policy of its own; lower classes go first. A *group* (a
//! namespace) may have a quota; then its blocks are in classes of the group's own too, so that one of its
//! blocks is found without a search when it is over its quota. All keep closure: a block that has a resident
//! child, of whatever class, stays until that is gone.
//!
//! # Limits
//! `insert` and `remove` cost a hash lookup more than the policy's own; `touch` costs nothing more while all
//! blocks are of one class and no group has a quota.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::time::Duration;

use super::ghost::{GhostBoard, GhostRate};
use super::{Policy, PolicyKind, Weight, build};

/// An expired block in use is asked about again after this time.
const EXPIRED_IN_USE: Duration = Duration::from_secs(1);

/// What decides when a block goes, besides its use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Whose quota it counts to. A block and its parent are of one group.
    pub group: u64,
    /// What it takes and saves.
    pub weight: Weight,
    /// Higher ones stay longer.
    pub priority: u8,
    /// When it goes before all others, by the owner's clock.
    pub expires_at: Option<Duration>,
}

/// Why a block is the next to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// Its time is up.
    Expired,
    /// Its group is over its quota.
    Quota,
    /// The policy chose it.
    Policy,
}

/// A tier's blocks in the order in which they go. `H` hashes the keys: where these are uniform hashes already,
/// a hasher that passes them through saves most of a touch.
pub struct Order<K, H = RandomState> {
    kind: PolicyKind,
    capacity_blocks: usize,
    blocks: HashMap<K, Block<K>, H>,
    all: Classes<K>,
    ghosts: Option<GhostBoard<K, H>>,
    groups: HashMap<u64, Group<K>>,
    /// Groups that are over their quota.
    over: BTreeSet<u64>,
    /// Blocks that expire and have no resident child, by time and a number that makes it unique.
    expiring: BTreeMap<(Duration, u64), K>,
    next_number: u64,
    resident: usize,
    bytes: u64,
}

/// A resident block, or one that is gone but has resident children.
struct Block<K> {
    /// `None` if it is not resident.
    attributes: Option<Attributes>,
    parent: Option<K>,
    /// Resident children.
    children: u32,
    /// Where it stands in `Order::expiring`.
    expiring: Option<(Duration, u64)>,
}

/// A policy a priority.
struct Classes<K> {
    by_priority: BTreeMap<u8, Box<dyn Policy<K>>>,
    capacity_blocks: usize,
}

struct Group<K> {
    bytes: u64,
    quota: Option<Quota<K>>,
}

struct Quota<K> {
    bytes: u64,
    classes: Classes<K>,
}

impl<K> Group<K> {
    fn is_over(&self, more_bytes: u64) -> bool {
        self.quota.as_ref().is_some_and(|quota| self.bytes.saturating_add(more_bytes) > quota.bytes)
    }
}

impl<K, H> fmt::Debug for Order<K, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Order");
        debug.field("kind", &self.kind).field("resident", &self.resident).field("bytes", &self.bytes);
        debug.finish_non_exhaustive()
    }
}

impl<K> Classes<K>
where
    K: Copy + Eq + Hash + Send + 'static,
{
    fn new(capacity_blocks: usize) -> Self {
        Self { by_priority: BTreeMap::new(), capacity_blocks }
    }

    fn insert<H>(&mut self, kind: PolicyKind, key: K, parent: Option<K>, attributes: &Attributes)
    where
        H: BuildHasher + Default + Send + 'static,
    {
        let capacity = self.capacity_blocks;
        let class =
            self.by_priority.entry(attributes.priority).or_insert_with(|| build::<K, H>(kind, capacity));
        class.insert(key, parent, attributes.weight);
    }

    fn touch(&mut self, prefix: &[K]) {
        self.by_priority.values_mut().for_each(|class| class.touch(prefix));
    }

    fn remove(&mut self, key: K, priority: u8) {
        let class = self.by_priority.get_mut(&priority).expect("a resident block has a class");
        class.remove(key);
    }

    fn demote(&mut self, key: K, priority: u8) {
        self.by_priority.get_mut(&priority).expect("a resident block has a class").demote(key);
    }

    fn victim(&mut self, may_evict: &mut dyn FnMut(&K) -> bool) -> Option<K> {
        self.by_priority.values_mut().find_map(|class| class.victim(may_evict))
    }

    fn upcoming(&self, blocks: usize) -> Vec<K> {
        let mut next = Vec::new();
        for class in self.by_priority.values() {
            if next.len() >= blocks {
                break;
            }
            next.extend(class.upcoming(blocks - next.len()));
        }
        next
    }

    fn set_capacity(&mut self, blocks: usize) {
        self.capacity_blocks = blocks;
        self.by_priority.values_mut().for_each(|class| class.set_capacity(blocks));
    }
}

impl<K, H> Order<K, H>
where
    K: Copy + Eq + Hash + Send + 'static,
    H: BuildHasher + Default + Send + 'static,
{
    /// No blocks, in a tier that has room for `capacity_blocks`.
    pub fn new(kind: PolicyKind, capacity_blocks: usize) -> Self {
        Self {
            kind,
            capacity_blocks,
            blocks: HashMap::default(),
            all: Classes::new(capacity_blocks),
            ghosts: None,
            groups: HashMap::new(),
            over: BTreeSet::new(),
            expiring: BTreeMap::new(),
            next_number: 0,
            resident: 0,
            bytes: 0,
        }
    }

    /// The policy within a class.
    pub fn kind(&self) -> PolicyKind {
        self.kind
    }

    /// The tier has another size now.
    pub fn set_capacity(&mut self, blocks: usize) {
        self.capacity_blocks = blocks;
        self.all.set_capacity(blocks);
        if let Some(ghosts) = &mut self.ghosts {
            ghosts.set_capacity(blocks);
        }
    }

    /// Runs all fixed policies beside the real one, on a sample, from now on.
    pub fn watch_ghosts(&mut self) {
        let board = || GhostBoard::new(&PolicyKind::FIXED, self.capacity_blocks);
        self.ghosts.get_or_insert_with(board);
    }

    /// What each policy would have hit lately; nothing without [`watch_ghosts`](Self::watch_ghosts).
    pub fn ghost_rates(&self) -> Vec<GhostRate> {
        self.ghosts.as_ref().map_or_else(Vec::new, GhostBoard::rates)
    }

    /// A block came in behind `parent`, which need not be resident. Of one that is resident already it is a
    /// use, and its attributes stay.
    pub fn insert(&mut self, key: K, parent: Option<K>, attributes: Attributes) {
        if self.contains(&key) {
            self.touch(&[key]);
            return;
        }
        let block = self.blocks.entry(key).or_insert_with(Block::absent);
        block.attributes = Some(attributes);
        block.parent = parent;
        self.resume_expiry(key);
        if let Some(parent) = parent {
            let above = self.blocks.entry(parent).or_insert_with(Block::absent);
            above.children += 1;
            if let Some(place) = above.expiring.take() {
                self.expiring.remove(&place);
            }
        }
        self.all.insert::<H>(self.kind, key, parent, &attributes);
        if let Some(ghosts) = &mut self.ghosts {
            ghosts.insert(key, parent, attributes.weight);
        }
        let group = self.groups.entry(attributes.group).or_insert(Group { bytes: 0, quota: None });
        group.bytes += u64::from(attributes.weight.bytes);
        if let Some(quota) = &mut group.quota {
            quota.classes.insert::<H>(self.kind, key, parent, &attributes);
        }
        self.bytes += u64::from(attributes.weight.bytes);
        self.resident += 1;
        self.note_over(attributes.group);
    }

    /// A prefix of one group was matched, the start of the sequence first. Keys that are not resident are
    /// passed over.
    pub fn touch(&mut self, prefix: &[K]) {
        self.all.touch(prefix);
        if let Some(ghosts) = &mut self.ghosts {
            ghosts.touch(prefix);
        }
        if self.groups.values().all(|group| group.quota.is_none()) {
            return;
        }
        let attributes = prefix.iter().find_map(|key| self.blocks.get(key)?.attributes);
        let group = attributes.and_then(|attributes| self.groups.get_mut(&attributes.group));
        if let Some(quota) = group.and_then(|group| group.quota.as_mut()) {
            quota.classes.touch(prefix);
        }
    }

    /// A block went; whether it was resident.
    pub fn remove(&mut self, key: K) -> bool {
        let Some(block) = self.blocks.get_mut(&key) else { return false };
        let Some(attributes) = block.attributes.take() else { return false };
        let parent = block.parent.take();
        if let Some(place) = block.expiring.take() {
            self.expiring.remove(&place);
        }
        if block.children == 0 {
            self.blocks.remove(&key);
        }
        self.all.remove(key, attributes.priority);
        self.bytes -= u64::from(attributes.weight.bytes);
        self.resident -= 1;
        if let Some(group) = self.groups.get_mut(&attributes.group) {
            group.bytes -= u64::from(attributes.weight.bytes);
            match &mut group.quota {
                Some(quota) => quota.classes.remove(key, attributes.priority),
                None if group.bytes == 0 => drop(self.groups.remove(&attributes.group)),
                None => {}
            }
        }
        self.note_over(attributes.group);
        if let Some(parent) = parent {
            self.drop_child(parent);
        }
        true
    }

    /// A session that used this block has ended: it goes before others of its class, until its next use.
    pub fn demote(&mut self, key: K) {
        let Some(attributes) = self.attributes(&key).copied() else { return };
        self.all.demote(key, attributes.priority);
        if let Some(quota) = self.quota_mut(attributes.group) {
            quota.classes.demote(key, attributes.priority);
        }
    }

    /// Moves a block to another class, where it is new.
    pub fn set_priority(&mut self, key: K, priority: u8) {
        let Some(block) = self.blocks.get_mut(&key) else { return };
        let (Some(attributes), parent) = (&mut block.attributes, block.parent) else { return };
        if attributes.priority == priority {
            return;
        }
        let before = std::mem::replace(&mut attributes.priority, priority);
        let attributes = *attributes;
        self.all.remove(key, before);
        self.all.insert::<H>(self.kind, key, parent, &attributes);
        let kind = self.kind;
        if let Some(quota) = self.quota_mut(attributes.group) {
            quota.classes.remove(key, before);
            quota.classes.insert::<H>(kind, key, parent, &attributes);
        }
    }

    /// Gives a block another time at which it expires, or none.
    pub fn set_expiry(&mut self, key: K, expires_at: Option<Duration>) {
        let Some(block) = self.blocks.get_mut(&key) else { return };
        let Some(attributes) = &mut block.attributes else { return };
        attributes.expires_at = expires_at;
        if let Some(place) = block.expiring.take() {
            self.expiring.remove(&place);
        }
        self.resume_expiry(key);
    }

    /// The block to drop next, of those that `may_evict` agrees to; it stays until [`remove`](Self::remove).
    pub fn victim(&mut self, now: Duration, may_evict: &mut dyn FnMut(&K) -> bool) -> Option<(K, Why)> {
        if let Some(key) = self.expired(now, may_evict) {
            return Some((key, Why::Expired));
        }
        let Self { blocks, groups, over, all, .. } = self;
        let mut may_evict = |key: &K| is_tail(blocks, key) && may_evict(key);
        for group in over.iter() {
            let quota = groups.get_mut(group).and_then(|group| group.quota.as_mut());
            if let Some(key) = quota.and_then(|quota| quota.classes.victim(&mut may_evict)) {
                return Some((key, Why::Quota));
            }
        }
        all.victim(&mut may_evict).map(|key| (key, Why::Policy))
    }

    /// The next to drop of one group, to make room below its quota. Of a group without a quota there is none.
    pub fn victim_of(&mut self, group: u64, may_evict: &mut dyn FnMut(&K) -> bool) -> Option<K> {
        let Self { blocks, groups, .. } = self;
        let quota = groups.get_mut(&group)?.quota.as_mut()?;
        quota.classes.victim(&mut |key| is_tail(blocks, key) && may_evict(key))
    }

    /// The next victims that `filter` wants, of the next `blocks` that the policy would drop, in their order.
    pub fn upcoming(&self, blocks: usize, filter: &mut dyn FnMut(&K) -> bool) -> Vec<K> {
        let mut next = self.all.upcoming(blocks);
        next.retain(|key| filter(key));
        next
    }

    /// Sets what a group may hold.
    pub fn set_quota(&mut self, group: u64, bytes: u64) {
        let entry = self.groups.entry(group).or_insert(Group { bytes: 0, quota: None });
        if let Some(quota) = &mut entry.quota {
            quota.bytes = bytes;
        } else {
            let mut classes = Classes::new(self.capacity_blocks);
            // In the order in which the policy would drop them: what comes in first, goes first.
            for key in self.all.upcoming(self.resident) {
                let block = &self.blocks[&key];
                if let Some(attributes) = block.attributes.filter(|attributes| attributes.group == group) {
                    classes.insert::<H>(self.kind, key, block.parent, &attributes);
                }
            }
            entry.quota = Some(Quota { bytes, classes });
        }
        self.note_over(group);
    }

    /// Lets a group hold what it likes.
    pub fn clear_quota(&mut self, group: u64) {
        let Some(entry) = self.groups.get_mut(&group) else { return };
        entry.quota = None;
        if entry.bytes == 0 {
            self.groups.remove(&group);
        }
        self.note_over(group);
    }

    /// What a group holds.
    pub fn group_bytes(&self, group: u64) -> u64 {
        self.groups.get(&group).map_or(0, |group| group.bytes)
    }

    /// Whether a group is over its quota, or would be with `more_bytes`.
    pub fn over_quota(&self, group: u64, more_bytes: u64) -> bool {
        self.groups.get(&group).is_some_and(|group| group.is_over(more_bytes))
    }

    /// Whether a block is resident.
    pub fn contains(&self, key: &K) -> bool {
        self.attributes(key).is_some()
    }

    /// Of a resident block.
    pub fn attributes(&self, key: &K) -> Option<&Attributes> {
        self.blocks.get(key)?.attributes.as_ref()
    }

    /// Whether a block is resident and no resident one stands behind it.
    pub fn is_tail(&self, key: &K) -> bool {
        self.contains(key) && is_tail(&self.blocks, key)
    }

    /// Resident blocks.
    pub fn len(&self) -> usize {
        self.resident
    }

    /// Whether no block is resident.
    pub fn is_empty(&self) -> bool {
        self.resident == 0
    }

    /// Bytes of resident blocks.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The first expired block that may go.
    fn expired(&mut self, now: Duration, may_evict: &mut dyn FnMut(&K) -> bool) -> Option<K> {
        while let Some((&place, &key)) = self.expiring.first_key_value().filter(|(place, _)| place.0 <= now) {
            if may_evict(&key) {
                return Some(key);
            }
            self.expiring.remove(&place);
            let later = (now + EXPIRED_IN_USE, place.1);
            self.expiring.insert(later, key);
            self.blocks.get_mut(&key).expect("what expires is resident").expiring = Some(later);
        }
        None
    }

    /// Counts a child that went.
    fn drop_child(&mut self, key: K) {
        let Some(block) = self.blocks.get_mut(&key) else { return };
        block.children -= 1;
        if block.children == 0 && block.attributes.is_none() {
            self.blocks.remove(&key);
        } else {
            self.resume_expiry(key);
        }
    }

    /// Enters a block among those that expire, if it does and has no resident child.
    fn resume_expiry(&mut self, key: K) {
        let Some(block) = self.blocks.get_mut(&key) else { return };
        let expires_at = block.attributes.and_then(|attributes| attributes.expires_at);
        let Some(expires_at) = expires_at.filter(|_| block.children == 0) else { return };
        let place = (expires_at, self.next_number);
        self.next_number += 1;
        block.expiring = Some(place);
        self.expiring.insert(place, key);
    }

    fn quota_mut(&mut self, group: u64) -> Option<&mut Quota<K>> {
        self.groups.get_mut(&group)?.quota.as_mut()
    }

    /// Keeps the list of groups over their quota.
    fn note_over(&mut self, group: u64) {
        if self.over_quota(group, 0) {
            self.over.insert(group);
        } else if !self.over.is_empty() {
            self.over.remove(&group);
        }
    }
}

impl<K> Block<K> {
    fn absent() -> Self {
        Self { attributes: None, parent: None, children: 0, expiring: None }
    }
}

/// Whether no block behind it is resident, in whatever class.
fn is_tail<K: Eq + Hash, H: BuildHasher>(blocks: &HashMap<K, Block<K>, H>, key: &K) -> bool {
    blocks.get(key).is_some_and(|block| block.children == 0)
}
