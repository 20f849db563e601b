//! The line before one tier as plain state: who goes when, and what the next transfer will take.
//!
//! It has no lock, no tasks and no clock: time is told, from any start, and waiters are whatever the caller wakes.
//! [`Lane`](super::Lane) is a line for tasks; a simulation has lines under a clock of its own.
//!
//! # Model of time
//! A tier serves what is under way in turn, so a transfer takes the latency and the time of its bytes and of those
//! that were under way when it began. It is learnt like that, and expected like that of a read with all that is
//! ahead of it. Were each transfer's time noted for its own bytes alone, eight at once would look like a tier an
//! eighth as fast, and a long prefix like eight times the wait.

use std::{collections::VecDeque, time::Duration};

use super::Rate;

/// Bounds of a line.
#[derive(Debug, Clone, Copy)]
pub struct LaneOptions {
    /// Bytes under way at a time. One transfer larger than that goes alone.
    pub in_flight_bytes: u64,
    /// Of these, bytes of writes: the rest stays free for reads.
    pub writes_in_flight_bytes: u64,
    /// Bytes of writes that may wait; beyond it a write is turned away.
    pub writes_waiting_bytes: u64,
    /// Bytes of reads that may wait; beyond it a read is turned away.
    pub reads_waiting_bytes: u64,
    /// What to expect before anything was measured.
    pub read_rate: Rate,
    /// The same for writes.
    pub write_rate: Rate,
}

impl LaneOptions {
    /// Before a node's drives.
    pub fn nvme() -> Self {
        Self {
            in_flight_bytes: 64 << 20,
            writes_in_flight_bytes: 32 << 20,
            writes_waiting_bytes: 256 << 20,
            reads_waiting_bytes: 4 << 30,
            read_rate: Rate::new(Duration::from_micros(200), 2 << 30),
            write_rate: Rate::new(Duration::from_micros(200), 2 << 30),
        }
    }

    /// Before an object store.
    pub fn object() -> Self {
        Self {
            in_flight_bytes: 512 << 20,
            writes_in_flight_bytes: 128 << 20,
            writes_waiting_bytes: 256 << 20,
            reads_waiting_bytes: 4 << 30,
            read_rate: Rate::new(Duration::from_millis(30), 500 << 20),
            write_rate: Rate::new(Duration::from_millis(60), 200 << 20),
        }
    }
}

/// A lane at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LaneStats {
    /// Bytes under way, reads and writes.
    pub in_flight_bytes: u64,
    /// Transfers that wait.
    pub reads_waiting: u64,
    /// The same for writes.
    pub writes_waiting: u64,
    /// Bytes of reads that wait.
    pub reads_waiting_bytes: u64,
    /// Bytes of writes that wait.
    pub writes_waiting_bytes: u64,
    /// Transfers that ended well, and their bytes.
    pub reads: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// Writes that ended well.
    pub writes: u64,
    /// Their bytes.
    pub written_bytes: u64,
    /// Transfers that failed.
    pub errors: u64,
    /// Writes turned away since too many waited.
    pub writes_refused: u64,
    /// Reads turned away since too many waited.
    pub reads_refused: u64,
    /// Measured speed.
    pub read_rate: Rate,
    /// The same for writes.
    pub write_rate: Rate,
}

/// Out of a tier, or into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Goes first.
    Read,
    /// Goes when no read waits.
    Write,
}

/// A transfer under way: for [`Line::end`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "it takes room in the line until it is ended"]
pub struct Turn {
    direction: Direction,
    bytes: u64,
    /// Bytes of the same direction that were under way when it began.
    ahead_bytes: u64,
    began: Duration,
}

impl Turn {
    /// Which way it goes.
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// What it transfers.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// How a transfer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Well, at this time: it counts for what is expected.
    Done(Duration),
    /// Nothing was transferred: no error either.
    Unused,
    /// Otherwise.
    Failed,
}

/// See the module. `W` is what waits.
#[derive(Debug)]
pub struct Line<W> {
    options: LaneOptions,
    reads: Queue<W>,
    writes: Queue<W>,
    stats: LaneStats,
}

/// Of one direction.
#[derive(Debug)]
struct Queue<W> {
    waiting: VecDeque<(u64, W)>,
    waiting_bytes: u64,
    in_flight_bytes: u64,
}

impl<W> Queue<W> {
    fn new() -> Self {
        Self { waiting: VecDeque::new(), waiting_bytes: 0, in_flight_bytes: 0 }
    }

    fn forget_gone(&mut self, is_gone: impl Fn(&W) -> bool) {
        while self.waiting.front().is_some_and(|(_, waiter)| is_gone(waiter)) {
            self.waiting_bytes -= self.waiting.pop_front().map_or(0, |(bytes, _)| bytes);
        }
    }

    fn begin(&mut self, direction: Direction, now: Duration) -> Option<(Turn, W)> {
        let (bytes, waiter) = self.waiting.pop_front()?;
        let turn = Turn { direction, bytes, ahead_bytes: self.in_flight_bytes, began: now };
        self.waiting_bytes -= bytes;
        self.in_flight_bytes += bytes;
        Some((turn, waiter))
    }
}

impl<W> Line<W> {
    /// An empty one.
    pub fn new(options: LaneOptions) -> Self {
        let stats = LaneStats {
            in_flight_bytes: 0,
            reads_waiting: 0,
            writes_waiting: 0,
            reads_waiting_bytes: 0,
            writes_waiting_bytes: 0,
            reads: 0,
            read_bytes: 0,
            writes: 0,
            written_bytes: 0,
            errors: 0,
            writes_refused: 0,
            reads_refused: 0,
            read_rate: options.read_rate,
            write_rate: options.write_rate,
        };
        Self { options, reads: Queue::new(), writes: Queue::new(), stats }
    }

    /// Lets one wait for its turn, which [`next`](Self::next) gives.
    ///
    /// # Errors
    /// Gives it back when too many wait.
    pub fn enter(&mut self, direction: Direction, bytes: u64, waiter: W) -> Result<(), W> {
        let (queue, waiting_bytes_max, refused) = match direction {
            Direction::Read => {
                (&mut self.reads, self.options.reads_waiting_bytes, &mut self.stats.reads_refused)
            }
            Direction::Write => {
                (&mut self.writes, self.options.writes_waiting_bytes, &mut self.stats.writes_refused)
            }
        };
        if queue.waiting_bytes > 0 && queue.waiting_bytes.saturating_add(bytes) > waiting_bytes_max {
            *refused += 1;
            return Err(waiter);
        }
        queue.waiting_bytes += bytes;
        queue.waiting.push_back((bytes, waiter));
        Ok(())
    }

    /// Whose turn it is, if there is room; its transfer begins `now`. Those that `is_gone` are let go.
    pub fn next(&mut self, now: Duration, is_gone: impl Fn(&W) -> bool) -> Option<(Turn, W)> {
        self.reads.forget_gone(&is_gone);
        self.writes.forget_gone(&is_gone);
        let in_flight = self.reads.in_flight_bytes + self.writes.in_flight_bytes;
        // Whoever is too large for the budget goes alone.
        let fits = |bytes: u64| in_flight == 0 || in_flight + bytes <= self.options.in_flight_bytes;
        if let Some((bytes, _)) = self.reads.waiting.front() {
            return if fits(*bytes) { self.reads.begin(Direction::Read, now) } else { None };
        }
        let (bytes, _) = self.writes.waiting.front()?;
        let writing = self.writes.in_flight_bytes;
        let has_share = writing == 0 || writing + bytes <= self.options.writes_in_flight_bytes;
        if fits(*bytes) && has_share { self.writes.begin(Direction::Write, now) } else { None }
    }

    /// A transfer is over, and its room free.
    pub fn end(&mut self, turn: Turn, end: End) {
        let stats = &mut self.stats;
        let (queue, rate, count, bytes) = match turn.direction {
            Direction::Read => {
                (&mut self.reads, &mut stats.read_rate, &mut stats.reads, &mut stats.read_bytes)
            }
            Direction::Write => {
                (&mut self.writes, &mut stats.write_rate, &mut stats.writes, &mut stats.written_bytes)
            }
        };
        queue.in_flight_bytes -= turn.bytes;
        match end {
            End::Done(now) => {
                *count += 1;
                *bytes += turn.bytes;
                rate.note(turn.ahead_bytes + turn.bytes, now.saturating_sub(turn.began));
            }
            End::Unused => {}
            End::Failed => stats.errors += 1,
        }
    }

    /// Expected time of a read of so many bytes and of what is ahead of it.
    pub fn expect_read(&self, bytes: u64) -> Duration {
        let ahead = self.reads.in_flight_bytes + self.reads.waiting_bytes;
        self.stats.read_rate.expect(bytes + ahead)
    }

    /// The line now.
    pub fn stats(&self) -> LaneStats {
        LaneStats {
            in_flight_bytes: self.reads.in_flight_bytes + self.writes.in_flight_bytes,
            reads_waiting: self.reads.waiting.len() as u64,
            writes_waiting: self.writes.waiting.len() as u64,
            reads_waiting_bytes: self.reads.waiting_bytes,
            writes_waiting_bytes: self.writes.waiting_bytes,
            ..self.stats
        }
    }

    /// Whether a write would have to wait.
    pub fn is_busy(&self) -> bool {
        !self.reads.waiting.is_empty() || !self.writes.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = 8 << 20;
    const NONE_GONE: fn(&u32) -> bool = |_| false;

    /// A tier that answers after 100 us and then serves one byte a nanosecond, in turn.
    struct Pipe {
        free_at: Duration,
    }

    impl Pipe {
        fn serve(&mut self, now: Duration, bytes: u64) -> Duration {
            self.free_at = self.free_at.max(now + Duration::from_micros(100)) + Duration::from_nanos(bytes);
            self.free_at
        }
    }

    /// Reads so many blocks at once, begun at `now`; when the last is there.
    fn read_all(line: &mut Line<u32>, pipe: &mut Pipe, blocks: u32, mut now: Duration) -> Duration {
        for block in 0..blocks {
            line.enter(Direction::Read, BLOCK, block).unwrap();
        }
        let mut under_way = VecDeque::new();
        loop {
            while let Some((turn, _)) = line.next(now, NONE_GONE) {
                under_way.push_back((pipe.serve(now, turn.bytes()), turn));
            }
            let Some((done, turn)) = under_way.pop_front() else { return now };
            now = done;
            line.end(turn, End::Done(now));
        }
    }

    #[test]
    fn a_prefix_is_expected_to_take_as_long_as_it_does_whatever_is_under_way_at_once() {
        let mut line = Line::new(LaneOptions::nvme());
        let mut pipe = Pipe { free_at: Duration::ZERO };
        let mut now = Duration::ZERO;
        for round in 0..60 {
            let blocks = [1, 24, 3, 60][round % 4];
            let expected = line.expect_read(u64::from(blocks) * BLOCK);
            let done = read_all(&mut line, &mut pipe, blocks, now);
            let ratio = expected.as_secs_f64() / (done - now).as_secs_f64();
            assert!(round < 20 || (0.9..1.1).contains(&ratio), "{blocks} blocks: {ratio} of the time");
            now = done + Duration::from_millis(7);
        }
    }
}
