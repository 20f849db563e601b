//! The gRPC service: checks what arrives, calls the store, answers.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::stream::BoxStream;
use kelvin_kernels::Checksum;
use kelvin_proto::{NamespaceSpec, Reason, Refusal, kv::v1, kv::v1::kv_service_server::KvService, trace};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

use super::{
    KEYS_MAX, Listening, MESSAGE_BYTES_MAX, WAIT_MAX, convert, inline, operator,
    page::{Calls, Outcome},
    ranges, stats, watch,
};
use crate::{
    SequenceHash,
    span::{self, Tally},
    store::{
        AcquiredBlock, Namespace, Store, Tenant,
        meters::{Verb, Via, measuring},
    },
};

const CLIENT_NAME_BYTES_MAX: usize = 128;
/// A commit of so much is checked on the spot: half a millisecond.
const COMMIT_INLINE_BYTES: u64 = 16 << 20;

/// Prefetches under way; each holds what it brought until it is done.
const PREFETCHES_MAX: usize = 64;

/// The service over one store.
pub(super) struct Service {
    store: Arc<Store>,
    listening: Listening,
    shutdown: CancellationToken,
    prefetches: Arc<Semaphore>,
    /// Recent calls, for the page.
    calls: Arc<Calls>,
}

/// A call in work; its end is counted when it is dropped. Of one that answers with a stream, the time until the
/// stream begins.
struct Call {
    tenant: Arc<Tenant>,
    verb: Verb,
    via: Via,
    /// By the tenant's clock; `None` if nobody measures, or it has ended.
    began: Option<Duration>,
}

impl Call {
    /// Counts it as ended: when that was, and how long it took. `None` if nobody measures.
    fn end(&mut self) -> Option<(Duration, Duration)> {
        let began = self.began.take()?;
        let now = self.tenant.now();
        let took = now.saturating_sub(began);
        self.tenant.meters().call(self.verb, self.via).took(took);
        Some((now, took))
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end();
    }
}

impl Service {
    pub(super) fn new(
        store: Arc<Store>,
        listening: Listening,
        shutdown: CancellationToken,
        calls: Arc<Calls>,
    ) -> Self {
        Self { store, listening, shutdown, prefetches: Arc::new(Semaphore::new(PREFETCHES_MAX)), calls }
    }

    /// Of the token in a call over gRPC.
    fn tenant(&self, metadata: &MetadataMap) -> Result<Arc<Tenant>, Refusal> {
        let token = match metadata.get("authorization") {
            None => None,
            Some(value) => {
                let text = value.to_str().unwrap_or_default();
                Some(text.strip_prefix("Bearer ").ok_or_else(|| {
                    Refusal::new(Reason::Unauthenticated, "authorization must be `Bearer TOKEN`")
                })?)
            }
        };
        self.store.tenant(token).cloned()
    }

    /// The tenant and the message of a call, and what counts how long it takes.
    fn enter<T>(&self, verb: Verb, request: Request<T>) -> Result<(Arc<Tenant>, T, Call), Refusal> {
        let (tenant, via) = match request.extensions().get::<Arc<Tenant>>() {
            // Over a socket that its session's token opened.
            Some(tenant) => (tenant.clone(), Via::Socket),
            None => (self.tenant(request.metadata())?, Via::Grpc),
        };
        let began = measuring().then(|| tenant.now());
        let call = Call { tenant: tenant.clone(), verb, via, began };
        Ok((tenant, request.into_inner(), call))
    }

    /// `Tenant::acquire`, again whenever something changed, while the first block is being filled.
    async fn acquire_waiting(
        &self,
        tenant: &Arc<Tenant>,
        session: u64,
        hashes: &[SequenceHash],
        wait: Duration,
        ttl: Duration,
    ) -> Result<Vec<AcquiredBlock>, Refusal> {
        let namespace = tenant.namespace_of(session)?;
        let deadline = tokio::time::Instant::now() + wait.min(WAIT_MAX);
        loop {
            // Registered before the look, so that a commit between look and wait is not missed.
            let mut changed = std::pin::pin!(namespace.changed.notified());
            // It takes a lock that all callers share, so who does not wait does not register.
            if !wait.is_zero() {
                changed.as_mut().enable();
            }
            // What has to come from a colder tier is held until it is leased.
            let _onboarded = match tenant.cold_prefix(&namespace, hashes) {
                Some(blocks) => tenant.onboard(&namespace, &hashes[..blocks]).await,
                None => Vec::new(),
            };
            let blocks = tenant.acquire(session, hashes, ttl)?;
            let filling = blocks.first().is_some_and(|block| block.status == v1::BlockStatus::Filling);
            if !filling || wait.is_zero() {
                return Ok(blocks);
            }
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep_until(deadline) => return Ok(blocks),
                () = self.shutdown.cancelled() => return Ok(blocks),
            }
        }
    }
}

/// Writes what a call of a trace did into its span.
fn answered(tenant: &Tenant, namespace: &Namespace, asked: usize, tally: impl Fn() -> Tally) {
    let spec = &namespace.spec;
    span::answered(tenant.name(), &spec.model, asked, spec.block_bytes, tally);
}

#[tonic::async_trait]
impl KvService for Service {
    async fn open_namespace(
        &self,
        request: Request<v1::OpenNamespaceRequest>,
    ) -> Result<Response<v1::OpenNamespaceResponse>, Status> {
        let (tenant, message, _call) = self.enter(Verb::OpenNamespace, request)?;
        let name = message.client_name.clone();
        if name.len() > CLIENT_NAME_BYTES_MAX {
            return Err(
                Refusal::invalid(format!("client_name has more than {CLIENT_NAME_BYTES_MAX} bytes")).into()
            );
        }
        let opened = tenant.open(NamespaceSpec::try_from(message)?, &name).inspect_err(|refusal| {
            tracing::warn!(client = name, reason = refusal.reason.name(), "{}", refusal.message);
        })?;
        tracing::debug!(client = name, model = opened.namespace.spec.model, "session opened");
        let shared_memory = self.listening.socket.as_ref().map(|path| v1::SharedMemory {
            socket_path: path.display().to_string(),
            token: Bytes::copy_from_slice(&opened.token),
            region_bytes: tenant.pool().arena().bytes(),
            takes_calls: true,
            takes_traces: true,
        });
        let data_port = self.listening.data.map(|address| v1::DataPort {
            address: address.to_string(),
            token: Bytes::copy_from_slice(&opened.token),
        });
        Ok(Response::new(v1::OpenNamespaceResponse {
            namespace_id: opened.namespace.id,
            session_id: opened.session,
            session_ttl_ms: tenant.session_ttl().as_millis() as u64,
            namespace_key: Bytes::copy_from_slice(&opened.namespace.key.to_bytes()),
            shared_memory,
            data_port,
            limits: Some(v1::Limits {
                keys_max: KEYS_MAX as u32,
                message_bytes_max: MESSAGE_BYTES_MAX as u64,
                leases_max: crate::store::LEASES_MAX,
                wait_ms_max: WAIT_MAX.as_millis() as u64,
                lease_ttl_ms_max: tenant.lease_ttl_max().as_millis() as u64,
                pins_max: crate::store::PINS_MAX,
            }),
            incarnation: self.store.incarnation(),
            packs_leases: true,
        }))
    }

    async fn r#match(
        &self,
        request: Request<v1::MatchRequest>,
    ) -> Result<Response<v1::MatchResponse>, Status> {
        let (tenant, message, mut call) = self.enter(Verb::Match, request)?;
        let namespace = tenant.namespace_of(message.session_id)?;
        let named = message.return_hashes;
        let hashes = convert::prefix(message.prefix, &namespace)?;
        let found = tenant.match_prefix(&namespace, &hashes);
        let blocks = found.len();
        answered(&tenant, &namespace, hashes.len(), || {
            Tally::of(found.iter().map(|holders| convert::hottest(*holders)))
        });
        let filling = tenant.filling_prefix(&namespace, &hashes[blocks..]);
        let block_tokens = u64::from(namespace.spec.block_tokens);
        if filling > 0 {
            tenant.counters().filling_tokens.add(filling as u64 * block_tokens);
        }
        let missed = hashes
            .get(blocks + filling)
            .map(|first| tenant.count_misses(&namespace, *first, (hashes.len() - blocks - filling) as u64));
        let leases = match message.lease_ttl_ms {
            0 => Vec::new(),
            ttl => {
                let wait = Duration::from_millis(message.wait_ms);
                // Nothing is waited for behind a block that is there.
                let wanted = if blocks == 0 && !wait.is_zero() { filling } else { blocks };
                let wanted = &hashes[..wanted.min(KEYS_MAX)];
                let ttl = convert::ttl(ttl);
                let leased = self.acquire_waiting(&tenant, message.session_id, wanted, wait, ttl).await?;
                // Behind the first that is not leased nothing was looked at.
                let looked_at = leased.into_iter().filter(|block| block.status != v1::BlockStatus::Skipped);
                looked_at.map(convert::read_lease).collect()
            }
        };
        let answer = v1::MatchResponse {
            blocks: blocks as u32,
            tokens: blocks as u64 * block_tokens,
            tiers: found.iter().map(|holders| convert::hottest(*holders).into()).collect(),
            restorable_tokens: (1..=blocks as u64).map(|block| block * block_tokens).collect(),
            filling_blocks: filling as u32,
            loads: convert::loads(&tenant.load_estimates(&found, namespace.spec.block_bytes)),
            leases,
            hashes: if named { convert::wire(&hashes) } else { Vec::new() },
            missed: missed.clone().map(ranges::explained),
        };
        if let Some(times) = call.end() {
            let outcome = Outcome { verb: "match", hashes: &hashes, hits: blocks, filling, missed };
            self.calls.note(&tenant, &namespace, times, outcome);
        }
        Ok(Response::new(answer))
    }

    async fn acquire(
        &self,
        request: Request<v1::AcquireRequest>,
    ) -> Result<Response<v1::AcquireResponse>, Status> {
        let (tenant, message, mut call) = self.enter(Verb::Acquire, request)?;
        let packed = !message.packed_hashes.is_empty();
        let hashes = match packed {
            true => convert::packed_hashes(&message.packed_hashes, &message.hashes)?,
            false => convert::hashes(&message.hashes)?,
        };
        let wait = Duration::from_millis(message.wait_ms);
        let ttl = convert::ttl(message.lease_ttl_ms);
        let blocks = self.acquire_waiting(&tenant, message.session_id, &hashes, wait, ttl).await?;
        let leased = blocks.iter().take_while(|block| block.status == v1::BlockStatus::Leased).count();
        let namespace = tenant.namespace_of(message.session_id).ok();
        let missed = match (&namespace, hashes.get(leased)) {
            (Some(namespace), Some(first)) => Some(tenant.what(namespace, *first)),
            _ => None,
        };
        if let Some(namespace) = &namespace {
            // What was in a colder tier was brought up: its own span tells from where.
            let all = || blocks.iter().filter(|block| block.status == v1::BlockStatus::Leased);
            answered(&tenant, namespace, hashes.len(), || Tally::of(all().map(|_| v1::Tier::Dram)));
        }
        let answer = match packed {
            true => {
                let packed = Some(convert::packed_leases(&blocks));
                v1::AcquireResponse { packed, ..Default::default() }
            }
            false => {
                let leases = blocks.into_iter().map(convert::read_lease).collect();
                v1::AcquireResponse { leases, ..Default::default() }
            }
        };
        if let (Some(times), Some(namespace)) = (call.end(), &namespace) {
            let outcome = Outcome { verb: "acquire", hashes: &hashes, hits: leased, filling: 0, missed };
            self.calls.note(&tenant, namespace, times, outcome);
        }
        Ok(Response::new(answer))
    }

    async fn reserve(
        &self,
        request: Request<v1::ReserveRequest>,
    ) -> Result<Response<v1::ReserveResponse>, Status> {
        let (tenant, message, _call) = self.enter(Verb::Reserve, request)?;
        let hashes = convert::hashes(&message.hashes)?;
        let parent = convert::parent(&message.parent)?;
        let ttl = convert::ttl(message.lease_ttl_ms);
        let keep = convert::keep(message.priority, message.block_ttl_ms, tenant.now())?;
        let blocks = tenant.reserve_to_keep(message.session_id, parent, &hashes, ttl, keep)?;
        if trace::is_on() {
            let reserved = || blocks.iter().filter(|block| block.status == v1::BlockStatus::Reserved);
            let namespace = tenant.namespace_of(message.session_id)?;
            answered(&tenant, &namespace, hashes.len(), || Tally::of(reserved().map(|_| v1::Tier::Dram)));
        }
        let leases = blocks.into_iter().map(convert::write_lease).collect();
        Ok(Response::new(v1::ReserveResponse { leases }))
    }

    async fn commit(
        &self,
        request: Request<v1::CommitRequest>,
    ) -> Result<Response<v1::CommitResponse>, Status> {
        let (tenant, message, _call) = self.enter(Verb::Commit, request)?;
        convert::keys_within_limit(message.blocks.len())?;
        let blocks: Vec<(u64, Checksum)> =
            message.blocks.iter().map(|block| (block.lease_id, Checksum(block.checksum))).collect();
        let session = message.session_id;
        let namespace = tenant.namespace_of(session)?;
        let bytes = blocks.len() as u64 * namespace.spec.block_bytes;
        answered(&tenant, &namespace, blocks.len(), || Tally::of(blocks.iter().map(|_| v1::Tier::Dram)));
        let statuses = if bytes <= COMMIT_INLINE_BYTES {
            tenant.commit(session, &blocks)?
        } else {
            // Checksums over so much would keep this thread from answering anyone else.
            let work = tokio::task::spawn_blocking(move || tenant.commit(session, &blocks));
            work.await.map_err(|error| Refusal::new(Reason::Internal, error.to_string()))??
        };
        Ok(Response::new(v1::CommitResponse { statuses: convert::statuses(statuses) }))
    }

    async fn abort(&self, request: Request<v1::AbortRequest>) -> Result<Response<v1::AbortResponse>, Status> {
        let (tenant, message, _call) = self.enter(Verb::Abort, request)?;
        convert::keys_within_limit(message.lease_ids.len())?;
        let statuses = convert::statuses(tenant.abort(message.session_id, &message.lease_ids)?);
        Ok(Response::new(v1::AbortResponse { statuses }))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        let (tenant, message, _call) = self.enter(Verb::Renew, request)?;
        convert::keys_within_limit(message.lease_ids.len())?;
        let ttl = convert::ttl(message.lease_ttl_ms);
        let statuses = tenant.renew(message.session_id, &message.lease_ids, message.all_leases, ttl)?;
        let statuses = convert::statuses(statuses);
        Ok(Response::new(v1::RenewResponse { statuses }))
    }

    async fn release(
        &self,
        request: Request<v1::ReleaseRequest>,
    ) -> Result<Response<v1::ReleaseResponse>, Status> {
        let (tenant, message, _call) = self.enter(Verb::Release, request)?;
        convert::keys_within_limit(message.lease_ids.len() + message.damaged_lease_ids.len())?;
        tenant.drop_damaged(message.session_id, &message.damaged_lease_ids);
        tenant.release(message.session_id, &message.damaged_lease_ids)?;
        let statuses = convert::statuses(tenant.release(message.session_id, &message.lease_ids)?);
        if message.end_session {
            tenant.end_session(message.session_id);
        }
        Ok(Response::new(v1::ReleaseResponse { statuses }))
    }

    type ReadStream = BoxStream<'static, Result<v1::ReadResponse, Status>>;

    async fn read(&self, request: Request<v1::ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let (tenant, message, _call) = self.enter(Verb::Read, request)?;
        convert::keys_within_limit(message.lease_ids.len())?;
        let namespace = tenant.namespace_of(message.session_id)?;
        let range = convert::range(message.range, namespace.spec.block_bytes)?;
        Ok(Response::new(inline::read(tenant, message.session_id, message.lease_ids, range)))
    }

    async fn write(
        &self,
        request: Request<Streaming<v1::WriteRequest>>,
    ) -> Result<Response<v1::WriteResponse>, Status> {
        let (tenant, frames, _call) = self.enter(Verb::Write, request)?;
        let status = inline::write(tenant, frames).await?;
        Ok(Response::new(v1::WriteResponse { status: status.into() }))
    }

    type WatchStream = BoxStream<'static, Result<v1::WatchResponse, Status>>;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (tenant, message, _call) = self.enter(Verb::Watch, request)?;
        let namespace = match message.session_id {
            0 => tenant.namespace(message.namespace_id)?,
            session => tenant.namespace_of(session)?,
        };
        let incarnation = self.store.incarnation();
        let cursor = (message.incarnation == incarnation && message.cursor > 0).then_some(message.cursor);
        Ok(Response::new(watch::stream(
            namespace,
            cursor,
            incarnation,
            message.describe,
            self.shutdown.clone(),
        )))
    }

    async fn stats(&self, request: Request<v1::StatsRequest>) -> Result<Response<v1::StatsResponse>, Status> {
        let (tenant, message, _call) = self.enter(Verb::Stats, request)?;
        Ok(Response::new(stats::of(&self.store, &tenant, !message.without_curves)))
    }

    async fn prefetch(
        &self,
        request: Request<v1::PrefetchRequest>,
    ) -> Result<Response<v1::PrefetchResponse>, Status> {
        let (tenant, message, _call) = self.enter(Verb::Prefetch, request)?;
        Ok(Response::new(ranges::prefetch(tenant, message, &self.prefetches, &self.shutdown)?))
    }

    async fn pin(&self, request: Request<v1::PinRequest>) -> Result<Response<v1::PinResponse>, Status> {
        let (tenant, message, _call) = self.enter(Verb::Pin, request)?;
        Ok(Response::new(ranges::pin(tenant, message).await?))
    }

    async fn unpin(&self, request: Request<v1::UnpinRequest>) -> Result<Response<v1::UnpinResponse>, Status> {
        let (tenant, message, _call) = self.enter(Verb::Unpin, request)?;
        Ok(Response::new(ranges::unpin(tenant, message).await?))
    }

    async fn evict(&self, request: Request<v1::EvictRequest>) -> Result<Response<v1::EvictResponse>, Status> {
        let (tenant, message, _call) = self.enter(Verb::Evict, request)?;
        Ok(Response::new(ranges::evict(tenant, message).await?))
    }

    async fn end_session(
        &self,
        request: Request<v1::EndSessionRequest>,
    ) -> Result<Response<v1::EndSessionResponse>, Status> {
        let (tenant, message, _call) = self.enter(Verb::EndSession, request)?;
        Ok(Response::new(ranges::end_session(tenant, message).await?))
    }

    async fn explain(
        &self,
        request: Request<v1::ExplainRequest>,
    ) -> Result<Response<v1::ExplainResponse>, Status> {
        let (tenant, message, _call) = self.enter(Verb::Explain, request)?;
        Ok(Response::new(ranges::explain(tenant, message).await?))
    }

    async fn inspect(
        &self,
        request: Request<v1::InspectRequest>,
    ) -> Result<Response<v1::InspectResponse>, Status> {
        let (tenant, _, _call) = self.enter(Verb::Inspect, request)?;
        Ok(Response::new(operator::inspect(self.store.clone(), tenant).await?))
    }

    type VerifyStream = BoxStream<'static, Result<v1::VerifyResponse, Status>>;

    async fn verify(
        &self,
        request: Request<v1::VerifyRequest>,
    ) -> Result<Response<Self::VerifyStream>, Status> {
        let (tenant, message, _call) = self.enter(Verb::Verify, request)?;
        Ok(Response::new(operator::verify(&self.store, &tenant, &message, self.shutdown.clone())?))
    }

    async fn collect(
        &self,
        request: Request<v1::CollectRequest>,
    ) -> Result<Response<v1::CollectResponse>, Status> {
        let (tenant, message, _call) = self.enter(Verb::Collect, request)?;
        Ok(Response::new(operator::collect(&self.store, &tenant, &message).await?))
    }
}
