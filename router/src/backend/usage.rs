//! What an engine says a request used, in its answer or at the end of its stream.

use serde::Deserialize;

use super::member::Call;
use crate::metrics::{Metrics, Outcome, Predicted, Target};

/// Tokens of a request; 0 for what the engine does not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(from = "Wire")]
pub(super) struct Usage {
    pub(super) prompt_tokens: u64,
    pub(super) generated_tokens: u64,
    /// Of the prompt, those that were in the engine's cache; `None` if it does not tell.
    pub(super) cached_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct Answer {
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Wire {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    prompt_tokens_details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    cached_tokens: Option<u64>,
}

impl From<Wire> for Usage {
    fn from(wire: Wire) -> Self {
        Self {
            prompt_tokens: wire.prompt_tokens.unwrap_or(0),
            generated_tokens: wire.completion_tokens.unwrap_or(0),
            cached_tokens: wire.prompt_tokens_details.and_then(|details| details.cached_tokens),
        }
    }
}

impl Usage {
    /// Counts it, of an answer that came for a call.
    pub(super) fn count(&self, metrics: &Metrics, call: &Call, model: &str) {
        let cached_tokens = self.cached_tokens.unwrap_or(0);
        metrics.prompt_tokens.inc_by(self.prompt_tokens);
        metrics.cached_tokens.inc_by(cached_tokens);
        metrics.generated_tokens.inc_by(self.generated_tokens);
        let predicted = self.cached_tokens.map(|observed_tokens| Predicted {
            // The prompt's size was an estimate where nobody had counted.
            predicted_tokens: call.hit_expected().min(self.prompt_tokens),
            observed_tokens,
        });
        metrics.hits.note(Outcome {
            target: Target::Backend,
            model,
            prompt_tokens: self.prompt_tokens,
            cached_tokens,
            predicted,
            tokens_per_second: call.backend().terms().tokens_per_second,
        });
    }

    /// Tokens of the prompt that the engine computed; `None` if it does not tell.
    pub(super) fn computed_tokens(&self) -> Option<u64> {
        self.cached_tokens.map(|cached| self.prompt_tokens.saturating_sub(cached))
    }

    /// Prompt, cached and generated tokens.
    pub(super) fn tokens(&self) -> [u64; 3] {
        [self.prompt_tokens, self.cached_tokens.unwrap_or(0), self.generated_tokens]
    }

    /// Of a whole answer, which must be JSON.
    pub(super) fn of_answer(body: &[u8]) -> Result<Option<Self>, serde_json::Error> {
        let answer: Answer = serde_json::from_slice(body)?;
        Ok(answer.usage)
    }

    /// Of a piece of a stream: that of the last whole event in it that has one. Engines send it if they are asked to
    /// (`stream_options.include_usage`), mostly as one piece; one that is cut in two is not seen.
    pub(super) fn of_events(piece: &[u8]) -> Option<Self> {
        // Most pieces have none: looked for before anything is parsed.
        const KEY: &[u8] = b"\"usage\":";
        if !piece.windows(KEY.len()).any(|window| window == KEY) {
            return None;
        }
        let lines = piece.split(|byte| *byte == b'\n').rev();
        let events = lines.filter_map(|line| line.trim_ascii().strip_prefix(b"data:"));
        events.filter_map(|event| Self::of_answer(event).ok().flatten()).next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_found_in_answers_and_at_the_end_of_streams() {
        let usage =
            "{\"prompt_tokens\":7,\"completion_tokens\":3,\"prompt_tokens_details\":{\"cached_tokens\":4}}";
        let expected = Some(Usage { prompt_tokens: 7, generated_tokens: 3, cached_tokens: Some(4) });
        let answer = format!("{{\"id\":\"x\",\"usage\":{usage}}}");
        assert_eq!(Usage::of_answer(answer.as_bytes()).unwrap(), expected);
        assert_eq!(Usage::of_answer(b"{}").unwrap(), None);
        assert!(Usage::of_answer(b"no").is_err());
        let piece = format!("data: {{\"usage\":null}}\n\ndata: {answer}\n\ndata: [DONE]\n\n");
        assert_eq!(Usage::of_events(piece.as_bytes()), expected);
        assert_eq!(Usage::of_events(b"data: {\"usage\":null}\n\n"), None);
        assert_eq!(Usage::of_events(b"data: {\"choices\":[]}\n\n"), None);
        assert_eq!(Usage::of_events(b"data: {\"usage\":{\"prompt_tokens\""), None, "cut");
        let little = Usage::of_events(b"data: {\"usage\": {\"prompt_tokens\": 2}}\r\n\r\n");
        assert_eq!(little, Some(Usage { prompt_tokens: 2, ..Usage::default() }));
    }
}
