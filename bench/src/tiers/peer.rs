//! The peer of the NVMe part: fio on the same file, or where it is missing threads that pread and pwrite.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use kelvin_tiering::{Device, DramPool};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use serde_json::Value;

use super::cpu;

/// What a turn moved.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moved {
    pub(super) bytes: f64,
    pub(super) seconds: f64,
    pub(super) cpu_seconds: f64,
}

impl Moved {
    /// GB a second.
    pub(super) fn rate(&self) -> f64 {
        self.bytes / self.seconds / 1e9
    }

    /// CPU seconds a GB.
    pub(super) fn cpu(&self) -> f64 {
        self.cpu_seconds / (self.bytes / 1e9)
    }
}

/// What is asked of either side.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load<'a> {
    pub(super) path: &'a Path,
    /// The part of the file that blocks lie in.
    pub(super) offset: u64,
    pub(super) bytes: u64,
    pub(super) block_bytes: u64,
    pub(super) writes: bool,
    pub(super) direct: bool,
    /// Whether buffers are registered with the kernel.
    pub(super) registered: bool,
    /// Whether buffers lie in huge pages that the operator set aside.
    pub(super) huge_pages: bool,
    pub(super) depth: usize,
    pub(super) time: Duration,
    pub(super) seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Fio,
    Threads,
}

impl Peer {
    /// fio if it is wanted and runs here with io_uring.
    pub(super) fn find(wanted: bool) -> Peer {
        let engines = || Command::new("fio").arg("--enghelp").stderr(Stdio::null()).output();
        match wanted.then(engines) {
            Some(Ok(output)) if String::from_utf8_lossy(&output.stdout).contains("io_uring") => Peer::Fio,
            _ => Peer::Threads,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Peer::Fio => "fio",
            Peer::Threads => "threads",
        }
    }

    pub(super) fn run(self, load: &Load) -> anyhow::Result<Moved> {
        match self {
            Peer::Fio => fio(load),
            Peer::Threads => threads(load),
        }
    }
}

fn fio(load: &Load) -> anyhow::Result<Moved> {
    let output = Command::new("fio")
        .args(["--name=peer", "--ioengine=io_uring", "--output-format=json", "--time_based", "--thread"])
        .args(["--norandommap", "--randrepeat=0", "--fallocate=none", "--allow_file_create=0"])
        .arg(format!("--filename={}", load.path.display()))
        .arg(format!("--rw={}", if load.writes { "randwrite" } else { "randread" }))
        .arg(format!("--direct={}", u8::from(load.direct)))
        .arg(if load.huge_pages { "--mem=mmaphuge" } else { "--mem=malloc" })
        .arg(format!("--fixedbufs={}", u8::from(load.registered)))
        .arg(format!("--offset={}", load.offset))
        .arg(format!("--size={}", load.bytes))
        .arg(format!("--bs={}", load.block_bytes))
        .arg(format!("--iodepth={}", load.depth))
        .arg(format!("--randseed={}", load.seed))
        .arg(format!("--ramp_time={}ms", super::nvme::RAMP.as_millis()))
        .arg(format!("--runtime={}ms", load.time.as_millis()))
        .output()
        .context("run fio")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "fio failed: {text}{}", String::from_utf8_lossy(&output.stderr));
    // Warnings may stand before the JSON.
    let json = text.find('{').map_or("", |start| &text[start..]);
    parse_fio(json, load.writes)
}

/// Rate and CPU from fio's JSON.
fn parse_fio(json: &str, writes: bool) -> anyhow::Result<Moved> {
    let json: Value = serde_json::from_str(json).context("read what fio printed")?;
    let job = &json["jobs"][0];
    let side = &job[if writes { "write" } else { "read" }];
    let get =
        |value: &Value, name: &str| value[name].as_f64().with_context(|| format!("fio prints no {name}"));
    let seconds = get(side, "runtime")? / 1e3;
    let percent = get(job, "usr_cpu")? + get(job, "sys_cpu")?;
    if job["error"].as_i64() != Some(0) || seconds <= 0.0 {
        bail!("fio met error {} after {seconds} s", job["error"]);
    }
    Ok(Moved { bytes: get(side, "io_bytes")?, seconds, cpu_seconds: percent / 100.0 * seconds })
}

fn threads(load: &Load) -> anyhow::Result<Moved> {
    let flags = if load.direct { rustix::fs::OFlags::DIRECT.bits() as i32 } else { 0 };
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(load.path);
    let file = file.with_context(|| format!("open {}", load.path.display()))?;
    let pool =
        DramPool::new("peer", (load.depth as u64 + 1) * load.block_bytes * 2).context("make buffers")?;
    let start = Instant::now();
    let totals = std::thread::scope(|scope| {
        let (file, pool) = (&file, &pool);
        let workers: Vec<_> = (0..load.depth)
            .map(|number| scope.spawn(move || worker(load, file, pool, start, number)))
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("no panic")).collect::<Result<Vec<_>, _>>()
    })?;
    Ok(Moved {
        bytes: totals.iter().map(|(bytes, _)| bytes).sum(),
        seconds: start.elapsed().as_secs_f64(),
        cpu_seconds: totals.iter().map(|(_, cpu_seconds)| cpu_seconds).sum(),
    })
}

fn worker(
    load: &Load,
    file: &File,
    pool: &DramPool,
    start: Instant,
    number: usize,
) -> anyhow::Result<(f64, f64)> {
    let mut buffer = pool.allocate(load.block_bytes).context("a buffer a thread")?;
    let mut random = SmallRng::seed_from_u64(load.seed.wrapping_add(number as u64));
    let mut bytes = 0.0;
    while start.elapsed() < load.time {
        let offset = load.offset + random.random_range(0..load.bytes / load.block_bytes) * load.block_bytes;
        if load.writes {
            file.write_all_at(buffer.bytes(), offset).context("write")?;
        } else {
            file.read_exact_at(buffer.bytes_mut(), offset).context("read")?;
        }
        bytes += load.block_bytes as f64;
    }
    Ok((bytes, cpu::thread_seconds()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_fio_prints() {
        let json = r#"{"jobs": [{"error": 0, "usr_cpu": 10.0, "sys_cpu": 15.0,
            "read": {"io_bytes": 3000000000, "runtime": 2000}, "write": {"io_bytes": 0, "runtime": 0}}]}"#;
        let moved = parse_fio(json, false).unwrap();
        assert_eq!((moved.rate(), moved.cpu_seconds), (1.5, 0.5));
        assert!(parse_fio(json, true).is_err());
        assert!(parse_fio("", false).is_err());
    }

    #[test]
    fn threads_move_bytes_both_ways() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blocks");
        std::fs::write(&path, vec![1; 1 << 20]).unwrap();
        for writes in [true, false] {
            let load = Load {
                path: &path,
                offset: 4096,
                bytes: 512 << 10,
                block_bytes: 64 << 10,
                writes,
                direct: false,
                registered: false,
                huge_pages: false,
                depth: 2,
                time: Duration::from_millis(10),
                seed: 1,
            };
            assert!(Peer::Threads.run(&load).unwrap().bytes > 0.0);
        }
    }
}
