//! One request's way: match its prefix, decide who serves it, open the streams, hand out the tokens.
//!
//! # Overview
//! ```text
//! tokens ─► index of the store ─► decide ─┬─ local ──────────────────────────────┐
//!                └─► store: Match         └─ remote: Prefill, first answer ──────┴─► Generate ─► tokens
//! ```
//! The call to the decode worker counts there from the decision on, through the wait for the prefill, so
//! that requests at once do not all see the same idle worker.
//!
//! Everything but the decode worker can fail without failing the request. A store that is away or does not answer
//! in time counts as an empty one ([`Prefixes`]); a prefill worker that fails, before or after its first answer, leaves
//! the prompt to the decode worker, which evaluates what it cannot import. If the decode worker fails
//! before its first message, another one gets the request, once; if it fails later, another one goes on where it
//! was ([`migration`]). With all decode workers lost, a request waits [`Scheduler::migration_wait`] for one to come back.
//!
//! # Cancellation
//! Dropping the future of [`Scheduler::start`], or the [`Generation`], drops the gRPC streams, and so
//! cancels the work on both workers.

mod failure;
mod generation;
mod migration;
mod prefill;
mod sessions;

pub(crate) use failure::Failure;
pub(crate) use generation::{Finish, Generation, Step};

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kelvin_proto::worker::v1::{GenerateRequest, Sampling};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, field::Empty};

use crate::{
    cost::{Decision, Place, PrefillPolicy, RequestFacts, decide},
    fleet::{Fleet, Flight},
    metrics::Metrics,
    page::Placed,
    prefix::{Found, Prefixes},
};
use generation::{NOTHING, Opened, is_empty};
use migration::Moves;
use prefill::Prefill;
use sessions::Sessions;

/// Decode workers a request is handed to, at most.
const ATTEMPTS: usize = 2;

/// What a request asks of the workers.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// Unique; workers log it.
    pub(crate) request_id: String,
    pub(crate) model: String,
    /// The prompt, at least one token.
    pub(crate) tokens: Vec<u32>,
    pub(crate) sampling: Sampling,
    pub(crate) tokens_max: u32,
    pub(crate) stop_tokens: Vec<u32>,
    pub(crate) logprobs: Option<u32>,
    /// When the request came in.
    pub(crate) arrived: Instant,
    /// What the text must be, in the workers' words; empty for anything.
    pub(crate) grammar: String,
    /// What decides its KV beside the tokens.
    pub(crate) extra: Vec<u8>,
    /// What the store has of the prompt, if it was just asked.
    pub(crate) found: Option<Found>,
    /// The higher, the sooner; 0 is ordinary.
    pub(crate) priority: i32,
    /// Which conversation it is a turn of.
    pub(crate) session_id: Option<String>,
    /// It is the last one.
    pub(crate) session_end: bool,
}

/// Limits of a request's way; see [`RouterConfig`](crate::RouterConfig).
#[derive(Debug, Clone)]
pub(crate) struct Timeouts {
    pub(crate) reserve: Duration,
    pub(crate) block: Duration,
    pub(crate) first_token: Duration,
    pub(crate) token: Duration,
}

/// Brings requests to workers.
pub(crate) struct Scheduler {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) prefixes: Arc<Prefixes>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) timeouts: Timeouts,
    pub(crate) policy: PrefillPolicy,
    /// How often a completion may go on at another worker.
    pub(crate) migrations_max: usize,
    /// Most time it, or a request that is to begin, waits for one to be there.
    pub(crate) migration_wait: Duration,
    pub(crate) sessions: Mutex<Sessions>,
    pub(crate) rng: Mutex<SmallRng>,
    /// Ends every request at once.
    pub(crate) ending: CancellationToken,
}

impl Scheduler {
    /// Serves `job` up to the first message of a decode worker.
    pub(crate) async fn start(self: &Arc<Self>, job: Job) -> Result<Generation, Failure> {
        let span = tracing::debug_span!(
            "schedule",
            request_id = job.request_id,
            prompt_tokens = job.tokens.len(),
            stored_tokens = Empty,
            prefill = Empty,
            worker = Empty,
        );
        let started = tokio::select! {
            biased;
            () = self.ending.cancelled() => Err(Failure::ShuttingDown),
            started = self.place(job).instrument(span) => started,
        };
        started.inspect_err(|failure| self.metrics.error(failure.kind()))
    }

    async fn place(self: &Arc<Self>, mut job: Job) -> Result<Generation, Failure> {
        let block_tokens = self.fleet.model().ok_or(Failure::NoWorker)?.block_tokens;
        let found = match job.found.take() {
            Some(found) => found,
            None => self.prefixes.find(&job.tokens, &job.extra).await,
        };
        let facts = RequestFacts {
            prompt_tokens: job.tokens.len() as u64,
            matched_tokens: found.matched_tokens,
            load_us: found.load_us,
            block_tokens: block_tokens.into(),
            preferred: job.session_id.as_ref().and_then(|session| self.sessions.lock().worker(session)),
        };
        let mut moves = Moves::default();
        let mut prefill: Option<Prefill> = None;
        let mut failed: Option<Failure> = None;
        for attempt in 1..=ATTEMPTS {
            // One that is lost may be started again; nobody waits for one that there never was.
            let may_come = failed.as_ref().map_or_else(|| self.fleet.has_known_decode(), Failure::is_gone);
            let patience = if may_come { self.migration_wait } else { Duration::ZERO };
            let decided = self.decide_within(patience, &facts, &found, &moves, self.policy).await;
            let Some((mut decision, mut flight)) = decided else { break };
            if prefill.is_none() {
                let decided = decision.prefill;
                prefill = self.prefill(&mut decision, &job, &facts).await;
                if decision.prefill != decided {
                    flight = self.flight(&decision, &facts, &found);
                }
            }
            let place = if prefill.is_some() { decision.prefill } else { Place::Local };
            if attempt == 1 {
                self.metrics.decision(place);
            }
            match self.open(&job, 0, flight, wait_blocks(&facts, &found, prefill.is_some())).await {
                Ok(opened) => {
                    let took = job.arrived.elapsed();
                    let span = Span::current();
                    span.record("stored_tokens", found.matched_tokens);
                    span.record("prefill", if prefill.is_some() { "remote" } else { "local" });
                    span.record("worker", opened.worker.name());
                    self.note_session(&job, opened.worker.id(), facts.preferred);
                    self.metrics.first_token(place, took);
                    self.metrics.seen.placed(&job.request_id, self.seen(&job, &opened, place, &found), true);
                    tracing::debug!(
                        worker = opened.worker.name(),
                        ?place,
                        ?took,
                        attempt,
                        priority = job.priority,
                        session = job.session_id,
                        "first token"
                    );
                    return Ok(Generation::new(self.clone(), job, opened, prefill, found));
                }
                Err(failure) => {
                    tracing::warn!(request = job.request_id, attempt, %failure, "a decode worker failed before its first token");
                    let again = failure.another_may_serve() && attempt < ATTEMPTS;
                    moves.failed(&self.fleet, decision.decode);
                    failed = Some(failure);
                    if !again {
                        break;
                    }
                    self.metrics.retries.inc();
                }
            }
        }
        Err(failed.unwrap_or(Failure::NoWorker))
    }

    /// Remembers who has a conversation's turn.
    fn note_session(&self, job: &Job, worker: usize, before: Option<usize>) {
        let Some(session) = &job.session_id else { return };
        self.metrics.session_turn(before.map(|before| before == worker));
        let mut sessions = self.sessions.lock();
        if job.session_end {
            sessions.end(session);
        } else {
            sessions.note(session, worker);
        }
    }

    /// Who serves, for the list of recent requests.
    fn seen(&self, job: &Job, opened: &Opened, place: Place, found: &Found) -> Placed {
        Placed {
            model: Some(job.model.clone()),
            worker: Some(opened.worker.name()),
            mode: Some(if place == Place::Local { "local" } else { "remote" }),
            prefill: match place {
                Place::Local => None,
                Place::Remote(id) => Some(self.fleet.worker(id).name()),
            },
            prompt_tokens: job.tokens.len() as u64,
            matched_tokens: found.matched_tokens,
            namespace: self.prefixes.namespace_id(),
            found: Some(found.clone()),
        }
    }

    /// Who serves, already counted at the decode worker.
    fn decide(
        &self,
        request: &RequestFacts,
        found: &Found,
        excluded: &[usize],
        policy: PrefillPolicy,
    ) -> Option<(Decision, Flight)> {
        // Held until the decision counts: the next one must see it.
        let mut rng = self.rng.lock();
        let workers = self.fleet.facts(excluded);
        let decision = decide(request, &workers, policy, &mut *rng).ok()?;
        let flight = self.flight(&decision, request, found);
        tracing::debug!(?request, ?decision, "decided");
        Some((decision, flight))
    }

    /// Counts the call to the decode worker with what it will have to evaluate.
    fn flight(&self, decision: &Decision, request: &RequestFacts, found: &Found) -> Flight {
        let wait_blocks = wait_blocks(request, found, decision.prefill != Place::Local);
        let pending = request.prompt_tokens.saturating_sub(wait_blocks * request.block_tokens);
        Flight::begin(self.fleet.worker(decision.decode), pending)
    }

    /// Opens the prefill that was decided, if any; one that fails leaves a local decision.
    async fn prefill(&self, decision: &mut Decision, job: &Job, facts: &RequestFacts) -> Option<Prefill> {
        let Place::Remote(id) = decision.prefill else { return None };
        let uncached = facts.prompt_tokens.saturating_sub(facts.matched_tokens);
        let worker = self.fleet.worker(id);
        let made = || self.prefixes.making(&job.tokens, &job.extra, facts.matched_tokens);
        match Prefill::open(worker, job, uncached, made, self.timeouts.reserve, &self.metrics).await {
            Ok(prefill) => Some(prefill),
            Err(failure) => {
                self.metrics.error("prefill_failed");
                tracing::warn!(request = job.request_id, %failure, "prefill failed, the decode worker evaluates");
                decision.prefill = Place::Local;
                None
            }
        }
    }

    /// Opens a decode worker's stream and waits for its first message. The last `generated` of the job's tokens are
    /// output already.
    async fn open(
        &self,
        job: &Job,
        generated: u64,
        flight: Flight,
        wait_blocks: u64,
    ) -> Result<Opened, Failure> {
        let generated = u32::try_from(generated).unwrap_or(u32::MAX);
        let worker = flight.worker().clone();
        let request = GenerateRequest {
            request_id: job.request_id.clone(),
            model: job.model.clone(),
            tokens: job.tokens.clone(),
            extra: job.extra.clone().into(),
            sampling: Some(job.sampling.clone()),
            tokens_max: job.tokens_max.saturating_sub(generated),
            stop_tokens: job.stop_tokens.clone(),
            wait_blocks: u32::try_from(wait_blocks).unwrap_or(u32::MAX),
            wait_ms: u64::try_from(self.timeouts.block.as_millis()).unwrap_or(u64::MAX),
            logprobs: job.logprobs,
            grammar: job.grammar.clone(),
            generated_tokens: generated,
        };
        let mut client = worker.client();
        let opening = async {
            let mut stream = client.generate(request).await?.into_inner();
            let first = stream.message().await?;
            Ok::<_, tonic::Status>((stream, first))
        };
        let name = || worker.name();
        let failure = match timeout(self.timeouts.first_token, opening).await {
            Ok(Ok((_, Some(first)))) if is_empty(&first) => {
                Failure::Protocol { worker: name(), what: NOTHING }
            }
            Ok(Ok((stream, Some(first)))) => {
                flight.evaluated();
                return Ok(Opened { worker, flight, stream, first });
            }
            Ok(Ok((_, None))) => {
                Failure::Lost { worker: name(), why: "its stream ended before the first message".into() }
            }
            Ok(Err(status)) => Failure::of(name(), &status),
            Err(_) => Failure::Stalled { worker: name(), after: self.timeouts.first_token },
        };
        if let Failure::Lost { why, .. } = &failure {
            worker.lost(why);
        }
        Err(failure)
    }
}

/// Blocks of a prompt that the decode worker is to wait for.
fn wait_blocks(request: &RequestFacts, found: &Found, remote: bool) -> u64 {
    // At least one prompt token is left for decode, so the last whole block may not count.
    let blocks = request.prompt_tokens.saturating_sub(1) / request.block_tokens;
    let known = found.awaited_tokens() / request.block_tokens;
    if remote { blocks } else { known.min(blocks) }
}
