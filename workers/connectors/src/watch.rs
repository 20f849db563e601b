//! `Namespace.watch`: block events, one message at a time.

use std::sync::Arc;

use kelvin_kvstore as kvstore;
use kelvin_proto::kv::v1;
use pyo3::{exceptions::PyStopAsyncIteration, prelude::*};
use tokio::sync::{Mutex, mpsc};

use crate::{answers, error::Failure, runtime::Mode};

/// Messages that wait for Python. The store counts as lost what does not fit behind them.
const MESSAGES_MAX: usize = 16;

type Messages = mpsc::Receiver<Result<v1::WatchResponse, kvstore::client::Error>>;

/// An iterator of messages; blocks.
#[pyclass(frozen, subclass, module = "kelvin")]
pub(crate) struct Watch {
    messages: Arc<Mutex<Messages>>,
    mode: Mode,
}

/// The same, an asynchronous iterator.
#[pyclass(frozen, extends = Watch, module = "kelvin.aio")]
pub(crate) struct AsyncWatch;

/// Subscribes, and moves messages on as long as the receiver lives.
pub(crate) async fn subscribe(
    client: kvstore::Client,
    namespace: u64,
    cursor: u64,
    incarnation: u64,
) -> Result<Messages, Failure> {
    let mut stream = client.watch(namespace, cursor, incarnation).await?;
    let (sender, receiver) = mpsc::channel(MESSAGES_MAX);
    tokio::spawn(async move {
        loop {
            let next = tokio::select! {
                () = sender.closed() => return,
                next = stream.message() => next,
            };
            let (message, last) = match next {
                Ok(Some(message)) => (Ok(message), false),
                Ok(None) => return,
                Err(status) => (Err(status.into()), true),
            };
            if sender.send(message).await.is_err() || last {
                return;
            }
        }
    });
    Ok(receiver)
}

impl Watch {
    pub(crate) fn open(py: Python<'_>, messages: Messages, mode: Mode) -> PyResult<Py<PyAny>> {
        let base = Self { messages: Arc::new(Mutex::new(messages)), mode };
        Ok(match mode.is_async() {
            false => Py::new(py, base)?.into_any(),
            true => Py::new(py, PyClassInitializer::from(base).add_subclass(AsyncWatch))?.into_any(),
        })
    }

    fn next<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let messages = self.messages.clone();
        let asynchronous = self.mode.is_async();
        let verb = async move {
            match messages.lock().await.recv().await {
                Some(message) => Ok(Some(message?)),
                None if asynchronous => Err(Failure::Python(PyStopAsyncIteration::new_err(()))),
                None => Ok(None),
            }
        };
        self.mode.run(py, verb, |py, message| message.map(|message| answers::events(py, message)).transpose())
    }
}

#[pymethods]
impl Watch {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let message = self.next(py)?;
        Ok((!message.is_none()).then_some(message))
    }

    /// Ends the subscription.
    fn close(&self) {
        if let Ok(mut messages) = self.messages.try_lock() {
            messages.close();
        }
    }
}

#[pymethods]
impl AsyncWatch {
    fn __aiter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __anext__<'py>(slf: PyRef<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        slf.as_super().next(py)
    }
}
