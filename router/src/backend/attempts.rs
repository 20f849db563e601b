//! Which servers are tried for one request, and how: one after the other, two at once, or two for its two parts.
//!
//! # Hedging
//! Off as a rule. With it, a stream of which nothing came for a time is asked for at a second server as well; the
//! first to answer has the request, and the other's is cancelled. A second one is asked only before the client saw
//! anything, only for streams (nothing of a whole answer comes before its end, however busy its server is), and at
//! most one at a time in [`HEDGE_SHARE`] requests in work, of fewer as well: when all servers are slow, twice the work
//! makes them slower.

use std::{
    future::Future,
    pin::pin,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use axum::http::{Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use tokio::time::{sleep, timeout};
use tracing::Instrument;

use super::{
    client::why,
    forward::{ATTEMPTS, Answered, EMBEDDINGS, Errand, Forwarder, Trouble, request},
    member::Call,
    pair,
    place::{Full, Part, Shape, place},
    pool::Pool,
    usage::Usage,
};

/// Requests in work for each hedge.
const HEDGE_SHARE: usize = 10;
/// Most bytes of what a prefill backend answers: one token, and where its KV is.
const PREFILL_BYTES_MAX: usize = 4 << 20;

/// A request's way, decided and counted.
pub(super) struct Placed {
    /// Where it is answered.
    call: Call,
    /// Where its prompt is computed, if not there, and how many tokens of it.
    prefill: Option<(Call, u64)>,
}

/// A place among the hedges under way.
struct Hedge<'a>(&'a AtomicUsize);

impl Drop for Hedge<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

type Answer = Result<Response<Answered>, Trouble>;

impl Forwarder {
    /// The answer of one of the servers that are not `excluded`.
    pub(super) async fn attempts(&self, pool: &Pool, errand: &Errand<'_>, mut excluded: Vec<u32>) -> Answer {
        let mut last: Option<Answer> = None;
        let most = excluded.len() + ATTEMPTS;
        while excluded.len() < most {
            let placed = match self.begin(pool, errand, &excluded) {
                Ok(placed) => placed,
                Err(Full::Busy) => return last.unwrap_or(Err(Trouble::Busy)),
                Err(Full::Away) => return last.unwrap_or(Err(Trouble::NoBackend)),
            };
            if last.is_some() {
                self.metrics.retries.inc();
            }
            excluded.push(placed.call.backend().id);
            let answer = match self.hedge_after.filter(|_| errand.stream) {
                Some(after) => self.hedged(pool, placed, errand, &mut excluded, after).await,
                None => self.attempt(placed, errand).await,
            };
            if is_final(&answer) {
                return answer;
            }
            last = Some(answer);
        }
        last.unwrap_or(Err(Trouble::NoBackend))
    }

    /// One server's answer, and a second one's if the first is silent for long.
    async fn hedged(
        &self,
        pool: &Pool,
        placed: Placed,
        errand: &Errand<'_>,
        excluded: &mut Vec<u32>,
        after: Duration,
    ) -> Answer {
        let mut first = pin!(self.attempt(placed, errand));
        tokio::select! {
            biased;
            answer = first.as_mut() => return answer,
            () = sleep(after) => {}
        }
        let Some(_hedge) = self.hedge() else {
            self.metrics.backend.hedge("refused");
            return first.await;
        };
        let Ok(placed) = self.begin(pool, errand, excluded) else {
            self.metrics.backend.hedge("nobody");
            return first.await;
        };
        excluded.push(placed.call.backend().id);
        self.metrics.backend.hedge("asked");
        let second = pin!(self.attempt(placed, errand));
        let (answer, won) = race(first, second).await;
        let result = match (is_final(&answer), won) {
            (false, _) => "failed",
            (true, true) => "won",
            (true, false) => "lost",
        };
        self.metrics.backend.hedge(result);
        answer
    }

    /// A place among the hedges, if they are few enough.
    fn hedge(&self) -> Option<Hedge<'_>> {
        let requests = usize::try_from(self.metrics.in_flight.get()).unwrap_or(0);
        let taken = self.hedges.fetch_add(1, Ordering::Relaxed);
        let hedge = Hedge(&self.hedges);
        (taken < hedges_max(requests)).then_some(hedge)
    }

    /// Chooses servers and counts the request there, in one step: the next decision must see it.
    fn begin(&self, pool: &Pool, errand: &Errand<'_>, excluded: &[u32]) -> Result<Placed, Full> {
        let (keys, now) = (&errand.keys, self.started.elapsed());
        let preferred = errand.session.and_then(|session| self.sessions.last(session, now));
        let shape = Shape { tokens: keys.tokens(), own: keys.own(), stored: keys.stored() };
        let mut rng = self.rng.lock();
        let (backend, choice) = place(pool, shape, Part::Answer, preferred.as_deref(), excluded, &mut *rng)?;
        // Of embeddings nothing is decoded.
        let pairs = backend.role().pairs() && errand.path != EMBEDDINGS;
        let prefill = pairs.then(|| place(pool, shape, Part::Prefill, None, excluded, &mut *rng));
        let prefill = prefill.and_then(Result::ok).filter(|(other, elsewhere)| {
            let here = (&choice.expected, &backend.load());
            pair::pays(self.policy, here, (&elsewhere.expected, &other.load()))
        });
        let (compute, load) = (choice.expected.compute_tokens, choice.expected.load_tokens);
        let placed = match prefill {
            None => {
                let call = Call::begin(&backend, compute, load);
                Placed { call: call.expecting(keys.tokens().saturating_sub(compute)), prefill: None }
            }
            Some((other, elsewhere)) => {
                let elsewhere = elsewhere.expected;
                let there = Call::begin(&other, elsewhere.compute_tokens, elsewhere.load_tokens)
                    .computing(keys.sent(&self.directory, &other, now));
                // What is computed there is loaded here, all but the last token.
                let call = Call::begin(&backend, 1, load + compute.saturating_sub(1));
                Placed { call, prefill: Some((there, compute)) }
            }
        };
        let underway = keys.sent(&self.directory, &backend, now);
        let placed = Placed { call: placed.call.computing(underway), ..placed };
        drop(rng);
        self.metrics.backend_decision(backend.mode());
        // Whoever has to go elsewhere is counted already.
        if errand.session.is_some() && excluded.is_empty() {
            let kept = preferred.map(|preferred| preferred.id == backend.id);
            self.metrics.backend.affinity(kept.map_or("new", |kept| if kept { "kept" } else { "left" }));
        }
        Ok(placed)
    }

    /// One server's answer; what goes wrong is noted.
    async fn attempt(&self, placed: Placed, errand: &Errand<'_>) -> Answer {
        let Placed { mut call, prefill } = placed;
        let backend = call.backend().clone();
        let mut body = errand.body.clone();
        if let Some((elsewhere, compute)) = prefill {
            match self.prefilled(elsewhere, errand).await {
                Some(with_parameters) => body = with_parameters,
                None => call.recompute(compute),
            }
            call.restart();
        }
        let span = tracing::debug_span!(
            "forward",
            otel.kind = "client",
            request_id = errand.request_id,
            backend = backend.spec.url,
        );
        let answer = self.ask(call, errand, body).instrument(span).await;
        match &answer {
            Ok(_) => match errand.session {
                Some(session) if errand.session_end => self.sessions.forget(session),
                Some(session) => self.sessions.went(session, &backend, self.started.elapsed()),
                None => {}
            },
            Err(trouble) => {
                if trouble.is_fault() {
                    backend.failed(&trouble.to_string());
                }
                self.metrics.error(trouble.kind());
                tracing::warn!(request = errand.request_id, backend = backend.spec.url, %trouble, "a backend failed before its first token");
            }
        }
        answer
    }

    /// Has a prompt computed; the request for the decode backend then, or nothing if that one is to compute it.
    async fn prefilled(&self, mut call: Call, errand: &Errand<'_>) -> Option<axum::body::Bytes> {
        let backend = call.backend().clone();
        let asked = pair::prefill_body(&errand.body)?;
        let answer = self.prefill(&mut call, errand, asked).await;
        let failure = match answer {
            Ok(answer) => {
                backend.succeeded();
                call.first_token();
                if let Ok(Some(usage)) = Usage::of_answer(&answer) {
                    call.used(&usage);
                }
                let body = pair::decode_body(&errand.body, &answer);
                self.metrics.backend.prefill(if body.is_some() { "done" } else { "without_parameters" });
                return body;
            }
            Err(trouble) => trouble,
        };
        // A refusal is the request's fault, of which the client hears from the other one.
        if !matches!(failure, Trouble::Failed(status) if status.is_client_error()) {
            backend.failed(&failure.to_string());
        }
        self.metrics.backend.prefill("failed");
        tracing::warn!(request = errand.request_id, backend = backend.spec.url, %failure, "a prefill backend failed, the prompt is computed where it is decoded");
        None
    }

    async fn prefill(
        &self,
        call: &mut Call,
        errand: &Errand<'_>,
        body: axum::body::Bytes,
    ) -> Result<axum::body::Bytes, Trouble> {
        let patience = self.patience.first_token;
        let asked = async {
            let request = request(call.backend(), errand, body)?;
            let answer = self.client.request(request).await;
            let (head, body) = answer.map_err(|error| Trouble::Unreachable(why(&error)))?.into_parts();
            if head.status != StatusCode::OK {
                return Err(Trouble::Failed(head.status));
            }
            let body = Limited::new(body, PREFILL_BYTES_MAX).collect().await;
            let body = body.map_err(|error| Trouble::Cut(why(&*error)))?.to_bytes();
            Usage::of_answer(&body).map_err(|error| Trouble::Garbage(error.to_string()))?;
            Ok(body)
        };
        timeout(patience, asked).await.unwrap_or(Err(Trouble::Stalled(patience)))
    }
}

fn hedges_max(requests: usize) -> usize {
    (requests / HEDGE_SHARE).max(1)
}

/// Whether nobody else is asked.
fn is_final(answer: &Answer) -> bool {
    // Another one may have room.
    answer.as_ref().is_ok_and(|answer| answer.status() != StatusCode::TOO_MANY_REQUESTS)
}

/// The first of two answers that is final, and whether it is the second's; the last one if none is.
async fn race(
    mut first: impl Future<Output = Answer> + Unpin,
    mut second: impl Future<Output = Answer> + Unpin,
) -> (Answer, bool) {
    tokio::select! {
        answer = &mut first => match is_final(&answer) {
            true => (answer, false),
            false => (second.await, true),
        },
        answer = &mut second => match is_final(&answer) {
            true => (answer, true),
            false => (first.await, false),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hedges_are_one_in_ten_requests() {
        assert_eq!([0, 1, 10, 19, 20, 1000].map(hedges_max), [1, 1, 1, 1, 2, 100]);
    }
}
