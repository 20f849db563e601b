//! What is replayed, on which cluster.

use std::path::PathBuf;

use anyhow::ensure;
use kelvin_tiering::PolicyKind;

use super::fleet::WORKERS_MAX;
use super::links::Rates;
use super::routers::RouterKind;
use super::store::Capacity;
use super::workload::ENGINE_BLOCK_TOKENS;
use super::world::Cluster;

/// A trace of requests under a virtual clock: which router and store serve it how fast
///
/// Engines are modelled as NVIDIA Dynamo's mocker models them, so that its published figures can stand beside
/// these. Without --router all routers are replayed, without a store and with one.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Run in seconds, on a synthetic trace unless another is named
    #[arg(long)]
    smoke: bool,

    /// Trace to replay: JSON lines of timestamp (ms), input_length, output_length and hash_ids, as Mooncake publishes
    /// them; an id stands for 512 tokens and all before them
    #[arg(long, value_name = "FILE", required_unless_present = "smoke")]
    pub(crate) trace: Option<PathBuf>,

    /// Replay this router alone, with the store that is described by the other flags
    #[arg(long, value_enum)]
    pub(crate) router: Option<RouterKind>,

    /// Engines
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=WORKERS_MAX as i64))]
    workers: u32,

    /// Engines that share a node's DRAM, drive and network
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    workers_per_node: u32,

    /// Blocks of 64 tokens in the memory of each engine
    #[arg(long, value_name = "N", default_value_t = 16_384, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    device_blocks: u32,

    /// DRAM of the shared store, as a multiple of all engines' memory; 0: there is no store
    #[arg(long, value_name = "X", default_value_t = 4.0)]
    pub(crate) dram: f64,

    /// NVMe behind it, in the same measure
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    nvme: f64,

    /// An object store behind all, which is never full
    #[arg(long)]
    s3: bool,

    /// Tokens of a block of the store, a multiple of 64: larger ones take less memory here
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(64..=1 << 16))]
    store_block_tokens: u32,

    /// A block is copied to NVMe or S3 the n-th time that it is asked for; 0 and 1: at once
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=15))]
    admission: u8,

    /// Engines read blocks from each other's memory
    #[arg(long)]
    share_device: bool,

    /// Eviction policy of the store
    #[arg(long, value_name = "NAME", default_value_t)]
    policy: PolicyKind,

    /// KV of a token; the default is Llama 3.1 8B in 16 bits
    #[arg(long, value_name = "BYTES", default_value_t = 131_072.0)]
    bytes_per_token: f64,

    /// Between an engine's memory and DRAM, each way: PCIe 5 x16 in practice
    #[arg(long, value_name = "GB/S", default_value_t = 50.0)]
    dram_gbps: f64,

    /// Reads of a node's drive
    #[arg(long, value_name = "GB/S", default_value_t = 6.0)]
    nvme_gbps: f64,

    /// From the object store into a node
    #[arg(long, value_name = "GB/S", default_value_t = 2.0)]
    s3_gbps: f64,

    /// From other nodes into a node: 200 Gb/s
    #[arg(long, value_name = "GB/S", default_value_t = 25.0)]
    network_gbps: f64,

    /// Between the memories of two engines
    #[arg(long, value_name = "GB/S", default_value_t = 64.0)]
    device_gbps: f64,

    /// Requests arrive so many times as fast as they were recorded
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    pub(crate) speed: f64,

    /// Enlarge the trace: so many copies at once, with prompts of their own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) scale: u32,

    /// Decides ties, when the copies of an enlarged trace begin, and the synthetic trace
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,

    /// Also write every replay as a row of CSV, with DRAM of several sizes
    #[arg(long, value_name = "FILE")]
    pub(crate) csv: Option<PathBuf>,

    /// Also draw reuse and time to first token over the size of DRAM
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,

    /// Also write the figures as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

impl Args {
    /// The cluster that is described.
    pub(crate) fn cluster(&self) -> anyhow::Result<Cluster> {
        let rates = [
            ("bytes-per-token", self.bytes_per_token),
            ("dram-gbps", self.dram_gbps),
            ("nvme-gbps", self.nvme_gbps),
            ("s3-gbps", self.s3_gbps),
            ("network-gbps", self.network_gbps),
            ("device-gbps", self.device_gbps),
        ];
        for (name, rate) in rates {
            ensure!(rate.is_finite() && rate > 0.0, "--{name} {rate} is no rate");
        }
        for (name, size) in [("dram", self.dram), ("nvme", self.nvme)] {
            ensure!((0.0..=1e4).contains(&size), "--{name} {size} is not between 0 and 10000");
        }
        ensure!(self.dram > 0.0 || (self.nvme == 0.0 && !self.s3), "--nvme and --s3 need --dram in front");
        let store_block_tokens = u64::from(self.store_block_tokens);
        ensure!(
            store_block_tokens.is_multiple_of(ENGINE_BLOCK_TOKENS),
            "--store-block-tokens {store_block_tokens} is no multiple of {ENGINE_BLOCK_TOKENS}"
        );
        let cluster = Cluster {
            workers: self.workers as usize,
            workers_per_node: self.workers_per_node as usize,
            device_blocks: self.device_blocks as usize,
            capacity: Capacity { dram: 0, nvme: 0, s3: self.s3 },
            stride: (store_block_tokens / ENGINE_BLOCK_TOKENS) as usize,
            admission: self.admission,
            shares_device: self.share_device,
            policy: self.policy,
            rates: Rates {
                bytes_per_token: self.bytes_per_token,
                dram: self.dram_gbps * 1e9,
                nvme: self.nvme_gbps * 1e9,
                s3: self.s3_gbps * 1e9,
                network: self.network_gbps * 1e9,
                device: self.device_gbps * 1e9,
            },
        };
        let capacity =
            Capacity { dram: cluster.times(self.dram), nvme: cluster.times(self.nvme), s3: self.s3 };
        Ok(Cluster { capacity, ..cluster })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn cluster(flags: &str) -> anyhow::Result<Cluster> {
        let flags = ["replay", "--smoke"].into_iter().chain(flags.split_whitespace());
        Cli::try_parse_from(flags)?.args.cluster()
    }

    #[test]
    fn the_default_is_the_published_cluster_with_a_store() {
        let cluster = cluster("").unwrap();
        assert_eq!((cluster.workers, cluster.device_blocks), (4, 16_384));
        assert_eq!(cluster.capacity, Capacity { dram: 4 * 4 * 16_384, nvme: 0, s3: false });
    }

    #[test]
    fn flags_that_make_no_sense_are_refused() {
        let flags = [
            "--workers 0",
            "--workers 5000",
            "--dram -1",
            "--dram NaN",
            "--dram 0 --s3",
            "--nvme-gbps 0",
            "--store-block-tokens 100",
            "--admission 16",
            "--policy best",
            "--scale 0",
        ];
        for flags in flags {
            assert!(cluster(flags).is_err(), "{flags}");
        }
        assert!(cluster("--workers 1000 --dram 0 --share-device").is_ok());
    }
}
