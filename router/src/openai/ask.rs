//! A checked request: what is asked for, in the scheduler's words.

use std::collections::{BTreeMap, HashMap};

use kelvin_proto::worker::v1::Sampling;
use serde_json::Value;

use super::{
    conversation::messages,
    error::ApiError,
    format::Form,
    hints::Hints,
    request::{Logprobs, Prompt, RequestBody, Stop},
    tools::Tools,
};
use crate::text::ChatMessage;

/// OpenAI's own limits.
const STOPS_MAX: usize = 4;
const TOP_LOGPROBS_MAX: u32 = 20;
/// Bytes of a stop string: as much text may be held back.
const STOP_BYTES_MAX: usize = 1024;
/// As many as a worker takes.
const LOGIT_BIASES_MAX: usize = 1024;
/// Completions of one request.
const CHOICES_MAX: u32 = 8;

/// Which of the two routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Chat,
    Text,
}

impl Kind {
    /// The parameter that holds the prompt.
    pub(super) fn prompt_param(self) -> &'static str {
        match self {
            Self::Chat => "messages",
            Self::Text => "prompt",
        }
    }
}

/// What the model is to continue.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Input {
    Messages(Vec<ChatMessage>),
    Text(String),
    Tokens(Vec<u32>),
}

/// A checked request.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ask {
    pub(super) model: String,
    pub(super) input: Input,
    pub(super) sampling: Sampling,
    pub(super) stops: Vec<String>,
    /// `None` if the request does not say.
    pub(super) tokens_max: Option<u32>,
    /// Alternatives a token; `None` for no log probabilities at all.
    pub(super) logprobs: Option<u32>,
    pub(super) ignore_eos: bool,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    /// Completions to make.
    pub(super) choices: u32,
    /// The prompt comes first in the answer.
    pub(super) echo: bool,
    /// What the answer must be.
    pub(super) form: Option<Form>,
    /// What may be called.
    pub(super) tools: Option<Tools>,
    pub(super) hints: Hints,
}

impl Ask {
    /// Checks a body for one route; `vocab_tokens` bounds token ids.
    pub(super) fn new(kind: Kind, body: RequestBody, vocab_tokens: u32) -> Result<Self, ApiError> {
        refuse_unserved(&body)?;
        let sampling = sampling(&body, vocab_tokens)?;
        let logprobs = match kind {
            Kind::Chat => chat_logprobs(&body)?,
            Kind::Text => text_logprobs(&body)?,
        };
        let tokens_max = tokens_max(&body)?;
        let stream = body.stream.unwrap_or(false);
        if body.stream_options.is_some() && !stream {
            return Err(ApiError::param("stream_options", "`stream_options` goes with `stream: true` only."));
        }
        let hints = Hints::new(&body)?;
        let (choices, echo) = (choices(&body)?, echo(kind, &body, logprobs.is_some())?);
        let form = Form::new(body.response_format)?;
        let tools = match kind {
            Kind::Chat => Tools::new(body.tools, body.tool_choice, body.parallel_tool_calls)?,
            Kind::Text => None,
        };
        if form.is_some() && tools.as_ref().is_some_and(|tools| !tools.is_auto()) {
            let message = "`response_format` goes with a `tool_choice` of \"auto\" or \"none\" only: the answer is a call else.";
            return Err(ApiError::param("response_format", message));
        }
        let input = match kind {
            Kind::Chat => Input::Messages(messages(body.messages)?),
            Kind::Text => prompt(body.prompt, vocab_tokens)?,
        };
        let model = body.model.filter(|model| !model.is_empty());
        Ok(Self {
            model: model.ok_or_else(|| ApiError::param("model", "The parameter `model` is missing."))?,
            input,
            sampling,
            stops: stops(body.stop)?,
            tokens_max,
            logprobs,
            ignore_eos: body.ignore_eos.unwrap_or(false),
            stream,
            include_usage: body.stream_options.and_then(|options| options.include_usage).unwrap_or(false),
            choices,
            echo,
            form,
            tools,
            hints,
        })
    }

    /// The grammar of the answer; empty for any text.
    pub(super) fn grammar(&self) -> String {
        match (&self.tools, &self.form) {
            (Some(tools), form) => tools.grammar(form.as_ref()).unwrap_or_default(),
            (None, Some(form)) => form.grammar(),
            (None, None) => String::new(),
        }
    }

    /// The parameter that the grammar comes from.
    pub(super) fn grammar_param(&self) -> &'static str {
        if self.form.is_some() { "response_format" } else { "tools" }
    }
}

/// Refuses what would silently be something else than asked for.
fn refuse_unserved(body: &RequestBody) -> Result<(), ApiError> {
    let refuse = |condition: bool, param: &str, what: &str| match condition {
        true => Err(ApiError::unsupported(param, format!("{what} not supported by this version."))),
        false => Ok(()),
    };
    let none = |choice: &Option<Value>| choice.as_ref().and_then(Value::as_str) == Some("none");
    let given = |list: &Option<Vec<Value>>| list.as_ref().is_some_and(|list| !list.is_empty());
    refuse(
        body.best_of.is_some_and(|best| best != body.n.unwrap_or(1)),
        "best_of",
        "`best_of` other than `n` is",
    )?;
    refuse(body.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()), "suffix", "`suffix` is")?;
    refuse(
        given(&body.functions) && !none(&body.function_call),
        "functions",
        "`functions` with a `function_call` other than \"none\" are",
    )?;
    let text_only = body.modalities.as_ref().is_none_or(|list| list.iter().all(|one| one == "text"));
    refuse(!text_only, "modalities", "modalities other than \"text\" are")?;
    refuse(body.audio.is_some(), "audio", "`audio` is")
}

fn choices(body: &RequestBody) -> Result<u32, ApiError> {
    match body.n.unwrap_or(1) {
        n @ 1..=CHOICES_MAX => Ok(n),
        n => Err(ApiError::param("n", format!("`n` is {n}, but must be 1 to {CHOICES_MAX}."))),
    }
}

/// `echo`, which is of text completions alone.
fn echo(kind: Kind, body: &RequestBody, logprobs: bool) -> Result<bool, ApiError> {
    let echo = kind == Kind::Text && body.echo == Some(true);
    match echo && logprobs {
        true => Err(ApiError::unsupported(
            "echo",
            "`echo` with `logprobs` is not supported by this version, which has none of the prompt's tokens.",
        )),
        false => Ok(echo),
    }
}

fn sampling(body: &RequestBody, vocab_tokens: u32) -> Result<Sampling, ApiError> {
    let within = |param: &'static str, value: Option<f32>, default: f32, least: f32, most: f32| {
        let value = value.unwrap_or(default);
        match (least..=most).contains(&value) {
            true => Ok(value),
            false => {
                Err(ApiError::param(param, format!("`{param}` is {value}, but must be {least} to {most}.")))
            }
        }
    };
    let top_k = match body.top_k.unwrap_or(0) {
        -1 => 0,
        top_k if top_k < 0 => {
            let message = format!("`top_k` is {top_k}, but must be -1 (all), 0 (all) or a count.");
            return Err(ApiError::param("top_k", message));
        }
        // More tokens than there are is all of them.
        top_k => u32::try_from(top_k).unwrap_or(u32::MAX).min(vocab_tokens),
    };
    Ok(Sampling {
        temperature: within("temperature", body.temperature, 1.0, 0.0, 2.0)?,
        top_p: within("top_p", body.top_p, 1.0, 0.0, 1.0)?,
        top_k,
        min_p: within("min_p", body.min_p, 0.0, 0.0, 1.0)?,
        presence_penalty: within("presence_penalty", body.presence_penalty, 0.0, -2.0, 2.0)?,
        frequency_penalty: within("frequency_penalty", body.frequency_penalty, 0.0, -2.0, 2.0)?,
        // Any 64 bits are a seed.
        seed: body.seed.map(i64::cast_unsigned),
        logit_bias: logit_bias(body, vocab_tokens)?,
    })
}

fn logit_bias(body: &RequestBody, vocab_tokens: u32) -> Result<HashMap<u32, f32>, ApiError> {
    let count = body.logit_bias.as_ref().map_or(0, BTreeMap::len);
    if count > LOGIT_BIASES_MAX {
        return Err(ApiError::param(
            "logit_bias",
            format!("`logit_bias` has {count} entries, but at most {LOGIT_BIASES_MAX} are allowed."),
        ));
    }
    let biases = body.logit_bias.iter().flatten();
    let checked = biases.map(|(key, &bias)| {
        let token = key.parse::<u32>().ok().filter(|&token| token < vocab_tokens);
        let token = token.ok_or_else(|| {
            ApiError::param(
                "logit_bias",
                format!("`logit_bias` has the key \"{key}\", which is no token id below {vocab_tokens}."),
            )
        })?;
        if !(-100.0..=100.0).contains(&bias) {
            return Err(ApiError::param(
                "logit_bias",
                format!("`logit_bias` of token {token} is {bias}, but must be -100 to 100."),
            ));
        }
        Ok((token, bias))
    });
    checked.collect()
}

fn chat_logprobs(body: &RequestBody) -> Result<Option<u32>, ApiError> {
    let on = match body.logprobs {
        None => false,
        Some(Logprobs::Switch(on)) => on,
        Some(Logprobs::Count(_)) => {
            return Err(ApiError::param(
                "logprobs",
                "`logprobs` must be a boolean here; `top_logprobs` is the count.",
            ));
        }
    };
    match body.top_logprobs {
        Some(count) if count > TOP_LOGPROBS_MAX => Err(ApiError::param(
            "top_logprobs",
            format!("`top_logprobs` is {count}, but must be 0 to {TOP_LOGPROBS_MAX}."),
        )),
        Some(_) if !on => {
            Err(ApiError::param("top_logprobs", "`top_logprobs` goes with `logprobs: true` only."))
        }
        count => Ok(on.then_some(count.unwrap_or(0))),
    }
}

fn text_logprobs(body: &RequestBody) -> Result<Option<u32>, ApiError> {
    match body.logprobs {
        None | Some(Logprobs::Switch(false)) => Ok(None),
        Some(Logprobs::Switch(true)) => {
            Err(ApiError::param("logprobs", "`logprobs` must be a count of alternatives here."))
        }
        Some(Logprobs::Count(count)) if count > TOP_LOGPROBS_MAX => Err(ApiError::param(
            "logprobs",
            format!("`logprobs` is {count}, but must be 0 to {TOP_LOGPROBS_MAX}."),
        )),
        Some(Logprobs::Count(count)) => Ok(Some(count)),
    }
}

fn tokens_max(body: &RequestBody) -> Result<Option<u32>, ApiError> {
    let (param, tokens_max) = match (body.max_completion_tokens, body.max_tokens) {
        (Some(new), Some(old)) if new != old => {
            let message = "`max_tokens` and `max_completion_tokens` differ; give one of them.";
            return Err(ApiError::param("max_tokens", message));
        }
        (Some(new), _) => ("max_completion_tokens", Some(new)),
        (None, old) => ("max_tokens", old),
    };
    match tokens_max {
        Some(0) => Err(ApiError::param(param, format!("`{param}` must be at least 1."))),
        tokens_max => Ok(tokens_max),
    }
}

fn stops(stop: Option<Stop>) -> Result<Vec<String>, ApiError> {
    let stops = match stop {
        None => Vec::new(),
        Some(Stop::One(stop)) => vec![stop],
        Some(Stop::Many(stops)) => stops,
    };
    if stops.len() > STOPS_MAX {
        return Err(ApiError::param(
            "stop",
            format!("`stop` has {} strings, but at most {STOPS_MAX} are allowed.", stops.len()),
        ));
    }
    if stops.iter().any(|stop| stop.is_empty() || stop.len() > STOP_BYTES_MAX) {
        return Err(ApiError::param(
            "stop",
            format!("Each string of `stop` must have 1 to {STOP_BYTES_MAX} bytes."),
        ));
    }
    Ok(stops)
}

fn prompt(prompt: Option<Prompt>, vocab_tokens: u32) -> Result<Input, ApiError> {
    let several = || {
        ApiError::unsupported("prompt", "More than one prompt a request is not supported by this version.")
    };
    let tokens =
        match prompt.ok_or_else(|| ApiError::param("prompt", "The parameter `prompt` is missing."))? {
            Prompt::Text(text) => return Ok(Input::Text(text)),
            Prompt::Texts(mut texts) => match texts.pop() {
                Some(text) if texts.is_empty() => return Ok(Input::Text(text)),
                Some(_) => return Err(several()),
                None => Vec::new(),
            },
            Prompt::Tokens(tokens) => tokens,
            Prompt::TokenLists(mut lists) => match lists.pop() {
                Some(tokens) if lists.is_empty() => tokens,
                Some(_) => return Err(several()),
                None => Vec::new(),
            },
        };
    if tokens.is_empty() {
        return Err(ApiError::param("prompt", "`prompt` is empty."));
    }
    if let Some(token) = tokens.iter().find(|&&token| token >= vocab_tokens) {
        return Err(ApiError::param(
            "prompt",
            format!("`prompt` has the token {token}, but ids are below {vocab_tokens}."),
        ));
    }
    Ok(Input::Tokens(tokens))
}

#[cfg(test)]
mod tests;
