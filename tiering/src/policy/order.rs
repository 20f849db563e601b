//! The order in which a tier's blocks go: expired, over quota, by priority, and then by the policy.
//!
//! # Overview
//! Blocks of one priority make a *class* with a policy of its own; lower classes go first. A *group* (a
//! namespace) may have a quota; then its blocks are in classes of the group's own too, so that one of its
//! blocks is found without a search when it is over its quota. All keep closure: a block that has a resident
//! child, of whatever class, stays until that is gone.
//!
//! Within, a block goes by the 64 bits of its key's hash: keys are large, and policies remember many. Of two
//! resident keys with one hash the second goes by another number, which is kept aside.
//!
//! # Limits
//! - `insert` and `remove` cost a hash lookup more than the policy's own; `touch` costs little more while all
//!   blocks are of one class and no group has a quota.
//! - Memory for a key of 32 bytes: about 150 bytes a block here, and 80 (LRU) to 150 in the policy. Room for the
//!   tier's capacity is set aside at the start, so that no insert stands still for a table that grows.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher};
use std::time::Duration;

use super::ghost::{GhostBoard, GhostRate};
use super::{Policy, PolicyKind, Weight, build};

/// An expired block in use is asked about again after this time.
const EXPIRED_IN_USE: Duration = Duration::from_secs(1);

/// Tables are made for at most so many blocks at the start.
const RESERVE_BLOCKS_MAX: usize = 1 << 24;

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

/// A tier's blocks in the order in which they go. `H` hashes the keys, to uniform numbers: where they are
/// hashes already, one that passes a part of them through will do.
pub struct Order<K, H = RandomState> {
    kind: PolicyKind,
    capacity_blocks: usize,
    hasher: H,
    blocks: HashMap<Name, Block<K>, Pass>,
    /// Resident keys whose hash another resident one had first.
    aliases: HashMap<K, Name, H>,
    all: Classes,
    ghosts: Option<GhostBoard<Name, Pass>>,
    groups: HashMap<u64, Group, Pass>,
    /// Groups that are over their quota.
    over: BTreeSet<u64>,
    /// Blocks that expire and have no resident child, by time and a number that makes it unique.
    expiring: BTreeMap<(Duration, u64), Name>,
    /// Where these stand in `expiring`.
    due: HashMap<Name, (Duration, u64), Pass>,
    next_number: u64,
    resident: usize,
    bytes: u64,
    /// Names of a prefix.
    scratch: Vec<Name>,
}

/// What a block goes by.
type Name = u64;

/// Names are hashes.
#[derive(Clone, Copy, Debug, Default)]
struct HashMixer(u64);

type Pass = BuildHasherDefault<HashMixer>;

impl Hasher for HashMixer {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

/// A resident block, or one that is gone but has resident children.
struct Block<K> {
    key: K,
    /// `None` if it is not resident.
    attributes: Option<Attributes>,
    /// Resident children.
    children: u32,
}

/// A policy a priority.
struct Classes {
    by_priority: BTreeMap<u8, Box<dyn Policy<Name>>>,
    capacity_blocks: usize,
    /// Of the first class.
    reserve_blocks: usize,
}

struct Group {
    bytes: u64,
    quota: Option<Quota>,
}

struct Quota {
    bytes: u64,
    classes: Classes,
}

impl Group {
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

impl Classes {
    fn new(capacity_blocks: usize, reserve_blocks: usize) -> Self {
        Self { by_priority: BTreeMap::new(), capacity_blocks, reserve_blocks }
    }

    fn insert(&mut self, kind: PolicyKind, name: Name, parent: Option<Name>, attributes: &Attributes) {
        let class = self.by_priority.entry(attributes.priority).or_insert_with(|| {
            let mut class = build::<Name, Pass>(kind, self.capacity_blocks);
            class.reserve(std::mem::take(&mut self.reserve_blocks));
            class
        });
        class.insert(name, parent, attributes.weight);
    }

    fn parent(&self, name: Name, priority: u8) -> Option<Name> {
        self.by_priority.get(&priority)?.parent(&name)
    }

    fn touch(&mut self, prefix: &[Name]) {
        self.by_priority.values_mut().for_each(|class| class.touch(prefix));
    }

    fn remove(&mut self, name: Name, priority: u8) {
        let class = self.by_priority.get_mut(&priority).expect("a resident block has a class");
        class.remove(name);
    }

    fn demote(&mut self, name: Name, priority: u8) {
        self.by_priority.get_mut(&priority).expect("a resident block has a class").demote(name);
    }

    fn victim(&mut self, may_evict: &mut dyn FnMut(&Name) -> bool) -> Option<Name> {
        self.by_priority.values_mut().find_map(|class| class.victim(may_evict))
    }

    fn upcoming(&self, blocks: usize) -> Vec<Name> {
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
        let reserve_blocks = capacity_blocks.min(RESERVE_BLOCKS_MAX);
        Self {
            kind,
            capacity_blocks,
            hasher: H::default(),
            blocks: HashMap::with_capacity_and_hasher(reserve_blocks, Pass::default()),
            aliases: HashMap::default(),
            all: Classes::new(capacity_blocks, reserve_blocks),
            ghosts: None,
            groups: HashMap::default(),
            over: BTreeSet::new(),
            expiring: BTreeMap::new(),
            due: HashMap::default(),
            next_number: 0,
            resident: 0,
            bytes: 0,
            scratch: Vec::new(),
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
        let name = self.claim(key);
        let block = self.blocks.entry(name).or_insert_with(|| Block::absent(key));
        if block.attributes.is_some() {
            self.touch(&[key]);
            return;
        }
        block.attributes = Some(attributes);
        if attributes.expires_at.is_some() {
            self.resume_expiry(name);
        }
        let parent = parent.map(|parent| (self.claim(parent), parent));
        if let Some((name, key)) = parent {
            let above = self.blocks.entry(name).or_insert_with(|| Block::absent(key));
            above.children += 1;
            self.suspend_expiry(name);
        }
        let parent = parent.map(|(name, _)| name);
        self.all.insert(self.kind, name, parent, &attributes);
        if let Some(ghosts) = &mut self.ghosts {
            ghosts.insert(name, parent, attributes.weight);
        }
        let group = self.groups.entry(attributes.group).or_insert(Group { bytes: 0, quota: None });
        group.bytes += u64::from(attributes.weight.bytes);
        if let Some(quota) = &mut group.quota {
            quota.classes.insert(self.kind, name, parent, &attributes);
        }
        self.bytes += u64::from(attributes.weight.bytes);
        self.resident += 1;
        self.note_over(attributes.group);
    }

    /// A prefix of one group was matched, the start of the sequence first. Keys that are not resident are
    /// passed over.
    pub fn touch(&mut self, prefix: &[K]) {
        let mut names = std::mem::take(&mut self.scratch);
        names.clear();
        names.extend(prefix.iter().map(|key| self.name(key)));
        self.all.touch(&names);
        if let Some(ghosts) = &mut self.ghosts {
            ghosts.touch(&names);
        }
        if self.groups.values().any(|group| group.quota.is_some()) {
            let attributes = names.iter().find_map(|name| self.blocks.get(name)?.attributes);
            if let Some(quota) = attributes.and_then(|attributes| self.quota_mut(attributes.group)) {
                quota.classes.touch(&names);
            }
        }
        self.scratch = names;
    }

    /// A block went; whether it was resident.
    pub fn remove(&mut self, key: K) -> bool {
        let name = self.name(&key);
        let Some(block) = self.blocks.get_mut(&name).filter(|block| block.key == key) else { return false };
        let Some(attributes) = block.attributes.take() else { return false };
        let is_tail = block.children == 0;
        let parent = self.all.parent(name, attributes.priority);
        self.suspend_expiry(name);
        if is_tail {
            self.forget(name);
        }
        self.all.remove(name, attributes.priority);
        self.bytes -= u64::from(attributes.weight.bytes);
        self.resident -= 1;
        if let Some(group) = self.groups.get_mut(&attributes.group) {
            group.bytes -= u64::from(attributes.weight.bytes);
            match &mut group.quota {
                Some(quota) => quota.classes.remove(name, attributes.priority),
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
        let Some((name, attributes)) = self.resident(&key) else { return };
        self.all.demote(name, attributes.priority);
        if let Some(quota) = self.quota_mut(attributes.group) {
            quota.classes.demote(name, attributes.priority);
        }
    }

    /// Moves a block to another class, where it is new.
    pub fn set_priority(&mut self, key: K, priority: u8) {
        let Some((name, before)) = self.resident(&key) else { return };
        if before.priority == priority {
            return;
        }
        let attributes = Attributes { priority, ..before };
        self.blocks.entry(name).and_modify(|block| block.attributes = Some(attributes));
        let (kind, parent) = (self.kind, self.all.parent(name, before.priority));
        self.all.remove(name, before.priority);
        self.all.insert(kind, name, parent, &attributes);
        if let Some(quota) = self.quota_mut(attributes.group) {
            quota.classes.remove(name, before.priority);
            quota.classes.insert(kind, name, parent, &attributes);
        }
    }

    /// Gives a block another time at which it expires, or none.
    pub fn set_expiry(&mut self, key: K, expires_at: Option<Duration>) {
        let Some((name, before)) = self.resident(&key) else { return };
        let attributes = Attributes { expires_at, ..before };
        self.blocks.entry(name).and_modify(|block| block.attributes = Some(attributes));
        self.suspend_expiry(name);
        self.resume_expiry(name);
    }

    /// The block to drop next, of those that `may_evict` agrees to; it stays until [`remove`](Self::remove).
    pub fn victim(&mut self, now: Duration, may_evict: &mut dyn FnMut(&K) -> bool) -> Option<(K, Why)> {
        if let Some(key) = self.expired(now, may_evict) {
            return Some((key, Why::Expired));
        }
        let Self { blocks, groups, over, all, .. } = self;
        let mut may = |name: &Name| is_free(blocks, name, may_evict);
        let of_group = over.iter().find_map(|group| {
            let quota = groups.get_mut(group).and_then(|group| group.quota.as_mut());
            quota.and_then(|quota| quota.classes.victim(&mut may))
        });
        if let Some(name) = of_group {
            return Some((blocks[&name].key, Why::Quota));
        }
        all.victim(&mut may).map(|name| (blocks[&name].key, Why::Policy))
    }

    /// The next to drop of one group, to make room below its quota. Of a group without a quota there is none.
    pub fn victim_of(&mut self, group: u64, may_evict: &mut dyn FnMut(&K) -> bool) -> Option<K> {
        let Self { blocks, groups, .. } = self;
        let quota = groups.get_mut(&group)?.quota.as_mut()?;
        let name = quota.classes.victim(&mut |name| is_free(blocks, name, may_evict))?;
        Some(blocks[&name].key)
    }

    /// The next victims that `filter` wants, of the next `blocks` that the policy would drop, in their order.
    pub fn upcoming(&self, blocks: usize, filter: &mut dyn FnMut(&K) -> bool) -> Vec<K> {
        let next = self.all.upcoming(blocks).into_iter();
        next.map(|name| self.blocks[&name].key).filter(|key| filter(key)).collect()
    }

    /// Sets what a group may hold.
    pub fn set_quota(&mut self, group: u64, bytes: u64) {
        let entry = self.groups.entry(group).or_insert(Group { bytes: 0, quota: None });
        if let Some(quota) = &mut entry.quota {
            quota.bytes = bytes;
        } else {
            let mut classes = Classes::new(self.capacity_blocks, 0);
            // In the order in which the policy would drop them: what comes in first, goes first.
            for name in self.all.upcoming(self.resident) {
                let attributes = self.blocks[&name].attributes;
                if let Some(attributes) = attributes.filter(|attributes| attributes.group == group) {
                    let parent = self.all.parent(name, attributes.priority);
                    classes.insert(self.kind, name, parent, &attributes);
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
        let block = self.blocks.get(&self.name(key)).filter(|block| block.key == *key)?;
        block.attributes.as_ref()
    }

    /// Whether a block is resident and no resident one stands behind it.
    pub fn is_tail(&self, key: &K) -> bool {
        let block = self.blocks.get(&self.name(key)).filter(|block| block.key == *key);
        block.is_some_and(|block| block.attributes.is_some() && block.children == 0)
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

    /// What a known key goes by. What an unknown one would go by may be another's name.
    fn name(&self, key: &K) -> Name {
        match self.aliases.is_empty() {
            true => self.hasher.hash_one(key),
            false => self.aliases.get(key).copied().unwrap_or_else(|| self.hasher.hash_one(key)),
        }
    }

    /// What a key goes by from now on.
    fn claim(&mut self, key: K) -> Name {
        let mut name = self.name(&key);
        let hash = name;
        while self.blocks.get(&name).is_some_and(|block| block.key != key) {
            name = name.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        }
        if name != hash {
            self.aliases.insert(key, name);
        }
        name
    }

    /// A block is gone, and its children too.
    fn forget(&mut self, name: Name) {
        if let Some(block) = self.blocks.remove(&name)
            && !self.aliases.is_empty()
        {
            self.aliases.remove(&block.key);
        }
    }

    fn resident(&self, key: &K) -> Option<(Name, Attributes)> {
        Some((self.name(key), *self.attributes(key)?))
    }

    /// The first expired block that may go.
    fn expired(&mut self, now: Duration, may_evict: &mut dyn FnMut(&K) -> bool) -> Option<K> {
        while let Some((&place, &name)) = self.expiring.first_key_value().filter(|(place, _)| place.0 <= now)
        {
            let key = self.blocks[&name].key;
            if may_evict(&key) {
                return Some(key);
            }
            self.expiring.remove(&place);
            let later = (now + EXPIRED_IN_USE, place.1);
            self.expiring.insert(later, name);
            self.due.insert(name, later);
        }
        None
    }

    /// Counts a child that went.
    fn drop_child(&mut self, name: Name) {
        let Some(block) = self.blocks.get_mut(&name) else { return };
        block.children -= 1;
        if block.children == 0 && block.attributes.is_none() {
            self.forget(name);
        } else {
            self.resume_expiry(name);
        }
    }

    /// Enters a block among those that expire, if it does and has no resident child.
    fn resume_expiry(&mut self, name: Name) {
        let Some(block) = self.blocks.get(&name).filter(|block| block.children == 0) else { return };
        let Some(expires_at) = block.attributes.and_then(|attributes| attributes.expires_at) else { return };
        let place = (expires_at, self.next_number);
        self.next_number += 1;
        self.expiring.insert(place, name);
        self.due.insert(name, place);
    }

    /// Takes a block out of those that expire.
    fn suspend_expiry(&mut self, name: Name) {
        if !self.due.is_empty()
            && let Some(place) = self.due.remove(&name)
        {
            self.expiring.remove(&place);
        }
    }

    fn quota_mut(&mut self, group: u64) -> Option<&mut Quota> {
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
    fn absent(key: K) -> Self {
        Self { key, attributes: None, children: 0 }
    }
}

/// Whether no block behind it is resident, in whatever class, and its owner agrees.
fn is_free<K>(
    blocks: &HashMap<Name, Block<K>, Pass>,
    name: &Name,
    may_evict: &mut dyn FnMut(&K) -> bool,
) -> bool {
    blocks.get(name).is_some_and(|block| block.children == 0 && may_evict(&block.key))
}
