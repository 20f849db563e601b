//! A completion as server-sent events.
//!
//! `data: [DONE]` ends a completion that came to its end, and nothing else does: a stream that fails gets
//! an event with the error and stops, so that no client takes a cut text for a whole one.

use std::{collections::VecDeque, convert::Infallible};

use axum::{
    body::{Body, Bytes},
    http::{
        HeaderValue,
        header::{CACHE_CONTROL, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
};
use tracing::Span;

use super::{
    completion::{Completion, Piece},
    error::ApiError,
    reply::Reply,
};

struct Events {
    reply: Reply,
    /// `None` once it has ended, so that the workers' streams end before the last event is read.
    completion: Option<Completion>,
    queue: VecDeque<Bytes>,
    span: Span,
}

/// The streamed answer.
pub(super) fn stream(reply: Reply, completion: Completion) -> Response {
    let mut events =
        Events { reply, completion: Some(completion), queue: VecDeque::new(), span: Span::current() };
    if let Some(opening) = events.reply.opening() {
        events.push(&opening);
    }
    let frames = futures::stream::unfold(events, |mut events| async {
        let frame = events.next().await?;
        Some((Ok::<_, Infallible>(frame), events))
    });
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, Body::from_stream(frames)).into_response()
}

impl Events {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(frame) = self.queue.pop_front() {
            return Some(frame);
        }
        match self.completion.as_mut()?.next().await {
            Ok(Piece::Delta(delta)) => self.push(&self.reply.delta(delta)),
            Ok(Piece::End(delta, finish, counts)) => {
                self.completion = None;
                if !delta.text.is_empty() || delta.logs.as_ref().is_some_and(|logs| !logs.is_empty()) {
                    self.push(&self.reply.delta(delta));
                }
                self.push(&self.reply.closing(finish));
                if let Some(usage) = self.reply.usage(counts) {
                    self.push(&usage);
                }
                self.push("[DONE]");
                let _entered = self.span.enter();
                tracing::info!(?counts, finish = finish.name(), "stream done");
            }
            Err(failure) => {
                self.completion = None;
                {
                    let _entered = self.span.enter();
                    tracing::warn!(%failure, "stream failed");
                }
                self.push(&ApiError::from(failure).to_json());
            }
        }
        self.queue.pop_front()
    }

    fn push(&mut self, data: &str) {
        self.queue.push_back(Bytes::from(format!("data: {data}\n\n")));
    }
}
