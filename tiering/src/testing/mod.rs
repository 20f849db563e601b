//! Test doubles and the suite every device passes.

mod conformance;
mod faulty;
#[cfg(feature = "s3-sim")]
mod s3sim;

pub use conformance::{block_on, check_device};
pub use faulty::{Fault, Faulty};
#[cfg(feature = "s3-sim")]
pub use s3sim::{S3Faults, S3Requests, S3Sim, S3SimOptions};
