//! What a run says: a table for people, JSON for programs.

use std::fmt::Write;
use std::path::Path;

use anyhow::Context;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::machine::Machine;

/// The percentiles of every distribution.
pub(crate) const PERCENTILES: [(&str, f64); 3] = [("p50", 0.50), ("p95", 0.95), ("p99", 0.99)];

/// One figure. `limit` is the physical limit or the peer measured in the same run, `ratio` compares them.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    limit: Option<f64>,
    ratio: Option<f64>,
}

/// Everything of one run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    workload: &'static str,
    seed: u64,
    machine: Machine,
    results: Vec<Figure>,
    /// For people.
    #[serde(skip)]
    text: String,
}

impl Report {
    pub(crate) fn new(workload: &'static str, seed: u64, subject: &str) -> Report {
        let machine = Machine::look();
        let text = format!("{workload}: {subject}, seed {seed}\n{machine}\n");
        Report { workload, seed, machine, results: Vec::new(), text }
    }

    /// A line of the table.
    pub(crate) fn line(&mut self, line: impl AsRef<str>) {
        self.text.push_str(line.as_ref());
        self.text.push('\n');
    }

    /// A figure for the JSON alone.
    pub(crate) fn figure(&mut self, name: impl Into<String>, value: f64, unit: &'static str) {
        self.results.push(Figure { name: name.into(), value, unit, limit: None, ratio: None });
    }

    /// A figure and what it is compared with; `ratio` is limit / value when less is better.
    pub(crate) fn compared(
        &mut self,
        name: impl Into<String>,
        value: f64,
        unit: &'static str,
        limit: f64,
        ratio: f64,
    ) {
        self.results.push(Figure { name: name.into(), value, unit, limit: Some(limit), ratio: Some(ratio) });
    }

    /// A distribution: a row of the table and a figure a percentile. Values are divided by `scale`.
    pub(crate) fn distribution(
        &mut self,
        name: &str,
        histogram: &Histogram<u64>,
        scale: f64,
        unit: &'static str,
    ) {
        if histogram.is_empty() {
            return;
        }
        let label =
            format!("{} {unit}", name.rsplit_once('.').map_or(name, |(_, last)| last).replace('_', " "));
        let mut row = format!("  {label:<24}");
        for (percentile, quantile) in PERCENTILES {
            let value = histogram.value_at_quantile(quantile) as f64 / scale;
            let _ = write!(row, "{:>12}", number(value));
            self.figure(format!("{name}_{percentile}"), value, unit);
        }
        self.line(row);
    }

    /// Prints the table and writes the JSON where it is wanted.
    pub(crate) fn finish(&self, json: Option<&Path>) -> anyhow::Result<()> {
        println!("{}", self.text);
        if let Some(path) = json {
            let text = serde_json::to_string_pretty(self)? + "\n";
            std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
            println!("written: {}", path.display());
        }
        Ok(())
    }
}

/// Three digits or so: 0.123, 1.23, 12.3, 123, 12345.
pub(crate) fn number(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 100.0 || size == 0.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_digits() {
        let text: Vec<_> = [0.0, 0.1234, 1.234, 12.34, 123.4, 12_345.6].into_iter().map(number).collect();
        assert_eq!(text, ["0", "0.123", "1.23", "12.3", "123", "12346"]);
    }

    #[test]
    fn the_json_has_the_agreed_shape() {
        let mut report = Report::new("serve", 7, "toy");
        let mut histogram = Histogram::new(3).unwrap();
        histogram.record(2_000).unwrap();
        report.distribution("load.first_token", &histogram, 1e3, "ms");
        report.compared("reuse.warm", 2.0, "ms", 50.0, 25.0);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.json");
        report.finish(Some(&path)).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let keys: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, ["workload", "seed", "machine", "results"]);
        assert_eq!(json["results"][0]["name"], "load.first_token_p50");
        assert_eq!(json["results"][0]["limit"], serde_json::Value::Null);
        assert_eq!(json["results"][3]["limit"], 50.0);
        assert_eq!(json["results"][3]["ratio"], 25.0);
        assert!(report.text.contains("first token ms"), "{}", report.text);
    }
}
