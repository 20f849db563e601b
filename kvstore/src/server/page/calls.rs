//! Recent `Match` and `Acquire` calls, for the page: counts and hashes, never tokens.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    SequenceHash,
    page::Recent,
    store::{Namespace, Store, Tenant, What},
};

const SHOWN: usize = 200;

/// One call. Names come when it is shown: here they would cost every call.
#[derive(Debug, Clone)]
pub(in crate::server) struct Seen {
    number: u64,
    at: Duration,
    verb: &'static str,
    /// Where the tenant stands in the store.
    tenant: usize,
    pub(super) namespace: u64,
    blocks: u64,
    hits: u64,
    filling: u64,
    block_tokens: u64,
    took: Duration,
    last: Option<SequenceHash>,
    /// With why it was not there when it was asked for.
    pub(super) first_missing: Option<(SequenceHash, Option<What>)>,
}

/// What a call came to.
pub(in crate::server) struct Outcome<'a> {
    pub(in crate::server) verb: &'static str,
    pub(in crate::server) hashes: &'a [SequenceHash],
    pub(in crate::server) hits: usize,
    pub(in crate::server) filling: usize,
    /// Why the first block behind these was not there.
    pub(in crate::server) missed: Option<What>,
}

/// The calls.
#[derive(Debug, Default)]
pub(in crate::server) struct Calls {
    next: AtomicU64,
    recent: Recent<Seen>,
}

impl Calls {
    /// Adds a call that ended at the first of `times` and took the second.
    pub(in crate::server) fn note(
        &self,
        tenant: &Tenant,
        namespace: &Namespace,
        (now, took): (Duration, Duration),
        outcome: Outcome<'_>,
    ) {
        let Outcome { verb, hashes, hits, filling, missed: why } = outcome;
        let missed = (hashes.len() - hits.min(hashes.len())) as u64;
        if hashes.is_empty() || !self.recent.wants(now, took.as_micros() as u64, missed) {
            return;
        }
        let seen = Seen {
            number: self.next.fetch_add(1, Ordering::Relaxed),
            at: now,
            verb,
            tenant: tenant.place,
            namespace: namespace.id,
            blocks: hashes.len() as u64,
            hits: hits as u64,
            filling: filling as u64,
            block_tokens: namespace.spec.block_tokens.into(),
            took,
            last: hashes.last().copied(),
            first_missing: hashes.get(hits + filling).map(|hash| (*hash, why)),
        };
        self.recent.push(now, took.as_micros() as u64, missed, seen);
    }

    /// The lists, as the page shows them.
    pub(super) fn lists(&self, store: &Store) -> Value {
        let lists = self.recent.lists(store.uptime(), SHOWN);
        let all = |list: &[Seen]| list.iter().map(|seen| seen.json(store)).collect::<Vec<_>>();
        json!({
            "kind": "store",
            "recent": all(&lists.recent),
            "slowest": all(&lists.slowest),
            "worst": all(&lists.worst),
        })
    }

    pub(super) fn find(&self, id: &str) -> Option<Seen> {
        let number: u64 = id.parse().ok()?;
        self.recent.find(|seen| seen.number == number)
    }
}

impl Seen {
    /// Time since it was answered.
    pub(super) fn age(&self, store: &Store) -> Duration {
        store.uptime().saturating_sub(self.at)
    }

    pub(super) fn json(&self, store: &Store) -> Value {
        let tenant = store.tenants().nth(self.tenant);
        let namespace = tenant.and_then(|tenant| tenant.namespace(self.namespace).ok());
        json!({
            "id": self.number.to_string(),
            "age_ms": self.age(store).as_millis() as u64,
            "verb": self.verb,
            "tenant": tenant.map(|tenant| tenant.name()),
            "model": namespace.map(|namespace| namespace.spec.model.clone()),
            "namespace_id": self.namespace.to_string(),
            "blocks": self.blocks,
            "hit_blocks": self.hits,
            "filling_blocks": self.filling,
            "tokens": self.blocks * self.block_tokens,
            "hit_tokens": self.hits * self.block_tokens,
            "duration_us": self.took.as_micros() as u64,
            "last_hash": self.last.map(|hash| hash.to_string()),
            "first_missing_hash": self.first_missing.as_ref().map(|(hash, _)| hash.to_string()),
        })
    }
}
