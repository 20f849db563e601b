//! Each worker's links to the DRAM of its node: bytes over bandwidth, one after the other.

use super::clock::{Nanos, nanos};
use super::store::Source;

/// Rates of the links, and what a token weighs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rates {
    pub(crate) bytes_per_token: f64,
    /// Bytes a second between an engine's memory and the DRAM of its node, each way.
    pub(crate) dram: f64,
    /// Of an NVMe drive, one a node.
    pub(crate) nvme: f64,
    /// Between a node and the object store.
    pub(crate) s3: f64,
    /// Into a node.
    pub(crate) network: f64,
    /// Between the memories of two engines.
    pub(crate) device: f64,
}

/// Until the first byte from NVMe.
const NVME_LATENCY_MS: f64 = 0.1;
/// Until the first byte from S3.
const S3_LATENCY_MS: f64 = 30.0;
/// Until the first byte from another node.
pub(crate) const NETWORK_LATENCY_MS: f64 = 0.02;

impl Rates {
    /// Milliseconds a token takes from there into an engine's memory, and those until the first.
    pub(crate) fn of(&self, source: Source) -> (f64, f64) {
        let latency_ms = match source {
            Source::Dram => 0.0,
            Source::Network | Source::Device => NETWORK_LATENCY_MS,
            Source::Nvme => NVME_LATENCY_MS,
            Source::S3 => S3_LATENCY_MS,
        };
        (self.bytes_per_token / self.bytes_per_second(source) * 1e3, latency_ms)
    }

    /// From there into an engine's memory; what streams through DRAM is not faster than that.
    pub(crate) fn bytes_per_second(&self, source: Source) -> f64 {
        match source {
            Source::Dram => self.dram,
            Source::Network => self.network.min(self.dram),
            Source::Nvme => self.nvme.min(self.dram),
            Source::S3 => self.s3.min(self.dram),
            Source::Device => self.device,
        }
    }
}

/// When each link is free again.
#[derive(Clone, Debug)]
pub(crate) struct Links {
    rates: Rates,
    workers_per_node: usize,
    /// Into and out of each worker.
    into: Vec<Nanos>,
    out_of: Vec<Nanos>,
}

impl Links {
    pub(crate) fn new(rates: Rates, workers: usize, workers_per_node: usize) -> Self {
        Self { rates, workers_per_node, into: vec![0; workers], out_of: vec![0; workers] }
    }

    pub(crate) fn rates(&self) -> &Rates {
        &self.rates
    }

    pub(crate) fn nodes(&self) -> usize {
        self.into.len().div_ceil(self.workers_per_node)
    }

    pub(crate) fn node(&self, worker: usize) -> u16 {
        (worker / self.workers_per_node) as u16
    }

    /// When so many tokens of each source are through the link into a worker, if those that wait in a lane are
    /// there in time.
    pub(crate) fn expect(&self, worker: usize, tokens: &[(Source, u64)], now: Nanos) -> Nanos {
        let through_ms = self.rates.bytes_per_token / self.rates.dram.max(self.rates.device) * 1e3;
        let time = |(source, tokens): &(Source, u64)| {
            if source.has_lane() {
                return nanos(through_ms * *tokens as f64);
            }
            let (ms, latency_ms) = self.rates.of(*source);
            nanos(ms * *tokens as f64) + nanos(latency_ms)
        };
        let times = tokens.iter().filter(|(_, tokens)| *tokens > 0).map(time);
        self.into[worker].max(now) + times.sum::<Nanos>()
    }

    /// Takes the link for that; as [`expect`](Self::expect).
    pub(crate) fn load(&mut self, worker: usize, tokens: &[(Source, u64)], now: Nanos) -> Nanos {
        self.into[worker] = self.expect(worker, tokens, now);
        self.into[worker]
    }

    /// When so many tokens of a worker are in the DRAM of its node.
    pub(crate) fn save(&mut self, worker: usize, tokens: u64, now: Nanos) -> Nanos {
        let (ms, _) = self.rates.of(Source::Dram);
        let done = self.out_of[worker].max(now) + nanos(ms * tokens as f64);
        self.out_of[worker] = done;
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1 MB a token.
    fn links() -> Links {
        let rates =
            Rates { bytes_per_token: 1e6, dram: 50e9, nvme: 5e9, s3: 1e9, network: 25e9, device: 64e9 };
        Links::new(rates, 4, 2)
    }

    #[test]
    fn a_transfer_is_bytes_over_bandwidth_and_waits_for_the_one_before() {
        let mut links = links();
        assert_eq!(links.load(0, &[(Source::Dram, 50)], 0), 1_000_000);
        assert_eq!(links.expect(0, &[(Source::Dram, 50)], 0), 2_000_000);
        assert_eq!(links.load(0, &[(Source::Dram, 50)], 0), 2_000_000);
        assert_eq!(links.load(1, &[(Source::Dram, 50)], 0), 1_000_000);
        assert_eq!(links.load(2, &[(Source::Device, 64)], 5), 1_020_005);
        assert_eq!(links.load(3, &[(Source::Nvme, 64)], 5), 1_000_005);
        assert_eq!((links.save(3, 50, 7), links.save(3, 50, 7)), (1_000_007, 2_000_007));
        assert_eq!((links.node(1), links.node(2), links.nodes()), (0, 1, 2));
    }
}
