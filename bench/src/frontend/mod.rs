//! Workload `frontend`: what a router adds to a request, beside other routers on the same backends.
//!
//! Toy engines answer at once; clients ask in a closed loop; each router is a process of its own between them, one
//! after the other and in turns. Printed are requests a second, the router's processor time a request (its whole
//! process group, from /proc) and its latency beside asking a backend directly. `--peer NAME=COMMAND` adds a router:
//! `{port}` and `{urls}` in its command are replaced.

mod backend;
mod events;
mod load;
mod target;
mod wire;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, ensure};

use crate::report::{Report, number};
use backend::Backends;
use events::Events;
use load::{Load, Measured};
use target::{Kelvin, Target};

/// What a router adds to a request, beside other routers on the same backends
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Run in seconds
    #[arg(long)]
    smoke: bool,

    /// Decides prompts
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Also write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// The kelvin binary [default: beside this one]
    #[arg(long, value_name = "PATH")]
    kelvin: Option<PathBuf>,

    /// GGUF file: the engines publish KV events, and the router tokenizes every prompt with its vocabulary and hashes
    /// the tokens [default: text alone]
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,

    /// Another router, started as COMMAND with {port} and {urls} (with spaces between them) replaced
    #[arg(long = "peer", value_name = "NAME=COMMAND", value_parser = peer)]
    peers: Vec<(String, String)>,

    /// Toy engines
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=64))]
    backends: u64,

    /// Connections that ask at once
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    connections: u64,

    /// Bytes of a prompt
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u64).range(64..=1_000_000))]
    prompt_bytes: u64,

    /// Prefixes that prompts share, three quarters of each prompt
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    prefixes: u64,

    /// Streamed tokens an answer; 0 for answers at once
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=10_000))]
    stream: u64,

    /// Seconds a measurement
    #[arg(long, value_name = "N", default_value_t = 5.0)]
    seconds: f64,

    /// Turns, each of which measures everything once
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=100))]
    turns: u64,
}

fn peer(text: &str) -> Result<(String, String), String> {
    let (name, command) = text.split_once('=').ok_or("it is not of the form NAME=COMMAND")?;
    match command.contains("{port}") && command.contains("{urls}") {
        true => Ok((name.to_owned(), command.to_owned())),
        false => Err("the command names no {port} or no {urls}".into()),
    }
}

/// Runs all of it.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    ensure!(
        args.seconds > 0.0 && args.seconds <= 600.0,
        "--seconds is {}, but must be up to 600",
        args.seconds
    );
    let (seconds, turns) = if args.smoke { (0.5, 1) } else { (args.seconds, args.turns) };
    let backends = Backends::start(args.backends as usize, args.stream).await?;
    let load = Load::new(&args);
    let urls = backends.urls();
    let events = if args.model.is_some() { urls.len() } else { 0 };
    let events = Events::start(events).await.context("publish KV events")?;
    let kelvin = Kelvin {
        program: args.kelvin.as_deref(),
        model: args.model.as_deref(),
        events: events.endpoints(),
        stream: args.stream > 0,
    };
    let mut targets = vec![Target::kelvin(&kelvin, &urls).await?];
    for (name, command) in &args.peers {
        match Target::peer(name, command, &urls, args.stream > 0).await {
            Ok(target) => targets.push(target),
            Err(error) => eprintln!("  *** {name} cannot be measured: {error:#} ***"),
        }
    }
    let mut direct = Vec::new();
    let mut through: Vec<Vec<Measured>> = targets.iter().map(|_| Vec::new()).collect();
    for turn in 0..turns {
        let time = Duration::from_secs_f64(seconds);
        direct.push(load.run(&backends.addresses(), time, None).await.context("ask the backends directly")?);
        for (target, measured) in targets.iter().zip(&mut through) {
            if turn == 0 {
                load.run(&[target.address()], time.min(Duration::from_secs(1)), None)
                    .await
                    .with_context(|| target.name.clone())?;
            }
            measured.push(
                load.run(&[target.address()], time, Some(target))
                    .await
                    .with_context(|| target.name.clone())?,
            );
        }
    }
    report(&args, turns, &direct, &targets, &through)
}

fn report(
    args: &Args,
    turns: u64,
    direct: &[Measured],
    targets: &[Target],
    through: &[Vec<Measured>],
) -> anyhow::Result<()> {
    let answers =
        if args.stream > 0 { format!("{} streamed tokens", args.stream) } else { "answers at once".into() };
    let subject = format!(
        "{} toy engines, {} connections, prompts of {} bytes behind {} prefixes, {answers}, medians of {turns} turns",
        args.backends, args.connections, args.prompt_bytes, args.prefixes
    );
    let mut report = Report::new("frontend", args.seed, &subject);
    report.line(format!(
        "{:<24}{:>12}{:>14}{:>12}{:>12}{:>10}",
        "", "requests/s", "CPU ms each", "p50 ms", "p99 ms", "failed"
    ));
    let middle = |runs: &[Measured], of: fn(&Measured) -> f64| {
        let mut values: Vec<_> = runs.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(0.0)
    };
    let mut row = |name: &str, runs: &[Measured]| {
        let rate = middle(runs, |run| run.rate());
        let (p50, p99) =
            (middle(runs, |run| run.quantile_ms(0.5)), middle(runs, |run| run.quantile_ms(0.99)));
        let cpu = middle(runs, |run| run.cpu_ms());
        let failed: u64 = runs.iter().map(|run| run.failed).sum();
        let shown = if cpu > 0.0 { format!("{cpu:.3}") } else { "-".into() };
        report.line(format!(
            "{name:<24}{:>12}{shown:>14}{:>12}{:>12}{failed:>10}",
            number(rate),
            number(p50),
            number(p99)
        ));
        (rate, cpu, p50, p99)
    };
    let (_, _, direct_p50, direct_p99) = row("a backend directly", direct);
    let rows: Vec<_> = targets
        .iter()
        .zip(through)
        .map(|(target, runs)| (target.name.clone(), row(&target.name, runs)))
        .collect();
    for (name, (rate, cpu, p50, p99)) in &rows {
        report.figure(format!("{name}.requests_per_second"), *rate, "1/s");
        report.figure(format!("{name}.cpu"), *cpu, "ms");
        report.compared(format!("{name}.p50"), *p50, "ms", direct_p50, direct_p50 / p50);
        report.compared(format!("{name}.p99"), *p99, "ms", direct_p99, direct_p99 / p99);
        report.line(format!(
            "{name}: adds {} ms (p50), {} ms (p99)",
            number(p50 - direct_p50),
            number(p99 - direct_p99)
        ));
    }
    if let Some((_, kelvin)) = rows.first() {
        for (name, peer) in &rows[1..] {
            report.line(format!(
                "kelvin beside {name}: {} times its requests/s at {} of its CPU",
                number(kelvin.0 / peer.0),
                number(kelvin.1 / peer.1)
            ));
            report.compared(
                format!("kelvin.requests_per_second.{name}"),
                kelvin.0,
                "1/s",
                peer.0,
                kelvin.0 / peer.0,
            );
        }
    }
    report.finish(args.json.as_deref())
}
