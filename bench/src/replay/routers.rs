//! Who gets a request: the routers that are compared.

use kelvin_router::{Candidate, Held, bench_support::Learning, choose};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::store::Source;
use super::workload::ENGINE_BLOCK_TOKENS;
use super::world::World;

/// The routers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum RouterKind {
    /// One worker after the other
    RoundRobin,
    /// As NVIDIA Dynamo's router weighs it: blocks to compute and blocks in use
    Dynamo,
    /// Expected time to first token
    Kelvin,
}

impl RouterKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "round-robin",
            Self::Dynamo => "dynamo",
            Self::Kelvin => "kelvin",
        }
    }
}

/// What a router knows of a worker: what it sent there and what came back.
#[derive(Debug, Default)]
pub(crate) struct View {
    /// Prompt tokens to compute of requests without a first token.
    pub(crate) queued_tokens: u64,
    /// Prompt blocks of requests in flight.
    pub(crate) blocks: u64,
    pub(crate) streams: u32,
    pub(crate) learning: Learning,
}

/// A decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pick {
    pub(crate) worker: usize,
    /// Prompt tokens the router expects to be computed there.
    pub(crate) compute_tokens: u64,
    /// And to be loaded from outside of its memory.
    pub(crate) load_tokens: u64,
}

/// See the module.
pub(crate) struct Router {
    kind: RouterKind,
    next: usize,
    rng: SmallRng,
}

impl Router {
    pub(crate) fn new(kind: RouterKind, seed: u64) -> Self {
        Self { kind, next: 0, rng: SmallRng::seed_from_u64(seed) }
    }

    pub(crate) fn kind(&self) -> RouterKind {
        self.kind
    }

    /// Whether it has to know who has which blocks.
    pub(crate) fn wants_index(&self) -> bool {
        self.kind != RouterKind::RoundRobin
    }

    pub(crate) fn pick(&mut self, prompt_tokens: u64, keys: &[u64], views: &[View], world: &World) -> Pick {
        match self.kind {
            RouterKind::RoundRobin => {
                let worker = self.next % views.len();
                self.next += 1;
                Pick { worker, compute_tokens: prompt_tokens, load_tokens: 0 }
            }
            RouterKind::Dynamo => self.dynamo(prompt_tokens, keys, views, world),
            RouterKind::Kelvin => self.kelvin(prompt_tokens, keys, views, world),
        }
    }

    /// The documented cost (docs.nvidia.com/dynamo, "Routing Concepts"; weights at their defaults of one, no
    /// queue in the router): prompt blocks that wait there and of the request itself, less those cached
    /// there, plus blocks in use there with the request's. The least wins.
    fn dynamo(&mut self, prompt_tokens: u64, keys: &[u64], views: &[View], world: &World) -> Pick {
        let overlaps = world.fleet.prefixes(keys);
        let block = ENGINE_BLOCK_TOKENS as f64;
        let cost = |(view, overlap): (&View, &usize)| {
            let prefill = (view.queued_tokens + prompt_tokens) as f64 / block - *overlap as f64;
            prefill.max(0.0) + view.blocks as f64
        };
        let costs: Vec<f64> = views.iter().zip(&overlaps).map(cost).collect();
        let least = costs.iter().copied().fold(f64::INFINITY, f64::min);
        let equal: Vec<usize> = (0..costs.len()).filter(|worker| costs[*worker] <= least).collect();
        let worker = equal[self.rng.random_range(0..equal.len())];
        let cached = overlaps[worker] as u64 * ENGINE_BLOCK_TOKENS;
        Pick { worker, compute_tokens: prompt_tokens.saturating_sub(cached), load_tokens: 0 }
    }

    fn kelvin(&mut self, prompt_tokens: u64, keys: &[u64], views: &[View], world: &World) -> Pick {
        let own = world.fleet.prefixes(keys);
        let runs = world.outside(keys);
        // Workers of a node that have as much of it see the same places.
        let mut places: Vec<Vec<Held>> = Vec::new();
        let mut of_node: (u16, Vec<(usize, usize)>) = (0, Vec::new());
        let held: Vec<usize> = (0..views.len())
            .map(|worker| {
                let node = world.links.node(worker);
                if of_node.0 != node {
                    of_node.0 = node;
                    of_node.1.clear();
                }
                if let Some((_, known)) = of_node.1.iter().find(|(other, _)| *other == own[worker]) {
                    return *known;
                }
                let place = |(source, tokens): (Source, u64)| {
                    let (latency_us, us_per_token) = world.price(worker, source, tokens);
                    Held { tokens, us_per_token, latency_us }
                };
                places.push(world.behind(&runs, own[worker], worker).into_iter().map(place).collect());
                of_node.1.push((own[worker], places.len() - 1));
                places.len() - 1
            })
            .collect();
        let candidates = views.iter().enumerate().map(|(worker, view)| {
            let (tokens_per_second, step_us) = view.learning.terms();
            Candidate {
                worker,
                queued_tokens: view.queued_tokens,
                streams: view.streams,
                own_tokens: own[worker] as u64 * ENGINE_BLOCK_TOKENS,
                held: &places[held[worker]],
                skip_tokens: 0,
                tokens_per_second,
                step_us,
            }
        });
        let choice = choose(prompt_tokens, candidates, &mut self.rng).expect("there are workers");
        Pick {
            worker: choice.worker,
            compute_tokens: choice.expected.compute_tokens,
            load_tokens: choice.expected.load_tokens,
        }
    }
}
