//! The owner thread of an engine: makes it, measures it, and then runs whatever it is given until that returns.

use tokio::sync::{mpsc, oneshot};

use super::{Engine, EngineOptions, EngineSpec, TokenTexts};
use crate::{Error, ModelSource};

/// An engine that is up.
pub(crate) struct Started {
    /// What it is.
    pub(crate) spec: EngineSpec,
    /// What its tokens stand for.
    pub(crate) texts: TokenTexts,
    /// Prompt tokens a second, from the warm-up.
    pub(crate) prefill_tokens_per_second: f64,
    /// Resolves when the thread has ended, by a panic as well.
    pub(crate) exited: oneshot::Receiver<()>,
}

/// Makes an engine on a thread of its own and runs `body` with it there.
pub(crate) async fn spawn(
    name: &str,
    source: ModelSource,
    options: EngineOptions,
    body: impl FnOnce(Box<dyn Engine>) + Send + 'static,
) -> Result<Started, Error> {
    let (started_sender, started) = oneshot::channel();
    let (exited_sender, exited) = oneshot::channel();
    let run = move || {
        let _exited: oneshot::Sender<()> = exited_sender;
        let made = super::open(&source, &options).and_then(|mut engine| {
            let rate = super::warm_up(&mut *engine, options.chunk_tokens)?;
            Ok((engine, rate))
        });
        match made {
            Err(error) => drop(started_sender.send(Err(error))),
            Ok((engine, rate)) => {
                // Nobody waits any more when the worker was stopped meanwhile.
                if started_sender.send(Ok((engine.spec().clone(), engine.token_texts(), rate))).is_ok() {
                    body(engine);
                }
            }
        }
    };
    std::thread::Builder::new()
        .name(format!("{name}-engine"))
        .spawn(run)
        .map_err(|error| Error::Config(format!("start the engine's thread: {error}")))?;
    let (spec, texts, prefill_tokens_per_second) = started.await.map_err(|_| Error::EngineGone)??;
    Ok(Started { spec, texts, prefill_tokens_per_second, exited })
}

type Call = Box<dyn FnOnce(&mut dyn Engine) + Send>;

/// Runs closures on the owner thread, one after another.
pub(crate) struct EngineCalls {
    calls: mpsc::Sender<Call>,
}

impl EngineCalls {
    /// The handle, and the body for [`spawn`] that serves it.
    pub(crate) fn new() -> (Self, impl FnOnce(Box<dyn Engine>) + Send + 'static) {
        let (calls, mut receiver) = mpsc::channel::<Call>(1);
        let body = move |mut engine: Box<dyn Engine>| {
            while let Some(call) = receiver.blocking_recv() {
                call(&mut *engine);
            }
        };
        (Self { calls }, body)
    }

    /// Runs `call` on the owner thread. Once begun it runs to its end, also when this future is dropped.
    pub(crate) async fn call<R: Send + 'static>(
        &self,
        call: impl FnOnce(&mut dyn Engine) -> R + Send + 'static,
    ) -> Result<R, Error> {
        let (sender, result) = oneshot::channel();
        let boxed: Call = Box::new(move |engine| drop(sender.send(call(engine))));
        self.calls.send(boxed).await.map_err(|_| Error::EngineGone)?;
        result.await.map_err(|_| Error::EngineGone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ToyOptions;

    fn toy() -> ModelSource {
        ModelSource::Toy(ToyOptions::default())
    }

    #[tokio::test]
    async fn calls_run_on_the_owner_thread_and_its_end_is_noticed() {
        let (calls, body) = EngineCalls::new();
        let started = spawn("test", toy(), EngineOptions::default(), body).await.unwrap();
        assert!(started.prefill_tokens_per_second > 0.0);
        let thread = calls.call(|_| std::thread::current().name().map(str::to_owned)).await.unwrap();
        assert_eq!(thread.as_deref(), Some("test-engine"));
        assert_eq!(calls.call(|engine| engine.len(0)).await.unwrap(), 0, "the warm-up left nothing");
        drop(calls);
        assert!(started.exited.await.is_err());
    }

    #[tokio::test]
    async fn a_panic_is_an_error_for_every_caller() {
        let (calls, body) = EngineCalls::new();
        let started = spawn("test", toy(), EngineOptions::default(), body).await.unwrap();
        assert!(matches!(calls.call(|engine| engine.len(99)).await, Err(Error::EngineGone)));
        assert!(started.exited.await.is_err());
        assert!(matches!(calls.call(|engine| engine.len(0)).await, Err(Error::EngineGone)));
    }

    #[tokio::test]
    async fn an_engine_that_does_not_start_says_why() {
        let source = ModelSource::Gguf("/nonexistent.gguf".into());
        let error = spawn("test", source, EngineOptions::default(), |_| ()).await.err().unwrap();
        assert!(error.to_string().contains("/nonexistent.gguf"), "{error}");
    }
}
