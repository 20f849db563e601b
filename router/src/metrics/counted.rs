//! Makes a metric and registers it, in one line.

use prometheus_client::registry::{Metric, Registry, Unit};

/// A metric that `r` shows by this name.
pub(crate) fn counted<M: Metric + Clone + Default>(
    r: &mut Registry,
    name: &'static str,
    help: &'static str,
) -> M {
    let metric = M::default();
    r.register(name, help, metric.clone());
    metric
}

/// The same of one that is given, with a unit behind its name.
pub(crate) fn measured<M: Metric + Clone>(
    r: &mut Registry,
    name: &'static str,
    help: &'static str,
    unit: Unit,
    metric: M,
) -> M {
    r.register_with_unit(name, help, unit, metric.clone());
    metric
}
