//! Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use kelvin_proto::Reason;
use serde::Serialize;

use crate::{admission::Refused, backend::Trouble, scheduler::Failure};

/// Seconds after which a client may try again what is refused for now.
const RETRY_AFTER_S: u64 = 1;

/// What goes wrong with a request, as its sender sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    message: String,
    /// Seconds after which a client may try again.
    retry_s: Option<u64>,
}

#[derive(Serialize)]
struct Envelope<'a> {
    error: Body<'a>,
}

#[derive(Serialize)]
struct Body<'a> {
    message: &'a str,
    r#type: &'a str,
    param: Option<&'a str>,
    code: Option<&'a str>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, code: None, param: None, message: message.into(), retry_s: None }
    }

    /// 400: the request as a whole.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// 400: one parameter of it.
    pub(crate) fn param(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::bad_request(message) }
    }

    /// 400: chat with a model that has no template for it.
    pub(crate) fn no_template() -> Self {
        Self::bad_request("This model has no chat template; use /v1/completions.")
    }

    /// 400: what this version does not do.
    pub(crate) fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: Some("unsupported_parameter"), ..Self::param(param, message) }
    }

    /// 400: longer than the model's context.
    pub(crate) fn too_long(param: &str, message: impl Into<String>) -> Self {
        Self { code: Some("context_length_exceeded"), ..Self::param(param, message) }
    }

    /// 404: no such model.
    pub(crate) fn unknown_model(model: &str) -> Self {
        Self {
            code: Some("model_not_found"),
            param: Some("model".into()),
            ..Self::new(
                StatusCode::NOT_FOUND,
                "invalid_request_error",
                format!("The model `{model}` does not exist here."),
            )
        }
    }

    /// 404: no such route.
    pub(crate) fn unknown_route(method: &str, path: &str) -> Self {
        Self {
            code: Some("unknown_url"),
            ..Self::new(
                StatusCode::NOT_FOUND,
                "invalid_request_error",
                format!("Unknown request URL: {method} {path}."),
            )
        }
    }

    /// 405.
    pub(crate) fn wrong_method(method: &str, path: &str) -> Self {
        Self {
            code: Some("method_not_allowed"),
            ..Self::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "invalid_request_error",
                format!("{method} is not allowed on {path}."),
            )
        }
    }

    /// 408.
    pub(crate) fn slow_body() -> Self {
        let message = "The request's body did not come in time.";
        Self::new(StatusCode::REQUEST_TIMEOUT, "invalid_request_error", message)
    }

    /// 413.
    pub(crate) fn body_too_large(bytes_max: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "invalid_request_error",
            format!("The request's body has more than {bytes_max} bytes."),
        )
    }

    /// 500: a bug here.
    pub(crate) fn internal() -> Self {
        let message = "The router failed; its log says more.";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    fn server(status: StatusCode, code: &'static str, failure: &Failure) -> Self {
        let retry_s = matches!(status.as_u16(), 503 | 529).then_some(RETRY_AFTER_S);
        Self { code: Some(code), retry_s, ..Self::new(status, "server_error", format!("{failure}")) }
    }

    /// What a failed start is; a grammar that workers refuse is named by the parameter it comes from.
    pub(crate) fn of_job(failure: Failure, grammar_param: &str) -> Self {
        let of_grammar = matches!(&failure, Failure::Refused { refusal, .. }
            if refusal.reason == Reason::InvalidArgument && refusal.message.starts_with("grammar: "));
        let error = Self::from(failure);
        if of_grammar { Self { param: Some(grammar_param.into()), ..error } } else { error }
    }

    /// The body as JSON, for an answer or for an event of a stream.
    pub(crate) fn to_json(&self) -> String {
        // Serializing strings cannot fail.
        serde_json::to_string(&self.envelope()).unwrap_or_default()
    }

    fn envelope(&self) -> Envelope<'_> {
        Envelope {
            error: Body {
                message: &self.message,
                r#type: self.kind,
                param: self.param.as_deref(),
                code: self.code,
            },
        }
    }
}

/// 529: no code of HTTP's own; what clients know as "the service has no room, and the request is not to blame".
fn overloaded() -> StatusCode {
    StatusCode::from_u16(529).unwrap_or(StatusCode::SERVICE_UNAVAILABLE)
}

impl From<Refused> for ApiError {
    /// 429: the request's turn does not come.
    fn from(refused: Refused) -> Self {
        let message = format!("The request is not taken: {refused}; try again later.");
        Self {
            code: Some("rate_limit_exceeded"),
            retry_s: Some(refused.retry_s()),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message)
        }
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        use StatusCode as S;
        match &failure {
            Failure::NoWorker => Self::server(S::SERVICE_UNAVAILABLE, "no_worker", &failure),
            Failure::ShuttingDown => Self::server(S::SERVICE_UNAVAILABLE, "shutting_down", &failure),
            Failure::Lost { .. } => Self::server(S::BAD_GATEWAY, "worker_lost", &failure),
            Failure::Stalled { .. } => Self::server(S::GATEWAY_TIMEOUT, "worker_stalled", &failure),
            Failure::Protocol { .. } => Self::server(S::BAD_GATEWAY, "worker_protocol", &failure),
            Failure::Refused { refusal, .. } => match refusal.reason {
                Reason::InvalidArgument => Self::bad_request(&refusal.message),
                Reason::LimitExceeded => {
                    Self { code: Some("context_length_exceeded"), ..Self::bad_request(&refusal.message) }
                }
                Reason::Exhausted => Self::server(overloaded(), "overloaded", &failure),
                Reason::EngineFailed => Self::server(S::BAD_GATEWAY, "engine_failed", &failure),
                _ if failure.is_gone() => Self::server(S::BAD_GATEWAY, "worker_lost", &failure),
                _ => Self::server(S::BAD_GATEWAY, "worker_refused", &failure),
            },
        }
    }
}

impl From<Trouble> for ApiError {
    fn from(trouble: Trouble) -> Self {
        use StatusCode as S;
        let of = |status: StatusCode, code: &'static str| {
            let retry_s = matches!(status.as_u16(), 503 | 529).then_some(RETRY_AFTER_S);
            Self { code: Some(code), retry_s, ..Self::new(status, "server_error", format!("{trouble}")) }
        };
        match trouble {
            Trouble::NoBackend => of(S::SERVICE_UNAVAILABLE, "no_backend"),
            Trouble::Busy => of(overloaded(), "overloaded"),
            Trouble::ShuttingDown => of(S::SERVICE_UNAVAILABLE, "shutting_down"),
            Trouble::Unreachable(_) => of(S::BAD_GATEWAY, "backend_unreachable"),
            Trouble::Failed(_) => of(S::BAD_GATEWAY, "backend_failed"),
            Trouble::Garbage(_) => of(S::BAD_GATEWAY, "backend_garbage"),
            Trouble::Cut(_) => of(S::BAD_GATEWAY, "backend_cut"),
            Trouble::Stalled(_) => of(S::GATEWAY_TIMEOUT, "backend_stalled"),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.envelope())).into_response();
        if let Some(retry_s) = self.retry_s {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(retry_s));
        }
        response
    }
}
