//! Which engines' servers there are, and which of them have a model: changes while the router runs.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::{Mutex, RwLock};
use tokio_util::sync::CancellationToken;

use super::{
    board::Board,
    member::{Backend, Card, Health},
    pool::Pool,
    spec::BackendSpec,
};
use crate::{directory::WORKERS_MAX, feeds::Mode};

/// Most servers of one router.
pub(crate) const BACKENDS_MAX: usize = WORKERS_MAX as usize;

/// Who says that a server exists; what the one no longer says may still be said by the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    Flags,
    File,
    Redis,
}

impl Source {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Flags => "flags",
            Self::File => "file",
            Self::Redis => "redis",
        }
    }
}

/// All servers and their models at one moment.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) all: Vec<Arc<Backend>>,
    /// Servers of each model, ready or lost; the same server has the same place until the next change.
    models: HashMap<String, Arc<Pool>>,
    /// See [`Table::places`].
    places: AtomicUsize,
}

impl Table {
    pub(crate) fn pool(&self, model: &str) -> Option<&Arc<Pool>> {
        self.models.get(model)
    }

    /// One card a model, by name.
    pub(crate) fn cards(&self) -> Vec<Card> {
        let cards: BTreeMap<_, _> = self.models.values().map(|pool| (&pool.card.id, &pool.card)).collect();
        cards.into_values().cloned().collect()
    }

    /// Number of servers by state, zeroes included; one behind an open breaker is `broken`.
    pub(crate) fn counts(&self) -> BTreeMap<&'static str, i64> {
        let mut counts: BTreeMap<_, i64> =
            ["starting", "ready", "lost", "broken"].map(|state| (state, 0)).into();
        for backend in &self.all {
            let health = backend.health();
            let broken = health == Health::Ready && !backend.is_open();
            *counts.entry(if broken { "broken" } else { health.name() }).or_default() += 1;
        }
        counts
    }

    /// Number of servers by what is known of their caches, zeroes included.
    pub(crate) fn modes(&self) -> BTreeMap<&'static str, i64> {
        let mut counts: BTreeMap<_, i64> = Mode::ALL.map(|mode| (mode.name(), 0)).into();
        self.all.iter().for_each(|backend| *counts.entry(backend.mode().name()).or_default() += 1);
        counts
    }

    /// Whether there are servers that have not said yet what they serve.
    pub(crate) fn has_unheard(&self) -> bool {
        self.all.iter().any(|backend| backend.health() == Health::Starting)
    }

    /// Requests that fit on all servers that can be asked, as last counted; 0 if there is none.
    pub(crate) fn places(&self) -> usize {
        self.places.load(Ordering::Relaxed)
    }

    /// Counts them: breakers open and close without a new table.
    pub(crate) fn count_places(&self) {
        let open = self.all.iter().filter(|backend| backend.role().answers() && backend.is_open());
        self.places.store(open.map(|backend| backend.spec.requests_max as usize).sum(), Ordering::Relaxed);
    }

    /// Whether any server could be asked.
    pub(crate) fn has_ready(&self) -> bool {
        self.all.iter().any(|backend| backend.role().answers() && backend.is_open())
    }
}

/// The servers, as several sources name them.
pub(crate) struct Roster {
    table: RwLock<Arc<Table>>,
    named: Mutex<Named>,
    /// Where each of them has a seat.
    board: Arc<Board>,
    /// What the last look at each source that is looked at found: so many, or why it cannot be seen.
    seen: Mutex<BTreeMap<Source, Result<usize, String>>>,
    /// Gets each new server, to look after it until the token is cancelled.
    joined: tokio::sync::mpsc::UnboundedSender<(Arc<Backend>, CancellationToken)>,
}

#[derive(Default)]
struct Named {
    by: BTreeMap<Source, Vec<BackendSpec>>,
    members: Vec<(Arc<Backend>, CancellationToken)>,
    /// Numbers of those that left and may still be known by them.
    leaving: BTreeSet<u32>,
}

impl Roster {
    /// An empty roster, and where its new servers come out. There are as many in that queue as there are
    /// servers, at most.
    pub(crate) fn new() -> (Self, tokio::sync::mpsc::UnboundedReceiver<(Arc<Backend>, CancellationToken)>) {
        let (joined, members) = tokio::sync::mpsc::unbounded_channel();
        let roster = Self {
            table: RwLock::default(),
            named: Mutex::default(),
            board: Board::new(),
            seen: Mutex::default(),
            joined,
        };
        (roster, members)
    }

    pub(crate) fn table(&self) -> Arc<Table> {
        self.table.read().clone()
    }

    /// Replaces what `source` names. Of two descriptions of one address the first source's counts; one whose
    /// description changed leaves and joins. Requests under way at one that leaves go on.
    pub(crate) fn name(&self, source: Source, specs: Vec<BackendSpec>) {
        let mut guard = self.named.lock();
        let named = &mut *guard;
        named.by.insert(source, specs);
        let mut wanted: HashMap<String, (Source, BackendSpec)> = HashMap::new();
        // They join, and are listed, in the order in which they are named.
        let mut order = Vec::new();
        for (source, specs) in &named.by {
            for spec in specs {
                wanted.entry(spec.url.clone()).or_insert_with(|| {
                    order.push(spec.url.clone());
                    (*source, spec.clone())
                });
            }
        }
        let leaving = &mut named.leaving;
        named.members.retain(|(backend, alive)| {
            let stays = wanted.get(&backend.spec.url).is_some_and(|(_, spec)| *spec == backend.spec);
            if stays {
                wanted.remove(&backend.spec.url);
            } else {
                tracing::info!(backend = backend.spec.url, "a backend leaves");
                alive.cancel();
                leaving.insert(backend.id);
            }
            stays
        });
        for (source, spec) in order.iter().filter_map(|url| wanted.remove(url)) {
            let taken = |id: &u32| {
                named.leaving.contains(id) || named.members.iter().any(|(backend, _)| backend.id == *id)
            };
            let id = (0..WORKERS_MAX).find(|id| !taken(id));
            let Some((id, seat)) = id.zip(self.board.seat()) else {
                tracing::error!(backend = spec.url, BACKENDS_MAX, "too many backends, this one is left out");
                continue;
            };
            match Backend::new(id, spec, seat) {
                Ok(backend) => {
                    tracing::info!(backend = backend.spec.url, source = source.name(), "a backend joins");
                    let member = (Arc::new(backend), CancellationToken::new());
                    // Nobody looks after them when the router stops.
                    let _ = self.joined.send(member.clone());
                    named.members.push(member);
                }
                Err(error) => tracing::error!(%error, "a backend is left out"),
            }
        }
        self.rebuild(named);
    }

    /// Notes what a look at a source found; returns whether it is news.
    pub(crate) fn seen(&self, source: Source, found: Result<usize, String>) -> bool {
        let before = self.seen.lock().insert(source, found.clone());
        before != Some(found)
    }

    /// What the last look at each source found.
    pub(crate) fn sources(&self) -> Vec<(Source, Result<usize, String>)> {
        self.seen.lock().iter().map(|(source, found)| (*source, found.clone())).collect()
    }

    /// Nothing is known by this number any more; it may be given to another server.
    pub(crate) fn forgotten(&self, id: u32) {
        self.named.lock().leaving.remove(&id);
    }

    /// Has the table follow what the servers serve now.
    pub(crate) fn refresh(&self) {
        self.rebuild(&self.named.lock());
    }

    /// All of them leave.
    pub(crate) fn close(&self) {
        let mut named = self.named.lock();
        named.members.drain(..).for_each(|(_, alive)| alive.cancel());
    }

    fn rebuild(&self, named: &Named) {
        let mut models: HashMap<String, Pool> = HashMap::new();
        for (backend, _) in &named.members {
            // One that was never heard of has no models; one that is lost keeps its own.
            if backend.health() == Health::Starting {
                continue;
            }
            for card in backend.cards() {
                let pool = models
                    .entry(card.id.clone())
                    .or_insert_with(|| Pool::new(card.clone(), self.board.clone()));
                let known = pool.card.context_tokens_max;
                pool.card.context_tokens_max = known.into_iter().chain(card.context_tokens_max).min();
                pool.push(backend.clone());
            }
        }
        let all = named.members.iter().map(|(backend, _)| backend.clone()).collect();
        let models = models.into_iter().map(|(model, pool)| (model, Arc::new(pool))).collect();
        let table = Table { all, models, places: AtomicUsize::default() };
        table.count_places();
        *self.table.write() = Arc::new(table);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::BackendRole;

    fn spec(port: u16) -> BackendSpec {
        BackendSpec::new(format!("http://127.0.0.1:{port}"))
    }

    fn card(id: &str, tokens: u32) -> Card {
        Card { id: id.into(), name: id.into(), context_tokens_max: Some(tokens), owned_by: "vllm".into() }
    }

    #[test]
    fn sources_come_and_go() {
        let (roster, mut joined) = Roster::new();
        roster.name(Source::Flags, vec![spec(1)]);
        roster.name(Source::File, vec![spec(1), spec(2)]);
        let urls = |roster: &Roster| -> Vec<_> {
            roster.table().all.iter().map(|backend| (backend.id, backend.spec.url.clone())).collect()
        };
        assert_eq!(urls(&roster), [(0, spec(1).url), (1, spec(2).url)]);
        let (_, first) = joined.try_recv().unwrap();
        roster.name(Source::Flags, vec![]);
        assert!(!first.is_cancelled(), "the file still has it");
        roster.name(Source::File, vec![spec(3), spec(2)]);
        assert!(first.is_cancelled());
        assert_eq!(
            urls(&roster),
            [(1, spec(2).url), (2, spec(3).url)],
            "what left may still be known by its number"
        );
        roster.forgotten(0);
        roster.name(Source::Flags, vec![spec(4)]);
        assert_eq!(urls(&roster)[2], (0, spec(4).url));
    }

    #[test]
    fn backends_are_listed_as_they_are_named() {
        let (roster, _joined) = Roster::new();
        roster.name(Source::Flags, vec![spec(9), spec(2), spec(9), spec(5)]);
        let ports: Vec<_> = roster.table().all.iter().map(|backend| backend.spec.url.clone()).collect();
        assert_eq!(ports, [spec(9).url, spec(2).url, spec(5).url]);
    }

    #[test]
    fn places_are_those_of_servers_that_can_be_asked() {
        let (roster, _joined) = Roster::new();
        let of = |port, role, requests_max| BackendSpec { role, requests_max, ..spec(port) };
        let (both, decode, prefill) = (BackendRole::Both, BackendRole::Decode, BackendRole::Prefill);
        roster.name(Source::Flags, vec![of(1, both, 3), of(2, decode, 4), of(3, prefill, 100)]);
        assert_eq!(roster.table().places(), 0, "none has answered");
        let table = roster.table();
        for backend in &table.all {
            backend.found(Health::Ready, Some(vec![]));
        }
        roster.refresh();
        assert_eq!(roster.table().places(), 7);
        let table = roster.table();
        while !table.all[0].failed("refused") {}
        assert_eq!(table.places(), 7, "not counted since");
        table.count_places();
        assert_eq!(table.places(), 4);
    }

    #[test]
    fn models_are_those_of_servers_that_answered() {
        let (roster, _joined) = Roster::new();
        roster.name(Source::Flags, vec![spec(1), spec(2)]);
        assert!(roster.table().pool("m").is_none());
        let table = roster.table();
        table.all[0].found(Health::Ready, Some(vec![card("m", 100), card("l", 10)]));
        table.all[1].found(Health::Ready, Some(vec![card("m", 50)]));
        roster.refresh();
        let table = roster.table();
        let pool = table.pool("m").unwrap();
        assert_eq!((pool.backends().len(), pool.card.context_tokens_max), (2, Some(50)));
        assert_eq!(table.cards().iter().map(|card| card.id.as_str()).collect::<Vec<_>>(), ["l", "m"]);
        assert!(table.has_ready());
        table.all[0].found(Health::Lost("gone".into()), None);
        roster.refresh();
        assert_eq!(
            roster.table().pool("m").unwrap().backends().len(),
            2,
            "it is lost and still has its model"
        );
    }
}
