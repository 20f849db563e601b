//! Prompts that one engine computes and another decodes behind: vLLM's pairs, by `kv_transfer_params`.
//!
//! # Overview
//! ```text
//! request ─► prefill backend   one token, no stream, "do_remote_decode": true
//!               │  its answer's kv_transfer_params say where the KV is
//! request ─► decode backend    the same request with these; it fetches the KV, and answers
//! ```
//! A request that goes to a backend of role `decode` takes that way where it is expected to pay:
//!
//! ```text
//! here       wait + compute + load + (streams + 1) * max(0, u - CHUNK_TOKENS) / rate
//! elsewhere  wait + compute + load of the prefill backend + HAND_OFF_US + u * transfer
//! ```
//! with `u` the tokens to compute. The last term of the first line is what a long prompt costs the others: it
//! stalls every stream of that backend, and the next arrival, but for the chunk that rides along with a step. The
//! transfer's time a token is learnt from the decode backend's first tokens, as loading is.
//!
//! A prefill that fails, or says nothing of where its KV is, costs its time and nothing else: the decode backend
//! gets the request as it came.

use axum::body::Bytes;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Value, value::RawValue};

use super::{board::Load, fields::Fields};
use crate::{
    cost::{PrefillPolicy, RATE_DEFAULT, measured},
    expected::Expected,
};

/// Tokens of a prompt that an engine computes beside its streams' next tokens, about: vLLM's own default is 2,048
/// a step, of which long prompts get a part.
const CHUNK_TOKENS: u64 = 512;
/// What a second request costs.
const HAND_OFF_US: f64 = 5_000.0;

/// What the prefill backend is told.
const ELSEWHERE: &str = r#"{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,"remote_block_ids":null,"remote_host":null,"remote_port":null}"#;

/// The field of both requests and of the answer between them.
const PARAMETERS: &str = "kv_transfer_params";

/// Whether the prompt is better computed elsewhere: what is expected of the decode backend and of the other, each
/// with its load. One that was never measured counts as fast as the other.
pub(super) fn pays(policy: PrefillPolicy, here: (&Expected, &Load), elsewhere: (&Expected, &Load)) -> bool {
    match policy {
        PrefillPolicy::Local => return false,
        PrefillPolicy::Remote => return true,
        PrefillPolicy::Auto => {}
    }
    let time = |(expected, load): (&Expected, &Load), other: &Load| {
        let rate = measured(load.terms.tokens_per_second.or(other.terms.tokens_per_second), RATE_DEFAULT);
        let tokens_us = |tokens: u64| tokens as f64 * 1e6 / rate;
        let beyond = tokens_us(expected.compute_tokens.saturating_sub(CHUNK_TOKENS));
        let all = tokens_us(load.queued_tokens) + tokens_us(expected.compute_tokens) + expected.load_us;
        (all, (f64::from(load.streams) + 1.0) * beyond)
    };
    let (here_us, stalls_us) = time(here, elsewhere.1);
    let (elsewhere_us, _) = time(elsewhere, here.1);
    let transfer_us = here.1.terms.load_us_per_token.unwrap_or(0.0) * here.0.compute_tokens as f64;
    elsewhere_us + HAND_OFF_US + transfer_us < here_us + stalls_us
}

/// The request for the prefill backend; `None` where the pair cannot serve it: several answers, or several prompts,
/// whose KV one field would have to name.
pub(super) fn prefill_body(body: &[u8]) -> Option<Bytes> {
    let mut fields = Fields::parse(body)?;
    // Whoever sends these does the same by itself.
    if fields.has(PARAMETERS) {
        return None;
    }
    let several: Several = serde_json::from_slice(body).ok()?;
    if several.n.unwrap_or(1) != 1 || several.best_of.unwrap_or(1) != 1 || !several.prompt.is_one() {
        return None;
    }
    fields.set("stream", "false");
    fields.remove("stream_options");
    fields.set("max_tokens", "1");
    if fields.has("max_completion_tokens") {
        fields.set("max_completion_tokens", "1");
    }
    // It may not be more than the most.
    fields.remove("min_tokens");
    fields.set(PARAMETERS, ELSEWHERE);
    Some(fields.to_bytes())
}

/// The request for the decode backend, by what the prefill backend answered; `None` if that does not say.
pub(super) fn decode_body(body: &[u8], answer: &[u8]) -> Option<Bytes> {
    let answer: Answer<'_> = serde_json::from_slice(answer).ok()?;
    let parameters = answer.kv_transfer_params?.get();
    if !parameters.starts_with('{') {
        return None;
    }
    let mut fields = Fields::parse(body)?;
    fields.set(PARAMETERS, parameters);
    Some(fields.to_bytes())
}

#[derive(Deserialize)]
struct Several {
    n: Option<u64>,
    best_of: Option<u64>,
    #[serde(default)]
    prompt: Prompts,
}

/// A text, tokens, or a list of either.
#[derive(Deserialize)]
#[serde(untagged)]
enum Prompts {
    Several(Vec<Value>),
    One(IgnoredAny),
}

impl Default for Prompts {
    fn default() -> Self {
        Self::One(IgnoredAny)
    }
}

impl Prompts {
    fn is_one(&self) -> bool {
        match self {
            Self::Several(parts) => parts.len() <= 1 || parts.iter().all(Value::is_number),
            Self::One(_) => true,
        }
    }
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    kv_transfer_params: Option<&'a RawValue>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::backend::learn::Terms;

    fn expected(tokens: u64) -> Expected {
        Expected { compute_tokens: tokens, ..Expected::default() }
    }

    fn load(streams: u32, queued_tokens: u64) -> Load {
        let terms = Terms { tokens_per_second: Some(10_000.0), ..Terms::default() };
        Load { queued_tokens, streams, terms }
    }

    #[test]
    fn a_long_prompt_goes_elsewhere_and_a_short_one_does_not() {
        let auto = |tokens, here: Load, elsewhere: Load| {
            let expected = expected(tokens);
            pays(PrefillPolicy::Auto, (&expected, &here), (&expected, &elsewhere))
        };
        let idle = load(0, 0);
        assert!(!auto(500, idle, idle), "a chunk rides along");
        assert!(auto(5_000, idle, idle), "a decode worker is worth keeping free");
        assert!(!auto(5_000, idle, load(0, 15_000)), "the other is busy");
        assert!(auto(5_000, load(4, 0), load(0, 15_000)), "each stream would wait");
        let far = Load { terms: Terms { load_us_per_token: Some(200.0), ..idle.terms }, ..idle };
        assert!(!auto(5_000, far, idle), "the way is too long");
        let new = Load { terms: Terms::default(), ..idle };
        assert!(!auto(500, new, idle) && !auto(500, idle, new), "one that was never measured is as fast");
        let (one, many) = (expected(1), expected(1 << 30));
        assert!(pays(PrefillPolicy::Remote, (&one, &idle), (&many, &idle)));
        assert!(!pays(PrefillPolicy::Local, (&many, &idle), (&one, &idle)));
    }

    #[test]
    fn the_two_requests_are_as_vllm_has_them() {
        let body = json!({"model": "m", "prompt": "p", "stream": true, "stream_options": {"include_usage": true},
            "max_tokens": 50, "max_completion_tokens": 60, "min_tokens": 3, "seed": 7});
        let sent = prefill_body(body.to_string().as_bytes()).unwrap();
        assert_eq!(
            serde_json::from_slice::<Value>(&sent).unwrap(),
            json!({"model": "m", "prompt": "p", "stream": false, "max_tokens": 1, "max_completion_tokens": 1, "seed": 7,
                "kv_transfer_params": {"do_remote_decode": true, "do_remote_prefill": false, "remote_engine_id": null,
                    "remote_block_ids": null, "remote_host": null, "remote_port": null}})
        );
        let parameters =
            json!({"do_remote_prefill": true, "remote_engine_id": "e", "remote_block_ids": [1, 2]});
        let answer = json!({"choices": [], "kv_transfer_params": parameters}).to_string();
        let sent = decode_body(body.to_string().as_bytes(), answer.as_bytes()).unwrap();
        let mut whole = body.clone();
        whole["kv_transfer_params"] = parameters;
        assert_eq!(serde_json::from_slice::<Value>(&sent).unwrap(), whole);
        for answer in [r#"{"kv_transfer_params": null}"#, "{}", "x", r#"{"kv_transfer_params": [1]}"#] {
            assert!(decode_body(b"{}", answer.as_bytes()).is_none(), "{answer}");
        }
        for body in [
            r#"{"n": 2}"#,
            r#"{"best_of": 3}"#,
            r#"{"kv_transfer_params": {}}"#,
            r#"{"prompt": ["a", "b"]}"#,
            r#"{"prompt": [[1, 2], [3]]}"#,
        ] {
            assert!(prefill_body(body.as_bytes()).is_none(), "{body}");
        }
        for body in [
            r#"{"messages": [{}, {}]}"#,
            r#"{"prompt": "a"}"#,
            r#"{"prompt": ["a"]}"#,
            r#"{"prompt": [1, 2]}"#,
            r#"{"prompt": [[1, 2]]}"#,
            r#"{"prompt": null}"#,
        ] {
            assert!(prefill_body(body.as_bytes()).is_some(), "{body}");
        }
    }
}
