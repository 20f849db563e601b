//! An engine's stream of events on its way to the client: passed on as it comes, and watched.
//!
//! A stream ends with `[DONE]` or with an event that says what happened: one that breaks off, or stops for
//! too long, gets that event from here.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::{client::why, forward::Trouble, member::Call, usage::Usage};
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
        let mut tail = Tail::default();
        tail.push(&first);
        let usage = Usage::of_events(&first);
        Self {
            body: Some(body),
            first: Some(first),
            call,
            tail,
            pieces: 1,
            first_at: now,
            last_at: now,
            patience,
            alarm: Box::pin(sleep_until(now + patience)),
            ending: Box::pin(ending),
            metrics: served.metrics().clone(),
            model: model.to_owned(),
            usage,
            admitted: None,
            served,
        }
    }

    /// Keeps the request's place until the stream ends.
    pub(super) fn keep(mut self: Box<Self>, admitted: Admitted) -> Box<Self> {
        self.admitted = Some(admitted);
        self
    }

    /// Ends the stream; what is under way at the engine is cancelled.
    fn end(&mut self) {
        self.body = None;
        self.admitted = None;
        if let Some(usage) = self.usage.take() {
            usage.count(&self.metrics, &self.call, &self.model);
            self.served.used(usage.tokens());
            self.call.used(&usage);
        }
        self.call.backend().learn_steps(self.pieces - 1, self.last_at - self.first_at);
    }

    /// Ends it because nobody reads it, which is no fault of the engine's; nor are its steps to be learnt from.
    pub(super) fn unread(self: Box<Self>, patience: Duration) {
        self.metrics.error("client_stalled");
        let backend = &self.call.backend().spec.url;
        tracing::info!(backend, ?patience, "a client does not read, its stream is broken off");
    }

    fn broken(&mut self, trouble: Trouble) -> Poll<Option<Result<Frame<Bytes>, std::convert::Infallible>>> {
        self.end();
        self.metrics.error(trouble.kind());
        let url = &self.call.backend().spec.url;
        tracing::warn!(backend = url, %trouble, "a stream broke off");
        if trouble.is_fault() {
            self.call.backend().failed(&trouble.to_string());
        }
        // Whatever event was cut, this one is another.
        let apart = if self.tail.bytes().ends_with(b"\n\n") { "" } else { "\n\n" };
        let event = format!("{apart}data: {}\n\n", ApiError::from(trouble).to_json());
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(event)))))
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        if let Some(first) = this.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        let Some(body) = this.body.as_mut() else { return Poll::Ready(None) };
        match Pin::new(body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    this.tail.push(data);
                    this.pieces += 1;
                    this.usage = Usage::of_events(data).or(this.usage);
                    let before = std::mem::replace(&mut this.last_at, Instant::now());
                    this.metrics.backend_inter_token.observe((this.last_at - before).as_secs_f64());
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) if !this.tail.is_done() => this.broken(Trouble::Cut(why(&error))),
            Poll::Ready(None) if !this.tail.is_done() => {
                this.broken(Trouble::Cut("it ended without [DONE]".into()))
            }
            Poll::Ready(_) => {
                this.end();
                this.call.backend().succeeded();
                Poll::Ready(None)
            }
            Poll::Pending => {
                if this.ending.as_mut().poll(context).is_ready() {
                    return this.broken(Trouble::ShuttingDown);
                }
                while this.alarm.as_mut().poll(context).is_ready() {
                    let until = this.last_at + this.patience;
                    if Instant::now() >= until {
                        return this.broken(Trouble::Stalled(this.patience));
                    }
                    this.alarm.as_mut().reset(until);
                }
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.body.is_none()
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
