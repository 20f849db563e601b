//! The native half of the Python package `kelvin`: the store's client, and leases whose memory Python sees
//! in place.
//!
//! # Overview
//! [`client::Client`] and [`namespace::Namespace`] are the Rust client's verbs. Each is one class in two
//! guises: called as is, a verb blocks, without the GIL, and can be interrupted; the `Async` one gives an
//! awaitable instead ([`runtime::Mode`]). [`lease`] has the leases, [`memory`] how their bytes are exported
//! by the buffer protocol and DLPack. Types and contracts for users are in `python/kelvin/_kelvin.pyi`.
//!
//! # Invariants
//! A block's bytes are shown to Python only once they were found to be those committed; of parts of blocks
//! ([`parts`]) that cannot be told. A lease goes back to the store
//! only when nothing in this process looks at its bytes any more, however it was released.

mod answers;
mod args;
mod client;
mod error;
mod lease;
mod memory;
mod namespace;
mod parts;
mod runtime;
mod watch;

use pyo3::prelude::*;

/// The module `kelvin._kelvin`.
#[pymodule]
mod _kelvin {
    #[pymodule_export]
    use crate::{
        answers::{BlockStatus, Match},
        client::{AsyncClient, Client, connect},
        lease::{Acquired, ReadLease, WriteLease},
        namespace::{AsyncNamespace, Namespace},
        parts::Parts,
        watch::{AsyncWatch, Watch},
    };
}
