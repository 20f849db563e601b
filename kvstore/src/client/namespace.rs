//! The verbs of the API for one model's blocks.

use std::{borrow::Cow, fmt, ops::Range, sync::Arc, time::Duration};

use kelvin_proto::{
    NamespaceSpec,
    kv::v1::{BlockExplanation, BlockStatus, Tier, TierLoad, WatchResponse},
};
use tonic::Streaming;
use tracing::{Instrument, Span};

use super::{
    Client, Error, calls,
    keeper::{Handle, Session, Way},
    lease::{PartLease, ReadLease, WriteLease},
};
use crate::{
    SequenceHash,
    span::{self, Tally},
};

/// How payload moves between this process and the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// In place, in the store's memory.
    Shm,
    /// Through the store's data port.
    Tcp,
    /// Inside gRPC.
    Grpc,
}

/// What the store has of a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Match {
    /// Blocks of the longest stored prefix.
    pub blocks: u32,
    /// Tokens they stand for.
    pub tokens: u64,
    /// Blocks right behind them that are being filled.
    pub filling_blocks: u32,
    /// Hottest tier of each matched block.
    pub tiers: Vec<Tier>,
    /// Prefix lengths, in tokens, at which an engine can resume.
    pub restorable_tokens: Vec<u64>,
    /// What it takes to bring those that are not in memory there, by tier.
    pub loads: Vec<TierLoad>,
    /// Why the first block behind them that is not being filled either is not there, without its hash.
    pub missed: Option<BlockExplanation>,
}

/// What an `acquire` got.
#[derive(Debug)]
pub struct Acquired {
    /// Leases on a leading run of what was asked for.
    pub leases: Vec<ReadLease>,
    /// Why the run ended before the last hash: `Missing`, `Filling` (the wait is over) or `LeaseLimit`.
    pub stopped: Option<BlockStatus>,
}

/// What a `lease` got.
#[derive(Debug)]
pub struct Leased {
    /// Leases on a leading run of what was asked for.
    pub leases: Vec<PartLease>,
    /// Why the run ended before the last hash, as in [`Acquired`].
    pub stopped: Option<BlockStatus>,
}

/// How much blocks are worth once they are stored; by default as much as others, without an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Keep {
    /// All blocks of lower priority go before the first of higher; 0 is usual.
    pub priority: i8,
    /// Time from now on after which they are dropped.
    pub ttl: Option<Duration>,
}

/// What a `reserve` got for one block.
#[derive(Debug)]
pub enum Reserved {
    /// It is ours to fill.
    Write(WriteLease),
    /// Somebody has it.
    AlreadyStored,
    /// Somebody makes it.
    Filling,
    /// No slot is free and none can be evicted.
    NoSpace,
    /// Its parent is neither stored nor reserved.
    NoParent,
    /// Not looked at, or refused for another reason.
    Other(BlockStatus),
}

/// An open handshake. Cloning shares it; the session ends with the last clone and the last lease.
#[derive(Clone)]
pub struct Namespace {
    pub(super) keeper: Arc<Handle>,
}

impl Namespace {
    pub(super) async fn open(client: Client, spec: NamespaceSpec) -> Result<Self, Error> {
        Ok(Self { keeper: Handle::open(client, spec).await? })
    }

    /// What was agreed on.
    pub fn spec(&self) -> &NamespaceSpec {
        &self.keeper.shared.spec
    }

    /// The store's number of it, for this start of the store: what [`Client::watch`] and the like want.
    pub fn namespace_id(&self) -> u64 {
        self.keeper.session().namespace_id
    }

    /// How payload moves now.
    pub fn transport(&self) -> Transport {
        match self.keeper.session().way {
            Way::Shm(_) => Transport::Shm,
            Way::Tcp(_) => Transport::Tcp,
            Way::Grpc => Transport::Grpc,
        }
    }

    /// Hashes of a prompt's whole blocks.
    pub fn hash_blocks(&self, tokens: &[u32], extra: &[u8]) -> Vec<SequenceHash> {
        self.keeper.session().key.hash_blocks(tokens, self.spec().block_tokens as usize, extra)
    }

    /// The longest stored prefix.
    pub async fn match_prefix(&self, hashes: &[SequenceHash]) -> Result<Match, Error> {
        let session = self.keeper.session();
        let span = span::of_verb("match", hashes.len());
        let call = calls::match_prefix(&self.keeper, &session, hashes).instrument(span.clone());
        let found = self.noting(&session, call.await);
        self.finish(&span, &found, |found| Tally::of(found.tiers.iter().copied()));
        found
    }

    /// Its events, from a snapshot on that says what hashes are made of, or from a cursor of the same start of the
    /// store. The stream may outlive the session.
    pub async fn watch(&self, cursor: u64, incarnation: u64) -> Result<Streaming<WatchResponse>, Error> {
        let session = self.keeper.session();
        let watched = self.keeper.shared.client.watch_as(session.id, 0, cursor, incarnation, true).await;
        self.noting(&session, watched)
    }

    /// Leases the leading run of `hashes` that is stored. Should the first be in the making, waits for it
    /// up to `wait` (and the store's own limit, a minute); comes back as soon as it is there, with whatever
    /// stands ready behind it, or can't come any more. At most as many hashes are looked at as the store takes
    /// in a call (8,192): a run that ends there has not stopped, and goes on behind its last lease.
    pub async fn acquire(&self, hashes: &[SequenceHash], wait: Duration) -> Result<Acquired, Error> {
        let session = self.keeper.session();
        let span = span::of_verb("acquire", hashes.len());
        let call = calls::acquire(&self.keeper, &session, hashes, wait).instrument(span.clone());
        let got = self.noting(&session, call.await);
        self.finish(&span, &got, |got| Tally::of(got.leases.iter().map(|lease| lease.tier)));
        got
    }

    /// The same without the bytes, of which [`read_parts`](Self::read_parts) gets as much as is wanted.
    pub async fn lease(&self, hashes: &[SequenceHash], wait: Duration) -> Result<Leased, Error> {
        let session = self.keeper.session();
        let span = span::of_verb("lease", hashes.len());
        let call = calls::lease(&self.keeper, &session, hashes, wait).instrument(span.clone());
        let got = self.noting(&session, call.await);
        self.finish(&span, &got, |got| Tally::of(got.leases.iter().map(|lease| lease.tier)));
        let got = got?;
        Ok(Leased { leases: got.leases.into_iter().map(PartLease).collect(), stopped: got.stopped })
    }

    /// Bytes `range` of each block: a few layers of all of them, say. In place where the store's memory is mapped.
    /// Shorter than `leases` when the store does not have one of them (any more).
    ///
    /// What travels is checked on its way. A block's own checksum is over all of it, so that a part does not tell
    /// whether the store has the block as it was committed; its scrubber does.
    pub async fn read_parts<'a>(
        &self,
        leases: &'a [PartLease],
        range: Range<u64>,
    ) -> Result<Vec<Cow<'a, [u8]>>, Error> {
        let session = self.keeper.session();
        self.noting(&session, calls::read_parts(&self.keeper, &session, leases, range).await)
    }

    /// Reserves the blocks of a run that starts behind `parent`: one answer a hash, in order.
    pub async fn reserve(
        &self,
        parent: Option<SequenceHash>,
        hashes: &[SequenceHash],
    ) -> Result<Vec<Reserved>, Error> {
        self.reserve_to_keep(parent, hashes, Keep::default()).await
    }

    /// The same, saying how much the blocks will be worth.
    pub async fn reserve_to_keep(
        &self,
        parent: Option<SequenceHash>,
        hashes: &[SequenceHash],
        keep: Keep,
    ) -> Result<Vec<Reserved>, Error> {
        let session = self.keeper.session();
        let span = span::of_verb("reserve", hashes.len());
        let call = calls::reserve(&self.keeper, &session, parent, hashes, keep).instrument(span.clone());
        let reserved = self.noting(&session, call.await);
        self.finish(&span, &reserved, |reserved| {
            let ours = reserved.iter().filter(|block| matches!(block, Reserved::Write(_)));
            Tally::of(ours.map(|_| Tier::Dram))
        });
        reserved
    }

    /// Commits filled reservations, parents first: one status a block.
    pub async fn commit(&self, filled: Vec<WriteLease>) -> Result<Vec<BlockStatus>, Error> {
        let session = self.keeper.session();
        let span = span::of_verb("commit", filled.len());
        let call = calls::commit(&self.keeper, &session, filled).instrument(span.clone());
        let statuses = self.noting(&session, call.await);
        self.finish(&span, &statuses, |statuses| {
            let stored = statuses.iter().filter(|status| **status == BlockStatus::Stored);
            Tally::of(stored.map(|_| Tier::Dram))
        });
        statuses
    }

    /// Ends the session now and for good: every lease returns at once, and calls fail from here on.
    pub async fn close(&self) {
        self.keeper.shared.close().await;
    }

    /// Writes what a call of a trace got into its span.
    fn finish<T>(&self, span: &Span, result: &Result<T, Error>, tally: impl Fn(&T) -> Tally) {
        if span.is_none() {
            return;
        }
        let transport = match self.transport() {
            Transport::Shm => "shm",
            Transport::Tcp => "tcp",
            Transport::Grpc => "grpc",
        };
        span.record("transport", transport);
        match result {
            Ok(got) => tally(got).note(span, self.spec().block_bytes),
            Err(error) => drop(span.record("error", tracing::field::display(error))),
        }
    }

    fn noting<T>(&self, session: &Session, result: Result<T, Error>) -> Result<T, Error> {
        result.inspect_err(|error| self.keeper.note(session, error))
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Namespace({})", self.spec().model)
    }
}
