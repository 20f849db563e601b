//! A request's body: read within its limits, parsed, and its errors named.

use std::time::Duration;

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, header::CONTENT_TYPE},
};
use futures::StreamExt;
use serde::Deserialize;
use serde_json::error::Category;
use tokio::time::timeout;

use super::error::ApiError;

/// How much more than the limit is read and thrown away, so that the sender gets to read the answer
/// instead of a connection reset.
const DISCARD_FACTOR: usize = 4;

/// Reads a whole body of at most `bytes_max` bytes.
pub(super) async fn read(body: Body, bytes_max: usize, within: Duration) -> Result<Bytes, ApiError> {
    timeout(within, collect(body, bytes_max)).await.map_err(|_| ApiError::slow_body())?
}

async fn collect(body: Body, bytes_max: usize) -> Result<Bytes, ApiError> {
    let mut stream = body.into_data_stream();
    let mut whole = Vec::new();
    let mut bytes = 0;
    while let Some(part) = stream.next().await {
        let part =
            part.map_err(|error| ApiError::bad_request(format!("The request's body broke off: {error}.")))?;
        bytes += part.len();
        if bytes <= bytes_max {
            whole.extend_from_slice(&part);
        } else if bytes > bytes_max.saturating_mul(DISCARD_FACTOR) {
            break;
        }
    }
    if bytes > bytes_max { Err(ApiError::body_too_large(bytes_max)) } else { Ok(whole.into()) }
}

/// Only JSON is taken, said so: a page in a browser cannot send that to this endpoint unasked.
pub(super) fn expect_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let media = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = media.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(ApiError::bad_request("The header `Content-Type: application/json` is missing."))
}

/// Parses JSON; an error of type names the parameter.
pub(super) fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, ApiError> {
    // An array would be read as the fields in order.
    if bytes.trim_ascii_start().first() == Some(&b'[') {
        return Err(ApiError::bad_request("The body must be a JSON object."));
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let parsed = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        match inner.classify() {
            Category::Data if path != "." => {
                ApiError::param(path.clone(), format!("Invalid value for `{path}`: {inner}."))
            }
            Category::Data => ApiError::bad_request(format!("The body is not a request: {inner}.")),
            _ => ApiError::bad_request(format!("The body is not valid JSON: {inner}.")),
        }
    })?;
    reader.end().map_err(|error| ApiError::bad_request(format!("The body is not valid JSON: {error}.")))?;
    Ok(parsed)
}
