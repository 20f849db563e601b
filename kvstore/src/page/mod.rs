//! The built-in page: what an operator sees of a store or a router in a browser, at `/ui` of its admin listener.
//!
//! # Overview
//! A [`Source`] says what there is: figures of now, series sampled each second, the tree of prefixes, recent
//! requests. [`routes`] makes of it the page (its files are in the binary), the JSON under `/ui/api/` that the
//! page reads, and the one call that changes something. [`History`] keeps the series, so that no other program
//! is needed to see the last day.
//!
//! # Invariants
//! - No text of a prompt and no token is shown or kept: hashes, counts, and names that an operator gave.
//! - The page loads nothing from elsewhere; its Content-Security-Policy forbids it.
//! - Reading takes no token, for the listener is loopback; changing takes one, and a page of another origin can
//!   do neither (see [`access`]).
//!
//! # Limits
//! A history of `n` series takes `8 (n + 1) (3600 + 1440)` bytes when it is full, 2 MB with 48 series.

mod access;
mod assets;
mod figures;
mod history;
mod recent;
mod routes;

pub use access::{Token, bearer};
#[cfg(feature = "server")]
pub(crate) use figures::tier_name;
pub use figures::{STORE_SERIES, explanation, figures, mrc, sample};
pub use history::{History, Kind, Series};
pub use recent::{Recent, RecentLists};
pub use routes::{Failure, Page, Source, TreeQuery, guarded};
