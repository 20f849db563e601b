//! The way to the store for one direction: a turn, the breaker's leave, a deadline, and another try.
//!
//! # Overview
//! Reads and writes have a lane each, so that a bucket that refuses writes still serves reads, and a queue of
//! uploads delays no read. In a lane `concurrency` requests run side by side; who waits for its turn is a future
//! of its caller with a deadline.
//!
//! # Cancellation
//! A dropped request gives back its turn, and its leave as if it had never asked.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, sleep, timeout_at},
};

use super::{
    breaker::{Admission, Breaker, BreakerOptions},
    error::Fault,
    random::Jitter,
    stats::{Counter, Counters},
};

/// The pause before the first retry; it doubles up to the longest.
const PAUSE: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

pub(super) struct Lane {
    turns: Semaphore,
    pub(super) breaker: Breaker,
    retries: u32,
    jitter: Jitter,
    queued: AtomicU64,
    counters: Arc<Counters>,
}

impl Lane {
    pub(super) fn new(
        concurrency: usize,
        retries: u32,
        breaker: BreakerOptions,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            turns: Semaphore::new(concurrency),
            breaker: Breaker::new(breaker),
            retries,
            jitter: Jitter::new(),
            queued: AtomicU64::new(0),
            counters,
        }
    }

    /// Requests under way or waiting.
    pub(super) fn queued(&self) -> u64 {
        self.queued.load(Ordering::Relaxed)
    }

    /// A turn and leave to make one request.
    pub(super) async fn turn(&self, deadline: Instant) -> Result<Turn<'_>, Fault> {
        let refused = || {
            self.counters.refusals.add(1);
            Fault::Unavailable
        };
        // Before the queue, not behind it: while the breaker is open nobody shall wait for those who time out.
        if !self.breaker.admits(std::time::Instant::now()) {
            return Err(refused());
        }
        let queued = Queued::new(&self.queued);
        let permit = match timeout_at(deadline, self.turns.acquire()).await {
            Ok(permit) => permit.map_err(|_| Fault::Unavailable)?,
            Err(_) => {
                self.counters.timeouts.add(1);
                return Err(Fault::Timeout);
            }
        };
        let admission = self.breaker.admit(std::time::Instant::now()).ok_or_else(refused)?;
        Ok(Turn { lane: self, admission, _permit: permit, _queued: queued })
    }

    /// A turn beside one that is had already, if one is free now.
    pub(super) fn second(&self) -> Option<SemaphorePermit<'_>> {
        self.turns.try_acquire().ok()
    }

    /// Waits before try number `tried + 1`; false when that one shall not be.
    pub(super) async fn again(&self, fault: &Fault, tried: u32, deadline: Instant) -> bool {
        if !fault.is_passing() || tried > self.retries {
            return false;
        }
        let pause = self.jitter.spread((PAUSE * 2u32.saturating_pow(tried - 1)).min(PAUSE_MAX));
        if Instant::now() + pause >= deadline {
            return false;
        }
        self.counters.retries.add(1);
        sleep(pause).await;
        true
    }

    /// Makes a request that is no stream, and makes it again where that may help. A try has an equal share of
    /// the time left, so that one that hangs leaves time for the next.
    pub(super) async fn request<T, A>(
        &self,
        count: &Counter,
        deadline: Instant,
        mut attempt: impl FnMut() -> A,
    ) -> Result<T, Fault>
    where
        A: Future<Output = object_store::Result<T>>,
    {
        for tried in 1.. {
            let turn = self.turn(deadline).await?;
            count.add(1);
            let tries_left = (self.retries + 1).saturating_sub(tried) + 1;
            let share = deadline.saturating_duration_since(Instant::now()) / tries_left.min(2);
            let result = match timeout_at(Instant::now() + share, attempt()).await {
                Ok(Ok(value)) => Ok(value),
                Ok(Err(error)) => Err(Fault::of(&error)),
                Err(_) => Err(Fault::Timeout),
            };
            turn.end(result.as_ref().err());
            match result {
                Err(fault) if self.again(&fault, tried, deadline).await => {}
                result => return result,
            }
        }
        unreachable!("the loop above ends by returning")
    }
}

/// Leave to make a request.
pub(super) struct Turn<'a> {
    lane: &'a Lane,
    admission: Admission<'a>,
    _permit: SemaphorePermit<'a>,
    _queued: Queued<'a>,
}

impl Turn<'_> {
    /// How it went.
    pub(super) fn end(self, fault: Option<&Fault>) {
        match fault {
            Some(fault) if fault.is_the_stores() => self.admission.failed(std::time::Instant::now()),
            // The store answered: it is there.
            _ => self.admission.succeeded(),
        }
        let counters = &self.lane.counters;
        match fault {
            None | Some(Fault::Exists) => {}
            Some(Fault::Missing) => counters.missing.add(1),
            Some(Fault::Timeout) => {
                counters.timeouts.add(1);
                counters.errors.add(1);
            }
            Some(_) => counters.errors.add(1),
        }
    }
}

struct Queued<'a>(&'a AtomicU64);

impl<'a> Queued<'a> {
    fn new(queued: &'a AtomicU64) -> Self {
        queued.fetch_add(1, Ordering::Relaxed);
        Self(queued)
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
