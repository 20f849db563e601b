//! Where bytes live: memory pools, devices, and which block goes first when a tier is full.
//!
//! This crate knows slots and bytes, not tokens. A [`Device`] is one tier's storage; the DRAM tier is
//! [`DramPool`], equal slots in a memory file that other processes of the host can map.

mod device;
mod dram;
mod memory;
mod policy;
pub mod testing;

pub use device::{Device, DeviceError, Tier, Usage};
pub use dram::{DramPool, DramSlot};
pub use memory::{Arena, MemoryError};
pub use policy::{
    Attributes, GhostBoard, GhostRate, Order, Policy, PolicyKind, TailFirstLru, UnknownPolicy, Weight, Why,
    build as build_policy,
};
