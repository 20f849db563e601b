//! The worker's gRPC face: checks requests on arrival, hands them to the prefill or the decode side, and never
//! lets a response stream end without a last message or an error.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{Stream, stream};
use kelvin_proto::{
    Reason, Refusal, trace,
    worker::v1::{self, worker_service_server::WorkerService},
};
use tokio::sync::mpsc;
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};
use tonic::{Request, Response, Status};

use crate::{
    Role,
    decode::{DecodeWorker, GenerateJob},
    engine::{EngineSpec, TokenTexts},
    grammar::Grammars,
    load::LoadMeter,
    prefill::{PrefillJob, PrefillWorker},
    sampling::SamplingPlan,
    span,
};

const EXTRA_BYTES_MAX: usize = 4096;
const STOP_TOKENS_MAX: usize = 256;
const WAIT_MAX: Duration = Duration::from_secs(60);

/// The side that does the work.
pub(crate) enum Side {
    Prefill(PrefillWorker),
    Decode(DecodeWorker),
}

impl Side {
    fn role(&self) -> Role {
        match self {
            Self::Prefill(_) => Role::Prefill,
            Self::Decode(_) => Role::Decode,
        }
    }
}

/// The service. Cloning shares it.
#[derive(Clone)]
pub(crate) struct Service(Arc<Inner>);

struct Inner {
    side: Side,
    spec: EngineSpec,
    grammars: Arc<Grammars>,
    name: String,
    chunk_tokens: u32,
    incarnation: u64,
    load: Arc<LoadMeter>,
    draining: AtomicBool,
    /// One token an open response stream.
    streams: TaskTracker,
}

impl Service {
    /// A service over a side that is up.
    pub(crate) fn new(
        side: Side,
        spec: EngineSpec,
        texts: TokenTexts,
        name: String,
        chunk_tokens: u32,
        incarnation: u64,
        load: Arc<LoadMeter>,
    ) -> Self {
        let streams = TaskTracker::new();
        let draining = AtomicBool::new(false);
        let grammars = Arc::new(Grammars::new(texts));
        Self(Arc::new(Inner {
            side,
            spec,
            grammars,
            name,
            chunk_tokens,
            incarnation,
            load,
            draining,
            streams,
        }))
    }

    /// Refuses new requests from now on.
    pub(crate) fn drain(&self) {
        self.0.draining.store(true, Ordering::Relaxed);
        self.0.streams.close();
    }

    /// Waits until no response stream is open.
    pub(crate) async fn drained(&self) {
        self.0.streams.wait().await;
    }

    /// Ends every request now.
    pub(crate) async fn stop(&self) {
        if let Side::Decode(worker) = &self.0.side {
            worker.stop().await;
        }
    }

    /// What prefill and generate requests have in common.
    fn check_prompt(&self, model: &str, tokens: &[u32], extra: &[u8]) -> Result<(), Refusal> {
        let spec = &self.0.spec;
        if self.0.draining.load(Ordering::Relaxed) {
            return Err(Refusal::new(Reason::Unavailable, "the worker is shutting down"));
        }
        if model != spec.model_name {
            let message = format!("model `{model}` is not served here, `{}` is", spec.model_name);
            return Err(Refusal::new(Reason::UnknownModel, message));
        }
        if tokens.is_empty() {
            return Err(Refusal::invalid("tokens must not be empty"));
        }
        if let Some(token) = tokens.iter().find(|&&token| token >= spec.vocab_tokens) {
            return Err(Refusal::invalid(format!(
                "token {token} is not in the vocabulary of {} tokens",
                spec.vocab_tokens
            )));
        }
        let max = spec.context_tokens_max;
        if tokens.len() >= max as usize {
            return Err(Refusal::new(
                Reason::LimitExceeded,
                format!(
                    "the prompt has {} tokens; the limit is {}, since prompt and completion share {max}",
                    tokens.len(),
                    max - 1
                ),
            ));
        }
        if extra.len() > EXTRA_BYTES_MAX {
            return Err(Refusal::new(
                Reason::LimitExceeded,
                format!("extra has {} bytes; the limit is {EXTRA_BYTES_MAX}", extra.len()),
            ));
        }
        Ok(())
    }

    fn check_generate(&self, wire: v1::GenerateRequest) -> Result<GenerateJob, Refusal> {
        self.check_prompt(&wire.model, &wire.tokens, &wire.extra)?;
        let spec = &self.0.spec;
        if wire.tokens_max == 0 {
            return Err(Refusal::invalid("tokens_max must be at least 1"));
        }
        if wire.stop_tokens.len() > STOP_TOKENS_MAX {
            return Err(Refusal::invalid(format!("stop_tokens has more than {STOP_TOKENS_MAX} entries")));
        }
        let generated_tokens = wire.generated_tokens as usize;
        if generated_tokens >= wire.tokens.len() {
            return Err(Refusal::invalid(format!(
                "generated_tokens is {generated_tokens}, but must be less than the {} tokens",
                wire.tokens.len()
            )));
        }
        // The context ends the completion as tokens_max does.
        let tokens_max = wire.tokens_max.min(spec.context_tokens_max - wire.tokens.len() as u32);
        let plan = SamplingPlan::check(wire.sampling.as_ref(), wire.logprobs, tokens_max, spec.vocab_tokens)?;
        Ok(GenerateJob {
            request_id: wire.request_id,
            prompt: wire.tokens,
            generated_tokens,
            extra: wire.extra.into(),
            tokens_max,
            stop_tokens: wire.stop_tokens,
            plan,
            constraint: None,
            wait_blocks: wire.wait_blocks as usize,
            wait: Duration::from_millis(wire.wait_ms).min(WAIT_MAX),
        })
    }

    fn wrong_role(&self, wanted: &str) -> Refusal {
        Refusal::invalid(format!("this is a {} worker: ask a {wanted} worker", self.0.side.role().name()))
    }
}

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl WorkerService for Service {
    async fn describe(
        &self,
        _: Request<v1::DescribeRequest>,
    ) -> Result<Response<v1::DescribeResponse>, Status> {
        let Inner { side, spec, name, chunk_tokens, incarnation, load, .. } = &*self.0;
        let role = match side.role() {
            Role::Prefill => v1::Role::Prefill,
            Role::Decode => v1::Role::Decode,
        };
        Ok(Response::new(v1::DescribeResponse {
            role: role.into(),
            model: spec.model_name.clone(),
            fingerprint: Some(spec.fingerprint.clone().into()),
            block_tokens: spec.block_tokens,
            block_bytes: spec.block_bytes,
            context_tokens_max: spec.context_tokens_max,
            vocab_tokens: spec.vocab_tokens,
            incarnation: *incarnation,
            name: name.clone(),
            load: Some(load.snapshot()),
            chunk_tokens: *chunk_tokens,
        }))
    }

    type PrefillStream = Messages<v1::PrefillResponse>;

    async fn prefill(
        &self,
        request: Request<v1::PrefillRequest>,
    ) -> Result<Response<Self::PrefillStream>, Status> {
        let Side::Prefill(worker) = &self.0.side else { return Err(self.wrong_role("prefill").into()) };
        let parent = trace::of_metadata(request.metadata());
        let wire = request.into_inner();
        self.check_prompt(&wire.model, &wire.tokens, &wire.extra)?;
        let span = span::of_prefill(&self.0.name, &wire, parent);
        let job = PrefillJob { request_id: wire.request_id, prompt: wire.tokens, extra: wire.extra.into() };
        let messages = worker.prefill(job, span)?;
        let last = |message: &v1::PrefillResponse| message.done;
        Ok(Response::new(whole(messages, self.0.streams.token(), last)))
    }

    type GenerateStream = Messages<v1::GenerateResponse>;

    async fn generate(
        &self,
        request: Request<v1::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let Side::Decode(worker) = &self.0.side else { return Err(self.wrong_role("decode").into()) };
        let parent = trace::of_metadata(request.metadata());
        let mut wire = request.into_inner();
        let span = span::of_decode(&self.0.name, &wire, parent);
        let grammar = std::mem::take(&mut wire.grammar);
        let mut job = self.check_generate(wire)?;
        if !grammar.is_empty() {
            let constraint = self.0.grammars.clone().compile(grammar, job.generated().to_vec()).await?;
            if constraint.is_complete() {
                // All that was lost with the other worker is its last message.
                return Ok(Response::new(ended(job.prompt.len())));
            }
            job.constraint = Some(constraint);
        }
        let messages = worker.generate(job, span).await?;
        let last = |message: &v1::GenerateResponse| message.usage.is_some();
        Ok(Response::new(whole(messages, self.0.streams.token(), last)))
    }
}

/// The last message of a completion that lacks nothing else.
fn ended(prompt_tokens: usize) -> Messages<v1::GenerateResponse> {
    let usage = v1::Usage { prompt_tokens: prompt_tokens as u64, ..Default::default() };
    let finish = v1::FinishReason::Stop.into();
    let last = v1::GenerateResponse { finish, usage: Some(usage), ..Default::default() };
    Box::pin(stream::iter([Ok(last)]))
}

/// A stream that ends behind its last message or an error; should the sender vanish before, with an error too.
fn whole<T: Send + 'static>(
    messages: mpsc::Receiver<Result<T, Status>>,
    token: TaskTrackerToken,
    is_last: fn(&T) -> bool,
) -> Messages<T> {
    Box::pin(stream::unfold(Some((messages, token)), move |open| async move {
        let (mut messages, token) = open?;
        Some(match messages.recv().await {
            Some(Ok(message)) if !is_last(&message) => (Ok(message), Some((messages, token))),
            Some(end) => (end, None),
            None => {
                let refusal =
                    Refusal::new(Reason::EngineFailed, "the engine ended in the middle of the answer");
                (Err(refusal.into()), None)
            }
        })
    }))
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    async fn collected(sent: Vec<Result<u32, Status>>) -> Vec<Result<u32, tonic::Code>> {
        let (sender, messages) = mpsc::channel(8);
        for message in sent {
            sender.send(message).await.unwrap();
        }
        drop(sender);
        let stream = whole(messages, TaskTracker::new().token(), |&message| message == 9);
        stream.map(|message| message.map_err(|status| status.code())).collect().await
    }

    #[tokio::test]
    async fn a_stream_never_ends_silently() {
        assert_eq!(collected(vec![Ok(1), Ok(9)]).await, [Ok(1), Ok(9)]);
        assert_eq!(collected(vec![Ok(1)]).await, [Ok(1), Err(tonic::Code::Internal)]);
        assert_eq!(collected(vec![]).await, [Err(tonic::Code::Internal)]);
        let refused = vec![Ok(1), Err(Status::unavailable("stop"))];
        assert_eq!(collected(refused).await, [Ok(1), Err(tonic::Code::Unavailable)]);
    }
}
