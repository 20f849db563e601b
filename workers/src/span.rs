//! Spans of a worker's part of a request: none where nothing is exported, or for a request without a trace.

use kelvin_proto::{
    Refusal,
    trace::{self, TraceContext},
    worker::v1,
};
use tracing::{Span, field::Empty};

/// Of a prefill, from its arrival to its last message.
pub(crate) fn of_prefill(worker: &str, request: &v1::PrefillRequest, parent: Option<TraceContext>) -> Span {
    if parent.is_none() {
        return Span::none();
    }
    let span = tracing::debug_span!(
        "prefill",
        otel.kind = "server",
        worker,
        request_id = request.request_id,
        model = request.model,
        prompt_tokens = request.tokens.len(),
        cached_blocks = Empty,
        reserved_blocks = Empty,
        committed_blocks = Empty,
        evaluated_tokens = Empty,
        error = Empty,
    );
    trace::adopt(&span, parent);
    span
}

/// Of a completion, from its arrival until its last block is stored.
pub(crate) fn of_decode(worker: &str, request: &v1::GenerateRequest, parent: Option<TraceContext>) -> Span {
    if parent.is_none() {
        return Span::none();
    }
    let span = tracing::debug_span!(
        "decode",
        otel.kind = "server",
        worker,
        request_id = request.request_id,
        model = request.model,
        prompt_tokens = request.tokens.len(),
        imported_tokens = Empty,
        generated_tokens = Empty,
    );
    trace::adopt(&span, parent);
    span
}

/// A part of the span this is called in, if there is one.
macro_rules! part {
    ($($arguments:tt)*) => {
        if trace::is_on() && !Span::current().is_none() {
            tracing::debug_span!($($arguments)*)
        } else {
            Span::none()
        }
    };
}

/// Of the time before a request's turn.
pub(crate) fn of_queue() -> Span {
    part!("queue")
}

/// Of blocks on their way from the store into the engine.
pub(crate) fn of_import(blocks: usize) -> Span {
    part!("import", blocks)
}

/// Of one call of the engine.
pub(crate) fn of_evaluation(tokens: usize) -> Span {
    part!("evaluate", tokens)
}

/// Writes what a prefill did into its span.
pub(crate) fn prefilled(span: &Span, result: &Result<v1::PrefillResponse, Refusal>) {
    match result {
        Ok(last) => {
            span.record("cached_blocks", last.cached_blocks);
            span.record("reserved_blocks", last.reserved_blocks);
            span.record("committed_blocks", last.committed_blocks);
            span.record("evaluated_tokens", last.evaluated_tokens);
        }
        Err(refusal) => drop(span.record("error", &refusal.message)),
    }
}

/// Writes what a completion used into the present span.
pub(crate) fn decoded(usage: Option<&v1::Usage>) {
    let Some(usage) = usage.filter(|_| trace::is_on()) else { return };
    let span = Span::current();
    span.record("imported_tokens", usage.imported_tokens);
    span.record("generated_tokens", usage.generated_tokens);
}
