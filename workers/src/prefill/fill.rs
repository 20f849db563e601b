//! One prompt's way into the store.

use std::time::{Duration, Instant};

use kelvin_kvstore::{Reserved, SequenceHash, WriteLease, client};
use kelvin_proto::{Reason, Refusal, worker::v1};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    Driver, FILLING_WAIT, Output, PrefillJob, Ticket,
    plan::{Plan, Slot, slot_of},
    stopped,
};
use crate::{
    decode::is_present,
    engine::{BatchItem, Engine, EngineError},
    load::average,
    span,
};

/// Blocks imported in one call of the engine: a few milliseconds.
const IMPORT_BLOCKS: usize = 32;

/// The work on one prompt, and what was done so far.
pub(super) struct Fill<'a> {
    driver: &'a Driver,
    job: &'a PrefillJob,
    hashes: Vec<SequenceHash>,
    output: &'a Output,
    ticket: &'a mut Ticket,
    stop: &'a CancellationToken,
    plan: Plan,
    /// Blocks in the engine.
    done: usize,
    /// How many of the blocks that were sent are in the store, and how many were sent.
    committing: Option<JoinHandle<Result<(usize, usize), client::Error>>>,
    /// Set when the store failed: there is nothing to fill any more.
    store_gone: bool,
    progress: v1::PrefillResponse,
}

impl<'a> Fill<'a> {
    pub(super) fn new(
        driver: &'a Driver,
        job: &'a PrefillJob,
        hashes: Vec<SequenceHash>,
        output: &'a Output,
        ticket: &'a mut Ticket,
        stop: &'a CancellationToken,
    ) -> Self {
        Self {
            driver,
            job,
            hashes,
            output,
            ticket,
            stop,
            plan: Plan::new(Vec::new(), []),
            done: 0,
            committing: None,
            store_gone: false,
            progress: v1::PrefillResponse::default(),
        }
    }

    /// Tokens evaluated, and microseconds that took.
    pub(super) fn evaluated(&self) -> (u64, u64) {
        (self.progress.evaluated_tokens, self.progress.evaluate_us)
    }

    /// Does it all and returns the last message.
    pub(super) async fn run(&mut self) -> Result<v1::PrefillResponse, Refusal> {
        let worked = self.work().await;
        self.await_commit().await;
        worked?;
        Ok(v1::PrefillResponse { done: true, ..self.progress })
    }

    async fn work(&mut self) -> Result<(), Refusal> {
        self.make_plan().await?;
        self.report();
        while let Some(slot) = self.plan.front() {
            if self.output.is_closed() || self.store_gone {
                return Ok(());
            }
            if self.stop.is_cancelled() {
                return Err(stopped());
            }
            match slot {
                Slot::Stored(_) => self.import().await?,
                Slot::Elsewhere => self.wait_elsewhere().await,
                Slot::Ours(_) | Slot::Unstored => self.evaluate().await?,
            }
        }
        Ok(())
    }

    /// Leases what is stored and reserves the rest.
    async fn make_plan(&mut self) -> Result<(), Refusal> {
        let namespace = &self.driver.namespace;
        let refused = |error: client::Error| Refusal::new(Reason::Unavailable, error.to_string());
        let matched = namespace.match_prefix(&self.hashes).await.map_err(refused)?;
        if matched.blocks as usize >= self.hashes.len() {
            self.progress.cached_blocks = self.hashes.len() as u32;
            return Ok(());
        }
        let stored = namespace.acquire(&self.hashes, Duration::ZERO).await.map_err(refused)?.leases;
        let (cached, rest) = self.hashes.split_at(stored.len());
        let reserved = match rest {
            [] => Vec::new(),
            rest => namespace.reserve(cached.last().copied(), rest).await.map_err(refused)?,
        };
        self.progress.cached_blocks = cached.len() as u32;
        self.plan = Plan::new(stored, reserved.into_iter().map_while(slot_of));
        self.progress.reserved_blocks = self.plan.ours() as u32;
        Ok(())
    }

    /// Scatters a run of stored blocks into the engine; from a bad one on they are evaluated instead.
    async fn import(&mut self) -> Result<(), Refusal> {
        let leases = self.plan.take_stored(IMPORT_BLOCKS);
        let wanted = leases.len();
        let started = Instant::now();
        let call = move |engine: &mut dyn Engine| {
            for (index, lease) in leases.iter().enumerate() {
                let imported = lease
                    .verified()
                    .map_err(|error| error.to_string())
                    .and_then(|bytes| engine.import_block(0, bytes).map_err(|error| error.to_string()));
                if let Err(error) = imported {
                    tracing::warn!(error, "import block; evaluating it here");
                    return index;
                }
            }
            leases.len()
        };
        let span = span::of_import(wanted);
        let imported = self.driver.calls.call(call).instrument(span).await.map_err(engine_gone)?;
        if imported > 0 {
            let micros = started.elapsed().as_secs_f64() * 1e6 / imported as f64;
            self.driver.load.update(|load| average(&mut load.import_block_us, micros));
        }
        self.plan.evaluate_instead(wanted - imported);
        self.advance(imported);
        Ok(())
    }

    /// Waits for blocks that another worker makes. Should they not come, tries to make them here.
    async fn wait_elsewhere(&mut self) {
        let namespace = &self.driver.namespace;
        let hashes = &self.hashes[self.done..self.done + self.plan.leading_elsewhere()];
        let acquired = tokio::select! {
            acquired = namespace.acquire(hashes, FILLING_WAIT) => acquired,
            // The loop looks at both before it does anything else.
            () = self.output.closed() => return,
            () = self.stop.cancelled() => return,
        };
        match acquired {
            Ok(acquired) if !acquired.leases.is_empty() => {
                self.plan.replace_front(acquired.leases.into_iter().map(Slot::Stored));
            }
            Ok(_) => {
                let parent = self.done.checked_sub(1).map(|index| self.hashes[index]);
                let reserved = match namespace.reserve(parent, hashes).await {
                    Ok(reserved) => reserved,
                    Err(error) => {
                        tracing::warn!(%error, "reserve blocks; ending early");
                        self.store_gone = true;
                        return;
                    }
                };
                if matches!(reserved.first(), Some(Reserved::AlreadyStored)) {
                    // It came just now: the next turn takes it.
                    return;
                }
                // What is still in the making after all that time is made here as well: better twice than never,
                // and all of it at once, so that this wait was the last.
                let slots: Vec<Slot> = reserved
                    .into_iter()
                    .map(|reserved| match reserved {
                        Reserved::Write(lease) => Slot::Ours(lease),
                        _ => Slot::Unstored,
                    })
                    .collect();
                let ours = slots.iter().filter(|slot| matches!(slot, Slot::Ours(_))).count();
                self.progress.reserved_blocks += ours as u32;
                self.plan.replace_front(slots);
            }
            Err(error) => {
                tracing::warn!(%error, "wait for blocks of another worker; ending early");
                self.store_gone = true;
            }
        }
    }

    /// Evaluates one chunk and exports its blocks into their reservations, while the last chunk's are being
    /// committed; then commits these.
    async fn evaluate(&mut self) -> Result<(), Refusal> {
        let block_tokens = self.driver.spec.block_tokens as usize;
        let chunk = self.plan.take_chunk(self.driver.chunk_tokens as usize / block_tokens);
        let (first, count) = (self.done, chunk.len());
        let tokens = self.job.prompt[first * block_tokens..(first + count) * block_tokens].to_vec();
        let started = Instant::now();
        let call = move |engine: &mut dyn Engine| fill_chunk(engine, first, &tokens, chunk);
        let (filled, elapsed) = self
            .driver
            .calls
            .call(call)
            .instrument(span::of_evaluation(count * block_tokens))
            .await
            .map_err(engine_gone)?
            .map_err(|error| Refusal::new(Reason::EngineFailed, error.to_string()))?;
        let tokens = count * block_tokens;
        tracing::trace!(tokens, ?elapsed, whole = ?started.elapsed(), "chunk");
        self.driver.load.update(|load| {
            let rate = tokens as f64 / elapsed.as_secs_f64().max(1e-6);
            average(&mut load.prefill_tokens_per_second, rate);
        });
        self.progress.evaluated_tokens += tokens as u64;
        self.progress.evaluate_us += elapsed.as_micros() as u64;
        self.await_commit().await;
        if !filled.is_empty() {
            let namespace = self.driver.namespace.clone();
            let commit = async move {
                let sent = filled.len();
                let statuses = namespace.commit(filled).await?;
                Ok((statuses.into_iter().filter(|&status| is_present(status)).count(), sent))
            };
            self.committing = Some(tokio::spawn(commit.in_current_span()));
        }
        self.advance(count);
        self.report();
        Ok(())
    }

    /// Waits for the commit under way, which had an evaluation's time already.
    async fn await_commit(&mut self) {
        let Some(committing) = self.committing.take() else { return };
        match committing.await {
            Ok(Ok((present, sent))) => {
                self.progress.committed_blocks += present as u32;
                if present < sent {
                    // What comes behind could not be found: the chain is broken, or the store a new one.
                    tracing::warn!(present, sent, "blocks were not taken; ending early");
                    self.store_gone = true;
                }
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "commit blocks; ending early");
                self.store_gone = true;
            }
            Err(error) => tracing::error!(%error, "commit blocks"),
        }
    }

    fn advance(&mut self, blocks: usize) {
        self.done += blocks;
        self.ticket.settle(blocks as u64 * u64::from(self.driver.spec.block_tokens));
    }

    /// Sends how far it is, unless only the last message's place is free.
    fn report(&self) {
        if self.output.capacity() > 1 {
            let _ = self.output.try_send(Ok(self.progress));
        }
    }
}

/// On the owner thread: evaluates a chunk and gathers its blocks where they belong.
fn fill_chunk(
    engine: &mut dyn Engine,
    first: usize,
    tokens: &[u32],
    chunk: Vec<Option<WriteLease>>,
) -> Result<(Vec<WriteLease>, Duration), EngineError> {
    let started = Instant::now();
    engine.evaluate(&[BatchItem { sequence: 0, tokens, logits: false }])?;
    let elapsed = started.elapsed();
    let mut filled = Vec::with_capacity(chunk.len());
    for (offset, lease) in chunk.into_iter().enumerate() {
        if let Some(mut lease) = lease {
            engine.export_block(0, (first + offset) as u32, lease.bytes_mut())?;
            filled.push(lease);
        }
    }
    Ok((filled, elapsed))
}

fn engine_gone(error: crate::Error) -> Refusal {
    Refusal::new(Reason::Internal, error.to_string())
}
