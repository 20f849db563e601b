//! Free ports for the cluster's own use.
//!
//! They are taken below the range from which the kernel serves outgoing connections: while a child is
//! being restarted nothing listens on its port, and the retries of its clients would sooner or later be
//! given that very port as their own, connect to themselves and keep the child from coming back.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::bail;

/// Below it are services with well-known ports.
const FIRST: u16 = 10_000;

/// Where outgoing ports begin when the kernel does not say (its own default).
const EPHEMERAL_DEFAULT: u16 = 32_768;

/// Hands out ports that were free a moment ago, none twice.
pub(super) struct Ports {
    next: u16,
    end: u16,
    taken: HashSet<u16>,
}

impl Ports {
    /// Leaves the port of `listen` alone.
    pub(super) fn new(listen: SocketAddr) -> anyhow::Result<Ports> {
        let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
        let end = ephemeral_first(&text).unwrap_or(EPHEMERAL_DEFAULT);
        // With a range from 1024 up there is no room below it; above FIRST is then as good as anywhere.
        let end = if end > FIRST + 1_000 { end } else { u16::MAX };
        // Two clusters that start at the same time begin at different places.
        let random = RandomState::new().hash_one(std::process::id());
        let next = FIRST + (random % u64::from(end - FIRST)) as u16;
        Ok(Ports { next, end, taken: HashSet::from([listen.port()]) })
    }

    pub(super) fn take(&mut self) -> anyhow::Result<u16> {
        for _ in FIRST..self.end {
            let port = self.next;
            self.next = if port + 1 < self.end { port + 1 } else { FIRST };
            if !self.taken.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
                self.taken.insert(port);
                return Ok(port);
            }
        }
        bail!("no port between {FIRST} and {} is free on 127.0.0.1", self.end)
    }
}

fn ephemeral_first(range: &str) -> Option<u16> {
    range.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_range() {
        assert_eq!(ephemeral_first("32768\t60999\n"), Some(32_768));
        assert_eq!(ephemeral_first(""), None);
    }

    #[test]
    fn skips_what_is_in_use_and_wraps() {
        let held = loop {
            let port = Ports::new(([127, 0, 0, 1], 1).into()).unwrap().take().unwrap();
            if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
                break listener;
            }
        };
        let port = held.local_addr().unwrap().port();
        let mut ports = Ports { next: port, end: port + 1, taken: HashSet::from([FIRST]) };
        let other = ports.take().unwrap();
        assert!(other != port && other != FIRST, "{other}");
    }
}
