//! Onboarding: bringing blocks from cold tiers into DRAM, for a lease or ahead of one.
//!
//! # Overview
//! A prefix is planned as a whole: blocks in DRAM are held, each cold one gets a slot and a read, those of one
//! pack together, all of them at once as far as the lanes let them. Two requests for one block share one
//! transfer. What comes back is checked before anyone can see it. The prefix ends at the first block that
//! could not be had; a copy that failed is forgotten, one out of reach is passed over for the rest of the call, and
//! in either case a copy in the next tier is tried.
//!
//! # Cancellation
//! Dropping the future gives up. Reads that are under way end by themselves, into slots that are then free.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use kelvin_tiering::{
    DramSlot, PackId, Tier,
    mover::{Flight, Join, Landing},
};

use kelvin_proto::{kv::v1, trace};
use tracing::{Instrument, Span};

use super::{LoadFailure, Tiers, nvme::NvmeCopy, object::ObjectCopy};
use crate::{
    SequenceHash,
    index::HolderSet,
    insight::Reason,
    span::{self, Tally},
    store::{BlockKey, ImmutableBlock, Namespace, Tenant},
};

/// Times a prefix is planned: after a failure once more for each tier, and once for who was waited for.
const ROUNDS_MAX: usize = 4;

/// A block that arrived, or why it did not.
type Arrival = (BlockKey, Tier, Result<ImmutableBlock, LoadFailure>);

/// How long a prefix that found no slot waits for the batch that is being offloaded: on a device that works it is
/// over by then.
const BATCH_PATIENCE: Duration = Duration::from_millis(100);

/// Copies that are there and could not be had: they are not asked for again in the same call.
type GivenUp = HashSet<(BlockKey, Tier)>;

/// What a round has to do.
#[derive(Default)]
struct Plan {
    nvme: Vec<(Flight<BlockKey>, NvmeCopy, DramSlot)>,
    packs: BTreeMap<PackId, Vec<(Flight<BlockKey>, ObjectCopy, DramSlot)>>,
    others: Vec<Landing>,
    /// There was no slot for the next block.
    starved: bool,
}

impl Plan {
    fn is_empty(&self) -> bool {
        self.nvme.is_empty() && self.packs.is_empty() && self.others.is_empty()
    }
}

impl Tenant {
    /// Brings the leading run of `hashes` into DRAM, as far as cold tiers have it and memory has room. The blocks
    /// that it returns, a leading run, stay in DRAM as long as they are held.
    pub(crate) async fn onboard(
        self: &Arc<Self>,
        namespace: &Arc<Namespace>,
        hashes: &[SequenceHash],
    ) -> Vec<ImmutableBlock> {
        let span = span::of_onboard(hashes.len());
        self.bring(namespace, hashes).instrument(span).await
    }

    async fn bring(
        self: &Arc<Self>,
        namespace: &Arc<Namespace>,
        hashes: &[SequenceHash],
    ) -> Vec<ImmutableBlock> {
        let keys: Vec<BlockKey> =
            hashes.iter().map(|&hash| BlockKey { namespace: namespace.id, hash }).collect();
        let Some(tiers) = self.tiers() else {
            return keys.iter().map_while(|key| self.sealed(*key)).collect();
        };
        let mut held: HashMap<BlockKey, ImmutableBlock> = HashMap::new();
        let mut given_up = GivenUp::new();
        let mut tally = Tally::default();
        for _ in 0..ROUNDS_MAX {
            let mut plan = self.plan(tiers, namespace, &keys, &mut held, &given_up);
            if plan.starved && plan.is_empty() {
                // The end of a sequence that is being offloaded keeps all before it in DRAM. No batch begins
                // while slots are looked for again.
                let _none = tokio::time::timeout(BATCH_PATIENCE, self.below.offloading.lock()).await;
                plan = self.plan(tiers, namespace, &keys, &mut held, &given_up);
            }
            if plan.is_empty() {
                break;
            }
            let landings: Vec<Landing> =
                self.carry_out(tiers, namespace, plan, &mut held, &mut given_up, &mut tally).await;
            for landing in landings {
                landing.landed().await;
            }
        }
        let run: Vec<ImmutableBlock> = keys.iter().map_while(|key| held.remove(key)).collect();
        if trace::is_on() {
            tally.note(&Span::current(), namespace.spec.block_bytes);
        }
        tiers.touch(&keys[..run.len()]);
        if tiers.exclusive {
            tiers.leave(&keys[..run.len()]);
        }
        self.below.stirred.stir();
        run
    }

    /// Goes along the prefix until a block that cannot be had.
    fn plan(
        &self,
        tiers: &Arc<Tiers>,
        namespace: &Arc<Namespace>,
        keys: &[BlockKey],
        held: &mut HashMap<BlockKey, ImmutableBlock>,
        given_up: &GivenUp,
    ) -> Plan {
        let mut plan = Plan::default();
        let reachable = tiers.reachable();
        let may_ask = |key, tier| reachable.contains(tier as u32) && !given_up.contains(&(key, tier));
        for &key in keys {
            if held.contains_key(&key) {
                continue;
            }
            if let Some(block) = self.sealed(key) {
                held.insert(key, block);
                continue;
            }
            let nvme = tiers.nvme.as_ref().filter(|_| may_ask(key, Tier::Nvme));
            let nvme = nvme.and_then(|nvme| nvme.copies.get(&key));
            let object = tiers.object.as_ref().filter(|_| nvme.is_none() && may_ask(key, Tier::Object));
            let object = object.and_then(|object| object.copies.get(&key));
            if nvme.is_none() && object.is_none() {
                break;
            }
            let flight = match tiers.flights.join(key) {
                Join::First(flight) => flight,
                Join::Wait(landing) => {
                    plan.others.push(landing);
                    continue;
                }
            };
            let Some(slot) = self.slot(namespace.spec.block_bytes) else {
                plan.starved = true;
                break;
            };
            match (nvme, object) {
                (Some(copy), _) => plan.nvme.push((flight, copy, slot)),
                (None, Some(copy)) => plan.packs.entry(copy.pack).or_default().push((flight, copy, slot)),
                (None, None) => unreachable!("looked at above"),
            }
        }
        plan
    }

    /// Does the reads of a plan; returns whom to wait for.
    async fn carry_out(
        self: &Arc<Self>,
        tiers: &Arc<Tiers>,
        namespace: &Arc<Namespace>,
        plan: Plan,
        held: &mut HashMap<BlockKey, ImmutableBlock>,
        given_up: &mut GivenUp,
        tally: &mut Tally,
    ) -> Vec<Landing> {
        let mut reads: FuturesUnordered<BoxFuture<'_, Vec<Arrival>>> = FuturesUnordered::new();
        for (flight, copy, slot) in plan.nvme {
            reads.push(Box::pin(self.read_nvme(tiers, namespace, flight, copy, slot)));
        }
        for (pack, wanted) in plan.packs {
            reads.push(Box::pin(self.read_pack(tiers, namespace, pack, wanted)));
        }
        while let Some(arrivals) = reads.next().await {
            for (key, tier, result) in arrivals {
                match result {
                    Ok(block) => {
                        held.insert(key, block);
                        tally.add(wire_tier(tier));
                    }
                    Err(failure) => {
                        tracing::debug!(block = %key.hash, ?tier, ?failure, "a block was not onboarded");
                        // A copy that is gone or wrong is forgotten by now. One that is only out of reach is
                        // still there: should no other tier have the block, its miss needs a reason all the same.
                        if failure.keeps_copy() {
                            given_up.insert((key, tier));
                            namespace.gone.note(key.hash, Reason::TierFailed, Some(tier), self.clock.now());
                        }
                    }
                }
            }
        }
        plan.others
    }

    async fn read_nvme(
        &self,
        tiers: &Tiers,
        namespace: &Arc<Namespace>,
        flight: Flight<BlockKey>,
        copy: NvmeCopy,
        slot: DramSlot,
    ) -> Vec<Arrival> {
        let key = flight.key();
        let Some(nvme) = &tiers.nvme else { return Vec::new() };
        let result = nvme.load(&key, &copy, slot).await;
        let result = result.map(|slot| {
            nvme.counters.onboarded.add(1);
            self.onboarded(namespace, key, copy.parent, slot, copy.checksum, nvme.copies.keep(&key))
        });
        vec![(key, Tier::Nvme, result)]
    }

    async fn read_pack(
        &self,
        tiers: &Tiers,
        namespace: &Arc<Namespace>,
        pack: PackId,
        wanted: Vec<(Flight<BlockKey>, ObjectCopy, DramSlot)>,
    ) -> Vec<Arrival> {
        let Some(object) = &tiers.object else { return Vec::new() };
        let mut flights = Vec::with_capacity(wanted.len());
        let mut asked = Vec::with_capacity(wanted.len());
        for (flight, copy, slot) in wanted {
            asked.push((flight.key(), copy, slot));
            flights.push(flight);
        }
        let read = object.load(pack, asked).await;
        let arrived = read.into_iter().map(|(key, copy, result)| {
            let result = result.map(|slot| {
                object.counters.onboarded.add(1);
                self.onboarded(namespace, key, copy.parent, slot, copy.checksum, object.copies.keep(&key))
            });
            (key, Tier::Object, result)
        });
        arrived.collect()
    }
}

fn wire_tier(tier: Tier) -> v1::Tier {
    match tier {
        Tier::Hbm => v1::Tier::Hbm,
        Tier::Dram => v1::Tier::Dram,
        Tier::Nvme => v1::Tier::Nvme,
        Tier::Object => v1::Tier::Object,
    }
}

impl Tiers {
    fn touch(&self, prefix: &[BlockKey]) {
        if let Some(nvme) = &self.nvme {
            nvme.copies.touch(prefix);
        }
        if let Some(object) = &self.object {
            object.copies.touch(prefix);
        }
        self.cascade_wanted.stir();
    }

    /// In exclusive mode a block that came to DRAM leaves NVMe: from the end of the prefix, as long as nothing
    /// stands behind it there.
    fn leave(&self, prefix: &[BlockKey]) {
        let Some(nvme) = &self.nvme else { return };
        for key in prefix.iter().rev() {
            // The reason is never told: the block is in DRAM.
            if nvme.copies.contains(key) && !nvme.drop_tail(key, Reason::Removed) {
                return;
            }
        }
    }
}
