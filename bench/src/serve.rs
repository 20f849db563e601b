//! Workload `serve`: chat requests against the OpenAI endpoint, streamed.
//!
//! First the headline, prefix reuse, alone on the machine; then a load of conversations that share prefixes.

use std::path::PathBuf;

use anyhow::{Context, bail};

use crate::client::{Client, Message};
use crate::cluster::Cluster;
use crate::load::{self, Loaded, Loop};
use crate::prompts::{Shape, Stream, rng, words};
use crate::report::{Report, number};
use crate::reuse::Reuse;

/// Time to first token, inter-token latency, throughput and cached tokens of the OpenAI endpoint
///
/// Prompts are made from a seed. Their lengths are given in tokens and met approximately: the tokens of a
/// word are measured first.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Run in seconds, with the toy model unless another is named; any error fails the run
    #[arg(long)]
    smoke: bool,

    /// Decides prompts and arrivals
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Also write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Measure this endpoint, e.g. http://127.0.0.1:8080 [default: a cluster for this run alone]
    #[arg(long, value_name = "URL", conflicts_with_all = ["kelvin", "model", "up"])]
    url: Option<String>,

    /// The binary that runs the cluster [default: kelvin beside this one]
    #[arg(long, value_name = "PATH")]
    kelvin: Option<PathBuf>,

    /// Model of that cluster: a GGUF file, or "toy"
    #[arg(long, env = "KELVIN_MODEL", value_name = "PATH|toy", required_unless_present_any = ["url", "smoke"])]
    model: Option<String>,

    /// More flags for that cluster's `kelvin up`, e.g. --up='--decode 2'
    #[arg(long, value_name = "FLAGS", default_value = "", allow_hyphen_values = true)]
    up: String,

    /// Clients of the closed loop [default: 4, smoke: 2]
    #[arg(long, value_name = "N", conflicts_with = "rate", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: Option<u32>,

    /// Open loop instead: conversations a second, arriving as a Poisson process
    #[arg(long, value_name = "R", value_parser = rate)]
    rate: Option<f64>,

    /// Conversations of the load; 0 leaves that part out [default: 32, smoke: 6]
    #[arg(long, value_name = "N")]
    conversations: Option<usize>,

    /// Turns a conversation; each is a request [default: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    turns: Option<u32>,

    /// Prefixes that the conversations share [default: 4, smoke: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    prefixes: Option<u32>,

    /// Tokens of such a prefix, about [default: 500, smoke: 200]
    #[arg(long, value_name = "TOKENS")]
    prefix_tokens: Option<u32>,

    /// Tokens of a question, about [default: 30]
    #[arg(long, value_name = "TOKENS")]
    suffix_tokens: Option<u32>,

    /// Most tokens of an answer [default: 32, smoke: 8]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    output_tokens: Option<u32>,

    /// Prefixes whose reuse is measured, cold against warm; 0 leaves that part out [default: 8, smoke: 3]
    #[arg(long, value_name = "N")]
    reuse_prefixes: Option<usize>,

    /// Tokens of each of them, about [default: 1000]
    #[arg(long, value_name = "TOKENS")]
    reuse_tokens: Option<u32>,

    /// Tokens of the questions behind them, about; each length is measured on every prefix
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_values_t = [8, 30])]
    reuse_question_tokens: Vec<u32>,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.001..=100_000.0).contains(&rate) => Ok(rate),
        _ => Err(format!("{text:?} is no rate; write requests a second, 0.001 to 100000, e.g. 2.5")),
    }
}

/// None when it was interrupted; the cluster is stopped then, too.
pub(crate) async fn run(args: Args) -> anyhow::Result<Option<()>> {
    let Some(url) = args.url.clone() else {
        let model = args.model.as_deref().unwrap_or("toy");
        let flags: Vec<String> = args.up.split_whitespace().map(str::to_owned).collect();
        eprintln!("starting a cluster for {model}");
        let cluster = tokio::select! {
            cluster = Cluster::start(args.kelvin.as_deref(), model, &flags) => cluster?,
            _ = tokio::signal::ctrl_c() => return Ok(None),
        };
        let outcome = measure_or_stop(&args, &cluster.url).await;
        eprintln!("stopping the cluster");
        cluster.stop().await;
        return outcome;
    };
    measure_or_stop(&args, &url).await
}

async fn measure_or_stop(args: &Args, url: &str) -> anyhow::Result<Option<()>> {
    tokio::select! {
        outcome = measure(args, url) => outcome.map(Some),
        _ = tokio::signal::ctrl_c() => Ok(None),
    }
}

async fn measure(args: &Args, url: &str) -> anyhow::Result<()> {
    let client = Client::connect(url).await?;
    let tokens_per_word =
        tokens_per_word(&client, args.seed).await.context("measure the tokens of a word")?;
    let in_words = |tokens: usize| ((tokens as f64 / tokens_per_word) as usize).max(1);
    let mut report = Report::new("serve", args.seed, &format!("{} at {url}", client.model));

    let suffix_words = in_words(args.size(args.suffix_tokens, 30, 30));
    let reuse = Reuse {
        prefixes: args.reuse_prefixes.unwrap_or(if args.smoke { 3 } else { 8 }),
        prefix_words: in_words(args.size(args.reuse_tokens, 1000, 1000)),
        question_words: args.reuse_question_tokens.iter().map(|&tokens| in_words(tokens as usize)).collect(),
    };
    reuse.run(&client, args.seed, &mut report).await?;
    let load = load(args, &client, suffix_words, &in_words, &mut report).await;
    report.finish(args.json.as_deref())?;
    let Some(Loaded { recorder, .. }) = load else { return Ok(()) };
    let errors = recorder.errors_total();
    if errors == recorder.requests || (args.smoke && errors > 0) {
        bail!("{errors} of {} requests failed", recorder.requests);
    }
    Ok(())
}

/// None when no load is wanted.
async fn load(
    args: &Args,
    client: &Client,
    suffix_words: usize,
    in_words: &impl Fn(usize) -> usize,
    report: &mut Report,
) -> Option<Loaded> {
    let count = args.conversations.unwrap_or(if args.smoke { 6 } else { 32 });
    if count == 0 {
        return None;
    }

    let shape = Shape {
        prefixes: args.size(args.prefixes, 4, 2),
        prefix_words: in_words(args.size(args.prefix_tokens, 500, 200)),
        suffix_words,
        turns: args.size(args.turns, 2, 2),
    };
    let how = match args.rate {
        Some(rate) => Loop::Open { rate },
        None => Loop::Closed { clients: args.size(args.clients, 4, 2) },
    };
    let conversations = shape.conversations(&mut rng(args.seed, Stream::Load), count);
    let tokens_max = args.output_tokens.unwrap_or(if args.smoke { 8 } else { 32 });
    let mut arrivals = rng(args.seed, Stream::Arrivals);
    let loaded = load::run(client, conversations, tokens_max, how, &mut arrivals).await;
    let title = match how {
        Loop::Closed { clients } => format!("closed loop, {clients} clients"),
        Loop::Open { rate } => format!("open loop, {rate} conversations a second"),
    };
    report.line(format!(
        "\n{title}: {count} conversations of {} turns, {} prefixes",
        shape.turns, shape.prefixes
    ));
    tell(&loaded, report);
    Some(loaded)
}

impl Args {
    /// A number that was given, or the default of this size of run.
    fn size(&self, given: Option<u32>, full: u32, smoke: u32) -> usize {
        given.unwrap_or(if self.smoke { smoke } else { full }) as usize
    }
}

fn tell(loaded: &Loaded, report: &mut Report) {
    let Loaded { recorder, elapsed } = loaded;
    report.line(format!("  {:<24}{:>12}{:>12}{:>12}", "", "P50", "P95", "P99"));
    report.distribution("load.first_token", &recorder.first_us, 1e3, "ms");
    report.distribution("load.inter_token", &recorder.gap_us, 1e3, "ms");
    report.distribution("load.end_to_end", &recorder.total_us, 1e3, "ms");
    report.distribution("load.prompt", &recorder.prompt_tokens, 1.0, "tokens");
    report.distribution("load.cached", &recorder.cached_tokens, 1.0, "tokens");
    let seconds = elapsed.as_secs_f64();
    let answered = recorder.requests - recorder.errors_total();
    let tokens_rate = recorder.completion_tokens as f64 / seconds;
    let requests_rate = answered as f64 / seconds;
    report.line(format!(
        "  {} tokens/s, {} requests/s; {answered} answered, {} errors, {} s",
        number(tokens_rate),
        number(requests_rate),
        recorder.errors_total(),
        number(seconds)
    ));
    for (error, count) in &recorder.errors {
        report.line(format!("  error, {count} times: {error}"));
    }
    report.figure("load.generated", tokens_rate, "tokens/s");
    report.figure("load.answered", requests_rate, "requests/s");
    report.figure("load.errors", recorder.errors_total() as f64, "requests");
}

/// The model's tokens for one of our words: the difference of a longer and a shorter prompt, so that the
/// chat template does not count.
pub(crate) async fn tokens_per_word(client: &Client, seed: u64) -> anyhow::Result<f64> {
    const SHORT: usize = 8;
    const LONG: usize = 72;
    let mut rng = rng(seed, Stream::Calibration);
    let mut tokens = [0; 2];
    for (tokens, count) in tokens.iter_mut().zip([SHORT, LONG]) {
        let messages = [Message::new("user", words(&mut rng, count))];
        let completed = client.chat(&messages, 1).await.map_err(|failure| anyhow::anyhow!("{failure}"))?;
        *tokens = completed.usage.prompt_tokens;
    }
    let difference = tokens[1].saturating_sub(tokens[0]);
    if difference == 0 {
        bail!("a longer prompt has no more tokens ({tokens:?}): the endpoint's usage is wrong");
    }
    Ok(difference as f64 / (LONG - SHORT) as f64)
}
