//! Which namespaces have a label of their own in metrics.
//!
//! A tenant's first [`NAMED_MAX`] namespaces are shown by themselves, all later ones together as [`OTHER`], for
//! as long as the store runs: a sum that changed its members would go down, and a scraper would take that for a
//! restart. For the same reason the counts of a namespace that was forgotten stay, and go on when it comes back.
//!
//! # Limits
//! [`NAMED_MAX`] names and sums a tenant, about 16 KiB.

use std::{collections::HashMap, sync::Arc};

use super::Namespace;

/// Namespaces of a tenant that are shown by themselves.
pub(crate) const NAMED_MAX: usize = 64;
/// What the rest is called.
pub(crate) const OTHER: &str = "other";

/// Counts of one label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Sums {
    pub(crate) match_blocks: u64,
    pub(crate) hit_blocks: u64,
    pub(crate) requested_tokens: u64,
    /// Those of `hit_blocks` that a `Match` over the API found, by tier, and their tokens.
    pub(crate) tier_blocks: [u64; 4],
    pub(crate) hit_tokens: [u64; 4],
    /// Of those that there are now.
    pub(crate) blocks: u64,
    pub(crate) index_bytes: u64,
}

impl Sums {
    fn add(&mut self, other: &Self) {
        self.match_blocks += other.match_blocks;
        self.hit_blocks += other.hit_blocks;
        self.requested_tokens += other.requested_tokens;
        self.tier_blocks.iter_mut().zip(other.tier_blocks).for_each(|(own, other)| *own += other);
        self.hit_tokens.iter_mut().zip(other.hit_tokens).for_each(|(own, other)| *own += other);
        self.blocks += other.blocks;
        self.index_bytes += other.index_bytes;
    }

    fn of(namespace: &Namespace) -> Self {
        let tokens = u64::from(namespace.spec.block_tokens);
        Self {
            match_blocks: namespace.match_blocks(),
            hit_blocks: namespace.hit_blocks(),
            requested_tokens: namespace.match_blocks() * tokens,
            tier_blocks: std::array::from_fn(|tier| namespace.tier_hits(tier)),
            hit_tokens: std::array::from_fn(|tier| namespace.tier_hits(tier) * tokens),
            blocks: namespace.index.len() as u64,
            index_bytes: namespace.index.memory_bytes() as u64,
        }
    }
}

/// A line of metrics: one namespace, or all that have no label of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) model: String,
    /// Its id in decimals, or [`OTHER`].
    pub(crate) namespace: String,
    pub(crate) sums: Sums,
    /// The namespace, if it has a label and is open.
    pub(crate) id: Option<u64>,
}

/// The labels of a tenant's namespaces.
#[derive(Debug, Default)]
pub(crate) struct Labels {
    /// Model, and what the namespace counted before it was forgotten.
    named: HashMap<u64, (String, Sums)>,
    /// What others counted before they were.
    others: Option<Sums>,
}

impl Labels {
    /// A namespace comes, for the first time or again.
    pub(crate) fn open(&mut self, namespace: &Namespace) {
        if self.named.contains_key(&namespace.id) {
            return;
        }
        if self.named.len() < NAMED_MAX {
            self.named.insert(namespace.id, (namespace.spec.model.clone(), Sums::default()));
        } else {
            self.others.get_or_insert_default();
        }
    }

    /// A namespace is forgotten.
    pub(crate) fn close(&mut self, namespace: &Namespace) {
        let mut sums = Sums::of(namespace);
        (sums.blocks, sums.index_bytes) = (0, 0);
        self.before(namespace.id).add(&sums);
    }

    /// What stands for a namespace's past.
    fn before(&mut self, id: u64) -> &mut Sums {
        match self.named.get_mut(&id) {
            Some((_, before)) => before,
            None => self.others.get_or_insert_default(),
        }
    }

    /// The lines, of the namespaces that there are and of those that were.
    pub(crate) fn rows<'a>(&self, open: impl Iterator<Item = &'a Arc<Namespace>>) -> Vec<Row> {
        let mut named: HashMap<u64, Row> = HashMap::with_capacity(self.named.len());
        for (id, (model, before)) in &self.named {
            let row = Row { model: model.clone(), namespace: id.to_string(), sums: *before, id: None };
            named.insert(*id, row);
        }
        let mut others = self.others;
        for namespace in open {
            let sums = Sums::of(namespace);
            match named.get_mut(&namespace.id) {
                Some(row) => {
                    row.sums.add(&sums);
                    row.id = Some(namespace.id);
                }
                None => others.get_or_insert_default().add(&sums),
            }
        }
        let mut rows: Vec<Row> = named.into_values().collect();
        rows.sort_by(|a, b| (&a.model, &a.namespace).cmp(&(&b.model, &b.namespace)));
        let other = |sums| Row { model: OTHER.to_owned(), namespace: OTHER.to_owned(), sums, id: None };
        rows.extend(others.map(other));
        rows
    }
}

#[cfg(test)]
mod tests {
    use kelvin_proto::{Fingerprint, NamespaceSpec, Shard};

    use super::*;
    use crate::{NamespaceKey, index::TierSet};

    fn namespace(number: u64) -> Arc<Namespace> {
        let fingerprint = Fingerprint {
            model_digest: "d".into(),
            engine: "e".into(),
            engine_build: "b".into(),
            layout: "l".into(),
            dtype: "f16".into(),
            attributes: Default::default(),
        };
        let model = format!("model {number}");
        let (shard, block_bytes) = (Shard::default(), 4096);
        let spec = NamespaceSpec { model, fingerprint, shard, block_tokens: 16, block_bytes };
        let key = NamespaceKey::derive(&[0; 32], "t", &spec.canonical());
        let mut persistent = [0; 16];
        persistent[..8].copy_from_slice(&number.to_le_bytes());
        Arc::new(Namespace::new(persistent, spec, key, Arc::default()))
    }

    #[test]
    fn namespaces_beyond_the_bound_share_a_label_and_no_count_is_lost() {
        let mut labels = Labels::default();
        let all: Vec<_> = (1..=NAMED_MAX as u64 + 10).map(namespace).collect();
        for namespace in &all {
            labels.open(namespace);
            namespace.count_match(3, &[TierSet::default()]);
        }
        let rows = labels.rows(all.iter());
        assert_eq!(rows.len(), NAMED_MAX + 1);
        assert_eq!(rows.iter().filter(|row| row.id.is_some()).count(), NAMED_MAX);
        let other = rows.last().unwrap();
        assert_eq!((other.namespace.as_str(), other.model.as_str()), (OTHER, OTHER));
        assert_eq!((other.sums.requested_tokens, other.sums.match_blocks), (10 * 3 * 16, 30));
        let sum = |rows: &[Row]| rows.iter().map(|row| row.sums.requested_tokens).sum::<u64>();
        assert_eq!(sum(&rows), all.len() as u64 * 3 * 16);

        // Forgotten ones still count, and go on where they were.
        let (first, last) = (&all[0], &all[all.len() - 1]);
        labels.close(first);
        labels.close(last);
        let left = &all[1..all.len() - 1];
        assert_eq!(sum(&labels.rows(left.iter())), all.len() as u64 * 3 * 16);
        let again = namespace(1);
        labels.open(&again);
        again.count_match(1, &[]);
        let rows = labels.rows(left.iter().chain([&again]));
        assert_eq!(rows.len(), NAMED_MAX + 1);
        let row = rows.iter().find(|row| row.id == Some(1)).unwrap();
        assert_eq!(row.sums.requested_tokens, (3 + 1) * 16);
    }
}
