//! Wire types to domain types, and back; what does not fit is refused here.

use std::{ops::Range, time::Duration};

use bytes::Bytes;
use kelvin_proto::{Reason, Refusal, kv::v1};
use kelvin_tiering::Tier;

use super::KEYS_MAX;
use crate::{
    SequenceHash,
    index::{HolderSet, TierSet},
    store::{AcquiredBlock, Event, EventKind, Keep, Namespace, ReservedBlock},
};

/// Tokens in one `Match`.
const TOKENS_MAX: usize = 1 << 20;
const EXTRA_BYTES_MAX: usize = 4096;

pub(super) fn keys_within_limit(count: usize) -> Result<(), Refusal> {
    if count > KEYS_MAX {
        let message = format!("{count} keys in one call: the limit is {KEYS_MAX}");
        return Err(Refusal::new(Reason::LimitExceeded, message));
    }
    Ok(())
}

pub(super) fn hash(wire: &[u8]) -> Result<SequenceHash, Refusal> {
    SequenceHash::try_from(wire).map_err(|error| Refusal::invalid(error.to_string()))
}

pub(super) fn hashes(wire: &[Bytes]) -> Result<Vec<SequenceHash>, Refusal> {
    keys_within_limit(wire.len())?;
    wire.iter().map(|wire| hash(wire)).collect()
}

/// Hashes that come one behind the other.
pub(super) fn packed_hashes(packed: &[u8], others: &[Bytes]) -> Result<Vec<SequenceHash>, Refusal> {
    if !others.is_empty() {
        return Err(Refusal::invalid("give hashes or packed_hashes, not both"));
    }
    let (hashes, rest) = packed.as_chunks::<{ SequenceHash::BYTES }>();
    if !rest.is_empty() {
        let text =
            format!("packed_hashes have {} bytes each, not {} in all", SequenceHash::BYTES, packed.len());
        return Err(Refusal::invalid(text));
    }
    keys_within_limit(hashes.len())?;
    Ok(hashes.iter().map(|hash| SequenceHash::from_bytes(*hash)).collect())
}

pub(super) fn wire(hashes: &[SequenceHash]) -> Vec<Bytes> {
    hashes.iter().map(|hash| Bytes::copy_from_slice(&hash.to_bytes())).collect()
}

/// The part of each block that is wanted.
pub(super) fn range(wire: Option<v1::ByteRange>, block_bytes: u64) -> Result<Range<usize>, Refusal> {
    let Some(v1::ByteRange { offset, bytes }) = wire else { return Ok(0..block_bytes as usize) };
    match offset.checked_add(bytes) {
        Some(end) if bytes > 0 && end <= block_bytes => Ok(offset as usize..end as usize),
        _ => {
            Err(Refusal::invalid(format!("{bytes} bytes at {offset} do not lie in a block of {block_bytes}")))
        }
    }
}

pub(super) fn parent(wire: &[u8]) -> Result<Option<SequenceHash>, Refusal> {
    match wire {
        [] => Ok(None),
        hash => Ok(Some(
            SequenceHash::try_from(hash).map_err(|error| Refusal::invalid(format!("parent: {error}")))?,
        )),
    }
}

pub(super) fn prefix(
    wire: Option<v1::match_request::Prefix>,
    namespace: &Namespace,
) -> Result<Vec<SequenceHash>, Refusal> {
    match wire {
        None => Err(Refusal::invalid("prefix is missing: give tokens or hashes")),
        Some(v1::match_request::Prefix::Hashes(wire)) => hashes(&wire.hashes),
        Some(v1::match_request::Prefix::Tokens(tokens)) => token_hashes(&tokens, namespace),
    }
}

/// Hashes of the whole blocks of these tokens.
pub(super) fn token_hashes(
    tokens: &v1::TokenIds,
    namespace: &Namespace,
) -> Result<Vec<SequenceHash>, Refusal> {
    if tokens.ids.len() > TOKENS_MAX {
        let message = format!("{} tokens in one call: the limit is {TOKENS_MAX}", tokens.ids.len());
        return Err(Refusal::new(Reason::LimitExceeded, message));
    }
    if tokens.extra.len() > EXTRA_BYTES_MAX {
        return Err(Refusal::invalid(format!("extra has more than {EXTRA_BYTES_MAX} bytes")));
    }
    let block_tokens = namespace.spec.block_tokens as usize;
    keys_within_limit(tokens.ids.len() / block_tokens)?;
    Ok(namespace.key.hash_blocks(&tokens.ids, block_tokens, &tokens.extra))
}

/// How much blocks will be worth.
pub(super) fn keep(priority: i32, ttl_ms: u64, now: Duration) -> Result<Keep, Refusal> {
    let above = i8::try_from(priority)
        .map_err(|_| Refusal::invalid(format!("priority {priority} is not in -128..=127")))?;
    let expires_at = (ttl_ms > 0).then(|| now.saturating_add(Duration::from_millis(ttl_ms)));
    Ok(Keep { priority: Keep::PRIORITY.wrapping_add_signed(above), expires_at })
}

/// The tiers of a list; of an empty one, all.
pub(super) fn tiers(wire: &[i32]) -> Result<TierSet, Refusal> {
    let mut set = TierSet::default();
    for &number in wire {
        let tier = match v1::Tier::try_from(number) {
            Ok(v1::Tier::Hbm) => Tier::Hbm,
            Ok(v1::Tier::Dram) => Tier::Dram,
            Ok(v1::Tier::Nvme) => Tier::Nvme,
            Ok(v1::Tier::Object) => Tier::Object,
            Ok(v1::Tier::Unspecified) | Err(_) => {
                return Err(Refusal::invalid(format!("{number} is no tier")));
            }
        };
        set.insert(tier as u32);
    }
    if wire.is_empty() {
        for tier in [Tier::Hbm, Tier::Dram, Tier::Nvme, Tier::Object] {
            set.insert(tier as u32);
        }
    }
    Ok(set)
}

pub(super) fn ttl(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

pub(super) fn tier(tier: Tier) -> v1::Tier {
    match tier {
        Tier::Hbm => v1::Tier::Hbm,
        Tier::Dram => v1::Tier::Dram,
        Tier::Nvme => v1::Tier::Nvme,
        Tier::Object => v1::Tier::Object,
    }
}

/// The hottest of a block's tiers.
pub(super) fn hottest(holders: TierSet) -> v1::Tier {
    let hottest = [Tier::Hbm, Tier::Dram, Tier::Nvme, Tier::Object].into_iter();
    let mut held = hottest.filter(|tier| holders.contains(*tier as u32));
    held.next().map_or(v1::Tier::Unspecified, tier)
}

/// What it takes to bring a matched prefix to DRAM.
pub(super) fn loads(estimates: &[(Tier, u64, Duration)]) -> Vec<v1::TierLoad> {
    let load = |&(from, blocks, expected): &(Tier, u64, Duration)| v1::TierLoad {
        tier: tier(from).into(),
        blocks: blocks as u32,
        load_us_estimate: expected.as_micros() as u64,
    };
    estimates.iter().map(load).collect()
}

pub(super) fn read_lease(block: AcquiredBlock) -> v1::ReadLease {
    let leased = block.status == v1::BlockStatus::Leased;
    v1::ReadLease {
        status: block.status.into(),
        lease_id: block.lease,
        location: leased.then_some(v1::Location { offset: block.offset, bytes: block.bytes }),
        checksum: block.checksum,
        tier: if leased { v1::Tier::Dram.into() } else { v1::Tier::Unspecified.into() },
    }
}

/// The leading run that is leased.
pub(super) fn packed_leases(blocks: &[AcquiredBlock]) -> v1::PackedLeases {
    let leased = blocks.iter().take_while(|block| block.status == v1::BlockStatus::Leased).count();
    let (run, rest) = blocks.split_at(leased);
    let first_lease_id = run.first().map_or(0, |block| block.lease);
    debug_assert!(run.iter().zip(first_lease_id..).all(|(block, id)| block.lease == id), "one grant");
    v1::PackedLeases {
        first_lease_id,
        checksums: run.iter().map(|block| block.checksum).collect(),
        offsets: run.iter().map(|block| block.offset).collect(),
        tier: v1::Tier::Dram.into(),
        stopped: rest.first().map_or(0, |block| block.status.into()),
    }
}

pub(super) fn write_lease(block: ReservedBlock) -> v1::WriteLease {
    let reserved = block.status == v1::BlockStatus::Reserved;
    v1::WriteLease {
        status: block.status.into(),
        lease_id: block.lease,
        location: reserved.then_some(v1::Location { offset: block.offset, bytes: block.bytes }),
    }
}

pub(super) fn event(event: Event) -> v1::BlockEvent {
    let kind = match event.kind {
        EventKind::Stored => v1::block_event::Kind::Stored,
        EventKind::Removed => v1::block_event::Kind::Removed,
    };
    v1::BlockEvent {
        kind: kind.into(),
        hash: Bytes::copy_from_slice(&event.hash.to_bytes()),
        parent: event.parent.map(|hash| Bytes::copy_from_slice(&hash.to_bytes())).unwrap_or_default(),
        tier: tier(event.tier).into(),
    }
}

pub(super) fn statuses(statuses: Vec<v1::BlockStatus>) -> Vec<i32> {
    statuses.into_iter().map(i32::from).collect()
}
