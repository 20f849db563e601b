//! Workload `clusters`: one load on several shapes of a native cluster, each on the same cores.
//!
//! # Overview
//! Requests of one turn share most of their prompt with others. They are put to a cluster of prefill and decode
//! workers and to one of decode workers alone, and to each of them again with the store of no use: there every
//! request has a `cache_salt` of its own, so that all else (hand-over through the store, commits) is as before
//! and nothing is found. A cluster is started anew for each, and loaded once before what counts, with other
//! prompts, so that models are in memory and rates are known.

use std::path::PathBuf;

use anyhow::{Context, bail};

use crate::client::Client;
use crate::cluster::Cluster;
use crate::load::{self, Loaded, Loop};
use crate::prompts::{Conversation, Shape, Stream, rng};
use crate::report::{Report, number};
use crate::serve::tokens_per_word;

/// One load on a split cluster, on workers that do both, and on both with nothing to reuse
///
/// All of them on the same cores: one prefill and one decode worker against two that evaluate and decode. Then the
/// same two with a salt a request, so that the store is of no use.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Run in seconds, with the toy model unless another is named; any error fails the run
    #[arg(long)]
    smoke: bool,

    /// Decides the prompts
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Also write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// The binary that runs the clusters [default: kelvin beside this one]
    #[arg(long, value_name = "PATH")]
    kelvin: Option<PathBuf>,

    /// Model: a GGUF file, or "toy"
    #[arg(long, env = "KELVIN_MODEL", value_name = "PATH|toy", required_unless_present = "smoke")]
    model: Option<String>,

    /// More flags for each `kelvin up`, e.g. --up='--context 4096'
    #[arg(long, value_name = "FLAGS", default_value = "", allow_hyphen_values = true)]
    up: String,

    /// Clients, each with one request after the other [default: 4, smoke: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: Option<u32>,

    /// Requests that count, for each cluster [default: 64, smoke: 6]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    requests: Option<u32>,

    /// Prefixes that the requests share [default: 4, smoke: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    prefixes: Option<u32>,

    /// Tokens of a prompt, about [default: 750, smoke: 250]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(10..))]
    prompt_tokens: Option<u32>,

    /// Part of a prompt that is shared, percent
    #[arg(long, value_name = "PERCENT", default_value_t = 80, value_parser = clap::value_parser!(u32).range(1..=99))]
    shared: u32,

    /// Most tokens of an answer [default: 32, smoke: 8]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    output_tokens: Option<u32>,
}

/// Requests of the load that does not count.
const WARM_UP: usize = 4;

/// A shape of cluster.
#[derive(Clone, Copy, Debug)]
struct Kind {
    name: &'static str,
    title: &'static str,
    prefill: u32,
    decode: u32,
    reuse: bool,
}

const KINDS: [Kind; 4] = [
    Kind { name: "split", title: "1 prefill, 1 decode", prefill: 1, decode: 1, reuse: true },
    Kind { name: "both", title: "2 that do both", prefill: 0, decode: 2, reuse: true },
    Kind {
        name: "split_alone",
        title: "1 prefill, 1 decode, nothing to reuse",
        prefill: 1,
        decode: 1,
        reuse: false,
    },
    Kind {
        name: "both_alone",
        title: "2 that do both, nothing to reuse",
        prefill: 0,
        decode: 2,
        reuse: false,
    },
];

/// None when it was interrupted; the cluster is stopped then, too.
pub(crate) async fn run(args: Args) -> anyhow::Result<Option<()>> {
    let model = args.model.as_deref().unwrap_or("toy");
    let mut report = Report::new("clusters", args.seed, model);
    let mut rates = Vec::new();
    let mut failed = 0;
    for kind in KINDS {
        eprintln!("{}", kind.title);
        let mut flags: Vec<String> =
            ["--prefill", &kind.prefill.to_string(), "--decode", &kind.decode.to_string()]
                .map(str::to_owned)
                .to_vec();
        flags.extend(args.up.split_whitespace().map(str::to_owned));
        let cluster = tokio::select! {
            cluster = Cluster::start(args.kelvin.as_deref(), model, &flags) => cluster?,
            _ = tokio::signal::ctrl_c() => return Ok(None),
        };
        let loaded = tokio::select! {
            loaded = measure(&args, &cluster.url, kind) => Some(loaded),
            _ = tokio::signal::ctrl_c() => None,
        };
        cluster.stop().await;
        let Some(loaded) = loaded.transpose()? else { return Ok(None) };
        failed += loaded.recorder.errors_total();
        rates.push((kind, tell(kind, &loaded, &mut report)));
    }
    compare(&rates, &mut report);
    report.finish(args.json.as_deref())?;
    if failed > 0 {
        bail!("{failed} requests failed");
    }
    Ok(Some(()))
}

async fn measure(args: &Args, url: &str, kind: Kind) -> anyhow::Result<Loaded> {
    let client = Client::connect(url).await?;
    let client = if kind.reuse { client } else { client.without_reuse() };
    let per_word = tokens_per_word(&client, args.seed).await.context("measure the tokens of a word")?;
    let size = |given: Option<u32>, full, smoke| given.unwrap_or(if args.smoke { smoke } else { full });
    let prompt = f64::from(size(args.prompt_tokens, 750, 250)) / per_word;
    let shared = prompt * f64::from(args.shared) / 100.0;
    let shape = Shape {
        prefixes: size(args.prefixes, 4, 2) as usize,
        prefix_words: (shared as usize).max(1),
        suffix_words: ((prompt - shared) as usize).max(1),
        turns: 1,
    };
    let how = Loop::Closed { clients: size(args.clients, 4, 2) as usize };
    let tokens_max = size(args.output_tokens, 32, 8);
    let mut arrivals = rng(args.seed, Stream::Arrivals);
    let mut load = async |conversations: Vec<Conversation>| {
        load::run(&client, conversations, tokens_max, how, &mut arrivals).await
    };
    load(shape.conversations(&mut rng(args.seed, Stream::Reuse), WARM_UP)).await;
    let count = size(args.requests, 64, 6) as usize;
    Ok(load(shape.conversations(&mut rng(args.seed, Stream::Load), count)).await)
}

/// Requests a second.
fn tell(kind: Kind, loaded: &Loaded, report: &mut Report) -> f64 {
    let Loaded { recorder, elapsed } = loaded;
    let name = |what: &str| format!("{}.{what}", kind.name);
    report.line(format!("\n{}", kind.title));
    report.line(format!("  {:<24}{:>12}{:>12}{:>12}", "", "P50", "P95", "P99"));
    report.distribution(&name("first_token"), &recorder.first_us, 1e3, "ms");
    report.distribution(&name("inter_token"), &recorder.gap_us, 1e3, "ms");
    report.distribution(&name("prompt"), &recorder.prompt_tokens, 1.0, "tokens");
    report.distribution(&name("cached"), &recorder.cached_tokens, 1.0, "tokens");
    let answered = (recorder.requests - recorder.errors_total()) as f64;
    let requests = answered / elapsed.as_secs_f64();
    let tokens = recorder.completion_tokens as f64 / elapsed.as_secs_f64();
    report.line(format!(
        "  {} requests/s, {} tokens/s; {} of {} answered",
        number(requests),
        number(tokens),
        answered,
        recorder.requests
    ));
    for (error, count) in &recorder.errors {
        report.line(format!("  error, {count} times: {error}"));
    }
    report.figure(name("answered"), requests, "requests/s");
    report.figure(name("generated"), tokens, "tokens/s");
    requests
}

/// What the store gives to each shape, and which shape answers more.
fn compare(rates: &[(Kind, f64)], report: &mut Report) {
    report.line("");
    for (kind, rate) in rates.iter().filter(|(kind, _)| kind.reuse) {
        let twin = rates.iter().find(|(twin, _)| !twin.reuse && twin.prefill == kind.prefill);
        if let Some((_, without)) = twin {
            report.line(format!(
                "{}: {}x the requests/s with the store of use",
                kind.title,
                number(rate / without)
            ));
            report.compared(format!("{}.reuse", kind.name), *rate, "requests/s", *without, rate / without);
        }
    }
    if let [(split, a), (both, b), ..] = rates {
        report.line(format!("{} against {}: {}x the requests/s", split.title, both.title, number(a / b)));
        report.compared("split_both", *a, "requests/s", *b, a / b);
    }
}
