//! The mover's machinery: who may use a tier when, and who is at a block already.
//!
//! # Overview
//! A [`Lane`] stands before one tier. Every transfer takes a [`Permit`] for its bytes: what is under way is
//! bounded, reads go ahead of writes, and writes that find the waiting line full are turned away at once, so
//! that back-pressure drops stores before it delays reads. A permit that is given back says how long the
//! transfer took; from that the lane tells how long the next one will take. A [`Line`] is a lane's state without
//! tasks and clock.
//!
//! [`Flights`] makes two who want the same block one transfer. [`Sightings`] counts how often a block was seen, for
//! admission on the n-th sight.
//!
//! What moves where, and when, is decided by the store, which knows blocks and prefixes.

mod flight;
mod lane;
mod line;
mod rate;
mod sightings;

pub use flight::{Flight, Flights, Join, Landing};
pub use lane::{Lane, Permit};
pub use line::{Direction, End, LaneOptions, LaneStats, Line, Turn};
pub use rate::Rate;
pub use sightings::Sightings;
