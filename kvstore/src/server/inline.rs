//! `Read` and `Write`: payload inside gRPC, for clients that cannot map the memory.
//!
//! Here, and only here, does the store copy payload: once, between a slot and the message, through the
//! tier's [`Device`].

use std::{ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use kelvin_kernels::Checksum;
use kelvin_proto::{Reason, Refusal, kv::v1};
use kelvin_tiering::Device;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::store::{
    MutableBlock, Tenant,
    meters::{self, Carrier, Direction},
};

/// Payload a frame: large enough that a frame's cost vanishes, well below the message limit.
const FRAME_BYTES: usize = 1 << 20;
/// Frames made ahead of the reader.
const FRAMES_AHEAD: usize = 2;
/// A stream that makes no progress for so long is broken off: it keeps a block from being evicted.
const STALL: Duration = Duration::from_secs(10);

/// Frames of that range of the leased blocks, in order. A block cannot go while it is being sent.
pub(super) fn read(
    tenant: Arc<Tenant>,
    session: u64,
    leases: Vec<u64>,
    range: Range<usize>,
) -> BoxStream<'static, Result<v1::ReadResponse, Status>> {
    let (frames, receiver) = tokio::sync::mpsc::channel(FRAMES_AHEAD);
    tokio::spawn(async move {
        for lease in leases {
            let Some(block) = tenant.leased(session, lease) else {
                let status = v1::BlockStatus::StaleLease.into();
                let frame = v1::ReadResponse { lease_id: lease, status, ..Default::default() };
                if frames.send_timeout(Ok(frame), STALL).await.is_err() {
                    return;
                }
                continue;
            };
            let mut block = block;
            let began = meters::begin();
            for offset in range.clone().step_by(FRAME_BYTES) {
                let data = vec![0; FRAME_BYTES.min(range.end - offset)];
                let (back, data, result) = tenant.pool().read(block, offset as u64, data).await;
                block = back;
                let frame = match result {
                    Ok(()) => {
                        let counters = tenant.counters();
                        counters.grpc_read_bytes.add(data.len() as u64);
                        counters.copied_bytes.add(data.len() as u64);
                        Ok(v1::ReadResponse {
                            lease_id: lease,
                            offset: offset as u64,
                            data: Bytes::from(data),
                            status: v1::BlockStatus::Leased.into(),
                        })
                    }
                    Err(error) => Err(Refusal::new(Reason::Internal, error.to_string()).into()),
                };
                if frames.send_timeout(frame, STALL).await.is_err() {
                    return;
                }
            }
            tenant.meters().transfers(Carrier::Grpc, Direction::Read).note(range.len() as u64, began);
        }
    });
    ReceiverStream::new(receiver).boxed()
}

/// The one reservation that a `Write` stream fills. Dropping it puts the block back, so that a stream
/// that breaks off leaves the reservation as it was.
struct Filling {
    tenant: Arc<Tenant>,
    session: u64,
    lease: u64,
    block: Option<MutableBlock>,
    offset: u64,
}

impl Drop for Filling {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            self.tenant.put_write(self.session, self.lease, block);
        }
    }
}

/// Fills and commits one reservation from a stream of frames.
pub(super) async fn write(
    tenant: Arc<Tenant>,
    mut frames: Streaming<v1::WriteRequest>,
) -> Result<v1::BlockStatus, Status> {
    let first = next(&mut frames).await?.ok_or_else(|| Refusal::invalid("the stream has no frame"))?;
    let (session, lease, began) = (first.session_id, first.lease_id, meters::begin());
    tenant.namespace_of(session)?;
    let Some(block) = tenant.take_write(session, lease) else {
        return Ok(v1::BlockStatus::StaleLease);
    };
    let mut filling = Filling { tenant: tenant.clone(), session, lease, block: Some(block), offset: 0 };
    let mut frame = first;
    loop {
        if let Some(checksum) = append(&mut filling, frame).await? {
            let bytes = filling.offset;
            drop(filling);
            let statuses = tenant.commit(session, &[(lease, checksum)])?;
            tenant.meters().transfers(Carrier::Grpc, Direction::Write).note(bytes, began);
            return Ok(statuses[0]);
        }
        frame = next(&mut frames)
            .await?
            .ok_or_else(|| Refusal::invalid("the stream ended before a frame with a checksum"))?;
    }
}

async fn next(frames: &mut Streaming<v1::WriteRequest>) -> Result<Option<v1::WriteRequest>, Status> {
    let stalled = |_| Refusal::new(Reason::Unavailable, "no frame came for 10 s: the write was given up");
    tokio::time::timeout(STALL, frames.message()).await.map_err(stalled)?
}

/// Writes one frame; the checksum when it was the last.
async fn append(filling: &mut Filling, frame: v1::WriteRequest) -> Result<Option<Checksum>, Refusal> {
    let block = filling.block.take().expect("put back after every frame");
    let (bytes, block_bytes) = (frame.data.len() as u64, block.slot.len());
    let MutableBlock { key, parent, slot, keep, .. } = block;
    let (slot, _, result) = filling.tenant.pool().write(slot, filling.offset, frame.data).await;
    filling.block = Some(MutableBlock { key, parent, slot, keep, hashed: None });
    result.map_err(|error| Refusal::invalid(error.to_string()))?;
    filling.offset += bytes;
    let counters = filling.tenant.counters();
    counters.grpc_written_bytes.add(bytes);
    counters.copied_bytes.add(bytes);
    let Some(checksum) = frame.checksum else { return Ok(None) };
    if filling.offset != block_bytes {
        return Err(Refusal::invalid(format!(
            "{} bytes were written to a block of {block_bytes}",
            filling.offset
        )));
    }
    Ok(Some(Checksum(checksum)))
}
