//! The line before one tier: bounded, reads ahead of writes.
//!
//! # Locking
//! One lock a lane, held to look at the line only. A permit is handed to a waiter through a channel; a waiter
//! that went away meanwhile gives it back by dropping the channel's message.

use std::{
    collections::VecDeque,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::Rate;

/// Bounds of a lane.
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
}

struct Waiter {
    bytes: u64,
    permit: oneshot::Sender<Permit>,
}

struct Line {
    options: LaneOptions,
    reads: VecDeque<Waiter>,
    writes: VecDeque<Waiter>,
    reads_waiting_bytes: u64,
    writes_waiting_bytes: u64,
    reads_bytes: u64,
    writes_bytes: u64,
    stats: LaneStats,
}

/// One tier's line. Cloning shares it.
#[derive(Clone)]
pub struct Lane(Arc<Mutex<Line>>);

/// The right to transfer some bytes now. Dropped without [`done`](Self::done), it counts as failed.
pub struct Permit {
    lane: Lane,
    kind: Kind,
    bytes: u64,
    began: Instant,
    done: bool,
}

impl Lane {
    /// An empty line.
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
        Self(Arc::new(Mutex::new(Line {
            options,
            reads: VecDeque::new(),
            writes: VecDeque::new(),
            reads_waiting_bytes: 0,
            writes_waiting_bytes: 0,
            reads_bytes: 0,
            writes_bytes: 0,
            stats,
        })))
    }

    /// Waits for the turn of a read; `None` when too many wait.
    pub async fn read(&self, bytes: u64) -> Option<Permit> {
        self.enter(Kind::Read, bytes).await
    }

    /// Waits for the turn of a write, behind all reads; `None` when too many wait.
    pub async fn write(&self, bytes: u64) -> Option<Permit> {
        self.enter(Kind::Write, bytes).await
    }

    async fn enter(&self, kind: Kind, bytes: u64) -> Option<Permit> {
        let receiver = {
            let mut line = self.0.lock();
            let (waiting_bytes, waiting_bytes_max) = match kind {
                Kind::Read => (line.reads_waiting_bytes, line.options.reads_waiting_bytes),
                Kind::Write => (line.writes_waiting_bytes, line.options.writes_waiting_bytes),
            };
            if waiting_bytes > 0 && waiting_bytes.saturating_add(bytes) > waiting_bytes_max {
                match kind {
                    Kind::Read => line.stats.reads_refused += 1,
                    Kind::Write => line.stats.writes_refused += 1,
                }
                return None;
            }
            let (permit, receiver) = oneshot::channel();
            match kind {
                Kind::Read => {
                    line.reads_waiting_bytes += bytes;
                    line.reads.push_back(Waiter { bytes, permit });
                }
                Kind::Write => {
                    line.writes_waiting_bytes += bytes;
                    line.writes.push_back(Waiter { bytes, permit });
                }
            }
            receiver
        };
        self.admit();
        receiver.await.ok()
    }

    /// Hands out permits while there is room.
    fn admit(&self) {
        loop {
            let (waiter, permit) = {
                let mut line = self.0.lock();
                let Some((kind, waiter)) = line.next() else { return };
                let permit = Permit {
                    lane: self.clone(),
                    kind,
                    bytes: waiter.bytes,
                    began: Instant::now(),
                    done: false,
                };
                (waiter, permit)
            };
            // Sent without the lock: a waiter that went away hands the permit back, which takes it.
            if let Err(mut unwanted) = waiter.permit.send(permit) {
                unwanted.give_back();
            }
        }
    }

    /// Expected time of a read of so many bytes once it is its turn, and of what is ahead of it.
    pub fn expect_read(&self, bytes: u64) -> Duration {
        let line = self.0.lock();
        let ahead = line.reads_bytes + line.reads_waiting_bytes;
        line.stats.read_rate.expect(bytes + ahead)
    }

    /// The lane now.
    pub fn stats(&self) -> LaneStats {
        let line = self.0.lock();
        LaneStats {
            in_flight_bytes: line.reads_bytes + line.writes_bytes,
            reads_waiting: line.reads.len() as u64,
            writes_waiting: line.writes.len() as u64,
            reads_waiting_bytes: line.reads_waiting_bytes,
            writes_waiting_bytes: line.writes_waiting_bytes,
            ..line.stats
        }
    }

    /// Whether a write would have to wait.
    pub fn is_busy(&self) -> bool {
        let line = self.0.lock();
        !line.writes.is_empty() || !line.reads.is_empty()
    }
}

impl Line {
    /// Lets those go who gave up waiting.
    fn forget_gone(&mut self) {
        while self.reads.front().is_some_and(|waiter| waiter.permit.is_closed()) {
            self.reads_waiting_bytes -= self.reads.pop_front().map_or(0, |waiter| waiter.bytes);
        }
        while self.writes.front().is_some_and(|waiter| waiter.permit.is_closed()) {
            self.writes_waiting_bytes -= self.writes.pop_front().map_or(0, |waiter| waiter.bytes);
        }
    }

    /// Takes the next one out of the line, if there is room for it.
    fn next(&mut self) -> Option<(Kind, Waiter)> {
        self.forget_gone();
        let in_flight = self.reads_bytes + self.writes_bytes;
        if let Some(first) = self.reads.front() {
            // Whoever is too large for the budget goes alone.
            if in_flight > 0 && in_flight + first.bytes > self.options.in_flight_bytes {
                return None;
            }
            let waiter = self.reads.pop_front()?;
            self.reads_waiting_bytes -= waiter.bytes;
            self.reads_bytes += waiter.bytes;
            return Some((Kind::Read, waiter));
        }
        let first = self.writes.front()?;
        let full = in_flight > 0 && in_flight + first.bytes > self.options.in_flight_bytes;
        let share_taken =
            self.writes_bytes > 0 && self.writes_bytes + first.bytes > self.options.writes_in_flight_bytes;
        if full || share_taken {
            return None;
        }
        let waiter = self.writes.pop_front()?;
        self.writes_waiting_bytes -= waiter.bytes;
        self.writes_bytes += waiter.bytes;
        Some((Kind::Write, waiter))
    }
}

impl Permit {
    /// The transfer ended well; its time counts for the estimate.
    pub fn done(mut self) {
        self.done = true;
        let took = self.began.elapsed();
        let mut line = self.lane.0.lock();
        match self.kind {
            Kind::Read => {
                line.stats.reads += 1;
                line.stats.read_bytes += self.bytes;
                line.stats.read_rate.note(self.bytes, took);
            }
            Kind::Write => {
                line.stats.writes += 1;
                line.stats.written_bytes += self.bytes;
                line.stats.write_rate.note(self.bytes, took);
            }
        }
    }

    /// Nothing was transferred: no error either.
    pub fn give_back(&mut self) {
        self.done = true;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        {
            let mut line = self.lane.0.lock();
            match self.kind {
                Kind::Read => line.reads_bytes -= self.bytes,
                Kind::Write => line.writes_bytes -= self.bytes,
            }
            if !self.done {
                line.stats.errors += 1;
            }
        }
        self.lane.admit();
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lane({:?})", self.stats())
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Permit({:?} {})", self.kind, self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future,
        pin::{Pin, pin},
        task::{Context, Poll, Waker},
    };

    use super::*;

    fn lane(in_flight_bytes: u64) -> Lane {
        let rate = Rate::new(Duration::from_micros(100), 1 << 30);
        Lane::new(LaneOptions {
            in_flight_bytes,
            writes_in_flight_bytes: in_flight_bytes / 2,
            writes_waiting_bytes: 20,
            reads_waiting_bytes: 100,
            read_rate: rate,
            write_rate: rate,
        })
    }

    fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    fn now<F: Future<Output = Option<Permit>>>(future: F) -> Permit {
        match poll(pin!(future)) {
            Poll::Ready(Some(permit)) => permit,
            _ => panic!("has to wait"),
        }
    }

    #[test]
    fn reads_overtake_writes_that_wait() {
        let lane = lane(10);
        let first = now(lane.write(5));
        let mut write = pin!(lane.write(5));
        assert!(poll(write.as_mut()).is_pending(), "the share of writes is taken");
        let read = now(lane.read(5));
        let mut next_read = pin!(lane.read(5));
        assert!(poll(next_read.as_mut()).is_pending(), "the budget is taken");
        first.done();
        assert!(poll(write.as_mut()).is_pending(), "the read goes first");
        let Poll::Ready(Some(next_read)) = poll(next_read.as_mut()) else { panic!("its turn") };
        read.done();
        let Poll::Ready(Some(write)) = poll(write.as_mut()) else { panic!("its turn") };
        write.done();
        next_read.done();
        let stats = lane.stats();
        assert_eq!((stats.reads, stats.writes, stats.errors, stats.in_flight_bytes), (2, 2, 0, 0));
    }

    #[test]
    fn writes_are_turned_away_before_reads_suffer() {
        let lane = lane(10);
        let held = now(lane.read(10));
        let mut waiting = Vec::new();
        for _ in 0..2 {
            let mut write = Box::pin(lane.write(10));
            assert!(poll(write.as_mut()).is_pending());
            waiting.push(write);
        }
        assert!(matches!(poll(pin!(lane.write(10))), Poll::Ready(None)), "the line is full");
        assert_eq!(lane.stats().writes_refused, 1);
        drop(held);
        assert_eq!(lane.stats().errors, 1, "a permit dropped without `done` is a failed transfer");
    }

    #[test]
    fn a_transfer_larger_than_the_budget_goes_alone() {
        let lane = lane(10);
        let large = now(lane.read(50));
        let mut small = pin!(lane.read(1));
        assert!(poll(small.as_mut()).is_pending());
        large.done();
        assert!(poll(small.as_mut()).is_ready());
    }

    #[test]
    fn whoever_gives_up_waiting_takes_no_room() {
        let lane = lane(10);
        let held = now(lane.read(10));
        {
            let mut given_up = pin!(lane.read(10));
            assert!(poll(given_up.as_mut()).is_pending());
        }
        let mut other = pin!(lane.read(10));
        assert!(poll(other.as_mut()).is_pending());
        held.done();
        let Poll::Ready(Some(permit)) = poll(other.as_mut()) else { panic!("its turn") };
        permit.done();
        assert_eq!((lane.stats().in_flight_bytes, lane.stats().errors), (0, 0));
    }
}
