//! Clients that ask as fast as they are answered.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::ensure;
use hdrhistogram::Histogram;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::{io::AsyncWriteExt, net::TcpStream, task::JoinSet};

use super::{Args, backend::MODEL, target::Target, wire::Inbox};

const WORDS: [&str; 16] = [
    "block", "prefix", "cache", "token", "the", "of", "model", "router", "a", "worker", "stores", "reads",
    "and", "tier", "memory", "in",
];
/// Different questions behind each prefix.
const QUESTIONS: usize = 64;

/// What is replaced in every request.
const MARK: &[u8; 16] = b"0123456789abcdef";

/// Requests, ready to be written.
pub(super) struct Load {
    requests: Arc<Vec<Vec<u8>>>,
    connections: usize,
    seed: u64,
}

/// What came of one run.
pub(super) struct Measured {
    requests: u64,
    pub(super) failed: u64,
    took: Duration,
    latency_ns: Histogram<u64>,
    /// Of the router.
    cpu: Duration,
}

impl Measured {
    pub(super) fn rate(&self) -> f64 {
        self.requests as f64 / self.took.as_secs_f64()
    }

    pub(super) fn quantile_ms(&self, quantile: f64) -> f64 {
        self.latency_ns.value_at_quantile(quantile) as f64 / 1e6
    }

    pub(super) fn cpu_ms(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e3 / self.requests.max(1) as f64
    }
}

impl Load {
    pub(super) fn new(args: &Args) -> Self {
        let mut rng = SmallRng::seed_from_u64(args.seed);
        let bytes = args.prompt_bytes as usize;
        let mut text = |bytes: usize| {
            let mut text = String::new();
            while text.len() < bytes {
                text.push_str(WORDS[rng.random_range(0..WORDS.len())]);
                text.push(' ');
            }
            text.truncate(bytes);
            text
        };
        let prefixes: Vec<_> = (0..args.prefixes).map(|_| text(bytes * 3 / 4)).collect();
        let mut requests = Vec::new();
        for prefix in &prefixes {
            for _ in 0..QUESTIONS {
                let question = text(bytes - bytes * 3 / 4 - MARK.len());
                let stream = if args.stream > 0 { ",\"stream\":true" } else { "" };
                let mark = String::from_utf8_lossy(MARK);
                let body = format!(
                    r#"{{"model":"{MODEL}","messages":[{{"role":"system","content":"{prefix}"}},{{"role":"user","content":"{mark}{question}"}}],"max_tokens":{}{stream}}}"#,
                    args.stream.max(1)
                );
                requests.push(
                    format!(
                        "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                        body.len()
                    )
                    .into_bytes(),
                );
            }
        }
        Self { requests: Arc::new(requests), connections: args.connections as usize, seed: args.seed }
    }

    /// Asks `addresses` for so long; `target` is who is measured.
    pub(super) async fn run(
        &self,
        addresses: &[SocketAddr],
        time: Duration,
        target: Option<&Target>,
    ) -> anyhow::Result<Measured> {
        let before = target.map(Target::cpu).transpose()?;
        let begun = Instant::now();
        let mut clients = JoinSet::new();
        for number in 0..self.connections {
            let address = addresses[number % addresses.len()];
            let (requests, seed) = (self.requests.clone(), self.seed + number as u64);
            clients.spawn(async move { client(address, &requests, seed, begun + time).await });
        }
        let mut latency_ns = Histogram::new_with_bounds(1, 600_000_000_000, 3)?;
        let (mut requests, mut failed, mut first_error) = (0, 0, None);
        while let Some(client) = clients.join_next().await {
            let (histogram, bad, error) = client?;
            requests += histogram.len();
            latency_ns.add(histogram)?;
            failed += bad;
            first_error = first_error.or(error);
        }
        let took = begun.elapsed();
        if let Some(error) = first_error {
            eprintln!("  {failed} requests failed; the first: {error:#}");
        }
        ensure!(requests > 0, "no request was answered");
        let cpu = match (target, before) {
            (Some(target), Some(before)) => target.cpu()?.saturating_sub(before),
            _ => Duration::ZERO,
        };
        Ok(Measured { requests, failed, took, latency_ns, cpu })
    }
}

async fn client(
    address: SocketAddr,
    requests: &[Vec<u8>],
    seed: u64,
    until: Instant,
) -> (Histogram<u64>, u64, Option<anyhow::Error>) {
    let mut histogram = Histogram::new_with_bounds(1, 600_000_000_000, 3).expect("the bounds are possible");
    let mut rng = SmallRng::seed_from_u64(seed);
    let (mut failed, mut first) = (0, None);
    while Instant::now() < until {
        if let Err(error) = connection(address, requests, &mut rng, until, &mut histogram).await {
            failed += 1;
            first = first.or(Some(error));
        }
    }
    (histogram, failed, first)
}

/// One connection until the time is over or something fails.
async fn connection(
    address: SocketAddr,
    requests: &[Vec<u8>],
    rng: &mut SmallRng,
    until: Instant,
    histogram: &mut Histogram<u64>,
) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut inbox = Inbox::default();
    let mut request = Vec::new();
    while Instant::now() < until {
        request.clone_from(&requests[rng.random_range(0..requests.len())]);
        // No question comes twice: a router that keeps what it made of one gains nothing by it.
        let at = request.windows(MARK.len()).rposition(|window| window == MARK).unwrap_or(0);
        request[at..at + MARK.len()].copy_from_slice(format!("{:016x}", rng.random::<u64>()).as_bytes());
        let begun = Instant::now();
        stream.write_all(&request).await?;
        let Some(head) = inbox.head(&mut stream).await? else { return Ok(()) };
        inbox.body(&mut stream, &head).await?;
        ensure!(head.start.contains(" 200 "), "{}", head.start);
        histogram.record(u64::try_from(begun.elapsed().as_nanos())?)?;
    }
    Ok(())
}
