//! Whole clusters under load, under faults, and with a real model.

mod chaos;
mod client;
mod deploy;
mod fingerprint;
mod pressure;
mod real_model;
