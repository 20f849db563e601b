//! Object: packs put and read by Kelvin's store beside a plain client of the same S3 server, at the same number
//! of requests at a time.
//!
//! # Overview
//! The server is the in-repo simulator on a thread of its own, once with a model of latency and bandwidth, once
//! as fast as it goes: there the clients' own work decides. Both sides move the same bytes in turns. Kelvin's
//! reads land in the callers' buffers, checked; the plain client's in buffers of its own, unchecked.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use kelvin_kernels::checksum;
use kelvin_tiering::{
    ObjectOptions, PackEntry, PackInfo, PackStore,
    testing::{S3Sim, S3SimOptions},
};
use object_store::{
    ClientOptions, ObjectStore, ObjectStoreExt, PutPayload, RetryConfig, aws::AmazonS3Builder, path::Path,
};
use rand::{RngCore, SeedableRng, rngs::SmallRng};

use super::{Args, cpu, median, size, slug};
use crate::report::{Report, number};

/// A pack, as the store makes them.
const PACK_BYTES: u64 = 32 << 20;
/// What the plain client reads with one request.
const PLAIN_GET_BYTES: u64 = 8 << 20;
/// Requests at a time, on both sides.
const CONCURRENCY: usize = 16;
const NAMESPACE: [u8; 16] = *b"kelvin-bench-s3.";

/// A way to the server.
struct Way {
    name: &'static str,
    slug: &'static str,
    latency: Duration,
    bandwidth_bytes_s: Option<u64>,
    stream_bytes_s: Option<u64>,
}

/// As S3 from a machine in its region: tens of milliseconds, below 100 MB/s a request. The line is narrower
/// than that of a large machine, so that server and client together need less than two cores.
const WAYS: [Way; 2] = [
    Way {
        name: "20 ms, 80 MB/s a request, 600 MB/s in all",
        slug: "modelled",
        latency: Duration::from_millis(20),
        bandwidth_bytes_s: Some(600_000_000),
        stream_bytes_s: Some(80_000_000),
    },
    Way {
        name: "as fast as the machine",
        slug: "unlimited",
        latency: Duration::ZERO,
        bandwidth_bytes_s: None,
        stream_bytes_s: None,
    },
];

pub(super) async fn measure(args: &Args, report: &mut Report) -> anyhow::Result<()> {
    let packs = if args.smoke { 2 } else { 24 };
    let blocks: &[u64] = if args.smoke { &[512 << 10] } else { &[512 << 10, 2 << 20] };
    for way in &WAYS {
        report.line(format!(
            "\nObject: packs of {} to and from an S3 server in memory ({}), {CONCURRENCY} requests at a time, MB/s, median of \
             {} turns\n  {:<16}{:>10}{:>10}{:>10}{:>14}{:>14}{:>16}",
            size(PACK_BYTES),
            way.name,
            args.turns(),
            "",
            "packs",
            "plain",
            "ratio",
            "CPU-s/GB",
            "plain",
            "requests/block",
        ));
        for &block_bytes in blocks {
            Bench::new(args, way, block_bytes, packs)?.run(args, way, report).await?;
        }
    }
    Ok(())
}

struct Bench {
    sim: S3Sim,
    packs: PackStore,
    plain: Arc<dyn ObjectStore>,
    /// The bytes of one pack; every pack has the same.
    payload: Bytes,
    blocks: Vec<(PackEntry, Bytes)>,
    count: usize,
}

/// What one side did in one turn.
#[derive(Default)]
struct Side {
    mb_s: Vec<f64>,
    cpu_s_gb: Vec<f64>,
}

impl Bench {
    fn new(args: &Args, way: &Way, block_bytes: u64, count: usize) -> anyhow::Result<Self> {
        let options = S3SimOptions {
            latency: way.latency,
            bandwidth_bytes_s: way.bandwidth_bytes_s,
            stream_bytes_s: way.stream_bytes_s,
            ..S3SimOptions::default()
        };
        let sim = S3Sim::start(options.clone()).context("start the S3 server")?;
        let patient = Duration::from_secs(120);
        let store = ObjectOptions {
            concurrency: CONCURRENCY,
            read_deadline: patient,
            write_deadline: patient,
            ..sim.client("packs")
        };
        let packs = PackStore::open(&store).context("open the packs")?;
        let plain = AmazonS3Builder::new()
            .with_bucket_name(&options.bucket)
            .with_endpoint(sim.endpoint())
            .with_region("us-east-1")
            .with_access_key_id(&options.credentials.key_id)
            .with_secret_access_key(&options.credentials.secret)
            .with_unsigned_payload(true)
            .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
            .with_client_options(ClientOptions::new().with_allow_http(true).with_timeout(patient))
            .build()
            .context("open the plain client")?;
        let mut payload = vec![0; PACK_BYTES as usize];
        SmallRng::seed_from_u64(args.seed).fill_bytes(&mut payload);
        let payload = Bytes::from(payload);
        let blocks = (0..PACK_BYTES / block_bytes)
            .map(|index| {
                let block =
                    payload.slice((index * block_bytes) as usize..((index + 1) * block_bytes) as usize);
                let mut hash = [0; 16];
                hash[..8].copy_from_slice(&index.to_le_bytes());
                let entry = PackEntry {
                    hash,
                    parent: None,
                    offset: 0,
                    bytes: block_bytes as u32,
                    checksum: checksum(&block),
                };
                (entry, block)
            })
            .collect();
        Ok(Self { sim, packs, plain: Arc::new(plain), payload, blocks, count })
    }

    async fn run(&self, args: &Args, way: &Way, report: &mut Report) -> anyhow::Result<()> {
        let [mut put, mut plain_put, mut get, mut plain_get] = <[Side; 4]>::default();
        let mut buffers = self.buffers();
        let before = self.packs.stats();
        for turn in 0..args.turns() + 1 {
            if turn == 1 {
                // The turn before opened connections and took pages.
                [put, plain_put, get, plain_get] = Default::default();
            }
            // Who goes first finds a colder machine.
            let first = turn % 2 == 0;
            if !first {
                self.turn(&mut plain_put, self.plain_put()).await?;
            }
            let written = self.turn(&mut put, self.put()).await?;
            if first {
                self.turn(&mut plain_put, self.plain_put()).await?;
            } else {
                self.turn(&mut plain_get, self.plain_get()).await?;
            }
            buffers = self.turn(&mut get, self.get(&written, buffers)).await?;
            if first {
                self.turn(&mut plain_get, self.plain_get()).await?;
            }
            for pack in written {
                self.packs.delete(NAMESPACE, pack.id).await?;
            }
        }
        let after = self.packs.stats();
        ensure!(after.errors == before.errors, "the store met faults: {after:?}");
        let blocks = ((args.turns() + 1) * self.count * self.blocks.len()) as f64;
        let requests = [(after.puts - before.puts) as f64, (after.gets - before.gets) as f64];
        let block_bytes = PACK_BYTES / self.blocks.len() as u64;
        let rows = [("put", put, plain_put, requests[0]), ("get", get, plain_get, requests[1])];
        for (verb, ours, theirs, requests) in rows {
            let (rate, peer) = (median(ours.mb_s), median(theirs.mb_s));
            let (cpu, peer_cpu) = (median(ours.cpu_s_gb), median(theirs.cpu_s_gb));
            report.line(format!(
                "  {:<16}{:>10}{:>10}{:>10}{:>14}{:>14}{:>16}",
                format!("{verb} {}", size(block_bytes)),
                number(rate),
                number(peer),
                number(rate / peer),
                number(cpu),
                number(peer_cpu),
                number(requests / blocks),
            ));
            let name = |what: &str| format!("object.{}.{verb}.{}.{what}", way.slug, slug(block_bytes));
            report.compared(name("rate"), rate, "MB/s", peer, rate / peer);
            report.compared(name("cpu"), cpu, "CPU-s/GB", peer_cpu, peer_cpu / cpu);
            report.figure(name("requests_a_block"), requests / blocks, "requests");
        }
        Ok(())
    }

    /// Times one side moving all packs once; the server's CPU time is not the client's.
    async fn turn<T>(
        &self,
        side: &mut Side,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        let cpu = || cpu::process_seconds() - self.sim.cpu_time().as_secs_f64();
        let (began, cpu_before) = (Instant::now(), cpu());
        let result = work.await?;
        let bytes = (self.count as u64 * PACK_BYTES) as f64;
        side.mb_s.push(bytes / 1e6 / began.elapsed().as_secs_f64());
        side.cpu_s_gb.push((cpu() - cpu_before) / (bytes / 1e9));
        Ok(result)
    }

    fn buffers(&self) -> Vec<Vec<Vec<u8>>> {
        let pack = || self.blocks.iter().map(|(entry, _)| vec![0; entry.bytes as usize]).collect();
        (0..self.count).map(|_| pack()).collect()
    }

    async fn put(&self) -> anyhow::Result<Vec<PackInfo>> {
        let puts = (0..self.count).map(|_| self.packs.put(NAMESPACE, self.blocks.clone()));
        Ok(stream::iter(puts).buffer_unordered(CONCURRENCY).try_collect().await?)
    }

    async fn plain_put(&self) -> anyhow::Result<()> {
        let puts = (0..self.count).map(async |index| {
            self.plain.put(&plain_path(index), PutPayload::from(self.payload.clone())).await.map(drop)
        });
        Ok(stream::iter(puts).buffer_unordered(CONCURRENCY).try_collect().await?)
    }

    async fn get(&self, packs: &[PackInfo], buffers: Vec<Vec<Vec<u8>>>) -> anyhow::Result<Vec<Vec<Vec<u8>>>> {
        let gets = packs.iter().zip(buffers).map(async |(pack, buffers)| {
            let wanted = pack.entries.iter().copied().zip(buffers).collect();
            let read = self.packs.get(NAMESPACE, pack.id, wanted).await;
            read.into_iter().map(|(buffer, result)| result.map(|()| buffer)).collect::<Result<Vec<_>, _>>()
        });
        Ok(stream::iter(gets).buffer_unordered(CONCURRENCY).try_collect().await?)
    }

    async fn plain_get(&self) -> anyhow::Result<()> {
        let pieces = (0..self.count).flat_map(|index| {
            (0..PACK_BYTES / PLAIN_GET_BYTES).map(move |piece| (index, piece * PLAIN_GET_BYTES))
        });
        let gets = pieces.map(async |(index, from)| {
            let bytes = self.plain.get_range(&plain_path(index), from..from + PLAIN_GET_BYTES).await?;
            ensure!(bytes.len() as u64 == PLAIN_GET_BYTES, "the plain client got {} bytes", bytes.len());
            Ok(())
        });
        stream::iter(gets).buffer_unordered(CONCURRENCY).try_collect().await
    }
}

fn plain_path(index: usize) -> Path {
    Path::from(format!("plain/{index}"))
}
