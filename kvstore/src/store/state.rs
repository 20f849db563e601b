//! What stands behind a tenant's lock: sessions, blocks, leases, and the order of eviction.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use kelvin_proto::{Reason, Refusal};
use kelvin_tiering::{Policy, TailFirstLru, Weight};

use super::{
    ImmutableBlock, LeaseId, Namespace, SessionId,
    block::CompleteBlock,
    lease::{LeaseTable, Right},
    tenant::BlockKey,
};
use crate::SequenceHash;

pub(super) struct Session {
    pub(super) namespace: Arc<Namespace>,
    pub(super) name: String,
    pub(super) token: [u8; 16],
    /// Whether its process mapped the pool: then what it holds is in use until its socket closes, whatever
    /// its leases say.
    pub(super) maps_memory: bool,
    pub(super) leases: HashSet<LeaseId>,
    /// Of expired leases, while the process may still be at it.
    pub(super) quarantine: HashMap<LeaseId, Resting>,
    pub(super) expires_at: Duration,
}

/// What an expired lease held.
pub(super) struct Resting {
    pub(super) right: Right,
    /// When it is free, should its session still live.
    pub(super) until: Duration,
}

pub(super) enum Entry {
    Filling { parent: Option<SequenceHash> },
    Sealed(ImmutableBlock),
}

#[derive(Default)]
pub(super) struct State {
    pub(super) blocks: HashMap<BlockKey, Entry>,
    /// Blocks committed before their parents, by parent.
    pub(super) orphans: HashMap<BlockKey, Vec<CompleteBlock>>,
    /// Blocks being filled, counted at their parents.
    filling_children: HashMap<BlockKey, u32>,
    /// Sealed blocks in order of eviction, by bytes of a slot: only slots of one size can take each other's
    /// places.
    policies: HashMap<u64, TailFirstLru<BlockKey>>,
    pub(super) sessions: HashMap<SessionId, Session>,
    /// What ended sessions held whose process still maps the pool.
    pub(super) parked: HashMap<SessionId, Vec<Right>>,
    pub(super) leases: LeaseTable,
    pub(super) namespaces: HashMap<u64, Arc<Namespace>>,
    last_lease: LeaseId,
}

impl State {
    pub(super) fn next_lease(&mut self) -> LeaseId {
        self.last_lease += 1;
        self.last_lease
    }

    /// The session, or a refusal that makes its client open it again.
    pub(super) fn session(&mut self, id: SessionId) -> Result<&mut Session, Refusal> {
        self.sessions.get_mut(&id).ok_or_else(|| {
            Refusal::new(
                Reason::UnknownSession,
                "the session is not open (any more): open the namespace again",
            )
        })
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

    /// Whether `parent` hangs together with the start of its sequence, or with what is held in any tier. A
    /// chain that was broken by an abort does not; without this check two reservations could be each other's parents.
    pub(super) fn is_rooted(
        &self,
        namespace: &Namespace,
        key: BlockKey,
        parent: Option<SequenceHash>,
    ) -> bool {
        let mut parent = parent;
        while let Some(hash) = parent {
            match self.blocks.get(&BlockKey { hash, ..key }) {
                None => return namespace.index.contains(hash),
                Some(Entry::Sealed(_)) => return true,
                Some(Entry::Filling { parent: above }) => parent = *above,
            }
        }
        true
    }

    /// Removes the trace of a block being filled, and with it what was committed behind it.
    pub(super) fn forget_filling(&mut self, key: BlockKey, parent: Option<SequenceHash>) {
        let mut gone = vec![(key, parent)];
        while let Some((key, parent)) = gone.pop() {
            self.blocks.remove(&key);
            self.release_parent(key, parent);
            let orphans = self.orphans.remove(&key).unwrap_or_default();
            gone.extend(orphans.iter().map(|orphan| (orphan.key(), orphan.parent())));
        }
    }

    /// Enters a sealed block.
    pub(super) fn insert_sealed(&mut self, key: BlockKey, block: ImmutableBlock) {
        let parent = block.parent().map(|hash| BlockKey { hash, ..key });
        self.policies.entry(block.slot().slot_bytes()).or_default().insert(key, parent, Weight::default());
        self.blocks.insert(key, Entry::Sealed(block));
    }

    /// Takes a sealed block out.
    pub(super) fn remove_sealed(&mut self, key: BlockKey) -> Option<ImmutableBlock> {
        if !matches!(self.blocks.get(&key), Some(Entry::Sealed(_))) {
            return None;
        }
        let Some(Entry::Sealed(block)) = self.blocks.remove(&key) else { return None };
        let slot_bytes = block.slot().slot_bytes();
        if let Some(policy) = self.policies.get_mut(&slot_bytes) {
            policy.remove(key);
            if policy.is_empty() {
                self.policies.remove(&slot_bytes);
            }
        }
        Some(block)
    }

    /// Notes the use of a run of one namespace's blocks.
    pub(super) fn touch(&mut self, run: &[BlockKey]) {
        let Some(Entry::Sealed(first)) = run.first().and_then(|key| self.blocks.get(key)) else { return };
        if let Some(policy) = self.policies.get_mut(&first.slot().slot_bytes()) {
            policy.touch(run);
        }
    }

    /// Whether a block is sealed and may go now.
    pub(super) fn may_evict(&self, key: &BlockKey) -> bool {
        Self::is_free(key, &self.blocks, &self.filling_children)
    }

    fn is_free(
        key: &BlockKey,
        blocks: &HashMap<BlockKey, Entry>,
        filling_children: &HashMap<BlockKey, u32>,
    ) -> bool {
        let Some(Entry::Sealed(block)) = blocks.get(key) else { return false };
        !block.is_leased() && !filling_children.contains_key(key)
    }

    /// The block that goes next to make room for one of the same slot size.
    pub(super) fn victim(&mut self, slot_bytes: u64) -> Option<BlockKey> {
        let State { blocks, filling_children, policies, .. } = self;
        policies.get_mut(&slot_bytes)?.victim(&mut |key| Self::is_free(key, blocks, filling_children))
    }

    /// Sealed blocks of other slot sizes that may go.
    pub(super) fn evictable_others(
        &self,
        slot_bytes: u64,
    ) -> impl Iterator<Item = (BlockKey, &ImmutableBlock)> {
        self.blocks.iter().filter_map(move |(key, entry)| match entry {
            Entry::Sealed(block) if block.slot().slot_bytes() != slot_bytes && self.may_evict(key) => {
                Some((*key, block))
            }
            _ => None,
        })
    }
}
