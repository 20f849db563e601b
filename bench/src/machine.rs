//! What the figures were measured on.

use std::fmt;
use std::fs;

use serde::Serialize;

/// Facts of this machine; empty or zero where the kernel does not say.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    cpu: String,
    /// That this process may use.
    cores: usize,
    memory_bytes: u64,
    kernel: String,
    /// Over the last minute, at the start of the run: what else the machine was doing.
    load_average: f64,
}

impl Machine {
    pub(crate) fn look() -> Machine {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let uname = rustix::system::uname();
        Machine {
            cpu: field(&read("/proc/cpuinfo"), "model name").unwrap_or_default(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_bytes: memory(&read("/proc/meminfo")).unwrap_or_default(),
            kernel: format!("{} {}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy()),
            load_average: read("/proc/loadavg")
                .split(' ')
                .next()
                .and_then(|load| load.parse().ok())
                .unwrap_or(0.0),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let memory_gib = self.memory_bytes as f64 / f64::from(1 << 30);
        write!(
            f,
            "{}, {} cores, {memory_gib:.0} GiB, {}, load {:.2}",
            self.cpu, self.cores, self.kernel, self.load_average
        )
    }
}

fn field(text: &str, name: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.split_once(':'))?.1;
    Some(value.trim().to_owned())
}

fn memory(meminfo: &str) -> Option<u64> {
    field(meminfo, "MemTotal")?.strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_tables() {
        assert_eq!(
            field("processor\t: 0\nmodel name\t: Fast 9000: X\n", "model name").as_deref(),
            Some("Fast 9000: X")
        );
        assert_eq!(memory("MemTotal:       2048 kB\n"), Some(2 << 20));
        assert_eq!(memory(""), None);
    }
}
