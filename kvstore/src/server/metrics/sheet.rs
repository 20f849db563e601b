//! Metrics as constants, and the sheet that their samples are written on.

use std::fmt;

use kelvin_proto::MetricInfo;
use prometheus_client::{
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
    registry::Unit,
};

use crate::store::Distribution;

/// What kind of number a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A metric, without its values.
#[derive(Debug)]
pub(super) struct Metric {
    /// Without unit and suffix: those follow from the rest.
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// Empty for a plain number.
    pub(super) unit: &'static str,
    pub(super) labels: &'static [&'static str],
    pub(super) help: &'static str,
}

impl Metric {
    pub(super) const fn counter(
        name: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Self {
        Self { name, kind: Kind::Counter, unit: "", labels, help }
    }

    pub(super) const fn gauge(
        name: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Self {
        Self { name, kind: Kind::Gauge, unit: "", labels, help }
    }

    /// Of `bytes` or `seconds`.
    pub(super) const fn histogram(
        name: &'static str,
        unit: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Self {
        Self { name, kind: Kind::Histogram, unit, labels, help }
    }

    pub(super) const fn unit(self, unit: &'static str) -> Self {
        Self { unit, ..self }
    }

    /// For the catalogue.
    pub(super) fn info(&self) -> MetricInfo {
        let (unit, total) = (
            if self.unit.is_empty() { String::new() } else { format!("_{}", self.unit) },
            if self.kind == Kind::Counter { "_total" } else { "" },
        );
        MetricInfo {
            name: format!("{}{unit}{total}", self.name),
            kind: match self.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram => "histogram",
            }
            .to_owned(),
            unit: self.unit.to_owned(),
            labels: self.labels.iter().map(|label| (*label).to_owned()).collect(),
            help: self.help.to_owned(),
        }
    }
}

/// A sample's number.
pub(super) enum Value {
    Whole(u64),
    Real(f64),
    /// Of bytes, or of nanoseconds where the metric's unit is seconds.
    Spread(Distribution),
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Real(value)
    }
}

impl From<Distribution> for Value {
    fn from(value: Distribution) -> Self {
        Self::Spread(value)
    }
}

/// Values of a metric's labels, in their order, and the number.
pub(super) type Sample = (Vec<String>, Value);

/// Where samples are written.
pub(super) struct Sheet<'a>(DescriptorEncoder<'a>);

impl<'a> Sheet<'a> {
    pub(super) fn new(encoder: DescriptorEncoder<'a>) -> Self {
        Self(encoder)
    }

    /// Writes a metric; nothing if it has no samples.
    pub(super) fn put(&mut self, metric: &Metric, samples: impl IntoIterator<Item = Sample>) -> fmt::Result {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        let unit = (!metric.unit.is_empty()).then(|| Unit::Other(metric.unit.to_owned()));
        let kind = match metric.kind {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
            Kind::Histogram => MetricType::Histogram,
        };
        let mut family = self.0.encode_descriptor(metric.name, metric.help, unit.as_ref(), kind)?;
        for (values, value) in samples {
            debug_assert_eq!(values.len(), metric.labels.len(), "labels of {}", metric.name);
            let labels: Vec<(&str, String)> = metric.labels.iter().copied().zip(values).collect();
            // Without braces when there are none.
            match labels.is_empty() {
                true => encode(metric, value, &mut family)?,
                false => encode(metric, value, &mut family.encode_family(&labels)?)?,
            }
        }
        Ok(())
    }

    /// Writes a metric without labels.
    pub(super) fn single(&mut self, metric: &Metric, value: impl Into<Value>) -> fmt::Result {
        self.put(metric, [(Vec::new(), value.into())])
    }
}

fn encode(
    metric: &Metric,
    value: Value,
    encoder: &mut prometheus_client::encoding::MetricEncoder<'_>,
) -> fmt::Result {
    match (metric.kind, value) {
        (Kind::Counter, Value::Whole(value)) => encoder.encode_counter::<NoLabelSet, _, u64>(&value, None),
        (Kind::Counter, Value::Real(value)) => encoder.encode_counter::<NoLabelSet, _, u64>(&value, None),
        (Kind::Gauge, Value::Whole(value)) => encoder.encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX)),
        (Kind::Gauge, Value::Real(value)) => encoder.encode_gauge(&value),
        (Kind::Histogram, Value::Spread(spread)) => {
            let scale = if metric.unit == "seconds" { 1e-9 } else { 1.0 };
            let bound = |bound| if bound == u64::MAX { f64::INFINITY } else { bound as f64 * scale };
            let buckets: Vec<(f64, u64)> =
                spread.buckets.iter().map(|(upper, count)| (bound(*upper), *count)).collect();
            encoder.encode_histogram::<NoLabelSet>(spread.sum as f64 * scale, spread.count(), &buckets, None)
        }
        (kind, _) => {
            debug_assert!(false, "{} is a {kind:?} of another value", metric.name);
            Ok(())
        }
    }
}
