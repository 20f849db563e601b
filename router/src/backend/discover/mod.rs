//! Where backends are found beside the command line.

pub(crate) mod file;
