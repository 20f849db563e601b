//! How it is found out what the store has of prompts for workers.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::counted;

/// Part of the router's metrics. Label values come from fixed sets.
pub(crate) struct Lookups {
    lookups: Family<ByLabels, Counter>,
    looks: Family<ResultLabels, Counter>,
    compared: Family<IndexLabels, Counter>,
    filling: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByLabels {
    by: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IndexLabels {
    index: &'static str,
}

impl Lookups {
    pub(super) fn new(r: &mut Registry) -> Self {
        let lookups = Self {
            lookups: counted(
                r,
                "store_lookups",
                "Lookups of what the store has of a prompt, by who answered",
            ),
            looks: counted(
                r,
                "store_looks",
                "Questions to the store beside a lookup that the index answered, by what became of them",
            ),
            compared: counted(
                r,
                "store_compared_blocks",
                "Blocks of prompts that the store said it has, by whether the index had them too (same) or not (fewer), \
                 and those that the index alone had (more)",
            ),
            filling: counted(r, "store_filling_blocks", "Blocks that prefills of this router are making"),
        };
        lookups.begin();
        lookups
    }

    /// Shows zeros before anything happened.
    fn begin(&self) {
        for by in ["index", "store", "nobody"] {
            drop(self.lookups.get_or_create(&ByLabels { by }));
        }
        for result in ["answered", "late", "failed", "passed_over"] {
            drop(self.looks.get_or_create(&ResultLabels { result }));
        }
        for index in ["same", "fewer", "more"] {
            drop(self.compared.get_or_create(&IndexLabels { index }));
        }
    }

    /// A lookup, answered by `index`, `store` or `nobody`.
    pub(crate) fn by(&self, by: &'static str) {
        self.lookups.get_or_create(&ByLabels { by }).inc();
    }

    /// A question that nobody waits for: `answered`, `late`, `failed` or `passed_over`.
    pub(crate) fn look(&self, result: &'static str) {
        self.looks.get_or_create(&ResultLabels { result }).inc();
    }

    /// Of one prompt, so many blocks are in the index, and so many in the store by its own word.
    pub(crate) fn compared(&self, indexed: usize, stored: usize) {
        for (index, blocks) in [
            ("same", indexed.min(stored)),
            ("fewer", stored.saturating_sub(indexed)),
            ("more", indexed.saturating_sub(stored)),
        ] {
            self.compared.get_or_create(&IndexLabels { index }).inc_by(blocks as u64);
        }
    }

    /// Replaces the number of blocks that are being made.
    pub(crate) fn filling(&self, blocks: usize) {
        self.filling.set(i64::try_from(blocks).unwrap_or(i64::MAX));
    }
}
