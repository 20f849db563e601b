//! Workload `replay`: a trace of requests under a virtual clock, on engines, routers and stores of any size.
//!
//! # Overview
//! Discrete events: requests arrive as they were recorded, a router places each, the engines batch, compute
//! and decode, and the clock jumps from one event to the next. Real are the router's cost function
//! ([`kelvin_router::choose`]), its index ([`kelvin_kvstore::RadixIndex`], fed with every block that an engine
//! stores or drops), the order of eviction ([`kelvin_tiering::Order`]) and the mover's lines before the tiers
//! ([`kelvin_tiering::mover::Line`]) with what they learn and its admission to colder tiers; modelled are the
//! engines, the devices behind the lines, the links of the engines and which node drops what.
//!
//! ```text
//! workload ──► routers ──► engine ──► cache        engine and timing: as Dynamo's mocker has them
//!                 │           │
//!                 └── world ◄─┘                    fleet (index), store (tiers), links, lanes (mover)
//! ```
//! A computed prompt block is copied to the store's DRAM when its pass ends, over the worker's link. A request
//! that is next in line loads what the store has and its engine has not, in front of its first pass, while the
//! engine goes on with others.
//!
//! # What is left out
//! Routers know of arrivals and first tokens at once. Blocks of generated tokens take room in the engines but
//! are not stored, as no prompt of such a trace names them. Loads are not overlapped with the computation of
//! the same prompt. What is copied from NVMe to S3 takes no time of the drive.

mod args;
mod bounds;
mod cache;
mod chart;
mod clock;
mod engine;
mod fleet;
mod lanes;
mod lines;
mod links;
mod offload;
mod progress;
mod routers;
mod simulation;
mod store;
mod summary;
mod timing;
mod workload;
mod world;

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

pub(crate) use self::args::Args;
use self::bounds::{Bounds, bounds};
use self::chart::{Level, Panel, draw};
use self::lines::{Line, PUBLISHED, Ran, plan, run_all, sizes};
use self::store::Source;
use self::workload::Workload;
use crate::policies::CONVERSATIONS;
use crate::report::{Report, number};
use crate::trace::Trace;

/// Figures may differ by this from the published ones.
const TOLERANCE: f64 = 0.05;

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let trace = match &args.trace {
        Some(path) => Trace::load(path)?,
        None => Trace::synthetic(args.seed, 300),
    };
    let cluster = args.cluster()?;
    let workload = Workload::new(&trace, args.speed, args.scale, args.seed)?;
    let name =
        args.trace.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    let last = workload.jobs().last().map_or(0, |job| job.at);
    let subject = format!(
        "{}, {} requests in {:.0} s, {} workers of {} blocks of 64 tokens",
        name.unwrap_or("synthetic trace".into()),
        workload.jobs().len(),
        Duration::from_nanos(last).as_secs_f64(),
        cluster.workers,
        cluster.device_blocks
    );
    let mut report = Report::new("replay", args.seed, &subject);
    let is_published = (trace.requests.len(), trace.unique_blocks) == CONVERSATIONS
        && (args.speed, args.scale) == (1.0, 1)
        && (cluster.workers, cluster.device_blocks) == (4, 16_384);
    let plan = plan(args.router, &cluster, args.dram, workload.blocks_max());
    let mut ran = run_all(&workload, &plan, args.seed)?;
    let bounds = bounds(&workload, cluster.workers * cluster.device_blocks);
    table(&ran, &bounds, is_published, &mut report);
    if args.csv.is_some() || args.svg.is_some() {
        let swept = run_all(&workload, &sizes(args.router, &cluster), args.seed)?;
        if let Some(path) = &args.svg {
            draw(path, &subject, &panels(&swept, &ran, &bounds, is_published))?;
            report.line(format!("drawn: {}", path.display()));
        }
        ran.extend(swept);
    }
    if let Some(path) = &args.csv {
        let csv = csv(&ran, &bounds, is_published);
        std::fs::write(path, csv).with_context(|| format!("write {}", path.display()))?;
        report.line(format!("written: {}", path.display()));
    }
    report.finish(args.json.as_deref())
}

fn table(ran: &[Ran], bounds: &Bounds, is_published: bool, report: &mut Report) {
    let columns = ["reuse", "own", "TTFT ms", "p50", "p95", "p99", "ITL ms", "run s"];
    let head = columns.map(|column| format!("{column:>9}")).concat();
    report.line(format!("  {:<34}{head}", "router, store"));
    let mut missed = Vec::new();
    for Ran { line, summary, took, .. } in ran {
        let Line { name, id, .. } = line;
        let cells = [
            percent(summary.reuse),
            percent(summary.own_reuse),
            number(summary.ttft_mean),
            number(summary.ttft_p50),
            number(summary.ttft_p95),
            number(summary.ttft_p99),
            number(summary.itl_mean),
            number(took.as_secs_f64()),
        ];
        report.line(format!("  {name:<34}{}", cells.map(|cell| format!("{cell:>9}")).concat()));
        let figures = [
            ("reuse", summary.reuse, "of prompt tokens"),
            ("ttft_mean", summary.ttft_mean, "ms"),
            ("ttft_p50", summary.ttft_p50, "ms"),
            ("ttft_p95", summary.ttft_p95, "ms"),
            ("ttft_p99", summary.ttft_p99, "ms"),
            ("itl_mean", summary.itl_mean, "ms"),
        ];
        let published = PUBLISHED.iter().find(|published| is_published && published.line == *id);
        for (figure, value, unit) in figures {
            let limit = published.and_then(|published| published.figure(figure));
            match limit {
                Some(limit) => {
                    report.compared(format!("{id}.{figure}"), value, unit, limit, value / limit);
                    if (value / limit - 1.0).abs() > TOLERANCE {
                        missed.push(format!("{name}: {figure} {} beside {}", number(value), number(limit)));
                    }
                }
                None => report.figure(format!("{id}.{figure}"), value, unit),
            }
        }
        if let Some(published) = published {
            let cell = |value: Option<f64>| format!("{:>9}", value.map_or("-".into(), number));
            let text = format!(
                "  {:<34}{:>9}{:>9}{}{:>18}{}",
                "  as published",
                percent(published.reuse),
                "",
                cell(Some(published.ttft_mean)),
                "",
                cell(published.ttft_p99)
            );
            report.line(text);
        }
        report.figure(format!("{id}.preemptions"), summary.preemptions as f64, "sequences");
    }
    report.line(format!("  {:<34}{:>9}", "all engines' memory pooled (LRU)", percent(bounds.pooled)));
    report.line(format!("  {:<34}{:>9}", "ideal: nothing is ever dropped", percent(bounds.ideal)));
    report.figure("pooled.reuse", bounds.pooled, "of prompt tokens");
    report.figure("ideal.reuse", bounds.ideal, "of prompt tokens");
    if is_published && ran.iter().any(|ran| PUBLISHED.iter().any(|published| published.line == ran.line.id)) {
        report.line(match &missed[..] {
            [] => format!("all as published within {} %", TOLERANCE * 100.0),
            missed => format!("off by more than {} %: {}", TOLERANCE * 100.0, missed.join("; ")),
        });
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn csv(ran: &[Ran], bounds: &Bounds, is_published: bool) -> String {
    let loaded =
        Source::ALL.map(|source| format!("{}_tokens", source.name().replace(' ', "_").to_lowercase()));
    let mut text = format!(
        "line,router,workers,dram,reuse,own_reuse,ttft_mean_ms,ttft_p50_ms,ttft_p95_ms,ttft_p99_ms,itl_mean_ms,preemptions,uncopied,{}\n",
        loaded.join(",")
    );
    for Ran { line, summary, loaded_tokens, uncopied, .. } in ran {
        let loaded = loaded_tokens.map(|tokens| tokens.to_string()).join(",");
        let _ = writeln!(
            text,
            "{},{},{},{:.3},{:.5},{:.5},{:.3},{:.3},{:.3},{:.3},{:.4},{},{uncopied},{loaded}",
            line.id,
            line.router.name(),
            line.cluster.workers,
            line.dram(),
            summary.reuse,
            summary.own_reuse,
            summary.ttft_mean,
            summary.ttft_p50,
            summary.ttft_p95,
            summary.ttft_p99,
            summary.itl_mean,
            summary.preemptions,
        );
    }
    let blank = |count: usize| ",".repeat(count);
    let others = 8 + Source::ALL.len();
    for (name, reuse) in [("pooled", bounds.pooled), ("ideal", bounds.ideal)] {
        let _ = writeln!(text, "{name},,,,{reuse:.5}{}", blank(others));
    }
    for published in PUBLISHED.iter().filter(|_| is_published) {
        let p99 = published.ttft_p99.map_or(String::new(), |p99| p99.to_string());
        let (line, reuse, mean) = (published.line, published.reuse, published.ttft_mean);
        let _ = writeln!(text, "published_{line},,,,{reuse},,{mean},,,{p99}{}", blank(others - 5));
    }
    text
}

fn panels(swept: &[Ran], ran: &[Ran], bounds: &Bounds, is_published: bool) -> [Panel; 2] {
    let name = swept.first().map_or("", |ran| ran.line.router.name());
    let curve = |of: &dyn Fn(&Ran) -> f64| {
        vec![(name.to_owned(), swept.iter().map(|ran| (ran.line.dram(), of(ran))).collect())]
    };
    let published = |of: &dyn Fn(&lines::Published) -> f64| -> Vec<Level> {
        let levels = PUBLISHED.iter().filter(|_| is_published);
        levels.map(|published| Level { name: published.name.into(), value: of(published) }).collect()
    };
    let mut reuse = vec![
        Level { name: "ideal".into(), value: bounds.ideal * 100.0 },
        Level { name: "pooled memory of all engines".into(), value: bounds.pooled * 100.0 },
    ];
    reuse.extend(published(&|published| published.reuse * 100.0));
    let ideal = ran.iter().find(|ran| ran.line.id == lines::IDEAL);
    let mut ttft: Vec<Level> =
        ideal.iter().map(|ran| Level { name: "ideal".into(), value: ran.summary.ttft_mean }).collect();
    ttft.extend(published(&|published| published.ttft_mean));
    [
        Panel {
            title: "prompt tokens reused".into(),
            unit: "%",
            curves: curve(&|ran| ran.summary.reuse * 100.0),
            levels: reuse,
        },
        Panel {
            title: "mean time to first token".into(),
            unit: "ms",
            curves: curve(&|ran| ran.summary.ttft_mean),
            levels: ttft,
        },
    ]
}

#[cfg(test)]
mod tests;
