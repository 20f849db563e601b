//! The line before one tier, for tasks that wait: bounded, reads ahead of writes.
//!
//! # Locking
//! One lock a lane, held to look at the line only. A permit is handed to a waiter through a channel; a waiter
//! that went away meanwhile gives it back by dropping the channel's message.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{Direction, End, LaneOptions, LaneStats, Line, Turn};

/// One tier's line. Cloning shares it.
#[derive(Clone)]
pub struct Lane {
    line: Arc<Mutex<Line<oneshot::Sender<Permit>>>>,
    /// The line's time is from here.
    opened_at: Instant,
}

/// The right to transfer some bytes now. Dropped without [`done`](Self::done), it counts as failed.
pub struct Permit {
    lane: Lane,
    turn: Turn,
    end: End,
}

impl Lane {
    /// An empty line.
    pub fn new(options: LaneOptions) -> Self {
        Self { line: Arc::new(Mutex::new(Line::new(options))), opened_at: Instant::now() }
    }

    /// Waits for the turn of a read; `None` when too many wait.
    pub async fn read(&self, bytes: u64) -> Option<Permit> {
        self.enter(Direction::Read, bytes).await
    }

    /// Waits for the turn of a write, behind all reads; `None` when too many wait.
    pub async fn write(&self, bytes: u64) -> Option<Permit> {
        self.enter(Direction::Write, bytes).await
    }

    async fn enter(&self, direction: Direction, bytes: u64) -> Option<Permit> {
        let (permit, receiver) = oneshot::channel();
        self.line.lock().enter(direction, bytes, permit).ok()?;
        self.admit();
        receiver.await.ok()
    }

    /// Hands out permits while there is room.
    fn admit(&self) {
        loop {
            let next = self.line.lock().next(self.opened_at.elapsed(), oneshot::Sender::is_closed);
            let Some((turn, waiter)) = next else { return };
            // Sent without the lock: a waiter that went away hands the permit back, which takes it.
            let permit = Permit { lane: self.clone(), turn, end: End::Failed };
            if let Err(mut unwanted) = waiter.send(permit) {
                unwanted.give_back();
            }
        }
    }

    /// Expected time of a read of so many bytes once it is its turn, and of what is ahead of it.
    pub fn expect_read(&self, bytes: u64) -> Duration {
        self.line.lock().expect_read(bytes)
    }

    /// The lane now.
    pub fn stats(&self) -> LaneStats {
        self.line.lock().stats()
    }

    /// Whether a write would have to wait.
    pub fn is_busy(&self) -> bool {
        self.line.lock().is_busy()
    }
}

impl Permit {
    /// The transfer ended well; its time counts for the estimate.
    pub fn done(mut self) {
        self.end = End::Done(self.lane.opened_at.elapsed());
    }

    /// Nothing was transferred: no error either.
    pub fn give_back(&mut self) {
        self.end = End::Unused;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.lane.line.lock().end(self.turn, self.end);
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
        write!(f, "Permit({:?} {})", self.turn.direction(), self.turn.bytes())
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
    use crate::mover::Rate;

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
