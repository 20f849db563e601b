//! How far a long replay is, on stderr.

use std::time::{Duration, Instant};

use super::clock::Nanos;

/// Between two lines.
const EVERY: Duration = Duration::from_secs(15);
/// The clock is looked at once in so many events.
const EVENTS: u32 = 1 << 16;

/// See the module. A replay that is over before the first line says nothing.
#[derive(Debug)]
pub(crate) struct Progress {
    name: &'static str,
    started: Instant,
    said_at: Instant,
    events: u32,
}

impl Progress {
    pub(crate) fn new(name: &'static str) -> Self {
        let started = Instant::now();
        Self { name, started, said_at: started, events: 0 }
    }

    /// An event more; so many of all requests have arrived by then.
    pub(crate) fn note(&mut self, arrived: usize, all: usize, now: Nanos) {
        self.events += 1;
        if self.events < EVENTS {
            return;
        }
        self.events = 0;
        if self.said_at.elapsed() < EVERY {
            return;
        }
        self.said_at = Instant::now();
        let share = arrived as f64 * 100.0 / all.max(1) as f64;
        let (virtual_s, real_s) = (now / 1_000_000_000, self.started.elapsed().as_secs());
        eprintln!(
            "replay, {}: {arrived} of {all} requests ({share:.1} %), {virtual_s} s of the trace in {real_s} s",
            self.name
        );
    }
}
