//! A completion as text: the worker's steps, detokenized, cut at stop strings, counted.

use std::sync::Arc;

use super::{
    calls::{CallDelta, CallScanner, Found},
    logprobs::{LogQueue, TokenLog},
};
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

/// What can go out now, with the entries of its tokens if they were asked for.
#[derive(Debug, Default)]
pub(super) struct Delta {
    pub(super) text: String,
    pub(super) calls: Vec<CallDelta>,
    pub(super) logs: Option<Vec<TokenLog>>,
}

impl Delta {
    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty() && self.calls.is_empty() && self.logs.as_ref().is_none_or(|logs| logs.is_empty())
    }
}

/// How a completion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Stop,
    Length,
    ToolCalls,
}

impl Ending {
    /// OpenAI's word for it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
        }
    }
}

/// What comes next of a completion.
#[derive(Debug)]
pub(super) enum Piece {
    Delta(Delta),
    /// The last text, which may be empty, and how it ended.
    End(Delta, Ending, Counts),
}

/// What is wanted of a completion.
#[derive(Debug, Clone, Default)]
pub(super) struct Wants {
    pub(super) stops: Vec<String>,
    pub(super) logprobs: bool,
    /// Names of tools that may be called, and whether only once.
    pub(super) calls: Option<(Vec<String>, bool)>,
    /// Text that is to come first.
    pub(super) echo: String,
    pub(super) keep_tokens: bool,
}

/// A completion under way; dropping it cancels it.
pub(super) struct Completion {
    generation: Generation,
    vocabulary: Arc<Vocabulary>,
    text: TextStream,
    logs: Option<LogQueue>,
    scanner: Option<CallScanner>,
    /// Text that comes before the completion's.
    echo: String,
    tokens: u64,
    /// The tokens, if somebody wants to know them at the end.
    kept: Option<Vec<u32>>,
}

impl Completion {
    pub(super) fn new(generation: Generation, vocabulary: Arc<Vocabulary>, wants: Wants) -> Self {
        Self {
            generation,
            text: TextStream::new(vocabulary.clone(), wants.stops),
            vocabulary,
            logs: wants.logprobs.then(LogQueue::default),
            scanner: wants.calls.map(|(names, single)| CallScanner::new(names, single)),
            echo: wants.echo,
            tokens: 0,
            kept: wants.keep_tokens.then(Vec::new),
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
                        if let Some(kept) = &mut self.kept {
                            kept.push(token.token);
                        }
                        let piece = self.text.push(token.token);
                        text.push_str(&piece.text);
                        if piece.stopped {
                            let delta = self.last_delta(text);
                            return Ok(Piece::End(delta, self.ending(Finish::Stop), self.counts()));
                        }
                    }
                    let delta = self.delta(text);
                    if !delta.is_empty() {
                        return Ok(Piece::Delta(delta));
                    }
                }
                Step::End(finish) => {
                    let piece = self.text.finish();
                    let finish = if piece.stopped { Finish::Stop } else { finish };
                    let mut delta = self.last_delta(piece.text);
                    if let (Some(queue), Some(logs)) = (&mut self.logs, &mut delta.logs) {
                        logs.extend(queue.finish());
                    }
                    return Ok(Piece::End(delta, self.ending(finish), self.counts()));
                }
            }
        }
    }

    fn delta(&mut self, text: String) -> Delta {
        let sent = self.text.sent_chars();
        let found = match &mut self.scanner {
            Some(scanner) => scanner.push(&text),
            None => Found { text, calls: Vec::new() },
        };
        let text = match self.echo.is_empty() {
            true => found.text,
            false => std::mem::take(&mut self.echo) + &found.text,
        };
        Delta { text, calls: found.calls, logs: self.logs.as_mut().map(|logs| logs.release(sent)) }
    }

    /// The last delta, with what the scanner held back.
    fn last_delta(&mut self, text: String) -> Delta {
        let mut delta = self.delta(text);
        if let Some(scanner) = &mut self.scanner {
            let rest = scanner.finish();
            delta.text.push_str(&rest.text);
            delta.calls.extend(rest.calls);
        }
        delta
    }

    fn ending(&self, finish: Finish) -> Ending {
        match finish {
            Finish::Length => Ending::Length,
            Finish::Stop if self.scanner.as_ref().is_some_and(CallScanner::has_called) => Ending::ToolCalls,
            Finish::Stop => Ending::Stop,
        }
    }

    /// The tokens so far, if they were to be kept.
    pub(super) fn take_tokens(&mut self) -> Vec<u32> {
        self.kept.take().unwrap_or_default()
    }

    fn counts(&self) -> Counts {
        Counts {
            prompt_tokens: self.generation.prompt_tokens(),
            completion_tokens: self.tokens,
            cached_tokens: self.generation.cached_tokens(),
        }
    }
}
