//! What can be known to be wrong before anything is started.

use std::net::TcpListener;
use std::path::Path;

use anyhow::{Context, bail};

use super::Args;
use crate::values::Size;

/// What a process needs beside model and blocks, generously.
const PROCESS_BYTES: u64 = 64 << 20;

/// Checks address, model, tiers and memory.
pub(super) fn check(args: &Args) -> anyhow::Result<()> {
    // Held for a moment only; the standard library sets SO_REUSEADDR, so the router gets it right after.
    TcpListener::bind(args.listen).with_context(|| {
        format!("listen on {} (another one is free with --listen 127.0.0.1:0)", args.listen)
    })?;
    let model_bytes = args.model.check()?;
    args.places.tiers().check(args.dram.0).map_err(anyhow::Error::msg)?;
    let processes = u64::from(args.prefill + args.decode) + 2;
    // The workers map one model file: its pages are in memory once.
    let needed = args.dram.0 + model_bytes + processes * PROCESS_BYTES;
    match memory_available(Path::new("/")) {
        Some(available) if needed > available => bail!(
            "too little memory: about {} are needed (--dram {}, model {}, {processes} processes), {} are available; \
             give a smaller --dram",
            Size(needed),
            args.dram,
            Size(model_bytes),
            Size(available)
        ),
        _ => Ok(()),
    }
}

/// Bytes this process and its children may still use: of the machine, and of its control group, whichever
/// is less. None when the kernel does not say.
fn memory_available(root: &Path) -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).ok();
    let machine = meminfo_available(&read("proc/meminfo")?)?;
    let group = || {
        let limit: u64 = read("sys/fs/cgroup/memory.max")?.trim().parse().ok()?;
        let used: u64 = read("sys/fs/cgroup/memory.current")?.trim().parse().ok()?;
        // File pages are counted as used but given back on demand.
        let cached = read("sys/fs/cgroup/memory.stat")
            .and_then(|stat| stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse().ok()));
        Some(limit.saturating_sub(used.saturating_sub(cached.unwrap_or(0u64))))
    };
    Some(group().map_or(machine, |group| group.min(machine)))
}

fn meminfo_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_tighter_limit_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(memory_available(root.path()), None);
        write("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:   1000 kB\n");
        assert_eq!(memory_available(root.path()), Some(1_024_000));
        write("sys/fs/cgroup/memory.current", "5000\n");
        write("sys/fs/cgroup/memory.max", "max\n");
        assert_eq!(memory_available(root.path()), Some(1_024_000));
        write("sys/fs/cgroup/memory.max", "6000\n");
        assert_eq!(memory_available(root.path()), Some(1_000));
        write("sys/fs/cgroup/memory.stat", "anon 1\ninactive_file 4000\n");
        assert_eq!(memory_available(root.path()), Some(5_000));
    }
}
