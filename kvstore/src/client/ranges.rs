//! Calls on ranges of blocks, and the operator's: wire messages in and out.
//!
//! [`Namespace`] has the ones an engine wants for its own blocks. [`Client`] has them all, by namespace ids
//! from [`Client::stats`], for whoever looks after a store.

use std::time::Duration;

use bytes::Bytes;
use kelvin_proto::kv::v1;
use tonic::Streaming;

use super::{Client, Error, Namespace, keeper::Session};
use crate::{SequenceHash, transport::Verb};

/// A range can be many blocks; the store walks its index for it.
const RANGE_TIME: Duration = Duration::from_secs(30);

/// The prefix that ends with the last of `hashes`, all of them given.
pub fn prefix(hashes: &[SequenceHash]) -> v1::Prefix {
    let hashes = hashes.iter().map(|hash| Bytes::copy_from_slice(&hash.to_bytes())).collect();
    v1::Prefix { blocks: Some(v1::prefix::Blocks::Hashes(v1::Hashes { hashes })) }
}

/// The prefix that ends with a block whose ancestors the store knows.
pub fn prefix_up_to(hash: SequenceHash) -> v1::Prefix {
    v1::Prefix { blocks: Some(v1::prefix::Blocks::LastHash(Bytes::copy_from_slice(&hash.to_bytes()))) }
}

macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident: $request:ident => $response:ident, $time:expr;)*) => {
        impl Client {
            $($(#[$doc])*
            pub async fn $name(&self, request: v1::$request) -> Result<v1::$response, Error> {
                self.call(request, $time).await
            })*
        }
    };
}

calls! {
    /// Begins to bring a prefix's blocks into the store's memory.
    prefetch: PrefetchRequest => PrefetchResponse, RANGE_TIME;
    /// Keeps a prefix's blocks from being evicted.
    pin: PinRequest => PinResponse, RANGE_TIME;
    /// Ends pins.
    unpin: UnpinRequest => UnpinResponse, RANGE_TIME;
    /// Drops what is behind a prefix, or a namespace's blocks.
    evict: EvictRequest => EvictResponse, RANGE_TIME;
    /// Says that a conversation is over.
    end_session: EndSessionRequest => EndSessionResponse, RANGE_TIME;
    /// Why blocks are not stored, or where they are.
    explain: ExplainRequest => ExplainResponse, Duration::ZERO;
    /// What the store keeps, by file, namespace and tier.
    inspect: InspectRequest => InspectResponse, RANGE_TIME;
    /// Collects what nobody can find any more; packs are rewritten meanwhile, which takes its time.
    collect: CollectRequest => CollectResponse, Duration::from_secs(3600);
}

impl Client {
    /// Reads every stored copy and checks it; the stream says how far it is, and ends with `done`.
    pub async fn verify(&self, request: v1::VerifyRequest) -> Result<Streaming<v1::VerifyResponse>, Error> {
        let mut request = tonic::Request::new(request);
        self.authorize(&mut request);
        Ok(self.service().verify(request).await?.into_inner())
    }
}

impl Namespace {
    /// Begins to bring the blocks of a prefix into the store's memory, so that a later
    /// [`acquire`](Self::acquire) need not wait.
    pub async fn prefetch(&self, hashes: &[SequenceHash]) -> Result<v1::PrefetchResponse, Error> {
        let session = self.keeper.session();
        let request = v1::PrefetchRequest {
            session_id: session.id,
            prefix: Some(prefix(hashes)),
            ..Default::default()
        };
        self.ask(&session, request, RANGE_TIME).await
    }

    /// Keeps the stored blocks of a prefix: for `ttl`, or without one until they are unpinned.
    pub async fn pin(
        &self,
        hashes: &[SequenceHash],
        ttl: Option<Duration>,
    ) -> Result<v1::PinResponse, Error> {
        let session = self.keeper.session();
        let request = v1::PinRequest {
            session_id: session.id,
            prefix: Some(prefix(hashes)),
            ttl_ms: ttl.map_or(0, |ttl| (ttl.as_millis() as u64).max(1)),
            owner: self.keeper.shared.client.options().name.clone(),
            ..Default::default()
        };
        self.ask(&session, request, RANGE_TIME).await
    }

    /// Drops the last of `hashes` and everything stored behind it; without any, every block of the namespace.
    pub async fn evict(&self, hashes: &[SequenceHash]) -> Result<v1::EvictResponse, Error> {
        let session = self.keeper.session();
        let range = match hashes {
            [] => v1::evict_request::Range::WholeNamespace(true),
            _ => v1::evict_request::Range::Prefix(prefix(hashes)),
        };
        let request = v1::EvictRequest { session_id: session.id, range: Some(range), ..Default::default() };
        self.ask(&session, request, RANGE_TIME).await
    }

    /// Says that the conversation of these blocks is over: those that only it used go first.
    pub async fn end_session(&self, hashes: &[SequenceHash]) -> Result<v1::EndSessionResponse, Error> {
        let session = self.keeper.session();
        let request = v1::EndSessionRequest {
            session_id: session.id,
            prefix: Some(prefix(hashes)),
            ..Default::default()
        };
        self.ask(&session, request, RANGE_TIME).await
    }

    /// Why each of these blocks is not stored, or where it is.
    pub async fn explain(&self, hashes: &[SequenceHash]) -> Result<Vec<v1::BlockExplanation>, Error> {
        let session = self.keeper.session();
        let hashes = hashes.iter().map(|hash| Bytes::copy_from_slice(&hash.to_bytes())).collect();
        let blocks = Some(v1::explain_request::Blocks::Hashes(v1::Hashes { hashes }));
        let request = v1::ExplainRequest { session_id: session.id, blocks, ..Default::default() };
        Ok(self.ask(&session, request, Duration::ZERO).await?.blocks)
    }

    async fn ask<V: Verb>(&self, session: &Session, request: V, time: Duration) -> Result<V::Answer, Error> {
        session.call(&self.keeper.shared.client, request, time).await
    }
}
