//! The store's client for engines in C and C++: `include/kelvin.h`, made from this by cbindgen.
//!
//! # Overview
//! [`calls`] are the verbs, each a blocking call over the Rust client; [`types`] what goes in and comes out;
//! [`status`] how a call ended. Handles are boxes that C owns until it gives them back.
//!
//! # Invariants
//! No panic crosses into C. A call that fails has left its outputs alone.

mod calls;
mod status;
mod types;

pub use calls::*;
pub use status::{KelvinBlockStatus, KelvinStatus, kelvin_last_error};
pub use types::{KelvinHash, KelvinSpec, KelvinTransport};
