//! Where bytes live: memory pools, devices, and which block goes first when a tier is full.
//!
//! This crate knows slots and bytes, not tokens. A [`Device`] is one tier's storage; the DRAM tier is
//! [`DramPool`], equal slots in a memory file that other processes of the host can map; the NVMe tier is
//! [`NvmeDevice`], slots in preallocated files.

mod device;
mod dram;
#[doc(hidden)]
pub mod fuzzing;
mod memory;
pub mod mover;
mod nvme;
mod object;
mod policy;
pub mod testing;

pub use device::{Device, DeviceError, Tier, Usage};
pub use dram::{DramPool, DramSlot};
pub use memory::{Arena, MemoryError};
pub use nvme::{
    DeviceHealth, NvmeAddress, NvmeDevice, NvmeEngine, NvmeError, NvmeFile, NvmeOptions, NvmePath, NvmeProbe,
    NvmeRate, NvmeSlot, Staging,
};
pub use object::{
    BreakerOptions, BreakerState, Credentials, Namespace, ObjectError, ObjectOptions, ObjectStats,
    PACK_BYTES_MAX, PACK_ENTRIES_MAX, PackEntry, PackError, PackId, PackIdError, PackInfo, PackStore,
    ReadFailure,
};
pub use policy::{
    Attributes, GhostBoard, GhostRate, Order, Policy, PolicyKind, TailFirstLru, UnknownPolicy, Weight, Why,
    build as build_policy,
};
