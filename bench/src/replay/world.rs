//! What the engines share: the index of their memories, the store behind them, and the ways between.
//!
//! A load begins with what the mover's lines say that it will take; what is on its way is known to be there when its
//! last piece is. Pieces are blocks of the store, as its transfers are. Two that want the same block from a cold
//! tier wait for one transfer.

use std::collections::HashMap;
use std::ops::Range;

use kelvin_tiering::PolicyKind;
use kelvin_tiering::mover::Direction;

use super::clock::Nanos;
use super::engine::{Load, Outside, Stored};
use super::fleet::{Fleet, fleet};
use super::lanes::{Lanes, Moved};
use super::links::{Links, Rates};
use super::offload::Offload;
use super::store::{Capacity, Outgoing, Plan, Run, Source, Store};
use super::timing::prefill_ms;
use super::workload::ENGINE_BLOCK_TOKENS;

/// How a cluster is built.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cluster {
    pub(crate) workers: usize,
    pub(crate) workers_per_node: usize,
    /// Blocks in the memory of each engine.
    pub(crate) device_blocks: usize,
    pub(crate) capacity: Capacity,
    /// Blocks of an engine in a block of the store.
    pub(crate) stride: usize,
    /// See [`Plan::admission`].
    pub(crate) admission: u8,
    /// Whether an engine reads blocks from the memory of another.
    pub(crate) shares_device: bool,
    pub(crate) policy: PolicyKind,
    pub(crate) rates: Rates,
}

/// What the world does at some time.
#[derive(Debug)]
pub(crate) enum Due {
    /// A load is done.
    Loaded(u32),
    /// A transfer through a lane is.
    Moved(Box<Moved<Piece>>),
}

/// What goes through a lane.
#[derive(Debug)]
pub(crate) enum Piece {
    /// Of a load: from the DRAM of another node.
    Read(u32),
    /// From a cold tier into DRAM, for all loads that wait for it.
    Onboard { key: u64, parent: Option<u64> },
    /// To a colder tier.
    Offload(Outgoing),
}

/// A load under way.
#[derive(Debug)]
struct Loading {
    worker: usize,
    /// Pieces that are not there yet.
    left: u32,
    /// When the worker's link is through with it.
    linked_at: Nanos,
}

/// See the module.
pub(crate) struct World {
    pub(crate) fleet: Box<dyn Fleet>,
    pub(crate) store: Store,
    pub(crate) links: Links,
    lanes: Lanes<Piece>,
    loads: HashMap<u32, Loading>,
    next_ticket: u32,
    /// Blocks on their way from cold tiers, and the loads that wait for each.
    onboarding: HashMap<u64, Vec<u32>>,
    due: Vec<(Nanos, Due)>,
    has_store: bool,
    shares_device: bool,
    loaded_tokens: [u64; Source::ALL.len()],
    offloads: Vec<Offload>,
}

impl World {
    pub(crate) fn new(cluster: &Cluster) -> Self {
        let Cluster { capacity, policy, stride, admission, .. } = *cluster;
        let links = Links::new(cluster.rates, cluster.workers, cluster.workers_per_node);
        let store = Store::new(Plan { capacity, policy, stride, admission }, links.nodes());
        let block_bytes = stride as f64 * ENGINE_BLOCK_TOKENS as f64 * cluster.rates.bytes_per_token;
        let offloads = store.cold().map(|to| Offload::new(to, links.nodes(), block_bytes)).collect();
        Self {
            fleet: fleet(cluster.workers),
            store,
            lanes: Lanes::new(cluster.rates, links.nodes()),
            links,
            loads: HashMap::new(),
            next_ticket: 0,
            onboarding: HashMap::new(),
            due: Vec::new(),
            has_store: cluster.capacity.dram > 0,
            shares_device: cluster.shares_device,
            loaded_tokens: [0; Source::ALL.len()],
            offloads,
        }
    }

    pub(crate) fn has_store(&self) -> bool {
        self.has_store
    }

    /// Tokens that were loaded from each of [`Source::ALL`].
    pub(crate) fn loaded_tokens(&self) -> [u64; Source::ALL.len()] {
        self.loaded_tokens
    }

    /// What was planned since the last call.
    pub(crate) fn due(&mut self) -> impl Iterator<Item = (Nanos, Due)> {
        self.due.drain(..)
    }

    /// A load is done; of which worker.
    pub(crate) fn loaded(&mut self, ticket: u32) -> usize {
        self.loads.remove(&ticket).expect("a load is done once").worker
    }

    /// A transfer is done.
    pub(crate) fn moved(&mut self, moved: Moved<Piece>, now: Nanos) {
        let way = (moved.node, moved.source);
        match self.lanes.end(moved, now) {
            Piece::Read(ticket) => self.arrived(ticket, now),
            Piece::Onboard { key, parent } => {
                self.store.put_block(way.0, key, parent, now);
                for ticket in self.onboarding.remove(&key).unwrap_or_default() {
                    self.arrived(ticket, now);
                }
            }
            Piece::Offload(copy) => {
                self.store.copied(copy, now);
                if let Some(number) = self.offloads.iter().position(|offload| offload.to() == copy.to) {
                    self.offloads[number].done(copy.node);
                    self.send(number, copy.node, now);
                }
            }
        }
        self.begin(way, now);
        self.offload(now);
    }

    /// A piece of a load is there.
    fn arrived(&mut self, ticket: u32, now: Nanos) {
        let load = self.loads.get_mut(&ticket).expect("it waits for the piece");
        load.left -= 1;
        if load.left == 0 {
            self.due.push((load.linked_at.max(now), Due::Loaded(ticket)));
        }
    }

    /// Blocks that a worker computed are in the DRAM of its node.
    pub(crate) fn saved(&mut self, worker: usize, blocks: &[Stored], now: Nanos) {
        for Stored { keys, range, .. } in blocks {
            self.store.put(self.links.node(worker), keys, range.clone(), now);
        }
        self.offload(now);
    }

    /// Looks what is to be copied to colder tiers, if it is time.
    fn offload(&mut self, now: Nanos) {
        for number in 0..self.offloads.len() {
            if self.offloads[number].look(&self.store) {
                (0..self.links.nodes() as u16).for_each(|node| self.send(number, node, now));
            }
        }
    }

    /// Lets a node's next batch of copies wait for its turn. What finds too many waiting is not copied, as in the
    /// store.
    fn send(&mut self, number: usize, node: u16, now: Nanos) {
        let tokens = self.store.stride() as u64 * ENGINE_BLOCK_TOKENS;
        let offload = &mut self.offloads[number];
        let way = (node, offload.to());
        for copy in offload.batch(node, &self.store) {
            if self.lanes.enter(way, Direction::Write, tokens, Piece::Offload(copy)).is_err() {
                offload.done(node);
            }
        }
        self.begin(way, now);
    }

    /// Begins the transfers whose turn it is.
    fn begin(&mut self, way: (u16, Source), now: Nanos) {
        while let Some((at, moved)) = self.lanes.begin(way, now) {
            self.due.push((at, Due::Moved(moved)));
        }
    }

    /// Where the leading blocks of a prompt are, besides in the memory of the engine that asks.
    pub(crate) fn outside(&self, keys: &[u64]) -> Vec<Run> {
        let mut runs = if self.has_store { self.store.find(keys, 0) } else { Vec::new() };
        if !self.shares_device {
            return runs;
        }
        // What the store has ends; another engine may go on, and then the store again.
        loop {
            let found = blocks(&runs);
            let peers = self.fleet.anywhere(&keys[found..]);
            if peers == 0 {
                return runs;
            }
            runs.push(Run { source: Source::Device, node: None, blocks: peers });
            if self.has_store {
                runs.extend(self.store.find(keys, found + peers));
            }
        }
    }

    /// Of these, those behind the first `held` blocks, as a worker sees them: tokens of each place.
    pub(crate) fn behind(&self, runs: &[Run], held: usize, worker: usize) -> Vec<(Source, u64)> {
        let node = self.links.node(worker);
        let mut skip = held;
        let mut places: Vec<(Source, u64)> = Vec::new();
        for run in runs {
            let skipped = skip.min(run.blocks);
            skip -= skipped;
            if run.blocks > skipped {
                let is_far = run.node.is_some_and(|home| home != node);
                let source = if is_far { Source::Network } else { run.source };
                let tokens = (run.blocks - skipped) as u64 * ENGINE_BLOCK_TOKENS;
                match places.last_mut() {
                    Some((last, more)) if *last == source => *more += tokens,
                    _ => places.push((source, tokens)),
                }
            }
        }
        places
    }

    /// What it takes to load so many tokens of a place, as the mover expects it: microseconds until the first, and of
    /// each.
    pub(crate) fn price(&self, worker: usize, source: Source, tokens: u64) -> (f64, f64) {
        let (ms_per_token, latency_ms) = self.links.rates().of(source);
        if !source.has_lane() {
            return (latency_ms * 1e3, ms_per_token * 1e3);
        }
        let way = (self.links.node(worker), source);
        let us = |tokens| self.lanes.expect(way, tokens).as_secs_f64() * 1e6;
        let latency_us = us(0);
        (latency_us, (us(tokens) - latency_us) / tokens.max(1) as f64)
    }

    /// How long a load is expected to take.
    fn expect(&self, worker: usize, places: &[(Source, u64)], now: Nanos) -> Nanos {
        let node = self.links.node(worker);
        let mut longest = self.links.expect(worker, places, now) - now;
        for source in Source::ALL.into_iter().filter(|source| source.has_lane()) {
            let of = places.iter().filter(|(other, _)| *other == source);
            let tokens: u64 = of.map(|(_, tokens)| tokens).sum();
            if tokens > 0 {
                longest = longest.max(self.lanes.expect((node, source), tokens).as_nanos() as Nanos);
            }
        }
        longest
    }

    /// Begins a load of what is in these places, behind the first `held` blocks.
    fn fetch(
        &mut self,
        worker: usize,
        keys: &[u64],
        held: usize,
        places: &[(Source, u64)],
        now: Nanos,
    ) -> Option<Load> {
        let node = self.links.node(worker);
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let (mut at, mut left) = (held, 0);
        let mut fetched = Vec::with_capacity(places.len());
        for &(source, tokens) in places {
            let first = at;
            let end = at + (tokens / ENGINE_BLOCK_TOKENS) as usize;
            while at < end && source.has_lane() {
                let next = ((at / self.store.stride() + 1) * self.store.stride()).min(end);
                if !self.fetch_piece((node, source), ticket, keys, at..next) {
                    break;
                }
                left += 1;
                at = next;
            }
            if source.has_lane() {
                self.begin((node, source), now);
            } else {
                at = end;
            }
            let tokens = (at - first) as u64 * ENGINE_BLOCK_TOKENS;
            let number = Source::ALL.iter().position(|other| *other == source).expect("it is listed");
            self.loaded_tokens[number] += tokens;
            fetched.push((source, tokens));
            if source == Source::Device && self.has_store {
                // It passes the node's DRAM.
                self.store.put(node, keys, first..at, now);
            }
            if at < end {
                // The prefix ends at the first block that cannot be had.
                break;
            }
        }
        if at == held {
            return None;
        }
        let linked_at = self.links.load(worker, &fetched, now);
        self.loads.insert(ticket, Loading { worker, left, linked_at });
        if left == 0 {
            self.due.push((linked_at, Due::Loaded(ticket)));
        }
        Some(Load { blocks: at - held, ticket })
    }

    /// Lets a piece of a load wait for its turn; whether it may.
    fn fetch_piece(&mut self, way: (u16, Source), ticket: u32, keys: &[u64], blocks: Range<usize>) -> bool {
        let tokens = blocks.len() as u64 * ENGINE_BLOCK_TOKENS;
        if way.1 == Source::Network {
            return self.lanes.enter(way, Direction::Read, tokens, Piece::Read(ticket)).is_ok();
        }
        let stride = self.store.stride();
        let block = blocks.start / stride;
        let last = |block: usize| keys[(block + 1) * stride - 1];
        let (key, parent) = (last(block), block.checked_sub(1).map(last));
        if let Some(waiting) = self.onboarding.get_mut(&key) {
            waiting.push(ticket);
            return true;
        }
        let piece = Piece::Onboard { key, parent };
        let may = self.lanes.enter(way, Direction::Read, tokens, piece).is_ok();
        if may {
            self.onboarding.insert(key, vec![ticket]);
        }
        may
    }
}

fn blocks(runs: &[Run]) -> usize {
    runs.iter().map(|run| run.blocks).sum()
}

impl Outside for World {
    /// As many places as are worth it: their load must end before the tokens could be computed.
    fn load(&mut self, worker: usize, keys: &[u64], held: usize, now: Nanos) -> Option<Load> {
        if !self.has_store && !self.shares_device {
            return None;
        }
        let runs = self.outside(keys);
        self.store.asked(keys, held.max(blocks(&runs)));
        let mut places = self.behind(&runs, held, worker);
        let all_tokens = (keys.len() - held) as u64 * ENGINE_BLOCK_TOKENS;
        while !places.is_empty() {
            let tokens: u64 = places.iter().map(|(_, tokens)| tokens).sum();
            let saved_ms = prefill_ms(all_tokens + 1) - prefill_ms(all_tokens + 1 - tokens);
            if (self.expect(worker, &places, now) as f64) < saved_ms * 1e6 {
                return self.fetch(worker, keys, held, &places, now);
            }
            places.pop();
        }
        None
    }
}

#[cfg(test)]
mod tests;
