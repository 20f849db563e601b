//! What the engines share: the index of their memories, the store behind them, and the links between.

use super::clock::Nanos;
use super::engine::{Load, Outside};
use super::fleet::{Fleet, fleet};
use super::links::{Links, Rates};
use super::store::{Capacity, Run, Source, Store};
use super::timing::prefill_ms;
use super::workload::ENGINE_BLOCK_TOKENS;
use kelvin_tiering::PolicyKind;

/// How a cluster is built.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cluster {
    pub(crate) workers: usize,
    pub(crate) workers_per_node: usize,
    /// Blocks in the memory of each engine.
    pub(crate) device_blocks: usize,
    pub(crate) capacity: Capacity,
    /// Whether an engine reads blocks from the memory of another.
    pub(crate) shares_device: bool,
    pub(crate) policy: PolicyKind,
    pub(crate) rates: Rates,
}

/// See the module.
pub(crate) struct World {
    pub(crate) fleet: Box<dyn Fleet>,
    pub(crate) store: Store,
    pub(crate) links: Links,
    has_store: bool,
    shares_device: bool,
    loaded_tokens: [u64; Source::ALL.len()],
}

impl World {
    pub(crate) fn new(cluster: &Cluster) -> Self {
        let has_nodes = cluster.workers > cluster.workers_per_node;
        Self {
            fleet: fleet(cluster.workers),
            store: Store::new(cluster.policy, cluster.capacity, has_nodes),
            links: Links::new(cluster.rates, cluster.workers, cluster.workers_per_node),
            has_store: cluster.capacity.dram > 0,
            shares_device: cluster.shares_device,
            loaded_tokens: [0; Source::ALL.len()],
        }
    }

    pub(crate) fn has_store(&self) -> bool {
        self.has_store
    }

    /// Tokens that were loaded from each of [`Source::ALL`].
    pub(crate) fn loaded_tokens(&self) -> [u64; Source::ALL.len()] {
        self.loaded_tokens
    }

    /// Where the leading blocks of a prompt are, besides in the memory of the engine that asks.
    pub(crate) fn outside(&self, keys: &[u64]) -> Vec<Run> {
        let mut runs = if self.has_store { self.store.find(keys) } else { Vec::new() };
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
                runs.extend(self.store.find(&keys[found + peers..]));
            }
        }
    }

    /// Of these, those behind the first `held` blocks, as a worker sees them: tokens of each place.
    pub(crate) fn behind(&self, runs: &[Run], held: usize, worker: usize) -> Vec<(Source, u64)> {
        let node = self.links.node(worker);
        let mut skip = held;
        let mut places = Vec::new();
        for run in runs {
            let skipped = skip.min(run.blocks);
            skip -= skipped;
            if run.blocks > skipped {
                let is_far = run.node.is_some_and(|home| home != node);
                let source = if is_far { Source::Network } else { run.source };
                places.push((source, (run.blocks - skipped) as u64 * ENGINE_BLOCK_TOKENS));
            }
        }
        places
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
        self.store.touch(&keys[..held.max(blocks(&runs))]);
        let mut places = self.behind(&runs, held, worker);
        let all_tokens = (keys.len() - held) as u64 * ENGINE_BLOCK_TOKENS;
        while !places.is_empty() {
            let tokens: u64 = places.iter().map(|(_, tokens)| tokens).sum();
            let saved_ms = prefill_ms(all_tokens + 1) - prefill_ms(all_tokens + 1 - tokens);
            let done_at =
                self.links.load(worker, &places, now, |done| ((done - now) as f64) < saved_ms * 1e6);
            if let Some(done_at) = done_at {
                for (source, tokens) in &places {
                    let number = Source::ALL.iter().position(|other| other == source).expect("it is listed");
                    self.loaded_tokens[number] += tokens;
                }
                let first = blocks_of(held, tokens);
                let parent = held.checked_sub(1).map(|parent| keys[parent]);
                if self.has_store {
                    // What was colder comes back into DRAM on its way.
                    self.store.put(self.links.node(worker), parent, &keys[held..first], now);
                }
                return Some(Load { blocks: first - held, done_at });
            }
            places.pop();
        }
        None
    }
}

/// The block behind so many tokens that follow the first `held` blocks.
fn blocks_of(held: usize, tokens: u64) -> usize {
    held + (tokens / ENGINE_BLOCK_TOKENS) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(dram: usize, shares_device: bool) -> Cluster {
        Cluster {
            workers: 4,
            workers_per_node: 2,
            device_blocks: 64,
            capacity: Capacity { dram, nvme: 0, s3: false },
            shares_device,
            policy: PolicyKind::Lru,
            rates: Rates {
                bytes_per_token: 1e5,
                dram: 50e9,
                nvme: 5e9,
                s3: 1e9,
                network: 25e9,
                device: 64e9,
            },
        }
    }

    #[test]
    fn a_prompt_is_found_in_the_store_and_then_with_other_engines() {
        let mut world = World::new(&cluster(100, true));
        world.store.put(0, None, &[1, 2], 0);
        world.fleet.stored(3, None, &[1, 2, 3], 0);
        let runs = world.outside(&[1, 2, 3, 4]);
        assert_eq!(world.behind(&runs, 0, 1), [(Source::Dram, 128), (Source::Device, 64)]);
        assert_eq!(world.behind(&runs, 1, 2), [(Source::Network, 64), (Source::Device, 64)]);
        assert_eq!(world.behind(&runs, 3, 2), []);
        let load = world.load(0, &[1, 2, 3, 4], 1, 1_000).unwrap();
        assert_eq!(load.blocks, 2);
        assert!(load.done_at > 1_000);
        assert_eq!(world.loaded_tokens(), [64, 0, 0, 0, 64]);
    }

    #[test]
    fn what_is_faster_computed_is_not_loaded() {
        let mut slow = cluster(100, false);
        slow.rates.dram = 1e6;
        let mut world = World::new(&slow);
        world.store.put(0, None, &[1, 2], 0);
        assert_eq!(world.load(0, &[1, 2, 3], 0, 0), None);
        assert_eq!(world.loaded_tokens(), [0; 5]);
    }

    #[test]
    fn without_a_store_nothing_is_outside() {
        let mut world = World::new(&cluster(0, false));
        world.fleet.stored(3, None, &[1], 0);
        assert_eq!((world.outside(&[1]), world.load(0, &[1], 0, 0)), (Vec::new(), None));
    }
}
