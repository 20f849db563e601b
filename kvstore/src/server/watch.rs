//! `Watch`: what is there, then what changes, without a hole between.
//!
//! The live cursor is read before the snapshot is taken, and the stream goes on from it: an event
//! may repeat what the snapshot had, but none is missed. A reader that lagged gets the count of what it lost
//! and a new snapshot.

use std::sync::Arc;

use futures::{StreamExt, stream::BoxStream};
use kelvin_proto::kv::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::convert;
use crate::{
    index::HolderSet,
    store::{Event, EventKind, Namespace, tiers_of},
};

const PAGE_EVENTS: usize = 1024;
/// Messages made ahead of the reader.
const PAGES_AHEAD: usize = 4;

type Sender = mpsc::Sender<Result<v1::WatchResponse, Status>>;

/// The stream from `cursor` on, or from a snapshot.
pub(super) fn stream(
    namespace: Arc<Namespace>,
    cursor: Option<u64>,
    incarnation: u64,
    describe: bool,
    shutdown: CancellationToken,
) -> BoxStream<'static, Result<v1::WatchResponse, Status>> {
    let (sender, receiver) = mpsc::channel(PAGES_AHEAD);
    tokio::spawn(async move {
        let gone = sender.clone();
        tokio::select! {
            () = gone.closed() => {}
            () = shutdown.cancelled() => {}
            _ = follow(&namespace, cursor, incarnation, describe, &sender) => {}
        }
    });
    ReceiverStream::new(receiver).boxed()
}

/// `None` when the reader is gone.
async fn follow(
    namespace: &Namespace,
    cursor: Option<u64>,
    incarnation: u64,
    describe: bool,
    out: &Sender,
) -> Option<()> {
    let mut end = namespace.events.subscribe();
    let mut cursor = match cursor {
        Some(cursor) => cursor,
        None => snapshot(namespace, incarnation, 0, describe, out).await?,
    };
    loop {
        end.borrow_and_update();
        match namespace.events.read(cursor, PAGE_EVENTS) {
            Some(page) if page.lost == 0 && page.events.is_empty() => end.changed().await.ok()?,
            Some(page) if page.lost == 0 => {
                cursor = page.next;
                let events = page.events.into_iter().map(convert::event).collect();
                let message = v1::WatchResponse { cursor, incarnation, events, ..Default::default() };
                out.send(Ok(message)).await.ok()?;
            }
            lagged => {
                let lost = lagged.map_or(0, |page| page.lost);
                cursor = snapshot(namespace, incarnation, lost, describe, out).await?;
            }
        }
    }
}

/// Sends what is there; the cursor from which to go on.
async fn snapshot(
    namespace: &Namespace,
    incarnation: u64,
    lost: u64,
    describe: bool,
    out: &Sender,
) -> Option<u64> {
    let cursor = namespace.events.end();
    let mut blocks = namespace.index.snapshot();
    blocks.retain(|block| !block.holders.is_empty());
    let pages = blocks.len().div_ceil(PAGE_EVENTS).max(1);
    for number in 0..pages {
        let page = blocks.chunks(PAGE_EVENTS).nth(number).unwrap_or_default();
        let stored = page.iter().flat_map(|block| {
            tiers_of(block.holders).map(|tier| Event {
                kind: EventKind::Stored,
                hash: block.hash,
                parent: block.parent,
                tier,
            })
        });
        let message = v1::WatchResponse {
            cursor,
            incarnation,
            events: stored.map(convert::event).collect(),
            lost: if number == 0 { lost } else { 0 },
            snapshot_begin: number == 0,
            snapshot_end: number + 1 == pages,
            described: (describe && number == 0).then(|| v1::NamespaceDescription {
                namespace_key: namespace.key.to_bytes().to_vec().into(),
                block_tokens: namespace.spec.block_tokens,
                block_bytes: namespace.spec.block_bytes,
            }),
        };
        out.send(Ok(message)).await.ok()?;
    }
    Some(cursor)
}
