//! Which replays stand beside each other.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::links::Rates;
use super::routers::RouterKind;
use super::simulation::replay;
use super::store::{Capacity, Source};
use super::summary::Summary;
use super::workload::Workload;
use super::world::Cluster;

/// A replay to be made.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// For people, and for programs.
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) router: RouterKind,
    pub(crate) cluster: Cluster,
}

impl Line {
    fn new(id: &str, name: &str, router: RouterKind, cluster: Cluster) -> Self {
        Self { name: name.into(), id: id.into(), router, cluster }
    }

    /// DRAM as a multiple of all engines' memory.
    pub(crate) fn dram(&self) -> f64 {
        let Cluster { workers, device_blocks, capacity, .. } = self.cluster;
        capacity.dram as f64 / (workers * device_blocks) as f64
    }
}

/// A replay that was made.
#[derive(Clone, Debug)]
pub(crate) struct Ran {
    pub(crate) line: Line,
    pub(crate) summary: Summary,
    /// From each of [`Source::ALL`].
    pub(crate) loaded_tokens: [u64; Source::ALL.len()],
    /// Blocks that were dropped before they were copied to a colder tier.
    pub(crate) uncopied: u64,
    pub(crate) took: Duration,
}

/// What Dynamo publishes of the conversation trace, 4 workers, speed 1, engines' memory alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Published {
    pub(crate) line: &'static str,
    pub(crate) name: &'static str,
    pub(crate) reuse: f64,
    pub(crate) ttft_mean: f64,
    pub(crate) ttft_p99: Option<f64>,
}

impl Published {
    pub(crate) fn figure(&self, name: &str) -> Option<f64> {
        match name {
            "reuse" => Some(self.reuse),
            "ttft_mean" => Some(self.ttft_mean),
            "ttft_p99" => self.ttft_p99,
            _ => None,
        }
    }
}

/// See [`Published`].
pub(crate) const PUBLISHED: [Published; 2] = [
    Published {
        line: "round_robin",
        name: "Dynamo, published: round-robin",
        reuse: 0.082,
        ttft_mean: 518.0,
        ttft_p99: None,
    },
    Published {
        line: "dynamo",
        name: "Dynamo, published: cache-aware",
        reuse: 0.135,
        ttft_mean: 465.0,
        ttft_p99: Some(2_043.0),
    },
];

/// The replay with a store that is never full and costs nothing to read.
pub(crate) const IDEAL: &str = "kelvin_ideal";

/// Bytes a second of a link that costs nothing.
const FREE: f64 = 1e18;

/// Sizes of DRAM of the chart.
const SIZES: [f64; 8] = [0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0];

/// The replays of a run: of one router as it is described, or of all of them.
/// `all_blocks` fill a store that is never full.
pub(crate) fn plan(router: Option<RouterKind>, cluster: &Cluster, dram: f64, all_blocks: usize) -> Vec<Line> {
    if let Some(router) = router {
        let id = router.name().replace('-', "_");
        let name = match dram {
            0.0 => router.name().to_owned(),
            dram => format!("{}, DRAM {dram}x", router.name()),
        };
        return vec![Line::new(&id, &name, router, *cluster)];
    }
    let alone = cluster.with_dram(0.0);
    let peers = Cluster { shares_device: true, ..alone };
    let ideal = Cluster {
        rates: Rates { dram: FREE, network: FREE, ..cluster.rates },
        capacity: Capacity { dram: all_blocks, nvme: 0, s3: false },
        ..*cluster
    };
    let mut lines = vec![
        Line::new("round_robin", "round-robin, no store", RouterKind::RoundRobin, alone),
        Line::new("dynamo", "dynamo, no store", RouterKind::Dynamo, alone),
        Line::new("kelvin", "kelvin, no store", RouterKind::Kelvin, alone),
        Line::new("kelvin_peers", "kelvin, engines read each other", RouterKind::Kelvin, peers),
    ];
    if cluster.capacity.dram > 0 {
        let stored = |id: &str, router: RouterKind| {
            Line::new(id, &format!("{}, DRAM {dram}x", router.name()), router, *cluster)
        };
        lines.push(stored("round_robin_store", RouterKind::RoundRobin));
        lines.push(stored("dynamo_store", RouterKind::Dynamo));
        lines.push(stored("kelvin_store", RouterKind::Kelvin));
    }
    lines.push(Line::new(IDEAL, "kelvin, endless DRAM at no cost", RouterKind::Kelvin, ideal));
    lines
}

/// The replays of the chart: Kelvin's router, or the one asked for, with DRAM of several sizes.
pub(crate) fn sizes(router: Option<RouterKind>, cluster: &Cluster) -> Vec<Line> {
    let router = router.unwrap_or(RouterKind::Kelvin);
    let line = |dram: &f64| {
        let cluster = cluster.with_dram(*dram);
        Line::new(&format!("{}_dram_{dram}", router.name().replace('-', "_")), "", router, cluster)
    };
    SIZES.iter().map(line).collect()
}

/// Makes the replays, as many at once as there are cores. Each is the same whatever runs beside it.
pub(crate) fn run_all(workload: &Workload<'_>, lines: &[Line], seed: u64) -> anyhow::Result<Vec<Ran>> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut ran = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(line) = lines.get(number) else { return ran };
            ran.push((number, run(workload, line, seed)));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(lines.len());
    let mut ran: Vec<_> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        handles.into_iter().flat_map(|handle| handle.join().expect("a replay does not panic")).collect()
    });
    ran.sort_by_key(|(number, _)| *number);
    ran.into_iter().map(|(_, ran)| ran).collect()
}

fn run(workload: &Workload<'_>, line: &Line, seed: u64) -> anyhow::Result<Ran> {
    let start = Instant::now();
    let replayed = replay(workload, &line.cluster, line.router, seed)?;
    Ok(Ran {
        line: line.clone(),
        summary: Summary::of(&replayed),
        loaded_tokens: replayed.loaded_tokens,
        uncopied: replayed.uncopied,
        took: start.elapsed(),
    })
}

impl Cluster {
    /// Blocks of so many times the memory of all engines.
    pub(crate) fn times(&self, ratio: f64) -> usize {
        (ratio * (self.workers * self.device_blocks) as f64) as usize
    }

    /// The same with DRAM of another size; without it there are no tiers behind it.
    fn with_dram(&self, ratio: f64) -> Self {
        let dram = self.times(ratio);
        let capacity = match dram {
            0 => Capacity { dram, nvme: 0, s3: false },
            dram => Capacity { dram, ..self.capacity },
        };
        Self { capacity, ..*self }
    }
}
