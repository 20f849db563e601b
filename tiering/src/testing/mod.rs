//! Test doubles and the suite every device passes.

mod conformance;
mod faulty;

pub use conformance::{block_on, check_device};
pub use faulty::{Fault, Faulty};
