//! Recent requests, for the page and `kelvin explain`: counts, times, who served, never a word of a prompt.
//!
//! # States
//! A request is open from its head's arrival until its answer is out and no completion of it runs; then it is
//! among the recent ones. Open ones are bounded: beyond, a request is not followed.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use kelvin_kvstore::page::Recent;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::{
    metrics::Metrics,
    prefix::{End, Found, Missing},
};

const OPEN_MAX: usize = 8192;
const SHOWN: usize = 200;
/// Status of a request whose client left before there was an answer; no code of HTTP's own.
const CLIENT_LEFT: u16 = 499;

/// One request.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    shown: String,
    unique: String,
    route: String,
    begun: Instant,
    status: Option<u16>,
    placed: Placed,
    cached_tokens: u64,
    generated_tokens: u64,
    first_token: Option<Duration>,
    took: Option<Duration>,
    /// Completions that run.
    running: u32,
}

/// Who serves a request, and why it was expected to be quick.
#[derive(Debug, Clone, Default)]
pub(crate) struct Placed {
    pub(crate) model: Option<String>,
    pub(crate) worker: Option<String>,
    /// `local`, `remote` or `backend`.
    pub(crate) mode: Option<&'static str>,
    pub(crate) prefill: Option<String>,
    pub(crate) prompt_tokens: u64,
    /// What was known to be stored before it went anywhere.
    pub(crate) matched_tokens: u64,
    pub(crate) namespace: Option<u64>,
    /// What the store has and why it has no more; `None` where that was not looked for, since another engine serves.
    pub(crate) found: Option<Found>,
}

/// The requests.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    open: Mutex<HashMap<String, Seen>>,
    recent: Recent<Arc<Seen>>,
    since: Started,
}

#[derive(Debug)]
struct Started(Instant);

impl Default for Started {
    fn default() -> Self {
        Self(Instant::now())
    }
}

/// A request's own part of its id: its completions have a number behind it.
fn of_request(id: &str) -> &str {
    id.split('-').next().unwrap_or(id)
}

impl Requests {
    /// A request came. What comes back is to be told of its answer.
    pub(crate) fn begin<'a>(&'a self, shown: &str, unique: &'a str, route: &str) -> Unanswered<'a> {
        self.insert(shown, unique, route);
        Unanswered { requests: self, unique, status: CLIENT_LEFT }
    }

    fn insert(&self, shown: &str, unique: &str, route: &str) {
        if !route.starts_with("/v1/") || route.starts_with("/v1/models") {
            return;
        }
        let seen = Seen {
            shown: shown.to_owned(),
            unique: unique.to_owned(),
            route: route.to_owned(),
            begun: Instant::now(),
            status: None,
            placed: Placed::default(),
            cached_tokens: 0,
            generated_tokens: 0,
            first_token: None,
            took: None,
            running: 0,
        };
        let mut open = self.open.lock();
        if open.len() < OPEN_MAX {
            open.insert(unique.to_owned(), seen);
        }
    }

    /// One of its completions runs; whether its first token came just now.
    pub(crate) fn placed(&self, id: &str, placed: Placed, has_first_token: bool) {
        if let Some(seen) = self.open.lock().get_mut(of_request(id)) {
            seen.running += 1;
            if has_first_token {
                seen.first_token.get_or_insert(seen.begun.elapsed());
            }
            seen.placed = placed;
        }
    }

    /// A completion ended, however it did.
    pub(crate) fn used(&self, id: &str, prompt_tokens: u64, cached_tokens: u64, generated_tokens: u64) {
        self.change(of_request(id), |seen| {
            seen.running = seen.running.saturating_sub(1);
            if prompt_tokens > 0 {
                // What was noted before may be an estimate.
                seen.placed.prompt_tokens = prompt_tokens;
                seen.placed.matched_tokens = seen.placed.matched_tokens.min(prompt_tokens);
            }
            seen.cached_tokens = seen.cached_tokens.max(cached_tokens);
            seen.generated_tokens += generated_tokens;
        });
    }

    fn answered(&self, unique: &str, status: u16) {
        self.change(unique, |seen| seen.status = Some(status));
    }

    fn change(&self, unique: &str, change: impl FnOnce(&mut Seen)) {
        let mut open = self.open.lock();
        let Some(seen) = open.get_mut(unique) else { return };
        change(seen);
        if seen.status.is_none() || seen.running > 0 {
            return;
        }
        let Some(mut seen) = open.remove(unique) else { return };
        drop(open);
        let took = seen.begun.elapsed();
        seen.took = Some(took);
        let missed = seen.missed();
        self.recent.push(self.since.0.elapsed(), took.as_micros() as u64, missed, Arc::new(seen));
    }

    /// The lists, as the page shows them.
    pub(crate) fn lists(&self) -> Value {
        let lists = self.recent.lists(self.since.0.elapsed(), SHOWN);
        let all = |list: &[Arc<Seen>]| list.iter().map(|seen| seen.json()).collect::<Vec<_>>();
        json!({
            "kind": "router",
            "recent": all(&lists.recent),
            "slowest": all(&lists.slowest),
            "worst": all(&lists.worst),
        })
    }

    /// By the id that its client knows, by ours, or by that of its answer.
    pub(crate) fn find(&self, id: &str) -> Option<Arc<Seen>> {
        let unique = id.strip_prefix("chatcmpl-").or_else(|| id.strip_prefix("cmpl-")).unwrap_or(id);
        let is_it = |seen: &Seen| seen.unique == unique || seen.shown == id;
        let open = self.open.lock().values().find(|seen| is_it(seen)).cloned();
        open.map(Arc::new).or_else(|| self.recent.find(|seen| is_it(seen)))
    }
}

/// A request without an answer yet. Dropping it tells how it was answered.
pub(crate) struct Unanswered<'a> {
    requests: &'a Requests,
    unique: &'a str,
    status: u16,
}

impl Unanswered<'_> {
    /// The head of the answer is out; of a whole answer, all of it.
    pub(crate) fn answered(mut self, status: u16) {
        self.status = status;
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        self.requests.answered(self.unique, self.status);
    }
}

/// A completion that another engine serves. Dropping it ends it.
pub(crate) struct Served {
    metrics: Arc<Metrics>,
    id: String,
    /// Prompt, cached and generated tokens, as far as the engine told.
    tokens: [u64; 3],
}

impl Served {
    pub(crate) fn begin(metrics: &Arc<Metrics>, id: &str, placed: Placed, has_first_token: bool) -> Self {
        metrics.seen.placed(id, placed, has_first_token);
        Self { metrics: metrics.clone(), id: id.to_owned(), tokens: [0; 3] }
    }

    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// What the engine says it used.
    pub(crate) fn used(&mut self, tokens: [u64; 3]) {
        self.tokens = tokens;
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let [prompt, cached, generated] = self.tokens;
        self.metrics.seen.used(&self.id, prompt, cached, generated);
    }
}

impl Seen {
    pub(crate) fn missing(&self) -> Option<Missing> {
        match self.end() {
            Some(End::Missing(missing)) => Some(missing),
            _ => None,
        }
    }

    fn end(&self) -> Option<End> {
        self.placed.found.as_ref().map(Found::end)
    }

    /// Time since it came.
    pub(crate) fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Why no missing block is named, as a word; `None` if one is, or nobody was found to serve it.
    fn why(&self) -> Option<&'static str> {
        match (self.end(), &self.placed.worker) {
            (Some(End::Missing(_)), _) | (None, None) => None,
            (Some(End::NoStore), _) => Some("no_store"),
            (Some(End::Away), _) => Some("store_away"),
            (Some(End::TooShort), _) => Some("too_short"),
            (Some(End::AllStored), _) => Some("all_stored"),
            (Some(End::Filling), _) => Some("filling"),
            (None, Some(_)) => Some("other_engine"),
        }
    }

    fn missed(&self) -> u64 {
        self.placed.prompt_tokens.saturating_sub(self.cached_tokens)
    }

    pub(crate) fn json(&self) -> Value {
        let millis = |time: Option<Duration>| time.map(|time| (time.as_secs_f64() * 1e5).round() / 100.0);
        json!({
            "id": self.shown,
            "unique": self.unique,
            "route": self.route,
            "age_ms": self.age().as_millis() as u64,
            "status": self.status,
            "model": self.placed.model,
            "worker": self.placed.worker,
            "mode": self.placed.mode,
            "prefill": self.placed.prefill,
            "prompt_tokens": self.placed.prompt_tokens,
            "matched_tokens": self.placed.matched_tokens,
            "cached_tokens": self.cached_tokens,
            "missed_tokens": self.missed(),
            "generated_tokens": self.generated_tokens,
            "ttft_ms": millis(self.first_token),
            "duration_ms": millis(self.took),
            "done": self.took.is_some(),
            "namespace_id": self.placed.namespace.map(|id| id.to_string()),
            "first_missing_hash": self.missing().map(|missing| missing.hash.to_string()),
            "why": self.why(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun() -> Requests {
        let requests = Requests::default();
        requests.insert("mine", "0a1b", "/v1/chat/completions");
        requests
    }

    fn placed() -> Placed {
        Placed {
            worker: Some("decode-0".into()),
            prompt_tokens: 100,
            matched_tokens: 48,
            ..Placed::default()
        }
    }

    #[test]
    fn a_request_ends_with_its_last_completion_and_its_answer() {
        let requests = begun();
        requests.placed("0a1b", placed(), true);
        requests.placed("0a1b-1", placed(), true);
        requests.answered("0a1b", 200);
        requests.used("0a1b", 100, 48, 7);
        assert_eq!(requests.find("mine").map(|seen| seen.took.is_some()), Some(false));
        requests.used("0a1b-1", 100, 48, 5);
        for id in ["mine", "0a1b", "chatcmpl-0a1b", "cmpl-0a1b"] {
            let seen = requests.find(id).map(|seen| seen.json()).unwrap_or_default();
            assert_eq!((&seen["generated_tokens"], &seen["missed_tokens"]), (&json!(12), &json!(52)), "{id}");
            assert_eq!((&seen["status"], &seen["done"]), (&json!(200), &json!(true)));
        }
        assert!(requests.open.lock().is_empty());
    }

    #[test]
    fn why_nothing_is_missing_is_told() {
        let why = |end: Option<End>, worker: Option<&str>| {
            let requests = begun();
            let worker = worker.map(str::to_owned);
            requests.placed("0a1b", Placed { worker, found: end.map(Found::nothing), ..placed() }, true);
            requests.find("mine").map(|seen| seen.json()["why"].clone()).unwrap_or_default()
        };
        for (end, word) in [
            (End::NoStore, "no_store"),
            (End::Away, "store_away"),
            (End::TooShort, "too_short"),
            (End::AllStored, "all_stored"),
            (End::Filling, "filling"),
        ] {
            assert_eq!(why(Some(end), Some("decode-0")), word);
        }
        assert_eq!((why(None, Some("http://e")), why(None, None)), (json!("other_engine"), Value::Null));
        let hash = kelvin_kvstore::SequenceHash::try_from(&[7; 16][..]).unwrap();
        assert_eq!(why(Some(End::Missing(Missing { hash, why: None })), Some("decode-0")), Value::Null);
    }

    #[test]
    fn an_engines_count_replaces_the_estimate() {
        let requests = begun();
        requests.placed("0a1b", placed(), true);
        requests.answered("0a1b", 200);
        requests.used("0a1b", 40, 32, 7);
        let seen = requests.lists()["recent"][0].clone();
        assert_eq!((&seen["prompt_tokens"], &seen["matched_tokens"]), (&json!(40), &json!(40)));
    }

    #[test]
    fn one_that_fails_early_is_kept_too() {
        let requests = begun();
        requests.answered("0a1b", 400);
        assert_eq!(requests.lists()["recent"][0]["status"], 400);
        assert_eq!(requests.lists()["worst"], json!([]));
    }

    #[test]
    fn one_whose_client_leaves_is_not_open_for_ever() {
        let requests = Requests::default();
        drop(requests.begin("mine", "0a1b", "/v1/completions"));
        assert!(requests.open.lock().is_empty());
        assert_eq!(requests.lists()["recent"][0]["status"], 499);
    }

    #[test]
    fn what_is_no_completion_is_not_kept() {
        let requests = Requests::default();
        for route in ["/health", "/v1/models", "/v1/models/{*id}", "other"] {
            requests.begin("a", "b", route).answered(200);
        }
        assert_eq!(requests.lists()["recent"], json!([]));
    }

    #[test]
    fn open_ones_are_bounded() {
        let requests = Requests::default();
        (0..2 * OPEN_MAX).for_each(|id| requests.insert("a", &id.to_string(), "/v1/completions"));
        assert_eq!(requests.open.lock().len(), OPEN_MAX);
    }
}
