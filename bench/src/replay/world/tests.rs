//! Loads and copies on a cluster of two nodes, step by step.

use std::rc::Rc;

use super::*;
use crate::replay::clock::EventQueue;

fn cluster(dram: usize, shares_device: bool) -> Cluster {
    Cluster {
        workers: 4,
        workers_per_node: 2,
        device_blocks: 64,
        capacity: Capacity { dram, nvme: 0, s3: false },
        stride: 1,
        admission: 0,
        shares_device,
        policy: PolicyKind::Lru,
        rates: Rates { bytes_per_token: 1e5, dram: 50e9, nvme: 5e9, s3: 1e9, network: 25e9, device: 64e9 },
    }
}

/// Blocks that a worker computed.
fn saved(world: &mut World, worker: usize, keys: &[u64], now: Nanos) {
    let stored = Stored { keys: Rc::from(keys), range: 0..keys.len(), is_new: true };
    world.saved(worker, &[stored], now);
}

/// Lets all happen that is due; when each load was done.
fn run(world: &mut World) -> Vec<(u32, Nanos)> {
    let mut queue = EventQueue::new();
    let mut loaded = Vec::new();
    loop {
        world.due().for_each(|(at, due)| queue.push(at, due));
        match queue.pop() {
            None => return loaded,
            Some((now, Due::Moved(moved))) => world.moved(*moved, now),
            Some((now, Due::Loaded(ticket))) => {
                world.loaded(ticket);
                loaded.push((ticket, now));
            }
        }
    }
}

#[test]
fn a_prompt_is_found_in_the_store_and_then_with_other_engines() {
    let mut world = World::new(&cluster(100, true));
    saved(&mut world, 0, &[1, 2], 0);
    world.fleet.stored(3, None, &[1, 2, 3], 0);
    let runs = world.outside(&[1, 2, 3, 4]);
    assert_eq!(world.behind(&runs, 0, 1), [(Source::Dram, 128), (Source::Device, 64)]);
    assert_eq!(world.behind(&runs, 1, 2), [(Source::Network, 64), (Source::Device, 64)]);
    assert_eq!(world.behind(&runs, 3, 2), []);
    let load = world.load(0, &[1, 2, 3, 4], 1, 1_000).unwrap();
    assert_eq!(load.blocks, 2);
    // 64 tokens of 100 kB each at 50 GB/s, and at 64 GB/s with 20 us of latency.
    assert_eq!(run(&mut world), [(load.ticket, 1_000 + 128_000 + 100_000 + 20_000)]);
    assert_eq!(world.loaded_tokens(), [64, 0, 0, 0, 64]);
}

#[test]
fn what_is_faster_computed_is_not_loaded() {
    let mut slow = cluster(100, false);
    slow.rates.dram = 1e6;
    let mut world = World::new(&slow);
    saved(&mut world, 0, &[1, 2], 0);
    assert_eq!(world.load(0, &[1, 2, 3], 0, 0), None);
    assert_eq!(world.loaded_tokens(), [0; 5]);
}

#[test]
fn without_a_store_nothing_is_outside() {
    let mut world = World::new(&cluster(0, false));
    world.fleet.stored(3, None, &[1], 0);
    assert_eq!((world.outside(&[1]), world.load(0, &[1], 0, 0)), (Vec::new(), None));
}

#[test]
fn what_is_far_is_there_when_its_last_piece_is() {
    let mut world = World::new(&cluster(100, false));
    let keys: Vec<u64> = (1..=50).collect();
    saved(&mut world, 3, &keys, 0);
    let load = world.load(0, &keys, 0, 7).unwrap();
    let [(ticket, at)] = run(&mut world)[..] else { panic!("one load") };
    assert_eq!((load.blocks, load.ticket), (50, ticket));
    // 3,200 tokens of 100 kB at 25 GB/s.
    assert!((12_820_007..12_820_100).contains(&at), "{at}");
    assert_eq!(world.loaded_tokens(), [0, 3_200, 0, 0, 0]);
}

#[test]
fn two_loads_wait_for_one_transfer_from_a_cold_tier() {
    let mut cold = cluster(40, false);
    cold.capacity.nvme = 100;
    cold.rates.bytes_per_token = 1e4;
    let mut world = World::new(&cold);
    let keys: Vec<u64> = (1..=40).collect();
    saved(&mut world, 0, &keys, 0);
    run(&mut world);
    saved(&mut world, 0, &(101..=140).collect::<Vec<_>>(), 1_000_000_000);
    run(&mut world);
    assert_eq!(world.behind(&world.outside(&keys), 0, 1), [(Source::Nvme, 2_560)]);
    let begun = 2_000_000_000;
    let loads = [0, 1].map(|worker| world.load(worker, &keys, 0, begun).unwrap());
    let done = run(&mut world);
    assert_eq!(done.iter().map(|(ticket, _)| *ticket).collect::<Vec<_>>(), loads.map(|load| load.ticket));
    // 25.6 MB at 5 GB/s, once.
    let took = done[1].1 - begun;
    assert!((5_220_000..5_230_000).contains(&took) && done[0].1 == done[1].1, "{done:?}");
    assert_eq!(world.behind(&world.outside(&keys), 0, 0), [(Source::Dram, 2_560)], "it is back");
}

#[test]
fn a_slow_drive_costs_copies() {
    let uncopied = |nvme: f64| {
        let mut cold = cluster(100, false);
        cold.capacity.nvme = 1_000;
        cold.rates.nvme = nvme;
        let mut world = World::new(&cold);
        let mut queue = EventQueue::new();
        (0..1_000).for_each(|key| queue.push(key * 2_000_000, None::<Due>.ok_or(key)));
        while let Some((now, event)) = queue.pop() {
            match event {
                Err(key) => saved(&mut world, 0, &[key], now),
                Ok(Due::Moved(moved)) => world.moved(*moved, now),
                Ok(Due::Loaded(_)) => unreachable!("nothing is loaded"),
            }
            world.due().for_each(|(at, due)| queue.push(at, Ok(due)));
        }
        world.store.uncopied()
    };
    // A block of 6.4 MB comes every 2 ms.
    assert_eq!(uncopied(10e9), 0);
    assert!((500..900).contains(&uncopied(1e9)), "{}", uncopied(1e9));
}
