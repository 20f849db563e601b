//! Where the client's futures run, and how Python waits for them.
//!
//! # Forks
//! Threads do not survive a fork. So a child gets a runtime of its own, and what was opened before the fork
//! refuses to work in it rather than wait forever.

use std::{future::Future, pin::pin, time::Duration};

use parking_lot::Mutex;
use pyo3::{IntoPyObjectExt, exceptions::PyRuntimeError, prelude::*};
use tokio::{runtime::Runtime, task::AbortHandle};

use crate::error::Failure;

/// How long a blocking verb may keep Ctrl-C waiting.
const SIGNALS_EVERY: Duration = Duration::from_millis(100);
/// Network, renewals and inline payload; checksums are made on the threads that ask.
const WORKERS: usize = 2;

static RUNTIME: Mutex<Option<(u32, &'static Runtime)>> = Mutex::new(None);

/// This process's runtime.
fn runtime() -> PyResult<&'static Runtime> {
    let process = std::process::id();
    let mut known = RUNTIME.lock();
    if let Some((owner, runtime)) = *known
        && owner == process
    {
        return Ok(runtime);
    }
    let made = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .thread_name("kelvin")
        .enable_all()
        .build()?;
    // A parent's runtime is left alone: its threads are not here to be joined.
    let made: &'static Runtime = Box::leak(Box::new(made));
    *known = Some((process, made));
    Ok(made)
}

/// The process and the guise that an object was opened in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mode {
    process: u32,
    asynchronous: bool,
}

impl Mode {
    /// Of an object that is opened now.
    pub(crate) fn new(asynchronous: bool) -> Self {
        Self { process: std::process::id(), asynchronous }
    }

    pub(crate) fn is_async(self) -> bool {
        self.asynchronous
    }

    /// Runs a verb: to its end without the GIL, or behind an awaitable. `convert` makes its answer an object.
    pub(crate) fn run<'py, T, F, C, R>(
        self,
        py: Python<'py>,
        verb: F,
        convert: C,
    ) -> PyResult<Bound<'py, PyAny>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send + 'static,
        C: for<'a> FnOnce(Python<'a>, T) -> PyResult<R> + Send + 'static,
        R: for<'a> IntoPyObjectExt<'a>,
    {
        if self.process != std::process::id() {
            return Err(PyRuntimeError::new_err(
                "this was opened before a fork: connect again in the child process",
            ));
        }
        match self.asynchronous {
            true => awaitable(py, verb, convert),
            false => convert(py, block(py, verb)?)?.into_bound_py_any(py),
        }
    }
}

/// Waits without the GIL. Dropping the verb half-way is safe: leases it was granted end at their TTL.
pub(crate) fn block<T: Send>(
    py: Python<'_>,
    verb: impl Future<Output = Result<T, Failure>> + Send,
) -> PyResult<T> {
    let runtime = runtime()?;
    py.detach(|| {
        runtime.block_on(async {
            let mut verb = pin!(verb);
            loop {
                tokio::select! {
                    biased;
                    answer = &mut verb => return answer.map_err(PyErr::from),
                    () = tokio::time::sleep(SIGNALS_EVERY) => Python::attach(|py| py.check_signals())?,
                }
            }
        })
    })
}

/// An `asyncio.Future` of the running loop. Cancelling it drops the verb.
pub(crate) fn awaitable<'py, T, F, C, R>(py: Python<'py>, verb: F, convert: C) -> PyResult<Bound<'py, PyAny>>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Failure>> + Send + 'static,
    C: for<'a> FnOnce(Python<'a>, T) -> PyResult<R> + Send + 'static,
    R: for<'a> IntoPyObjectExt<'a>,
{
    let event_loop = py.import("asyncio")?.call_method0("get_running_loop")?;
    let future = event_loop.call_method0("create_future")?;
    let (to_loop, to_set) = (event_loop.unbind(), future.clone().unbind());
    let task = runtime()?.spawn(async move {
        let answer = verb.await;
        Python::attach(|py| {
            let answer = answer.map_err(PyErr::from).and_then(|answer| convert(py, answer)?.into_py_any(py));
            let (value, error) = match answer {
                Ok(value) => (value, py.None()),
                Err(error) => (py.None(), error.into_value(py).into_any()),
            };
            let settle = Settle { future: to_set };
            // Fails only when the loop is closed: then nobody waits.
            if let Ok(settle) = settle.into_py_any(py) {
                let _ = to_loop.call_method1(py, "call_soon_threadsafe", (settle, value, error));
            }
        });
    });
    future.call_method1("add_done_callback", (Cancel { task: task.abort_handle() },))?;
    Ok(future)
}

/// Settles a future on its own loop, unless it was cancelled meanwhile.
#[pyclass(frozen)]
struct Settle {
    future: Py<PyAny>,
}

#[pymethods]
impl Settle {
    fn __call__(&self, py: Python<'_>, value: Py<PyAny>, error: Py<PyAny>) -> PyResult<()> {
        if self.future.call_method0(py, "done")?.is_truthy(py)? {
            return Ok(());
        }
        match error.is_none(py) {
            true => self.future.call_method1(py, "set_result", (value,))?,
            false => self.future.call_method1(py, "set_exception", (error,))?,
        };
        Ok(())
    }
}

/// Ends the task of a future that is done; one that set it has ended anyway.
#[pyclass(frozen)]
struct Cancel {
    task: AbortHandle,
}

#[pymethods]
impl Cancel {
    fn __call__(&self, _future: Py<PyAny>) {
        self.task.abort();
    }
}
