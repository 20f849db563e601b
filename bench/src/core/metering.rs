//! What it costs a store to measure itself: the same load with and without.
//!
//! Clients in this process ask a whole store, over its socket and shared memory, for prompts as fast as it answers:
//! match, lease, give back; one prompt in four is not there. There are sixteen, so that no core of a small machine runs
//! dry: with two, a prompt costs three times as much, most of it to send threads to sleep and wake them, and how often
//! that happens changes with the least delay. No payload is touched, so that nothing hides the cost.
//!
//! Turns with and without take each other's place. The page is scraped every five seconds, as the deployment files
//! have it, always in a turn with. Ghosts and curves save up time while they are off. So both come twice as often, in
//! turns with, as in a store where all is always on. Compared is processor time of the whole process, clients included;
//! the wall clock is given as well.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use kelvin_kvstore::bench_support::{Core, set_measuring, span_of_a_call};
use kelvin_kvstore::server::{Listening, ServerConfig, serve};
use kelvin_kvstore::{Client, ClientOptions, Namespace, Reserved, SequenceHash};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use crate::namespace::spec;
use crate::report::{Report, number};

/// What the issue allows.
const LIMIT_PERCENT: f64 = 2.0;
const CLIENTS: usize = 16;
const PROMPTS: usize = 64;
const PROMPT_BLOCKS: usize = 96;
const BLOCK_BYTES: u64 = 4096;
/// Longer than ghosts and curves watch at once.
const BURST: Duration = Duration::from_secs(1);
const SCRAPE_EVERY: Duration = Duration::from_secs(5);

/// Processor time of all threads.
fn cpu() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// How long one turn took.
#[derive(Clone, Copy)]
struct Turn {
    cpu: Duration,
    wall: Duration,
}

pub(super) fn measure(report: &mut Report, seed: u64, smoke: bool) -> anyhow::Result<()> {
    calls(report, seed, smoke)?;
    // It may be called within a runtime.
    std::thread::scope(|scope| {
        let service = scope.spawn(|| {
            let runtime = tokio::runtime::Runtime::new().context("start a runtime")?;
            let result = runtime.block_on(service(report, seed, smoke));
            set_measuring(true);
            result
        });
        service.join().expect("the bench does not panic")
    })
}

/// Ratio of the sums: bursts and scrapes count for what they take.
fn mean(pairs: &[(Turn, Turn)], read: fn(&Turn) -> Duration) -> f64 {
    let (on, off): (Vec<f64>, Vec<f64>) =
        pairs.iter().map(|(on, off)| (read(on).as_secs_f64(), read(off).as_secs_f64())).unzip();
    on.iter().sum::<f64>() / off.iter().sum::<f64>()
}

/// Median of the ratios of turns that followed each other.
fn median(pairs: &[(Turn, Turn)], read: fn(&Turn) -> Duration) -> f64 {
    let mut ratios: Vec<f64> =
        pairs.iter().map(|(on, off)| read(on).as_secs_f64() / read(off).as_secs_f64()).collect();
    ratios.sort_by(f64::total_cmp);
    ratios[ratios.len() / 2]
}

/// The core's part of a match alone: what there is to measure, without any of what a call costs besides.
fn calls(report: &mut Report, seed: u64, smoke: bool) -> anyhow::Result<()> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let core = Core::new((PROMPTS * PROMPT_BLOCKS) as u64 * BLOCK_BYTES + (4 << 20))?;
    let session = core.open(BLOCK_BYTES).map_err(|refusal| anyhow::anyhow!(refusal.message))?;
    let prompts = prompts(&mut rng);
    for prompt in &prompts {
        core.store(&session, prompt, |_, _| kelvin_kernels::Checksum(0))?;
    }
    let turn = |measuring: bool| -> anyhow::Result<Duration> {
        set_measuring(measuring);
        let start = super::cpu();
        let found: usize = prompts.iter().map(|prompt| core.look_up(&session, prompt)).sum();
        let took = super::cpu() - start;
        set_measuring(true);
        ensure!(found == PROMPTS * PROMPT_BLOCKS, "{found} blocks were found");
        Ok(took)
    };
    let turns = if smoke { 4 } else { 40 };
    let mut in_burst = Duration::MAX;
    for _ in 0..turns {
        in_burst = turn(true)?.min(in_burst);
    }
    let begin = Instant::now();
    while begin.elapsed() < BURST {
        turn(true)?;
    }
    let (mut with, mut without) = (Duration::MAX, Duration::MAX);
    for _ in 0..turns {
        with = turn(true)?.min(with);
        without = turn(false)?.min(without);
    }
    let ns = |time: Duration| time.as_nanos() as f64 / (PROMPTS * PROMPT_BLOCKS) as f64;
    report.line(format!(
        "\n  metrics: a match in the core takes {} ns a block with them, {} without; {} in a burst in which ghosts and\n  \
         curve watch, which is an eight-hundredth of the time, for each (best of turns)",
        number(ns(with)),
        number(ns(without)),
        number(ns(in_burst)),
    ));
    report.compared("metrics.match", ns(with), "ns", ns(without), ns(without) / ns(with));
    report.figure("metrics.match_in_burst", ns(in_burst), "ns");
    let memory = core.metrics_memory_bytes();
    report.line(format!("  memory of what one namespace and its tenant keep for them: {} KiB", memory >> 10));
    report.figure("metrics.core_memory", memory as f64, "bytes");
    let span = spans();
    report.line(format!("  tracing, off: {} ns a call", number(span)));
    report.figure("tracing.off", span, "ns");
    Ok(())
}

/// Nanoseconds that a call's span takes while none are exported.
fn spans() -> f64 {
    const CALLS: u32 = 1 << 20;
    let turn = || {
        let start = super::cpu();
        (0..CALLS).for_each(|_| span_of_a_call());
        (super::cpu() - start).as_nanos() as f64 / f64::from(CALLS)
    };
    (0..8).map(|_| turn()).fold(f64::INFINITY, f64::min)
}

fn prompts(rng: &mut SmallRng) -> Vec<Vec<SequenceHash>> {
    let mut prompt = || (0..PROMPT_BLOCKS).map(|_| SequenceHash::from_bytes(rng.random())).collect();
    (0..PROMPTS).map(|_| prompt()).collect()
}

async fn service(report: &mut Report, seed: u64, smoke: bool) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let config = ServerConfig {
        socket: Some(folder.path().join("kv.sock")),
        admin_listen: Some(([127, 0, 0, 1], 0).into()),
        ..ServerConfig::new(64 << 20)
    };
    let stop = CancellationToken::new();
    let (ready, listening) = tokio::sync::oneshot::channel();
    let store = tokio::spawn(serve(config, |listening| drop(ready.send(listening)), stop.clone()));
    let listening: Listening = listening.await.context("the store does not listen")?;
    let address = listening.admin.context("the store has an admin page")?;

    let mut rng = SmallRng::seed_from_u64(seed);
    let stored = prompts(&mut rng);
    let strange = prompts(&mut rng);
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        clients.push(open(&listening, number).await?);
    }
    for prompt in &stored {
        fill(&clients[0], prompt).await?;
    }
    let (count, turns) = if smoke { (12, 8) } else { (100, 960) };
    // The time that ghosts and curves saved up while nothing happened is no part of a full load.
    let begin = Instant::now();
    while begin.elapsed() < 2 * BURST {
        turn(&clients, &stored, &strange, count).await?;
    }
    let mut pairs = Vec::with_capacity(turns);
    let (mut scraped, mut page, mut scrapes) = (Instant::now(), String::new(), 0);
    for number in 0..turns {
        let mut both = [None; 2];
        // Who goes first changes.
        for on in [number % 2 == 0, number % 2 != 0] {
            set_measuring(on);
            let (wall, begin) = (Instant::now(), cpu());
            let due = on && (scraped.elapsed() >= SCRAPE_EVERY || page.is_empty());
            let scraping = due.then(|| tokio::spawn(scrape(address)));
            turn(&clients, &stored, &strange, count).await?;
            if let Some(scraping) = scraping {
                page = scraping.await??;
                (scraped, scrapes) = (Instant::now(), scrapes + 1);
            }
            both[usize::from(!on)] = Some(Turn { cpu: cpu() - begin, wall: wall.elapsed() });
        }
        let [Some(on), Some(off)] = both else { anyhow::bail!("a turn is missing") };
        pairs.push((on, off));
    }
    set_measuring(true);
    let (by_cpu, by_wall) = (mean(&pairs, |turn| turn.cpu), mean(&pairs, |turn| turn.wall));
    let typical = median(&pairs, |turn| turn.cpu);
    let off: Duration = pairs.iter().map(|(_, off)| off.wall).sum();
    let rate = (turns * count * CLIENTS) as f64 / off.as_secs_f64();
    let percent = |ratio: f64| (ratio - 1.0) * 100.0;
    report.line(format!(
        "  a whole store at full load, {} prompts of {PROMPT_BLOCKS} blocks a second without: {:+.2} % processor time \
         with them,\n  {:+.2} % by the wall clock, over {turns} pairs of turns with {scrapes} scrapes; {:+.2} % in the pair in the \
         middle; limit {LIMIT_PERCENT} %",
        number(rate),
        percent(by_cpu),
        percent(by_wall),
        percent(typical),
    ));
    let figure = |name: &str| -> f64 {
        let line = page.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|value| value.trim().parse().ok()).unwrap_or(0.0)
    };
    let (memory, lines) = (
        figure("kelvin_store_metrics_memory_bytes "),
        page.lines().filter(|line| !line.starts_with('#')).count(),
    );
    report.line(format!(
        "  its memory of them: {} KiB; its page: {lines} samples, {} KiB",
        number(memory / 1024.0),
        page.len() >> 10
    ));
    report.compared("metrics.cpu", percent(by_cpu), "%", LIMIT_PERCENT, LIMIT_PERCENT / percent(by_cpu));
    report.compared("metrics.wall", percent(by_wall), "%", LIMIT_PERCENT, LIMIT_PERCENT / percent(by_wall));
    report.figure("metrics.cpu_typical", percent(typical), "%");
    report.figure("metrics.memory", memory, "bytes");
    report.figure("metrics.samples", lines as f64, "samples");
    drop(clients);
    stop.cancel();
    store.await.context("the store ended oddly")??;
    Ok(())
}

async fn open(listening: &Listening, number: usize) -> anyhow::Result<Namespace> {
    let options = ClientOptions::new(format!("http://{}", listening.grpc), format!("bench {number}"));
    let spec = spec("metrics", 16, BLOCK_BYTES);
    Ok(Client::connect(options).await?.open(spec).await?)
}

async fn fill(namespace: &Namespace, hashes: &[SequenceHash]) -> anyhow::Result<()> {
    let mut filled = Vec::new();
    for block in namespace.reserve(None, hashes).await? {
        let Reserved::Write(mut lease) = block else { anyhow::bail!("not reserved: {block:?}") };
        lease.bytes_mut().fill(1);
        filled.push(lease);
    }
    namespace.commit(filled).await?;
    Ok(())
}

/// So many prompts by each client, all clients at once.
async fn turn(
    clients: &[Namespace],
    stored: &[Vec<SequenceHash>],
    strange: &[Vec<SequenceHash>],
    count: usize,
) -> anyhow::Result<()> {
    let one = async |namespace: &Namespace| -> anyhow::Result<()> {
        for number in 0..count {
            let prompt = if number % 4 == 3 { strange } else { stored };
            let prompt = &prompt[number % PROMPTS];
            let found = namespace.match_prefix(prompt).await?.blocks as usize;
            if found > 0 {
                let acquired = namespace.acquire(&prompt[..found], Duration::ZERO).await?;
                ensure!(acquired.leases.len() == found, "all that was found can be leased");
            }
        }
        Ok(())
    };
    futures::future::try_join_all(clients.iter().map(one)).await?;
    Ok(())
}

async fn scrape(address: SocketAddr) -> anyhow::Result<String> {
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\nhost: localhost\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer.split_once("\r\n\r\n").context("the page has a head")?.1.to_owned())
}
