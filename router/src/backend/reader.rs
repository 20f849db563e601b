//! A stream's body as its client reads it, and the end of it if the client does not.
//!
//! # Overview
//! Whoever sends a body asks it for the next piece once there is room for that. A client that makes none (by HTTP/2 it
//! grants no window, and answers pings all the same) has it never asked again, so nothing inside of it can notice the
//! time: a small task beside it looks now and then. The piece itself takes no other way than without.
//!
//! # Cancellation
//! The task ends with the body. A stream that is given up is dropped, which cancels the work at the engine and gives
//! its place to the next; its connection, or its stream of HTTP/2, is broken off as soon as it asks.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Bytes;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::{
    task::AbortHandle,
    time::{Instant, sleep_until},
};

use super::stream::Watched;

/// See the module.
pub(super) struct Read {
    state: Arc<Mutex<State>>,
    patience: Duration,
    watch: AbortHandle,
}

struct State {
    /// Until it ended.
    watched: Option<Box<Watched>>,
    /// Since when the client has to make room; `None` while the engine is waited for.
    full_since: Option<Instant>,
    given_up: bool,
}

impl Read {
    /// The client may take so long to make room for a piece.
    pub(super) fn new(watched: Box<Watched>, patience: Duration) -> Self {
        let state = State { watched: Some(watched), full_since: Some(Instant::now()), given_up: false };
        let state = Arc::new(Mutex::new(state));
        let watch = tokio::spawn(watch(state.clone(), patience)).abort_handle();
        Self { state, patience, watch }
    }
}

impl Drop for Read {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

/// Gives the stream up once its client took too long.
async fn watch(state: Arc<Mutex<State>>, patience: Duration) {
    let mut look_at = Instant::now() + patience;
    loop {
        sleep_until(look_at).await;
        let unread = {
            let mut state = state.lock();
            if state.watched.is_none() {
                return;
            }
            let now = Instant::now();
            look_at = state.full_since.unwrap_or(now) + patience.max(Duration::from_millis(1));
            if state.full_since.is_none() || look_at > now {
                continue;
            }
            state.given_up = true;
            state.watched.take()
        };
        if let Some(watched) = unread {
            watched.unread(patience);
        }
        return;
    }
}

impl Body for Read {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let mut state = self.state.lock();
        let State { watched: Some(watched), full_since, .. } = &mut *state else {
            if !std::mem::take(&mut state.given_up) {
                return Poll::Ready(None);
            }
            let why = format!("the client read nothing for {:?}", self.patience);
            return Poll::Ready(Some(Err(io::Error::new(io::ErrorKind::TimedOut, why))));
        };
        let polled = Pin::new(&mut **watched).poll_frame(context);
        *full_since = match &polled {
            Poll::Ready(_) => Some(Instant::now()),
            Poll::Pending => None,
        };
        match polled {
            Poll::Ready(None) => {
                state.watched = None;
                Poll::Ready(None)
            }
            Poll::Ready(Some(Ok(frame))) => Poll::Ready(Some(Ok(frame))),
            Poll::Ready(Some(Err(never))) => match never {},
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        let state = self.state.lock();
        !state.given_up && state.watched.as_ref().is_none_or(|watched| watched.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
