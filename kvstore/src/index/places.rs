//! Places: the map from a hash to where its block stands.

use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use dashmap::DashMap;
use parking_lot::RwLock;

use super::run::Run;
use crate::SequenceHash;

/// Hasher for keys that are uniform already: its result is the last integer written to it.
#[derive(Debug, Default, Clone, Copy)]
pub struct PassThrough(u64);

impl Hasher for PassThrough {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }

    fn write_u128(&mut self, number: u128) {
        // The low half is as uniform as the whole.
        self.0 = number as u64;
    }
}

/// A run and its lock.
pub(super) type Node<S> = RwLock<Run<S>>;

/// Where a block stands, or stood: to be checked under the node's lock.
pub(super) struct Place<S> {
    pub(super) node: Arc<Node<S>>,
    offset: u32,
}

impl<S> Place<S> {
    pub(super) fn new(node: &Arc<Node<S>>, offset: usize) -> Self {
        // Runs are far shorter than that; the index asserts it when it is made.
        Self { node: Arc::clone(node), offset: offset as u32 }
    }

    pub(super) fn offset(&self) -> usize {
        self.offset as usize
    }
}

impl<S> Clone for Place<S> {
    fn clone(&self) -> Self {
        Self { node: Arc::clone(&self.node), offset: self.offset }
    }
}

pub(super) type Places<S> = DashMap<SequenceHash, Place<S>, BuildHasherDefault<PassThrough>>;
