//! Against figures that were worked out by hand, and against itself.

use std::time::Duration;

use kelvin_tiering::PolicyKind;

use super::*;
use crate::replay::links::Rates;
use crate::replay::store::Capacity;
use crate::replay::summary::Summary;
use crate::trace::{Request, Trace};

fn cluster(workers: usize, dram: usize) -> Cluster {
    Cluster {
        workers,
        workers_per_node: 8,
        device_blocks: 16_384,
        capacity: Capacity { dram, nvme: 0, s3: false },
        stride: 1,
        admission: 0,
        shares_device: false,
        policy: PolicyKind::default(),
        rates: Rates {
            bytes_per_token: 131_072.0,
            dram: 50e9,
            nvme: 6e9,
            s3: 2e9,
            network: 25e9,
            device: 64e9,
        },
    }
}

/// 1,000 tokens in two blocks, of which 960 are in whole blocks of the engine; two tokens are answered.
fn request(at_ms: u64, blocks: [u64; 2]) -> Request {
    Request {
        at: Duration::from_millis(at_ms),
        prompt_tokens: 1_000,
        output_tokens: 2,
        blocks: blocks.to_vec(),
    }
}

fn run(trace: &Trace, cluster: &Cluster, router: RouterKind) -> Replayed {
    replay(&Workload::new(trace, 1.0, 1, 1).unwrap(), cluster, router, 1).unwrap()
}

fn ttft_ms(served: &Served) -> f64 {
    (served.first_token_at.unwrap() - served.arrived_at) as f64 / 1e6
}

#[track_caller]
fn close(value: f64, expected: f64) {
    assert!((value - expected).abs() < 1e-4, "{value} is not {expected}");
}

#[test]
fn round_robin_is_as_worked_out_by_hand() {
    // Two workers: 0 and 2 go to the first, where 2 finds the 960 tokens of 0.
    let trace = Trace::new(vec![request(0, [1, 2]), request(0, [3, 4]), request(10_000, [1, 2])]);
    let replayed = run(&trace, &cluster(2, 0), RouterKind::RoundRobin);
    // 4.209989e-7 * 1000^2 + 1.518344e-2 * 1000 + 16.50142 = 32.1058589 to compute 1000 tokens; 16 of 16,384
    // blocks are in use, so a step takes 5.74 + 54.01 / 1024 - 25.74 / 1024^2 = 5.7927196.
    close(ttft_ms(&replayed.served[0]), 32.1058589 + 5.7927196);
    close(ttft_ms(&replayed.served[1]), 32.1058589 + 5.7927196);
    // 40 tokens: 0.0006736 + 0.6073376 + 16.50142.
    close(ttft_ms(&replayed.served[2]), 17.1094312 + 5.7927196);
    let summary = Summary::of(&replayed);
    close(summary.reuse, 960.0 / 3_000.0);
    close(summary.ttft_mean, (2.0 * 37.8985785 + 22.9021508) / 3.0);
    close(summary.ttft_p50, 37.8985785);
    close(summary.itl_mean, 5.7927196);
    assert_eq!(replayed.served[2].device_tokens, 960);
}

#[test]
fn a_cache_aware_router_finds_the_worker_that_has_the_prefix() {
    let others = (0..6).map(|number| request(100 * number, [10 + 2 * number, 11 + 2 * number]));
    let mut requests: Vec<_> = others.collect();
    requests.extend((0..6).map(|number| request(20_000 + 1_000 * number, [10, 11])));
    let trace = Trace::new(requests);
    for router in [RouterKind::Dynamo, RouterKind::Kelvin] {
        let replayed = run(&trace, &cluster(4, 0), router);
        assert!(replayed.served[6..].iter().all(|served| served.device_tokens == 960), "{router:?}");
        assert!(replayed.served[..6].iter().all(|served| served.device_tokens == 0), "{router:?}");
    }
}

#[test]
fn what_one_worker_computed_another_loads_from_the_store() {
    let trace = Trace::new(vec![request(0, [1, 2]), request(10_000, [1, 2])]);
    let replayed = run(&trace, &cluster(2, 1_000), RouterKind::RoundRobin);
    let second = replayed.served[1];
    assert_eq!((second.device_tokens, second.loaded_tokens), (0, 960));
    // 960 tokens of 131,072 bytes at 50 GB/s, and then 40 tokens as above.
    close(ttft_ms(&second), 2.5165824 + 17.1094312 + 5.7927196);
    assert_eq!(replayed.loaded_tokens, [960, 0, 0, 0, 0]);
}

#[test]
fn engines_can_read_from_each_other() {
    let trace = Trace::new(vec![request(0, [1, 2]), request(10_000, [1, 2])]);
    let sharing = Cluster { shares_device: true, ..cluster(2, 0) };
    let replayed = run(&trace, &sharing, RouterKind::RoundRobin);
    assert_eq!((replayed.served[1].loaded_tokens, replayed.loaded_tokens[4]), (960, 960));
}

#[test]
fn a_replay_is_the_same_each_time() {
    let trace = Trace::synthetic(5, 120);
    let small = Cluster { device_blocks: 1_500, ..cluster(3, 4_000) };
    for router in [RouterKind::RoundRobin, RouterKind::Dynamo, RouterKind::Kelvin] {
        let [one, two] = [(); 2].map(|()| Summary::of(&run(&trace, &small, router)));
        assert_eq!(one, two, "{router:?}");
    }
}

#[test]
fn full_memory_and_every_tier_are_survived() {
    let trace = Trace::synthetic(5, 150);
    let workload = Workload::new(&trace, 40.0, 2, 1).unwrap();
    let largest =
        trace.requests.iter().map(|request| request.prompt_tokens + request.output_tokens).max().unwrap();
    let tight = Cluster {
        device_blocks: largest.div_ceil(64) as usize + 2,
        workers_per_node: 2,
        capacity: Capacity { dram: 700, nvme: 900, s3: true },
        shares_device: true,
        ..cluster(5, 0)
    };
    for router in [RouterKind::RoundRobin, RouterKind::Dynamo, RouterKind::Kelvin] {
        let replayed = replay(&workload, &tight, router, 1).unwrap();
        let summary = Summary::of(&replayed);
        assert!(summary.reuse > 0.0 && summary.reuse < 1.0);
        assert!(replayed.loaded_tokens.iter().filter(|tokens| **tokens > 0).count() >= 3, "{replayed:?}");
    }
}
