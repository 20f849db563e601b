//! Where backends are found beside the command line.

pub(crate) mod file;
pub(crate) mod redis;
