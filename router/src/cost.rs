//! Who serves a request: one pure function over what is known of the request and of the workers.
//!
//! # Overview
//! [`decide`] prices every way to serve a request, in microseconds of expected time to first token, and
//! takes the cheapest. A way is a decode worker `d`, with the prompt's prefill done there (local) or on a
//! prefill worker `p` (remote). With `u` the prompt's tokens that the store does not have, `b` its blocks
//! that it has, `rate` tokens a second and `import` microseconds a block:
//!
//! ```text
//! local   wait(d) + load + u / rate(d) + b * import(d)
//!         + (streams(d) + 1) * max(0, u - chunk(d)) / rate(d)
//!         + company(d)
//! remote  max(wait(d), wait(p) + load + u' / rate(p) + b * import(p) + HAND_OFF)
//!         + blocks * import(d) + tail / rate(d)
//!         + company(d)
//! ```
//! `u'` is the part of `u` in whole blocks, which a prefill worker fills; `tail` is what is left behind
//! the last of them, at least one token; `blocks` are all whole blocks of the prompt.
//!
//! - `load`: what the store expects to take to bring those of the `b` blocks into DRAM that are in its other tiers,
//!   as it has measured their reads and the queues before them.
//! - `wait`: prompt tokens queued in front of this request, at the measured rate; and where no slot is
//!   free, [`SLOT_TOKENS`] decode steps for each sequence that must end before.
//! - `(streams + 1) * ...`: the price of crowding. A local prefill stalls every stream of that worker.
//!   One chunk of it rides along with a decode step; what is beyond is paid by each stream, and by the
//!   next arrival (the 1): a decode worker is worth keeping free.
//! - `company = streams * step`: each stream makes the batch and so its step longer, which is why the
//!   less loaded of two otherwise equal decode workers is taken.
//!
//! A worker that was not measured yet counts as the fastest of its role that was, or else of all: were it taken for
//! slow, it would get no prompt, and never be measured. So whether a remote prefill pays is decided by what both
//! workers are measured to gain by it.
//!
//! The worker that had a conversation's turn before gets the next one [`PREFERENCE_US`] cheaper. All of a node's
//! workers find its KV in the same store, so this is worth little, and one stream more outweighs it.
//!
//! Costs within [`TIE`] of the cheapest are equal: local goes before remote (fewer hands), then the decode
//! worker with the fewest streams, and then chance decides, so that equal workers share the load.

use rand::Rng;

/// Prompt tokens a second, before the first measurement: a small model on one core.
pub(crate) const RATE_DEFAULT: f64 = 150.0;
/// Microseconds to import a block, before the first measurement.
const IMPORT_US_DEFAULT: f64 = 100.0;
/// Microseconds of a decode step, before the first measurement.
pub(crate) const STEP_US_DEFAULT: f64 = 20_000.0;
/// What two more processes cost a request: a call, a reservation, and waking up for each block.
const HAND_OFF_US: f64 = 3_000.0;
/// Tokens a sequence is expected to have left when another waits for its slot.
const SLOT_TOKENS: f64 = 64.0;
/// What having had a conversation's last turn is worth, at most half of the cost.
const PREFERENCE_US: f64 = 2_000.0;
/// Relative difference below which two costs are equal: measured rates waver more than that.
pub(crate) const TIE: f64 = 0.02;

/// What matters of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestFacts {
    /// Tokens of the prompt, at least 1.
    pub(crate) prompt_tokens: u64,
    /// Leading tokens the store has, in whole blocks, less than the prompt.
    pub(crate) matched_tokens: u64,
    /// Microseconds until all of those are in the store's memory.
    pub(crate) load_us: u64,
    /// Tokens a block.
    pub(crate) block_tokens: u64,
    /// Decode worker that had the conversation's last turn.
    pub(crate) preferred: Option<usize>,
}

/// What a worker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    Prefill,
    Decode,
}

impl Role {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// What matters of a worker. Rates are `None` before the first measurement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct WorkerFacts {
    /// Whatever the caller knows it by.
    pub(crate) id: usize,
    pub(crate) role: Role,
    /// Sequences it has, running or waiting, and those it can run at once.
    pub(crate) streams: u32,
    pub(crate) slots: u32,
    /// Prompt tokens it has still to evaluate.
    pub(crate) pending_tokens: u64,
    /// Prompt tokens of one evaluation step.
    pub(crate) chunk_tokens: u32,
    pub(crate) prefill_tokens_per_second: Option<f64>,
    pub(crate) import_block_us: Option<f64>,
    pub(crate) decode_step_us: Option<f64>,
}

/// Where the prompt is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// On the decode worker.
    Local,
    /// On the prefill worker of this id.
    Remote(usize),
}

/// Which ways are allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PrefillPolicy {
    /// Whichever is cheaper.
    #[default]
    Auto,
    /// On a prefill worker whenever there is one and the prompt has a whole block to fill.
    Remote,
    /// On the decode worker always.
    Local,
}

/// Who serves a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Decision {
    /// Id of the decode worker.
    pub(crate) decode: usize,
    pub(crate) prefill: Place,
    /// Expected time to first token and price of crowding, microseconds.
    pub(crate) cost_us: f64,
}

/// There is no decode worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no decode worker is ready")]
pub(crate) struct NoDecodeWorker;

/// Picks the way with the least cost (see the module); `rng` decides between equals.
pub(crate) fn decide(
    request: &RequestFacts,
    workers: &[WorkerFacts],
    policy: PrefillPolicy,
    rng: &mut impl Rng,
) -> Result<Decision, NoDecodeWorker> {
    let workers = completed(workers);
    let of = |role| workers.iter().filter(move |worker| worker.role == role);
    let shape = Shape::of(request);
    let mut ways: Vec<(u32, Decision)> = Vec::new();
    for decode in of(Role::Decode) {
        let local = Decision { decode: decode.id, prefill: Place::Local, cost_us: local_us(&shape, decode) };
        let remotes = of(Role::Prefill)
            .filter(|_| shape.fillable > 0.0 && policy != PrefillPolicy::Local)
            .map(|prefill| Decision {
                prefill: Place::Remote(prefill.id),
                cost_us: remote_us(&shape, decode, prefill),
                ..local
            });
        let before = ways.len();
        ways.extend(remotes.map(|remote| (decode.streams, remote)));
        if ways.len() == before || policy != PrefillPolicy::Remote {
            ways.push((decode.streams, local));
        }
    }
    for (_, way) in &mut ways {
        if request.preferred == Some(way.decode) {
            way.cost_us -= PREFERENCE_US.min(way.cost_us / 2.0);
        }
    }
    let least_us = ways.iter().map(|(_, way)| way.cost_us).fold(f64::INFINITY, f64::min);
    ways.retain(|(_, way)| way.cost_us <= least_us * (1.0 + TIE));
    if ways.iter().any(|(_, way)| way.prefill == Place::Local) {
        ways.retain(|(_, way)| way.prefill == Place::Local);
    }
    let fewest = ways.iter().map(|(streams, _)| *streams).min().ok_or(NoDecodeWorker)?;
    ways.retain(|(streams, _)| *streams == fewest);
    if ways.iter().any(|(_, way)| request.preferred == Some(way.decode)) {
        ways.retain(|(_, way)| request.preferred == Some(way.decode));
    }
    Ok(ways[rng.random_range(0..ways.len())].1)
}

/// The workers, with what was not measured taken from the best of the others.
fn completed(workers: &[WorkerFacts]) -> Vec<WorkerFacts> {
    type Figure = fn(&WorkerFacts) -> Option<f64>;
    type Better = fn(f64, f64) -> f64;
    let figures: [(Figure, Better); 3] = [
        (|worker| worker.prefill_tokens_per_second, f64::max),
        (|worker| worker.import_block_us, f64::min),
        (|worker| worker.decode_step_us, f64::min),
    ];
    let known = |value: Option<f64>| value.filter(|value| value.is_finite() && *value > 0.0);
    let best = |(figure, better): (Figure, Better), role: Option<Role>| {
        let among = workers.iter().filter(|worker| role.is_none_or(|role| worker.role == role));
        among.filter_map(|worker| known(figure(worker))).reduce(better)
    };
    let of = |role| figures.map(|figure| best(figure, Some(role)).or_else(|| best(figure, None)));
    let (prefill, decode) = (of(Role::Prefill), of(Role::Decode));
    let complete = |worker: &WorkerFacts| {
        let [rate, import, step] = if worker.role == Role::Prefill { prefill } else { decode };
        WorkerFacts {
            prefill_tokens_per_second: known(worker.prefill_tokens_per_second).or(rate),
            import_block_us: known(worker.import_block_us).or(import),
            decode_step_us: known(worker.decode_step_us).or(step),
            ..*worker
        }
    };
    workers.iter().map(complete).collect()
}

/// A request's numbers as the formulas use them.
struct Shape {
    uncached: f64,
    matched_blocks: f64,
    blocks: f64,
    fillable: f64,
    tail: f64,
    load_us: f64,
}

impl Shape {
    fn of(request: &RequestFacts) -> Self {
        let block = request.block_tokens.max(1);
        let blocks = request.prompt_tokens.saturating_sub(1) / block;
        let matched_blocks = (request.matched_tokens / block).min(blocks);
        Self {
            uncached: (request.prompt_tokens - matched_blocks * block) as f64,
            matched_blocks: matched_blocks as f64,
            blocks: blocks as f64,
            fillable: ((blocks - matched_blocks) * block) as f64,
            tail: (request.prompt_tokens - blocks * block) as f64,
            load_us: request.load_us as f64,
        }
    }
}

fn local_us(shape: &Shape, decode: &WorkerFacts) -> f64 {
    let beyond_chunk = (shape.uncached - f64::from(decode.chunk_tokens)).max(0.0);
    wait_us(decode)
        + shape.load_us
        + evaluate_us(decode, shape.uncached)
        + shape.matched_blocks * import_us(decode)
        + (f64::from(decode.streams) + 1.0) * evaluate_us(decode, beyond_chunk)
        + company_us(decode)
}

fn remote_us(shape: &Shape, decode: &WorkerFacts, prefill: &WorkerFacts) -> f64 {
    let filled = wait_us(prefill)
        + shape.load_us
        + evaluate_us(prefill, shape.fillable)
        + shape.matched_blocks * import_us(prefill)
        + HAND_OFF_US;
    filled.max(wait_us(decode))
        + shape.blocks * import_us(decode)
        + evaluate_us(decode, shape.tail)
        + company_us(decode)
}

/// Queued prompts, and slots that must get free first.
fn wait_us(worker: &WorkerFacts) -> f64 {
    let over = (f64::from(worker.streams) + 1.0 - f64::from(worker.slots.max(1))).max(0.0);
    let slots = match worker.role {
        Role::Decode => over * SLOT_TOKENS * step_us(worker),
        // A prefill worker's queue is the tokens that are pending.
        Role::Prefill => 0.0,
    };
    evaluate_us(worker, worker.pending_tokens as f64) + slots
}

fn company_us(decode: &WorkerFacts) -> f64 {
    f64::from(decode.streams) * step_us(decode)
}

fn evaluate_us(worker: &WorkerFacts, tokens: f64) -> f64 {
    tokens * 1e6 / measured(worker.prefill_tokens_per_second, RATE_DEFAULT)
}

fn import_us(worker: &WorkerFacts) -> f64 {
    measured(worker.import_block_us, IMPORT_US_DEFAULT)
}

fn step_us(worker: &WorkerFacts) -> f64 {
    measured(worker.decode_step_us, STEP_US_DEFAULT)
}

/// What a worker says of itself may be anything: only a positive number counts.
#[inline]
pub(crate) fn measured(value: Option<f64>, default: f64) -> f64 {
    value.filter(|value| value.is_finite() && *value > 0.0).unwrap_or(default)
}

#[cfg(test)]
mod tests;
