//! `Inspect`, `Verify`, `Collect`: the operator's calls on the store as a whole.

use std::sync::Arc;

use futures::stream::BoxStream;
use kelvin_proto::{Reason, Refusal, kv::v1};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::store::{Store, Tenant};

fn away() -> Refusal {
    Refusal::new(Reason::Unavailable, "this store has no tier below memory: start it with --nvme or --object")
}

pub(super) async fn inspect(_: &Store, _: &Tenant) -> Result<v1::InspectResponse, Refusal> {
    Err(away())
}

pub(super) fn verify(
    _: Arc<Store>,
    _: &Tenant,
    _: v1::VerifyRequest,
    _: CancellationToken,
) -> Result<BoxStream<'static, Result<v1::VerifyResponse, Status>>, Refusal> {
    Err(away())
}

pub(super) async fn collect(
    _: &Store,
    _: &Tenant,
    _: v1::CollectRequest,
) -> Result<v1::CollectResponse, Refusal> {
    Err(away())
}
