//! A completion as text: the worker's steps, detokenized, cut at stop strings, counted.

use std::sync::Arc;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::OwnedSemaphorePermit;

use super::logprobs::{LogQueue, TokenLog};
use crate::{
    scheduler::{Failure, Finish, Generation, Step},
    text::{TextStream, Vocabulary},
};

/// Counts, as usage reports them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) prompt_tokens: u64,
    pub(super) completion_tokens: u64,
    pub(super) cached_tokens: u64,
}

/// Text that can go out now, with the entries of its tokens if they were asked for.
#[derive(Debug)]
pub(super) struct Delta {
    pub(super) text: String,
    pub(super) logs: Option<Vec<TokenLog>>,
}

/// What comes next of a completion.
#[derive(Debug)]
pub(super) enum Piece {
    Delta(Delta),
    /// The last text, which may be empty, and how it ended.
    End(Delta, Finish, Counts),
}

/// A place among the requests in work; dropping it frees the place.
pub(super) struct Admitted {
    _permit: OwnedSemaphorePermit,
    gauge: Gauge,
}

impl Admitted {
    pub(super) fn new(permit: OwnedSemaphorePermit, gauge: &Gauge) -> Self {
        gauge.inc();
        Self { _permit: permit, gauge: gauge.clone() }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

/// A completion under way; dropping it cancels it.
pub(super) struct Completion {
    generation: Generation,
    vocabulary: Arc<Vocabulary>,
    text: TextStream,
    logs: Option<LogQueue>,
    tokens: u64,
    _admitted: Admitted,
}

impl Completion {
    pub(super) fn new(
        generation: Generation,
        vocabulary: Arc<Vocabulary>,
        stops: Vec<String>,
        logprobs: bool,
        admitted: Admitted,
    ) -> Self {
        Self {
            generation,
            text: TextStream::new(vocabulary.clone(), stops),
            vocabulary,
            logs: logprobs.then(LogQueue::default),
            tokens: 0,
            _admitted: admitted,
        }
    }

    /// The next piece. After [`Piece::End`] or a failure nothing more may be asked.
    pub(super) async fn next(&mut self) -> Result<Piece, Failure> {
        loop {
            match self.generation.next().await? {
                Step::Tokens(tokens) => {
                    let mut text = String::new();
                    for token in &tokens {
                        self.tokens += 1;
                        if let Some(logs) = &mut self.logs {
                            logs.push(&self.vocabulary, token, self.text.decoded_chars());
                        }
                        let piece = self.text.push(token.token);
                        text.push_str(&piece.text);
                        if piece.stopped {
                            let delta = self.delta(text);
                            return Ok(Piece::End(delta, Finish::Stop, self.counts()));
                        }
                    }
                    let delta = self.delta(text);
                    if !delta.text.is_empty() || delta.logs.as_ref().is_some_and(|logs| !logs.is_empty()) {
                        return Ok(Piece::Delta(delta));
                    }
                }
                Step::End(finish) => {
                    let piece = self.text.finish();
                    let finish = if piece.stopped { Finish::Stop } else { finish };
                    let mut delta = self.delta(piece.text);
                    if let (Some(queue), Some(logs)) = (&mut self.logs, &mut delta.logs) {
                        logs.extend(queue.finish());
                    }
                    return Ok(Piece::End(delta, finish, self.counts()));
                }
            }
        }
    }

    fn delta(&mut self, text: String) -> Delta {
        let sent = self.text.sent_chars();
        Delta { text, logs: self.logs.as_mut().map(|logs| logs.release(sent)) }
    }

    fn counts(&self) -> Counts {
        Counts {
            prompt_tokens: self.generation.prompt_tokens(),
            completion_tokens: self.tokens,
            cached_tokens: self.generation.cached_tokens(),
        }
    }
}
