//! Workload `transport`: blocks between a client and a store, by every transport, in one process.
//!
//! The store runs its service on threads of its own, as `kelvin store` does; clients use the client library. Bytes
//! are those of whole blocks, stored (reserve, fill, send, commit) and read (acquire, receive, verify), in batches: as
//! an engine does, the next one is filled while another is on its way (`--in-flight`). Beside them stands a raw stream
//! over loopback that moves the same bytes from one buffer into another, and in `copies` how often the bytes are
//! moved: a stream moves them twice (into the kernel, out of it), a store fills its blocks as well. CPU time is that
//! of both sides.
//!
//! The raw stream is made three times. A read is compared to a plain one, a store to one whose sender fills its blocks
//! first: the same number of copies. Both have the congestion control that the system gives; a third has `reno`, as
//! Kelvin within a host, since that may matter more than everything else, and a fourth does the same by io_uring.

use std::collections::VecDeque;
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use kelvin_kvstore::server::{Listening, ServerConfig, serve};
use kelvin_kvstore::{Client, ClientOptions, Namespace, Reserved, SequenceHash, Transport};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use rustix::net::sockopt::set_tcp_congestion;
use rustix::time::{ClockId, clock_gettime};
use tokio_uring::buf::BoundedBuf;
use tokio_util::sync::CancellationToken;

use crate::namespace::spec;
use crate::report::{Report, number};

/// Blocks between a client and a store by every transport, beside a raw stream
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Run in seconds, with one block size and few rounds
    #[arg(long)]
    smoke: bool,

    /// Decides hashes and bytes
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Also write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Block sizes, KiB [default: 64,512,2048,8192; smoke: 512]
    #[arg(long, value_name = "KIB,...", value_delimiter = ',', value_parser = clap::value_parser!(u64).range(4..=65_536))]
    block_kib: Vec<u64>,

    /// Blocks of a batch
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=1024))]
    batch: u64,

    /// Transports to measure [default: all]
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', value_parser = ["tcp", "grpc", "shm"])]
    transport: Vec<String>,

    /// Batches under way at a time; with 1, each waits for the one before it
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=16))]
    in_flight: u64,
}

/// Moved in one turn, and memory that batches go through before it comes by again.
const TURN_BYTES: u64 = 1 << 30;
const MEMORY_BYTES: u64 = 512 << 20;
/// The same in a smoke run.
const SMOKE_BYTES: u64 = 128 << 20;
const KIB: u64 = 1 << 10;
/// Blocks that a raw stream fills in turn, as many as a batch has.
const FILLED_BLOCKS: usize = 16;
/// A prompt of so many blocks is matched and leased in the time of a call.
const PROMPT_BLOCKS: usize = 128;
/// At least so much of the raw stream, and at most so long for a prompt.
const STREAM_GOAL: f64 = 0.9;
const PROMPT_GOAL_US: f64 = 100.0;

impl Args {
    fn memory_bytes(&self) -> u64 {
        if self.smoke { SMOKE_BYTES } else { MEMORY_BYTES }
    }
}

pub(crate) async fn run(args: &Args) -> anyhow::Result<()> {
    let sizes = match &args.block_kib[..] {
        [] if args.smoke => vec![512],
        [] => vec![64, 512, 2048, 8192],
        sizes => sizes.to_vec(),
    };
    let mut report = Report::new("transport", args.seed, "a store's service and its client, in one process");
    let folder = tempfile::tempdir().context("make a directory for the socket")?;
    let store = Running::start(folder.path().join("kv.sock"), args.memory_bytes()).await?;
    let turns = if args.smoke { 1 } else { 5 };
    report.line(format!(
        "\n  batches of {}, {} at a time; GB/s and CPU-s/GB of both sides, median of {turns} turns\n  {:<24}{:>8}{:>10}{:>8}{:>10}{:>10}{:>8}{:>8}",
        args.batch, args.in_flight, "", "store", "CPU", "of raw", "read", "CPU", "of raw", "copies"
    ));
    for kib in sizes {
        compare(args, &store, kib * KIB, turns, &mut report)
            .await
            .with_context(|| format!("move blocks of {kib} KiB"))?;
    }
    verbs(args, &store, &mut report).await.context("measure the verbs")?;
    store.stop.cancel();
    store.task.await.context("the store ended oddly")??;
    report.finish(args.json.as_deref())
}

struct Running {
    listening: Listening,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Running {
    async fn start(socket: PathBuf, memory_bytes: u64) -> anyhow::Result<Self> {
        let config = ServerConfig {
            socket: Some(socket),
            data_listen: Some(([127, 0, 0, 1], 0).into()),
            ..ServerConfig::new(memory_bytes + (64 << 20))
        };
        let stop = CancellationToken::new();
        let (ready, listening) = tokio::sync::oneshot::channel();
        let token = stop.clone();
        let task = tokio::spawn(async move {
            serve(config, |listening| drop(ready.send(listening)), token).await.context("run the store")
        });
        let listening = listening.await.context("the store does not listen")?;
        Ok(Self { listening, stop, task })
    }

    async fn open(&self, transport: Transport, block_bytes: u64) -> anyhow::Result<Namespace> {
        let options = ClientOptions {
            shared_memory: transport == Transport::Shm,
            data_port: transport == Transport::Tcp,
            call_timeout: Duration::from_secs(60),
            ..ClientOptions::new(format!("http://{}", self.listening.grpc), "bench")
        };
        let spec = spec(format!("{transport:?} {block_bytes}"), 16, block_bytes);
        let namespace = Client::connect(options).await?.open(spec).await?;
        ensure!(namespace.transport() == transport, "the store offers no {transport:?} here");
        Ok(namespace)
    }
}

/// GB/s and CPU-s/GB.
#[derive(Clone, Copy)]
struct Rate {
    gb_s: f64,
    cpu_s_gb: f64,
}

/// Processor time of all threads.
fn cpu() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

struct Watch(Instant, Duration);

impl Watch {
    fn start() -> Self {
        Self(Instant::now(), cpu())
    }

    fn rate(self, bytes: u64) -> Rate {
        let gb = bytes as f64 / 1e9;
        Rate { gb_s: gb / self.0.elapsed().as_secs_f64(), cpu_s_gb: (cpu() - self.1).as_secs_f64() / gb }
    }
}

/// Median of how much faster than the other in the same turn.
fn ratio(rates: &[Rate], others: &[Rate]) -> f64 {
    let mut ratios: Vec<f64> = rates.iter().zip(others).map(|(rate, other)| rate.gb_s / other.gb_s).collect();
    ratios.sort_by(f64::total_cmp);
    ratios[ratios.len() / 2]
}

fn median(rates: &[Rate]) -> Rate {
    let mut rates = rates.to_vec();
    rates.sort_by(|one, other| one.gb_s.total_cmp(&other.gb_s));
    rates[rates.len() / 2]
}

/// One transport's client, and what it did in each turn.
struct Runner {
    name: String,
    copies: &'static str,
    bench: Bench,
    stored: Vec<Rate>,
    read: Vec<Rate>,
}

async fn compare(
    args: &Args,
    store: &Running,
    block_bytes: u64,
    turns: usize,
    report: &mut Report,
) -> anyhow::Result<()> {
    let turn_bytes = if args.smoke { SMOKE_BYTES / 2 } else { TURN_BYTES };
    let mut runners = Vec::new();
    for (transport, copies) in [(Transport::Tcp, "3, 2"), (Transport::Grpc, "6, 5"), (Transport::Shm, "1, 0")]
    {
        let name = format!("{transport:?}").to_lowercase();
        if !args.transport.is_empty() && !args.transport.contains(&name) {
            continue;
        }
        let namespace = store.open(transport, block_bytes).await?;
        let bench = Bench::new(args, namespace, block_bytes);
        runners.push(Runner { name, copies, bench, stored: Vec::new(), read: Vec::new() });
    }
    let mut raw = [
        Raw::default(),
        Raw { fills: true, ..Raw::default() },
        Raw { reno: true, ..Raw::default() },
        Raw { reno: true, uring: true, ..Raw::default() },
    ];
    for turn in 0..turns {
        // All within moments of each other: what else the machine does changes every ratio.
        for raw in &mut raw {
            let rate =
                tokio::task::block_in_place(|| raw.stream(block_bytes, turn_bytes, args.memory_bytes()))?;
            raw.rates.push(rate);
        }
        for Runner { bench, stored, read, .. } in &mut runners {
            if turn == 0 {
                // Memory that was never touched costs more than what is copied into it.
                bench.store(args.memory_bytes() * 3 / 2).await?;
                bench.read(args.memory_bytes()).await?;
            }
            let watch = Watch::start();
            stored.push(watch.rate(bench.store(turn_bytes).await?));
            let watch = Watch::start();
            read.push(watch.rate(bench.read(turn_bytes).await?));
            bench.namespace.evict(&[]).await?;
        }
    }
    let size = match block_bytes {
        ..0x10_0000 => format!("{} KiB", block_bytes / KIB),
        _ => format!("{} MiB", block_bytes >> 20),
    };
    let kib = block_bytes / KIB;
    for kind in &raw {
        let rate = median(&kind.rates);
        report.line(format!(
            "  {:<24}{:>8}{:>10}{:>8}{:>10}{:>8}{:>10}{:>8}",
            format!("{size} {}", kind.name()),
            number(rate.gb_s),
            number(rate.cpu_s_gb),
            number(ratio(&kind.rates, &raw[0].rates)),
            "",
            "",
            "",
            if kind.fills { 3 } else { 2 }
        ));
        report.figure(format!("{kib}k.{}", kind.name().replace(' ', "_")), rate.gb_s, "GB/s");
    }
    let [raw, filled, ..] = raw.map(|raw| raw.rates);
    for Runner { name, copies, bench, stored, read } in runners {
        let (store_ratio, read_ratio) = (ratio(&stored, &filled), ratio(&read, &raw));
        let (stored, read) = (median(&stored), median(&read));
        report.line(format!(
            "  {:<24}{:>8}{:>10}{:>8}{:>10}{:>10}{:>8}{:>8}",
            format!("{size} {name}"),
            number(stored.gb_s),
            number(stored.cpu_s_gb),
            number(store_ratio),
            number(read.gb_s),
            number(read.cpu_s_gb),
            number(read_ratio),
            copies
        ));
        let goal = |raw: &[Rate]| median(raw).gb_s * STREAM_GOAL;
        report.compared(format!("{kib}k.{name}.store"), stored.gb_s, "GB/s", goal(&filled), store_ratio);
        report.compared(format!("{kib}k.{name}.read"), read.gb_s, "GB/s", goal(&raw), read_ratio);
        report.figure(format!("{kib}k.{name}.store_cpu"), stored.cpu_s_gb, "CPU-s/GB");
        report.figure(format!("{kib}k.{name}.read_cpu"), read.cpu_s_gb, "CPU-s/GB");
        bench.namespace.close().await;
    }
    Ok(())
}

/// One thread sends, another receives into a buffer of its own.
#[derive(Default)]
struct Raw {
    /// Whether the sender copies each block from its source first, as a client fills what it stores.
    fills: bool,
    /// Instead of the system's congestion control.
    reno: bool,
    /// By io_uring, a ring for each side, instead of blocking calls.
    uring: bool,
    rates: Vec<Rate>,
}

impl Raw {
    fn name(&self) -> &'static str {
        match self {
            Self { fills: true, .. } => "raw stream, filled",
            Self { uring: true, .. } => "raw reno, io_uring",
            Self { reno: true, .. } => "raw stream, reno",
            _ => "raw stream",
        }
    }

    fn stream(&self, block_bytes: u64, bytes: u64, memory_bytes: u64) -> anyhow::Result<Rate> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let mut to = TcpStream::connect(listener.local_addr()?)?;
        if self.reno {
            set_tcp_congestion(&to, "reno").context("set the congestion control")?;
        }
        let (mut from, _) = listener.accept()?;
        let blocks = bytes / block_bytes;
        // One source, as a store's client here has, and as many targets as the store has slots.
        let mut buffers = vec![vec![1u8; block_bytes as usize]; (memory_bytes / block_bytes) as usize];
        let source = buffers[0].clone();
        if self.uring {
            let watch = Watch::start();
            uring_stream(to, from, source, &mut buffers, blocks as usize)?;
            return Ok(watch.rate(blocks * block_bytes));
        }
        let mut batch = vec![source.clone(); if self.fills { FILLED_BLOCKS } else { 0 }];
        let watch = Watch::start();
        std::thread::scope(|scope| -> anyhow::Result<()> {
            let sender = scope.spawn(move || -> std::io::Result<()> {
                for at in 0..blocks as usize {
                    let mut block = &source;
                    if self.fills {
                        let filled = &mut batch[at % FILLED_BLOCKS];
                        filled.copy_from_slice(&source);
                        block = filled;
                    }
                    to.write_all(block)?;
                }
                Ok(())
            });
            let count = buffers.len();
            for at in 0..blocks as usize {
                from.read_exact(&mut buffers[at % count])?;
            }
            sender.join().expect("no panic")?;
            Ok(())
        })?;
        black_box(&buffers);
        Ok(watch.rate(blocks * block_bytes))
    }
}

/// The same by io_uring.
fn uring_stream(
    to: TcpStream,
    from: TcpStream,
    mut source: Vec<u8>,
    buffers: &mut [Vec<u8>],
    blocks: usize,
) -> anyhow::Result<()> {
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let sender = scope.spawn(move || {
            tokio_uring::start(async move {
                let to = tokio_uring::net::TcpStream::from_std(to);
                for _ in 0..blocks {
                    let (sent, buffer) = to.write_all(source).await;
                    sent?;
                    source = buffer;
                }
                std::io::Result::Ok(())
            })
        });
        // A ring of its own as well: this thread is the bench's.
        let receiver = scope.spawn(move || {
            tokio_uring::start(async move {
                let from = tokio_uring::net::TcpStream::from_std(from);
                let count = buffers.len();
                for at in 0..blocks {
                    let (mut buffer, mut got) = (std::mem::take(&mut buffers[at % count]), 0);
                    while got < buffer.len() {
                        let (read, slice) = from.read(buffer.slice(got..)).await;
                        buffer = slice.into_inner();
                        got += match read? {
                            0 => anyhow::bail!("the stream ended early"),
                            bytes => bytes,
                        };
                    }
                    buffers[at % count] = buffer;
                }
                Ok(())
            })
        });
        receiver.join().expect("no panic")?;
        sender.join().expect("no panic")?;
        Ok(())
    })
}

/// A client that stores sequences and reads them again.
struct Bench {
    namespace: Namespace,
    block_bytes: u64,
    batch: usize,
    in_flight: usize,
    memory_bytes: u64,
    random: SmallRng,
    payload: Vec<u8>,
    /// Sequences stored last, a batch each.
    stored: Vec<Vec<SequenceHash>>,
}

impl Bench {
    fn new(args: &Args, namespace: Namespace, block_bytes: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(args.seed);
        let mut payload = vec![0; block_bytes as usize];
        random.fill_bytes(&mut payload);
        // A batch holds a small part of the store only.
        let memory_bytes = args.memory_bytes();
        let batch = args.batch.min(memory_bytes / 8 / block_bytes).max(1) as usize;
        let in_flight = args.in_flight as usize;
        Self { namespace, block_bytes, batch, in_flight, memory_bytes, random, payload, stored: Vec::new() }
    }

    async fn store(&mut self, bytes: u64) -> anyhow::Result<u64> {
        // What was read would stay, and these would go before they are.
        self.namespace.evict(&[]).await?;
        self.stored.clear();
        let (mut moved, mut under_way) = (0, VecDeque::new());
        let kept = (self.memory_bytes / 2 / self.block_bytes) as usize / self.batch;
        while moved < bytes {
            let hashes: Vec<_> =
                (0..self.batch).map(|_| SequenceHash::from_bytes(self.random.random())).collect();
            let reserved = self.namespace.reserve(None, &hashes).await?;
            let mut filled = Vec::with_capacity(self.batch);
            for block in reserved {
                let Reserved::Write(mut lease) = block else { anyhow::bail!("not reserved: {block:?}") };
                lease.fill(&self.payload);
                filled.push(lease);
            }
            let namespace = self.namespace.clone();
            under_way.push_back(tokio::spawn(async move { namespace.commit(filled).await }));
            if under_way.len() == self.in_flight {
                under_way.pop_front().expect("it has some").await??;
            }
            moved += hashes.len() as u64 * self.block_bytes;
            self.stored.push(hashes);
            if self.stored.len() > kept {
                self.stored.remove(0);
            }
        }
        for commit in under_way {
            commit.await??;
        }
        Ok(moved)
    }

    async fn read(&mut self, bytes: u64) -> anyhow::Result<u64> {
        // Which sequences stay is the policy's business.
        let mut here = Vec::new();
        for hashes in &self.stored {
            if self.namespace.match_prefix(hashes).await?.blocks as usize == hashes.len() {
                here.push(hashes);
            }
        }
        ensure!(!here.is_empty(), "none of {} sequences is stored any more", self.stored.len());
        let (mut moved, mut under_way) = (0, VecDeque::new());
        let mut batches = here.into_iter().cycle();
        loop {
            while moved < bytes && under_way.len() < self.in_flight {
                let hashes = batches.next().expect("a cycle has no end").clone();
                moved += hashes.len() as u64 * self.block_bytes;
                let namespace = self.namespace.clone();
                under_way
                    .push_back(tokio::spawn(async move { namespace.acquire(&hashes, Duration::ZERO).await }));
            }
            let Some(acquired) = under_way.pop_front() else { return Ok(moved) };
            let acquired = acquired.await??;
            ensure!(acquired.leases.len() == self.batch, "{} of {}", acquired.leases.len(), self.batch);
            for lease in &acquired.leases {
                black_box(lease.verified()?);
            }
        }
    }
}

/// Calls without payload.
async fn verbs(args: &Args, store: &Running, report: &mut Report) -> anyhow::Result<()> {
    let namespace = store.open(Transport::Shm, 4 * KIB).await?;
    let mut random = SmallRng::seed_from_u64(args.seed);
    let hashes: Vec<_> = (0..PROMPT_BLOCKS).map(|_| SequenceHash::from_bytes(random.random())).collect();
    let mut filled = Vec::new();
    for block in namespace.reserve(None, &hashes).await? {
        let Reserved::Write(mut lease) = block else { anyhow::bail!("not reserved: {block:?}") };
        lease.bytes_mut().fill(1);
        filled.push(lease);
    }
    namespace.commit(filled).await?;
    let rounds = if args.smoke { 200 } else { 5000 };
    let mut times = Vec::with_capacity(rounds);
    let begin = cpu();
    for _ in 0..rounds {
        let start = Instant::now();
        let acquired = namespace.acquire(&hashes, Duration::ZERO).await?;
        times.push(start.elapsed());
        ensure!(acquired.leases.len() == PROMPT_BLOCKS, "all of them are there");
    }
    let spent = (cpu() - begin).as_secs_f64() * 1e6 / rounds as f64;
    times.sort();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6;
    let start = (Instant::now(), cpu());
    for _ in 0..rounds {
        namespace.match_prefix(&hashes[..1]).await?;
    }
    let matches = rounds as f64 / start.0.elapsed().as_secs_f64();
    let match_cpu = (cpu() - start.1).as_secs_f64() * 1e6 / rounds as f64;
    report.line(format!(
        "\n  match and lease of {PROMPT_BLOCKS} blocks in one call: p50 {} us, p99 {} us, {} us CPU of both sides with the return\n  \
         unary calls, one at a time: {} a second, {} us CPU of both sides",
        number(at(0.5)),
        number(at(0.99)),
        number(spent),
        number(matches),
        number(match_cpu)
    ));
    report.compared("shm.prompt_p50", at(0.5), "us", PROMPT_GOAL_US, PROMPT_GOAL_US / at(0.5));
    report.figure("shm.prompt_p99", at(0.99), "us");
    report.figure("unary.calls", matches, "calls/s");
    report.figure("unary.cpu", match_cpu, "us");
    Ok(())
}
