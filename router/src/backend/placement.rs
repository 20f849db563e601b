//! Servers that are decided between and never asked: for the benches.

use std::{sync::Arc, time::Duration};

use rand::rngs::SmallRng;

use super::{
    BackendSpec, Keys, Prompt,
    board::Board,
    member::{Backend, Call, Card, Health},
    place::{Part, Shape, place},
    pool::Pool,
};
use crate::{
    directory::{Directory, Scope},
    feeds::{Mode, Stores},
    metrics::Metrics,
};

/// Ready servers of one model.
pub(crate) struct Placement(Pool, Stores);

impl Placement {
    /// Their caches count as known in blocks of `block_tokens`.
    pub(crate) fn new(model: &str, specs: Vec<BackendSpec>, block_tokens: u32) -> Self {
        let card = Card {
            id: model.to_owned(),
            name: model.to_owned(),
            context_tokens_max: None,
            owned_by: "bench".into(),
        };
        let board = Board::new();
        let mut pool = Pool::new(card.clone(), board.clone());
        for (id, spec) in (0..).zip(specs) {
            let seat = board.seat().expect("a router has no more");
            let backend = Backend::new(id, spec, seat).expect("a description that makes sense");
            backend.found(Health::Ready, Some(vec![card.clone()]));
            backend.set_known(Mode::Exact, block_tokens);
            pool.push(Arc::new(backend));
        }
        let stores = Stores::new(None, 0, Arc::new(Metrics::new()));
        Self(pool, stores)
    }

    /// The server at `at` was seen to compute so many tokens a second, and to take so long for a step.
    pub(crate) fn measured(&mut self, at: usize, tokens_per_second: u64, step: Duration) {
        let backend = &self.0.backends()[at];
        backend.learn_first_token(tokens_per_second, 0, Duration::from_secs(1));
        backend.learn_steps(1, step);
    }

    /// Who gets a prompt, and its request there, as [`Forwarder`](super::Forwarder) decides it.
    pub(crate) fn decide(
        &self,
        directory: &Directory,
        scope: &Scope,
        tokens: &[u32],
        // As in a router, so that it is compiled as there.
        rng: &mut SmallRng,
    ) -> Option<(u32, Call)> {
        let prompt = Prompt {
            scope,
            text: "",
            text_scope: scope,
            tokens: Some(tokens),
            is_sure: true,
            is_salted: false,
        };
        let keys = Keys::gather(directory, &self.1, &self.0, &prompt);
        let shape = Shape { tokens: keys.tokens(), own: keys.own(), stored: keys.stored() };
        let (backend, choice) = place(&self.0, shape, Part::Answer, None, &[], rng).ok()?;
        let call = Call::begin(&backend, choice.expected.compute_tokens, choice.expected.load_tokens);
        let underway = keys.sent(directory, &backend, Duration::ZERO);
        Some((backend.id, call.computing(underway)))
    }
}
