//! The servers of one model, laid out for decisions: what changes of each is on the [`Board`], what does not is here.

use std::sync::Arc;

use parking_lot::Mutex;

use super::{
    board::{Board, Line},
    member::{Backend, Card},
    spec::BackendRole,
};
use crate::feeds::Mode;

/// A server has the same place in all of its lists.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) card: Card,
    backends: Vec<Arc<Backend>>,
    facts: Vec<Facts>,
    board: Arc<Board>,
    /// Places by servers' numbers.
    places: Vec<Option<u16>>,
    /// Addresses of the stores that they load from, each once.
    stores: Vec<String>,
    /// And [`Board::known_changes`] before it was made.
    kinds: Mutex<(u64, Arc<Kinds>)>,
}

/// The ways in which a prompt has to be looked up for some server.
#[derive(Debug, Default)]
pub(super) struct Kinds {
    /// By its text: no events are followed.
    pub(super) by_text: bool,
    /// By its tokens, in blocks of so many.
    pub(super) sizes: Vec<u32>,
}

/// What a decision needs of a server's description: a few bytes, side by side.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    seat: u16,
    /// Which of the pool's stores it loads from.
    pub(super) store: Option<u16>,
    pub(super) role: BackendRole,
    pub(super) requests_max: u32,
}

impl Pool {
    /// Without servers; those to come have seats on `board`.
    pub(crate) fn new(card: Card, board: Arc<Board>) -> Self {
        Self {
            card,
            backends: Vec::new(),
            facts: Vec::new(),
            board,
            places: Vec::new(),
            stores: Vec::new(),
            // Of no board, which would have to change for centuries first.
            kinds: Mutex::new((u64::MAX, Arc::default())),
        }
    }

    pub(crate) fn push(&mut self, backend: Arc<Backend>) {
        assert!(backend.seat().is_on(&self.board), "another board's lines are not looked at");
        let store = backend.spec.store.as_ref().map(|url| {
            let known = self.stores.iter().position(|known| known == url);
            known.unwrap_or_else(|| {
                self.stores.push(url.clone());
                self.stores.len() - 1
            }) as u16
        });
        let id = backend.id as usize;
        if self.places.len() <= id {
            self.places.resize(id + 1, None);
        }
        self.places[id] = Some(self.backends.len() as u16);
        self.facts.push(Facts {
            seat: backend.seat().at(),
            store,
            role: backend.role(),
            requests_max: backend.spec.requests_max,
        });
        self.backends.push(backend);
        self.kinds.get_mut().0 = u64::MAX;
    }

    pub(crate) fn backends(&self) -> &[Arc<Backend>] {
        &self.backends
    }

    /// Facts and line of each, in order.
    #[inline]
    pub(super) fn lines(&self) -> impl ExactSizeIterator<Item = (&Facts, &Line)> {
        self.facts.iter().map(|facts| (facts, self.board.line(facts.seat)))
    }

    /// The line at a place.
    #[inline]
    pub(super) fn line(&self, at: usize) -> &Line {
        self.board.line(self.facts[at].seat)
    }

    /// The place of the server with that number.
    #[inline]
    pub(super) fn place(&self, id: u32) -> Option<usize> {
        self.places.get(id as usize).copied().flatten().map(usize::from)
    }

    /// What its servers' lines ask for. Looking at all of them takes as long as half a decision, and they hardly change.
    pub(super) fn kinds(&self) -> Arc<Kinds> {
        let changes = self.board.known_changes();
        let mut kinds = self.kinds.lock();
        if kinds.0 != changes {
            *kinds = (changes, Arc::new(self.find_kinds()));
        }
        kinds.1.clone()
    }

    fn find_kinds(&self) -> Kinds {
        let mut kinds = Kinds::default();
        for (_, line) in self.lines() {
            match line.known() {
                (Mode::Fallback, _) => kinds.by_text = true,
                (_, 0) => {}
                (_, size) if !kinds.sizes.contains(&size) => kinds.sizes.push(size),
                _ => {}
            }
        }
        kinds
    }

    pub(super) fn stores(&self) -> &[String] {
        &self.stores
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::BackendSpec;

    #[test]
    fn kinds_are_those_of_the_lines_now() {
        let board = Board::new();
        let mut pool = Pool::new(
            Card { id: "m".into(), name: "m".into(), context_tokens_max: None, owned_by: "test".into() },
            board.clone(),
        );
        let kinds = |pool: &Pool| {
            let kinds = pool.kinds();
            (kinds.by_text, kinds.sizes.clone())
        };
        assert_eq!(kinds(&pool), (false, vec![]));
        for id in 0..3 {
            let spec = BackendSpec::new(format!("http://127.0.0.1:{}", 1 + id));
            pool.push(Arc::new(Backend::new(id, spec, board.seat().unwrap()).unwrap()));
        }
        assert_eq!(kinds(&pool), (true, vec![]));
        pool.backends().iter().for_each(|backend| backend.set_known(Mode::Exact, 16));
        assert_eq!(kinds(&pool), (false, vec![16]));
        pool.backends()[1].set_known(Mode::Degraded, 64);
        assert_eq!(kinds(&pool), (false, vec![16, 64]));
        pool.backends()[1].set_known(Mode::Fallback, 0);
        assert_eq!(kinds(&pool), (true, vec![16]));
    }
}
