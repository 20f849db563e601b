//! What is counted of backends (where they are found, second tries, prompts that were computed elsewhere) and of
//! clients' connections.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use super::onward::Bound;
use crate::{
    feeds::{Mode, StoreReport},
    metrics::{counted, measured},
};

/// Part of the router's metrics. Label values come from fixed sets.
pub(crate) struct Counts {
    hedges: Family<ResultLabels, Counter>,
    prefills: Family<ResultLabels, Counter>,
    affinity: Family<ResultLabels, Counter>,
    stayed: Family<WhyLabels, Counter>,
    sessions: Gauge,
    found: Family<SourceLabels, Gauge>,
    source_up: Family<SourceLabels, Gauge>,
    source_errors: Family<SourceErrorLabels, Counter>,
    connections: Family<EndLabels, Counter>,
    stores: Family<ModeLabels, Gauge>,
    store_blocks: Gauge,
    store_bytes: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModeLabels {
    mode: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabels {
    end: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WhyLabels {
    why: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabels {
    source: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceErrorLabels {
    source: &'static str,
    kind: &'static str,
}

impl Counts {
    /// Registers them all.
    pub(crate) fn new(r: &mut Registry) -> Self {
        let counts = Self {
            hedges: counted(
                r,
                "backend_hedges",
                "Requests whose first backend was silent, by what became of a second one",
            ),
            prefills: counted(
                r,
                "backend_prefills",
                "Prompts that a prefill backend was to compute for another, by result",
            ),
            affinity: counted(
                r,
                "backend_affinity",
                "Requests of a session, by whether they went where its last one had gone",
            ),
            stayed: counted(
                r,
                "backend_streams_stayed",
                "Streams that broke off and did not go on at another backend, by why",
            ),
            sessions: counted(r, "backend_sessions", "Sessions of which that is known"),
            found: counted(r, "backends_found", "Backends that each source names"),
            source_up: counted(
                r,
                "backend_source_up",
                "Whether the last look at a source of backends succeeded",
            ),
            source_errors: counted(
                r,
                "backend_source_errors",
                "Looks at a source of backends that failed, and entries that make no sense",
            ),
            stores: counted(
                r,
                "stores",
                "Followed stores, the workers' and those that backends load from, by what is known of what they have",
            ),
            store_blocks: counted(r, "store_blocks", "Blocks known to be in those stores"),
            store_bytes: measured(r, "store_memory", "Of that knowledge", Unit::Bytes, Gauge::default()),
            connections: counted(r, "connections_ended", "Clients' connections by how they ended"),
        };
        // Zeros before anything happened: a first one is to be seen as a change.
        for why in ["nobody", "too_often"].into_iter().chain(Bound::ALL.map(Bound::name)) {
            drop(counts.stayed.get_or_create(&WhyLabels { why }));
        }
        counts
    }

    /// One sample of each family, which shows itself with its first.
    pub(crate) fn show_all(&self) {
        self.hedge("asked");
        self.prefill("done");
        self.affinity("new");
        self.looked("redis", Some(0));
        self.source_error("redis", "unreachable", 0);
        self.stores(&[]);
        self.connection("done");
    }

    /// A client's connection: `done`, `silent`, `head_timeout`, `head_too_large`, `no_request`, `client_stalled` or
    /// `broken`.
    pub(crate) fn connection(&self, end: &'static str) {
        self.connections.get_or_create(&EndLabels { end }).inc();
    }

    /// A hedge: `asked`, `won` (the second answered first), `lost`, `failed` (neither answered), `refused` (too
    /// many are under way) or `nobody` (there is no second one).
    pub(super) fn hedge(&self, result: &'static str) {
        self.hedges.get_or_create(&ResultLabels { result }).inc();
    }

    /// A prefill elsewhere: `done`, `failed` or `without_parameters`.
    pub(super) fn prefill(&self, result: &'static str) {
        self.prefills.get_or_create(&ResultLabels { result }).inc();
    }

    /// A session's request: `kept`, `left` or `new`.
    pub(super) fn affinity(&self, result: &'static str) {
        self.affinity.get_or_create(&ResultLabels { result }).inc();
    }

    /// A stream that broke off stayed so: `nobody` (could take it), `too_often` (it had moved), or what nobody can go
    /// on behind (see [`Bound`](super::onward)).
    pub(super) fn stayed(&self, why: &'static str) {
        self.stayed.get_or_create(&WhyLabels { why }).inc();
    }

    /// Replaces what is said of stores.
    pub(crate) fn stores(&self, reports: &[StoreReport]) {
        let number = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        for mode in Mode::ALL {
            let count = reports.iter().filter(|store| store.mode == mode).count();
            self.stores.get_or_create(&ModeLabels { mode: mode.name() }).set(number(count));
        }
        self.store_blocks.set(number(reports.iter().map(|store| store.blocks).sum()));
        self.store_bytes.set(number(reports.iter().map(|store| store.memory_bytes).sum()));
    }

    pub(crate) fn sessions(&self, count: usize) {
        self.sessions.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// A look at a source: how many it names, or that it cannot be seen.
    pub(super) fn looked(&self, source: &'static str, found: Option<usize>) {
        self.source_up.get_or_create(&SourceLabels { source }).set(i64::from(found.is_some()));
        match found {
            Some(count) => {
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                self.found.get_or_create(&SourceLabels { source }).set(count);
            }
            None => self.source_error(source, "unreachable", 1),
        }
    }

    pub(super) fn source_error(&self, source: &'static str, kind: &'static str, count: u64) {
        self.source_errors.get_or_create(&SourceErrorLabels { source, kind }).inc_by(count);
    }
}
