//! Threads that store, read, evict and let leases expire on overlapping sequences of one tenant.
//!
//! The bytes of a block follow from its hash. A reader looks at them when it leases the block, and again
//! before it gives it back: had the slot been used again meanwhile, other bytes would stand there.

use std::{
    result::Result::Ok,
    sync::atomic::{AtomicBool, Ordering},
};

use rand::{Rng, SeedableRng, rngs::SmallRng, seq::SliceRandom};

use super::*;
use crate::{index::HolderSet, store::room::Removal};

const CHAINS: u8 = 12;
const DEPTH: usize = 10;
/// Fewer than the sequences have together.
const SLOTS: u64 = 40;
const THREADS: u64 = 4;
const STEPS: usize = 6_000;
const HELD_MAX: usize = 6;

/// Two sequences share their first four blocks.
fn chain(number: u8) -> Vec<SequenceHash> {
    let block = |depth: usize| {
        let line = if depth < 4 { number / 2 * 2 } else { number };
        SequenceHash::from_bytes([line * DEPTH as u8 + depth as u8 + 1; 16])
    };
    (0..DEPTH).map(block).collect()
}

fn bytes_of(hash: SequenceHash) -> Vec<u8> {
    hash.to_bytes().repeat(BLOCK_BYTES as usize / 16)
}

fn seed() -> u64 {
    let seed = std::env::var("KELVIN_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from_le_bytes(crate::random::bytes()));
    println!("KELVIN_SEED={seed}");
    seed
}

/// A client: what it holds by its own account.
struct Client<'a> {
    bench: &'a Bench,
    rng: SmallRng,
    session: u64,
    held: Vec<(u64, SequenceHash)>,
    /// Whether leases may end without it.
    expires: bool,
}

impl Client<'_> {
    fn tenant(&self) -> &Tenant {
        self.bench.tenant()
    }

    /// Ends what it knew of leases when its session is gone.
    fn reopen(&mut self) {
        assert!(self.expires);
        self.held.clear();
        self.session = self.bench.open();
    }

    fn step(&mut self) {
        match self.rng.random_range(0..10) {
            0..4 if self.held.len() < HELD_MAX => self.acquire(),
            0..6 => self.release(),
            6..9 => self.store(),
            _ if self.tenant().renew(self.session, &[], true, TTL).is_err() => self.reopen(),
            _ => {}
        }
    }

    /// The leased bytes are those of the block.
    fn check(&self, lease: u64, hash: SequenceHash) {
        match self.tenant().leased(self.session, lease) {
            Some(block) => {
                assert!(block.slot().bytes() == bytes_of(hash), "block {hash} changed while leased")
            }
            None => assert!(self.expires, "the lease on {hash} is gone"),
        }
    }

    fn acquire(&mut self) {
        let chain = chain(self.rng.random_range(0..CHAINS));
        let blocks = self.rng.random_range(1..=HELD_MAX - self.held.len());
        let start = self.rng.random_range(0..DEPTH - blocks);
        let hashes = &chain[start..start + blocks];
        let Ok(leased) = self.tenant().acquire(self.session, hashes, TTL) else { return self.reopen() };
        for (block, &hash) in leased.iter().zip(hashes).filter(|(block, _)| block.status == Leased) {
            self.check(block.lease, hash);
            self.held.push((block.lease, hash));
        }
    }

    fn release(&mut self) {
        self.held.shuffle(&mut self.rng);
        let back = self.held.split_off(self.rng.random_range(0..=self.held.len()));
        back.iter().for_each(|&(lease, hash)| self.check(lease, hash));
        let ids: Vec<_> = back.iter().map(|(lease, _)| *lease).collect();
        let Ok(statuses) = self.tenant().release(self.session, &ids) else { return self.reopen() };
        assert!(self.expires || statuses.iter().all(|&status| status == BlockStatus::Ok), "{statuses:?}");
    }

    fn store(&mut self) {
        let chain = chain(self.rng.random_range(0..CHAINS));
        let hashes = &chain[..self.rng.random_range(1..=DEPTH)];
        let Ok(blocks) = self.tenant().reserve(self.session, None, hashes, TTL) else { return self.reopen() };
        let mut reserved: Vec<_> = blocks.iter().zip(hashes).filter(|(block, _)| block.lease != 0).collect();
        if self.rng.random_range(0..3) == 0 {
            reserved.shuffle(&mut self.rng);
        }
        for (block, &hash) in reserved {
            if self.rng.random_range(0..12) == 0 {
                let aborted = self.tenant().abort(self.session, &[block.lease]);
                assert!(self.expires || aborted.unwrap() == [BlockStatus::Ok]);
                continue;
            }
            let filling = self.tenant().take_write(self.session, block.lease);
            let Some(mut filling) = filling else {
                assert!(self.expires);
                continue;
            };
            filling.slot.bytes_mut().copy_from_slice(&bytes_of(hash));
            let kept = self.tenant().put_write(self.session, block.lease, filling);
            assert!(self.expires || kept);
            let sum = checksum(&bytes_of(hash));
            let statuses = self.tenant().commit(self.session, &[(block.lease, sum)]);
            // Without a parent when that was aborted above.
            assert!(self.expires || matches!(statuses.unwrap()[..], [Stored | NoParent]));
        }
    }
}

/// Evicts blocks at random until told to stop.
fn evict(bench: &Bench, namespace: u64, seed: u64, stop: &AtomicBool) {
    let mut rng = SmallRng::seed_from_u64(seed);
    while !stop.load(Ordering::Relaxed) {
        let hash = chain(rng.random_range(0..CHAINS))[rng.random_range(0..DEPTH)];
        let mut state = bench.tenant().lock();
        let gone = bench.tenant().evict(&mut state, BlockKey { namespace, hash }, Removal::Room);
        drop(state);
        // The guard keeps the slot, and nobody can come by it any more.
        assert!(gone.is_none_or(|block| !block.is_leased() && block.slot().bytes() == bytes_of(hash)));
        std::thread::yield_now();
    }
}

/// What must hold once nobody holds a lease.
fn check_rest(bench: &Bench, namespace: &Namespace) {
    let tenant = bench.tenant();
    assert_eq!(bench.leases(), (0, 0));
    let mut sealed = 0;
    for hash in (0..CHAINS).flat_map(chain).collect::<std::collections::HashSet<_>>() {
        let block = tenant.sealed(BlockKey { namespace: namespace.id, hash });
        assert_eq!(block.is_some(), !namespace.index.holders(hash).is_empty(), "index and table agree");
        sealed += u64::from(block.is_some());
    }
    assert_eq!((tenant.usage().places, namespace.index.len() as u64), (sealed, sealed));
    // Every slot can be had, so no block counts as leased, or as awaited by one that is being filled.
    let session = bench.open();
    let fresh: Vec<_> = (0..SLOTS).map(|n| SequenceHash::from_bytes([200 + n as u8; 16])).collect();
    let blocks = tenant.reserve(session, None, &fresh, TTL).unwrap();
    assert!(blocks.iter().all(|block| block.status == Reserved));
    tenant.end_session(session);
    assert_eq!((tenant.usage().places, namespace.index.len()), (0, 0));
}

fn churn(expires: bool) {
    let seed = seed();
    let bench = bench(SLOTS);
    let namespace = bench.tenant().namespace_of(bench.open()).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|n| {
                let bench = &bench;
                scope.spawn(move || {
                    let rng = SmallRng::seed_from_u64(seed ^ n);
                    let mut client = Client { bench, rng, session: bench.open(), held: vec![], expires };
                    (0..STEPS).for_each(|_| client.step());
                    client.held
                })
            })
            .collect();
        let (bench, stop, id) = (&bench, &stop, namespace.id);
        scope.spawn(move || evict(bench, id, seed ^ 99, stop));
        if expires {
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    bench.clock.advance(TTL / 8);
                    bench.store.reap();
                    std::thread::yield_now();
                }
            });
        }
        let held: usize = threads.into_iter().map(|thread| thread.join().unwrap().len()).sum();
        stop.store(true, Ordering::Relaxed);
        if !expires {
            assert_eq!(bench.leases(), (held as u64, 0), "no release was lost");
        }
    });
    bench.clock.advance(2 * TTL);
    bench.store.reap();
    assert!(bench.tenant().counters().evictions.get() > 0);
    check_rest(&bench, &namespace);
}

#[test]
fn no_slot_is_used_again_while_it_is_leased() {
    churn(false);
}

#[test]
fn what_expires_among_threads_is_given_back() {
    churn(true);
}
