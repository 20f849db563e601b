//! Collecting packs: the dead go, the sparse are written anew.
//!
//! # Crash consistency
//! A new pack is recorded before the copies move to it and the old one goes. A crash in between leaves blocks in
//! two packs, of which one is found to be dead later.

use std::sync::Arc;

use kelvin_tiering::PackId;

use super::object::{Objects, Pack};
use crate::{
    SequenceHash,
    store::{BlockKey, Namespace},
};

/// A pack of which less than this is live is written anew.
const LIVE_RATIO_MIN: f64 = 0.5;

impl Objects {
    /// Deletes dead packs of this store, and writes those anew of which little is live. Returns packs deleted,
    /// packs rewritten.
    pub(super) async fn collect(&self) -> (u64, u64) {
        let candidates: Vec<(PackId, Arc<Namespace>, bool)> = {
            let table = self.copies.lock();
            let worth =
                |pack: &Pack| pack.own && f64::from(pack.live) < LIVE_RATIO_MIN * f64::from(pack.blocks);
            let worth = table.more.by_id.iter().filter(|(_, pack)| worth(pack));
            worth.map(|(id, pack)| (*id, pack.namespace.clone(), pack.live > 0)).collect()
        };
        let (mut deleted, mut rewritten) = (0, 0);
        for (id, namespace, live) in candidates {
            if live {
                if !self.rewrite(id, &namespace).await {
                    continue;
                }
                rewritten += 1;
            }
            match self.packs().delete(namespace.persistent, id).await {
                Ok(()) => {
                    // What could not be read when the others moved.
                    self.counters.lost.add(self.forget_pack(&namespace, id));
                    deleted += 1;
                }
                Err(error) => tracing::warn!(%error, pack = %id, "a dead pack could not be deleted"),
            }
        }
        (deleted, rewritten)
    }

    /// Moves the live blocks of a pack into a new one.
    pub(super) async fn rewrite(&self, id: PackId, namespace: &Arc<Namespace>) -> bool {
        let persistent = namespace.persistent;
        let Ok(info) = self.packs().footer(persistent, id).await else { return false };
        let keys: Vec<BlockKey> = info
            .entries
            .iter()
            .map(|entry| BlockKey { namespace: namespace.id, hash: SequenceHash::from_bytes(entry.hash) })
            .filter(|key| self.copies.get(key).is_some_and(|copy| copy.pack == id))
            .collect();
        let live: Vec<[u8; 16]> = keys.iter().map(|key| key.hash.to_bytes()).collect();
        let fresh = match self.packs().rewrite(&info, &live).await {
            Ok(fresh) => fresh,
            Err(error) => {
                tracing::warn!(%error, pack = %id, "a pack could not be written anew");
                return false;
            }
        };
        self.record(&fresh);
        let mut table = self.copies.lock();
        let table = &mut *table;
        let blocks = fresh.entries.len() as u32;
        let pack = Pack { namespace: namespace.clone(), bytes: fresh.bytes, blocks, live: 0, own: true };
        table.more.by_id.insert(fresh.id, pack);
        for entry in &fresh.entries {
            let key = BlockKey { namespace: namespace.id, hash: SequenceHash::from_bytes(entry.hash) };
            if let Some(copy) = table.by_key.get_mut(&key)
                && copy.pack == id
            {
                table.more.remove(copy);
                (copy.pack, copy.offset) = (fresh.id, entry.offset);
                table.more.add(copy);
            }
        }
        true
    }
}
