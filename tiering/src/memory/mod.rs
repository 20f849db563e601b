//! Memory that other processes may map, cut in equal slots.

mod arena;
mod slab;

pub use arena::{Arena, MemoryError};
pub(crate) use slab::{Slab, SlotAddress};
