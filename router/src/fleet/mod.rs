//! The workers a router knows: what they are, how they do, and what it has in flight with each.
//!
//! # Overview
//! The list is fixed at start. Each worker is asked to describe itself a few times a second, and right
//! after a request of ours began or ended there. In between, decisions add what the router itself has
//! sent since the last answer ([`Worker::facts`]), so that ten requests at once do not all see the same
//! idle worker.
//!
//! # States
//! ```text
//! Starting ──answers──► Ready ◄──answers── Lost
//!     │                   │                 ▲
//!     │ does not fit      └──no answer──────┘
//!     └──────► Refused ◄── (from any state, when an answer does not fit the definition)
//! ```
//! The first worker that answers defines what all others must be ([`Definition`]): model, fingerprint,
//! block size. The definition stays as long as the router runs: a worker that differs must not take over
//! because the right ones restart. A change of model or build therefore needs a new router.

mod admit;
mod flight;
mod worker;

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures::future::join_all;
use kelvin_proto::NamespaceSpec;
use tokio_util::sync::CancellationToken;

use crate::{
    config::Error,
    cost::{Role, WorkerFacts},
};

pub(crate) use flight::Flight;
pub(crate) use worker::{Health, Worker};

/// What every worker of this router must be.
#[derive(Debug, Clone)]
pub(crate) struct Definition {
    pub(crate) spec: NamespaceSpec,
    /// Who set it.
    pub(crate) defined_by: String,
}

/// The model as requests see it.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) name: String,
    pub(crate) block_tokens: u32,
    /// Longest prompt plus completion that every ready decode worker takes, tokens.
    pub(crate) context_tokens_max: u32,
}

/// All workers.
pub(crate) struct Fleet {
    workers: Vec<Arc<Worker>>,
    vocab_tokens: u32,
    definition: OnceLock<Definition>,
}

impl Fleet {
    /// A fleet of `endpoints`, none of them asked yet. `vocab_tokens` is what the router itself can read.
    pub(crate) fn new(endpoints: &[String], vocab_tokens: u32) -> Result<Self, Error> {
        let workers = endpoints
            .iter()
            .enumerate()
            .map(|(id, endpoint)| Worker::new(id, endpoint).map(Arc::new))
            .collect::<Result<_, _>>()?;
        Ok(Self { workers, vocab_tokens, definition: OnceLock::new() })
    }

    /// Keeps every worker's state fresh until `shutdown`.
    pub(crate) async fn watch(&self, every: Duration, shutdown: CancellationToken) {
        join_all(self.workers.iter().map(|worker| worker.watch(self, every, &shutdown))).await;
    }

    pub(crate) fn definition(&self) -> Option<&Definition> {
        self.definition.get()
    }

    /// The model, once a worker has defined it. The context limit is that of ready decode workers; with
    /// none of them ready, of the last known ones.
    pub(crate) fn model(&self) -> Option<Model> {
        let spec = &self.definition.get()?.spec;
        let limit = |ready_only: bool| {
            self.workers.iter().filter_map(|worker| worker.context_tokens_max(ready_only)).min()
        };
        Some(Model {
            name: spec.model.clone(),
            block_tokens: spec.block_tokens,
            context_tokens_max: limit(true).or_else(|| limit(false)).unwrap_or(u32::MAX),
        })
    }

    /// What [`decide`](crate::cost::decide) needs of every ready worker but the `excluded`.
    pub(crate) fn facts(&self, excluded: &[usize]) -> Vec<WorkerFacts> {
        let candidates = self.workers.iter().filter(|worker| !excluded.contains(&worker.id()));
        candidates.filter_map(|worker| worker.facts()).collect()
    }

    pub(crate) fn vocab_tokens(&self) -> u32 {
        self.vocab_tokens
    }

    pub(crate) fn worker(&self, id: usize) -> &Arc<Worker> {
        &self.workers[id]
    }

    pub(crate) fn workers(&self) -> &[Arc<Worker>] {
        &self.workers
    }

    pub(crate) fn has_ready(&self, role: Role) -> bool {
        self.workers.iter().any(|worker| worker.facts().is_some_and(|facts| facts.role == role))
    }

    /// Whether there is a decode worker that was ready before, and may be so again.
    pub(crate) fn has_known_decode(&self) -> bool {
        self.workers.iter().any(|worker| worker.context_tokens_max(false).is_some())
    }

    /// Slots of all ready decode workers, `usize::MAX` if one does not say; `None` if there is none.
    pub(crate) fn decode_slots(&self) -> Option<usize> {
        let decode = self.workers.iter().filter_map(|worker| worker.facts());
        let slots = decode.filter(|facts| facts.role == Role::Decode).map(|facts| facts.slots as usize);
        slots.map(|slots| if slots == 0 { usize::MAX } else { slots }).reduce(usize::saturating_add)
    }

    /// Number of workers by role and state, zeroes included.
    pub(crate) fn counts(&self) -> BTreeMap<(&'static str, &'static str), i64> {
        let roles = ["prefill", "decode", "unknown"];
        let states = ["starting", "ready", "lost", "refused"];
        let mut counts: BTreeMap<_, i64> =
            roles.iter().flat_map(|&role| states.iter().map(move |&state| ((role, state), 0))).collect();
        for worker in &self.workers {
            let view = worker.view();
            *counts.entry((view.role.map_or("unknown", Role::name), view.health.name())).or_default() += 1;
        }
        counts
    }
}
