//! `/v1/chat/completions` and `/v1/completions`: from a request's bytes to its answer.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use axum::{
    Extension,
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    App,
    ask::{Ask, Input, Kind},
    body,
    calls::CallDelta,
    choices::{Choices, Event, after},
    completion::{Completion, Delta, Ending, Wants},
    conversation,
    error::ApiError,
    logprobs::TokenLog,
    pass::{Route, pass},
    reply::{Reply, Whole},
    request::RequestBody,
    sse,
    tools::Tools,
    trace::RequestId,
};
use crate::{
    admission::{Admission, Admitted, Ticket},
    fleet::Model,
    scheduler::{Failure, Job},
    text::{Defused, TokenizeError},
};

/// `POST /v1/chat/completions`.
pub(super) async fn chat(
    State(app): State<Arc<App>>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Result<Response, ApiError> {
    complete(&app, Kind::Chat, id, request).await
}

/// `POST /v1/completions`.
pub(super) async fn text(
    State(app): State<Arc<App>>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Result<Response, ApiError> {
    complete(&app, Kind::Text, id, request).await
}

async fn complete(app: &Arc<App>, kind: Kind, id: RequestId, request: Request) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let (head, body) = request.into_parts();
    body::expect_json(&head.headers)?;
    // The semaphore is never closed.
    let place = app.bodies.clone().acquire_owned().await.ok();
    let bytes = body::read(body, app.limits.body_bytes_max, app.limits.read_timeout).await?;
    let route = if kind == Kind::Chat { Route::Chat } else { Route::Text };
    let (bytes, place) = match pass(app, route, &head.headers, bytes, place, &id).await? {
        Ok(answer) => return Ok(answer),
        Err(back) => back,
    };
    let ask = Ask::new(kind, body::parse::<RequestBody>(&bytes)?, app.vocabulary.len())?;
    drop(bytes);
    let model = app.scheduler.fleet.model();
    if model.is_none() && app.scheduler.fleet.workers().is_empty() {
        return Err(ApiError::unknown_model(&ask.model));
    }
    let model = model.ok_or(Failure::NoWorker)?;
    if ask.model != model.name {
        return Err(ApiError::unknown_model(&ask.model));
    }
    if ask.choices as usize > app.limits.requests_max {
        let (n, max) = (ask.choices, app.limits.requests_max);
        return Err(ApiError::param(
            "n",
            format!("`n` is {n}, but at most {max} completions are made at once."),
        ));
    }
    app.native.check(ask.hints.priority)?;
    let (grammar, grammar_param) = (ask.grammar(), ask.grammar_param());
    let calls = ask.tools.as_ref().map(|tools| (tools.names(), tools.is_single()));
    let prompt = prompt(app, kind, ask.input, ask.tools, model.context_tokens_max, ask.echo, place).await?;
    let Prompt { tokens, echo } = prompt;
    let tokens_max = budget(app, kind, &model, tokens.len(), ask.tokens_max)?;
    let extra = ask.hints.extra();
    let found = app.scheduler.prefixes.find(&tokens, &extra).await;
    let ticket = Ticket {
        places: ask.choices,
        priority: ask.hints.priority,
        uncached_tokens: (tokens.len() as u64).saturating_sub(found.matched_tokens),
        wait: ask.hints.deadline_ms.map(Duration::from_millis),
    };
    let admitted = app.turn(&app.native, ticket).await?;
    let end_tokens = app.vocabulary.end_tokens();
    let after = after(&app.scheduler, &ask.hints, &tokens);
    let wants = Wants {
        stops: ask.stops,
        logprobs: ask.logprobs.is_some(),
        calls,
        echo,
        keep_tokens: after.is_some(),
    };
    let job = Job {
        request_id: id.unique.clone(),
        model: model.name.clone(),
        tokens,
        sampling: ask.sampling,
        tokens_max,
        stop_tokens: if ask.ignore_eos { Vec::new() } else { end_tokens.to_vec() },
        logprobs: ask.logprobs,
        arrived,
        grammar,
        extra,
        found: (!admitted.has_waited()).then_some(found),
        priority: ask.hints.priority,
        session_id: ask.hints.session_id,
        session_end: ask.hints.session_end,
    };
    let complete = |generation| Completion::new(generation, app.vocabulary.clone(), wants.clone());
    let choices = Choices::begin(&app.scheduler, job, ask.choices, admitted, complete, after).await;
    let choices = choices.map_err(|failure| ApiError::of_job(failure, grammar_param))?;
    let reply = Reply {
        kind,
        id: format!("{}-{}", if kind == Kind::Chat { "chatcmpl" } else { "cmpl" }, id.unique),
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        model: model.name,
        include_usage: ask.include_usage,
    };
    if ask.stream {
        Ok(sse::stream(reply, choices, app.limits.client_timeout))
    } else {
        whole(reply, choices).await
    }
}

/// A choice of a whole answer as it comes to be.
#[derive(Default)]
struct Gathered {
    text: String,
    calls: Vec<CallDelta>,
    logs: Option<Vec<TokenLog>>,
    ending: Option<Ending>,
}

impl Gathered {
    fn take(&mut self, delta: Delta) {
        self.text.push_str(&delta.text);
        for call in delta.calls {
            match self.calls.last_mut().filter(|last| last.index == call.index) {
                Some(last) => last.arguments.push_str(&call.arguments),
                None => self.calls.push(call),
            }
        }
        if let Some(logs) = delta.logs {
            self.logs.get_or_insert_with(Vec::new).extend(logs);
        }
    }
}

async fn whole(reply: Reply, mut choices: Choices) -> Result<Response, ApiError> {
    let mut gathered: Vec<Gathered> = (0..choices.count()).map(|_| Gathered::default()).collect();
    let counts = loop {
        match choices.next().await? {
            Event::Delta(index, delta) => gathered[index as usize].take(delta),
            Event::End(index, delta, ending) => {
                let choice = &mut gathered[index as usize];
                choice.take(delta);
                choice.ending = Some(ending);
            }
            Event::Done(counts) => break counts,
        }
    };
    let all = gathered.into_iter().map(|Gathered { text, calls, logs, ending }| {
        // Every choice ended, or there would be no counts.
        let ending = ending.unwrap_or(Ending::Length);
        Whole { text, calls, logs, ending }
    });
    let all: Vec<Whole> = all.collect();
    let endings: Vec<_> = all.iter().map(|choice| choice.ending.name()).collect();
    tracing::info!(?counts, ?endings, "done");
    let json = reply.whole(all, counts);
    let content_type = (CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(([content_type], Body::from(json)).into_response())
}

impl App {
    /// Waits for a request's turn; not any more once the router ends.
    pub(super) async fn turn(&self, gate: &Admission, ticket: Ticket) -> Result<Admitted, ApiError> {
        tokio::select! {
            biased;
            admitted = gate.admit(ticket) => Ok(admitted?),
            () = self.scheduler.ending.cancelled() => Err(Failure::ShuttingDown.into()),
        }
    }
}

/// A prompt, and what is needed of it later.
struct Prompt {
    tokens: Vec<u32>,
    /// Its text, if the answer is to begin with it.
    echo: String,
}

/// Tokens of the prompt. Rendering and tokenizing take up to a second for the longest bodies, so they
/// run beside the runtime's own threads; they keep the body's place even if the client leaves, which
/// bounds how many run.
async fn prompt(
    app: &App,
    kind: Kind,
    input: Input,
    tools: Option<Tools>,
    context_tokens_max: u32,
    echo: bool,
    place: Option<OwnedSemaphorePermit>,
) -> Result<Prompt, ApiError> {
    let bytes = match &input {
        Input::Tokens(_) => 0,
        Input::Text(text) => text.len(),
        Input::Messages(messages) => conversation::bytes(messages, tools.as_ref()),
    };
    let (vocabulary, template) = (app.vocabulary.clone(), app.template.clone());
    // So long a text cannot fit whatever its tokens are.
    let bytes_max = vocabulary.token_bytes_max().saturating_mul(context_tokens_max as usize);
    let fits = move |bytes: usize| match bytes > bytes_max {
        true => Err(too_many_bytes(kind, context_tokens_max)),
        false => Ok(()),
    };
    fits(bytes)?;
    let work = move || -> Result<_, ApiError> {
        let _place = place;
        let mut shown = String::new();
        let text = match input {
            Input::Tokens(tokens) => {
                if echo {
                    let bytes: Vec<u8> = tokens.iter().flat_map(|&token| vocabulary.piece(token)).collect();
                    shown = String::from_utf8_lossy(&bytes).into_owned();
                }
                return Ok(Prompt { tokens, echo: shown });
            }
            Input::Text(text) => {
                if echo {
                    shown = text.clone();
                }
                Defused::plain(text)
            }
            Input::Messages(messages) => {
                let template = template.as_deref().ok_or_else(ApiError::no_template)?;
                conversation::render(&vocabulary, template, messages, tools.as_ref())?
            }
        };
        fits(text.bytes())?;
        let tokens = vocabulary.tokenize(&text).map_err(|error| untokenized(kind, &error))?;
        Ok(Prompt { tokens, echo: shown })
    };
    let prompt = tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(%error, "tokenize a prompt");
        ApiError::internal()
    })??;
    if prompt.tokens.is_empty() {
        return Err(ApiError::param(kind.prompt_param(), format!("`{}` is empty.", kind.prompt_param())));
    }
    Ok(prompt)
}

fn too_many_bytes(kind: Kind, context_tokens_max: u32) -> ApiError {
    let message = format!(
        "This model's maximum context length is {context_tokens_max} tokens. However, your {} have more.",
        kind.prompt_param()
    );
    ApiError::too_long(kind.prompt_param(), message)
}

fn untokenized(kind: Kind, error: &TokenizeError) -> ApiError {
    match error {
        TokenizeError::Run { chars, chars_max } => ApiError::param(
            kind.prompt_param(),
            format!(
                "`{}` has a line of {chars} characters, but at most {chars_max} are allowed.",
                kind.prompt_param()
            ),
        ),
        TokenizeError::Thread(_) | TokenizeError::Died => {
            tracing::error!(?error, "tokenize a prompt");
            ApiError::internal()
        }
    }
}

/// Tokens the completion may have: what is asked for, or the default, within the context.
fn budget(
    app: &App,
    kind: Kind,
    model: &Model,
    prompt_tokens: usize,
    asked: Option<u32>,
) -> Result<u32, ApiError> {
    let limit = model.context_tokens_max;
    let left = u32::try_from(prompt_tokens).map_or(0, |prompt| limit.saturating_sub(prompt));
    let wanted = asked.unwrap_or(1);
    if wanted > left {
        let message = format!(
            "This model's maximum context length is {limit} tokens. However, you requested {} tokens ({prompt_tokens} in the {}, {wanted} in the completion).",
            prompt_tokens as u64 + u64::from(wanted),
            kind.prompt_param(),
        );
        return Err(ApiError::too_long(kind.prompt_param(), message));
    }
    Ok(asked.unwrap_or_else(|| app.limits.tokens_max_default.clamp(1, left)))
}
