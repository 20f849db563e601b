//! One engine: what is batched in a pass, and how long it takes.
//!
//! # Overview
//! A scheduler as vLLM has it, with the limits that Dynamo's mocker sets by default. A pass has a budget of
//! tokens. The running sequences take theirs first: one token each, or as much as is left of a prompt. Then
//! waiting ones are admitted in their order, while the budget lasts and the whole sequence fits into memory;
//! a prompt that exceeds the budget goes on in the next pass. What is in the prefix cache is not computed
//! again. The pass takes the time of its new prompt tokens and that of a decode step, one after the other,
//! and at its end each sequence whose prompt is done has one more token. If memory runs out under running
//! sequences, the youngest one gives back its blocks and waits in front of all others.
//!
//! ```text
//!             ┌──────── preempted ───────┐
//!             ▼                          │
//! arrive ► waiting ─────── admit ────► running ─── last token ──► done
//!             │  ▲
//!             ▼  │ loaded
//!           loading (blocks that are found outside of the engine)
//! ```

use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

use super::cache::{DeviceCache, Slot};
use super::clock::{Nanos, nanos};
use super::timing::{decode_ms, prefill_ms};
use super::workload::ENGINE_BLOCK_TOKENS;

/// Tokens of a pass.
const PASS_TOKENS: u64 = 8_192;
/// Sequences that run at once.
const RUNNING_MAX: usize = 256;

/// Where an engine finds blocks that it doesn't have.
pub(crate) trait Outside {
    /// Begins to load those blocks of `keys` behind the first `held` that are worth it; [`Engine::loaded`] is called
    /// when they are here. `None`: compute them.
    fn load(&mut self, worker: usize, keys: &[u64], held: usize, now: Nanos) -> Option<Load>;
}

/// See [`Outside::load`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) blocks: usize,
    /// Which load it is.
    pub(crate) ticket: u32,
}

/// A request in an engine.
#[derive(Debug)]
struct Sequence {
    job: u32,
    /// Of the whole blocks of its prompt.
    keys: Rc<[u64]>,
    prompt_tokens: u64,
    output_tokens: u64,
    generated: u64,
    /// Tokens whose KV is there.
    computed: u64,
    slots: Vec<Slot>,
    /// Blocks whose key is known to the cache, or would be if it was not there before.
    registered: usize,
    /// Whether it is told which tokens were reused: the first admission counts.
    is_admitted: bool,
    /// Tokens that were loaded when it was.
    loaded: u64,
}

impl Sequence {
    fn tokens(&self) -> u64 {
        self.prompt_tokens + self.generated
    }
}

/// What became of a request in a pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Its prompt is in work: so many of its tokens were in memory or loaded.
    Admitted { job: u32, device_tokens: u64, loaded_tokens: u64 },
    /// It has a first token.
    FirstToken { job: u32 },
    /// It has its last token.
    Done { job: u32 },
}

/// Blocks that came into memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    /// Of the prompt, and which of them.
    pub(crate) keys: Rc<[u64]>,
    pub(crate) range: Range<usize>,
    /// Whether they were computed here, not loaded.
    pub(crate) is_new: bool,
}

impl Stored {
    /// Their keys, and what the first stands behind.
    pub(crate) fn run(&self) -> (Option<u64>, &[u64]) {
        let parent = self.range.start.checked_sub(1).map(|parent| self.keys[parent]);
        (parent, &self.keys[self.range.clone()])
    }
}

/// A pass that began.
#[derive(Debug, Default)]
pub(crate) struct Pass {
    pub(crate) ends_at: Nanos,
    /// New prompt tokens.
    prefill_tokens: u64,
    pub(crate) admitted: Vec<Outcome>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Engine {
    worker: usize,
    cache: DeviceCache,
    waiting: VecDeque<Sequence>,
    /// By ticket.
    loading: Vec<(u32, Sequence)>,
    /// Loaded, and when.
    loaded: Vec<(Nanos, Sequence)>,
    running: Vec<Sequence>,
    is_busy: bool,
    stored: Vec<Stored>,
    preemptions: u64,
    /// Keys of blocks with generated tokens, which no prompt has.
    next_generated: u64,
}

impl Engine {
    pub(crate) fn new(worker: usize, capacity_blocks: usize) -> Self {
        Self {
            worker,
            cache: DeviceCache::new(capacity_blocks),
            waiting: VecDeque::new(),
            loading: Vec::new(),
            loaded: Vec::new(),
            running: Vec::new(),
            is_busy: false,
            stored: Vec::new(),
            preemptions: 0,
            next_generated: 0,
        }
    }

    /// Whether such a request can ever run here.
    pub(crate) fn fits(&self, tokens: u64) -> bool {
        tokens.div_ceil(ENGINE_BLOCK_TOKENS) <= self.cache.capacity() as u64
    }

    pub(crate) fn arrive(&mut self, job: u32, keys: Rc<[u64]>, prompt_tokens: u64, output_tokens: u64) {
        self.waiting.push_back(Sequence {
            job,
            keys,
            prompt_tokens,
            output_tokens,
            generated: 0,
            computed: 0,
            slots: Vec::new(),
            registered: 0,
            is_admitted: false,
            loaded: 0,
        });
    }

    pub(crate) fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// Blocks that came since the last call.
    pub(crate) fn take_stored(&mut self) -> Vec<Stored> {
        std::mem::take(&mut self.stored)
    }

    /// Keys of blocks that went since the last call.
    pub(crate) fn take_evicted(&mut self) -> Vec<u64> {
        self.cache.take_evicted()
    }

    /// A load is done. The next pass that starts finds it.
    pub(crate) fn loaded(&mut self, ticket: u32, now: Nanos) {
        let number = self.loading.iter().position(|(other, _)| *other == ticket).expect("it was begun here");
        let (_, sequence) = self.loading.swap_remove(number);
        self.loaded.push((now, sequence));
    }

    /// Begins a pass, unless one is on or there is nothing to do.
    pub(crate) fn start(&mut self, now: Nanos, outside: &mut dyn Outside) -> Option<Pass> {
        if self.is_busy {
            return None;
        }
        self.take_loaded();
        let mut pass = Pass::default();
        let mut budget = PASS_TOKENS;
        let preempted = self.schedule_running(&mut budget, &mut pass);
        if !preempted {
            self.admit(now, &mut budget, &mut pass, outside);
        }
        let ready = self.running.iter().any(|sequence| sequence.computed == sequence.tokens());
        let prefill = prefill_ms(pass.prefill_tokens);
        let decode = ready.then(|| decode_ms(self.cache.active(), self.cache.capacity()));
        if budget == PASS_TOKENS {
            return None;
        }
        pass.ends_at = now + nanos(prefill) + decode.map_or(0, nanos);
        self.is_busy = true;
        Some(pass)
    }

    /// Ends the pass.
    pub(crate) fn finish(&mut self, outcomes: &mut Vec<Outcome>) {
        assert!(self.is_busy, "a pass ends that began");
        self.is_busy = false;
        let mut running = std::mem::take(&mut self.running);
        running.retain_mut(|sequence| {
            if sequence.computed < sequence.tokens() {
                return true;
            }
            sequence.generated += 1;
            if sequence.generated == 1 {
                outcomes.push(Outcome::FirstToken { job: sequence.job });
            }
            let is_done = sequence.generated >= sequence.output_tokens;
            if is_done {
                outcomes.push(Outcome::Done { job: sequence.job });
                self.retire(sequence);
            }
            !is_done
        });
        self.running = running;
    }

    /// Gives back the blocks of a sequence that is done. Those with generated tokens stay in the cache like
    /// all others, though no prompt of the trace has them.
    fn retire(&mut self, sequence: &Sequence) {
        let whole = (sequence.computed / ENGINE_BLOCK_TOKENS) as usize;
        for slot in &sequence.slots[sequence.registered.min(whole)..whole] {
            self.next_generated += 1;
            let key = !(self.next_generated << 12 | self.worker as u64);
            self.cache.register(*slot, key);
        }
        self.cache.release(&sequence.slots);
    }

    /// The sequences whose blocks have come wait in front.
    fn take_loaded(&mut self) {
        self.loaded.sort_by_key(|(at, sequence)| (*at, sequence.job));
        for (_, mut sequence) in self.loaded.drain(..).rev() {
            register(&mut self.cache, &mut self.stored, &mut sequence, false);
            self.waiting.push_front(sequence);
        }
    }

    /// Whether one was preempted.
    fn schedule_running(&mut self, budget: &mut u64, pass: &mut Pass) -> bool {
        let mut preempted = false;
        let mut number = 0;
        while number < self.running.len() && *budget > 0 {
            let sequence = &mut self.running[number];
            let granted = (sequence.tokens() - sequence.computed).min(*budget);
            if !allocate(&mut self.cache, sequence, granted) {
                preempted = true;
                self.preemptions += 1;
                let youngest = self.running.pop().expect("one runs");
                self.preempt(youngest);
                continue;
            }
            compute(&mut self.cache, &mut self.stored, sequence, granted, pass);
            *budget -= granted;
            number += 1;
        }
        preempted
    }

    fn preempt(&mut self, mut sequence: Sequence) {
        self.cache.release(&sequence.slots);
        sequence.slots.clear();
        (sequence.computed, sequence.registered) = (0, 0);
        self.waiting.push_front(sequence);
    }

    fn admit(&mut self, now: Nanos, budget: &mut u64, pass: &mut Pass, outside: &mut dyn Outside) {
        while self.running.len() < RUNNING_MAX && *budget > 0 {
            let Some(first) = self.waiting.front() else { break };
            let mut held = 0;
            if first.computed == 0 {
                // The last token is computed in any case: what follows is sampled from it.
                let useful = ((first.tokens() - 1) / ENGINE_BLOCK_TOKENS) as usize;
                let keys = &first.keys[..useful.min(first.keys.len())];
                let (matched, active) = self.cache.matched(keys);
                let blocks = first.tokens().div_ceil(ENGINE_BLOCK_TOKENS) as usize;
                if blocks - active > self.cache.available() {
                    break;
                }
                held = matched;
                let load = outside.load(self.worker, keys, held, now).filter(|load| load.blocks > 0);
                if let Some(load) = load {
                    let mut sequence = self.waiting.pop_front().expect("it is the first");
                    self.take(&mut sequence, held);
                    let tokens = load.blocks as u64 * ENGINE_BLOCK_TOKENS;
                    // Room for all of it, so that no two loaded ones wait for each other's.
                    let all = sequence.tokens() - sequence.computed;
                    let is_there = allocate(&mut self.cache, &mut sequence, all);
                    assert!(is_there, "the whole sequence fits");
                    sequence.computed += tokens;
                    sequence.loaded = tokens;
                    self.loading.push((load.ticket, sequence));
                    continue;
                }
            }
            let mut sequence = self.waiting.pop_front().expect("it is the first");
            if sequence.computed == 0 {
                self.take(&mut sequence, held);
            }
            let granted = (sequence.tokens() - sequence.computed).min(*budget);
            let is_there = allocate(&mut self.cache, &mut sequence, granted);
            assert!(is_there, "the whole sequence fits");
            if !sequence.is_admitted {
                sequence.is_admitted = true;
                pass.admitted.push(Outcome::Admitted {
                    job: sequence.job,
                    device_tokens: sequence.computed - sequence.loaded,
                    loaded_tokens: sequence.loaded,
                });
            }
            compute(&mut self.cache, &mut self.stored, &mut sequence, granted, pass);
            *budget -= granted;
            self.running.push(sequence);
        }
    }

    /// Uses the first blocks, which are in the cache.
    fn take(&mut self, sequence: &mut Sequence, blocks: usize) {
        let keys = sequence.keys[..blocks].iter();
        sequence.slots = keys.map(|key| self.cache.take(*key).expect("it was matched")).collect();
        sequence.computed = blocks as u64 * ENGINE_BLOCK_TOKENS;
        sequence.registered = blocks;
    }
}

fn compute(
    cache: &mut DeviceCache,
    stored: &mut Vec<Stored>,
    sequence: &mut Sequence,
    tokens: u64,
    pass: &mut Pass,
) {
    let before = sequence.computed.min(sequence.prompt_tokens);
    sequence.computed += tokens;
    pass.prefill_tokens += sequence.computed.min(sequence.prompt_tokens) - before;
    register(cache, stored, sequence, true);
}

/// Makes the whole blocks of the prompt that are computed known: the next one in the same pass finds them.
fn register(cache: &mut DeviceCache, stored: &mut Vec<Stored>, sequence: &mut Sequence, is_new: bool) {
    let whole = ((sequence.computed / ENGINE_BLOCK_TOKENS) as usize).min(sequence.keys.len());
    let first = sequence.registered;
    if whole <= first {
        return;
    }
    for (slot, key) in sequence.slots[first..whole].iter().zip(&sequence.keys[first..whole]) {
        cache.register(*slot, *key);
    }
    sequence.registered = whole;
    stored.push(Stored { keys: sequence.keys.clone(), range: first..whole, is_new });
}

/// Blocks for so many more tokens; without room for all of them it stays as it was.
fn allocate(cache: &mut DeviceCache, sequence: &mut Sequence, tokens: u64) -> bool {
    let blocks = (sequence.computed + tokens).div_ceil(ENGINE_BLOCK_TOKENS) as usize;
    let missing = blocks.saturating_sub(sequence.slots.len());
    if missing > cache.available() {
        return false;
    }
    sequence.slots.extend((0..missing).map(|_| cache.allocate().expect("there is room")));
    true
}

#[cfg(test)]
mod tests;
