//! What a router counts, for `/metrics`.

mod counted;
mod hits;
mod lookups;

use std::time::Duration;

use kelvin_proto::{MetricInfo, describe};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::{Family, MetricConstructor},
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

pub(crate) use counted::{counted, measured};
pub(crate) use hits::{Hits, Outcome, Predicted, Target};
pub(crate) use lookups::Lookups;

use crate::{admission::Class, backend::Counts, cost::Place, feeds::Mode, page::Requests};

/// All of a router's metrics. Label values come from fixed sets, so that their number is bounded.
pub(crate) struct Metrics {
    registry: Registry,
    /// Recent requests, one by one.
    pub(crate) seen: Requests,
    pub(crate) in_flight: Gauge,
    pub(crate) prompt_tokens: Counter,
    pub(crate) cached_tokens: Counter,
    pub(crate) generated_tokens: Counter,
    pub(crate) store_degraded: Counter,
    /// Of what the store has.
    pub(crate) lookups: Lookups,
    pub(crate) retries: Counter,
    queue_depth: Family<ClassLabels, Gauge>,
    queue_wait: Family<ClassLabels, Histogram, Buckets>,
    pub(crate) migrations: Counter,
    pub(crate) migration_tokens: Counter,
    pub(crate) migration_recomputed_tokens: Counter,
    pub(crate) migration_pause: Histogram,
    pub(crate) inter_token: Histogram,
    pub(crate) backend: Counts,
    requests: Family<RequestLabels, Counter>,
    durations: Family<RouteLabels, Histogram, Buckets>,
    first_token: Family<PlaceLabels, Histogram, Buckets>,
    decisions: Family<PlaceLabels, Counter>,
    errors: Family<ErrorLabels, Counter>,
    session_turns: Family<TurnLabels, Counter>,
    sessions: Gauge,
    hints: Family<HintLabels, Counter>,
    workers: Family<WorkerLabels, Gauge>,
    backend_first_token: Histogram,
    pub(crate) backend_inter_token: Histogram,
    backend_decisions: Family<CacheLabels, Counter>,
    /// What of prompts was in caches.
    pub(crate) hits: Hits,
    backends: Family<BackendLabels, Gauge>,
    feeds: Family<FeedLabels, Gauge>,
    feed_events: Family<ErrorLabels, Counter>,
    directory_blocks: Gauge,
    directory_coming: Gauge,
    directory_bytes: Gauge,
    directory_refused: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: String,
    code: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PlaceLabels {
    prefill: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabels {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClassLabels {
    class: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TurnLabels {
    worker: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HintLabels {
    hint: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WorkerLabels {
    role: &'static str,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BackendLabels {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CacheLabels {
    cache: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FeedLabels {
    mode: &'static str,
}

/// From 1 ms to 65 s, twice as much each.
#[derive(Clone)]
struct Buckets;

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(exponential_buckets(0.001, 2.0, 17))
    }
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("kelvin_router");
        let r = &mut registry;
        let metrics = Self {
            backend: Counts::new(r),
            requests: counted(r, "requests", "Answered requests"),
            durations: measured(
                r,
                "request_duration",
                "Time to the end of an answer's head",
                Unit::Seconds,
                Family::new_with_constructor(Buckets),
            ),
            in_flight: counted(r, "requests_in_flight", "Completions in work"),
            first_token: measured(
                r,
                "time_to_first_token",
                "From a request's arrival to its first token",
                Unit::Seconds,
                Family::new_with_constructor(Buckets),
            ),
            inter_token: measured(
                r,
                "inter_token",
                "Between two steps of a completion",
                Unit::Seconds,
                Buckets.new_metric(),
            ),
            prompt_tokens: counted(r, "prompt_tokens", "Prompt tokens asked for"),
            cached_tokens: counted(
                r,
                "prompt_tokens_cached",
                "Of prompt_tokens, those whose KV was in the store when asked for",
            ),
            generated_tokens: counted(r, "generated_tokens", "Tokens generated"),
            decisions: counted(r, "decisions", "Where prompts were evaluated"),
            store_degraded: counted(
                r,
                "store_degraded",
                "Lookups that found nothing since the store was away or silent: of store_lookups, those of nobody",
            ),
            lookups: Lookups::new(r),
            retries: counted(r, "retries", "Requests handed to a second decode worker"),
            queue_depth: counted(
                r,
                "queue_depth",
                "Requests that wait for their turn, by the length of what is not cached of their prompts",
            ),
            queue_wait: measured(
                r,
                "queue_wait",
                "From a request's coming to its turn",
                Unit::Seconds,
                Family::new_with_constructor(Buckets),
            ),
            migrations: counted(
                r,
                "migrations",
                "Completions that went on at another decode worker, and streams at another backend",
            ),
            migration_tokens: counted(
                r,
                "migration_tokens",
                "Tokens of their prompts and outputs by then: what a cluster without a store evaluates again",
            ),
            migration_recomputed_tokens: counted(
                r,
                "migration_recomputed_tokens",
                "Of migration_tokens, those that were evaluated again",
            ),
            migration_pause: measured(
                r,
                "migration_pause",
                "From the failure of a decode worker or a backend to the next one's first token",
                Unit::Seconds,
                Buckets.new_metric(),
            ),
            session_turns: counted(r, "session_turns", "Turns of conversations by who had the turn before"),
            sessions: counted(r, "sessions", "Conversations whose last worker is known"),
            errors: counted(r, "errors", "Failures by kind"),
            hints: counted(r, "hints", "Hints to the store by what became of them"),
            workers: counted(r, "workers", "Workers by role and state"),
            backend_first_token: measured(
                r,
                "backend_first_token",
                "From handing a request to a backend to the first piece of its stream",
                Unit::Seconds,
                Buckets.new_metric(),
            ),
            backend_inter_token: measured(
                r,
                "backend_inter_token",
                "Between two pieces of a backend's stream",
                Unit::Seconds,
                Buckets.new_metric(),
            ),
            backend_decisions: counted(
                r,
                "backend_decisions",
                "Requests handed to a backend, by how its cache was known when it was chosen",
            ),
            backends: counted(r, "backends", "Backends by state"),
            feeds: counted(r, "feeds", "Backends by what is known of their caches"),
            feed_events: counted(
                r,
                "feed_events",
                "KV events of backends, and block events of followed stores, by kind",
            ),
            directory_blocks: counted(r, "directory_blocks", "Blocks known to be in backends' memories"),
            directory_coming: counted(
                r,
                "directory_coming",
                "Marks of the prompts that backends with events compute right now, by which others find them there",
            ),
            directory_bytes: measured(
                r,
                "directory_memory",
                "Of that knowledge, engines' own hashes included",
                Unit::Bytes,
                Gauge::default(),
            ),
            directory_refused: counted(r, "directory_refused", "Runs that found no place there"),
            hits: Hits::new(r),
            registry: Registry::default(),
            seen: Requests::default(),
        };
        metrics.begin();
        Self { registry, ..metrics }
    }

    /// Shows zeros of what has few labels before anything happened.
    fn begin(&self) {
        for place in [Place::Local, Place::Remote(0)] {
            drop(self.decisions.get_or_create(&PlaceLabels { prefill: place_name(place) }));
        }
        for mode in Mode::ALL {
            drop(self.backend_decisions.get_or_create(&CacheLabels { cache: mode.name() }));
        }
    }

    pub(crate) fn request(&self, route: &str, code: u16, took: Duration) {
        self.requests.get_or_create(&RequestLabels { route: route.to_owned(), code: code.into() }).inc();
        self.durations.get_or_create(&RouteLabels { route: route.to_owned() }).observe(took.as_secs_f64());
    }

    pub(crate) fn hint(&self, hint: &'static str, result: &'static str) {
        self.hints.get_or_create(&HintLabels { hint, result }).inc();
    }

    /// So many more requests wait, or fewer.
    pub(crate) fn queue_depth(&self, class: Class, change: i64) {
        self.queue_depth.get_or_create(&ClassLabels { class: class.name() }).inc_by(change);
    }

    pub(crate) fn queue_wait(&self, class: Class, waited: Duration) {
        self.queue_wait.get_or_create(&ClassLabels { class: class.name() }).observe(waited.as_secs_f64());
    }

    /// Counts a conversation's turn; `same` is whether its worker had the one before, if that is known.
    pub(crate) fn session_turn(&self, same: Option<bool>) {
        let worker = match same {
            None => "first",
            Some(true) => "same",
            Some(false) => "other",
        };
        self.session_turns.get_or_create(&TurnLabels { worker }).inc();
    }

    /// Replaces the number of conversations that are known.
    pub(crate) fn sessions(&self, count: usize) {
        self.sessions.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(crate) fn first_token(&self, place: Place, took: Duration) {
        self.first_token
            .get_or_create(&PlaceLabels { prefill: place_name(place) })
            .observe(took.as_secs_f64());
    }

    pub(crate) fn decision(&self, place: Place) {
        self.decisions.get_or_create(&PlaceLabels { prefill: place_name(place) }).inc();
    }

    pub(crate) fn error(&self, kind: &'static str) {
        self.errors.get_or_create(&ErrorLabels { kind }).inc();
    }

    /// Replaces the numbers of workers; roles and states that have none any more show 0.
    pub(crate) fn workers(&self, counts: impl IntoIterator<Item = ((&'static str, &'static str), i64)>) {
        for ((role, state), count) in counts {
            self.workers.get_or_create(&WorkerLabels { role, state }).set(count);
        }
    }

    pub(crate) fn backend_first_token(&self, took: Duration) {
        self.backend_first_token.observe(took.as_secs_f64());
    }

    /// A request goes to a backend whose cache is known so.
    pub(crate) fn backend_decision(&self, cache: Mode) {
        self.backend_decisions.get_or_create(&CacheLabels { cache: cache.name() }).inc();
    }

    /// Replaces the numbers of backends.
    pub(crate) fn backends(&self, counts: impl IntoIterator<Item = (&'static str, i64)>) {
        for (state, count) in counts {
            self.backends.get_or_create(&BackendLabels { state }).set(count);
        }
    }

    /// Counts KV events.
    pub(crate) fn feed(&self, kind: &'static str, count: u64) {
        if count > 0 {
            self.feed_events.get_or_create(&ErrorLabels { kind }).inc_by(count);
        }
    }

    /// Replaces the numbers of feeds by mode.
    pub(crate) fn feeds(&self, counts: impl IntoIterator<Item = (&'static str, i64)>) {
        for (mode, count) in counts {
            self.feeds.get_or_create(&FeedLabels { mode }).set(count);
        }
    }

    /// Replaces what the directory says of itself.
    pub(crate) fn directory(&self, blocks: usize, coming: usize, bytes: usize, refused: u64) {
        let number = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        self.directory_blocks.set(number(blocks));
        self.directory_coming.set(number(coming));
        self.directory_bytes.set(number(bytes));
        self.directory_refused.set(i64::try_from(refused).unwrap_or(i64::MAX));
    }

    /// The text that a scraper reads.
    pub(crate) fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail; a metric that cannot be encoded ends the text early.
        if encode(&mut text, &self.registry).is_err() {
            tracing::error!("encode metrics");
        }
        text
    }
}

/// All metrics that a router can show.
pub fn metrics_catalogue() -> Vec<MetricInfo> {
    let metrics = Metrics::new();
    // A family shows itself, and its labels, with its first sample.
    metrics.request("/v1/models", 200, Duration::ZERO);
    metrics.first_token(Place::Local, Duration::ZERO);
    metrics.error("panic");
    metrics.hint("any", "done");
    metrics.workers([(("decode", "ready"), 0)]);
    metrics.backends([("ready", 0)]);
    metrics.feeds([("exact", 0)]);
    metrics.feed("stored", 1);
    metrics.queue_depth(Class::Short, 0);
    metrics.queue_wait(Class::Short, Duration::ZERO);
    metrics.session_turn(None);
    metrics.backend.show_all();
    let (target, predicted) = (Target::Worker, None);
    let none = Outcome {
        target,
        model: "m",
        prompt_tokens: 0,
        cached_tokens: 0,
        predicted,
        tokens_per_second: None,
    };
    metrics.hits.note(none);
    describe(&metrics.encode())
}

fn place_name(place: Place) -> &'static str {
    match place {
        Place::Local => "local",
        Place::Remote(_) => "remote",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalogue_has_every_metric_that_is_registered() {
        let sources = [
            include_str!("metrics.rs"),
            include_str!("metrics/hits.rs"),
            include_str!("metrics/lookups.rs"),
            include_str!("backend/counts.rs"),
        ];
        // Put together, so that this line is none of them.
        let calls = [["coun", "ted("], ["meas", "ured("]].map(|call| call.concat());
        let count = |call: &String| sources.iter().map(|source| source.matches(call).count()).sum::<usize>();
        let registered: usize = calls.iter().map(count).sum();
        let catalogue = metrics_catalogue();
        let names: Vec<_> = catalogue.iter().map(|metric| &metric.name).collect();
        assert_eq!(names.len(), registered, "give the new family a sample in metrics_catalogue: {names:#?}");
    }

    #[test]
    fn names_have_the_prefix_and_their_units() {
        let metrics = Metrics::new();
        metrics.prompt_tokens.inc_by(7);
        metrics.first_token(Place::Remote(1), Duration::from_millis(3));
        metrics.request("/v1/models", 200, Duration::ZERO);
        metrics.workers([(("decode", "ready"), 2)]);
        let text = metrics.encode();
        for line in [
            "kelvin_router_prompt_tokens_total 7",
            "kelvin_router_prompt_tokens_cached_total 0",
            "kelvin_router_time_to_first_token_seconds_count{prefill=\"remote\"} 1",
            "kelvin_router_requests_total{route=\"/v1/models\",code=\"200\"} 1",
            "kelvin_router_workers{role=\"decode\",state=\"ready\"} 2",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
