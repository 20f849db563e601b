//! How fast, against whom.

fn main() {}
