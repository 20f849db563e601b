//! What a client tells about a request beside it: how urgent it is, and what becomes of its KV.
//!
//! None of it changes the answer. OpenAI's API has no such fields; its clients send them as `extra_body`.

use super::{error::ApiError, request::RequestBody};

/// Most bytes of a salt or of a session's name.
const TEXT_BYTES_MAX: usize = 256;
/// Most time that blocks are kept: a week.
const TTL_S_MAX: u64 = 7 * 24 * 3600;

/// A request's hints.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Hints {
    /// The higher, the sooner; 0 is ordinary. It goes to no other engine.
    pub(crate) priority: i32,
    /// Most milliseconds that the request may wait for its turn.
    pub(crate) deadline_ms: Option<u64>,
    /// Which conversation this is a turn of.
    pub(crate) session_id: Option<String>,
    /// KV is shared with requests of the same salt alone.
    pub(crate) cache_salt: Option<String>,
    /// The conversation ends with this answer: its KV goes first.
    pub(crate) session_end: bool,
    /// Seconds for which the KV of prompt and answer is kept.
    pub(crate) ttl_s: Option<u64>,
    /// The next turn comes soon: its prefix is brought into the store's memory.
    pub(crate) prefetch_next_turn: bool,
}

impl Hints {
    /// Checks a body's hints.
    pub(super) fn new(body: &RequestBody) -> Result<Self, ApiError> {
        let text = |param: &str, value: &Option<String>| match value {
            Some(text) if text.is_empty() || text.len() > TEXT_BYTES_MAX => {
                Err(ApiError::param(param, format!("`{param}` must have 1 to {TEXT_BYTES_MAX} bytes.")))
            }
            other => Ok(other.clone()),
        };
        if let Some(ttl_s) = body.ttl_s
            && !(1..=TTL_S_MAX).contains(&ttl_s)
        {
            let message = format!("`ttl_s` is {ttl_s}, but must be 1 to {TTL_S_MAX}.");
            return Err(ApiError::param("ttl_s", message));
        }
        Ok(Self {
            priority: body.priority.unwrap_or(0),
            deadline_ms: body.deadline_ms,
            session_id: text("session_id", &body.session_id)?,
            cache_salt: text("cache_salt", &body.cache_salt)?,
            session_end: body.session_end.unwrap_or(false),
            ttl_s: body.ttl_s,
            prefetch_next_turn: body.prefetch_next_turn.unwrap_or(false),
        })
    }

    /// What goes into the hashes of blocks beside their tokens.
    pub(crate) fn extra(&self) -> Vec<u8> {
        self.cache_salt.as_ref().map(|salt| format!("salt:{salt}").into_bytes()).unwrap_or_default()
    }

    /// Whether the store is to hear of the end of the answer.
    pub(crate) fn has_after(&self) -> bool {
        self.session_end || self.ttl_s.is_some() || self.prefetch_next_turn
    }
}
