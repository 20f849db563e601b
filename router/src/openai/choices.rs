//! Several completions of one prompt as one answer.
//!
//! # Overview
//! What the completions give comes out as it comes, by choice. The first is begun alone: once it has its first
//! token, the prompt's KV is in the store or on its way there, and the others begin from it.
//!
//! # Cancellation
//! Dropping the choices drops their completions. One that fails ends them all.

use std::{future::Future, pin::Pin, sync::Arc};

use futures::{
    Stream, StreamExt,
    future::try_join_all,
    stream::{SelectAll, select_all, unfold},
};

use super::{
    completion::{Completion, Counts, Delta, Ending, Piece},
    hints::Hints,
};
use crate::{
    admission::Admitted,
    scheduler::{Failure, Job, Scheduler},
};

/// What comes next of the choices.
#[derive(Debug)]
pub(super) enum Event {
    Delta(u32, Delta),
    /// The last delta of a choice, which may be empty.
    End(u32, Delta, Ending),
    /// All choices ended.
    Done(Counts),
}

struct Item {
    index: u32,
    piece: Result<Piece, Failure>,
    /// Of a choice that ended.
    tokens: Vec<u32>,
}

type Items = Pin<Box<dyn Stream<Item = Item> + Send>>;
/// What is done once an answer is whole, with its first choice's tokens.
pub(super) type After = Box<dyn FnOnce(Vec<u32>) + Send>;

/// The choices of one answer under way.
pub(super) struct Choices {
    items: SelectAll<Items>,
    count: u32,
    done: bool,
    counts: Counts,
    first_tokens: Vec<u32>,
    after: Option<After>,
    _admitted: Admitted,
}

impl Choices {
    /// Begins `count` completions of `job`, each with a seed and a request id of its own.
    pub(super) async fn begin(
        scheduler: &Arc<Scheduler>,
        job: Job,
        count: u32,
        admitted: Admitted,
        complete: impl Fn(crate::scheduler::Generation) -> Completion,
        after: Option<After>,
    ) -> Result<Self, Failure> {
        let jobs = (1..count).map(|index| {
            // The first one will have stored what is asked for here.
            let mut job = Job { found: None, ..job.clone() };
            job.request_id = format!("{}-{index}", job.request_id);
            job.sampling.seed = job.sampling.seed.map(|seed| seed.wrapping_add(index.into()));
            job
        });
        let jobs: Vec<Job> = jobs.collect();
        let mut generations = vec![scheduler.start(job).await?];
        generations.extend(try_join_all(jobs.into_iter().map(|job| start(scheduler, job))).await?);
        let items = (0..).zip(generations).map(|(index, generation)| items(index, complete(generation)));
        Ok(Self {
            items: select_all(items),
            count,
            done: false,
            counts: Counts { prompt_tokens: 0, completion_tokens: 0, cached_tokens: 0 },
            first_tokens: Vec::new(),
            after,
            _admitted: admitted,
        })
    }

    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// The next event. After [`Event::Done`] or a failure nothing more may be asked.
    pub(super) async fn next(&mut self) -> Result<Event, Failure> {
        let Some(Item { index, piece, tokens }) = self.items.next().await else {
            debug_assert!(!self.done, "asked after the end");
            self.done = true;
            if let Some(after) = self.after.take() {
                after(std::mem::take(&mut self.first_tokens));
            }
            return Ok(Event::Done(self.counts));
        };
        match piece? {
            Piece::Delta(delta) => Ok(Event::Delta(index, delta)),
            Piece::End(delta, ending, counts) => {
                // The prompt is the same for all, and what was cached of it is said of the first.
                self.counts.prompt_tokens = counts.prompt_tokens;
                self.counts.completion_tokens += counts.completion_tokens;
                if index == 0 {
                    self.counts.cached_tokens = counts.cached_tokens;
                    self.first_tokens = tokens;
                }
                Ok(Event::End(index, delta, ending))
            }
        }
    }
}

/// A function of its own, so that the future's type has a name less.
fn start(
    scheduler: &Arc<Scheduler>,
    job: Job,
) -> impl Future<Output = Result<crate::scheduler::Generation, Failure>> + Send {
    scheduler.start(job)
}

fn items(index: u32, completion: Completion) -> Items {
    Box::pin(unfold(Some(completion), move |completion| async move {
        let mut completion = completion?;
        let piece = completion.next().await;
        let goes_on = matches!(piece, Ok(Piece::Delta(_)));
        let tokens = if goes_on { Vec::new() } else { completion.take_tokens() };
        Some((Item { index, piece, tokens }, goes_on.then_some(completion)))
    }))
}

/// Hints that are done after an answer; `None` if there are none.
pub(super) fn after(scheduler: &Scheduler, hints: &Hints, prompt: &[u32]) -> Option<After> {
    if !hints.has_after() {
        return None;
    }
    let (prefixes, hints, mut tokens) = (scheduler.prefixes.clone(), hints.clone(), prompt.to_vec());
    Some(Box::new(move |answer| {
        tokens.extend(answer);
        tokio::spawn(async move { prefixes.after(&tokens, &hints).await });
    }))
}
