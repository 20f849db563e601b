//! Which decode worker had a conversation's last turn.
//!
//! # Limits
//! [`SESSIONS_MAX`] conversations, by a hash of their names; those that were not heard of for longest are forgotten,
//! half of them at a time. Two names of one hash share a preference, which costs neither anything.

use std::hash::{BuildHasher, RandomState};

use crate::halves::Halves;

/// Conversations that are known at most.
const SESSIONS_MAX: usize = 1 << 16;

/// The table.
pub(crate) struct Sessions {
    names: RandomState,
    workers: Halves<usize>,
}

impl Default for Sessions {
    fn default() -> Self {
        Self { names: RandomState::new(), workers: Halves::new(SESSIONS_MAX) }
    }
}

impl Sessions {
    /// Who had the conversation's last turn.
    pub(super) fn worker(&self, name: &str) -> Option<usize> {
        self.workers.get(self.names.hash_one(name)).copied()
    }

    /// Notes who has its turn now.
    pub(super) fn note(&mut self, name: &str, worker: usize) {
        self.workers.insert(self.names.hash_one(name), worker);
    }

    /// Forgets a conversation that ended.
    pub(super) fn end(&mut self, name: &str) {
        self.workers.remove(self.names.hash_one(name));
    }

    pub(crate) fn len(&self) -> usize {
        self.workers.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_turn_counts() {
        let mut sessions = Sessions::default();
        assert_eq!(sessions.worker("a"), None);
        sessions.note("a", 1);
        sessions.note("b", 2);
        sessions.note("a", 3);
        assert_eq!((sessions.worker("a"), sessions.worker("b"), sessions.len()), (Some(3), Some(2), 2));
        sessions.end("a");
        assert_eq!((sessions.worker("a"), sessions.len()), (None, 1));
    }
}
