//! The store over real sockets and real shared memory.

mod calls;
mod data_port;
mod harness;
mod hostile;
mod inline;
mod keep;
mod metrics;
mod parts;
mod ranges;
mod restart;
mod shared_memory;
mod tiers;
mod watch;
