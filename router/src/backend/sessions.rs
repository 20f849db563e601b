//! Where a conversation's last request went, so that the next goes there too if that costs little more: what is
//! there of it and nobody told of is found again.
//!
//! # Limits
//! [`SESSIONS_MAX`] sessions, each for [`TTL`] at least and twice that at most: they are in two halves, of which
//! the older goes as a whole. Sessions are known by a keyed hash of their names alone.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;

use super::member::Backend;
use crate::halves::Halves;

/// Most sessions that are known.
const SESSIONS_MAX: usize = 1 << 16;
/// An engine that evicts nothing for so long is idle, and then its events or the directory know better.
const TTL: Duration = Duration::from_secs(600);

/// See the module.
#[derive(Default)]
pub(crate) struct Sessions {
    key: RandomState,
    known: Mutex<Known>,
}

struct Known {
    /// A backend that left is kept in memory by no session, only its place is.
    backends: Halves<Weak<Backend>>,
    /// When the younger half was begun.
    since: Duration,
}

impl Default for Known {
    fn default() -> Self {
        Self { backends: Halves::new(SESSIONS_MAX), since: Duration::ZERO }
    }
}

impl Sessions {
    /// What a session is known by: its model's name, and its own as the request has it.
    pub(crate) fn number(&self, model: &str, name: &str) -> u64 {
        self.key.hash_one((model, name))
    }

    /// Where its last request went, if that still is known at `now`.
    pub(super) fn last(&self, session: u64, now: Duration) -> Option<Arc<Backend>> {
        let mut known = self.known.lock();
        known.age(now);
        known.backends.get(session)?.upgrade()
    }

    /// A request of it was answered there.
    pub(super) fn went(&self, session: u64, backend: &Arc<Backend>, now: Duration) {
        let mut known = self.known.lock();
        known.age(now);
        if known.backends.insert(session, Arc::downgrade(backend)) {
            known.since = now;
        }
    }

    /// It ends.
    pub(super) fn forget(&self, session: u64) {
        self.known.lock().backends.remove(session);
    }

    pub(crate) fn len(&self) -> usize {
        self.known.lock().backends.len()
    }
}

impl Known {
    fn age(&mut self, now: Duration) {
        let age = now.saturating_sub(self.since);
        if age >= TTL {
            self.backends.turn();
            self.since = now;
        }
        if age >= TTL * 2 {
            self.backends.turn();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{BackendSpec, board::Seat};

    fn backend(id: u32) -> Arc<Backend> {
        Arc::new(Backend::new(id, BackendSpec::new("http://127.0.0.1:1"), Seat::alone()).unwrap())
    }

    #[test]
    fn a_session_is_known_for_a_time_and_as_long_as_its_backend() {
        let sessions = Sessions::default();
        let (one, two) = (backend(1), backend(2));
        let session = sessions.number("m", "a");
        assert_ne!(session, sessions.number("n", "a"));
        assert!(sessions.last(session, TTL).is_none());
        sessions.went(session, &one, TTL);
        sessions.went(session, &two, TTL);
        assert_eq!(sessions.last(session, TTL).unwrap().id, 2);
        assert_eq!(sessions.last(session, TTL * 2).unwrap().id, 2, "the older half still has it");
        assert!(sessions.last(session, TTL * 3).is_none());
        sessions.went(session, &two, TTL * 3);
        assert!(sessions.last(session, TTL * 9).is_none());
        sessions.went(session, &two, TTL * 9);
        drop(two);
        assert!(sessions.last(session, TTL * 9).is_none());
    }

    #[test]
    fn the_table_is_bounded_and_the_last_ones_are_in_it() {
        let sessions = Sessions::default();
        let one = backend(1);
        let name = |number: usize| sessions.number("m", &number.to_string());
        for number in 0..SESSIONS_MAX * 2 {
            sessions.went(name(number), &one, Duration::ZERO);
            assert!(sessions.len() <= SESSIONS_MAX);
        }
        assert!(sessions.last(name(SESSIONS_MAX * 2 - 1), Duration::ZERO).is_some());
        assert!(sessions.last(name(0), Duration::ZERO).is_none());
    }
}
