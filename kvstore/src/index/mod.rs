//! The radix index: which blocks are held, by whom, and how far a prompt's prefix is covered.
//!
//! # Overview
//! A tree over sequence hashes, one index a namespace. A node is a *run*: blocks that follow each other
//! without a branch, their hashes side by side. A map leads from a hash to the node of its block, so any
//! block is one step away whatever its depth, and a walk along a prefix looks up the map once a run, not
//! once a block. Per block: the set of its holders. Per run: its last use and the number of its uses. What a
//! holder is belongs to the caller: a tier in the store ([`TierSet`]), a worker in the router
//! ([`WorkerSet`], [`FleetSet`]).
//!
//! A block takes 16 bytes of hash in its run and 7 in the map; its holders take nothing where they are those
//! of the block before it ([`shares`]). A run takes 64 bytes in the [`arena`] and 32 around its hashes. The
//! map ([`places`], [`table`]) keeps no hashes: an entry is a tag and a node's number, which the node's
//! hashes confirm. The [`account`] knows every byte.
//!
//! A run names its parent by hash, never by number: a split or a join touches the one run, its children's
//! list and the map, and leaves the children alone.
//!
//! The index does no I/O and reads no clock: `now` is a tick of the caller's choice that does not run
//! backwards and stays below 2^40.
//!
//! # Invariants
//! 1. A block stands in exactly one run. The map has one entry for it, which is right whenever the run's
//!    lock is free.
//! 2. The parent of a block is fixed when it is inserted and stays in the tree as long as the block does.
//! 3. A block without holders stays only while it has children: as structure that is no hit.
//! 4. A run has 1 to [`RUN_BLOCKS_MAX`] blocks, and children only behind its last one. It is split where a
//!    branch begins. A removal that leaves a run one child joins the two if they fit in one run. Runs are
//!    otherwise not rearranged: two runs that were too long to join stay two when blocks leave their ends.
//! 5. The lists of children link exactly the runs whose parent is the last block of the run that has them.
//!
//! # Locking
//! In this order:
//! 1. `changes`: shared by everything that changes the tree, exclusive for a walk over it (`snapshot`,
//!    `eviction_order`, `descendants`, `subtree`), which so sees one moment. Lookups don't take it. Threads
//!    that change the tree take shards of it, so they don't meet there.
//! 2. The lock of a run, then that of a child run; never more than these two, and never upwards. Which run
//!    is whose child is settled under the parent's lock, so two threads can't disagree about the order.
//!    A run that only may be a child is tried, not waited for. The list of a run's children is under its
//!    lock, though its links are in the children's nodes.
//! 3. The arena's list of free nodes, or a shard of the map: taken last.
//!
//! Lookups share the locks of the runs they pass, one at a time; an insert excludes others from the run it
//! writes to and from the one it creates. What the map says may be stale by the time a run is locked, or
//! meant another hash with the same tag: whoever uses an entry checks that the hash stands there, with no
//! other lock held. If it stands nowhere, it was absent at a moment if the shard's version is still that of
//! the entries; else they are read again. An insert of an absent block is made only if its shard has had no
//! other insert since, or if no entry has its tag, so no two threads insert the same block twice. Last uses are atomics.
//!
//! Alternative, not taken: `dashmap` from hash to place. An entry of it has 16 bytes of hash and 8 of place,
//! and a table is 7/16 to 7/8 full: 28 to 56 bytes a block, where the whole of it may have 27.
//!
//! # Limits
//! - A lookup is not one moment: each run is seen at a moment of its own.
//! - Splitting and joining move at most [`RUN_BLOCKS_MAX`] map entries under one run's lock.
//! - A walk holds all changes back while it lasts (not lookups); `snapshot`, `descendants` and
//!   `eviction_order` take memory for each block they visit.
//! - The map trusts hashes to be uniform. A client that makes up its own can slow down its namespace.
//! - Last uses are kept a run: a use of some of its blocks counts for all.
//! - An index takes 45 KB when it is empty. Nodes, 64 bytes a run, are kept for later runs when theirs go;
//!   all other memory is returned. It has at most 2^26 runs.
//! - Without a budget the index holds what its caller inserts and does not remove.

mod account;
mod alone;
mod arena;
mod holders;
mod load;
mod lookup;
mod mix;
mod outline;
mod places;
mod prefetch;
mod radix;
mod removal;
mod run;
mod shares;
mod table;
#[cfg(test)]
mod tests;
mod walk;

pub use holders::{FleetSet, HolderSet, TierSet, WorkerSet};
pub use load::Loaded;
pub use mix::HashMixer;
pub use outline::{Branch, OUTLINE_HOLDERS, Outline};
pub use radix::{InsertError, Inserted, RUN_BLOCKS_MAX, RadixIndex};
pub use walk::{Entry, Subtree};
