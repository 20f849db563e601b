//! A remote prefill that goes on while the decode worker already waits on its blocks.

use std::{sync::Arc, time::Duration};

use kelvin_proto::worker::v1::PrefillRequest;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::{Failure, Job};
use crate::{
    fleet::{Flight, Worker},
    metrics::Metrics,
    prefix::Made,
};

/// An open prefill; dropping it cancels what is left of it.
pub(super) struct Prefill {
    _drain: AbortOnDropHandle<()>,
}

impl Prefill {
    /// Opens the stream and waits until the blocks are reserved; then reads it in the background. What
    /// fails later only costs the decode worker the evaluation of the missing blocks. From then on until its end, `made`
    /// says what is in the making.
    pub(super) async fn open(
        worker: &Arc<Worker>,
        job: &Job,
        uncached_tokens: u64,
        made: impl FnOnce() -> Option<Made>,
        reserve_timeout: Duration,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, Failure> {
        let flight = Flight::begin(worker, uncached_tokens);
        let request = PrefillRequest {
            request_id: job.request_id.clone(),
            model: job.model.clone(),
            tokens: job.tokens.clone(),
            extra: job.extra.clone().into(),
        };
        let mut client = worker.client();
        let opening = async {
            let mut stream = client.prefill(request).await?.into_inner();
            let first = stream.message().await?;
            Ok::<_, tonic::Status>((stream, first))
        };
        let mut stream = match timeout(reserve_timeout, opening).await {
            Ok(Ok((stream, Some(_)))) => stream,
            Ok(Ok((_, None))) => {
                return Err(lost(worker, "its stream ended before the first message"));
            }
            Ok(Err(status)) => {
                let failure = Failure::of(worker.name(), &status);
                if let Failure::Lost { why, .. } = &failure {
                    worker.lost(why);
                }
                return Err(failure);
            }
            Err(_) => return Err(Failure::Stalled { worker: worker.name(), after: reserve_timeout }),
        };
        let made = made();
        let (worker, metrics, request_id) = (worker.clone(), metrics.clone(), job.request_id.clone());
        let drain = tokio::spawn(async move {
            loop {
                match stream.message().await {
                    Ok(Some(progress)) if progress.done => break,
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(status) => {
                        let failure = Failure::of(worker.name(), &status);
                        if let Failure::Lost { why, .. } = &failure {
                            worker.lost(why);
                        }
                        metrics.error("prefill_failed");
                        tracing::warn!(request = request_id, %failure, "a prefill failed on its way");
                        break;
                    }
                }
            }
            drop((made, flight));
        });
        Ok(Self { _drain: AbortOnDropHandle::new(drain) })
    }
}

fn lost(worker: &Arc<Worker>, why: &str) -> Failure {
    worker.lost(why);
    Failure::Lost { worker: worker.name(), why: why.to_owned() }
}
