//! What stands behind a tenant's structural lock: what is being filled, and the order of eviction.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use kelvin_tiering::{Attributes, DramPool, Order, PolicyKind, Weight, Why};

use super::{
    Clock, ImmutableBlock, Namespace, SessionId,
    block::CompleteBlock,
    labels::{Labels, Row},
    lease::Right,
    table::{Found, Keyed, Table},
    tenant::BlockKey,
    touches::Touches,
};
use crate::{SequenceHash, insight::Reason};

pub(super) struct State {
    table: Arc<Table>,
    touches: Arc<Touches>,
    clock: Arc<dyn Clock>,
    pool: DramPool,
    /// Blocks committed before their parents, by parent.
    pub(super) orphans: HashMap<BlockKey, Vec<CompleteBlock>, Keyed>,
    /// Blocks being filled, counted at their parents.
    filling_children: HashMap<BlockKey, u32, Keyed>,
    /// Sealed blocks in order of eviction, by bytes of a slot: only slots of one size can take each other's
    /// places.
    orders: BTreeMap<u64, Order<BlockKey, Keyed>>,
    policy: PolicyKind,
    /// Bytes that a namespace may have, and the bytes of its slots.
    quotas: BTreeMap<u64, (u64, u64)>,
    /// Sealed blocks that have an end.
    expiring: usize,
    /// What ended sessions held whose process still maps the pool.
    pub(super) parked: HashMap<SessionId, Vec<Right>>,
    pub(super) namespaces: HashMap<u64, Arc<Namespace>, Keyed>,
    /// Who of them has a label of its own in metrics.
    labels: Labels,
}

impl State {
    pub(super) fn new(
        table: Arc<Table>,
        touches: Arc<Touches>,
        clock: Arc<dyn Clock>,
        pool: DramPool,
        policy: PolicyKind,
    ) -> Self {
        Self {
            table,
            touches,
            clock,
            pool,
            policy,
            orphans: HashMap::default(),
            filling_children: HashMap::default(),
            orders: BTreeMap::new(),
            quotas: BTreeMap::new(),
            expiring: 0,
            parked: HashMap::new(),
            namespaces: HashMap::default(),
            labels: Labels::default(),
        }
    }

    /// Notes that a block is being filled behind `parent`, which must stay meanwhile.
    pub(super) fn hold_parent(&mut self, key: BlockKey, parent: Option<SequenceHash>) {
        if let Some(hash) = parent {
            *self.filling_children.entry(BlockKey { hash, ..key }).or_default() += 1;
        }
    }

    pub(super) fn release_parent(&mut self, key: BlockKey, parent: Option<SequenceHash>) {
        let Some(parent) = parent.map(|hash| BlockKey { hash, ..key }) else { return };
        let count = self.filling_children.get_mut(&parent).expect("a block being filled is counted");
        *count -= 1;
        if *count == 0 {
            self.filling_children.remove(&parent);
        }
    }

    /// Whether a block is being filled behind this one.
    pub(super) fn is_awaited(&self, key: &BlockKey) -> bool {
        self.filling_children.contains_key(key)
    }

    /// Whether `parent` hangs together with the start of its sequence, or with what is held in any tier. A
    /// chain that was broken by an abort does not; without this check two reservations could be each other's
    /// parents.
    pub(super) fn is_rooted(
        &self,
        namespace: &Namespace,
        key: BlockKey,
        parent: Option<SequenceHash>,
    ) -> bool {
        let mut parent = parent;
        while let Some(hash) = parent {
            match self.table.parent_of_filling(&BlockKey { hash, ..key }) {
                None => return namespace.index.contains(hash),
                Some(above) => parent = above,
            }
        }
        true
    }

    /// Removes the trace of a block being filled, and with it what was committed behind it.
    pub(super) fn forget_filling(&mut self, key: BlockKey, parent: Option<SequenceHash>) {
        let mut gone = vec![(key, parent)];
        while let Some((key, parent)) = gone.pop() {
            self.table.forget(&key);
            if let Some(namespace) = self.namespaces.get(&key.namespace) {
                namespace.note_gone(key.hash, Reason::Abandoned, None, self.clock.now());
            }
            self.release_parent(key, parent);
            let orphans = self.orphans.remove(&key).unwrap_or_default();
            gone.extend(orphans.iter().map(|orphan| (orphan.key(), orphan.parent())));
        }
    }

    /// Enters a sealed block.
    pub(super) fn insert_sealed(&mut self, block: ImmutableBlock) {
        self.settle();
        let key = block.key();
        let parent = block.parent().map(|hash| BlockKey { hash, ..key });
        let bytes = block.slot().slot_bytes();
        // Blocks of one slot size cost about the same to make again.
        let weight = Weight { bytes: u32::try_from(bytes).unwrap_or(u32::MAX), cost: 1 };
        let (priority, expires_at) = (block.priority(), block.expires_at());
        self.expiring += usize::from(expires_at.is_some());
        let attributes = Attributes { group: key.namespace, weight, priority, expires_at };
        self.order(bytes).insert(key, parent, attributes);
        self.table.seal(block);
    }

    /// The order of eviction among slots of a size.
    fn order(&mut self, slot_bytes: u64) -> &mut Order<BlockKey, Keyed> {
        self.orders.entry(slot_bytes).or_insert_with(|| {
            let blocks = usize::try_from(self.pool.blocks_max(slot_bytes)).unwrap_or(usize::MAX);
            let mut order = Order::new(self.policy, blocks);
            for (group, (_, bytes)) in self.quotas.iter().filter(|(_, (slot, _))| *slot == slot_bytes) {
                order.set_quota(*group, *bytes);
            }
            order
        })
    }

    /// Enters a namespace.
    pub(super) fn open_namespace(&mut self, namespace: Arc<Namespace>) {
        self.labels.open(&namespace);
        self.namespaces.insert(namespace.id, namespace);
    }

    /// Namespaces as metrics show them.
    pub(super) fn rows(&self) -> Vec<Row> {
        self.labels.rows(self.namespaces.values())
    }

    /// Forgets namespaces.
    pub(super) fn retain_namespaces(&mut self, stays: impl Fn(&Namespace) -> bool) {
        for namespace in self.namespaces.values().filter(|namespace| !stays(namespace)) {
            self.labels.close(namespace);
        }
        self.namespaces.retain(|_, namespace| stays(namespace));
        self.quotas.retain(|id, _| self.namespaces.contains_key(id));
    }

    /// Bounds what a namespace, whose blocks take slots of one size, may have.
    pub(super) fn set_quota(&mut self, namespace: u64, slot_bytes: u64, bytes: u64) {
        self.quotas.insert(namespace, (slot_bytes, bytes));
        if let Some(order) = self.orders.get_mut(&slot_bytes) {
            order.set_quota(namespace, bytes);
        }
    }

    /// Takes a sealed block out: one that nobody has leased, or whichever.
    pub(super) fn remove_sealed(&mut self, key: BlockKey, leased: bool) -> Option<ImmutableBlock> {
        let block = self.table.take_sealed(&key, |block| leased || !block.is_leased())?;
        let slot_bytes = block.slot().slot_bytes();
        self.expiring -= usize::from(block.expires_at().is_some());
        if let Some(order) = self.orders.get_mut(&slot_bytes) {
            order.remove(key);
            if order.is_empty() {
                self.orders.remove(&slot_bytes);
            }
        }
        Some(block)
    }

    /// Tells the policies of a run of one namespace's blocks that were used.
    pub(super) fn touch(&mut self, run: &[BlockKey]) {
        let slot_bytes = run.iter().find_map(|key| {
            self.table.with(key, |found| match found {
                Found::Sealed(block) => Some(block.slot().slot_bytes()),
                Found::Missing | Found::Filling => None,
            })
        });
        if let Some(order) = slot_bytes.and_then(|bytes| self.orders.get_mut(&bytes)) {
            order.touch(run);
        }
    }

    /// Tells the policies of the uses in the queue.
    pub(super) fn drain_touches(&mut self) {
        while let Some(run) = self.touches.pop() {
            self.touch(&run);
        }
    }

    /// Makes sealed blocks the first to go, the first of these first.
    pub(super) fn demote(&mut self, keys: &[BlockKey]) {
        self.settle();
        for key in keys {
            let slot_bytes = self.table.sealed(key).map(|block| block.slot().slot_bytes());
            if let Some(order) = slot_bytes.and_then(|bytes| self.orders.get_mut(&bytes)) {
                order.demote(*key);
            }
        }
    }

    /// Brings the policies up to date, which ends an epoch.
    pub(super) fn settle(&mut self) {
        if !self.touches.is_empty() {
            self.drain_touches();
            self.touches.turn();
        }
    }

    /// The block that goes next to make room for one of the same slot size, and why. It may be leased by the
    /// time it is to go.
    pub(super) fn victim(&mut self, slot_bytes: u64, now: Duration) -> Option<(BlockKey, Why)> {
        self.settle();
        let State { table, filling_children, orders, namespaces, .. } = self;
        let mut may_go = |key: &BlockKey| {
            !filling_children.contains_key(key) && !is_pinned(namespaces, key) && table.is_unleased(key)
        };
        orders.get_mut(&slot_bytes)?.victim(now, &mut may_go)
    }

    /// Blocks that go next, of the next `blocks` of each slot size.
    pub(super) fn upcoming(&mut self, blocks: usize) -> Vec<BlockKey> {
        self.settle();
        self.orders.values().flat_map(|order| order.upcoming(blocks, &mut |_| true)).collect()
    }

    /// The block that goes next of a namespace that is over its quota.
    pub(super) fn victim_over_quota(&mut self, namespace: u64, slot_bytes: u64) -> Option<BlockKey> {
        if self.quotas.is_empty() || !self.orders.get(&slot_bytes)?.over_quota(namespace, 0) {
            return None;
        }
        self.settle();
        let State { table, filling_children, orders, namespaces, .. } = self;
        let mut may_go = |key: &BlockKey| {
            !filling_children.contains_key(key) && !is_pinned(namespaces, key) && table.is_unleased(key)
        };
        orders.get_mut(&slot_bytes)?.victim_of(namespace, &mut may_go)
    }

    /// A block whose time is up, and that may go.
    pub(super) fn victim_expired(&mut self, now: Duration) -> Option<BlockKey> {
        if self.expiring == 0 {
            return None;
        }
        let sizes: Vec<u64> = self.orders.keys().copied().collect();
        sizes.into_iter().find_map(|slot_bytes| match self.victim(slot_bytes, now) {
            Some((key, Why::Expired)) => Some(key),
            _ => None,
        })
    }

    /// What `look` gives for each sealed block that may go.
    pub(super) fn evictable<T>(&self, mut look: impl FnMut(&ImmutableBlock) -> Option<T>) -> Vec<T> {
        self.table.unleased(|block| {
            let key = block.key();
            if self.is_awaited(&key) || is_pinned(&self.namespaces, &key) { None } else { look(block) }
        })
    }
}

fn is_pinned(namespaces: &HashMap<u64, Arc<Namespace>, Keyed>, key: &BlockKey) -> bool {
    namespaces.get(&key.namespace).is_some_and(|namespace| namespace.pins.hold(&key.hash))
}
