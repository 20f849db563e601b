//! Each node's ways to slower places, with the mover's line in front of each.
//!
//! The line ([`kelvin_tiering::mover::Line`]) is the store's own: it bounds what is under way, lets reads overtake
//! writes, turns away what finds too many waiting, and learns what the next read will take. Behind it is a model: a
//! place answers after its latency, and then serves bytes at its rate, both ways together, in the order in which
//! the line let them go.

use std::time::Duration;

use kelvin_tiering::mover::{Direction, End, LaneOptions, Line, Rate, Turn};

use super::clock::{Nanos, nanos};
use super::links::{NETWORK_LATENCY_MS, Rates};
use super::store::Source;

/// A way, and what is on it.
#[derive(Debug)]
struct Way<P> {
    line: Line<P>,
    /// When all that is under way has been served.
    free_at: Nanos,
}

/// See the module. `P` is what is moved.
#[derive(Debug)]
pub(crate) struct Lanes<P> {
    rates: Rates,
    nodes: Vec<[Way<P>; 3]>,
}

/// A transfer under way.
#[derive(Debug)]
pub(crate) struct Moved<P> {
    pub(crate) node: u16,
    pub(crate) source: Source,
    pub(crate) piece: P,
    turn: Turn,
}

impl Source {
    /// Which of a node's lanes leads there.
    fn lane(self) -> Option<usize> {
        match self {
            Self::Network => Some(0),
            Self::Nvme => Some(1),
            Self::S3 => Some(2),
            Self::Dram | Self::Device => None,
        }
    }

    /// Whether what comes from there waits in a lane.
    pub(crate) fn has_lane(self) -> bool {
        self.lane().is_some()
    }
}

/// Reads of other nodes' DRAM. The store has no line for them; it is taken for a tier that is known from the start.
fn network(rates: &Rates) -> LaneOptions {
    let latency = Duration::from_secs_f64(NETWORK_LATENCY_MS / 1e3);
    let rate = Rate::new(latency, rates.bytes_per_second(Source::Network) as u64);
    LaneOptions { read_rate: rate, write_rate: rate, ..LaneOptions::object() }
}

impl<P> Lanes<P> {
    pub(crate) fn new(rates: Rates, nodes: usize) -> Self {
        let way = |options| Way { line: Line::new(options), free_at: 0 };
        let ways = || [network(&rates), LaneOptions::nvme(), LaneOptions::object()].map(way);
        Self { rates, nodes: (0..nodes).map(|_| ways()).collect() }
    }

    fn bytes(&self, tokens: u64) -> u64 {
        (tokens as f64 * self.rates.bytes_per_token) as u64
    }

    fn way(&self, node: u16, source: Source) -> &Way<P> {
        &self.nodes[usize::from(node)][source.lane().expect("a place with a lane")]
    }

    fn way_mut(&mut self, node: u16, source: Source) -> &mut Way<P> {
        &mut self.nodes[usize::from(node)][source.lane().expect("a place with a lane")]
    }

    /// Lets a transfer wait for its turn; gives it back when too many do.
    pub(crate) fn enter(
        &mut self,
        (node, source): (u16, Source),
        direction: Direction,
        tokens: u64,
        piece: P,
    ) -> Result<(), P> {
        let bytes = self.bytes(tokens);
        self.way_mut(node, source).line.enter(direction, bytes, piece)
    }

    /// The transfer whose turn it is, if there is room for it, and when it is done.
    pub(crate) fn begin(
        &mut self,
        (node, source): (u16, Source),
        now: Nanos,
    ) -> Option<(Nanos, Box<Moved<P>>)> {
        let (_, latency_ms) = self.rates.of(source);
        let ns_per_byte = 1e9 / self.rates.bytes_per_second(source);
        let way = self.way_mut(node, source);
        let (turn, piece) = way.line.next(Duration::from_nanos(now), |_| false)?;
        let served_from = way.free_at.max(now + nanos(latency_ms));
        way.free_at = served_from + (turn.bytes() as f64 * ns_per_byte).ceil() as Nanos;
        Some((way.free_at, Box::new(Moved { node, source, piece, turn })))
    }

    /// A transfer is done.
    pub(crate) fn end(&mut self, moved: Moved<P>, now: Nanos) -> P {
        let way = self.way_mut(moved.node, moved.source);
        way.line.end(moved.turn, End::Done(Duration::from_nanos(now)));
        moved.piece
    }

    /// How long the line says that a read will take, with all that is ahead of it.
    pub(crate) fn expect(&self, (node, source): (u16, Source), tokens: u64) -> Duration {
        self.way(node, source).line.expect_read(self.bytes(tokens))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    const NVME: (u16, Source) = (0, Source::Nvme);

    /// 1 MB a token.
    fn lanes() -> Lanes<u32> {
        let rates =
            Rates { bytes_per_token: 1e6, dram: 50e9, nvme: 5e9, s3: 1e9, network: 25e9, device: 64e9 };
        Lanes::new(rates, 2)
    }

    /// What is done in which order, and when, if nothing more comes.
    fn run(lanes: &mut Lanes<u32>, at: (u16, Source), mut now: Nanos) -> Vec<(u32, Nanos)> {
        let (mut under_way, mut done) = (VecDeque::new(), Vec::new());
        loop {
            under_way.extend(std::iter::from_fn(|| lanes.begin(at, now)));
            let Some((done_at, moved)) = under_way.pop_front() else { return done };
            now = done_at;
            done.push((lanes.end(*moved, now), now));
        }
    }

    /// The oracle: latency, and then bytes over bandwidth.
    #[test]
    fn with_one_load_at_a_time_it_is_latency_and_bytes_over_bandwidth() {
        for (source, latency, ns_per_token) in [
            (Source::Network, 20_000, 40_000),
            (Source::Nvme, 100_000, 200_000),
            (Source::S3, 30_000_000, 1_000_000),
        ] {
            let mut lanes = lanes();
            let mut now = 0;
            for blocks in [1, 2, 100] {
                for block in 0..blocks {
                    lanes.enter((1, source), Direction::Read, 8, block).unwrap();
                }
                let done = run(&mut lanes, (1, source), now);
                let order: Vec<_> = done.iter().map(|(block, _)| *block).collect();
                assert_eq!(order, (0..blocks).collect::<Vec<_>>());
                let expected = now + latency + u64::from(blocks) * 8 * ns_per_token;
                // A part of a nanosecond is one.
                now = done.last().unwrap().1;
                assert!(
                    (expected..=expected + u64::from(blocks)).contains(&now),
                    "{source:?} {blocks}: {now}"
                );
                now += 1_000;
            }
        }
    }

    #[test]
    fn reads_overtake_writes_and_each_node_has_its_own() {
        let mut lanes = lanes();
        // 16 MB each: two writes may be under way at once.
        for write in 0..6 {
            lanes.enter(NVME, Direction::Write, 16, write).unwrap();
        }
        let started: Vec<_> = std::iter::from_fn(|| lanes.begin(NVME, 0)).collect();
        assert_eq!(started.len(), 2);
        for read in 10..14 {
            lanes.enter(NVME, Direction::Read, 16, read).unwrap();
        }
        lanes.enter((1, Source::Nvme), Direction::Read, 16, 20).unwrap();
        assert_eq!(run(&mut lanes, (1, Source::Nvme), 0), [(20, 3_300_000)]);
        let mut under_way = VecDeque::from(started);
        let mut order = Vec::new();
        while let Some((now, moved)) = under_way.pop_front() {
            order.push(lanes.end(*moved, now));
            under_way.extend(std::iter::from_fn(|| lanes.begin(NVME, now)));
        }
        assert_eq!(order, [0, 1, 10, 11, 12, 13, 2, 3, 4, 5]);
    }

    #[test]
    fn writes_are_turned_away_when_too_many_wait() {
        let mut lanes = lanes();
        let entered =
            (0..100).filter(|write| lanes.enter(NVME, Direction::Write, 16, *write).is_ok()).count();
        assert_eq!(entered, (256 << 20) / 16_000_000);
        assert_eq!(run(&mut lanes, NVME, 0).len(), entered);
    }

    #[test]
    fn a_line_learns_what_its_place_does() {
        let mut lanes = lanes();
        let expect = |lanes: &Lanes<u32>| lanes.expect(NVME, 80).as_secs_f64();
        assert!(expect(&lanes) > 0.03, "2 GiB/s, before anything was read");
        let mut now = 0;
        for round in 0..20 {
            for block in 0..1 + round % 7 {
                lanes.enter(NVME, Direction::Read, 8, block).unwrap();
            }
            now = run(&mut lanes, NVME, now).last().unwrap().1 + 1_000_000;
        }
        assert!((expect(&lanes) / 0.0161 - 1.0).abs() < 0.1, "{}", expect(&lanes));
    }
}
