//! Workload `tiers`: what the devices of the tiers move, beside what the hardware can.

mod cpu;
mod dram;
mod nvme;
mod peer;
mod s3;

use std::path::PathBuf;
use std::time::Duration;

use crate::report::Report;

/// Rates and CPU of the tiers' devices, each beside a peer on the same hardware in the same run
///
/// NVMe: reads and writes of whole blocks at random places of one file, by Kelvin's device into DRAM slots
/// and by fio (io_uring, direct) on the same file, in turns; medians of several turns. DRAM: a put (copy and
/// checksum in one pass) beside memcpy. Object: packs put to and read from an S3 server in memory, beside a plain
/// S3 client.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Run in seconds, with one block size and one turn
    #[arg(long)]
    smoke: bool,

    /// Decides places and bytes
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Also write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Where the file of the NVMe part is made [default: the directory for temporary files]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// MiB of that file [default: 4096, smoke: 256]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(256..=1 << 24))]
    file_mib: Option<u64>,

    /// Block sizes, KiB [default: 64,512,2048,8192, smoke: 512]
    #[arg(long, value_name = "KIB", value_delimiter = ',', value_parser = clap::value_parser!(u64).range(4..=16_384))]
    block_kib: Vec<u64>,

    /// Operations in flight
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=256))]
    depth: u64,

    /// Turns of each measurement [default: 5, smoke: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1000))]
    turns: Option<u64>,

    /// Seconds of a turn [default: 1.5, smoke: 0.2]
    #[arg(long, value_name = "S", value_parser = seconds)]
    seconds: Option<f64>,

    /// NVMe: both sides' memory in huge pages (sysctl vm.nr_hugepages sets them aside)
    #[arg(long)]
    huge_pages: bool,

    /// Without fio: a loop of preads and pwrites on threads is the peer
    #[arg(long)]
    no_fio: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.01..=600.0).contains(&seconds) => Ok(seconds),
        _ => Err(format!("{text:?} is no time of a turn; write seconds, 0.01 to 600")),
    }
}

impl Args {
    fn file_bytes(&self) -> u64 {
        self.file_mib.unwrap_or(if self.smoke { 256 } else { 4096 }) << 20
    }

    fn block_bytes(&self) -> Vec<u64> {
        let kib = match (self.block_kib.as_slice(), self.smoke) {
            ([], true) => &[512][..],
            ([], false) => &[64, 512, 2048, 8192],
            (given, _) => given,
        };
        kib.iter().map(|kib| kib << 10).collect()
    }

    fn depth(&self) -> usize {
        self.depth as usize
    }

    fn turns(&self) -> usize {
        self.turns.unwrap_or(if self.smoke { 1 } else { 5 }) as usize
    }

    fn turn_time(&self) -> Duration {
        Duration::from_secs_f64(self.seconds.unwrap_or(if self.smoke { 0.2 } else { 1.5 }))
    }
}

/// None when it was interrupted.
pub(crate) async fn run(args: Args) -> anyhow::Result<Option<()>> {
    let mut report = Report::new("tiers", args.seed, "devices beside their hardware");
    tokio::select! {
        outcome = measure(&args, &mut report) => outcome?,
        _ = tokio::signal::ctrl_c() => return Ok(None),
    }
    report.finish(args.json.as_deref())?;
    Ok(Some(()))
}

async fn measure(args: &Args, report: &mut Report) -> anyhow::Result<()> {
    dram::measure(args, report)?;
    nvme::measure(args, report).await?;
    s3::measure(args, report).await?;
    Ok(())
}

/// 64 KiB, 2 MiB.
fn size(bytes: u64) -> String {
    if bytes.is_multiple_of(1 << 20) {
        format!("{} MiB", bytes >> 20)
    } else {
        format!("{} KiB", bytes >> 10)
    }
}

/// The same for the name of a figure.
fn slug(bytes: u64) -> String {
    size(bytes).replace(' ', "_").to_lowercase()
}

/// The middle one.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
