//! Which requests are in work: a bounded number, and a bounded queue in front of it.
//!
//! # Overview
//! [`Admission::admit`] gives a request its places among those in work, at once or when its turn comes (see
//! [`queue`] for whose turn it is), or says why not and when to try again. The places are given back when
//! [`Admitted`] is dropped.
//!
//! How many places there are is asked anew whenever one is wanted or given back, and by [`Admission::look`] now and
//! then: native workers come and go.
//!
//! # Cancellation
//! Dropping the future of [`Admission::admit`] leaves the queue. Should its turn have come in that moment, its
//! places go to the next.
//!
//! # Locking
//! One lock, around the queue alone; nobody is told anything under it but through channels that do not block.

mod queue;

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::Number;
use tokio::{sync::oneshot, time::timeout};

use crate::metrics::Metrics;
pub(crate) use queue::Class;
use queue::{Arrival, Ask, Limits, Queue};

/// Most seconds that a client is told to stay away.
const RETRY_S_MAX: u64 = 60;

/// What an operator decides; see [`RouterConfig`](crate::RouterConfig).
#[derive(Debug, Clone, Copy)]
pub(crate) struct AdmissionLimits {
    pub(crate) requests_max: usize,
    pub(crate) queue_max: usize,
    pub(crate) queue_timeout: Duration,
    /// Uncached tokens from which a prompt is long.
    pub(crate) long_tokens: u64,
    /// Places of long prompts; half of all without.
    pub(crate) long_max: Option<usize>,
}

/// Reads a priority; one beyond what is told apart counts as the last that is.
pub(crate) fn priority<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i32>, D::Error> {
    let number = Option::<Number>::deserialize(deserializer)?.as_ref().and_then(Number::as_f64);
    // The cast keeps what an i32 can be, and takes the nearest for anything else.
    match number {
        Some(number) if number.fract() != 0.0 => Err(D::Error::custom("a priority is an integer")),
        number => Ok(number.map(|number| number as i32)),
    }
}

/// A request for places.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ticket {
    /// Completions, one place each.
    pub(crate) places: u32,
    pub(crate) priority: i32,
    /// Prompt tokens to compute.
    pub(crate) uncached_tokens: u64,
    /// Most time to wait, if the client says.
    pub(crate) wait: Option<Duration>,
}

/// Why a request is not begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// No room is left to wait in.
    #[error("{running} completions are in work and {waiting} requests wait, which is the most")]
    Full { running: usize, waiting: usize, retry_s: u64 },
    /// It had to leave for one of a higher priority.
    #[error("requests of a higher priority took its place in the queue")]
    Displaced { retry_s: u64 },
    /// It would wait for longer than it may.
    #[error("its turn would come in about {expected:?}, and it may wait for {wait:?}")]
    Late { expected: Duration, wait: Duration, retry_s: u64 },
    /// It did.
    #[error("its turn did not come within {wait:?}")]
    TimedOut { wait: Duration, retry_s: u64 },
}

impl Refused {
    /// Seconds after which there may be a place.
    pub(crate) fn retry_s(&self) -> u64 {
        match *self {
            Self::Full { retry_s, .. }
            | Self::Displaced { retry_s }
            | Self::Late { retry_s, .. }
            | Self::TimedOut { retry_s, .. } => retry_s,
        }
    }

    /// Name for metrics.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Full { .. } => "queue_full",
            Self::Displaced { .. } => "queue_displaced",
            Self::Late { .. } => "queue_late",
            Self::TimedOut { .. } => "queue_timeout",
        }
    }
}

/// What one that waits is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Begin,
    Leave,
}

type Waiters = Queue<oneshot::Sender<Verdict>>;

/// The gate. Cloning shares it.
#[derive(Clone)]
pub(crate) struct Admission(Arc<Inner>);

struct Inner {
    limits: AdmissionLimits,
    queue: Mutex<Waiters>,
    started: Instant,
    /// Places that there are now, if it is fewer than `requests_max`.
    capacity: Box<dyn Fn() -> usize + Send + Sync>,
    /// What this gate has added to the metric that all gates share.
    noted: [AtomicI64; 2],
    metrics: Arc<Metrics>,
}

impl Admission {
    /// A gate with as many places as `capacity` says, and `requests_max` at most.
    pub(crate) fn new(
        limits: AdmissionLimits,
        capacity: impl Fn() -> usize + Send + Sync + 'static,
        metrics: Arc<Metrics>,
    ) -> Self {
        let queue = Queue::new(Limits { waiting_max: limits.queue_max, long_max: limits.long_max });
        let (queue, capacity) = (Mutex::new(queue), Box::new(capacity));
        let noted = Default::default();
        Self(Arc::new(Inner { limits, queue, started: Instant::now(), capacity, noted, metrics }))
    }

    /// Whether a request of this priority can be taken in at all: asked before work is spent on it.
    pub(crate) fn check(&self, priority: i32) -> Result<(), Refused> {
        let inner = &*self.0;
        let queue = inner.queue.lock();
        let has_place = queue.running() < inner.places();
        if has_place || !queue.refuses(Class::Short, priority) {
            return Ok(());
        }
        Err(inner.full(&queue, priority)).inspect_err(|refused| inner.refused(refused))
    }

    /// Waits for a request's places.
    pub(crate) async fn admit(&self, ticket: Ticket) -> Result<Admitted, Refused> {
        self.enter(ticket).await.inspect_err(|refused| self.0.refused(refused))
    }

    async fn enter(&self, ticket: Ticket) -> Result<Admitted, Refused> {
        let inner = &*self.0;
        let class = match ticket.uncached_tokens >= inner.limits.long_tokens {
            true => Class::Long,
            false => Class::Short,
        };
        let places = (ticket.places.max(1) as usize).min(inner.limits.requests_max);
        let ask = Ask { class, priority: ticket.priority, places, tokens: ticket.uncached_tokens };
        let wait =
            ticket.wait.map_or(inner.limits.queue_timeout, |wait| wait.min(inner.limits.queue_timeout));
        let came = Instant::now();
        let (sender, turn) = oneshot::channel();
        let number = {
            let mut queue = inner.queue.lock();
            let expected = queue.expected_wait(ticket.priority).unwrap_or_default();
            let capacity = inner.places();
            // Only what a client says it will not wait for is refused on a guess, and before it takes anybody's place.
            if ticket.wait.is_some() && expected > wait {
                inner.begin(&mut queue, capacity);
                if queue.makes_wait(&ask, capacity) {
                    return Err(Refused::Late { expected, wait, retry_s: retry_s(expected) });
                }
            }
            match queue.arrive(ask, capacity, sender) {
                Arrival::Begun => {
                    inner.begun(class, Duration::ZERO);
                    return Ok(self.admitted(class, places, false));
                }
                Arrival::Full => return Err(inner.full(&queue, ticket.priority)),
                Arrival::Waits(number, displaced) => {
                    if let Some(displaced) = displaced {
                        let _ = displaced.send(Verdict::Leave);
                    }
                    inner.begin(&mut queue, capacity);
                    number
                }
            }
        };
        let mut waiter = Waiter { admission: self, number, class, places, turn, is_over: false };
        match timeout(wait, &mut waiter.turn).await {
            Ok(Ok(Verdict::Begin)) => {
                waiter.is_over = true;
                inner.begun(class, came.elapsed());
                Ok(self.admitted(class, places, true))
            }
            // The sender is dropped with the queue alone, which this borrows.
            Ok(Ok(Verdict::Leave) | Err(_)) => {
                waiter.is_over = true;
                Err(Refused::Displaced { retry_s: inner.retry_s(ticket.priority) })
            }
            Err(_) => Err(Refused::TimedOut { wait, retry_s: inner.retry_s(ticket.priority) }),
        }
    }

    /// Begins what there are new places for.
    pub(crate) fn look(&self) {
        let mut queue = self.0.queue.lock();
        let capacity = self.0.places();
        self.0.begin(&mut queue, capacity);
    }

    fn admitted(&self, class: Class, places: usize, has_waited: bool) -> Admitted {
        self.0.metrics.in_flight.inc_by(places as i64);
        Admitted { admission: self.clone(), class, places, has_waited }
    }

    fn end(&self, class: Class, places: usize) {
        let inner = &*self.0;
        let mut queue = inner.queue.lock();
        queue.end(class, places, inner.started.elapsed());
        let capacity = inner.places();
        inner.begin(&mut queue, capacity);
    }
}

impl Inner {
    fn places(&self) -> usize {
        (self.capacity)().min(self.limits.requests_max)
    }

    fn begin(&self, queue: &mut Waiters, capacity: usize) {
        for waiter in queue.begin(capacity) {
            // One that left in this moment gives its places back by itself.
            let _ = waiter.send(Verdict::Begin);
        }
        self.note(queue);
    }

    fn note(&self, queue: &Waiters) {
        for class in Class::ALL {
            let waiting = i64::try_from(queue.waiting(class)).unwrap_or(i64::MAX);
            let before = self.noted[class as usize].swap(waiting, Ordering::Relaxed);
            self.metrics.queue_depth(class, waiting - before);
        }
    }

    fn begun(&self, class: Class, waited: Duration) {
        self.metrics.queue_wait(class, waited);
    }

    fn refused(&self, refused: &Refused) {
        self.metrics.error(refused.kind());
        tracing::info!(%refused, "a request is not taken");
    }

    fn full(&self, queue: &Waiters, priority: i32) -> Refused {
        let waiting = Class::ALL.iter().map(|&class| queue.waiting(class)).sum();
        let retry_s = retry_s(queue.expected_wait(priority).unwrap_or_default());
        Refused::Full { running: queue.running(), waiting, retry_s }
    }

    fn retry_s(&self, priority: i32) -> u64 {
        retry_s(self.queue.lock().expected_wait(priority).unwrap_or_default())
    }
}

fn retry_s(expected: Duration) -> u64 {
    (expected.as_secs_f64().ceil() as u64).clamp(1, RETRY_S_MAX)
}

/// One that waits.
struct Waiter<'a> {
    admission: &'a Admission,
    number: u64,
    class: Class,
    places: usize,
    turn: oneshot::Receiver<Verdict>,
    /// It knows its verdict.
    is_over: bool,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let mut queue = self.admission.0.queue.lock();
        let left = queue.leave(self.number).is_some();
        drop(queue);
        // Who is no longer in the queue was told under its lock.
        match self.turn.try_recv() {
            // It may have been what all others waited behind.
            _ if left => self.admission.look(),
            Ok(Verdict::Begin) => self.admission.end(self.class, self.places),
            Ok(Verdict::Leave) | Err(_) => {}
        }
    }
}

/// Places among the requests in work, one a completion; dropping it frees them.
pub(crate) struct Admitted {
    admission: Admission,
    class: Class,
    places: usize,
    has_waited: bool,
}

impl Admitted {
    /// Whether it was not begun at once: what was looked up before may have changed.
    pub(crate) fn has_waited(&self) -> bool {
        self.has_waited
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.admission.0.metrics.in_flight.dec_by(self.places as i64);
        self.admission.end(self.class, self.places);
    }
}

#[cfg(test)]
mod tests;
