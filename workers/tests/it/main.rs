//! Workers with a real store in one process, over gRPC and shared memory.

mod cluster;
mod failures;
mod flow;
mod real_model;
mod requests;
mod resume;
