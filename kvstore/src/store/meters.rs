//! What a tenant's calls and transfers took: histograms by verb and by transport.
//!
//! # Limits
//! Everything here is of fixed size, some 20 KiB a tenant and stripe, of which there are 16 at most. Nothing is labelled by what a client says.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use super::histogram::{Sizes, Times};

/// Whether anything is measured. On, but for a bench that looks what that costs.
static MEASURING: AtomicBool = AtomicBool::new(true);

/// Whether histograms, token counts, ghosts and miss-ratio curves are kept.
pub(crate) fn measuring() -> bool {
    MEASURING.load(Ordering::Relaxed)
}

/// Turns all that off and on again; for the bench.
pub(crate) fn set_measuring(on: bool) {
    MEASURING.store(on, Ordering::Relaxed);
}

/// When something began, if that is measured.
pub(crate) fn begin() -> Option<Instant> {
    measuring().then(Instant::now)
}

/// A call of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    OpenNamespace,
    Match,
    Acquire,
    Reserve,
    Commit,
    Abort,
    Renew,
    Release,
    Read,
    Write,
    Watch,
    Stats,
    Prefetch,
    Pin,
    Unpin,
    Evict,
    EndSession,
    Explain,
    Inspect,
    Verify,
    Collect,
}

impl Verb {
    pub(crate) const ALL: [Verb; 21] = [
        Verb::OpenNamespace,
        Verb::Match,
        Verb::Acquire,
        Verb::Reserve,
        Verb::Commit,
        Verb::Abort,
        Verb::Renew,
        Verb::Release,
        Verb::Read,
        Verb::Write,
        Verb::Watch,
        Verb::Stats,
        Verb::Prefetch,
        Verb::Pin,
        Verb::Unpin,
        Verb::Evict,
        Verb::EndSession,
        Verb::Explain,
        Verb::Inspect,
        Verb::Verify,
        Verb::Collect,
    ];

    /// Its name for metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Verb::OpenNamespace => "open_namespace",
            Verb::Match => "match",
            Verb::Acquire => "acquire",
            Verb::Reserve => "reserve",
            Verb::Commit => "commit",
            Verb::Abort => "abort",
            Verb::Renew => "renew",
            Verb::Release => "release",
            Verb::Read => "read",
            Verb::Write => "write",
            Verb::Watch => "watch",
            Verb::Stats => "stats",
            Verb::Prefetch => "prefetch",
            Verb::Pin => "pin",
            Verb::Unpin => "unpin",
            Verb::Evict => "evict",
            Verb::EndSession => "end_session",
            Verb::Explain => "explain",
            Verb::Inspect => "inspect",
            Verb::Verify => "verify",
            Verb::Collect => "collect",
        }
    }
}

/// How a call came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Via {
    Grpc,
    /// The Unix socket that hands out the shared memory.
    Socket,
}

impl Via {
    pub(crate) const ALL: [Via; 2] = [Via::Grpc, Via::Socket];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Via::Grpc => "grpc",
            Via::Socket => "socket",
        }
    }
}

/// How payload goes between a client and the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carrier {
    /// In place: what is measured is the call that leases or commits the blocks.
    Shm,
    /// A block, or a part of one, over the data port.
    Tcp,
    /// A block inside gRPC.
    Grpc,
}

impl Carrier {
    pub(crate) const ALL: [Carrier; 3] = [Carrier::Shm, Carrier::Tcp, Carrier::Grpc];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Carrier::Shm => "shm",
            Carrier::Tcp => "tcp",
            Carrier::Grpc => "grpc",
        }
    }
}

/// Which way payload goes, as a client sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Read,
    Write,
}

impl Direction {
    pub(crate) const ALL: [Direction; 2] = [Direction::Read, Direction::Write];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Direction::Read => "read",
            Direction::Write => "write",
        }
    }
}

/// Sizes and times of one kind of transfer.
#[derive(Debug, Default)]
pub(crate) struct Transfers {
    pub(crate) bytes: Sizes,
    pub(crate) times: Times,
}

impl Transfers {
    /// Counts one that began then, if that was noted.
    pub(crate) fn note(&self, bytes: u64, began: Option<Instant>) {
        if let Some(began) = began {
            self.took(bytes, began.elapsed());
        }
    }

    /// Counts one that took so long.
    pub(crate) fn took(&self, bytes: u64, took: Duration) {
        self.bytes.observe(bytes);
        self.times.took(took);
    }
}

/// The histograms of a tenant that a thread writes.
#[derive(Debug, Default)]
pub(crate) struct Meters {
    calls: [[Times; Via::ALL.len()]; Verb::ALL.len()],
    transfers: [[Transfers; Direction::ALL.len()]; Carrier::ALL.len()],
}

impl Meters {
    pub(crate) fn call(&self, verb: Verb, via: Via) -> &Times {
        &self.calls[verb as usize][via as usize]
    }

    pub(crate) fn transfers(&self, carrier: Carrier, direction: Direction) -> &Transfers {
        &self.transfers[carrier as usize][direction as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_in_the_order_of_their_numbers() {
        assert!(Verb::ALL.iter().enumerate().all(|(at, verb)| *verb as usize == at));
        assert!(Carrier::ALL.iter().enumerate().all(|(at, carrier)| *carrier as usize == at));
    }

    #[test]
    fn what_takes_is_counted_where_it_belongs() {
        let meters = Meters::default();
        meters.transfers(Carrier::Tcp, Direction::Write).took(5000, Duration::from_micros(10));
        meters.call(Verb::Match, Via::Socket).took(Duration::from_micros(5));
        let tcp = meters.transfers(Carrier::Tcp, Direction::Write);
        assert_eq!((tcp.bytes.read().sum, tcp.times.read().sum), (5000, 10_000));
        assert_eq!(meters.transfers(Carrier::Tcp, Direction::Read).times.read().count(), 0);
        assert_eq!(meters.call(Verb::Match, Via::Socket).read().count(), 1);
        assert!(size_of::<Meters>() < 24 << 10, "{}", size_of::<Meters>());
    }
}
