//! What a store shows at `/metrics`: its counts, read when somebody asks for them.
//!
//! # Overview
//! Every metric is declared as a constant of its name, labels and help; the code that reads it fills in samples.
//! So the [`catalogue`](metrics_catalogue) of all metrics is the list of those declarations, and nothing is shown
//! that is not in it. Nothing is counted here: the same counts are in `Stats`.
//!
//! # Limits
//! Labels have few values: tenants are the operator's, namespaces and models beyond 64 a tenant are shown as
//! `other` (`store::labels`), everything else is one of a fixed list. No label is what a client says but the
//! model's name.

mod calls;
mod object;
mod sheet;
mod tenants;
mod tiers;
mod tokens;

use std::{fmt, sync::Arc};

use kelvin_proto::MetricInfo;
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};

use crate::store::Store;
use sheet::{Metric, Sheet};

/// Reads the store's own counts when asked, so that nothing is counted twice.
pub(super) struct StoreCollector(pub(super) Arc<Store>);

impl fmt::Debug for StoreCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreCollector")
    }
}

impl Collector for StoreCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (store, sheet) = (&*self.0, &mut Sheet::new(encoder));
        tokens::encode(store, sheet)?;
        tenants::encode(store, sheet)?;
        calls::encode(store, sheet)?;
        // All tenants share them.
        let below = store.tenants().next().and_then(|tenant| tenant.tiers());
        if let Some(below) = below {
            tiers::encode(below, sheet)?;
            object::encode(below, sheet)?;
        }
        Ok(())
    }
}

/// Every declaration.
fn declared() -> impl Iterator<Item = &'static Metric> {
    let above = tokens::metrics().chain(tenants::metrics()).chain(calls::metrics());
    above.chain(tiers::metrics()).chain(object::metrics())
}

/// All metrics that a store can show.
pub fn metrics_catalogue() -> Vec<MetricInfo> {
    declared().map(Metric::info).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_follow_the_rules() {
        let mut names = BTreeSet::new();
        for metric in declared() {
            let MetricInfo { name, kind, help, .. } = metric.info();
            assert!(names.insert(name.clone()), "{name} is declared twice");
            assert!(name.starts_with("kelvin_"), "{name}");
            let letters =
                |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_';
            assert!(name.chars().all(letters), "{name}");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
            assert!(help.len() > 10 && !help.ends_with('.') && !help.contains('\n'), "{name}: {help}");
            assert!(!metric.labels.contains(&"le"), "{name}");
        }
        assert!(names.len() > 80, "{}", names.len());
    }
}
