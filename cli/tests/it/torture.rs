//! kill -9 at random moments: what was acknowledged as durable is found again, and nothing wrong is served.
//!
//! A writer stores sequences in a store that copies to NVMe as blocks come, and keeps a ledger of those that the
//! store said are on NVMe. At a random moment the store is killed. The next one must find every block of
//! the ledger, serve none with other bytes than were written, and show none that it cannot read.
//!
//! `KELVIN_TORTURE_LOOPS` sets the number of kills, `KELVIN_TORTURE_SEED` the seed, which is printed.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kelvin_kvstore::{Client, ClientOptions, Namespace, Reserved, SequenceHash};
use kelvin_proto::{Fingerprint, NamespaceSpec, Shard, kv::v1};

use super::store::Running;

const BLOCK_BYTES: u64 = 64 << 10;
const BLOCK_TOKENS: u32 = 4;
/// Kills in a usual run.
const LOOPS: u64 = 100;
/// Sequences looked at after each kill; after the last one, all.
const SAMPLE: usize = 12;
/// Sequences that a writer stores before it is stopped by itself.
const SEQUENCES_A_LOOP: u64 = 12;

/// Numbers that look random and follow from a seed.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 7
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn spec() -> NamespaceSpec {
    let fingerprint = Fingerprint {
        model_digest: "d".into(),
        engine: "torture".into(),
        engine_build: "1".into(),
        layout: "bytes".into(),
        dtype: "u8".into(),
        attributes: Default::default(),
    };
    let (shard, block_tokens, block_bytes) = (Shard::default(), BLOCK_TOKENS, BLOCK_BYTES);
    NamespaceSpec { model: "tortured".into(), fingerprint, shard, block_tokens, block_bytes }
}

/// The tokens of a sequence.
fn tokens(sequence: u64, blocks: u64) -> Vec<u32> {
    (0..blocks * u64::from(BLOCK_TOKENS)).map(|at| (sequence * 7919 + at) as u32).collect()
}

/// What a block must hold; follows from its hash alone.
fn content(hash: SequenceHash) -> Vec<u8> {
    let seed = hash.to_bytes();
    (0..BLOCK_BYTES as usize).map(|at| seed[at % 16].wrapping_add((at / 16) as u8)).collect()
}

/// Blocks by hash that the store said are on NVMe.
type Ledger = Arc<Mutex<HashSet<SequenceHash>>>;

/// Follows the store's events into the ledger, until the store is gone.
async fn follow(client: Client, namespace_id: u64, ledger: Ledger) {
    let Ok(mut events) = client.watch(namespace_id, 0, 0).await else { return };
    while let Ok(Some(message)) = events.message().await {
        let mut ledger = ledger.lock().unwrap();
        for event in message.events.iter().filter(|event| event.tier() == v1::Tier::Nvme) {
            let hash = SequenceHash::try_from(&event.hash[..]).unwrap();
            match event.kind() {
                v1::block_event::Kind::Stored => drop(ledger.insert(hash)),
                _ => drop(ledger.remove(&hash)),
            }
        }
    }
}

/// Stores a sequence's blocks from `from` on; false when the store is gone.
async fn write(namespace: &Namespace, sequence: u64, from: u64, to: u64) -> bool {
    let hashes = namespace.hash_blocks(&tokens(sequence, to), b"");
    let parent = from.checked_sub(1).map(|last| hashes[last as usize]);
    let Ok(reserved) = namespace.reserve(parent, &hashes[from as usize..]).await else { return false };
    let mut filled = Vec::new();
    for block in reserved {
        if let Reserved::Write(mut lease) = block {
            let hash = lease.hash();
            lease.fill(&content(hash));
            filled.push(lease);
        }
    }
    namespace.commit(filled).await.is_ok()
}

/// Looks at a sequence after a kill.
async fn check(namespace: &Namespace, sequence: u64, blocks: u64, ledger: &Ledger) {
    let hashes = namespace.hash_blocks(&tokens(sequence, blocks), b"");
    let found = namespace.match_prefix(&hashes).await.unwrap().blocks as usize;
    let acknowledged = {
        let ledger = ledger.lock().unwrap();
        hashes.iter().take_while(|hash| ledger.contains(hash)).count()
    };
    assert!(
        found >= acknowledged,
        "sequence {sequence}: {acknowledged} blocks were durable, {found} are found"
    );
    let acquired = namespace.acquire(&hashes[..found], Duration::ZERO).await.unwrap();
    assert_eq!(
        acquired.leases.len(),
        found,
        "sequence {sequence}: shown, but not to be had: {:?}",
        acquired.stopped
    );
    for lease in &acquired.leases {
        let bytes = lease.verified().expect("a block has its checksum");
        assert!(bytes == content(lease.hash()), "sequence {sequence}: block {} is wrong", lease.hash());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_lose_nothing_that_was_durable() {
    let loops = from_env("KELVIN_TORTURE_LOOPS").unwrap_or(LOOPS);
    let seed = from_env("KELVIN_TORTURE_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("KELVIN_TORTURE_SEED={seed} KELVIN_TORTURE_LOOPS={loops}");
    let mut numbers = Numbers(seed);
    let folder = tempfile::tempdir().unwrap();
    let (data, disk) = (folder.path().join("data"), folder.path().join("disk"));
    std::fs::create_dir(&disk).unwrap();
    // Room for every block of the test, so that nothing goes but by a kill.
    let room = (loops * SEQUENCES_A_LOOP * 8 * BLOCK_BYTES).next_multiple_of(64 << 20) + (64 << 20);
    let nvme = format!("{}={room}", disk.display());
    let socket = folder.path().join("shm.sock");
    let flags = [
        "--data",
        data.to_str().unwrap(),
        "--nvme",
        &nvme,
        "--offload",
        "eager",
        "--socket",
        socket.to_str().unwrap(),
    ];

    let ledger = Ledger::default();
    // Blocks of each sequence that were written.
    let mut sequences: BTreeMap<u64, u64> = BTreeMap::new();
    for round in 0..=loops {
        let store = Running::start(&flags);
        let client = Client::connect(ClientOptions::new(&store.url, "torture")).await.unwrap();
        let namespace = client.open(spec()).await.unwrap();
        let sample: Vec<(u64, u64)> = match round == loops {
            true => sequences.iter().map(|(a, b)| (*a, *b)).collect(),
            false => {
                let last = sequences.len() as u64;
                let picks: HashSet<u64> =
                    (0..SAMPLE.min(sequences.len())).map(|_| numbers.below(last)).collect();
                picks
                    .into_iter()
                    .filter_map(|at| sequences.iter().nth(at as usize))
                    .map(|(a, b)| (*a, *b))
                    .collect()
            }
        };
        for (sequence, blocks) in sample {
            check(&namespace, sequence, blocks, &ledger).await;
        }
        if round == loops {
            namespace.close().await;
            store.stop();
            break;
        }
        let stats = client.stats().await.unwrap();
        let follower = tokio::spawn(follow(client, stats.namespaces[0].namespace_id, ledger.clone()));
        let fuse = Duration::from_micros(numbers.below(60_000));
        let killer = tokio::spawn(async move {
            tokio::time::sleep(fuse).await;
            drop(store);
        });
        for n in 0..SEQUENCES_A_LOOP {
            // Half of them go on with one that is there.
            let known = sequences.len() as u64;
            let (sequence, from) = match known > 0 && numbers.below(2) == 0 {
                true => sequences.iter().nth(numbers.below(known) as usize).map(|(a, b)| (*a, *b)).unwrap(),
                false => (round * 1000 + n, 0),
            };
            let to = (from + 1 + numbers.below(4)).min(8);
            if from >= to || !write(&namespace, sequence, from, to).await {
                break;
            }
            sequences.insert(sequence, to);
        }
        killer.await.unwrap();
        follower.await.unwrap();
        drop(namespace);
    }
    assert!(!ledger.lock().unwrap().is_empty(), "some blocks became durable");
}
