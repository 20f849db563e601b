//! What the page may change: pin, unpin, prefetch, evict a prefix, and name it.

use std::sync::Arc;

use axum::http::StatusCode;
use bytes::Bytes;
use kelvin_proto::{Reason, Refusal, kv::v1};
use serde_json::{Value, json};

use super::{StorePage, hash};
use crate::{page::Failure, server::ranges, store::Tenant};

/// Pins that the page makes are this owner's.
const OWNER: &str = "page";

pub(super) async fn act(page: &StorePage, token: Option<&str>, action: &Value) -> Result<Value, Failure> {
    let text = |name: &str| action[name].as_str().unwrap_or_default();
    let verb = text("action");
    let (namespace, allowed) = target(page, token, text("namespace"))?;
    let tenant = || allowed.clone();
    if verb == "unpin" {
        let request = v1::UnpinRequest { owner: OWNER.into(), ..Default::default() };
        let ended = ranges::unpin(tenant(), request).await.map_err(refused)?;
        return Ok(json!({"pins": ended.pins, "blocks": ended.blocks}));
    }
    let hash = hash(text("hash"))
        .ok_or_else(|| bad("hash is missing: give the 32 hexadecimal digits of a block"))?;
    let last_hash = Bytes::copy_from_slice(&hash.to_bytes());
    let prefix = Some(v1::Prefix { blocks: Some(v1::prefix::Blocks::LastHash(last_hash)) });
    match verb {
        "pin" => {
            if !action["ttl_ms"].is_null() && !action["ttl_ms"].is_u64() {
                return Err(bad(
                    "ttl_ms is a whole number of milliseconds, or is left out for a pin without an end",
                ));
            }
            let request = v1::PinRequest {
                namespace_id: namespace,
                prefix,
                subtree: action["subtree"].as_bool().unwrap_or(false),
                ttl_ms: action["ttl_ms"].as_u64().unwrap_or(0),
                owner: OWNER.into(),
                ..Default::default()
            };
            let pinned = ranges::pin(tenant(), request).await.map_err(refused)?;
            Ok(json!({"pin": pinned.pin_id.to_string(), "blocks": pinned.blocks, "bytes": pinned.bytes}))
        }
        "prefetch" => {
            let request = v1::PrefetchRequest { namespace_id: namespace, prefix, ..Default::default() };
            let begun =
                ranges::prefetch(tenant(), request, &page.prefetches, &page.shutdown).map_err(refused)?;
            Ok(json!({
                "ready_blocks": begun.ready_blocks,
                "queued_blocks": begun.queued_blocks,
                "refused_blocks": begun.refused_blocks,
                "missing_blocks": begun.missing_blocks,
            }))
        }
        "evict" => {
            let range = prefix.map(v1::evict_request::Range::Prefix);
            let request = v1::EvictRequest { namespace_id: namespace, range, ..Default::default() };
            let gone = ranges::evict(tenant(), request).await.map_err(refused)?;
            Ok(json!({
                "blocks": gone.evicted_blocks, "bytes": gone.evicted_bytes, "kept_blocks": gone.kept_blocks,
            }))
        }
        "name" => {
            let (names, name) = (page.names.clone(), text("name").trim().to_owned());
            let given = tokio::task::spawn_blocking(move || names.give(hash, &name).map(|()| name)).await;
            let given =
                given.map_err(|error| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
            Ok(json!({"name": given.map_err(|message| bad(&message))?}))
        }
        _ => Err(bad("action is pin, unpin, prefetch, evict or name")),
    }
}

/// The namespace that is named and its tenant, if the token may change it: the operator's token all, a
/// tenant's its own.
fn target(page: &StorePage, token: Option<&str>, namespace: &str) -> Result<(u64, Arc<Tenant>), Failure> {
    let unauthorized = |message: &str| Failure::new(StatusCode::UNAUTHORIZED, message);
    if !page.takes_tokens() {
        return Err(Failure::new(
            StatusCode::FORBIDDEN,
            "this store was started without a token, so the page may change nothing: start it with \
             KELVIN_ADMIN_TOKEN or --admin-token-file",
        ));
    }
    let token =
        token.ok_or_else(|| unauthorized("a bearer token is wanted: the store's or the operator's"))?;
    let own = page.store.tenant(Some(token)).ok();
    if own.is_none() && !page.admin.as_ref().is_some_and(|admin| admin.is(token)) {
        return Err(unauthorized("the bearer token is neither the store's nor the operator's"));
    }
    let id: u64 =
        namespace.parse().map_err(|_| bad("namespace is missing: give its id as `now` lists it"))?;
    let tenants = page.store.tenants().filter(|tenant| own.is_none_or(|own| own.name() == tenant.name()));
    let mut found = tenants.filter(|tenant| tenant.namespace(id).is_ok());
    let tenant = found.next().ok_or_else(|| {
        Failure::new(StatusCode::NOT_FOUND, format!("namespace {id} is not known, or not this token's"))
    })?;
    Ok((id, tenant.clone()))
}

fn bad(message: &str) -> Failure {
    Failure::new(StatusCode::BAD_REQUEST, message)
}

fn refused(refusal: Refusal) -> Failure {
    let status = match refusal.reason {
        Reason::UnknownBlock => StatusCode::NOT_FOUND,
        Reason::Exhausted | Reason::LimitExceeded => StatusCode::CONFLICT,
        Reason::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::BAD_REQUEST,
    };
    Failure::new(status, refusal.message)
}
