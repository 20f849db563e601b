//! An engine's stream of events on its way to the client: passed on as it comes, and watched.
//!
//! A stream ends with `[DONE]` or with an event that says what happened: one that breaks off, or stops for
//! too long, goes on at another server ([`onward`](super::onward)), or gets that event from here.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::{
    client::why,
    forward::Trouble,
    member::Call,
    onward::{Move, Moved, Mover, Redone, Way},
    usage::Usage,
};
use crate::{
    metrics::Metrics,
    openai::{Admitted, ApiError},
    page::Served,
};

const DONE: &[u8] = b"data: [DONE]";

/// The end of what went by, to know how a stream ended.
#[derive(Debug, Default)]
struct Tail {
    bytes: [u8; 32],
    len: usize,
}

impl Tail {
    fn push(&mut self, data: &[u8]) {
        let room = self.bytes.len();
        if data.len() >= room {
            self.bytes.copy_from_slice(&data[data.len() - room..]);
            self.len = room;
            return;
        }
        let keep = self.len.min(room - data.len());
        self.bytes.copy_within(self.len - keep..self.len, 0);
        self.bytes[keep..keep + data.len()].copy_from_slice(data);
        self.len = keep + data.len();
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn is_done(&self) -> bool {
        self.bytes().trim_ascii_end().ends_with(DONE)
    }
}

/// The watched body.
pub(super) struct Watched {
    body: Option<Incoming>,
    /// What came before the answer's head was sent on.
    first: Option<Bytes>,
    call: Call,
    tail: Tail,
    pieces: u64,
    first_at: Instant,
    last_at: Instant,
    /// Most time between two pieces.
    patience: Duration,
    alarm: Pin<Box<Sleep>>,
    ending: Pin<Box<WaitForCancellationFutureOwned>>,
    metrics: Arc<Metrics>,
    model: String,
    /// What the engine said it used, last.
    usage: Option<Usage>,
    admitted: Option<Admitted>,
    /// Among the recent requests it ends with this.
    served: Served,
    /// What it takes to go on at another server, where that may be.
    mover: Option<Box<Mover>>,
    moving: Option<Move>,
    /// Of the last move, and the tokens that were told before.
    redone: Option<(Redone, u64)>,
    /// What the engine said of its own failure, and what that is.
    failure: Option<(Trouble, Bytes)>,
}

impl Watched {
    pub(super) fn new(
        body: Incoming,
        first: Bytes,
        call: Call,
        patience: Duration,
        ending: WaitForCancellationFutureOwned,
        model: &str,
        served: Served,
    ) -> Self {
        let now = Instant::now();
        Self {
            body: Some(body),
            first: Some(first),
            call,
            tail: Tail::default(),
            pieces: 0,
            first_at: now,
            last_at: now,
            patience,
            alarm: Box::pin(sleep_until(now + patience)),
            ending: Box::pin(ending),
            metrics: served.metrics().clone(),
            model: model.to_owned(),
            usage: None,
            admitted: None,
            served,
            mover: None,
            moving: None,
            redone: None,
            failure: None,
        }
    }

    /// Keeps the request's place until the stream ends.
    pub(super) fn keep(mut self: Box<Self>, admitted: Admitted) -> Box<Self> {
        self.admitted = Some(admitted);
        self
    }

    /// Has it go on elsewhere if its server is lost.
    pub(super) fn movable(mut self, mover: Option<Mover>) -> Self {
        self.mover = mover.map(Box::new);
        self
    }

    /// Ends the stream; what is under way at the engine is cancelled.
    fn end(&mut self) {
        self.body = None;
        self.admitted = None;
        self.used();
        if let Some(steps) = self.pieces.checked_sub(1) {
            self.call.backend().learn_steps(steps, self.last_at - self.first_at);
        }
    }

    /// Notes what the engine said that it used, if it did.
    fn used(&mut self) {
        let moved = self.redone.take();
        let Some(mut usage) = self.usage.take() else { return };
        self.call.used(&usage);
        if let Some((mut redone, told)) = moved {
            redone.used(&usage);
            // What was told before was its prompt.
            usage.prompt_tokens = usage.prompt_tokens.saturating_sub(told);
            usage.generated_tokens = usage.generated_tokens.saturating_add(told);
            usage.cached_tokens = usage.cached_tokens.map(|cached| cached.min(usage.prompt_tokens));
        }
        usage.count(&self.metrics, &self.call, &self.model);
        self.served.used(usage.tokens());
    }

    /// Ends it because nobody reads it, which is no fault of the engine's; nor are its steps to be learnt from.
    pub(super) fn unread(self: Box<Self>, patience: Duration) {
        self.metrics.error("client_stalled");
        let backend = &self.call.backend().spec.url;
        tracing::info!(backend, ?patience, "a client does not read, its stream is broken off");
    }

    /// A piece came; what of it is told.
    fn tell(&mut self, piece: Bytes) -> Bytes {
        let before = std::mem::replace(&mut self.last_at, Instant::now());
        if self.pieces > 0 {
            self.metrics.backend_inter_token.observe((self.last_at - before).as_secs_f64());
        }
        self.pieces += 1;
        let (events, usage) = match &mut self.mover {
            None => {
                let usage = Usage::of_events(&piece);
                (piece, usage)
            }
            Some(mover) => {
                let told = mover.push(piece);
                self.failure = told.failure.map(|(status, events)| (Trouble::Failed(status), events));
                (told.events, told.usage)
            }
        };
        self.usage = usage.or(self.usage.take());
        self.tail.push(&events);
        events
    }

    /// The stream is over before its time: it goes on elsewhere, for which nothing is told, or ends with what happened.
    fn lost(&mut self, trouble: Trouble) -> Bytes {
        self.body = None;
        let is_refused = self.mover.as_ref().is_some_and(|mover| mover.story.is_refused());
        if self.tail.is_done() || (is_refused && matches!(trouble, Trouble::Cut(_))) {
            // Only the body's own end is missing.
            self.end();
            return Bytes::new();
        }
        self.metrics.error(trouble.kind());
        let backend = self.call.backend();
        tracing::warn!(backend = backend.spec.url, %trouble, "a stream broke off");
        if trouble.is_fault() {
            backend.failed(&trouble.to_string());
            if let Some(mover) = &mut self.mover {
                match mover.go(&self.call, &trouble) {
                    Ok(Way::End) => {
                        self.end();
                        return Bytes::from_static(b"data: [DONE]\n\n");
                    }
                    Ok(Way::Move(moving)) => {
                        self.moving = Some(moving);
                        return Bytes::new();
                    }
                    Err(why) => self.metrics.backend.stayed(why),
                }
            }
        }
        self.broken(trouble)
    }

    /// Ends the stream with what happened.
    fn broken(&mut self, trouble: Trouble) -> Bytes {
        self.end();
        // The engine's own words, if it had any.
        if let Some((_, events)) = self.failure.take().filter(|(_, events)| !events.is_empty()) {
            return events;
        }
        // Whatever event was cut, this one is another.
        let apart = if self.tail.bytes().ends_with(b"\n\n") { "" } else { "\n\n" };
        Bytes::from(format!("{apart}data: {}\n\n", ApiError::from(trouble).to_json()))
    }

    /// Another server has the stream, or nobody.
    fn moved(&mut self, moving: Move, moved: Result<Moved, Trouble>) -> Bytes {
        let (Moved { watched, tokens }, mover) = match (moved, &mut self.mover) {
            (Ok(moved), Some(mover)) => (moved, mover),
            (Ok(_), None) => return self.broken(moving.trouble),
            (Err(trouble), _) => {
                self.metrics.backend.stayed("nobody");
                // That there is nobody else is not what happened.
                let is_other = trouble.is_fault() || trouble == Trouble::ShuttingDown;
                return self.broken(if is_other { trouble } else { moving.trouble });
            }
        };
        self.metrics.migrations.inc();
        self.metrics.migration_pause.observe(moving.began.elapsed().as_secs_f64());
        let told = mover.story.tokens();
        mover.story.goes_on(moving.tells_usage, moving.seam);
        let next = *watched;
        tracing::info!(backend = next.call.backend().spec.url, told, tokens, "a stream goes on");
        // Whatever the lost one said that it used, the next one says it of the whole.
        (self.usage, self.failure) = (None, None);
        self.redone = Some((Redone::new(self.metrics.clone(), tokens, next.call.hit_expected()), told));
        (self.body, self.first, self.call, self.served) = (next.body, next.first, next.call, next.served);
        (self.pieces, self.first_at, self.last_at) = (next.pieces, next.first_at, next.last_at);
        self.alarm = next.alarm;
        Bytes::new()
    }

    /// What comes next of the stream, from whichever server has it.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Next> {
        if let Some((trouble, _)) = self.failure.as_ref().filter(|_| self.body.is_some()) {
            return Poll::Ready(Next::Lost(trouble.clone()));
        }
        if let Some(moving) = &mut self.moving {
            let moved = moving.future.as_mut().poll(context);
            return match (moved, self.ending.as_mut().poll(context)) {
                (Poll::Ready(moved), _) => Poll::Ready(Next::Moved(moved)),
                (Poll::Pending, Poll::Ready(())) => Poll::Ready(Next::Moved(Err(Trouble::ShuttingDown))),
                (Poll::Pending, Poll::Pending) => Poll::Pending,
            };
        }
        if let Some(first) = self.first.take() {
            return Poll::Ready(Next::Piece(first));
        }
        let Some(body) = self.body.as_mut() else { return Poll::Ready(Next::End) };
        match Pin::new(body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => Poll::Ready(Next::Piece(frame.into_data().unwrap_or_default())),
            Poll::Ready(end) => Poll::Ready(match end {
                _ if self.tail.is_done() => Next::End,
                Some(Err(error)) => Next::Lost(Trouble::Cut(why(&error))),
                _ => match self.mover.as_mut().and_then(|mover| mover.story.last()) {
                    Some(last) => Next::Piece(last),
                    None => Next::Lost(Trouble::Cut("it ended without [DONE]".into())),
                },
            }),
            Poll::Pending => {
                if self.ending.as_mut().poll(context).is_ready() {
                    return Poll::Ready(Next::Lost(Trouble::ShuttingDown));
                }
                while self.alarm.as_mut().poll(context).is_ready() {
                    let until = self.last_at + self.patience;
                    if Instant::now() >= until {
                        return Poll::Ready(Next::Lost(Trouble::Stalled(self.patience)));
                    }
                    self.alarm.as_mut().reset(until);
                }
                Poll::Pending
            }
        }
    }
}

/// See [`Watched::poll_next`].
enum Next {
    Piece(Bytes),
    Lost(Trouble),
    Moved(Result<Moved, Trouble>),
    End,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        loop {
            let told = match ready!(this.poll_next(context)) {
                Next::Piece(piece) => this.tell(piece),
                Next::Lost(trouble) => this.lost(trouble),
                Next::Moved(moved) => match this.moving.take() {
                    Some(moving) => this.moved(moving, moved),
                    None => Bytes::new(),
                },
                Next::End => {
                    if this.body.is_some() {
                        this.end();
                        this.call.backend().succeeded();
                    }
                    return Poll::Ready(None);
                }
            };
            if !told.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(told))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.body.is_none() && self.moving.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_tail_is_the_end_of_all_pieces(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..8)) {
            let mut tail = Tail::default();
            pieces.iter().for_each(|piece| tail.push(piece));
            let all = pieces.concat();
            prop_assert_eq!(tail.bytes(), &all[all.len().saturating_sub(32)..]);
        }
    }

    #[test]
    fn done_is_seen_across_pieces() {
        let mut tail = Tail::default();
        tail.push(b"data: {\"choices\": []}\n\ndata: [DO");
        assert!(!tail.is_done());
        tail.push(b"NE]\n\n");
        assert!(tail.is_done());
    }
}
