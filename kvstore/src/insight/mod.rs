//! Insight: why a prompt was a miss, and what other capacities would have hit.

mod explain;

pub use explain::{Explainer, ExplainerUsage, Reason, Record};
