//! What each file's device does, measured briefly: printed when a store starts, and the first guess of how
//! long a load takes. Whether blocks go through staging buffers is chosen by it, too: the memory of the tier
//! above may lie in scattered pages, of which some disks take few at a time.

use std::{
    fmt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream::FuturesUnordered};

use super::{
    DeviceHealth, NvmeDevice, Open,
    buffer::Pages,
    engine::Lane,
    header::{LEAD_BYTES, PAGE_BYTES},
    request::{Action, Request},
    slot::NvmeSlot,
};
use crate::{Device, DramPool, DramSlot};

/// Bytes of an operation of the probe.
const PROBE_BYTES: u32 = 512 << 10;
/// Places that are written and read, at most: as much as the caches of small disks hold, but no wear.
const PLACES_MAX: usize = 64;
/// Operations in flight while the rate is measured.
const DEPTH: usize = 8;
/// Of each of the two rates, and of each of the two latencies.
const RATE_TIME: Duration = Duration::from_millis(100);
const LATENCY_TIME: Duration = Duration::from_millis(40);
/// Staging pays for its copy when it is as much faster.
const STAGING_GAIN: f64 = 1.2;
/// Operations whose median is the latency, at most.
const LATENCY_SAMPLES: usize = 16;

/// What one file's device does.
#[derive(Debug, Clone)]
pub struct NvmeProbe {
    /// The file or device.
    pub path: PathBuf,
    /// Reads; `None` when they failed.
    pub read: Option<NvmeRate>,
    /// Writes; `None` when they failed, or no place was free to write to.
    pub write: Option<NvmeRate>,
}

/// How fast one kind of operation is, at 512 KiB.
#[derive(Debug, Clone, Copy)]
pub struct NvmeRate {
    /// Bytes a second, with 8 operations in flight.
    pub bytes_per_s: f64,
    /// Microseconds of one operation alone, the median.
    pub latency_us: f64,
    /// Whether it went through staging buffers, as the store's operations will.
    pub staged: bool,
}

impl fmt::Display for NvmeProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.path.display())?;
        for (name, rate, end) in [("reads", self.read, ", "), ("writes", self.write, "")] {
            match rate {
                Some(NvmeRate { bytes_per_s, latency_us, staged }) => {
                    let way = if staged { " staged" } else { "" };
                    write!(f, "{name} {:.0} MB/s{way}, {latency_us:.0} us{end}", bytes_per_s / 1e6)?;
                }
                None => write!(f, "{name} unknown{end}")?,
            }
        }
        write!(f, " (512 KiB)")
    }
}

impl NvmeDevice {
    /// Measures every file at once, in less than half a second, and chooses whether its blocks are staged.
    /// Writes to free places only. `pool` is the memory that blocks will come from and go to.
    pub async fn probe(&self, pool: Option<&DramPool>) -> Vec<NvmeProbe> {
        let probes = (0..self.0.files.len()).map(|number| self.probe_file(number, pool));
        futures::future::join_all(probes).await
    }

    async fn probe_file(&self, number: usize, pool: Option<&DramPool>) -> NvmeProbe {
        let open = &self.0.files[number];
        let path = open.file.path.clone();
        if open.health() != DeviceHealth::Healthy {
            return NvmeProbe { path, read: None, write: None };
        }
        let mut buffers = buffers(pool);
        let allocate = || NvmeSlot::allocate(&self.0.space, number as u16, PROBE_BYTES);
        let mut targets: Vec<Target> = std::iter::from_fn(allocate)
            .take(PLACES_MAX)
            .map(|place| (place.address().offset, Some(Arc::new(place))))
            .collect();
        let write =
            if targets.is_empty() { None } else { measure(open, Lane::Write, &targets, &mut buffers).await };
        if targets.is_empty() {
            // The file is full: whatever lies there has been written, and is read at its real speed.
            let room = open.file.extent_bytes * u64::from(open.file.extents);
            let spread =
                (0..PLACES_MAX as u64).map(|i| i * (room / PLACES_MAX as u64 / PAGE_BYTES * PAGE_BYTES));
            let within = spread.filter(|offset| offset + u64::from(PROBE_BYTES) <= room);
            targets = within.map(|offset| (LEAD_BYTES + offset, None)).collect();
        }
        let read = measure(open, Lane::Read, &targets, &mut buffers).await;
        if write.is_none() {
            // What reads are like is the best guess.
            open.modes.choose_if_open(Action::Write, read.is_some_and(|rate| rate.staged));
        }
        NvmeProbe { path, read, write }
    }
}

/// Memory of an operation.
enum Buffer {
    Slot(DramSlot),
    Own(Pages),
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Slot(slot) => slot.bytes(),
            Self::Own(pages) => pages.as_ref(),
        }
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Slot(slot) => slot.bytes_mut(),
            Self::Own(pages) => pages.as_mut_slice(),
        }
    }
}

/// Slots of the pool as far as it has any, else memory of our own.
fn buffers(pool: Option<&DramPool>) -> Vec<Buffer> {
    let slot = || pool?.allocate(u64::from(PROBE_BYTES));
    let one = || slot().map_or_else(|| Buffer::Own(Pages::new(PROBE_BYTES as usize)), Buffer::Slot);
    (0..DEPTH).map(|_| one()).collect()
}

/// Where to read or write, and the place that keeps others away.
type Target = (u64, Option<Arc<NvmeSlot>>);

async fn measure(open: &Open, lane: Lane, targets: &[Target], buffers: &mut Vec<Buffer>) -> Option<NvmeRate> {
    let action = match lane {
        Lane::Read => Action::Read,
        Lane::Write => Action::Write,
    };
    let mut rates = [0.0; 2];
    let ways: &[bool] = if open.modes.open() { &[false, true] } else { &[open.modes.staged(action)] };
    for &staged in ways {
        open.modes.choose_if_open(action, staged);
        let (rate, _) = run(open, lane, targets, (DEPTH, usize::MAX, RATE_TIME), buffers).await?;
        rates[usize::from(staged)] = rate;
    }
    open.modes.choose_if_open(action, rates[1] > rates[0] * STAGING_GAIN);
    let staged = open.modes.staged(action);
    let (_, mut latencies) = run(open, lane, targets, (1, LATENCY_SAMPLES, LATENCY_TIME), buffers).await?;
    let middle = latencies.len() / 2;
    let (_, median, _) = latencies.select_nth_unstable(middle);
    let bytes_per_s = rates[usize::from(staged)];
    Some(NvmeRate { bytes_per_s, latency_us: median.as_secs_f64() * 1e6, staged })
}

/// Bytes a second, and how long each operation took. `None` when one failed.
async fn run(
    open: &Open,
    lane: Lane,
    targets: &[Target],
    (depth, operations_max, time): (usize, usize, Duration),
    buffers: &mut Vec<Buffer>,
) -> Option<(f64, Vec<Duration>)> {
    let start = Instant::now();
    let mut turns = targets.iter().cycle().take(operations_max);
    let mut running = FuturesUnordered::new();
    let mut latencies = Vec::new();
    loop {
        while running.len() < depth
            && (latencies.is_empty() || start.elapsed() < time)
            && let Some(target) = turns.next()
            && let Some(buffer) = buffers.pop()
        {
            running.push(one(open, lane, target, buffer));
        }
        let Some((buffer, latency)) = running.next().await else { break };
        buffers.push(buffer);
        latencies.push(latency?);
    }
    let bytes = latencies.len() as f64 * f64::from(PROBE_BYTES);
    (!latencies.is_empty()).then(|| (bytes / start.elapsed().as_secs_f64(), latencies))
}

async fn one(
    open: &Open,
    lane: Lane,
    (offset, place): &Target,
    buffer: Buffer,
) -> (Buffer, Option<Duration>) {
    let start = Instant::now();
    let range = (*offset, offset + u64::from(PROBE_BYTES));
    let with = (&open.health, open.engine.place(lane).await);
    let (request, answer) = match lane {
        Lane::Read => Request::read(range, place.clone(), buffer, with),
        Lane::Write => Request::write(range, place.clone(), buffer, with),
    };
    open.engine.send(lane, request);
    let (_, buffer, result) = answer.await.expect("every request is answered");
    (buffer, result.is_ok().then(|| start.elapsed()))
}
