//! The last block events of a namespace, numbered, in bounded memory.

use std::collections::VecDeque;

use kelvin_tiering::Tier;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::SequenceHash;

/// Events kept; a reader that lags further behind loses some and is told how many.
pub(crate) const EVENTS_MAX: usize = 65_536;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EventKind {
    Stored,
    Removed,
}

/// A copy of a block appeared in a tier or went from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) kind: EventKind,
    pub(crate) hash: SequenceHash,
    pub(crate) parent: Option<SequenceHash>,
    pub(crate) tier: Tier,
}

/// What a reader gets for its cursor.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) events: Vec<Event>,
    /// Cursor after these events.
    pub(crate) next: u64,
    /// Events between the reader's cursor and the first one kept.
    pub(crate) lost: u64,
}

/// The log. Event `n` is the n-th since the namespace was opened first.
#[derive(Debug)]
pub(crate) struct EventLog {
    kept: Mutex<Kept>,
    /// Wakes readers, if there are any.
    end: watch::Sender<u64>,
}

#[derive(Debug)]
struct Kept {
    events: VecDeque<Event>,
    /// Cursor after the newest.
    end: u64,
}

impl EventLog {
    pub(crate) fn new() -> Self {
        Self { kept: Mutex::new(Kept { events: VecDeque::new(), end: 0 }), end: watch::Sender::new(0) }
    }

    pub(crate) fn push(&self, event: Event) {
        let mut kept = self.kept.lock();
        if kept.events.len() == EVENTS_MAX {
            kept.events.pop_front();
        }
        kept.events.push_back(event);
        kept.end += 1;
        // Whoever subscribes later reads the log first, from under the lock.
        if self.end.receiver_count() > 0 {
            self.end.send_replace(kept.end);
        }
    }

    /// Cursor after the newest event.
    pub(crate) fn end(&self) -> u64 {
        self.kept.lock().end
    }

    /// Wakes when the end moves. To be read from only after this.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        let _kept = self.kept.lock();
        self.end.subscribe()
    }

    /// At most `limit` events from `cursor` on; a cursor beyond the end is an error of the reader's.
    pub(crate) fn read(&self, cursor: u64, limit: usize) -> Option<Page> {
        let kept = self.kept.lock();
        let end = kept.end;
        let start = end - kept.events.len() as u64;
        if cursor > end {
            return None;
        }
        let lost = start.saturating_sub(cursor);
        let from = cursor.max(start);
        let events: Vec<Event> =
            kept.events.iter().skip((from - start) as usize).take(limit).copied().collect();
        Some(Page { next: from + events.len() as u64, events, lost })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(n: u8) -> Event {
        let hash = SequenceHash::from_bytes([n; 16]);
        Event { kind: EventKind::Stored, hash, parent: None, tier: Tier::Dram }
    }

    #[test]
    fn pages_follow_each_other_without_a_hole() {
        let log = EventLog::new();
        (0..5).for_each(|n| log.push(event(n)));
        let first = log.read(0, 3).unwrap();
        let second = log.read(first.next, 3).unwrap();
        assert_eq!([first.events, second.events].concat(), (0..5).map(event).collect::<Vec<_>>());
        assert_eq!((second.next, second.lost), (5, 0));
        assert_eq!(log.read(6, 1), None);
    }

    #[test]
    fn a_reader_that_lags_learns_how_many_it_lost() {
        let log = EventLog::new();
        (0..EVENTS_MAX + 7).for_each(|n| log.push(event(n as u8)));
        let page = log.read(2, 1).unwrap();
        assert_eq!((page.lost, page.next), (5, 8));
        assert_eq!(page.events, [event(7)]);
    }
}
