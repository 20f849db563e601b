//! What a tier holds: its copies by block, and the order in which they go.
//!
//! # Locking
//! One lock a tier, held to look things up and to note what went, never across I/O. It is taken after a tenant's
//! lock and before an index's or an event log's.

use std::{collections::HashMap, sync::Arc, time::Duration};

use kelvin_tiering::{Attributes, Order, Tier, Why};
use parking_lot::{Mutex, MutexGuard};

use crate::{
    SequenceHash,
    insight::Reason,
    store::{
        BlockKey, Keep, Namespace,
        events::{Event, EventKind},
        table::Keyed,
    },
};

/// A copy of a block in some tier.
pub(super) trait Held: Clone {
    fn namespace(&self) -> &Arc<Namespace>;
    fn parent(&self) -> Option<SequenceHash>;
    /// Whether both are one copy, in one place.
    fn is_same(&self, other: &Self) -> bool;
}

/// The copies of a tier, and `M`, what it keeps about them besides.
pub(super) struct Copies<C, M>(Mutex<Table<C, M>>);

/// What is behind the lock.
pub(super) struct Table<C, M> {
    pub(super) by_key: HashMap<BlockKey, C, Keyed>,
    pub(super) order: Order<BlockKey, Keyed>,
    pub(super) more: M,
}

impl<C: Held, M> Copies<C, M> {
    pub(super) fn new(order: Order<BlockKey, Keyed>, more: M) -> Self {
        Self(Mutex::new(Table { by_key: HashMap::default(), order, more }))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Table<C, M>> {
        self.0.lock()
    }

    /// The copy of a block.
    pub(super) fn get(&self, key: &BlockKey) -> Option<C> {
        self.lock().by_key.get(key).cloned()
    }

    pub(super) fn contains(&self, key: &BlockKey) -> bool {
        self.lock().by_key.contains_key(key)
    }

    pub(super) fn len(&self) -> u64 {
        self.lock().by_key.len() as u64
    }

    /// The keys of all copies, in no order that means anything.
    pub(super) fn keys(&self) -> Vec<BlockKey> {
        self.lock().by_key.keys().copied().collect()
    }

    /// Notes the use of a prefix.
    pub(super) fn touch(&self, prefix: &[BlockKey]) {
        self.lock().order.touch(prefix);
    }

    /// Makes copies the first to go, the first of these first.
    pub(super) fn demote(&self, keys: &[BlockKey]) {
        let mut table = self.lock();
        keys.iter().for_each(|key| table.order.demote(*key));
    }

    /// How much a copy is worth.
    pub(super) fn keep(&self, key: &BlockKey) -> Keep {
        self.lock().order.attributes(key).map_or_else(Keep::default, |attributes| Keep {
            priority: attributes.priority,
            expires_at: attributes.expires_at,
        })
    }

    /// The name of the order.
    pub(super) fn policy(&self) -> &'static str {
        self.lock().order.kind().name()
    }

    /// The copies that go next, for the tier below.
    pub(super) fn upcoming(&self, count: usize) -> Vec<BlockKey> {
        self.lock().order.upcoming(count, &mut |_| true)
    }

    pub(super) fn set_quota(&self, group: u64, bytes: u64) {
        self.lock().order.set_quota(group, bytes);
    }
}

impl<C: Held, M> Table<C, M> {
    /// Enters a copy, last in order; returns the one that the block had before.
    pub(super) fn insert(&mut self, key: BlockKey, copy: C, attributes: Attributes) -> Option<C> {
        let parent = copy.parent().map(|hash| BlockKey { hash, ..key });
        self.order.insert(key, parent, attributes);
        self.by_key.insert(key, copy)
    }

    /// Takes the copy of a block out; with `only`, just if it is that one.
    pub(super) fn remove(&mut self, key: &BlockKey, only: Option<&C>) -> Option<C> {
        let present = self.by_key.get(key)?;
        if only.is_some_and(|only| !present.is_same(only)) {
            return None;
        }
        self.order.remove(*key);
        self.by_key.remove(key)
    }

    /// The copy that goes next, of those that nobody pinned.
    pub(super) fn victim(&mut self, now: Duration) -> Option<(BlockKey, Why)> {
        let Self { by_key, order, .. } = self;
        order.victim(now, &mut |key| by_key.get(key).is_none_or(|copy| copy.namespace().may_drop(key)))
    }
}

/// Tells the readers of a namespace's events of a new copy, which its index shows.
pub(super) fn announce(tier: Tier, key: &BlockKey, copy: &impl Held) {
    let (kind, hash, parent) = (EventKind::Stored, key.hash, copy.parent());
    copy.namespace().events.push(Event { kind, hash, parent, tier });
}

/// Takes a copy that was in `tier` out of its namespace's index, and notes why.
pub(super) fn withdraw(tier: Tier, key: &BlockKey, copy: &impl Held, why: Reason, now: Duration) {
    let namespace = copy.namespace();
    namespace.index.remove(key.hash, tier as u32);
    let (kind, hash, parent) = (EventKind::Removed, key.hash, copy.parent());
    namespace.events.push(Event { kind, hash, parent, tier });
    namespace.note_gone(key.hash, why, Some(tier), now);
}
