//! Insight: why a prompt was a miss, and what other capacities would have hit.

mod bursts;
mod explain;
mod miss_ratio;

pub use bursts::Bursts;
pub use explain::{Explainer, ExplainerUsage, Reason, Record};
pub use miss_ratio::MissRatio;
