//! What carries out a plan.

pub(crate) mod local;
