//! Follows one engine's publishers, one a rank: connects, catches up, notices what was missed.

use std::{sync::Arc, time::Duration};

use axum::body::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use zeromq::{DealerSocket, Socket, SocketEvent, SocketRecv, SocketSend, SubSocket, ZmqMessage};

use super::{
    Mode,
    decode::{self, Batch},
    view::View,
};
use crate::{
    backend::{Backend, BackendHealth},
    directory::Directory,
    metrics::Metrics,
};

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(500);
/// Between two looks at the engine's health.
const LOOK: Duration = Duration::from_millis(250);
/// Between two tries to learn what an engine said before.
const CATCH_UP_EVERY: Duration = Duration::from_secs(2);
/// Most time for one answer of a replay.
const REPLAY_TIMEOUT: Duration = Duration::from_secs(3);
/// Most batches of one replay.
const REPLAY_MAX: u64 = 1 << 20;
/// What ends a replay: -1.
const REPLAY_END: u64 = u64::MAX;

/// One engine's events.
pub(crate) struct Feed {
    pub(crate) backend: Arc<Backend>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) metrics: Arc<Metrics>,
}

/// Follows all publishers of `feed` until `alive` is cancelled.
pub(crate) async fn follow(feed: Feed, alive: CancellationToken) {
    let Some(endpoint) = feed.backend.spec.events.clone() else { return };
    let ranks = feed.backend.spec.ranks;
    let all = async {
        // Its name for the model is part of every hash.
        let model = loop {
            if let Some(card) = feed.backend.cards().into_iter().next() {
                break card.name;
            }
            sleep(PAUSE).await;
        };
        let view = Mutex::new(View::new(&feed.directory, feed.backend.id, model, ranks.into()));
        let publishers = (0..ranks).filter_map(|rank| {
            let endpoint = on_port(&endpoint, rank)?;
            let replay = feed.backend.spec.replay.as_deref().and_then(|replay| on_port(replay, rank));
            Some(Publisher {
                feed: &feed,
                view: &view,
                rank: rank.into(),
                endpoint,
                replay,
                next: None,
                caught_up: 0,
                answered: false,
                asked: None,
                lost: false,
            })
        });
        futures::future::join_all(publishers.map(|mut publisher| async move { publisher.run().await })).await;
    };
    tokio::select! {
        _ = all => {}
        () = alive.cancelled() => {}
    }
}

/// The same endpoint, `rank` ports further.
fn on_port(endpoint: &str, rank: u32) -> Option<String> {
    let (host, port) = endpoint.rsplit_once(':')?;
    let port = port.parse::<u16>().ok()?.checked_add(u16::try_from(rank).ok()?)?;
    Some(format!("{host}:{port}"))
}

struct Publisher<'a> {
    feed: &'a Feed,
    view: &'a Mutex<View>,
    rank: u64,
    endpoint: String,
    replay: Option<String>,
    /// Number of the next batch; `None` until one was seen from this start of the engine.
    next: Option<u64>,
    /// Batches below this number were replayed, and may still come live.
    caught_up: u64,
    /// Whether it was learnt what the engine said before, as far as the engine knows it.
    answered: bool,
    /// When that was asked for.
    asked: Option<Instant>,
    /// Whether the engine was lost at the last look.
    lost: bool,
}

impl Publisher<'_> {
    async fn run(&mut self) {
        let mut said = String::new();
        loop {
            let why = self.connection().await;
            if why != said {
                tracing::warn!(
                    backend = self.feed.backend.spec.url,
                    endpoint = self.endpoint,
                    why,
                    "no KV events"
                );
                said = why;
            }
            self.gone();
            sleep(PAUSE).await;
        }
    }

    /// Follows until something breaks; returns what.
    async fn connection(&mut self) -> String {
        let mut socket = SubSocket::new();
        let mut changes = socket.monitor();
        let opened = async {
            socket.subscribe("").await?;
            match self.feed.backend.spec.events_bind {
                true => socket.bind(&self.endpoint).await.map(drop),
                false => socket.connect(&self.endpoint).await,
            }
        };
        if let Err(error) = opened.await {
            return error.to_string();
        }
        self.catch_up().await;
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = socket.recv() => match message {
                    Ok(message) => self.heard(message).await,
                    Err(error) => return error.to_string(),
                },
                change = changes.next() => match change {
                    // An engine that starts again numbers from 0 again, and has an empty cache.
                    Some(SocketEvent::Disconnected(_)) => {
                        tracing::info!(backend = self.feed.backend.spec.url, "the publisher of KV events is gone");
                        self.gone();
                    }
                    Some(SocketEvent::Connected(..) | SocketEvent::Accepted(..)) => self.catch_up().await,
                    Some(_) => {}
                    None => return "the socket was closed".into(),
                },
                // A connection can outlive what it was of, or break without a word.
                _ = looks.tick() => self.look().await,
            }
        }
    }

    /// An engine that is lost has nothing. Its publisher may be back before it is: what that said until the
    /// engine counts as ready was forgotten with the engine.
    async fn look(&mut self) {
        let lost = matches!(self.feed.backend.health(), BackendHealth::Lost(_));
        if lost != self.lost {
            self.lost = lost;
            self.gone();
        }
        let asked_lately = self.asked.is_some_and(|asked| asked.elapsed() < CATCH_UP_EVERY);
        if !self.answered && !asked_lately {
            self.catch_up().await;
        }
    }

    fn gone(&mut self) {
        self.next = None;
        self.caught_up = 0;
        self.answered = false;
        self.asked = None;
        self.view.lock().gone(&self.feed.directory, self.rank);
        self.publish();
    }

    async fn heard(&mut self, message: ZmqMessage) {
        if self.lost {
            return;
        }
        let Some((number, payload)) = parts(message) else {
            self.feed.metrics.feed("malformed", 1);
            return;
        };
        match self.next {
            Some(next) if number == next => {}
            Some(next) if number < next && number < self.caught_up => return,
            Some(next) if number > next => {
                self.feed.metrics.feed("gaps", 1);
                self.fill(next, number).await;
            }
            // From its beginning, or from the beginning again.
            _ if number == 0 => {
                self.answered = true;
                self.view.lock().begin(&self.feed.directory, self.rank);
            }
            _ => {
                self.feed.metrics.feed("gaps", u64::from(self.next.is_some()));
                self.fill(0, number).await;
            }
        }
        // What was replayed may go beyond what made it necessary.
        if self.next.is_none_or(|next| next <= number) || number == 0 {
            self.apply(&payload);
            self.next = Some(number + 1);
        }
        self.publish();
    }

    /// At the beginning of a connection, and until it succeeds: what the engine said before. Not while it is
    /// lost: then whoever took its ports would answer.
    async fn catch_up(&mut self) {
        if self.replay.is_none() || self.lost {
            return;
        }
        self.asked = Some(Instant::now());
        self.fill(0, 0).await;
        self.publish();
    }

    /// Asks for the batches from `from` on, of which those below `until` are needed at least.
    async fn fill(&mut self, from: u64, until: u64) {
        let replayed = match &self.replay {
            Some(replay) => timeout(REPLAY_TIMEOUT * 4, ask(replay, from))
                .await
                .unwrap_or_else(|_| Err("it takes too long".into())),
            None => Err("there is no replay socket".into()),
        };
        let batches = match replayed {
            Ok(batches) => batches,
            Err(why) => {
                tracing::debug!(
                    backend = self.feed.backend.spec.url,
                    why,
                    from,
                    until,
                    "missed KV events are not replayed"
                );
                // Where nothing was missed for sure, what is known stays; it is no proof of an empty cache.
                if until > from {
                    self.view.lock().missed(&self.feed.directory, self.rank);
                }
                return;
            }
        };
        let mut expected = from;
        let whole = batches.iter().all(|(number, _)| {
            expected += 1;
            *number + 1 == expected
        }) && expected >= until;
        self.answered = true;
        {
            let mut view = self.view.lock();
            match (whole, from) {
                (true, 0) => view.begin(&self.feed.directory, self.rank),
                (true, _) => {}
                (false, _) => view.missed(&self.feed.directory, self.rank),
            }
        }
        self.feed.metrics.feed("replayed", batches.len() as u64);
        for (number, payload) in batches {
            self.apply(&payload);
            self.next = Some(number + 1);
        }
        self.caught_up = self.next.unwrap_or(0);
    }

    fn apply(&mut self, payload: &[u8]) {
        let metrics = &self.feed.metrics;
        let batch: Batch = match decode::batch(payload) {
            Ok(batch) => batch,
            Err(error) => {
                metrics.feed("malformed", 1);
                tracing::warn!(backend = self.feed.backend.spec.url, %error, "KV events that make no sense");
                // It may have said that blocks are gone.
                self.view.lock().missed(&self.feed.directory, self.rank);
                return;
            }
        };
        metrics.feed("unknown", batch.unknown as u64);
        let applied = self.view.lock().apply(&self.feed.directory, self.rank, batch);
        metrics.feed("batches", 1);
        metrics.feed("stored", applied.stored);
        metrics.feed("removed", applied.removed);
        metrics.feed("cleared", applied.cleared);
        metrics.feed("lost", applied.lost);
    }

    /// Lets decisions see how much is known.
    fn publish(&self) {
        let view = self.view.lock();
        let (before, mode) = (self.feed.backend.mode(), view.mode());
        self.feed.backend.set_known(mode, view.block_tokens());
        if before != mode {
            tracing::info!(backend = self.feed.backend.spec.url, mode = mode.name(), "KV events");
        }
        if mode != Mode::Fallback && before == Mode::Fallback {
            // What routing believed until now is known better.
            self.feed.backend.believed(&self.feed.directory);
        }
    }
}

/// A message's last two frames: its number and its payload. Before them is the topic, if anything.
fn parts(message: ZmqMessage) -> Option<(u64, Bytes)> {
    let mut frames = message.into_vec();
    let payload = frames.pop()?;
    let number = frames.pop()?;
    Some((u64::from_be_bytes(number.as_ref().try_into().ok()?), payload))
}

/// Everything that the engine still has from batch `from` on.
async fn ask(endpoint: &str, from: u64) -> Result<Vec<(u64, Bytes)>, String> {
    let mut socket = DealerSocket::new();
    let connected = timeout(REPLAY_TIMEOUT, socket.connect(endpoint)).await;
    connected.map_err(|_| "no connection")?.map_err(|error| error.to_string())?;
    // The other side expects the empty frame that a REQ socket puts before its question.
    let mut question = ZmqMessage::from(Bytes::copy_from_slice(&from.to_be_bytes()));
    question.push_front(Bytes::new());
    socket.send(question).await.map_err(|error| error.to_string())?;
    let mut batches = Vec::new();
    while (batches.len() as u64) < REPLAY_MAX {
        let answer = timeout(REPLAY_TIMEOUT, socket.recv()).await;
        let answer = answer.map_err(|_| "no answer")?.map_err(|error| error.to_string())?;
        let (number, payload) = parts(answer).ok_or("an answer without a number")?;
        if number == REPLAY_END {
            return Ok(batches);
        }
        batches.push((number, payload));
    }
    Err(format!("more than {REPLAY_MAX} batches"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_have_ports_of_their_own() {
        assert_eq!(on_port("tcp://127.0.0.1:5557", 2).as_deref(), Some("tcp://127.0.0.1:5559"));
        assert_eq!(on_port("tcp://127.0.0.1:65535", 1), None);
    }
}
