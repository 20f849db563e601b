//! `Prefetch`, `Pin`, `Unpin`, `Evict`, `EndSession`, `Explain`: what arrives is checked, the store is asked,
//! its answer told.
//!
//! A range can be large, and its walk takes the store's time: it is made away from the threads that answer
//! calls.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use kelvin_proto::{Reason, Refusal, kv::v1};
use kelvin_tiering::Tier;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{convert, convert::keys_within_limit};
use crate::{
    SequenceHash,
    index::{HolderSet, TierSet},
    insight,
    store::{Explanation, Namespace, PINS_MAX, Range, Tenant, What},
};

const OWNER_BYTES_MAX: usize = 128;

/// Makes a range verb of the store on a thread that may take its time.
async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Refusal::new(Reason::Internal, error.to_string()))?
}

/// The namespace that a call names by a session or by its id.
fn namespace(tenant: &Tenant, session: u64, id: u64) -> Result<Arc<Namespace>, Refusal> {
    match session {
        0 => tenant.namespace(id),
        session => tenant.namespace_of(session),
    }
}

/// The blocks of a prefix, from its start; at least one.
fn path(
    tenant: &Tenant,
    namespace: &Namespace,
    prefix: Option<v1::Prefix>,
) -> Result<Vec<SequenceHash>, Refusal> {
    let missing = || Refusal::invalid("prefix is missing: give tokens, hashes or last_hash");
    let path = match prefix.and_then(|prefix| prefix.blocks).ok_or_else(missing)? {
        v1::prefix::Blocks::Tokens(tokens) => convert::token_hashes(&tokens, namespace)?,
        v1::prefix::Blocks::Hashes(hashes) => convert::hashes(&hashes.hashes)?,
        v1::prefix::Blocks::LastHash(hash) => tenant.path(namespace, convert::hash(&hash)?)?,
    };
    match path.is_empty() {
        true => Err(Refusal::invalid("the prefix has no whole block: give more tokens, or hashes")),
        false => Ok(path),
    }
}

/// Begins to bring a prefix into memory; who asks does not wait for it.
pub(super) fn prefetch(
    tenant: Arc<Tenant>,
    message: v1::PrefetchRequest,
    prefetches: &Arc<Semaphore>,
    shutdown: &CancellationToken,
) -> Result<v1::PrefetchResponse, Refusal> {
    let namespace = namespace(&tenant, message.session_id, message.namespace_id)?;
    let mut path = path(&tenant, &namespace, message.prefix)?;
    keys_within_limit(path.len())?;
    let held = namespace.index.longest_prefix(&path, None);
    let is_ready = |holders: &TierSet| holders.contains(Tier::Dram as u32);
    let ready = held.iter().filter(|holders| is_ready(holders)).count();
    let mut answer = v1::PrefetchResponse {
        ready_blocks: ready as u64,
        missing_blocks: (path.len() - held.len()) as u64,
        ..Default::default()
    };
    let cold = (held.len() - ready) as u64;
    if cold == 0 {
        return Ok(answer);
    }
    let Ok(permit) = prefetches.clone().try_acquire_owned() else {
        answer.refused_blocks = cold;
        return Ok(answer);
    };
    answer.queued_blocks = cold;
    path.truncate(held.len());
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        let _permit = permit;
        tokio::select! {
            _ = tenant.onboard(&namespace, &path) => {}
            () = shutdown.cancelled() => {}
        }
    });
    Ok(answer)
}

pub(super) async fn pin(tenant: Arc<Tenant>, message: v1::PinRequest) -> Result<v1::PinResponse, Refusal> {
    if message.owner.len() > OWNER_BYTES_MAX {
        return Err(Refusal::invalid(format!("owner has more than {OWNER_BYTES_MAX} bytes")));
    }
    let namespace = namespace(&tenant, message.session_id, message.namespace_id)?;
    let path = path(&tenant, &namespace, message.prefix)?;
    let ttl = (message.ttl_ms > 0).then(|| Duration::from_millis(message.ttl_ms));
    let block_bytes = namespace.spec.block_bytes;
    let pinned = apart(move || tenant.pin(&namespace, &path, message.subtree, ttl, &message.owner)).await?;
    Ok(v1::PinResponse {
        pin_id: pinned.id,
        blocks: pinned.blocks,
        bytes: pinned.blocks * block_bytes,
        missing_blocks: pinned.missing,
    })
}

pub(super) async fn unpin(
    tenant: Arc<Tenant>,
    message: v1::UnpinRequest,
) -> Result<v1::UnpinResponse, Refusal> {
    if message.pin_ids.len() > PINS_MAX as usize {
        let count = message.pin_ids.len();
        let text = format!("{count} pins in one call: the limit is {PINS_MAX}");
        return Err(Refusal::new(Reason::LimitExceeded, text));
    }
    if message.pin_ids.is_empty() && message.owner.is_empty() {
        return Err(Refusal::invalid("no pin is named: give pin_ids or owner"));
    }
    apart(move || {
        let (pins, blocks) = tenant.unpin(&message.pin_ids, &message.owner);
        Ok(v1::UnpinResponse { pins, blocks })
    })
    .await
}

pub(super) async fn evict(
    tenant: Arc<Tenant>,
    message: v1::EvictRequest,
) -> Result<v1::EvictResponse, Refusal> {
    let namespace = namespace(&tenant, message.session_id, message.namespace_id)?;
    let tiers = convert::tiers(&message.tiers)?;
    let range = match message.range {
        Some(v1::evict_request::Range::WholeNamespace(true)) => Range::Whole,
        Some(v1::evict_request::Range::Prefix(prefix)) => {
            let path = path(&tenant, &namespace, Some(prefix))?;
            Range::From(*path.last().expect("a path has a block"))
        }
        Some(v1::evict_request::Range::WholeNamespace(false)) | None => {
            return Err(Refusal::invalid("range is missing: give a prefix, or whole_namespace"));
        }
    };
    let block_bytes = namespace.spec.block_bytes;
    let evicted = apart(move || Ok(tenant.evict_range(&namespace, range, tiers))).await?;
    Ok(v1::EvictResponse {
        evicted_blocks: evicted.blocks,
        evicted_bytes: evicted.copies * block_bytes,
        kept_blocks: evicted.kept,
    })
}

pub(super) async fn end_session(
    tenant: Arc<Tenant>,
    message: v1::EndSessionRequest,
) -> Result<v1::EndSessionResponse, Refusal> {
    let namespace = namespace(&tenant, message.session_id, message.namespace_id)?;
    let path = path(&tenant, &namespace, message.prefix)?;
    let demoted_blocks = apart(move || Ok(tenant.demote(&namespace, &path))).await?;
    Ok(v1::EndSessionResponse { demoted_blocks })
}

pub(super) async fn explain(
    tenant: Arc<Tenant>,
    message: v1::ExplainRequest,
) -> Result<v1::ExplainResponse, Refusal> {
    let namespace = namespace(&tenant, message.session_id, message.namespace_id)?;
    let (hashes, tokens) = match message.blocks {
        Some(v1::explain_request::Blocks::Hashes(hashes)) => (convert::hashes(&hashes.hashes)?, None),
        Some(v1::explain_request::Blocks::Tokens(tokens)) => {
            (convert::token_hashes(&tokens, &namespace)?, Some(tokens))
        }
        None => return Err(Refusal::invalid("blocks are missing: give tokens or hashes")),
    };
    keys_within_limit(hashes.len())?;
    let blocks = apart(move || {
        let tokens = tokens.as_ref().map(|tokens| (&tokens.ids[..], &tokens.extra[..]));
        Ok(tenant.explain(&namespace, &hashes, tokens))
    })
    .await?;
    Ok(v1::ExplainResponse { blocks: blocks.into_iter().map(explanation).collect() })
}

pub(super) fn explanation(block: Explanation) -> v1::BlockExplanation {
    let hash = Bytes::copy_from_slice(&block.hash.to_bytes());
    v1::BlockExplanation { hash, pinned: block.pinned, ..explained(block.what) }
}

/// The same of a block whose hash is known.
pub(super) fn explained(what: What) -> v1::BlockExplanation {
    let mut wire = v1::BlockExplanation::default();
    match what {
        What::Stored(tiers) => {
            wire.set_reason(v1::MissReason::Stored);
            wire.tiers = tiers.into_iter().map(|tier| convert::tier(tier).into()).collect();
        }
        What::Filling => wire.set_reason(v1::MissReason::Filling),
        What::NeverStored => wire.set_reason(v1::MissReason::NeverStored),
        What::Elsewhere(id) => {
            wire.set_reason(v1::MissReason::OtherNamespace);
            wire.other_namespace_id = id;
        }
        What::Gone { reason, tier, age } => {
            wire.set_reason(miss_reason(reason));
            wire.lost_from = tier.map_or(v1::Tier::Unspecified, convert::tier).into();
            wire.age_ms = Some(age.as_millis() as u64);
        }
    }
    wire
}

pub(super) fn miss_reason(reason: insight::Reason) -> v1::MissReason {
    use insight::Reason as R;
    match reason {
        R::NeverStored => v1::MissReason::NeverStored,
        R::Evicted => v1::MissReason::Evicted,
        R::Expired => v1::MissReason::Expired,
        R::Quota => v1::MissReason::Quota,
        R::Quarantined => v1::MissReason::Quarantined,
        R::AdmissionRefused => v1::MissReason::AdmissionRefused,
        R::TooLate => v1::MissReason::TooLate,
        R::Abandoned => v1::MissReason::Abandoned,
        R::Removed => v1::MissReason::Removed,
        R::TierFailed => v1::MissReason::TierFailed,
        R::LostAtRestart => v1::MissReason::LostAtRestart,
        R::OtherNamespace => v1::MissReason::OtherNamespace,
    }
}
