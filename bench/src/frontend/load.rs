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

/// Different words; the n-th is n times as rare as the first, as in what people write.
const WORDS: f64 = 20_000.0;
const SYLLABLES: [&str; 16] =
    ["the", "an", "block", "to", "re", "ing", "ka", "store", "mi", "on", "er", "lo", "pre", "fi", "su", "ma"];
/// Different questions behind each prefix.
const QUESTIONS: usize = 64;

/// What is replaced in every request by what was never seen before: so often in a question.
const MARK: &[u8; 16] = b"0123456789abcdef";
const MARKS: usize = 8;

/// A request, and where its marks are.
struct Template {
    bytes: Vec<u8>,
    marks: Vec<usize>,
}

/// Requests, ready to be written.
pub(super) struct Load {
    requests: Arc<Vec<Template>>,
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
                let mut rank = WORDS.powf(rng.random()) as usize;
                while rank > 0 {
                    text.push_str(SYLLABLES[rank % SYLLABLES.len()]);
                    rank /= SYLLABLES.len();
                }
                text.push(' ');
            }
            text.truncate(bytes);
            text
        };
        let prefixes: Vec<_> = (0..args.prefixes).map(|_| text(bytes * 3 / 4)).collect();
        let mut requests = Vec::new();
        for prefix in &prefixes {
            for _ in 0..QUESTIONS {
                let part = (bytes / 4 / MARKS).saturating_sub(MARK.len());
                let mark = String::from_utf8_lossy(MARK);
                let question: String = (0..MARKS).map(|_| format!("{mark}{}", text(part))).collect();
                let stream = if args.stream > 0 { ",\"stream\":true" } else { "" };
                let body = format!(
                    r#"{{"model":"{MODEL}","messages":[{{"role":"system","content":"{prefix}"}},{{"role":"user","content":"{question}"}}],"max_tokens":{}{stream}}}"#,
                    args.stream.max(1)
                );
                let bytes = format!(
                        "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                        body.len()
                    )
                    .into_bytes();
                let at_mark = |at: &usize| bytes[*at..].starts_with(MARK);
                let marks = (0..bytes.len()).filter(at_mark).collect();
                requests.push(Template { bytes, marks });
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
    requests: &[Template],
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
    requests: &[Template],
    rng: &mut SmallRng,
    until: Instant,
    histogram: &mut Histogram<u64>,
) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut inbox = Inbox::default();
    let mut request = Vec::new();
    while Instant::now() < until {
        let template = &requests[rng.random_range(0..requests.len())];
        request.clone_from(&template.bytes);
        // No question comes twice: a router that keeps what it made of one gains nothing by it.
        for &at in &template.marks {
            request[at..at + MARK.len()].copy_from_slice(format!("{:016x}", rng.random::<u64>()).as_bytes());
        }
        let begun = Instant::now();
        stream.write_all(&request).await?;
        let Some(head) = inbox.head(&mut stream).await? else { return Ok(()) };
        inbox.body(&mut stream, &head).await?;
        ensure!(head.start.contains(" 200 "), "{}", head.start);
        histogram.record(u64::try_from(begun.elapsed().as_nanos())?)?;
    }
    Ok(())
}
