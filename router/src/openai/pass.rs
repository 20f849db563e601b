//! Requests for models that other engines serve: a look at the body, and on it goes.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension,
    body::Bytes,
    extract::{Request, State},
    http::HeaderMap,
    response::Response,
};

use serde_json::value::RawValue;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    App, body,
    error::ApiError,
    tokens::{Tokens, tokens},
    trace::RequestId,
};
use crate::{
    admission::Ticket,
    backend::{
        Again, Asked, EMBEDDINGS, Errand, Forwarder, Keys, Moved, Peek, Pool, Prompt, Trouble, forwarded,
    },
    config::KeyKind,
    directory::Scope,
};

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    Chat,
    Text,
    Embeddings,
}

impl Route {
    fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Text => "/v1/completions",
            Self::Embeddings => EMBEDDINGS,
        }
    }
}

/// `POST /v1/embeddings`: engines' business alone.
pub(super) async fn embeddings(
    State(app): State<Arc<App>>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    body::expect_json(&head.headers)?;
    // The semaphore is never closed.
    let place = app.bodies.clone().acquire_owned().await.ok();
    let bytes = body::read(body, app.limits.body_bytes_max, app.limits.read_timeout).await?;
    let model = body::parse::<Peek<'_>>(&bytes)?.model.unwrap_or_default().into_owned();
    let passed = pass(&app, Route::Embeddings, &head.headers, bytes, place, &id).await?;
    passed.map_err(|_| ApiError::unknown_model(&model))
}

/// The answer of an engine, or the body back if no engine has the model, with its place among the bodies that are
/// being read.
pub(super) async fn pass(
    app: &Arc<App>,
    route: Route,
    headers: &HeaderMap,
    bytes: Bytes,
    place: Option<OwnedSemaphorePermit>,
    id: &RequestId,
) -> Result<Result<Response, (Bytes, Option<OwnedSemaphorePermit>)>, ApiError> {
    let Some(forwarder) = &app.forwarder else { return Ok(Err((bytes, place))) };
    let peek = body::parse::<Peek<'_>>(&bytes)?;
    let model = peek.model.as_deref().unwrap_or_default();
    let table = forwarder.roster.table();
    if table.pool(model).is_none() {
        // As long as one was never heard of, nobody knows that no one has the model.
        let unheard = app.scheduler.fleet.model().is_none_or(|own| model != own.name);
        return match table.has_unheard() && unheard {
            true => Err(Trouble::NoBackend.into()),
            false => Ok(Err((bytes, place))),
        };
    }
    let pool = table.pool(model).ok_or(Trouble::NoBackend)?;
    app.passed.check(peek.priority())?;
    let prompt = PromptOf::new(app, pool, &peek).await;
    drop(place);
    let keys = prompt.keys(forwarder, pool, &peek);
    let ticket = Ticket {
        places: 1,
        priority: peek.priority(),
        uncached_tokens: keys.uncached_tokens(),
        wait: peek.deadline_ms().map(Duration::from_millis),
    };
    let admitted = app.turn(&app.passed, ticket).await?;
    // While it waited others may have come, and left; and what was looked up is old.
    let (table, keys) = match admitted.has_waited() {
        true => (forwarder.roster.table(), None),
        false => (table, Some(keys)),
    };
    let pool = table.pool(model).ok_or(Trouble::NoBackend)?;
    let session = peek.session().map(|name| forwarder.sessions.number(&pool.card.id, name));
    let session_end = peek.is_session_end();
    let again = || {
        Onward {
            app: app.clone(),
            forwarder: forwarder.clone(),
            route,
            headers: forwarded(headers),
            request_id: id.unique.clone(),
            session,
            session_end,
        }
        .again()
    };
    let errand = Errand {
        path: route.path(),
        headers,
        body: peek.without_hints(&bytes),
        request_id: &id.unique,
        model: &pool.card.id,
        stream: peek.is_stream(),
        session,
        session_end,
        again: (peek.is_stream() && forwarder.moving.moves_max > 0).then(again),
        keys: keys.unwrap_or_else(|| prompt.keys(forwarder, pool, &peek)),
    };
    Ok(Ok(forwarder.forward(pool, errand, admitted).await?))
}

/// A stream's request, as far as it is needed to go on with it elsewhere. Its hints are no part of its body any more.
struct Onward {
    app: Arc<App>,
    forwarder: Arc<Forwarder>,
    route: Route,
    headers: HeaderMap,
    request_id: String,
    session: Option<u64>,
    session_end: bool,
}

impl Onward {
    fn again(self) -> Again {
        let onward = Arc::new(self);
        Arc::new(move |asked| {
            let onward = onward.clone();
            Box::pin(async move { onward.ask(asked).await })
        })
    }

    async fn ask(&self, asked: Asked) -> Result<Moved, Trouble> {
        let Asked { body, failed, mut waiting } = asked;
        let peek = serde_json::from_slice::<Peek<'_>>(&body);
        let peek = peek.map_err(|error| Trouble::Garbage(error.to_string()))?;
        let model = peek.model.as_deref().unwrap_or_default();
        let mut prompt = None;
        loop {
            let table = self.forwarder.roster.table();
            let pool = table.pool(model).filter(|pool| Forwarder::may_go_on(pool, &failed));
            let moved = match pool {
                None => Err(Trouble::NoBackend),
                Some(pool) => {
                    // Once, and not before there is somebody.
                    let prompt = match &prompt {
                        Some(prompt) => prompt,
                        None => prompt.insert(PromptOf::new(&self.app, pool, &peek).await),
                    };
                    let errand = Errand {
                        path: self.route.path(),
                        headers: &self.headers,
                        body: body.clone(),
                        request_id: &self.request_id,
                        model: &pool.card.id,
                        stream: true,
                        session: self.session,
                        session_end: self.session_end,
                        again: None,
                        keys: prompt.keys(&self.forwarder, pool, &peek),
                    };
                    self.forwarder.go_on(pool, errand, &failed).await
                }
            };
            match moved {
                Err(trouble) if waiting.waits(&trouble).await => {}
                moved => return moved,
            }
        }
    }
}

/// A request's prompt, to be looked up.
struct PromptOf {
    scope: Scope,
    text_scope: Scope,
    tokens: Option<Tokens>,
    is_salted: bool,
}

impl PromptOf {
    async fn new(app: &App, pool: &Pool, peek: &Peek<'_>) -> Self {
        let salt = peek.cache_salt.as_deref().unwrap_or_default().as_bytes();
        let is_countable = match app.keys {
            KeyKind::Text => false,
            KeyKind::Tokens => true,
            KeyKind::Auto => {
                let mut backends = pool.backends().iter();
                backends.any(|backend| backend.is_followed() || backend.spec.store.is_some())
            }
        };
        let tokens = match is_countable {
            true => tokens(app, peek.messages, peek.tools, peek.prompt).await,
            false => None,
        };
        // Prompts begin with their tools.
        let tools = peek.tools.map_or("", RawValue::get).as_bytes();
        Self {
            scope: Scope::new(&pool.card.name, salt),
            text_scope: Scope::new(&pool.card.name, &[salt, tools].concat()),
            tokens,
            is_salted: !salt.is_empty(),
        }
    }

    fn keys(&self, forwarder: &Forwarder, pool: &Pool, peek: &Peek<'_>) -> Keys {
        let prompt = Prompt {
            scope: &self.scope,
            text: peek.text(),
            text_scope: &self.text_scope,
            tokens: self.tokens.as_ref().map(|tokens| tokens.tokens.as_slice()),
            is_sure: self.tokens.as_ref().is_some_and(|tokens| tokens.is_sure),
            is_salted: self.is_salted,
        };
        Keys::gather(&forwarder.directory, &forwarder.stores, pool, &prompt)
    }
}
