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
    index::{Entry, HolderSet, TierSet},
    store::{Event, EventKind, Namespace, tiers_of},
};
use kelvin_tiering::Tier;

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
    let events = events_of(&namespace.index.snapshot());
    let pages = events.len().div_ceil(PAGE_EVENTS).max(1);
    for number in 0..pages {
        let page = events.chunks(PAGE_EVENTS).nth(number).unwrap_or_default();
        let message = v1::WatchResponse {
            cursor,
            incarnation,
            events: page.iter().copied().map(convert::event).collect(),
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

/// What tells of these blocks, parents first. One that no tier has, and that is there because those behind it are, is
/// told as stored and, in the end, as removed: who follows must know it to find a place for the others.
fn events_of(blocks: &[Entry<TierSet>]) -> Vec<Event> {
    let event =
        |kind, block: &Entry<TierSet>, tier| Event { kind, hash: block.hash, parent: block.parent, tier };
    let is_gone = |block: &&Entry<TierSet>| block.holders.is_empty();
    let mut events = Vec::with_capacity(blocks.len());
    for block in blocks {
        if block.holders.is_empty() {
            events.push(event(EventKind::Stored, block, Tier::Dram));
        }
        events.extend(tiers_of(block.holders).map(|tier| event(EventKind::Stored, block, tier)));
    }
    let gone = blocks.iter().filter(is_gone);
    events.extend(gone.map(|block| event(EventKind::Removed, block, Tier::Dram)));
    events
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RadixIndex, SequenceHash};

    #[test]
    fn a_snapshot_makes_the_same_tree_elsewhere() {
        let hash = |number: u8| SequenceHash::from_bytes([number; 16]);
        let insert = |index: &RadixIndex<TierSet>, parent, number, tier: Tier| {
            index.insert(parent, hash(number), tier as u32, 0).unwrap();
        };
        let index = RadixIndex::with_budget(1 << 20);
        insert(&index, None, 1, Tier::Dram);
        insert(&index, Some(hash(1)), 2, Tier::Dram);
        insert(&index, Some(hash(2)), 3, Tier::Nvme);
        insert(&index, Some(hash(2)), 4, Tier::Dram);
        index.remove(hash(2), Tier::Dram as u32);
        let other = RadixIndex::<TierSet>::with_budget(1 << 20);
        for event in events_of(&index.snapshot()) {
            match event.kind {
                EventKind::Stored => {
                    other
                        .insert(event.parent, event.hash, event.tier as u32, 0)
                        .expect("its parent was told");
                }
                EventKind::Removed => drop(other.remove(event.hash, event.tier as u32)),
            }
        }
        let all = |index: &RadixIndex<TierSet>| {
            let mut all: Vec<_> =
                index.snapshot().iter().map(|block| (block.hash, block.parent, block.holders)).collect();
            all.sort_by_key(|(hash, ..)| hash.to_bytes());
            all
        };
        assert_eq!(all(&other), all(&index));
        assert!(index.holders(hash(2)).is_empty(), "it is such a one");
    }
}
