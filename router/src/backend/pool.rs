//! The servers of one model, laid out for decisions: what changes of each is on the [`Board`], what does not is here.

use std::sync::Arc;

use super::{
    board::{Board, Line},
    member::{Backend, Card},
    spec::BackendRole,
};

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
        Self { card, backends: Vec::new(), facts: Vec::new(), board, places: Vec::new(), stores: Vec::new() }
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

    pub(super) fn stores(&self) -> &[String] {
        &self.stores
    }
}
