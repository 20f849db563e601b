//! The block table against a plain map.

use std::collections::HashMap;

use kelvin_kernels::Checksum;
use kelvin_tiering::{Device, DramPool};
use proptest::prelude::*;

use crate::{
    SequenceHash,
    store::{
        BlockKey, ImmutableBlock, MutableBlock,
        block::{CompleteBlock, Keep},
        table::{Found, Table},
    },
};

#[derive(Debug, Clone, Copy)]
enum Op {
    Fill { parent: u8, block: u8 },
    Seal(u8),
    Lease(u8),
    EndLeases,
    Forget(u8),
    Take(u8),
    TakeLeased(u8),
    Walk(u8, u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Missing,
    Filling,
    Sealed,
}

/// Blocks of which a run and a half follow each other; 0 stands for none.
const BLOCKS: u8 = 96;

fn hash(n: u8) -> SequenceHash {
    SequenceHash::from_bytes([n; 16])
}

fn key(n: u8) -> BlockKey {
    BlockKey { namespace: 7, hash: hash(n) }
}

fn sealed(pool: &DramPool, n: u8, parent: Option<SequenceHash>) -> ImmutableBlock {
    let slot = pool.allocate(4096).expect("room for all");
    CompleteBlock::verified(
        MutableBlock { key: key(n), parent, slot, keep: Keep::default(), hashed: None },
        Checksum(n.into()),
    )
    .register()
}

fn op() -> impl Strategy<Value = Op> {
    let block = || 1..=BLOCKS;
    prop_oneof![
        4 => block().prop_map(|block| Op::Fill { parent: block - 1, block }),
        1 => (0..=BLOCKS, block()).prop_map(|(parent, block)| Op::Fill { parent, block }),
        4 => block().prop_map(Op::Seal),
        1 => block().prop_map(Op::Lease),
        1 => Just(Op::EndLeases),
        1 => block().prop_map(Op::Forget),
        1 => block().prop_map(Op::Take),
        1 => block().prop_map(Op::TakeLeased),
        2 => (block(), block()).prop_map(|(from, count)| Op::Walk(from, count)),
    ]
}

proptest! {
    #[test]
    fn the_table_is_a_map(whole in 0..=BLOCKS, ops in prop::collection::vec(op(), 1..200)) {
        let pool = DramPool::new("test", 256 * 4096).unwrap();
        let table = Table::default();
        let mut oracle: HashMap<u8, (Option<SequenceHash>, State)> = HashMap::new();
        let mut leases: Vec<ImmutableBlock> = Vec::new();
        // A long run to begin with, so that its end is reached.
        let start = (1..=whole).flat_map(|block| [Op::Fill { parent: block - 1, block }, Op::Seal(block)]);
        for op in start.chain(ops) {
            let state = |n: &u8| oracle.get(n).map_or(State::Missing, |(_, state)| *state);
            let leased = |n: u8| leases.iter().any(|block| block.key() == key(n));
            match op {
                Op::Fill { parent, block } => if state(&block) == State::Missing {
                    let parent = (parent > 0).then(|| hash(parent));
                    table.fill(key(block), parent, block as usize % 3);
                    oracle.insert(block, (parent, State::Filling));
                },
                Op::Seal(n) => match state(&n) {
                    State::Sealed => {}
                    _ => {
                        let parent = oracle.get(&n).map_or((n > 1).then(|| hash(n - 1)), |(parent, _)| *parent);
                        table.seal(sealed(&pool, n, parent));
                        oracle.insert(n, (parent, State::Sealed));
                    }
                },
                Op::Lease(n) => {
                    let block = table.sealed(&key(n));
                    prop_assert_eq!(block.is_some(), state(&n) == State::Sealed);
                    leases.extend(block);
                }
                Op::EndLeases => leases.clear(),
                Op::Forget(n) => {
                    let filling = state(&n) == State::Filling;
                    prop_assert_eq!(table.forget(&key(n)), filling);
                    if filling {
                        oracle.remove(&n);
                    }
                }
                Op::Take(n) | Op::TakeLeased(n) => {
                    let any = matches!(op, Op::TakeLeased(_));
                    let there = state(&n) == State::Sealed && (any || !leased(n));
                    let block = table.take_sealed(&key(n), |block| any || !block.is_leased());
                    prop_assert_eq!(block.map(|block| block.key()), there.then(|| key(n)));
                    if there {
                        oracle.remove(&n);
                        // What comes next under this key is another block.
                        leases.retain(|block| block.key() != key(n));
                    }
                }
                Op::Walk(from, count) => {
                    let blocks: Vec<u8> = (from..=BLOCKS).take(count.into()).collect();
                    let hashes: Vec<_> = blocks.iter().map(|&n| hash(n)).collect();
                    let mut seen = Vec::new();
                    table.walk(7, &hashes, |found| {
                        seen.push(match found {
                            Found::Missing => State::Missing,
                            Found::Filling => State::Filling,
                            Found::Sealed(_) => State::Sealed,
                        });
                        true
                    });
                    prop_assert_eq!(seen, blocks.iter().map(state).collect::<Vec<_>>());
                }
            }
            for (n, (parent, state)) in &oracle {
                let above = table.parent_of_filling(&key(*n));
                prop_assert_eq!(above, (*state == State::Filling).then_some(*parent));
            }
            let free = oracle.iter().filter(|(n, (_, state))| {
                *state == State::Sealed && !leases.iter().any(|block| block.key() == key(**n))
            });
            prop_assert_eq!(table.unleased(|block| Some(block.key())).len(), free.count());
        }
    }
}
