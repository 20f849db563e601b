//! A stream whose server is lost goes on at another one.
//!
//! # Overview
//! ```text
//! first server ──events──► story ──► client          whole events alone, byte for byte
//!      ✗                     │
//!      │        prompt + text so far, as a new request, placed as any other
//!      ▼                     ▼
//! other server ─events─► retold as the first one's ──► client
//! ```
//! The other server is chosen by where the prompt's KV is, as for any request: what the lost one had stored is loaded,
//! the rest is computed again, and counted. The client sees a pause. An answer's end that was lost with its server is
//! told from here, if all of it was there but for `[DONE]`.
//!
//! # What cannot go on
//! [`Bound`] says why: then the stream ends with an error event, and is counted by that. Sampling goes on with another
//! random state, penalties count what was told as prompt, and tokens are counted as events with text; an engine that
//! puts several tokens into one event may so generate more than `max_tokens`, by as many as were told so.
//!
//! # Limits
//! A stream moves as often as a native completion may, never to a server that failed it, unless that was lost and came
//! back since. Bodies and texts of all streams take [`KEPT_BYTES_MAX`] at most; the streams beyond that stay where they
//! are.

mod body;
mod story;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::body::Bytes;
use futures::future::BoxFuture;
use tokio::time::sleep;

use super::{member::Backend, stream::Watched, trouble::Trouble, usage::Usage};
use crate::metrics::Metrics;
use body::{Onward, onward};
pub(super) use story::{Bound, Story};

/// Of all streams together.
const KEPT_BYTES_MAX: usize = 256 << 20;
/// Between two looks whether somebody is there.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Asks for a stream of such a body at another server than those.
pub(crate) type Again =
    Arc<dyn Fn(Bytes, Vec<Failed>) -> BoxFuture<'static, Result<Moved, Trouble>> + Send + Sync>;

/// A server that failed a request, and how often it had become ready by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failed {
    pub(super) id: u32,
    starts: u64,
}

impl Failed {
    pub(super) fn new(backend: &Backend) -> Self {
        Self { id: backend.id, starts: backend.starts() }
    }

    /// Whether it is still the same start of that one.
    pub(super) fn is_still(self, backend: &Backend) -> bool {
        (self.id, self.starts) == (backend.id, backend.starts())
    }
}

/// Another server's stream.
pub(crate) struct Moved {
    pub(super) watched: Box<Watched>,
    /// Tokens of the request it got.
    pub(super) tokens: u64,
}

/// Bytes that streams keep.
#[derive(Debug, Default)]
pub(crate) struct Keeping(AtomicUsize);

/// A stream's part of them.
#[derive(Debug)]
struct Kept {
    all: Arc<Keeping>,
    bytes: usize,
}

impl Kept {
    /// Whether there is room for so many.
    fn set(&mut self, bytes: usize) -> bool {
        if bytes > self.bytes {
            let more = bytes - self.bytes;
            if self.all.0.fetch_add(more, Ordering::Relaxed) + more > KEPT_BYTES_MAX {
                self.all.0.fetch_sub(more, Ordering::Relaxed);
                return false;
            }
        } else {
            self.all.0.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        }
        self.bytes = bytes;
        true
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.all.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// How streams may move.
pub(crate) struct Moving {
    /// How often one may.
    pub(crate) moves_max: usize,
    /// Most time it waits for a server.
    pub(crate) wait: Duration,
    pub(crate) keeping: Arc<Keeping>,
}

/// What was recomputed for a stream that moved; counted when this is dropped.
pub(super) struct Redone {
    metrics: Arc<Metrics>,
    tokens: u64,
    recomputed: u64,
}

impl Redone {
    /// Of a stream that got `tokens`, of which so many were expected to be there.
    pub(super) fn new(metrics: Arc<Metrics>, tokens: u64, expected: u64) -> Self {
        Self { metrics, tokens, recomputed: tokens.saturating_sub(expected) }
    }

    /// Its server says what it was.
    pub(super) fn used(&mut self, usage: &Usage) {
        if usage.prompt_tokens > 0 {
            self.tokens = usage.prompt_tokens;
            self.recomputed = usage.computed_tokens().unwrap_or(self.recomputed).min(self.tokens);
        }
    }
}

impl Drop for Redone {
    fn drop(&mut self) {
        self.metrics.migration_tokens.inc_by(self.tokens);
        self.metrics.migration_recomputed_tokens.inc_by(self.recomputed);
    }
}

/// What it takes to move one stream.
pub(super) struct Mover {
    pub(super) story: Story,
    body: Bytes,
    again: Again,
    failed: Vec<Failed>,
    moves_left: usize,
    wait: Duration,
    kept: Kept,
}

/// A move under way.
pub(super) struct Move {
    /// What happened.
    pub(super) trouble: Trouble,
    pub(super) future: BoxFuture<'static, Result<Moved, Trouble>>,
    pub(super) began: Instant,
    pub(super) tells_usage: bool,
}

impl Mover {
    /// Of the stream that answers `body`; `None` where streams do not move.
    pub(super) fn new(moving: &Moving, body: Bytes, again: Again) -> Option<Self> {
        if moving.moves_max == 0 {
            return None;
        }
        let kept = Kept { all: moving.keeping.clone(), bytes: 0 };
        let (moves_left, wait) = (moving.moves_max, moving.wait);
        let mut mover =
            Self { story: Story::default(), body, again, failed: Vec::new(), moves_left, wait, kept };
        mover.keep();
        Some(mover)
    }

    /// What of a piece can be told.
    pub(super) fn push(&mut self, piece: Bytes) -> story::Told {
        let told = self.story.push(piece);
        if self.story.bound().is_none() {
            self.keep();
        }
        told
    }

    fn keep(&mut self) {
        if !self.kept.set(self.body.len() + self.story.bytes()) {
            self.story.bind(Bound::Memory);
        }
        if self.story.bound().is_some() {
            self.body = Bytes::new();
            self.kept.set(0);
        }
    }

    /// Whether the client wants to hear what was used.
    pub(super) fn tells_usage(&self) -> bool {
        onward(&self.body, &self.story).is_ok_and(|onward| onward.tells_usage)
    }

    /// Begins to move away from a server; or says why that cannot be.
    pub(super) fn go(&mut self, from: &Backend, trouble: &Trouble) -> Result<Move, &'static str> {
        let Onward { body, tells_usage } = onward(&self.body, &self.story).map_err(Bound::name)?;
        self.moves_left = self.moves_left.checked_sub(1).ok_or("too_often")?;
        self.failed.push(Failed::new(from));
        let (again, failed, wait) = (self.again.clone(), self.failed.clone(), self.wait);
        // One that is lost may be started again; one that is only silent is still there.
        let wait = if matches!(trouble, Trouble::Stalled(_)) { Duration::ZERO } else { wait };
        let began = Instant::now();
        let future = Box::pin(async move {
            loop {
                let moved = again(body.clone(), failed.clone()).await;
                let nobody = matches!(moved, Err(Trouble::NoBackend | Trouble::Busy));
                if !nobody || began.elapsed() >= wait {
                    return moved;
                }
                sleep(LOOK_EVERY).await;
            }
        });
        Ok(Move { trouble: trouble.clone(), future, began, tells_usage })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_streams_keep_is_bounded() {
        let all = Arc::new(Keeping::default());
        let mut one = Kept { all: all.clone(), bytes: 0 };
        let mut two = Kept { all: all.clone(), bytes: 0 };
        assert!(one.set(KEPT_BYTES_MAX - 10) && two.set(10) && !two.set(11));
        assert!(one.set(5) && two.set(11));
        drop((one, two));
        assert_eq!(all.0.load(Ordering::Relaxed), 0);
    }
}
