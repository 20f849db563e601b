//! One engine's server as the router knows it: whether it can be asked, what it serves, what it has in work.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::http::{HeaderValue, uri::Authority};
use parking_lot::{Mutex, RwLock};

use super::{
    board::{Load, Seat},
    breaker::{Breaker, Circuit},
    learn::{Learnt, Sample, Terms},
    spec::{BackendRole, BackendSpec, BackendSpecError},
    usage::Usage,
};
use crate::{
    directory::{Directory, Underway},
    feeds::Mode,
};

/// How a server does, by its probes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Health {
    /// It has not answered yet.
    Starting,
    Ready,
    /// Why it cannot be asked.
    Lost(String),
}

impl Health {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Lost(_) => "lost",
        }
    }
}

/// A model that a server has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Card {
    pub(crate) id: String,
    /// What its blocks are known by: the first of its server's names for it.
    pub(crate) name: String,
    pub(crate) context_tokens_max: Option<u32>,
    pub(crate) owned_by: String,
}

/// One engine's server.
#[derive(Debug)]
pub(crate) struct Backend {
    /// Its number in the roster; another one has it once this has left.
    pub(crate) id: u32,
    pub(crate) spec: BackendSpec,
    pub(crate) authority: Authority,
    health: RwLock<Health>,
    /// Why it is not there yet.
    missing: RwLock<Option<String>>,
    cards: RwLock<Vec<Card>>,
    breaker: Mutex<Breaker>,
    started: Instant,
    /// How often it became ready, and how often it was found so.
    starts: AtomicU64,
    probes: AtomicU64,
    learnt: Learnt,
    /// What decisions read.
    seat: Seat,
}

impl Backend {
    pub(crate) fn new(id: u32, spec: BackendSpec, seat: Seat) -> Result<Self, BackendSpecError> {
        Ok(Self {
            id,
            authority: spec.authority()?,
            spec,
            health: RwLock::new(Health::Starting),
            missing: RwLock::default(),
            cards: RwLock::default(),
            breaker: Mutex::default(),
            started: Instant::now(),
            starts: AtomicU64::new(0),
            probes: AtomicU64::new(0),
            learnt: Learnt::default(),
            seat,
        })
    }

    pub(crate) fn role(&self) -> BackendRole {
        self.spec.role
    }

    pub(crate) fn health(&self) -> Health {
        self.health.read().clone()
    }

    /// Why it cannot be asked, as far as a probe has found that.
    pub(crate) fn why(&self) -> Option<String> {
        match self.health() {
            Health::Starting => self.missing.read().clone(),
            Health::Lost(why) => Some(why),
            Health::Ready => None,
        }
    }

    /// What a probe found while it was not ready yet.
    pub(super) fn is_not_there_yet(&self, why: String) {
        let mut missing = self.missing.write();
        // Once for every new reason.
        if missing.as_ref() != Some(&why) {
            tracing::warn!(backend = self.spec.url, why, "a backend is not ready yet");
            *missing = Some(why);
        }
    }

    /// What is said to it.
    pub(super) fn bearer(&self) -> Option<HeaderValue> {
        self.spec.key.as_ref()?.bearer()
    }

    pub(crate) fn cards(&self) -> Vec<Card> {
        self.cards.read().clone()
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    pub(crate) fn circuit(&self) -> Circuit {
        self.breaker.lock().circuit(self.now())
    }

    /// Sets what a probe found; returns whether what it can be asked changed.
    pub(crate) fn found(&self, health: Health, cards: Option<Vec<Card>>) -> bool {
        let ready = health == Health::Ready;
        let mut before = self.health.write();
        let turned = std::mem::discriminant(&*before) != std::mem::discriminant(&health);
        if turned {
            match &health {
                Health::Lost(why) => tracing::warn!(backend = self.spec.url, why, "a backend is lost"),
                _ => tracing::info!(
                    backend = self.spec.url,
                    state = health.name(),
                    "a backend changed its state"
                ),
            }
        }
        if turned && ready && matches!(*before, Health::Lost(_)) {
            // What failed was another start of it, as far as anybody can tell.
            *self.breaker.lock() = Breaker::default();
            self.seat.suspect.store(false, Ordering::Release);
        }
        *before = health;
        drop(before);
        self.starts.fetch_add(u64::from(turned && ready), Ordering::Relaxed);
        self.probes.fetch_add(u64::from(ready), Ordering::Relaxed);
        self.seat.ready.store(ready, Ordering::Release);
        let changed = cards.is_some_and(|cards| {
            let mut known = self.cards.write();
            let changed = *known != cards;
            *known = cards;
            changed
        });
        turned || changed
    }

    /// How often it became ready: after it was lost it may be another process.
    pub(super) fn starts(&self) -> u64 {
        self.starts.load(Ordering::Relaxed)
    }

    /// How often it was found ready.
    pub(super) fn probes(&self) -> u64 {
        self.probes.load(Ordering::Relaxed)
    }

    /// Whether a request may be sent there now.
    pub(crate) fn is_open(&self) -> bool {
        self.seat.is_open().unwrap_or_else(|| self.breaker.lock().admits(self.now()))
    }

    /// Sets how much its events say of its cache, and in blocks of how many tokens.
    pub(crate) fn set_known(&self, mode: Mode, block_tokens: u32) {
        self.seat.set_known(mode, block_tokens);
    }

    pub(crate) fn mode(&self) -> Mode {
        self.seat.known().0
    }

    /// Tokens of a block of its cache, as its events tell; 0 as long as they do not.
    pub(super) fn block_tokens(&self) -> u32 {
        self.seat.known().1
    }

    /// Whether its cache is known by its events, and not by what was sent there.
    pub(crate) fn is_followed(&self) -> bool {
        self.mode() != Mode::Fallback
    }

    /// Forgets what was believed of it before its events came.
    pub(crate) fn believed(&self, directory: &Directory) {
        directory.disbelieve(self.id);
    }

    /// It answered, to the end, whatever it said.
    pub(crate) fn succeeded(&self) {
        if self.seat.suspect.load(Ordering::Acquire) {
            let mut breaker = self.breaker.lock();
            if breaker.circuit(self.now()) != Circuit::Closed {
                tracing::info!(backend = self.spec.url, "a backend answers again");
            }
            breaker.succeeded();
            self.seat.suspect.store(false, Ordering::Release);
        }
    }

    /// It did not. Returns whether it gets no requests from now on.
    pub(crate) fn failed(&self, why: &str) -> bool {
        let mut breaker = self.breaker.lock();
        let opened = breaker.failed(self.now());
        self.seat.suspect.store(true, Ordering::Release);
        drop(breaker);
        if opened {
            tracing::warn!(
                backend = self.spec.url,
                why,
                "a backend keeps failing and gets no requests for a while"
            );
        }
        opened
    }

    pub(crate) fn load(&self) -> Load {
        self.seat.load()
    }

    pub(crate) fn terms(&self) -> Terms {
        self.seat.learnt.terms()
    }

    pub(super) fn seat(&self) -> &Seat {
        &self.seat
    }

    /// A first token came; see [`Learnt::first_token`].
    pub(super) fn learn_first_token(&self, tokens: u64, loaded: u64, took: Duration) -> Option<Sample> {
        self.learnt.first_token(tokens, loaded, took, &self.seat.learnt)
    }

    /// A stream took so long for so many steps.
    pub(super) fn learn_steps(&self, steps: u64, took: Duration) {
        self.learnt.steps(steps, took, &self.seat.learnt);
    }
}

/// One request in work there; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Call {
    backend: Arc<Backend>,
    /// Of the backend when it began.
    starts: u64,
    begun: Instant,
    /// Tokens to compute of this prompt; 0 once they are.
    tokens: u64,
    /// And those of prompts before it.
    before: u64,
    loaded: u64,
    /// What its first token taught.
    sample: Option<Sample>,
    /// Tokens of the prompt that were expected not to be computed.
    hit_expected: u64,
    /// That the prompt is being computed there.
    underway: Option<Underway>,
}

impl Call {
    /// Counts a request that computes `tokens` and loads `loaded`.
    pub(crate) fn begin(backend: &Arc<Backend>, tokens: u64, loaded: u64) -> Self {
        if backend.seat.suspect.load(Ordering::Acquire) {
            backend.breaker.lock().take(backend.now());
        }
        backend.seat.streams.fetch_add(1, Ordering::Relaxed);
        let before = backend.seat.queued_tokens.fetch_add(tokens, Ordering::Relaxed);
        let begun = Instant::now();
        let (backend, starts) = (backend.clone(), backend.starts());
        Self { backend, starts, begun, tokens, before, loaded, sample: None, hit_expected: 0, underway: None }
    }

    /// The same, of a prompt that others may count on there.
    pub(super) fn computing(mut self, underway: Option<Underway>) -> Self {
        self.underway = underway;
        self
    }

    /// The same, of a prompt of which `tokens` are expected to be in its caches.
    pub(crate) fn expecting(mut self, tokens: u64) -> Self {
        self.hit_expected = tokens;
        self
    }

    pub(crate) fn hit_expected(&self) -> u64 {
        self.hit_expected
    }

    pub(crate) fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// How often the backend had become ready when it began.
    pub(super) fn starts(&self) -> u64 {
        self.starts
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// The first token came: the prompt is computed.
    pub(crate) fn first_token(&mut self) {
        if self.tokens > 0 {
            let tokens = self.before + self.tokens;
            self.sample = self.backend.learn_first_token(tokens, self.loaded, self.begun.elapsed());
        }
        self.computed();
    }

    /// It computes so many tokens after all.
    pub(super) fn recompute(&mut self, tokens: u64) {
        let more = tokens.saturating_sub(self.tokens);
        self.backend.seat.queued_tokens.fetch_add(more, Ordering::Relaxed);
        (self.tokens, self.loaded) = (self.tokens + more, 0);
    }

    /// It is sent there now only.
    pub(super) fn restart(&mut self) {
        self.begun = Instant::now();
        self.before = self.backend.seat.queued_tokens.load(Ordering::Relaxed).saturating_sub(self.tokens);
    }

    fn computed(&mut self) {
        self.leave_queue();
        if let Some(underway) = self.underway.take() {
            underway.computed();
        }
    }

    fn leave_queue(&mut self) {
        self.backend.seat.queued_tokens.fetch_sub(std::mem::take(&mut self.tokens), Ordering::Relaxed);
    }

    /// The engine says what of the prompt it had: what was learnt with what was expected is set right.
    pub(super) fn used(&mut self, usage: &Usage) {
        if let (Some(computed), Some(sample)) = (usage.computed_tokens(), self.sample.take()) {
            let tokens = self.before.saturating_add(computed);
            self.backend.learnt.correct(sample, tokens, &self.backend.seat.learnt);
        }
    }

    /// A whole answer came at once, with what the engine says that it used; without that nothing is learnt, since it
    /// may have any number of tokens. Nobody sees when its prompt was computed, nor those of the others: so it counts
    /// as one that waited for none of them, and beside many it says nothing.
    pub(super) fn whole(&mut self, usage: Option<&Usage>) {
        const FEW: u64 = 4;
        const BESIDE_MAX: u32 = 8;
        let is_crowded = self.backend.seat.streams.load(Ordering::Relaxed) > BESIDE_MAX;
        match usage {
            Some(usage) if usage.generated_tokens <= FEW => {
                self.first_token();
                self.used(usage);
            }
            Some(usage) if self.tokens > 0 && !is_crowded => {
                let tokens = usage.computed_tokens().unwrap_or(self.tokens);
                let (generated, took) = (usage.generated_tokens, self.begun.elapsed());
                self.backend.learnt.whole(tokens, self.loaded, generated, took, &self.backend.seat.learnt);
            }
            _ => {}
        }
        self.computed();
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.leave_queue();
        self.backend.seat.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_counts_until_it_ends() {
        let backend =
            Arc::new(Backend::new(0, BackendSpec::new("http://127.0.0.1:1"), Seat::alone()).unwrap());
        let mut first = Call::begin(&backend, 100, 0);
        let second = Call::begin(&backend, 50, 0);
        assert_eq!((backend.load().queued_tokens, backend.load().streams), (150, 2));
        assert_eq!(second.before, 100);
        first.first_token();
        assert_eq!((backend.load().queued_tokens, backend.load().streams), (50, 2));
        drop((first, second));
        assert_eq!((backend.load().queued_tokens, backend.load().streams), (0, 0));
    }

    #[test]
    fn whole_answers_at_once_do_not_count_for_each_other() {
        let backend =
            Arc::new(Backend::new(0, BackendSpec::new("http://127.0.0.1:1"), Seat::alone()).unwrap());
        let usage = Usage { prompt_tokens: 1_000, generated_tokens: 10, cached_tokens: Some(0) };
        let mut calls: Vec<_> = (0..8).map(|_| Call::begin(&backend, 1_000, 0)).collect();
        for call in &mut calls {
            call.begun -= Duration::from_millis(100);
            call.whole(Some(&usage));
        }
        let rate = backend.terms().tokens_per_second.unwrap();
        assert!(rate <= 10_000.0, "{rate}");
        // Beside more of them it says nothing.
        let _more = Call::begin(&backend, 1_000, 0);
        calls.push(Call::begin(&backend, 1_000, 0));
        let before = backend.terms();
        calls.last_mut().unwrap().whole(Some(&usage));
        assert_eq!(backend.terms(), before);
        assert_eq!(backend.load().queued_tokens, 1_000);
    }

    #[test]
    fn one_that_fails_is_closed_until_a_trial_succeeds() {
        let backend =
            Arc::new(Backend::new(0, BackendSpec::new("http://127.0.0.1:1"), Seat::alone()).unwrap());
        assert!(!backend.is_open(), "not probed yet");
        assert!(backend.found(Health::Ready, None));
        assert!(backend.is_open());
        while !backend.failed("refused") {}
        assert!(!backend.is_open());
        assert_eq!(backend.circuit(), Circuit::Open);
        backend.succeeded();
        assert!(backend.is_open());
    }
}
