//! Which decode worker had a conversation's last turn.
//!
//! # Limits
//! [`SESSIONS_MAX`] conversations, by a hash of their names; those that were not heard of for longest are forgotten,
//! half of them at a time. Two names of one hash share a preference, which costs neither anything.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    mem,
};

/// Conversations that are known at most.
const SESSIONS_MAX: usize = 1 << 16;

/// The table.
pub(crate) struct Sessions {
    names: RandomState,
    max: usize,
    /// Those heard of lately, and those before.
    young: HashMap<u64, usize>,
    old: HashMap<u64, usize>,
}

impl Default for Sessions {
    fn default() -> Self {
        Self::with_max(SESSIONS_MAX)
    }
}

impl Sessions {
    fn with_max(max: usize) -> Self {
        Self { names: RandomState::new(), max, young: HashMap::new(), old: HashMap::new() }
    }

    /// Who had the conversation's last turn.
    pub(super) fn worker(&self, name: &str) -> Option<usize> {
        let key = self.names.hash_one(name);
        self.young.get(&key).or_else(|| self.old.get(&key)).copied()
    }

    /// Notes who has its turn now.
    pub(super) fn note(&mut self, name: &str, worker: usize) {
        if self.young.len() >= self.max / 2 {
            self.old = mem::take(&mut self.young);
        }
        let key = self.names.hash_one(name);
        self.old.remove(&key);
        self.young.insert(key, worker);
    }

    /// Forgets a conversation that ended.
    pub(super) fn end(&mut self, name: &str) {
        let key = self.names.hash_one(name);
        self.young.remove(&key);
        self.old.remove(&key);
    }

    pub(crate) fn len(&self) -> usize {
        self.young.len() + self.old.len()
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

    #[test]
    fn the_table_is_bounded_and_keeps_who_comes_back() {
        let mut sessions = Sessions::with_max(64);
        for index in 0..1_000 {
            sessions.note(&format!("s{index}"), index);
            sessions.note("regular", 7);
            assert!(sessions.len() <= 64);
        }
        assert_eq!((sessions.worker("regular"), sessions.worker("s999")), (Some(7), Some(999)));
        assert_eq!(sessions.worker("s1"), None);
    }
}
