//! Whole clusters of real processes, started by `kelvin up`.

mod chaos;
mod client;
mod fingerprint;
mod pressure;
mod process;
mod real_model;
