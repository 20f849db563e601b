//! `kelvin.Parts`: leases of which parts are read.

use std::{sync::Arc, time::Duration};

use kelvin_kvstore::{self as kvstore, PartLease, SequenceHash};
use parking_lot::Mutex;
use pyo3::{exceptions::PyValueError, prelude::*, types::PyBytes};

use crate::{answers::BlockStatus, error::Failure, runtime::Mode};

/// Leases on a leading run without their bytes, and why the run ended.
#[pyclass(frozen, weakref, module = "kelvin")]
pub(crate) struct Parts {
    namespace: kvstore::Namespace,
    mode: Mode,
    leases: Mutex<Option<Arc<Vec<PartLease>>>>,
    hashes: Vec<SequenceHash>,
    #[pyo3(get)]
    stopped: Option<BlockStatus>,
}

impl Parts {
    pub(crate) fn new(namespace: kvstore::Namespace, mode: Mode, leased: kvstore::Leased) -> Self {
        let hashes = leased.leases.iter().map(PartLease::hash).collect();
        let leases = Mutex::new(Some(Arc::new(leased.leases)));
        Self { namespace, mode, leases, hashes, stopped: leased.stopped.map(BlockStatus::from) }
    }
}

/// Leases, for `Namespace.lease`.
pub(crate) async fn lease(
    namespace: &kvstore::Namespace,
    hashes: &[SequenceHash],
    wait: Duration,
) -> Result<kvstore::Leased, Failure> {
    Ok(namespace.lease(hashes, wait).await?)
}

#[pymethods]
impl Parts {
    #[getter]
    fn hashes<'py>(&self, py: Python<'py>) -> Vec<Bound<'py, PyBytes>> {
        self.hashes.iter().map(|hash| PyBytes::new(py, &hash.to_bytes())).collect()
    }

    /// `nbytes` of each block from `offset` on.
    fn read<'py>(&self, py: Python<'py>, offset: u64, nbytes: u64) -> PyResult<Bound<'py, PyAny>> {
        let released = || PyValueError::new_err("the leases were released");
        let leases = self.leases.lock().clone().ok_or_else(released)?;
        let namespace = self.namespace.clone();
        let range = offset..offset.saturating_add(nbytes);
        let verb = async move {
            let parts = namespace.read_parts(&leases, range).await?;
            Ok(parts.into_iter().map(|part| part.into_owned()).collect::<Vec<_>>())
        };
        self.mode.run(py, verb, |py, parts: Vec<Vec<u8>>| {
            Ok(parts.iter().map(|part| PyBytes::new(py, part).unbind()).collect::<Vec<_>>())
        })
    }

    fn __len__(&self) -> usize {
        self.hashes.len()
    }

    /// Gives the blocks back: now, or when the last read ends.
    fn release(&self) {
        let leases = self.leases.lock().take();
        drop(leases);
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, _exception: &Bound<'_, PyAny>) {
        self.release();
    }

    fn __repr__(&self) -> String {
        format!("<kelvin.Parts of {} blocks, stopped: {:?}>", self.hashes.len(), self.stopped)
    }
}
