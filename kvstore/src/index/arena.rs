//! Arena: the nodes of a tree, found by number.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::HolderSet;
use super::account::{Account, allocated};
use super::prefetch::prefetch;
use super::run::Run;
use super::table::NODE_BITS;

/// No node.
pub(super) const NONE: u32 = u32::MAX;

/// A run, its lock, and what is not under that lock. One cache line.
#[repr(align(64))]
pub(super) struct Node<S> {
    pub(super) run: RwLock<Run<S>>,
    /// Neighbours among the children of the same parent, under the lock of the parent's run. In a node that
    /// is free, the next free one.
    next: AtomicU32,
    before: AtomicU32,
    pub(super) heat: Heat,
}

impl<S: HolderSet> Default for Node<S> {
    fn default() -> Self {
        Self {
            run: RwLock::default(),
            next: AtomicU32::new(NONE),
            before: AtomicU32::new(NONE),
            heat: Heat::default(),
        }
    }
}

/// Last use of a run, and how often it was used.
#[derive(Debug, Default)]
pub(super) struct Heat(AtomicU64);

const USES_BITS: u32 = 24;
const USES_MAX: u64 = (1 << USES_BITS) - 1;
const TICK_MAX: u64 = (1 << (64 - USES_BITS)) - 1;

impl Heat {
    pub(super) fn last_use(&self) -> u64 {
        self.0.load(Ordering::Relaxed) >> USES_BITS
    }

    pub(super) fn uses(&self) -> u32 {
        (self.0.load(Ordering::Relaxed) & USES_MAX) as u32
    }

    /// Notes a use. Of two at once the earlier tick may stay and one may go uncounted, which no order by age
    /// can tell.
    pub(super) fn touch(&self, now: u64) {
        let uses = (u64::from(self.uses()) + 1).min(USES_MAX);
        self.set(self.last_use().max(now), uses);
    }

    /// As warm as the other.
    pub(super) fn copy_from(&self, other: &Heat) {
        self.0.store(other.0.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// As warm as the warmer of both.
    pub(super) fn merge(&self, other: &Heat) {
        self.set(self.last_use().max(other.last_use()), u64::from(self.uses().max(other.uses())));
    }

    fn set(&self, last_use: u64, uses: u64) {
        self.0.store(last_use.min(TICK_MAX) << USES_BITS | uses, Ordering::Relaxed);
    }
}

const LEAF_BITS: u32 = 9;
const BRANCH_BITS: u32 = 8;
const ROOT_BITS: u32 = NODE_BITS - BRANCH_BITS - LEAF_BITS;

type Leaf<S> = OnceLock<Box<[Node<S>]>>;
type Branch<S> = OnceLock<Box<[Leaf<S>]>>;

/// Nodes in leaves of 32 KiB, which stay once they are there. A node that is given back is used again.
pub(super) struct Arena<S> {
    root: Box<[Branch<S>]>,
    free: Mutex<Free>,
}

struct Free {
    /// Nodes given out so far, given back or not.
    made: u32,
    /// The first free one of these.
    first: u32,
}

impl<S: HolderSet> Arena<S> {
    pub(super) fn new() -> Self {
        let root = (0..1 << ROOT_BITS).map(|_| Branch::default()).collect();
        Self { root, free: Mutex::new(Free { made: 0, first: NONE }) }
    }

    /// What it takes when it is empty.
    pub(super) fn bytes_min() -> usize {
        allocated::<Branch<S>>(1 << ROOT_BITS)
    }

    /// The node of that number.
    ///
    /// # Panics
    /// If there never was one.
    pub(super) fn node(&self, id: u32) -> &Node<S> {
        let branch = self.root[(id >> (LEAF_BITS + BRANCH_BITS)) as usize].get();
        let leaf =
            branch.and_then(|leaves| leaves[(id >> LEAF_BITS) as usize & ((1 << BRANCH_BITS) - 1)].get());
        match leaf {
            Some(nodes) => &nodes[id as usize & ((1 << LEAF_BITS) - 1)],
            None => panic!("node {id} was never made"),
        }
    }

    /// The node is about to be used.
    pub(super) fn prefetch(&self, id: u32) {
        prefetch(std::ptr::from_ref(self.node(id)).addr());
    }

    /// Numbers given out so far are below that.
    pub(super) fn made(&self) -> u32 {
        self.free.lock().made
    }

    /// What branches and leaves take.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        let branches: Vec<_> = self.root.iter().filter_map(|branch| branch.get()).collect();
        let leaves = branches.iter().flat_map(|branch| branch.iter()).filter(|leaf| leaf.get().is_some());
        leaves.count() * allocated::<Node<S>>(1 << LEAF_BITS)
            + branches.len() * allocated::<Leaf<S>>(1 << BRANCH_BITS)
    }

    /// A node that nobody else uses, with an empty run; `None` without budget or numbers for it.
    pub(super) fn take(&self, account: &Account) -> Option<u32> {
        let mut free = self.free.lock();
        if free.first != NONE {
            let id = free.first;
            free.first = self.node(id).next.swap(NONE, Ordering::Relaxed);
            return Some(id);
        }
        let id = free.made;
        if id >> NODE_BITS != 0 || id == (1 << NODE_BITS) - 1 {
            return None;
        }
        let branch = &self.root[(id >> (LEAF_BITS + BRANCH_BITS)) as usize];
        if branch.get().is_none() {
            if !account.take(allocated::<Leaf<S>>(1 << BRANCH_BITS)) {
                return None;
            }
            let _ = branch.set((0..1 << BRANCH_BITS).map(|_| Leaf::default()).collect());
        }
        let leaf = &branch.get()?[(id >> LEAF_BITS) as usize & ((1 << BRANCH_BITS) - 1)];
        if leaf.get().is_none() {
            if !account.take(allocated::<Node<S>>(1 << LEAF_BITS)) {
                return None;
            }
            let _ = leaf.set((0..1 << LEAF_BITS).map(|_| Node::default()).collect());
        }
        free.made += 1;
        Some(id)
    }

    /// Gives a node back whose run is empty and that is nobody's child.
    pub(super) fn give(&self, id: u32) {
        let mut free = self.free.lock();
        let node = self.node(id);
        node.heat.0.store(0, Ordering::Relaxed);
        node.before.store(NONE, Ordering::Relaxed);
        node.next.store(free.first, Ordering::Relaxed);
        free.first = id;
    }

    /// Puts a run among the children of another, which is locked for writing.
    pub(super) fn link(&self, parent: &mut Run<S>, child: u32) {
        let first = std::mem::replace(&mut parent.first_child, child);
        self.node(child).next.store(first, Ordering::Relaxed);
        self.node(child).before.store(NONE, Ordering::Relaxed);
        if first != NONE {
            self.node(first).before.store(child, Ordering::Relaxed);
        }
    }

    /// Takes a run from among the children of another, which is locked for writing.
    pub(super) fn unlink(&self, parent: &mut Run<S>, child: u32) {
        let next = self.node(child).next.swap(NONE, Ordering::Relaxed);
        let before = self.node(child).before.swap(NONE, Ordering::Relaxed);
        match before {
            NONE => parent.first_child = next,
            before => self.node(before).next.store(next, Ordering::Relaxed),
        }
        if next != NONE {
            self.node(next).before.store(before, Ordering::Relaxed);
        }
    }

    /// The children of a run, which is locked.
    pub(super) fn children(&self, parent: &Run<S>) -> impl Iterator<Item = u32> {
        let some = |id: u32| Some(id).filter(|id| *id != NONE);
        std::iter::successors(some(parent.first_child), move |child| {
            some(self.node(*child).next.load(Ordering::Relaxed))
        })
    }

    /// The only child of a run, which is locked; `None` if it has another number of children.
    pub(super) fn only_child(&self, parent: &Run<S>) -> Option<u32> {
        let mut children = self.children(parent);
        children.next().filter(|_| children.next().is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::{TierSet, WorkerSet};

    #[test]
    fn a_node_is_a_cache_line() {
        assert_eq!(size_of::<Node<TierSet>>(), 64);
        assert_eq!(size_of::<Node<WorkerSet>>(), 64);
    }

    #[test]
    fn nodes_are_used_again_and_stay_in_the_budget() {
        let account = Account::new(100_000);
        let arena = Arena::<TierSet>::new();
        let ids: Vec<_> = std::iter::from_fn(|| arena.take(&account)).collect();
        assert_eq!(ids, (0..1024).collect::<Vec<_>>());
        arena.give(7);
        arena.give(999);
        assert_eq!(
            [arena.take(&account), arena.take(&account), arena.take(&account)],
            [Some(999), Some(7), None]
        );
    }

    #[test]
    fn children_come_and_go_in_any_order() {
        let account = Account::new(usize::MAX);
        let arena = Arena::<TierSet>::new();
        let mut parent = Run::default();
        let ids: Vec<_> = (0..5).filter_map(|_| arena.take(&account)).collect();
        ids.iter().for_each(|id| arena.link(&mut parent, *id));
        for gone in [2, 4, 0, 3] {
            assert_eq!(arena.only_child(&parent), None);
            arena.unlink(&mut parent, gone);
            assert!(arena.children(&parent).all(|id| id != gone));
        }
        assert_eq!(arena.only_child(&parent), Some(1));
        arena.unlink(&mut parent, 1);
        assert_eq!(arena.children(&parent).count(), 0);
    }

    #[test]
    fn heat_saturates() {
        let heat = Heat::default();
        heat.touch(7);
        heat.touch(5);
        assert_eq!((heat.last_use(), heat.uses()), (7, 2));
        heat.touch(u64::MAX);
        assert_eq!(heat.last_use(), TICK_MAX);
    }
}
