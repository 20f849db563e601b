//! `/v1/chat/completions` and `/v1/completions`: from a request's bytes to its answer.

use std::{
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use axum::{
    Extension,
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};

use super::{
    App,
    ask::{Ask, Input, Kind},
    body,
    completion::{Admitted, Completion, Piece},
    error::ApiError,
    reply::Reply,
    request::RequestBody,
    sse,
    trace::RequestId,
};
use crate::{
    fleet::Model,
    scheduler::Job,
    text::{ChatMessage, ChatTemplate, Defused, TokenizeError, Vocabulary, defuse},
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

async fn complete(app: &App, kind: Kind, id: RequestId, request: Request) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let (head, body) = request.into_parts();
    body::expect_json(&head.headers)?;
    // The semaphore is never closed.
    let place = app.bodies.acquire().await;
    let bytes = body::read(body, app.limits.body_bytes_max, app.limits.read_timeout).await?;
    let ask = Ask::new(kind, body::parse::<RequestBody>(&bytes)?, app.vocabulary.len())?;
    drop((bytes, place));
    let model = app.scheduler.fleet.model().ok_or(crate::scheduler::Failure::NoWorker)?;
    if ask.model != model.name {
        return Err(ApiError::unknown_model(&ask.model));
    }
    let admitted = app.admit()?;
    let (tokens, admitted) = prompt(app, kind, ask.input, model.context_tokens_max, admitted).await?;
    let tokens_max = budget(app, kind, &model, tokens.len(), ask.tokens_max)?;
    let end_tokens = app.vocabulary.end_tokens();
    let job = Job {
        request_id: id.unique.clone(),
        model: model.name.clone(),
        tokens,
        sampling: ask.sampling,
        tokens_max,
        stop_tokens: if ask.ignore_eos { Vec::new() } else { end_tokens.to_vec() },
        logprobs: ask.logprobs,
        arrived,
    };
    let generation = app.scheduler.start(job).await?;
    let reply = Reply {
        kind,
        id: format!("{}-{}", if kind == Kind::Chat { "chatcmpl" } else { "cmpl" }, id.unique),
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        model: model.name,
        include_usage: ask.include_usage,
    };
    let completion =
        Completion::new(generation, app.vocabulary.clone(), ask.stops, ask.logprobs.is_some(), admitted);
    if ask.stream {
        Ok(sse::stream(reply, completion, app.limits.client_timeout))
    } else {
        whole(reply, completion).await
    }
}

async fn whole(reply: Reply, mut completion: Completion) -> Result<Response, ApiError> {
    let mut text = String::new();
    let mut all_logs = None;
    let mut keep = |logs: Option<Vec<_>>| {
        if let Some(logs) = logs {
            all_logs.get_or_insert_with(Vec::new).extend(logs);
        }
    };
    let (finish, counts) = loop {
        match completion.next().await? {
            Piece::Delta(delta) => {
                text.push_str(&delta.text);
                keep(delta.logs);
            }
            Piece::End(delta, finish, counts) => {
                text.push_str(&delta.text);
                keep(delta.logs);
                break (finish, counts);
            }
        }
    };
    tracing::info!(?counts, finish = finish.name(), "done");
    let json = reply.whole(&text, all_logs, finish, counts);
    let content_type = (CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(([content_type], Body::from(json)).into_response())
}

impl App {
    fn admit(&self) -> Result<Admitted, ApiError> {
        let permit = self.admission.clone().try_acquire_owned();
        let permit = permit.map_err(|_| {
            self.metrics.error("queue_full");
            ApiError::queue_full(self.limits.requests_max)
        })?;
        Ok(Admitted::new(permit, &self.metrics.in_flight))
    }
}

/// Tokens of the prompt. Rendering and tokenizing take up to a second for the longest bodies, so they
/// run beside the runtime's own threads; they keep the request's place even if the client leaves, which
/// bounds how many run.
async fn prompt(
    app: &App,
    kind: Kind,
    input: Input,
    context_tokens_max: u32,
    admitted: Admitted,
) -> Result<(Vec<u32>, Admitted), ApiError> {
    let bytes = match &input {
        Input::Tokens(_) => 0,
        Input::Text(text) => text.len(),
        Input::Messages(messages) => messages.iter().map(|message| message.content.len()).sum(),
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
        let text = match input {
            Input::Tokens(tokens) => return Ok((tokens, admitted)),
            Input::Text(text) => Defused::plain(text),
            Input::Messages(messages) => {
                let template = template.as_deref().ok_or_else(ApiError::no_template)?;
                render(&vocabulary, template, messages)?
            }
        };
        fits(text.bytes())?;
        let tokens = vocabulary.tokenize(&text).map_err(|error| untokenized(kind, &error))?;
        Ok((tokens, admitted))
    };
    let (tokens, admitted) = tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(%error, "tokenize a prompt");
        ApiError::internal()
    })??;
    if tokens.is_empty() {
        return Err(ApiError::param(kind.prompt_param(), format!("`{}` is empty.", kind.prompt_param())));
    }
    Ok((tokens, admitted))
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

fn render(
    vocabulary: &Vocabulary,
    template: &ChatTemplate,
    mut messages: Vec<ChatMessage>,
) -> Result<Defused, ApiError> {
    for message in &mut messages {
        message.content = defuse(&message.content, vocabulary.control_texts());
    }
    match template.render(&messages) {
        Ok(text) => Ok(Defused::from_rendered(&text)),
        Err(error) => {
            let message = format!("The model's chat template does not take these messages: {error}.");
            Err(ApiError::param("messages", message))
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
