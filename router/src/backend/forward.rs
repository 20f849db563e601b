//! One request's way to an engine's server and back.
//!
//! # Overview
//! ```text
//! body ─► peek ─► place ─► send ─┬─ answer at once: read whole, checked, passed on
//!           ▲                    ├─ stream: first piece awaited, then passed on as it comes
//!           └──── another one ───┴─ trouble, and nothing was sent to the client yet
//! ```
//! The body goes on as it came, byte for byte; hints to the router do not, and [`pair`](super::pair) adds a field. As long as the client has seen nothing, trouble with one
//! server means another one, [`ATTEMPTS`] at most; a refusal (4xx) is the engine's answer and passed on.
//!
//! # Cancellation
//! Dropping the future, or the answer's body, closes the connection to the server, which cancels the work
//! there.

use std::{
    sync::{Arc, atomic::AtomicUsize},
    time::{Duration, Instant},
};

use axum::{
    body::{Body, Bytes},
    http::{
        HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode,
        header::{
            ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, SERVER, TE, TRAILER,
            TRANSFER_ENCODING, UPGRADE, USER_AGENT,
        },
    },
};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use kelvin_proto::trace;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub(crate) use super::trouble::Trouble;
use super::{
    client::{Client, why},
    keys::Keys,
    member::{Backend, Call},
    onward::{self, Again, Failed, Moved, Mover, Moving},
    pool::Pool,
    reader::Read,
    roster::Roster,
    sessions::Sessions,
    stream::Watched,
    usage::Usage,
};
use crate::{
    cost::PrefillPolicy,
    directory::Directory,
    feeds::Stores,
    metrics::Metrics,
    openai::Admitted,
    page::{Placed, Served},
};

/// Where embeddings are asked for.
pub(crate) const EMBEDDINGS: &str = "/v1/embeddings";
/// Servers that are tried for one request.
pub(super) const ATTEMPTS: usize = 3;
/// Most bytes of an answer that comes at once.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Headers of a request that go on to the engine.
const FORWARDED: [HeaderName; 6] = [
    CONTENT_TYPE,
    ACCEPT,
    AUTHORIZATION,
    USER_AGENT,
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
];
/// Headers of an answer that are about the connection it came on.
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    CONTENT_LENGTH,
    TRANSFER_ENCODING,
    UPGRADE,
    TE,
    TRAILER,
    SERVER,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-authenticate"),
];

/// A request to pass on.
pub(crate) struct Errand<'a> {
    /// `/v1/chat/completions` and the like.
    pub(crate) path: &'static str,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) request_id: &'a str,
    /// As it is called in metrics.
    pub(crate) model: &'a str,
    pub(crate) stream: bool,
    pub(crate) keys: Keys,
    /// Which conversation it is of, if it says so.
    pub(crate) session: Option<u64>,
    /// Whether that ends with this answer.
    pub(crate) session_end: bool,
    /// How another server is asked to go on with a stream that broke off; `None` of one that does so already.
    pub(crate) again: Option<Again>,
}

/// An answer's body.
pub(super) enum Answered {
    Whole(Bytes),
    Stream(Box<Watched>),
}

/// Waits for answers this long, and for clients that read them.
#[derive(Debug, Clone)]
pub(crate) struct Patience {
    pub(crate) first_token: Duration,
    pub(crate) token: Duration,
    pub(crate) client: Duration,
}

/// Brings requests to engines' servers.
pub(crate) struct Forwarder {
    pub(crate) roster: Arc<Roster>,
    pub(crate) directory: Arc<Directory>,
    /// Those that backends load from.
    pub(crate) stores: Arc<Stores>,
    /// What the directory counts time from.
    pub(crate) started: Instant,
    pub(crate) client: Client,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) patience: Patience,
    pub(crate) rng: Mutex<SmallRng>,
    pub(crate) sessions: Sessions,
    /// Time without a stream's first piece after which a second server is asked; never without.
    pub(crate) hedge_after: Option<Duration>,
    /// Those under way.
    pub(crate) hedges: AtomicUsize,
    /// Where prompts are computed, of requests that go to decode backends.
    pub(crate) policy: PrefillPolicy,
    /// How streams go on elsewhere.
    pub(crate) moving: Moving,
    pub(crate) ending: CancellationToken,
}

impl Forwarder {
    /// The engine's answer to `errand`, from one of the servers in `pool`.
    /// It is in work until its body was read.
    pub(crate) async fn forward(
        &self,
        pool: &Pool,
        errand: Errand<'_>,
        admitted: Admitted,
    ) -> Result<Response<Body>, Trouble> {
        let forwarded = tokio::select! {
            biased;
            () = self.ending.cancelled() => Err(Trouble::ShuttingDown),
            answer = self.attempts(pool, &errand, Vec::new()) => answer,
        };
        // An attempt has counted its own.
        let answer = forwarded.inspect_err(|trouble| {
            if !trouble.is_fault() {
                self.metrics.error(trouble.kind());
            }
        })?;
        Ok(answer.map(|body| match body {
            Answered::Whole(bytes) => Body::from(bytes),
            Answered::Stream(watched) => Body::new(Read::new(watched.keep(admitted), self.patience.client)),
        }))
    }

    /// Whether anybody can be asked to go on with a stream that these failed.
    pub(crate) fn may_go_on(pool: &Pool, failed: &[Failed]) -> bool {
        let excluded = onward::excluded(pool, failed);
        let may = |backend: &Arc<Backend>| backend.role().answers() && !excluded.contains(&backend.id);
        pool.backends().iter().any(|backend| may(backend) && backend.is_open())
    }

    /// The stream of another server than those that failed it, for one that broke off.
    pub(crate) async fn go_on(
        &self,
        pool: &Pool,
        errand: Errand<'_>,
        failed: &[Failed],
    ) -> Result<Moved, Trouble> {
        let answer = self.attempts(pool, &errand, onward::excluded(pool, failed)).await?;
        let status = answer.status();
        match answer.into_body() {
            Answered::Stream(watched) => Ok(Moved { watched, tokens: errand.keys.tokens() }),
            Answered::Whole(_) if status == StatusCode::TOO_MANY_REQUESTS => Err(Trouble::Busy),
            // It understands the request in another way than the first one.
            Answered::Whole(_) => Err(Trouble::Failed(status)),
        }
    }

    /// One server's answer to `body`, its first part at least.
    pub(super) async fn ask(
        &self,
        call: Call,
        errand: &Errand<'_>,
        body: Bytes,
    ) -> Result<Response<Answered>, Trouble> {
        let placed = Placed {
            model: Some(errand.model.to_owned()),
            worker: Some(call.backend().spec.url.clone()),
            mode: Some("backend"),
            prompt_tokens: errand.keys.tokens(),
            matched_tokens: call.hit_expected(),
            ..Placed::default()
        };
        let served =
            |has_first_token| Served::begin(&self.metrics, errand.request_id, placed, has_first_token);
        let request = request(call.backend(), errand, body)?;
        let patience = self.patience.first_token;
        let head = timeout(patience, self.client.request(request)).await;
        let head = head.map_err(|_| Trouble::Stalled(patience))?;
        let (head, body) = head.map_err(|error| Trouble::Unreachable(why(&error)))?.into_parts();
        if head.status.is_server_error() {
            return Err(Trouble::Failed(head.status));
        }
        let content_type =
            head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let body = if head.status.is_success() && errand.stream {
            if !content_type.starts_with("text/event-stream") {
                return Err(Trouble::Garbage(format!("a stream was asked for, `{content_type}` came")));
            }
            let watched = self.stream(call, body, errand.model, served).await?;
            let again = errand.again.clone();
            let mover = again.and_then(|again| Mover::new(&self.moving, errand.body.clone(), again));
            Answered::Stream(Box::new(watched.movable(mover)))
        } else {
            self.whole(call, body, head.status, errand.model, served).await?
        };
        let mut answer = Response::new(body);
        *answer.status_mut() = head.status;
        for (name, value) in &head.headers {
            if !HOP_BY_HOP.contains(name) {
                answer.headers_mut().append(name.clone(), value.clone());
            }
        }
        Ok(answer)
    }

    /// A stream once its first piece is there: until then it can still come from another server.
    async fn stream(
        &self,
        mut call: Call,
        mut body: Incoming,
        model: &str,
        served: impl FnOnce(bool) -> Served,
    ) -> Result<Watched, Trouble> {
        let patience = self.patience.first_token;
        let first = loop {
            let left = patience.saturating_sub(call.elapsed());
            match timeout(left, body.frame()).await {
                Err(_) => return Err(Trouble::Stalled(patience)),
                Ok(None) => return Err(Trouble::Cut("it ended before the first token".into())),
                Ok(Some(Err(error))) => return Err(Trouble::Cut(why(&error))),
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => break data,
                    _ => {}
                },
            }
        };
        call.first_token();
        self.metrics.backend_first_token(call.elapsed());
        let ending = self.ending.clone().cancelled_owned();
        Ok(Watched::new(body, first, call, self.patience.token, ending, model, served(true)))
    }

    async fn whole(
        &self,
        mut call: Call,
        body: Incoming,
        status: StatusCode,
        model: &str,
        served: impl FnOnce(bool) -> Served,
    ) -> Result<Answered, Trouble> {
        let patience = self.patience.first_token;
        let left = patience.saturating_sub(call.elapsed());
        let body = timeout(left, Limited::new(body, ANSWER_BYTES_MAX).collect()).await;
        let body = body.map_err(|_| Trouble::Stalled(patience))?;
        let body = body.map_err(|error| Trouble::Cut(why(&*error)))?.to_bytes();
        if status.is_success() {
            let usage = Usage::of_answer(&body).map_err(|error| Trouble::Garbage(error.to_string()))?;
            call.whole(usage.as_ref());
            let mut served = served(false);
            if let Some(usage) = usage {
                served.used(usage.tokens());
                usage.count(&self.metrics, &call, model);
            }
        }
        // Not before: a head says nothing of what comes behind it.
        call.backend().succeeded();
        Ok(Answered::Whole(body))
    }
}

/// Copies of those headers of a request that go on to an engine.
pub(crate) fn forwarded(headers: &HeaderMap) -> HeaderMap {
    let copied = |name: &HeaderName| {
        // A clone would keep all that was read with it.
        let value = HeaderValue::from_bytes(headers.get(name)?.as_bytes()).ok()?;
        Some((name.clone(), value))
    };
    FORWARDED.iter().filter_map(copied).collect()
}

/// `body` as a request of `errand`'s.
pub(super) fn request(backend: &Backend, errand: &Errand<'_>, body: Bytes) -> Result<Request<Body>, Trouble> {
    let mut request = Request::post(format!("{}{}", backend.spec.url, errand.path))
        .header(HOST, backend.authority.as_str())
        .header("x-request-id", errand.request_id)
        .body(Body::from(body))
        .map_err(|error| Trouble::Garbage(error.to_string()))?;
    for name in &FORWARDED {
        if let Some(value) = errand.headers.get(name) {
            request.headers_mut().insert(name.clone(), value.clone());
        }
    }
    if let (false, Some(key)) = (request.headers().contains_key(AUTHORIZATION), backend.bearer()) {
        request.headers_mut().insert(AUTHORIZATION, key);
    }
    // An engine that exports spans as well puts them below ours.
    if let Some(context) = trace::current()
        && let Ok(value) = context.to_string().parse()
    {
        request.headers_mut().insert(trace::TRACEPARENT, value);
    }
    Ok(request)
}
