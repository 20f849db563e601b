//! History: series of numbers, an hour of them at one second and a day at one minute.
//!
//! A row is one sample of all series, and has a number that only grows: the *cursor* with which a reader asks
//! for what came since. Counters are kept as they are, so that any two rows give the exact change between them,
//! whatever was lost meanwhile; a number that is not known is NaN, and `null` in JSON.

use std::collections::VecDeque;

use parking_lot::Mutex;
use serde_json::{Value, json};

const SECONDS: usize = 3600;
const MINUTES: usize = 1440;
const MINUTE_MS: u64 = 60_000;

/// What a series' numbers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Grows from the start of the process on: what happened between two samples is their difference.
    Counter,
    /// As it was at that moment.
    Gauge,
}

/// One series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Series {
    /// Its name in JSON: `hit.dram`.
    pub name: &'static str,
    /// What its numbers are.
    pub kind: Kind,
    /// Of its numbers: `tokens`, `bytes`, `us`, ...
    pub unit: &'static str,
}

/// Rows of one step, the oldest first.
#[derive(Debug)]
struct Rows {
    rows_max: usize,
    rows: VecDeque<(u64, Box<[f64]>)>,
    /// Rows that were dropped: the number of the first that is there.
    dropped: u64,
}

impl Rows {
    fn new(rows_max: usize) -> Self {
        Self { rows_max, rows: VecDeque::new(), dropped: 0 }
    }

    fn push(&mut self, at_ms: u64, row: Box<[f64]>) {
        if self.rows.len() == self.rows_max {
            self.rows.pop_front();
            self.dropped += 1;
        }
        self.rows.push_back((at_ms, row));
    }

    fn next(&self) -> u64 {
        self.dropped + self.rows.len() as u64
    }
}

/// The rings.
#[derive(Debug)]
pub struct History {
    series: Vec<Series>,
    /// When this history began, in milliseconds since 1970: cursors of another one mean nothing here.
    start_ms: u64,
    rings: Mutex<[Rows; 2]>,
}

impl History {
    /// An empty one, begun at `start_ms`.
    pub fn new(series: Vec<Series>, start_ms: u64) -> Self {
        Self { series, start_ms, rings: Mutex::new([Rows::new(SECONDS), Rows::new(MINUTES)]) }
    }

    /// The series, in the order of a row.
    pub fn series(&self) -> &[Series] {
        &self.series
    }

    /// Adds a sample of all series, called once a second. The first of each minute is kept for a day.
    ///
    /// # Panics
    /// If it has another number of series.
    pub fn push(&self, at_ms: u64, row: Vec<f64>) {
        assert_eq!(row.len(), self.series.len(), "a number for each series");
        let row: Box<[f64]> = row.into();
        let mut rings = self.rings.lock();
        let [seconds, minutes] = &mut *rings;
        if minutes.rows.back().is_none_or(|(last_ms, _)| last_ms / MINUTE_MS < at_ms / MINUTE_MS) {
            minutes.push(at_ms, row.clone());
        }
        seconds.push(at_ms, row);
    }

    /// Bytes it takes now, and at most.
    pub fn memory_bytes(&self) -> (usize, usize) {
        let row_bytes = 8 * self.series.len() + size_of::<(u64, Box<[f64]>)>();
        let rows: usize = self.rings.lock().iter().map(|rows| rows.rows.len()).sum();
        (rows * row_bytes, (SECONDS + MINUTES) * row_bytes)
    }

    /// The rows from number `since` on, by series. With `minutes`, those of a day.
    pub fn since(&self, since: u64, minutes: bool) -> Value {
        let (memory_bytes, memory_bytes_max) = self.memory_bytes();
        let rings = self.rings.lock();
        let rows = &rings[usize::from(minutes)];
        // A cursor of the future is one of another history.
        let since = if since > rows.next() { 0 } else { since };
        let skipped = usize::try_from(since.saturating_sub(rows.dropped)).unwrap_or(usize::MAX);
        let wanted = || rows.rows.iter().skip(skipped);
        let times: Vec<u64> = wanted().map(|(at_ms, _)| *at_ms).collect();
        let series = self.series.iter().enumerate().map(|(at, series)| {
            let values: Vec<Value> = wanted().map(|(_, row)| number(row[at])).collect();
            let kind = if series.kind == Kind::Counter { "counter" } else { "gauge" };
            (series.name.to_owned(), json!({"kind": kind, "unit": series.unit, "values": values}))
        });
        json!({
            "start_ms": self.start_ms,
            "step_ms": if minutes { MINUTE_MS } else { 1000 },
            "next": rows.next(),
            "times_ms": times,
            "series": series.collect::<serde_json::Map<_, _>>(),
            "memory_bytes": memory_bytes,
            "memory_bytes_max": memory_bytes_max,
        })
    }
}

/// As short as it is exact: whole numbers without a fraction, what is not known as `null`.
fn number(value: f64) -> Value {
    const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;
    match value {
        value if value.fract() == 0.0 && value.abs() < WHOLE_MAX => json!(value as i64),
        value => json!(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERIES: [Series; 2] = [
        Series { name: "asked", kind: Kind::Counter, unit: "tokens" },
        Series { name: "used", kind: Kind::Gauge, unit: "bytes" },
    ];

    fn filled(samples: u64) -> History {
        let history = History::new(SERIES.to_vec(), 7);
        (0..samples).for_each(|at| history.push(at * 1000, vec![at as f64, 0.5]));
        history
    }

    #[test]
    fn a_reader_gets_what_came_since() {
        let history = filled(10);
        let all = history.since(0, false);
        assert_eq!(all["times_ms"].as_array().map(Vec::len), Some(10));
        assert_eq!(all["series"]["asked"]["values"][9], 9);
        assert_eq!(all["series"]["used"]["values"][9], 0.5);
        let next = all["next"].as_u64().unwrap_or_default();
        assert_eq!(history.since(next, false)["times_ms"], json!([]));
        history.push(10_000, vec![f64::NAN, 1.0]);
        let more = history.since(next, false);
        assert_eq!(
            (&more["times_ms"], &more["series"]["asked"]["values"]),
            (&json!([10_000]), &json!([null]))
        );
        assert_eq!(
            history.since(1 << 40, false)["times_ms"].as_array().map(Vec::len),
            Some(11),
            "of another start"
        );
    }

    #[test]
    fn an_hour_of_seconds_and_a_day_of_minutes_are_kept() {
        let history = filled(2 * 86_400);
        let seconds = history.since(0, false);
        assert_eq!(seconds["times_ms"].as_array().map(Vec::len), Some(SECONDS));
        assert_eq!(seconds["times_ms"][0], (2 * 86_400 - SECONDS as u64) * 1000);
        let minutes = history.since(0, true);
        assert_eq!(minutes["times_ms"].as_array().map(Vec::len), Some(MINUTES));
        assert_eq!(minutes["times_ms"][0], 86_400_000u64);
        let (bytes, bytes_max) = history.memory_bytes();
        assert_eq!(bytes, bytes_max);
        assert!(bytes_max < 400_000, "{bytes_max}");
    }
}
