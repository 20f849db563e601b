//! A completion whose decode worker was lost goes on at another one.
//!
//! # Overview
//! Prompt and output so far are handed to another decode worker as what they are: tokens, the last of which are
//! output already ([`GenerateRequest::generated_tokens`](kelvin_proto::worker::v1::GenerateRequest)). Decode
//! workers store the blocks that they complete, so the next one imports all but the last of them and evaluates
//! what is left. The client sees a longer pause and nothing else.
//!
//! Blocks that the lost worker was storing are not waited for: nobody finishes them.
//!
//! If the lost worker was the only one, it may be started again and then serve as another: a completion waits
//! [`Scheduler::migration_wait`] for that.
//!
//! # Limits
//! A request is moved [`Scheduler::migrations_max`] times, whether a move succeeds or not, and never to a worker
//! that failed it before, unless that was restarted: one that kills its workers must not kill all of them.

use std::time::{Duration, Instant};

use kelvin_proto::worker::v1::Usage;
use tokio::time::sleep;

use super::{Failure, Job, Scheduler, generation::Opened};
use crate::{
    cost::{Decision, PrefillPolicy, RequestFacts},
    fleet::{Fleet, Flight},
    metrics::Metrics,
    prefix::Found,
};

/// Between two looks whether a worker is there.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What a completion's moves came to.
#[derive(Debug, Default)]
pub(super) struct Moves {
    count: usize,
    /// Workers that failed it, and which start of theirs.
    failed: Vec<(usize, Option<u64>)>,
    /// Of the last move: tokens that it will have to evaluate, as far as the store told.
    expected_tokens: Option<u64>,
}

impl Moves {
    pub(super) fn is_none(&self) -> bool {
        self.count == 0
    }

    pub(super) fn failed(&mut self, fleet: &Fleet, worker: usize) {
        self.failed.push((worker, fleet.worker(worker).incarnation()));
    }

    /// Workers that must not have it again.
    fn excluded(&self, fleet: &Fleet) -> Vec<usize> {
        let same = |&&(id, start): &&(usize, Option<u64>)| fleet.worker(id).incarnation() == start;
        self.failed.iter().filter(same).map(|&(id, _)| id).collect()
    }

    /// The worker of the last move has ended, with these figures if it came to its end.
    pub(super) fn ended(&mut self, metrics: &Metrics, usage: Option<Usage>) {
        if let Some(expected) = self.expected_tokens.take() {
            let recomputed = usage.map_or(expected, |usage| usage.evaluated_tokens);
            metrics.migration_recomputed_tokens.inc_by(recomputed);
        }
    }
}

impl Scheduler {
    /// Opens a stream that goes on behind the last of the job's tokens, of which `generated` are output.
    /// `failure` is what `lost`, which had it, ended with; it is given back if there is no other.
    pub(super) async fn move_on(
        &self,
        job: &Job,
        generated: u64,
        lost: usize,
        mut failure: Failure,
        moves: &mut Moves,
    ) -> Result<Opened, Failure> {
        let began = Instant::now();
        moves.failed(&self.fleet, lost);
        let block_tokens = self.fleet.model().ok_or(Failure::NoWorker)?.block_tokens;
        let tokens = job.tokens.len() as u64;
        while failure.another_may_serve() && moves.count < self.migrations_max {
            let found = self.prefixes.find(&job.tokens, &job.extra).await.without_filling();
            let matched_tokens = found.matched_tokens;
            let facts = RequestFacts {
                prompt_tokens: tokens,
                matched_tokens,
                load_us: found.load_us,
                block_tokens: block_tokens.into(),
                preferred: None,
            };
            let patience = if failure.is_gone() { self.migration_wait } else { Duration::ZERO };
            let decided = self.decide_within(patience, &facts, &found, moves, PrefillPolicy::Local).await;
            let Some((decision, flight)) = decided else { break };
            moves.count += 1;
            match self.open(job, generated, flight, matched_tokens / u64::from(block_tokens)).await {
                Ok(opened) => {
                    self.metrics.migrations.inc();
                    self.metrics.migration_tokens.inc_by(tokens);
                    if let Some(session) = job.session_id.as_ref().filter(|_| !job.session_end) {
                        self.sessions.lock().note(session, opened.worker.id());
                    }
                    self.metrics.migration_pause.observe(began.elapsed().as_secs_f64());
                    moves.expected_tokens = Some(tokens.saturating_sub(matched_tokens));
                    let worker = opened.worker.name();
                    tracing::info!(
                        request = job.request_id,
                        worker,
                        tokens,
                        matched_tokens,
                        "a completion goes on"
                    );
                    return Ok(opened);
                }
                Err(next) => {
                    tracing::warn!(request = job.request_id, failure = %next, "a completion found no new worker yet");
                    moves.failed(&self.fleet, decision.decode);
                    failure = next;
                }
            }
        }
        Err(failure)
    }

    /// Who serves; waits for somebody to be there.
    pub(super) async fn decide_within(
        &self,
        patience: Duration,
        facts: &RequestFacts,
        found: &Found,
        moves: &Moves,
        policy: PrefillPolicy,
    ) -> Option<(Decision, Flight)> {
        let began = Instant::now();
        loop {
            let excluded = moves.excluded(&self.fleet);
            let decided = self.decide(facts, found, &excluded, policy);
            if decided.is_some() || began.elapsed() >= patience {
                return decided;
            }
            sleep(LOOK_EVERY).await;
        }
    }
}
