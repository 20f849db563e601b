//! What of prompts was in a cache: as predicted and as observed, by model, and what that saved.
//!
//! # Limits
//! The first [`MODELS_MAX`] models have a label of their own, later ones share [`OTHER`].

use std::{collections::HashSet, sync::atomic::AtomicU64};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::{Registry, Unit},
};

use super::counted::{counted, measured};

/// Models with a label of their own.
pub(crate) const MODELS_MAX: usize = 64;
const OTHER: &str = "other";

/// Who evaluated a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    /// A native worker: predicted is what the store said it has, observed what the worker took from it.
    Worker,
    /// Another engine's server: predicted is what its cache was believed to have, observed what it said.
    Backend,
}

impl Target {
    const ALL: [Self; 2] = [Self::Worker, Self::Backend];

    fn name(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Backend => "backend",
        }
    }
}

/// A prompt that was evaluated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome<'a> {
    pub(crate) target: Target,
    pub(crate) model: &'a str,
    pub(crate) prompt_tokens: u64,
    /// Of these, tokens that were taken from a cache.
    pub(crate) cached_tokens: u64,
    /// What was expected, and what came of it; `None` where one of the two is not known.
    pub(crate) predicted: Option<Predicted>,
    /// Prompt tokens that who evaluated it does in a second, if that was measured.
    pub(crate) tokens_per_second: Option<f64>,
}

/// Tokens of a prompt in a cache, before and after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Predicted {
    pub(crate) predicted_tokens: u64,
    pub(crate) observed_tokens: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TargetLabels {
    target: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabels {
    target: &'static str,
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabels {
    model: String,
}

/// The metrics of it.
#[derive(Debug)]
pub(crate) struct Hits {
    models: Mutex<HashSet<String>>,
    model_prompt: Family<ModelLabels, Counter>,
    model_cached: Family<ModelLabels, Counter>,
    judged: Family<TargetLabels, Counter>,
    predicted: Family<TargetLabels, Counter>,
    observed: Family<TargetLabels, Counter>,
    errors: Family<ErrorLabels, Counter>,
    computed: Counter,
    saved: Counter,
    saved_seconds: Counter<f64, AtomicU64>,
}

impl Hits {
    pub(crate) fn new(r: &mut Registry) -> Self {
        let hits = Self {
            models: Mutex::default(),
            model_prompt: counted(r, "model_prompt_tokens", "Prompt tokens evaluated or found, by model"),
            model_cached: counted(
                r,
                "model_prompt_tokens_cached",
                "Of model_prompt_tokens, those that were taken from a cache",
            ),
            judged: counted(
                r,
                "judged_prompt_tokens",
                "Tokens of the prompts of which both the predicted and the observed hit are known",
            ),
            predicted: counted(
                r,
                "predicted_hit_tokens",
                "Of judged_prompt_tokens, those that were expected to be in the target's reach when it was chosen",
            ),
            observed: counted(
                r,
                "observed_hit_tokens",
                "Of judged_prompt_tokens, those that the target did not have to evaluate",
            ),
            errors: counted(
                r,
                "prediction_error_tokens",
                "Differences of the two, by whether too much or too little was expected",
            ),
            computed: counted(r, "prefill_tokens", "Prompt tokens that had to be evaluated"),
            saved: counted(
                r,
                "prefill_saved_tokens",
                "Prompt tokens that had not to be evaluated, since their KV was taken from a cache",
            ),
            saved_seconds: measured(
                r,
                "prefill_saved",
                "What those would have taken at the measured rate of who evaluated the rest",
                Unit::Seconds,
                Counter::default(),
            ),
        };
        hits.begin();
        hits
    }

    /// Shows zeros before anything happened.
    fn begin(&self) {
        for target in Target::ALL.map(Target::name) {
            for family in [&self.judged, &self.predicted, &self.observed] {
                drop(family.get_or_create(&TargetLabels { target }));
            }
            for direction in ["over", "under"] {
                drop(self.errors.get_or_create(&ErrorLabels { target, direction }));
            }
        }
    }

    /// Counts a prompt.
    pub(crate) fn note(&self, outcome: Outcome<'_>) {
        let Outcome { target, model, prompt_tokens, cached_tokens, predicted, tokens_per_second } = outcome;
        let cached_tokens = cached_tokens.min(prompt_tokens);
        let labels = ModelLabels { model: self.label(model) };
        self.model_prompt.get_or_create(&labels).inc_by(prompt_tokens);
        self.model_cached.get_or_create(&labels).inc_by(cached_tokens);
        self.computed.inc_by(prompt_tokens - cached_tokens);
        self.saved.inc_by(cached_tokens);
        if let Some(rate) = tokens_per_second.filter(|rate| rate.is_finite() && *rate > 0.0) {
            self.saved_seconds.inc_by(cached_tokens as f64 / rate);
        }
        let Some(Predicted { predicted_tokens, observed_tokens }) = predicted else { return };
        let target = target.name();
        let labels = TargetLabels { target };
        self.judged.get_or_create(&labels).inc_by(prompt_tokens);
        self.predicted.get_or_create(&labels).inc_by(predicted_tokens);
        self.observed.get_or_create(&labels).inc_by(observed_tokens);
        let direction = if predicted_tokens > observed_tokens { "over" } else { "under" };
        let error = predicted_tokens.abs_diff(observed_tokens);
        self.errors.get_or_create(&ErrorLabels { target, direction }).inc_by(error);
    }

    fn label(&self, model: &str) -> String {
        let mut models = self.models.lock();
        let known = models.contains(model) || (models.len() < MODELS_MAX && models.insert(model.to_owned()));
        if known { model.to_owned() } else { OTHER.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    fn outcome(model: &str) -> Outcome<'_> {
        let predicted = Some(Predicted { predicted_tokens: 64, observed_tokens: 48 });
        Outcome {
            target: Target::Worker,
            model,
            prompt_tokens: 100,
            cached_tokens: 48,
            predicted,
            tokens_per_second: Some(96.0),
        }
    }

    #[test]
    fn hits_are_compared_with_what_was_predicted_and_their_worth_is_told() {
        let mut registry = Registry::default();
        let hits = Hits::new(&mut registry);
        hits.note(outcome("a"));
        hits.note(Outcome { tokens_per_second: Some(f64::NAN), predicted: None, ..outcome("a") });
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "judged_prompt_tokens_total{target=\"worker\"} 100",
            "predicted_hit_tokens_total{target=\"worker\"} 64",
            "observed_hit_tokens_total{target=\"worker\"} 48",
            "prediction_error_tokens_total{target=\"worker\",direction=\"over\"} 16",
            "prediction_error_tokens_total{target=\"worker\",direction=\"under\"} 0",
            "judged_prompt_tokens_total{target=\"backend\"} 0",
            "model_prompt_tokens_total{model=\"a\"} 200",
            "model_prompt_tokens_cached_total{model=\"a\"} 96",
            "prefill_tokens_total 104",
            "prefill_saved_tokens_total 96",
            "prefill_saved_seconds_total 0.5",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn models_beyond_the_bound_share_a_label() {
        let hits = Hits::new(&mut Registry::default());
        let names: Vec<String> = (0..MODELS_MAX + 5).map(|number| format!("m{number}")).collect();
        names.iter().chain(&names).for_each(|name| hits.note(outcome(name)));
        let count = |model: &str| {
            hits.model_prompt.get(&ModelLabels { model: model.to_owned() }).map(|counter| counter.get())
        };
        assert_eq!((count("m0"), count("m63"), count("m64")), (Some(200), Some(200), None));
        assert_eq!(count(OTHER), Some(1000));
    }
}
