//! The radix index: which blocks are held, by whom, and how far a prompt's prefix is covered.
//!
//! # Overview
//! A tree over sequence hashes, one index a namespace. A node is a *run*: blocks that follow each other
//! without a branch, kept in arrays side by side. A `dashmap` leads from a hash to `(node, offset)`, so any
//! block is one step away whatever its depth, and a walk along a prefix looks up the map once a run, not
//! once a block. Per block: the set of its holders and its last use. What a holder is belongs to the
//! caller: a tier in the store ([`TierSet`]), a worker in the router ([`WorkerSet`]).
//!
//! Runs name their parent and their children by hash, never by pointer. So a split or a join touches the
//! one run (and the map), not its neighbours, and the map alone owns the nodes.
//!
//! The index does no I/O and reads no clock: `now` is a tick of the caller's choice that does not run
//! backwards.
//!
//! # Invariants
//! 1. A block stands in exactly one run. The map has an entry for it, which is right whenever the run's
//!    lock is free.
//! 2. The parent of a block is fixed when it is inserted and stays in the tree as long as the block does.
//! 3. A block without holders stays only while it has children: as structure that is no hit.
//! 4. A run has 1 to [`RUN_BLOCKS_MAX`] blocks, and children only behind its last one. It is split where a
//!    branch begins. A removal that leaves a run one child joins the two if they fit in one run. Runs are
//!    otherwise not rearranged: two runs that were too long to join stay two when blocks leave their ends.
//!
//! # Locking
//! In this order:
//! 1. `changes`: shared by everything that changes the tree, exclusive for a walk over it (`snapshot`,
//!    `eviction_order`, `descendants`, `subtree`), which so sees one moment. Lookups don't take it.
//! 2. The lock of a run, then that of a child run; never more than these two, and never upwards. Which run
//!    is whose child is settled under the parent's lock, so two threads can't disagree about the order.
//! 3. A shard of the map: taken last, with no run locked under it.
//!
//! Lookups share the locks of the runs they pass, one at a time; an insert excludes others from the run it
//! writes to and from the one it creates. A place read from the map may be stale by the time its run is
//! locked: whoever uses one checks that the hash stands there, and else looks again. Last uses are atomics,
//! written under a shared lock.
//!
//! Alternative, not taken: an arena of nodes with 4-byte ids in place of `Arc`. It saves 8 bytes a map
//! entry, and costs a lock around the arena's growth or unsafe code.
//!
//! # Limits
//! - A lookup is not one moment: each run is seen at a moment of its own.
//! - Splitting and joining move at most [`RUN_BLOCKS_MAX`] map entries under one run's lock.
//! - A walk holds all changes back while it lasts (not lookups) and takes memory for each block it visits.
//! - The map trusts hashes to be uniform. A client that makes up its own can slow down its namespace.
//! - Without a budget the index holds what its caller inserts and does not remove.

mod alone;
mod holders;
mod load;
mod places;
mod radix;
mod run;
#[cfg(test)]
mod tests;
mod walk;

pub use holders::{HolderSet, TierSet, WorkerSet};
pub use load::Loaded;
pub use places::PassThrough;
pub use radix::{InsertError, Inserted, RUN_BLOCKS_MAX, RadixIndex};
pub use walk::{Entry, Subtree};
