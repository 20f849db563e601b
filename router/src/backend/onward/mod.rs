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
//! told from here, if all of it was there but for `[DONE]`; its usage, if that was lost, is not.
//!
//! # What cannot go on
//! [`Bound`] says why: then the stream ends with an error event, and is counted by that. Sampling goes on with another
//! random state, penalties count what was told as prompt, and tokens are counted as events with text; an engine that
//! puts several tokens into one event may so generate more than `max_tokens`, by as many as were told so.
//!
//! # Limits
//! A stream moves as often as a native completion may, never to a server that failed it, unless that came back since
//! and there is nobody else. Bodies and texts of all streams take [`KEPT_BYTES_MAX`] at most; the streams beyond that
//! stay where they are.

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

use super::{
    member::{Backend, Call},
    pool::Pool,
    stream::Watched,
    trouble::Trouble,
    usage::Usage,
};
use crate::metrics::Metrics;
use body::{Onward, onward};
pub(super) use story::{Bound, Story};

/// Of all streams together.
const KEPT_BYTES_MAX: usize = 256 << 20;
/// Between two looks whether somebody is there.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Most time between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Asks for a stream of another server than those that failed it.
pub(crate) type Again = Arc<dyn Fn(Asked) -> BoxFuture<'static, Result<Moved, Trouble>> + Send + Sync>;

/// A stream that is to go on.
pub(crate) struct Asked {
    pub(crate) body: Bytes,
    pub(crate) failed: Vec<Failed>,
    pub(crate) waiting: Waiting,
}

/// For how long somebody is looked for.
pub(crate) struct Waiting {
    until: Instant,
    pause: Duration,
}

impl Waiting {
    fn new(wait: Duration) -> Self {
        Self { until: Instant::now() + wait, pause: LOOK_EVERY }
    }

    /// Waits for the next try behind one that came to this; not if another one would come to the same, or it is too
    /// late.
    pub(crate) async fn waits(&mut self, trouble: &Trouble) -> bool {
        let may_change = match trouble {
            Trouble::NoBackend | Trouble::Busy | Trouble::Unreachable(_) => true,
            Trouble::Cut(_) | Trouble::Stalled(_) => true,
            Trouble::Failed(status) => status.is_server_error(),
            Trouble::Garbage(_) | Trouble::ShuttingDown => false,
        };
        if !may_change || Instant::now() >= self.until {
            return false;
        }
        sleep(self.pause).await;
        // Whoever was asked and could not is asked less often.
        self.pause = match trouble {
            Trouble::NoBackend => LOOK_EVERY,
            _ => (self.pause * 2).min(PAUSE_MAX),
        };
        true
    }
}

/// A server that failed a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failed {
    id: u32,
    /// How often it had become ready when it got the request.
    starts: u64,
    /// How often it had been found ready when it failed.
    probes: u64,
}

impl Failed {
    fn new(call: &Call) -> Self {
        let backend = call.backend();
        Self { id: backend.id, starts: call.starts(), probes: backend.probes() }
    }

    /// Whether it is the same start of that one, as far as it was seen to stop.
    fn is_still(self, backend: &Backend) -> bool {
        (self.id, self.starts) == (backend.id, backend.starts())
    }

    /// Whether it was found ready since, by a probe that began behind the failure: a start may be too quick to be seen.
    fn is_back(self, backend: &Backend) -> bool {
        backend.probes() >= self.probes + 2
    }
}

/// Who of a model's servers is not asked to go on: those that failed the stream; with nobody else there, those of them
/// that are not back.
pub(super) fn excluded(pool: &Pool, failed: &[Failed]) -> Vec<u32> {
    let those = |only_away: bool| {
        let is_out = |backend: &&Arc<Backend>| {
            failed.iter().any(|failed| failed.is_still(backend) && !(only_away && failed.is_back(backend)))
        };
        pool.backends().iter().filter(is_out).map(|backend| backend.id).collect::<Vec<_>>()
    };
    let all = those(false);
    let is_other =
        |backend: &Arc<Backend>| backend.role().answers() && !all.contains(&backend.id) && backend.is_open();
    if pool.backends().iter().any(is_other) { all } else { those(true) }
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

/// How a stream goes on.
pub(super) enum Way {
    /// All of it was told: its end can be told from here.
    End,
    Move(Move),
}

/// A move under way.
pub(super) struct Move {
    /// What happened.
    pub(super) trouble: Trouble,
    pub(super) future: BoxFuture<'static, Result<Moved, Trouble>>,
    pub(super) began: Instant,
    pub(super) tells_usage: bool,
    pub(super) seam: String,
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
        let was_free = self.story.bound().is_none();
        let told = self.story.push(piece);
        if was_free {
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

    /// How the stream of a call goes on without that; or why it cannot.
    pub(super) fn go(&mut self, call: &Call, trouble: &Trouble) -> Result<Way, &'static str> {
        let Onward { body, tells_usage, seam } = onward(&self.body, &self.story).map_err(Bound::name)?;
        if self.story.is_finished() {
            return Ok(Way::End);
        }
        self.moves_left = self.moves_left.checked_sub(1).ok_or("too_often")?;
        self.failed.push(Failed::new(call));
        // One that is lost may be started again; one that is only silent is still there.
        let wait = if matches!(trouble, Trouble::Stalled(_)) { Duration::ZERO } else { self.wait };
        let (began, failed, waiting) = (Instant::now(), self.failed.clone(), Waiting::new(wait));
        let future = (self.again)(Asked { body, failed, waiting });
        Ok(Way::Move(Move { trouble: trouble.clone(), future, began, tells_usage, seam }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{
        BackendSpec,
        board::Board,
        member::{Card, Health},
    };

    #[test]
    fn a_stream_that_cannot_move_keeps_nothing() {
        let moving = Moving { moves_max: 1, wait: Duration::ZERO, keeping: Arc::default() };
        let again: Again = Arc::new(|_| Box::pin(async { Err(Trouble::NoBackend) }));
        let mut mover = Mover::new(&moving, Bytes::from(vec![b' '; 1_000]), again).unwrap();
        let kept = || moving.keeping.0.load(Ordering::Relaxed);
        mover.push(Bytes::from_static(b"data: {\"choices\":[{\"text\":\"a\"}]}\n\n"));
        assert!(kept() > 1_000, "the body and the text");
        mover.push(Bytes::from_static(b"data: {\"choices\":[{\"index\":1}]}\n\n"));
        assert_eq!((kept(), mover.body.len()), (0, 0));
    }

    #[test]
    fn who_failed_a_stream_gets_it_again_once_it_is_back_and_alone() {
        let card =
            Card { id: "m".into(), name: "m".into(), context_tokens_max: None, owned_by: "test".into() };
        let board = Board::new();
        let mut pool = Pool::new(card.clone(), board.clone());
        for id in 0..2 {
            let spec = BackendSpec::new("http://127.0.0.1:1");
            let backend = Backend::new(id, spec, board.seat().unwrap()).unwrap();
            backend.found(Health::Ready, Some(vec![card.clone()]));
            pool.push(Arc::new(backend));
        }
        let [one, two] = [0, 1].map(|at| pool.backends()[at].clone());
        let failed = [Failed::new(&Call::begin(&one, 1, 0))];
        let ready = |backend: &Backend| backend.found(Health::Ready, None);
        ready(&one);
        ready(&one);
        assert_eq!(excluded(&pool, &failed), [0], "there is another");
        while !two.failed("refused") {}
        assert!(excluded(&pool, &failed).is_empty(), "that other gets no requests");
        two.succeeded();
        assert_eq!(excluded(&pool, &failed), [0]);
        one.found(Health::Lost("gone".into()), None);
        ready(&one);
        assert!(excluded(&pool, &failed).is_empty(), "another start of it");
        let again = [Failed::new(&Call::begin(&one, 1, 0))];
        two.found(Health::Lost("gone".into()), None);
        ready(&one);
        assert_eq!(excluded(&pool, &again), [0], "that probe may be from before");
        ready(&one);
        assert!(excluded(&pool, &again).is_empty());
    }

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
