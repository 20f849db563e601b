//! temp
pub(crate) mod scheduler;
pub(crate) mod sequence;
