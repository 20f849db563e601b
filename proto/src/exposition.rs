//! `/metrics` as text: which of two formats a scraper gets, and a page of what there is.
//!
//! # Overview
//! Processes write OpenMetrics 1.0. Who does not ask for it gets Prometheus' text format 0.0.4, made from the
//! former line by line: there a counter's family is named with its `_total`, and there are no units and no end
//! mark. The names of samples are the same in both.
//!
//! [`describe`] reads a page back as a list of its metrics, and [`catalogue`] makes a table for people of such
//! lists.

use std::fmt::Write;

/// A text format of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposition {
    /// Prometheus' text format 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

/// A metric as the catalogue lists it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct MetricInfo {
    /// Of its samples; without `_bucket`, `_sum` and `_count` for a histogram.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    /// Empty for a plain number.
    pub unit: String,
    /// Names of its labels, in their order.
    pub labels: Vec<String>,
    /// What it says.
    pub help: String,
}

impl Exposition {
    /// What an `Accept` header asks for. OpenMetrics has to be named; of equals it is taken.
    pub fn accepted(accept: Option<&str>) -> Self {
        let (mut open, mut plain) = (0.0f32, 0.0f32);
        for range in accept.unwrap_or_default().split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default().to_ascii_lowercase();
            let quality =
                parts.find_map(|part| part.strip_prefix("q=")).map_or(Some(1.0), |q| q.parse().ok());
            let quality = quality.filter(|q: &f32| (0.0..=1.0).contains(q)).unwrap_or(0.0);
            match media.as_str() {
                "application/openmetrics-text" => open = open.max(quality),
                "text/plain" => plain = plain.max(quality),
                _ => {}
            }
        }
        if open > 0.0 && open >= plain { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// For the answer's head.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// A page of OpenMetrics in this format.
    pub fn render(self, page: String) -> String {
        match self {
            Self::Prometheus => prometheus(&page),
            Self::OpenMetrics => page,
        }
    }
}

/// What a line that begins with `#` says: the word, the family, the rest.
fn comment(line: &str) -> Option<(&str, &str, &str)> {
    let mut parts = line.strip_prefix("# ")?.splitn(3, ' ');
    Some((parts.next()?, parts.next()?, parts.next().unwrap_or_default()))
}

fn prometheus(page: &str) -> String {
    let mut text = String::with_capacity(page.len());
    // A family's help comes before its kind, which decides its name.
    let mut help = "";
    for line in page.lines() {
        match comment(line) {
            Some(("HELP", _, said)) => help = said,
            Some(("TYPE", family, kind)) => {
                let (total, kind) = match kind {
                    "counter" => ("_total", kind),
                    "unknown" => ("", "untyped"),
                    _ => ("", kind),
                };
                let _ = writeln!(text, "# HELP {family}{total} {help}\n# TYPE {family}{total} {kind}");
            }
            _ if line.starts_with('#') => {}
            _ => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    text
}

/// The metrics of a page of OpenMetrics. A family without a sample has no labels.
pub fn describe(page: &str) -> Vec<MetricInfo> {
    let mut found: Vec<MetricInfo> = Vec::new();
    let mut help = "";
    for line in page.lines() {
        match comment(line) {
            Some(("HELP", _, said)) => help = said,
            Some(("TYPE", family, kind)) => {
                let total = if kind == "counter" { "_total" } else { "" };
                found.push(MetricInfo {
                    name: format!("{family}{total}"),
                    kind: kind.to_owned(),
                    unit: String::new(),
                    labels: Vec::new(),
                    help: help.trim_end_matches('.').to_owned(),
                });
            }
            Some(("UNIT", _, unit)) => {
                if let Some(last) = found.last_mut() {
                    last.unit = unit.to_owned();
                }
            }
            _ if line.starts_with('#') => {}
            _ => {
                let labels = labels(line).into_iter().filter(|label| *label != "le");
                if let Some(last) = found.last_mut()
                    && last.labels.is_empty()
                {
                    last.labels = labels.map(str::to_owned).collect();
                }
            }
        }
    }
    found
}

/// Names of a sample's labels.
fn labels(sample: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let Some((_, mut rest)) = sample.split_once('{') else { return names };
    while let Some((name, value)) = rest.split_once("=\"") {
        names.push(name.trim_start_matches(','));
        let mut escaped = false;
        let end = value.find(|letter| {
            let ends = letter == '"' && !escaped;
            escaped = letter == '\\' && !escaped;
            ends
        });
        let Some(end) = end else { break };
        rest = &value[end + 1..];
        if rest.starts_with('}') {
            break;
        }
    }
    names
}

/// A page in Markdown that lists the metrics of processes.
pub fn catalogue(intro: &str, processes: &[(&str, Vec<MetricInfo>)]) -> String {
    let mut page = intro.to_owned();
    for (process, metrics) in processes {
        let _ = write!(
            page,
            "\n## {process}\n\n{} metrics.\n\n| metric | type | unit | labels | what it says |\n|---|---|---|---|---|\n",
            metrics.len()
        );
        let mut metrics: Vec<_> = metrics.iter().collect();
        metrics.sort();
        for metric in metrics {
            let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
            let _ = writeln!(
                page,
                "| `{}` | {} | {} | {} | {} |",
                metric.name,
                metric.kind,
                metric.unit,
                labels.join(" "),
                metric.help.replace('|', "\\|")
            );
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# HELP a_bytes Some of it.\n# TYPE a_bytes counter\n# UNIT a_bytes bytes\n\
        a_bytes_total{x=\"1\",y=\"a \\\"b\\\", z=\\\"\"} 3\n\
        # HELP b Other.\n# TYPE b gauge\nb 0.5\n\
        # HELP c_seconds Times.\n# TYPE c_seconds histogram\n# UNIT c_seconds seconds\n\
        c_seconds_sum{k=\"v\"} 1.5\nc_seconds_count{k=\"v\"} 1\nc_seconds_bucket{k=\"v\",le=\"+Inf\"} 1\n# EOF\n";

    #[test]
    fn the_header_decides_and_openmetrics_has_to_be_asked_for() {
        let prometheus =
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        let cases = [
            (None, Exposition::Prometheus),
            (Some(""), Exposition::Prometheus),
            (Some("*/*"), Exposition::Prometheus),
            (Some("text/html,application/xhtml+xml,*/*;q=0.8"), Exposition::Prometheus),
            (Some(prometheus), Exposition::OpenMetrics),
            (Some("Application/OpenMetrics-Text"), Exposition::OpenMetrics),
            (Some("application/openmetrics-text; q=0.1, text/plain"), Exposition::Prometheus),
            (Some("application/openmetrics-text;q=0"), Exposition::Prometheus),
            (Some("application/openmetrics-text;q=much"), Exposition::Prometheus),
        ];
        for (accept, expected) in cases {
            assert_eq!(Exposition::accepted(accept), expected, "{accept:?}");
        }
    }

    #[test]
    fn prometheus_text_names_counters_as_their_samples() {
        let text = Exposition::Prometheus.render(PAGE.to_owned());
        let expected = "# HELP a_bytes_total Some of it.\n# TYPE a_bytes_total counter\n\
            a_bytes_total{x=\"1\",y=\"a \\\"b\\\", z=\\\"\"} 3\n\
            # HELP b Other.\n# TYPE b gauge\nb 0.5\n\
            # HELP c_seconds Times.\n# TYPE c_seconds histogram\n\
            c_seconds_sum{k=\"v\"} 1.5\nc_seconds_count{k=\"v\"} 1\nc_seconds_bucket{k=\"v\",le=\"+Inf\"} 1\n";
        assert_eq!(text, expected);
        assert_eq!(Exposition::OpenMetrics.render(PAGE.to_owned()), PAGE);
    }

    #[test]
    fn a_page_is_read_back_as_its_metrics() {
        let found = describe(PAGE);
        let short: Vec<_> = found
            .iter()
            .map(|metric| {
                (metric.name.as_str(), metric.kind.as_str(), metric.unit.as_str(), metric.labels.join(","))
            })
            .collect();
        let expected = [
            ("a_bytes_total", "counter", "bytes", "x,y".to_owned()),
            ("b", "gauge", "", String::new()),
            ("c_seconds", "histogram", "seconds", "k".to_owned()),
        ];
        assert_eq!(short, expected);
        let page = catalogue("# Metrics\n", &[("store", found)]);
        assert!(page.contains("\n## store\n\n3 metrics.\n"), "{page}");
        assert!(page.contains("| `a_bytes_total` | counter | bytes | `x` `y` | Some of it |\n"), "{page}");
    }
}
