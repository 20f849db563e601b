//! Leases as Python objects.

use std::{
    ffi::c_int,
    sync::{Arc, OnceLock},
};

use kelvin_kvstore::client;
use kelvin_proto::kv::v1::Tier;
use parking_lot::Mutex;
use pyo3::{
    exceptions::{PyBufferError, PyIndexError, PyValueError},
    ffi,
    prelude::*,
    types::{PyBytes, PyList, PySlice},
};

use crate::{
    answers::{BlockStatus, tier_name},
    error::Failure,
    memory::{self, DLPACK_CPU, Filling, Held, Source},
};

/// A block's bytes to read, in the store's memory or in a copy that came through gRPC.
#[pyclass(frozen, weakref, module = "kelvin")]
pub(crate) struct ReadLease {
    held: Mutex<Option<Arc<Held>>>,
    /// The lease again, from when its bytes were given to somebody who keeps this object but no view: then it
    /// goes back with this object.
    kept: OnceLock<Arc<Held>>,
    #[pyo3(get)]
    hash: Py<PyBytes>,
    #[pyo3(get)]
    nbytes: usize,
    tier: Tier,
}

impl ReadLease {
    pub(crate) fn new(py: Python<'_>, held: Arc<Held>, tier: Tier, nbytes: usize) -> Self {
        let hash = PyBytes::new(py, &held.hash().to_bytes()).unbind();
        Self { held: Mutex::new(Some(held)), kept: OnceLock::new(), hash, nbytes, tier }
    }

    pub(crate) fn held(&self) -> PyResult<Arc<Held>> {
        self.held.lock().clone().ok_or_else(|| PyValueError::new_err("the lease was released"))
    }
}

/// Whether a consumer of the buffer protocol keeps the view as long as the bytes. Those that want no shape
/// mostly copy at once, but `torch.frombuffer` lets go of the view and keeps the address and the object.
fn keeps_view(flags: c_int) -> bool {
    flags & (ffi::PyBUF_FORMAT | ffi::PyBUF_ND) != 0
}

/// What DLPack's consumers ask for.
fn check_dlpack(
    max_version: Option<(u32, u32)>,
    dl_device: Option<(i32, i32)>,
    copy: Option<bool>,
) -> PyResult<bool> {
    if dl_device.is_some_and(|device| device != (DLPACK_CPU, 0)) {
        return Err(PyBufferError::new_err("a block is in host memory: DLPack device (1, 0)"));
    }
    if copy == Some(true) {
        return Err(PyBufferError::new_err("a lease exports its memory itself, never a copy"));
    }
    Ok(max_version.is_some_and(|(major, _)| major >= 1))
}

#[pymethods]
impl ReadLease {
    /// Which tier had the block when it was leased.
    #[getter]
    fn tier(&self) -> &'static str {
        tier_name(self.tier)
    }

    #[getter]
    fn released(&self) -> bool {
        self.held.lock().is_none()
    }

    /// Gives the block back: now, or when the last view of its bytes goes.
    pub(crate) fn release(&self) {
        let held = self.held.lock().take();
        drop(held);
    }

    fn tobytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let held = self.held()?;
        Ok(PyBytes::new(py, held.bytes().map_err(Failure::from)?))
    }

    fn __bytes__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        self.tobytes(py)
    }

    fn __len__(&self) -> usize {
        self.nbytes
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, _exception: &Bound<'_, PyAny>) {
        self.release();
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let state = if self.released() { "released" } else { tier_name(self.tier) };
        format!("<kelvin.ReadLease {} {} bytes, {state}>", hex(self.hash.as_bytes(py)), self.nbytes)
    }

    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let held = slf.get().held()?;
        let range = held.range().map_err(Failure::from)?;
        if !keeps_view(flags) {
            slf.get().kept.get_or_init(|| held.clone());
        }
        // SAFETY: Python gave the view; `held` keeps the range; read-only.
        unsafe { memory::export_buffer(slf.as_any(), held, range, true, view, flags) }
    }

    unsafe fn __releasebuffer__(&self, view: *mut ffi::Py_buffer) {
        // SAFETY: Python gives back what `__getbuffer__` filled.
        unsafe { memory::release_buffer::<Held>(view) };
    }

    #[pyo3(signature = (*, stream=None, max_version=None, dl_device=None, copy=None))]
    fn __dlpack__<'py>(
        &self,
        py: Python<'py>,
        stream: Option<Py<PyAny>>,
        max_version: Option<(u32, u32)>,
        dl_device: Option<(i32, i32)>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let _ = stream;
        if !check_dlpack(max_version, dl_device, copy)? {
            return Err(PyBufferError::new_err(
                "DLPack before 1.0 cannot say that memory is read-only: use the buffer protocol \
                 (numpy.frombuffer, torch.frombuffer)",
            ));
        }
        let held = self.held()?;
        let range = held.range().map_err(Failure::from)?;
        memory::export_dlpack(py, held, range, true, true)
    }

    fn __dlpack_device__(&self) -> (i32, i32) {
        (DLPACK_CPU, 0)
    }
}

/// A block's bytes to fill, then to commit.
#[pyclass(frozen, weakref, module = "kelvin")]
pub(crate) struct WriteLease {
    filling: Mutex<Option<Arc<Filling>>>,
    #[pyo3(get)]
    hash: Py<PyBytes>,
    #[pyo3(get)]
    nbytes: usize,
}

impl WriteLease {
    pub(crate) fn new(py: Python<'_>, lease: client::WriteLease, nbytes: usize) -> Self {
        let hash = PyBytes::new(py, &lease.hash().to_bytes()).unbind();
        Self { filling: Mutex::new(Some(Arc::new(Filling::new(lease)))), hash, nbytes }
    }

    fn filling(&self) -> PyResult<Arc<Filling>> {
        self.filling.lock().clone().ok_or_else(|| PyValueError::new_err("the lease was committed or aborted"))
    }

    /// Takes the leases to commit them: all, or none and an exception.
    pub(crate) fn take(leases: &[Bound<'_, Self>]) -> PyResult<Vec<client::WriteLease>> {
        let mut fillings: Vec<Arc<Filling>> = Vec::with_capacity(leases.len());
        for lease in leases {
            let filling = lease.get().filling()?;
            if filling.is_exported() {
                return Err(PyBufferError::new_err(format!(
                    "block {} is still looked at: let go of every memoryview, array and tensor on a lease \
                     before it is committed",
                    hex(lease.get().hash.as_bytes(lease.py()))
                )));
            }
            if fillings.iter().any(|known| Arc::ptr_eq(known, &filling)) {
                return Err(PyValueError::new_err("a lease is named twice"));
            }
            fillings.push(filling);
        }
        let taken: Vec<_> = fillings.iter().filter_map(|filling| filling.lock().take()).collect();
        for lease in leases {
            lease.get().filling.lock().take();
        }
        Ok(taken)
    }
}

#[pymethods]
impl WriteLease {
    /// Whether it is neither committed nor aborted.
    #[getter]
    fn open(&self) -> bool {
        self.filling.lock().is_some()
    }

    /// Copies a whole block in, making its checksum on the way.
    fn fill(&self, py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let source = Source::get(data)?;
        if source.bytes().len() != self.nbytes {
            return Err(PyValueError::new_err(format!(
                "a block has {} bytes, not {}",
                self.nbytes,
                source.bytes().len()
            )));
        }
        let filling = self.filling()?;
        if filling.is_exported() {
            return Err(PyBufferError::new_err("fill copies over bytes that are looked at"));
        }
        py.detach(|| {
            if let Some(lease) = filling.lock().as_mut() {
                lease.fill(source.bytes());
            }
        });
        Ok(())
    }

    /// Gives the reservation back: now, or when the last view of its bytes goes.
    pub(crate) fn abort(&self) {
        let filling = self.filling.lock().take();
        drop(filling);
    }

    fn __len__(&self) -> usize {
        self.nbytes
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, _exception: &Bound<'_, PyAny>) {
        self.abort();
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let state = if self.open() { "open" } else { "done" };
        format!("<kelvin.WriteLease {} {} bytes, {state}>", hex(self.hash.as_bytes(py)), self.nbytes)
    }

    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let filling = slf.get().filling()?;
        if !keeps_view(flags) {
            return Err(PyBufferError::new_err(
                "this takes an address and keeps no view, so that nobody could tell when the block is no longer \
                 written to: give it memoryview(lease), or use torch.from_dlpack(lease)",
            ));
        }
        let range = filling.range().ok_or_else(|| PyValueError::new_err("the lease was committed"))?;
        // SAFETY: Python gave the view; `filling` keeps the range, and is not committed while it is exported.
        unsafe { memory::export_buffer(slf.as_any(), filling, range, false, view, flags) }
    }

    unsafe fn __releasebuffer__(&self, view: *mut ffi::Py_buffer) {
        // SAFETY: Python gives back what `__getbuffer__` filled.
        unsafe { memory::release_buffer::<Filling>(view) };
    }

    #[pyo3(signature = (*, stream=None, max_version=None, dl_device=None, copy=None))]
    fn __dlpack__<'py>(
        &self,
        py: Python<'py>,
        stream: Option<Py<PyAny>>,
        max_version: Option<(u32, u32)>,
        dl_device: Option<(i32, i32)>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let _ = stream;
        let versioned = check_dlpack(max_version, dl_device, copy)?;
        let filling = self.filling()?;
        let range = filling.range().ok_or_else(|| PyValueError::new_err("the lease was committed"))?;
        memory::export_dlpack(py, filling, range, false, versioned)
    }

    fn __dlpack_device__(&self) -> (i32, i32) {
        (DLPACK_CPU, 0)
    }
}

/// Leases on a leading run, and why the run ended.
#[pyclass(frozen, sequence, module = "kelvin")]
pub(crate) struct Acquired {
    leases: Py<PyList>,
    #[pyo3(get)]
    stopped: Option<BlockStatus>,
}

impl Acquired {
    pub(crate) fn new(
        py: Python<'_>,
        leases: Vec<ReadLease>,
        stopped: Option<BlockStatus>,
    ) -> PyResult<Self> {
        let leases: Vec<_> = leases.into_iter().map(|lease| Py::new(py, lease)).collect::<PyResult<_>>()?;
        Ok(Self { leases: PyList::new(py, leases)?.unbind(), stopped })
    }
}

#[pymethods]
impl Acquired {
    fn __len__(&self, py: Python<'_>) -> usize {
        self.leases.bind(py).len()
    }

    fn __getitem__<'py>(&self, py: Python<'py>, index: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let leases = self.leases.bind(py).as_any();
        if !index.is_instance_of::<PySlice>() {
            let count = self.leases.bind(py).len() as isize;
            let position: isize = index.extract()?;
            if !(-count..count).contains(&position) {
                return Err(PyIndexError::new_err("there are fewer leases"));
            }
        }
        leases.get_item(index)
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(self.leases.bind(py).as_any().try_iter()?.into_any())
    }

    /// Gives all of them back.
    fn release(&self, py: Python<'_>) -> PyResult<()> {
        for lease in self.leases.bind(py).iter() {
            lease.cast::<ReadLease>()?.get().release();
        }
        Ok(())
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyAny>) -> PyResult<()> {
        self.release(py)
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        format!("<kelvin.Acquired {} leases, stopped: {:?}>", self.leases.bind(py).len(), self.stopped)
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
