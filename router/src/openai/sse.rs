//! A completion as server-sent events.
//!
//! `data: [DONE]` ends a completion that came to its end, and nothing else does: a stream that fails gets
//! an event with the error and stops, so that no client takes a cut text for a whole one.
//!
//! # Cancellation
//! A task of its own moves events from the worker to the connection through a short queue. It ends when
//! the client is gone, and when the client has not read for the configured time: a slot of a decode
//! worker must not wait for a reader that never comes back. Such a connection is broken off, not ended.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    http::{
        HeaderValue,
        header::{CACHE_CONTROL, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
};
use tokio::{sync::mpsc, time::timeout};
use tracing::Instrument;

use super::{
    choices::{Choices, Event},
    completion::Delta,
    error::ApiError,
    reply::Reply,
};

/// Events that wait for the connection.
const QUEUE: usize = 32;

/// The streamed answer; a client may take `client_timeout` to make room for an event.
pub(super) fn stream(reply: Reply, choices: Choices, client_timeout: Duration) -> Response {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let finished = Arc::new(AtomicBool::new(false));
    let events = Events::new(reply, choices);
    tokio::spawn(pump(events, sender, finished.clone(), client_timeout).in_current_span());
    let frames = futures::stream::unfold(Some((receiver, finished)), |state| async {
        let (mut receiver, finished) = state?;
        match receiver.recv().await {
            Some(frame) => Some((Ok(frame), Some((receiver, finished)))),
            None if finished.load(Ordering::Acquire) => None,
            None => Some((Err(io::Error::other("the stream did not come to its end")), None)),
        }
    });
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, Body::from_stream(frames)).into_response()
}

/// Moves events to the connection; `finished` is set once the last one is on its way.
async fn pump(
    mut events: Events,
    sender: mpsc::Sender<Bytes>,
    finished: Arc<AtomicBool>,
    client_timeout: Duration,
) {
    loop {
        let frame = tokio::select! {
            biased;
            () = sender.closed() => {
                tracing::info!("the client is gone");
                return;
            }
            frame = events.next() => frame,
        };
        let Some(frame) = frame else {
            finished.store(true, Ordering::Release);
            return;
        };
        match timeout(client_timeout, sender.send(frame)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return,
            Err(_) => {
                tracing::warn!(?client_timeout, "the client does not read, its stream is broken off");
                return;
            }
        }
    }
}

struct Events {
    reply: Reply,
    /// `None` once they have ended, so that the workers' streams end before the last event is read.
    choices: Option<Choices>,
    queue: VecDeque<Bytes>,
}

impl Events {
    fn new(reply: Reply, choices: Choices) -> Self {
        let count = choices.count();
        let mut events = Self { reply, choices: Some(choices), queue: VecDeque::new() };
        for index in 0..count {
            if let Some(opening) = events.reply.opening(index) {
                events.push(&opening);
            }
        }
        events
    }

    async fn next(&mut self) -> Option<Bytes> {
        if let Some(frame) = self.queue.pop_front() {
            return Some(frame);
        }
        // A delta may be nothing to say, and then the next one counts.
        while self.queue.is_empty() {
            match self.choices.as_mut()?.next().await {
                Ok(Event::Delta(index, delta)) => self.delta(index, delta),
                Ok(Event::End(index, delta, ending)) => {
                    if !delta.is_empty() {
                        self.delta(index, delta);
                    }
                    self.push(&self.reply.closing(index, ending));
                    tracing::info!(index, finish = ending.name(), "done");
                }
                Ok(Event::Done(counts)) => {
                    self.choices = None;
                    if let Some(usage) = self.reply.usage(counts) {
                        self.push(&usage);
                    }
                    self.push("[DONE]");
                    tracing::info!(?counts, "all choices are done");
                }
                Err(failure) => {
                    self.choices = None;
                    self.push(&ApiError::from(failure).to_json());
                }
            }
        }
        self.queue.pop_front()
    }

    fn delta(&mut self, index: u32, delta: Delta) {
        for chunk in self.reply.delta(index, delta) {
            self.push(&chunk);
        }
    }

    fn push(&mut self, data: &str) {
        self.queue.push_back(Bytes::from(format!("data: {data}\n\n")));
    }
}
