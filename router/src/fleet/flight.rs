//! What the router itself has in work with a worker.

use std::{collections::HashMap, sync::Arc, time::Instant};

use super::Worker;

/// Calls in work with one worker; as many as the router admits requests, at most.
#[derive(Debug, Default)]
pub(super) struct Flights {
    next: u64,
    calls: HashMap<u64, Call>,
}

#[derive(Debug)]
struct Call {
    begun: Instant,
    /// Prompt tokens that the worker has still to evaluate, as far as the router knows.
    pending_tokens: u64,
}

impl Flights {
    fn begin(&mut self, pending_tokens: u64, now: Instant) -> u64 {
        self.next += 1;
        self.calls.insert(self.next, Call { begun: now, pending_tokens });
        self.next
    }

    pub(super) fn len(&self) -> u32 {
        u32::try_from(self.calls.len()).unwrap_or(u32::MAX)
    }

    /// Prompt tokens of calls that began after `since`: what the worker's word of then cannot contain.
    pub(super) fn pending_tokens_since(&self, since: Instant) -> u64 {
        self.calls.values().filter(|call| call.begun > since).map(|call| call.pending_tokens).sum()
    }
}

/// One call in work; it ends when this is dropped, and the worker is looked at again.
pub(crate) struct Flight {
    worker: Arc<Worker>,
    number: u64,
}

impl Flight {
    pub(crate) fn begin(worker: &Arc<Worker>, pending_tokens: u64) -> Self {
        let number = worker.flights().begin(pending_tokens, Instant::now());
        Self { worker: worker.clone(), number }
    }

    pub(crate) fn worker(&self) -> &Arc<Worker> {
        &self.worker
    }

    /// The prompt is evaluated.
    pub(crate) fn evaluated(&self) {
        if let Some(call) = self.worker.flights().calls.get_mut(&self.number) {
            call.pending_tokens = 0;
        }
        self.worker.refresh();
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.worker.flights().calls.remove(&self.number);
        self.worker.refresh();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_what_came_after_the_last_word_is_added() {
        let mut flights = Flights::default();
        let start = Instant::now();
        flights.begin(100, start);
        let number = flights.begin(7, start + Duration::from_millis(2));
        assert_eq!(flights.len(), 2);
        assert_eq!(flights.pending_tokens_since(start + Duration::from_millis(1)), 7);
        flights.calls.remove(&number);
        assert_eq!((flights.len(), flights.pending_tokens_since(start + Duration::from_millis(1))), (1, 0));
    }
}
