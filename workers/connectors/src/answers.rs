//! The store's answers as Python objects.

use kelvin_proto::kv::v1;
use pyo3::{prelude::*, types::PyBytes, types::PyDict};

/// What became of one block of a batch.
#[pyclass(eq, frozen, hash, rename_all = "SCREAMING_SNAKE_CASE", module = "kelvin")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum BlockStatus {
    Leased,
    Missing,
    Filling,
    Reserved,
    AlreadyStored,
    Stored,
    Conflict,
    NoSpace,
    StaleLease,
    ChecksumMismatch,
    Ok,
    Skipped,
    NoParent,
    LeaseLimit,
    /// Of a store that is newer than this client.
    Unknown,
}

impl From<v1::BlockStatus> for BlockStatus {
    fn from(status: v1::BlockStatus) -> Self {
        use v1::BlockStatus as Wire;
        match status {
            Wire::Leased => Self::Leased,
            Wire::Missing => Self::Missing,
            Wire::Filling => Self::Filling,
            Wire::Reserved => Self::Reserved,
            Wire::AlreadyStored => Self::AlreadyStored,
            Wire::Stored => Self::Stored,
            Wire::Conflict => Self::Conflict,
            Wire::NoSpace => Self::NoSpace,
            Wire::StaleLease => Self::StaleLease,
            Wire::ChecksumMismatch => Self::ChecksumMismatch,
            Wire::Ok => Self::Ok,
            Wire::Skipped => Self::Skipped,
            Wire::NoParent => Self::NoParent,
            Wire::LeaseLimit => Self::LeaseLimit,
            Wire::Unspecified => Self::Unknown,
        }
    }
}

/// A tier's name, as the command line has it.
pub(crate) fn tier_name(tier: v1::Tier) -> &'static str {
    match tier {
        v1::Tier::Unspecified => "unknown",
        v1::Tier::Hbm => "hbm",
        v1::Tier::Dram => "dram",
        v1::Tier::Nvme => "nvme",
        v1::Tier::Object => "object",
    }
}

fn tier_names(tiers: impl Iterator<Item = v1::Tier>) -> Vec<&'static str> {
    tiers.map(tier_name).collect()
}

/// What the store has of a prompt.
#[pyclass(frozen, get_all, module = "kelvin")]
pub(crate) struct Match {
    blocks: u32,
    tokens: u64,
    filling_blocks: u32,
    tiers: Vec<&'static str>,
    restorable_tokens: Vec<u64>,
    /// Tier, blocks that would come from there, expected microseconds for all of them.
    loads: Vec<(&'static str, u32, u64)>,
}

impl From<kelvin_kvstore::Match> for Match {
    fn from(found: kelvin_kvstore::Match) -> Self {
        Self {
            blocks: found.blocks,
            tokens: found.tokens,
            filling_blocks: found.filling_blocks,
            tiers: tier_names(found.tiers.into_iter()),
            restorable_tokens: found.restorable_tokens,
            loads: found
                .loads
                .iter()
                .map(|load| (tier_name(load.tier()), load.blocks, load.load_us_estimate))
                .collect(),
        }
    }
}

#[pymethods]
impl Match {
    /// Expected microseconds to bring all matched blocks into memory, as far as the store has measured.
    #[getter]
    fn load_us_estimate(&self) -> u64 {
        self.loads.iter().map(|(_, _, microseconds)| microseconds).sum()
    }

    fn __repr__(&self) -> String {
        format!("<kelvin.Match {} blocks, {} tokens>", self.blocks, self.tokens)
    }
}

fn dict<'py>(py: Python<'py>, numbers: &[(&str, u64)]) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, value) in numbers {
        dict.set_item(name, value)?;
    }
    Ok(dict)
}

pub(crate) fn prefetched(py: Python<'_>, answer: v1::PrefetchResponse) -> PyResult<Py<PyDict>> {
    let numbers = [
        ("ready_blocks", answer.ready_blocks),
        ("queued_blocks", answer.queued_blocks),
        ("refused_blocks", answer.refused_blocks),
        ("missing_blocks", answer.missing_blocks),
    ];
    Ok(dict(py, &numbers)?.unbind())
}

pub(crate) fn pinned(py: Python<'_>, answer: v1::PinResponse) -> PyResult<Py<PyDict>> {
    let numbers = [
        ("pin_id", answer.pin_id),
        ("blocks", answer.blocks),
        ("bytes", answer.bytes),
        ("missing_blocks", answer.missing_blocks),
    ];
    Ok(dict(py, &numbers)?.unbind())
}

pub(crate) fn unpinned(py: Python<'_>, answer: v1::UnpinResponse) -> PyResult<Py<PyDict>> {
    Ok(dict(py, &[("pins", answer.pins), ("blocks", answer.blocks)])?.unbind())
}

pub(crate) fn evicted(py: Python<'_>, answer: v1::EvictResponse) -> PyResult<Py<PyDict>> {
    let numbers = [
        ("evicted_blocks", answer.evicted_blocks),
        ("evicted_bytes", answer.evicted_bytes),
        ("kept_blocks", answer.kept_blocks),
    ];
    Ok(dict(py, &numbers)?.unbind())
}

pub(crate) fn explained(py: Python<'_>, blocks: Vec<v1::BlockExplanation>) -> PyResult<Vec<Py<PyDict>>> {
    let explain = |block: v1::BlockExplanation| {
        let dict = PyDict::new(py);
        dict.set_item("hash", PyBytes::new(py, &block.hash))?;
        dict.set_item("reason", word(block.reason().as_str_name(), "MISS_REASON_"))?;
        dict.set_item("tiers", tier_names(block.tiers()))?;
        let lost_from = (block.lost_from() != v1::Tier::Unspecified).then(|| tier_name(block.lost_from()));
        dict.set_item("lost_from", lost_from)?;
        dict.set_item("age_seconds", block.age_ms.map(|age| age as f64 / 1e3))?;
        dict.set_item("pinned", block.pinned)?;
        Ok(dict.unbind())
    };
    blocks.into_iter().map(explain).collect()
}

/// `MISS_REASON_NEVER_STORED` as `never_stored`.
fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_ascii_lowercase()
}

pub(crate) fn stats(py: Python<'_>, answer: v1::StatsResponse) -> PyResult<Py<PyDict>> {
    let whole = dict(
        py,
        &[
            ("incarnation", answer.incarnation),
            ("uptime_ms", answer.uptime_ms),
            ("sessions", answer.sessions),
            ("read_leases", answer.read_leases),
            ("write_leases", answer.write_leases),
            ("leases_expired", answer.leases_expired),
            ("evictions", answer.evictions),
            ("conflicts", answer.conflicts),
            ("checksum_failures", answer.checksum_failures),
            ("grpc_read_bytes", answer.grpc_read_bytes),
            ("grpc_written_bytes", answer.grpc_written_bytes),
            ("shm_leased_bytes", answer.shm_leased_bytes),
            ("shm_committed_bytes", answer.shm_committed_bytes),
            ("copied_bytes", answer.copied_bytes),
            ("damaged_blocks", answer.damaged_blocks),
            ("parked_slots", answer.parked_slots),
        ],
    )?;
    let tiers: Vec<_> = answer.tiers.iter().map(|tier| tier_stats(py, tier)).collect::<PyResult<_>>()?;
    whole.set_item("tiers", tiers)?;
    let namespaces: Vec<_> =
        answer.namespaces.iter().map(|namespace| namespace_stats(py, namespace)).collect::<PyResult<_>>()?;
    whole.set_item("namespaces", namespaces)?;
    let misses = PyDict::new(py);
    for miss in &answer.misses {
        misses.set_item(word(miss.reason().as_str_name(), "MISS_REASON_"), miss.blocks)?;
    }
    whole.set_item("misses", misses)?;
    Ok(whole.unbind())
}

fn tier_stats<'py>(py: Python<'py>, tier: &v1::TierStats) -> PyResult<Bound<'py, PyDict>> {
    let numbers = dict(
        py,
        &[
            ("capacity_bytes", tier.capacity_bytes),
            ("used_bytes", tier.used_bytes),
            ("blocks", tier.blocks),
            ("reads", tier.reads),
            ("writes", tier.writes),
            ("read_bytes", tier.read_bytes),
            ("written_bytes", tier.written_bytes),
            ("errors", tier.errors),
            ("damaged_blocks", tier.damaged_blocks),
            ("evictions", tier.evictions),
            ("offloaded_blocks", tier.offloaded_blocks),
            ("onboarded_blocks", tier.onboarded_blocks),
        ],
    )?;
    numbers.set_item("tier", tier_name(tier.tier()))?;
    numbers.set_item("health", word(tier.health().as_str_name(), "TIER_HEALTH_"))?;
    numbers.set_item("policy", &tier.policy)?;
    Ok(numbers)
}

fn namespace_stats<'py>(py: Python<'py>, namespace: &v1::NamespaceStats) -> PyResult<Bound<'py, PyDict>> {
    let numbers = dict(
        py,
        &[
            ("namespace_id", namespace.namespace_id),
            ("blocks", namespace.blocks),
            ("bytes", namespace.bytes),
            ("block_tokens", namespace.block_tokens),
            ("match_blocks", namespace.match_blocks),
            ("hit_blocks", namespace.hit_blocks),
            ("sessions", namespace.sessions),
        ],
    )?;
    numbers.set_item("tenant", &namespace.tenant)?;
    numbers.set_item("model", &namespace.model)?;
    Ok(numbers)
}

/// One message of a watch.
pub(crate) fn events(py: Python<'_>, message: v1::WatchResponse) -> PyResult<Py<PyDict>> {
    let whole = dict(
        py,
        &[("cursor", message.cursor), ("incarnation", message.incarnation), ("lost", message.lost)],
    )?;
    whole.set_item("snapshot_begin", message.snapshot_begin)?;
    whole.set_item("snapshot_end", message.snapshot_end)?;
    let event = |event: &v1::BlockEvent| {
        let dict = PyDict::new(py);
        dict.set_item("kind", word(event.kind().as_str_name(), "KIND_"))?;
        dict.set_item("hash", PyBytes::new(py, &event.hash))?;
        let parent = (!event.parent.is_empty()).then(|| PyBytes::new(py, &event.parent));
        dict.set_item("parent", parent)?;
        dict.set_item("tier", tier_name(event.tier()))?;
        Ok(dict)
    };
    let events: Vec<_> = message.events.iter().map(event).collect::<PyResult<_>>()?;
    whole.set_item("events", events)?;
    Ok(whole.unbind())
}
