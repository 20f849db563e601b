//! `Prefetch`, `Pin`, `Unpin`, `Evict`, `EndSession`, `Explain`: what arrives is checked, the store is asked.

use kelvin_proto::{Reason, Refusal, kv::v1};

use crate::store::Tenant;

fn away() -> Refusal {
    Refusal::new(Reason::Unavailable, "this store does not offer the call")
}

pub(super) fn prefetch(_: &Tenant, _: v1::PrefetchRequest) -> Result<v1::PrefetchResponse, Refusal> {
    Err(away())
}

pub(super) fn pin(_: &Tenant, _: v1::PinRequest) -> Result<v1::PinResponse, Refusal> {
    Err(away())
}

pub(super) fn unpin(_: &Tenant, _: v1::UnpinRequest) -> Result<v1::UnpinResponse, Refusal> {
    Err(away())
}

pub(super) fn evict(_: &Tenant, _: v1::EvictRequest) -> Result<v1::EvictResponse, Refusal> {
    Err(away())
}

pub(super) fn end_session(_: &Tenant, _: v1::EndSessionRequest) -> Result<v1::EndSessionResponse, Refusal> {
    Err(away())
}

pub(super) fn explain(_: &Tenant, _: v1::ExplainRequest) -> Result<v1::ExplainResponse, Refusal> {
    Err(away())
}
