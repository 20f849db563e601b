//! Entries that are only believed, each until a time: a map, and a queue in the order they were first noted.
//!
//! An entry that is noted again keeps its place in the queue; when it comes to the front it goes to the back
//! with its new time. So the queue is never longer than the map.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use kelvin_kvstore::SequenceHash;

type Key = (u32, SequenceHash);

#[derive(Debug)]
pub(super) struct Assumed {
    until: HashMap<Key, Duration>,
    queue: VecDeque<(Key, Duration)>,
    most: usize,
}

impl Assumed {
    pub(super) fn new(most: usize) -> Self {
        Self { until: HashMap::new(), queue: VecDeque::new(), most }
    }

    /// Believes an entry until then; returns the one that had to go for it.
    pub(super) fn note(&mut self, worker: u32, hash: SequenceHash, until: Duration) -> Option<Key> {
        let key = (worker, hash);
        if let Some(known) = self.until.get_mut(&key) {
            *known = until.max(*known);
            return None;
        }
        let gone = if self.until.len() == self.most { self.oldest() } else { None };
        self.until.insert(key, until);
        self.queue.push_back((key, until));
        gone
    }

    pub(super) fn len(&self) -> usize {
        self.until.len()
    }

    pub(super) fn contains(&self, worker: u32, hash: SequenceHash) -> bool {
        self.until.contains_key(&(worker, hash))
    }

    /// Takes out the entry that was noted longest ago.
    pub(super) fn oldest(&mut self) -> Option<Key> {
        loop {
            let (key, queued) = self.queue.pop_front()?;
            match self.until.get(&key) {
                Some(&until) if until > queued => self.queue.push_back((key, until)),
                Some(_) => {
                    self.until.remove(&key);
                    return Some(key);
                }
                None => {}
            }
        }
    }

    /// Takes out at most `most` entries that are over at `now`.
    pub(super) fn expired(&mut self, now: Duration, most: usize) -> Vec<Key> {
        let mut old = Vec::new();
        while old.len() < most {
            match self.queue.front() {
                Some((_, queued)) if *queued <= now => {}
                _ => break,
            }
            let Some((key, _)) = self.queue.pop_front() else { break };
            match self.until.get(&key) {
                Some(&until) if until > now => self.queue.push_back((key, until)),
                Some(_) => {
                    self.until.remove(&key);
                    old.push(key);
                }
                None => {}
            }
        }
        old
    }

    /// Takes out a worker's entries.
    pub(super) fn leave(&mut self, worker: u32) -> Vec<SequenceHash> {
        self.queue.retain(|((holder, _), _)| *holder != worker);
        self.until.extract_if(|(holder, _), _| *holder == worker).map(|((_, hash), _)| hash).collect()
    }
}
