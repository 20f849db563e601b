//! What clients send to `/v1/chat/completions` and `/v1/completions`, as it is on the wire.
//!
//! Both routes share one type, since they share most fields; [`Ask`](super::ask::Ask) sorts out what
//! belongs where. Unknown fields are ignored; fields that this version knows and does not serve are
//! here so that they can be refused.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::admission;

/// The body of a completion request.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RequestBody {
    pub(super) model: Option<String>,
    pub(super) messages: Option<Vec<Message>>,
    pub(super) prompt: Option<Prompt>,

    pub(super) stream: Option<bool>,
    pub(super) stream_options: Option<StreamOptions>,

    pub(super) max_tokens: Option<u32>,
    pub(super) max_completion_tokens: Option<u32>,
    pub(super) stop: Option<Stop>,
    pub(super) temperature: Option<f32>,
    pub(super) top_p: Option<f32>,
    pub(super) top_k: Option<i64>,
    pub(super) min_p: Option<f32>,
    pub(super) presence_penalty: Option<f32>,
    pub(super) frequency_penalty: Option<f32>,
    pub(super) seed: Option<i64>,
    pub(super) logit_bias: Option<BTreeMap<String, f32>>,
    pub(super) logprobs: Option<Logprobs>,
    pub(super) top_logprobs: Option<u32>,
    /// Goes on after the model's end-of-text, up to the token limit; for benches.
    pub(super) ignore_eos: Option<bool>,

    pub(super) n: Option<u32>,
    pub(super) best_of: Option<u32>,
    pub(super) echo: Option<bool>,
    pub(super) suffix: Option<String>,
    pub(super) tools: Option<Vec<ToolBody>>,
    pub(super) tool_choice: Option<Value>,
    pub(super) parallel_tool_calls: Option<bool>,
    pub(super) functions: Option<Vec<Value>>,
    pub(super) function_call: Option<Value>,
    pub(super) response_format: Option<ResponseFormat>,
    pub(super) modalities: Option<Vec<String>>,
    pub(super) audio: Option<Value>,

    /// Hints, which OpenAI's API does not have; see [`Hints`](super::hints::Hints).
    #[serde(deserialize_with = "admission::priority")]
    pub(super) priority: Option<i32>,
    pub(super) deadline_ms: Option<u64>,
    pub(super) cache_salt: Option<String>,
    pub(super) session_id: Option<String>,
    pub(super) session_end: Option<bool>,
    pub(super) ttl_s: Option<u64>,
    pub(super) prefetch_next_turn: Option<bool>,

    /// Without effect here, and checked for their types alone.
    #[serde(rename = "user")]
    pub(super) _user: Option<String>,
    #[serde(rename = "metadata")]
    pub(super) _metadata: Option<BTreeMap<String, String>>,
    #[serde(rename = "store")]
    pub(super) _store: Option<bool>,
    #[serde(rename = "service_tier")]
    pub(super) _service_tier: Option<String>,
}

/// A tool, its type left open.
#[derive(Debug, Deserialize)]
pub(super) struct ToolBody {
    #[serde(default)]
    pub(super) r#type: String,
    pub(super) function: Option<FunctionBody>,
}

#[derive(Debug, Deserialize)]
pub(super) struct FunctionBody {
    pub(super) name: Option<String>,
    pub(super) description: Option<String>,
    pub(super) parameters: Option<Value>,
    pub(super) strict: Option<bool>,
}

/// A call that an earlier answer had.
#[derive(Debug, Deserialize)]
pub(super) struct CallBody {
    pub(super) id: Option<String>,
    pub(super) function: Option<CalledBody>,
}

#[derive(Debug, Deserialize)]
pub(super) struct CalledBody {
    pub(super) name: Option<String>,
    pub(super) arguments: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Message {
    pub(super) role: String,
    pub(super) content: Option<Content>,
    pub(super) tool_calls: Option<Vec<CallBody>>,
    pub(super) tool_call_id: Option<String>,
    pub(super) function_call: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or an array of content parts")]
pub(super) enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Deserialize)]
pub(super) struct Part {
    pub(super) r#type: String,
    pub(super) text: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string, an array of one string, or an array of token ids")]
pub(super) enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    TokenLists(Vec<Vec<u32>>),
}

#[derive(Debug, Deserialize)]
pub(super) struct StreamOptions {
    pub(super) include_usage: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or an array of strings")]
pub(super) enum Stop {
    One(String),
    Many(Vec<String>),
}

/// A switch for chat, a count for text.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged, expecting = "expected a boolean (chat) or a small integer (text)")]
pub(super) enum Logprobs {
    Switch(bool),
    Count(u32),
}

#[derive(Debug, Deserialize)]
pub(super) struct ResponseFormat {
    pub(super) r#type: String,
    pub(super) json_schema: Option<NamedSchema>,
}

#[derive(Debug, Deserialize)]
pub(super) struct NamedSchema {
    pub(super) name: Option<String>,
    pub(super) schema: Option<Value>,
    pub(super) strict: Option<bool>,
}
