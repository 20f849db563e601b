//! How long a transfer takes: bytes over bandwidth, one after the other on each link.

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
const NETWORK_LATENCY_MS: f64 = 0.02;

impl Rates {
    /// Milliseconds a token takes from there into an engine's memory, and those until the first.
    pub(crate) fn of(&self, source: Source) -> (f64, f64) {
        let (rate, latency_ms) = match source {
            Source::Dram => (self.dram, 0.0),
            Source::Network => (self.network.min(self.dram), NETWORK_LATENCY_MS),
            Source::Nvme => (self.nvme.min(self.dram), NVME_LATENCY_MS),
            Source::S3 => (self.s3.min(self.dram), S3_LATENCY_MS),
            Source::Device => (self.device, NETWORK_LATENCY_MS),
        };
        (self.bytes_per_token / rate * 1e3, latency_ms)
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
    /// Of each node: network, NVMe, S3.
    shared: Vec<[Nanos; 3]>,
}

impl Links {
    pub(crate) fn new(rates: Rates, workers: usize, workers_per_node: usize) -> Self {
        let nodes = workers.div_ceil(workers_per_node);
        Self {
            rates,
            workers_per_node,
            into: vec![0; workers],
            out_of: vec![0; workers],
            shared: vec![[0; 3]; nodes],
        }
    }

    pub(crate) fn rates(&self) -> &Rates {
        &self.rates
    }

    pub(crate) fn node(&self, worker: usize) -> u16 {
        (worker / self.workers_per_node) as u16
    }

    /// When so many tokens of each source are in a worker's memory if their transfer is planned now; it is
    /// only planned if `agrees`.
    pub(crate) fn load(
        &mut self,
        worker: usize,
        tokens: &[(Source, u64)],
        now: Nanos,
        agrees: impl FnOnce(Nanos) -> bool,
    ) -> Option<Nanos> {
        let node = worker / self.workers_per_node;
        let (mut into, mut shared) = (self.into[worker].max(now), self.shared[node]);
        let mut done = into;
        for &(source, tokens) in tokens.iter().filter(|(_, tokens)| *tokens > 0) {
            let (ms, latency_ms) = self.rates.of(source);
            let link_ms = self.rates.bytes_per_token / self.rates.dram.max(self.rates.device) * 1e3;
            let staged = match source {
                Source::Dram | Source::Device => None,
                Source::Network => Some(0),
                Source::Nvme => Some(1),
                Source::S3 => Some(2),
            };
            let time = nanos(ms * tokens as f64);
            match staged {
                // It streams through DRAM: the slower of both links decides.
                Some(link) => {
                    shared[link] = shared[link].max(now + nanos(latency_ms)) + time;
                    into += nanos(link_ms * tokens as f64);
                    done = done.max(shared[link]);
                }
                None => into += time + nanos(latency_ms),
            }
            done = done.max(into);
        }
        agrees(done).then(|| {
            (self.into[worker], self.shared[node]) = (into, shared);
            done
        })
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
        assert_eq!(links.load(0, &[(Source::Dram, 50)], 0, |_| true), Some(1_000_000));
        assert_eq!(links.load(0, &[(Source::Dram, 50)], 0, |_| true), Some(2_000_000));
        assert_eq!(links.load(1, &[(Source::Dram, 50)], 0, |_| true), Some(1_000_000));
        assert_eq!(links.load(2, &[(Source::Device, 64)], 5, |_| true), Some(1_020_005));
        assert_eq!((links.save(3, 50, 7), links.save(3, 50, 7)), (1_000_007, 2_000_007));
        assert_eq!((links.node(1), links.node(2)), (0, 1));
    }

    #[test]
    fn a_node_shares_its_drive() {
        let mut links = links();
        assert_eq!(links.load(0, &[(Source::Nvme, 5)], 0, |_| true), Some(1_100_000));
        assert_eq!(links.load(1, &[(Source::Nvme, 5)], 0, |_| true), Some(2_100_000));
        assert_eq!(links.load(2, &[(Source::Nvme, 5)], 0, |_| true), Some(1_100_000));
    }

    #[test]
    fn a_refused_transfer_leaves_no_trace() {
        let mut links = links();
        assert_eq!(links.load(0, &[(Source::S3, 1)], 0, |done| done < 1_000_000), None);
        assert_eq!(links.load(0, &[(Source::S3, 1)], 0, |done| done == 31_000_000), Some(31_000_000));
    }
}
