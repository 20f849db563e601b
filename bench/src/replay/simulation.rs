//! A replay: requests arrive, a router places them, engines serve them, and the clock jumps from one event to
//! the next.

use anyhow::ensure;
use std::{collections::VecDeque, time::Duration};

use super::clock::{EventQueue, Nanos};
use super::engine::{Engine, Outcome, Stored};
use super::progress::Progress;
use super::routers::{Router, RouterKind, View};
use super::store::Source;
use super::workload::{ENGINE_BLOCK_TOKENS, Workload};
use super::world::{Cluster, Due, World};

/// What happens.
#[derive(Debug)]
enum Event {
    Arrival(u32),
    /// A batch is through.
    PassEnd(usize),
    /// Blocks of a worker are in the store.
    Saved(usize),
    /// Something on its way has arrived.
    World(Due),
}

/// What became of a request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Served {
    pub(crate) arrived_at: Nanos,
    pub(crate) first_token_at: Option<Nanos>,
    pub(crate) done_at: Option<Nanos>,
    pub(crate) prompt_tokens: u64,
    pub(crate) output_tokens: u64,
    pub(crate) device_tokens: u64,
    pub(crate) loaded_tokens: u64,
}

/// Everything of a replay.
#[derive(Debug)]
pub(crate) struct Replayed {
    pub(crate) served: Vec<Served>,
    pub(crate) preemptions: u64,
    /// From each of [`Source::ALL`].
    pub(crate) loaded_tokens: [u64; Source::ALL.len()],
    /// Blocks that were dropped before they were copied to a colder tier.
    pub(crate) uncopied: u64,
}

/// What the router noted of a request in flight.
#[derive(Clone, Copy, Debug, Default)]
struct Flight {
    worker: u32,
    /// Prompt tokens that waited there when it was sent.
    before: u64,
    compute_tokens: u64,
    load_tokens: u64,
    blocks: u64,
}

/// Replays a workload on a cluster.
///
/// # Errors
/// If a request is larger than the memory of an engine.
pub(crate) fn replay(
    workload: &Workload<'_>,
    cluster: &Cluster,
    router: RouterKind,
    seed: u64,
) -> anyhow::Result<Replayed> {
    Simulation::new(workload, cluster, router, seed).run()
}

struct Simulation<'a> {
    workload: &'a Workload<'a>,
    queue: EventQueue<Event>,
    router: Router,
    world: World,
    engines: Vec<Engine>,
    views: Vec<View>,
    /// Blocks on their way into the store, of each worker.
    saving: Vec<VecDeque<Vec<Stored>>>,
    /// Requests so far.
    arrived: usize,
    flights: Vec<Flight>,
    served: Vec<Served>,
    /// Whether somebody asks who has which blocks.
    wants_index: bool,
}

impl<'a> Simulation<'a> {
    fn new(workload: &'a Workload<'a>, cluster: &Cluster, router: RouterKind, seed: u64) -> Self {
        let router = Router::new(router, seed);
        let jobs = workload.jobs().len();
        Self {
            workload,
            queue: EventQueue::new(),
            wants_index: router.wants_index() || cluster.shares_device,
            router,
            world: World::new(cluster),
            engines: (0..cluster.workers).map(|worker| Engine::new(worker, cluster.device_blocks)).collect(),
            views: (0..cluster.workers).map(|_| View::default()).collect(),
            saving: vec![VecDeque::new(); cluster.workers],
            arrived: 0,
            flights: vec![Flight::default(); jobs],
            served: vec![Served::default(); jobs],
        }
    }

    fn run(mut self) -> anyhow::Result<Replayed> {
        let mut progress = Progress::new(self.router.kind().name());
        if let Some(first) = self.workload.jobs().first() {
            self.queue.push(first.at, Event::Arrival(0));
        }
        while let Some((now, event)) = self.queue.pop() {
            match event {
                Event::Arrival(job) => self.arrive(job, now)?,
                Event::PassEnd(worker) => self.end_pass(worker, now),
                Event::Saved(worker) => {
                    let blocks = self.saving[worker].pop_front().expect("what is saved was on its way");
                    self.world.saved(worker, &blocks, now);
                }
                Event::World(Due::Moved(moved)) => self.world.moved(*moved, now),
                Event::World(Due::Loaded(ticket)) => {
                    let worker = self.world.loaded(ticket);
                    self.engines[worker].loaded(ticket, now);
                    self.start_pass(worker, now);
                }
            }
            self.world.due().for_each(|(at, due)| self.queue.push(at, Event::World(due)));
            progress.note(self.arrived, self.workload.jobs().len(), now);
        }
        let unfinished = self.served.iter().filter(|served| served.done_at.is_none()).count();
        assert_eq!(unfinished, 0, "every request is served");
        Ok(Replayed {
            served: self.served,
            preemptions: self.engines.iter().map(Engine::preemptions).sum(),
            loaded_tokens: self.world.loaded_tokens(),
            uncopied: self.world.store.uncopied(),
        })
    }

    fn arrive(&mut self, job: u32, now: Nanos) -> anyhow::Result<()> {
        // The next one only now: the queue stays small.
        if let Some(next) = self.workload.jobs().get(job as usize + 1) {
            self.queue.push(next.at, Event::Arrival(job + 1));
        }
        self.arrived += 1;
        let request = self.workload.request(job);
        let (prompt_tokens, output_tokens) = (request.prompt_tokens, request.output_tokens);
        ensure!(
            self.engines[0].fits(prompt_tokens + output_tokens),
            "request {job} has {prompt_tokens} + {output_tokens} tokens, more than the memory of an engine"
        );
        let keys = self.workload.keys(job);
        let pick = self.router.pick(prompt_tokens, &keys, &self.views, &self.world);
        let flight = Flight {
            worker: pick.worker as u32,
            before: self.views[pick.worker].queued_tokens,
            compute_tokens: pick.compute_tokens,
            load_tokens: pick.load_tokens,
            blocks: prompt_tokens.div_ceil(ENGINE_BLOCK_TOKENS),
        };
        let view = &mut self.views[pick.worker];
        view.queued_tokens += flight.compute_tokens;
        view.blocks += flight.blocks;
        view.streams += 1;
        self.flights[job as usize] = flight;
        self.served[job as usize] =
            Served { arrived_at: now, prompt_tokens, output_tokens, ..Served::default() };
        self.engines[pick.worker].arrive(job, keys.into(), prompt_tokens, output_tokens);
        self.start_pass(pick.worker, now);
        Ok(())
    }

    fn start_pass(&mut self, worker: usize, now: Nanos) {
        let pass = self.engines[worker].start(now, &mut self.world);
        let stored = self.engines[worker].take_stored();
        let evicted = self.engines[worker].take_evicted();
        if self.wants_index {
            evicted.into_iter().for_each(|key| self.world.fleet.evicted(worker, key));
            for run in &stored {
                let (parent, keys) = run.run();
                self.world.fleet.stored(worker, parent, keys, now);
            }
        }
        if let Some(pass) = pass {
            for outcome in pass.admitted {
                self.note(outcome, now);
            }
            self.queue.push(pass.ends_at, Event::PassEnd(worker));
            let new: Vec<_> = stored.into_iter().filter(|run| run.is_new).collect();
            if self.world.has_store() && !new.is_empty() {
                let blocks: usize = new.iter().map(|run| run.range.len()).sum();
                let tokens = blocks as u64 * ENGINE_BLOCK_TOKENS;
                let saved_at = self.world.links.save(worker, tokens, pass.ends_at);
                self.saving[worker].push_back(new);
                self.queue.push(saved_at, Event::Saved(worker));
            }
        }
    }

    fn end_pass(&mut self, worker: usize, now: Nanos) {
        let mut outcomes = Vec::new();
        self.engines[worker].finish(&mut outcomes);
        for outcome in outcomes {
            self.note(outcome, now);
        }
        self.start_pass(worker, now);
    }

    fn note(&mut self, outcome: Outcome, now: Nanos) {
        match outcome {
            Outcome::Admitted { job, device_tokens, loaded_tokens } => {
                let served = &mut self.served[job as usize];
                (served.device_tokens, served.loaded_tokens) = (device_tokens, loaded_tokens);
            }
            Outcome::FirstToken { job } => {
                let served = &mut self.served[job as usize];
                served.first_token_at = Some(now);
                let flight = self.flights[job as usize];
                let view = &mut self.views[flight.worker as usize];
                view.queued_tokens -= flight.compute_tokens;
                // All that a router sees of an engine: when it sent what, and when the first token came.
                let took = Duration::from_nanos(now - served.arrived_at);
                view.learning.first_token(flight.before + flight.compute_tokens, flight.load_tokens, took);
            }
            Outcome::Done { job } => {
                let served = &mut self.served[job as usize];
                served.done_at = Some(now);
                let flight = self.flights[job as usize];
                let view = &mut self.views[flight.worker as usize];
                view.blocks -= flight.blocks;
                view.streams -= 1;
                if let Some(first_token_at) = served.first_token_at {
                    view.learning.steps(served.output_tokens - 1, Duration::from_nanos(now - first_token_at));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
