//! A line of limited bandwidth, and bodies that leave over it.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures::Stream;
use parking_lot::Mutex;
use s3s::{
    StdError,
    stream::{ByteStream, RemainingLength},
};
use tokio::time::{Instant, Sleep};

use super::{Guest, Model};

/// Bytes that leave at a time.
const PIECE_BYTES: usize = 128 << 10;
/// Timers are no finer; who is less ahead than this does not wait.
const TICK: Duration = Duration::from_millis(1);

/// When the next byte may leave.
pub(super) struct Link {
    bytes_s: Option<u64>,
    free_at: Mutex<Option<Instant>>,
}

impl Link {
    pub(super) fn new(bytes_s: Option<u64>) -> Self {
        Self { bytes_s, free_at: Mutex::new(None) }
    }

    /// When bytes that come now are through. A line that was idle does not make up for it.
    pub(super) fn pass(&self, bytes: usize) -> Option<Instant> {
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_s?.max(1) as f64);
        let now = Instant::now();
        let mut free_at = self.free_at.lock();
        // A timer that fired late is made up for: it is the clock's fault, not the line's.
        let from = free_at.map_or(now, |at| at.max(now.checked_sub(2 * TICK).unwrap_or(now)));
        let until = from + takes;
        *free_at = Some(until);
        (until > now + TICK).then_some(until)
    }
}

/// Passes bytes of a request's body: over its own line, then over the shared one.
pub(super) async fn come_in(model: &Model, own: &Link, bytes: usize) {
    for link in [own, &model.into] {
        if let Some(until) = link.pass(bytes) {
            tokio::time::sleep_until(until).await;
        }
    }
}

/// The body of an answer.
pub(super) struct Outgoing {
    model: Arc<Model>,
    own: Link,
    left: Bytes,
    /// Bytes of it that are sent before the connection breaks.
    cut_after: Option<usize>,
    wait: Option<Pin<Box<Sleep>>>,
    /// Lines that the next piece has passed: its own, then the shared one.
    passed: usize,
    _guest: Guest,
}

impl Outgoing {
    pub(super) fn new(model: Arc<Model>, body: Bytes, cut_after: Option<usize>, guest: Guest) -> Self {
        let own = Link::new(model.options.stream_bytes_s);
        Self { model, own, left: body, cut_after, wait: None, passed: 0, _guest: guest }
    }
}

impl Stream for Outgoing {
    type Item = Result<Bytes, StdError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let room = this.cut_after.unwrap_or(usize::MAX);
        if this.left.is_empty() {
            return Poll::Ready(None);
        }
        if room == 0 {
            let cut = io::Error::new(io::ErrorKind::ConnectionAborted, "cut on purpose");
            return Poll::Ready(Some(Err(Box::new(cut))));
        }
        let bytes = this.left.len().min(PIECE_BYTES).min(room);
        loop {
            if let Some(wait) = &mut this.wait {
                ready!(wait.as_mut().poll(cx));
                this.wait = None;
            }
            let link = match this.passed {
                0 => &this.own,
                1 => &this.model.out,
                _ => break,
            };
            this.passed += 1;
            this.wait = link.pass(bytes).map(|until| Box::pin(tokio::time::sleep_until(until)));
        }
        this.passed = 0;
        this.cut_after = this.cut_after.map(|room| room - bytes);
        Poll::Ready(Some(Ok(this.left.split_to(bytes))))
    }
}

impl ByteStream for Outgoing {
    fn remaining_length(&self) -> RemainingLength {
        RemainingLength::new_exact(self.left.len())
    }
}
