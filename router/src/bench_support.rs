//! A router's decisions without a router: for the benches. No part of the library's promises.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use kelvin_kvstore::{Namespace, SequenceHash, client::Error};
use rand::{Rng, rngs::SmallRng};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    backend::{BackendSpec, Learnt, Placement, Published},
    directory::{Directory, Scope},
    feeds::{Followed, Rates},
    metrics::Metrics,
};

/// Requests in work while more are decided.
const IN_WORK: usize = 512;

/// Backends whose caches are known by their events, and requests for them.
pub struct Decisions {
    directory: Directory,
    placement: Placement,
    scope: Scope,
    block_tokens: usize,
    in_work: VecDeque<Box<dyn std::any::Any>>,
}

impl Decisions {
    /// So many backends with blocks of so many tokens, at loads that `rng` makes.
    ///
    /// # Panics
    /// With more backends than a router can have.
    pub fn new(backends: u32, block_tokens: u32, budget_bytes: usize, rng: &mut impl Rng) -> Self {
        let specs = (0..backends).map(|n| BackendSpec::new(format!("http://127.0.0.1:{}", 1 + n)));
        let mut placement = Placement::new("m", specs.collect(), block_tokens);
        for at in 0..backends as usize {
            placement.measured(
                at,
                rng.random_range(8_000..12_000),
                Duration::from_millis(rng.random_range(8..12)),
            );
        }
        Self {
            directory: Directory::new(&[7; 16], budget_bytes),
            placement,
            scope: Scope::new("m", &[]),
            block_tokens: block_tokens as usize,
            in_work: VecDeque::new(),
        }
    }

    /// Hashes of a prompt's whole blocks.
    pub fn hash(&self, tokens: &[u32]) -> Vec<SequenceHash> {
        self.directory.hash_tokens(&self.scope, tokens, self.block_tokens)
    }

    /// A backend has these blocks from now on; whether there was room.
    pub fn store(&self, backend: u32, parent: Option<SequenceHash>, hashes: &[SequenceHash]) -> bool {
        self.directory.stored(backend, parent, hashes)
    }

    /// Who gets a prompt, from its tokens on; it is in work there until [`IN_WORK`] others are.
    pub fn decide(&mut self, tokens: &[u32], rng: &mut SmallRng) -> Option<u32> {
        let (backend, call) = self.placement.decide(&self.directory, &self.scope, tokens, rng)?;
        self.in_work.push_back(Box::new(call));
        if self.in_work.len() > IN_WORK {
            self.in_work.pop_front();
        }
        Some(backend)
    }

    /// Blocks known.
    pub fn blocks(&self) -> usize {
        self.directory.len()
    }

    /// Bytes of that knowledge.
    pub fn memory_bytes(&self) -> usize {
        self.directory.memory_bytes()
    }

    /// Runs that found no room.
    pub fn refused(&self) -> u64 {
        self.directory.refused()
    }
}

/// What a router learns of a server from its answers.
#[derive(Debug, Default)]
pub struct Learning {
    learnt: Learnt,
    published: Published,
}

impl Learning {
    /// The first token of a prompt came `took` after it was sent behind which `tokens` had to be computed, those of
    /// prompts sent before included, and `loaded` were to be loaded.
    pub fn first_token(&self, tokens: u64, loaded: u64, took: Duration) {
        self.learnt.first_token(tokens, loaded, took, &self.published);
    }

    /// A stream took so long for so many steps.
    pub fn steps(&self, steps: u64, took: Duration) {
        self.learnt.steps(steps, took, &self.published);
    }

    /// Prompt tokens it computes a second, and microseconds of its steps.
    pub fn terms(&self) -> (Option<f64>, Option<f64>) {
        let terms = self.published.terms();
        (terms.tokens_per_second, terms.step_us)
    }
}

/// A store's namespace, followed as a router follows its workers' store.
pub struct Following {
    namespace: Namespace,
    index: Arc<Followed>,
    _events: AbortOnDropHandle<()>,
}

impl Following {
    /// Follows it, in an index of at most so many bytes. In a runtime.
    pub fn start(namespace: Namespace, budget_bytes: usize) -> Self {
        let index = Arc::new(Followed::new(budget_bytes));
        let (run, watched) = (index.clone(), namespace.clone());
        let events = tokio::spawn(async move {
            let watch = |cursor, incarnation| watched.watch(cursor, incarnation);
            run.run(0, &Metrics::new(), watch).await;
        });
        Self { namespace, index, _events: AbortOnDropHandle::new(events) }
    }

    /// Blocks known.
    pub fn blocks(&self) -> usize {
        self.index.holdings.blocks()
    }

    /// How many of a prompt's blocks are stored, by the index; `None` where that is not known exactly.
    pub fn indexed(&self, tokens: &[u32]) -> Option<usize> {
        let hashes = self.namespace.hash_blocks(tokens, &[]);
        self.index.holdings.matched(&hashes, &Rates::default()).map(|(blocks, _)| blocks)
    }

    /// The same by the store's own word.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn matched(&self, tokens: &[u32]) -> Result<usize, Error> {
        let hashes = self.namespace.hash_blocks(tokens, &[]);
        Ok(self.namespace.match_prefix(&hashes).await?.blocks as usize)
    }
}
