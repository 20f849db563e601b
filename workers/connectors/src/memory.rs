//! Leased bytes as other libraries see them: the buffer protocol and DLPack.
//!
//! # Invariants
//! Every export owns an `Arc` of what keeps its bytes valid and unused by others ([`Held`], [`Filling`]); a
//! lease that is released meanwhile goes back to the store with the last of them. Bytes that are being filled
//! are committed only while nothing is exported.

use std::{
    ffi::{CStr, c_int, c_void},
    ptr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use kelvin_kvstore::{
    SequenceHash,
    client::{self, ChecksumMismatch},
};
use parking_lot::Mutex;
use pyo3::{exceptions::PyBufferError, ffi, prelude::*};

/// Where a block's bytes are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Range {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: an address. Whoever reads or writes there holds what makes that valid, see `Held` and `Filling`.
unsafe impl Send for Range {}
// SAFETY: as above.
unsafe impl Sync for Range {}

/// Keeps exported bytes.
pub(crate) trait Keeper: Send + Sync + 'static {
    /// An export begins.
    fn export(&self) {}
    /// An export ended.
    fn end_export(&self) {}
}

/// A read lease and what it found.
pub(crate) struct Held {
    lease: client::ReadLease,
    verified: OnceLock<Range>,
}

impl Keeper for Held {}

impl Held {
    pub(crate) fn new(lease: client::ReadLease) -> Self {
        Self { lease, verified: OnceLock::new() }
    }

    /// The bytes, once they were found to be those committed; one pass over them the first time.
    pub(crate) fn range(&self) -> Result<Range, ChecksumMismatch> {
        if let Some(range) = self.verified.get() {
            return Ok(*range);
        }
        let bytes = self.lease.verified()?;
        Ok(*self.verified.get_or_init(|| Range { start: bytes.as_ptr().cast_mut(), bytes: bytes.len() }))
    }

    pub(crate) fn bytes(&self) -> Result<&[u8], ChecksumMismatch> {
        let range = self.range()?;
        // SAFETY: the lease's own bytes, which stay where they are as long as it lives.
        Ok(unsafe { std::slice::from_raw_parts(range.start, range.bytes) })
    }

    pub(crate) fn hash(&self) -> SequenceHash {
        self.lease.hash()
    }
}

/// A write lease, until it is committed.
pub(crate) struct Filling {
    lease: Mutex<Option<client::WriteLease>>,
    exports: AtomicUsize,
}

impl Keeper for Filling {
    fn export(&self) {
        self.exports.fetch_add(1, Ordering::AcqRel);
    }

    fn end_export(&self) {
        self.exports.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Filling {
    pub(crate) fn new(lease: client::WriteLease) -> Self {
        Self { lease: Mutex::new(Some(lease)), exports: AtomicUsize::new(0) }
    }

    /// The bytes to fill, as long as they are not committed. Makes a checksum known so far void.
    pub(crate) fn range(&self) -> Option<Range> {
        let mut lease = self.lease.lock();
        let bytes = lease.as_mut()?.bytes_mut();
        Some(Range { start: bytes.as_mut_ptr(), bytes: bytes.len() })
    }

    pub(crate) fn is_exported(&self) -> bool {
        self.exports.load(Ordering::Acquire) > 0
    }

    /// The lease, to fill it.
    pub(crate) fn lock(&self) -> parking_lot::MutexGuard<'_, Option<client::WriteLease>> {
        self.lease.lock()
    }
}

/// One export: its end is told to the keeper.
struct Export<K: Keeper>(Arc<K>);

impl<K: Keeper> Export<K> {
    fn new(keeper: Arc<K>) -> Box<Self> {
        keeper.export();
        Box::new(Self(keeper))
    }
}

impl<K: Keeper> Drop for Export<K> {
    fn drop(&mut self) {
        self.0.end_export();
    }
}

/// Fills `view` with the bytes of `owner`.
///
/// # Safety
/// `view` is what `__getbuffer__` was given, `range` is valid as long as `keeper` lives, and writable unless
/// `readonly`.
pub(crate) unsafe fn export_buffer<K: Keeper>(
    owner: &Bound<'_, PyAny>,
    keeper: Arc<K>,
    range: Range,
    readonly: bool,
    view: *mut ffi::Py_buffer,
    flags: c_int,
) -> PyResult<()> {
    if view.is_null() {
        return Err(PyBufferError::new_err("no view to fill"));
    }
    let Ok(bytes) = ffi::Py_ssize_t::try_from(range.bytes) else {
        return Err(PyBufferError::new_err("too large for a buffer"));
    };
    // SAFETY: the caller's promises; the view holds a reference to `owner` from here on.
    let status = unsafe {
        ffi::PyBuffer_FillInfo(view, owner.as_ptr(), range.start.cast(), bytes, readonly.into(), flags)
    };
    if status != 0 {
        return Err(PyErr::fetch(owner.py()));
    }
    let export = Box::into_raw(Export::new(keeper));
    // SAFETY: `view` was just filled; `internal` is its exporter's to use, and `release_buffer` takes it back.
    unsafe { (*view).internal = export.cast() };
    Ok(())
}

/// Ends the export of a view.
///
/// # Safety
/// `view` was filled by [`export_buffer`] with the same `K`, and is given here once.
pub(crate) unsafe fn release_buffer<K: Keeper>(view: *mut ffi::Py_buffer) {
    // SAFETY: the caller's promise: `internal` is the box that `export_buffer` put there.
    unsafe {
        let export = (*view).internal.cast::<Export<K>>();
        (*view).internal = ptr::null_mut();
        if !export.is_null() {
            drop(Box::from_raw(export));
        }
    }
}

// DLPack: https://dmlc.github.io/dlpack/latest/c_api.html

/// `kDLCPU`.
pub(crate) const DLPACK_CPU: i32 = 1;
const DLPACK_UINT: u8 = 1;
const DLPACK_READ_ONLY: u64 = 1;
const UNVERSIONED: &CStr = c"dltensor";
const VERSIONED: &CStr = c"dltensor_versioned";

#[repr(C)]
struct DlTensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    ndim: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *mut i64,
    strides: *mut i64,
    byte_offset: u64,
}

#[repr(C)]
struct DlManaged {
    tensor: DlTensor,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut DlManaged)>,
}

#[repr(C)]
struct DlManagedVersioned {
    version: [u32; 2],
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut DlManagedVersioned)>,
    flags: u64,
    tensor: DlTensor,
}

const _: () = assert!(size_of::<DlTensor>() == 48, "as the header lays it out on 64 bits");

/// What an exported tensor keeps.
struct Context<K: Keeper> {
    _export: Box<Export<K>>,
    shape: [i64; 1],
    strides: [i64; 1],
}

fn tensor<K: Keeper>(keeper: Arc<K>, range: Range) -> (DlTensor, *mut Context<K>) {
    let context = Box::into_raw(Box::new(Context {
        _export: Export::new(keeper),
        shape: [range.bytes as i64],
        strides: [1],
    }));
    // SAFETY: just made, and freed by the tensor's deleter alone.
    let (shape, strides) = unsafe { (&raw mut (*context).shape, &raw mut (*context).strides) };
    let tensor = DlTensor {
        data: range.start.cast(),
        device_type: DLPACK_CPU,
        device_id: 0,
        ndim: 1,
        code: DLPACK_UINT,
        bits: 8,
        lanes: 1,
        shape: shape.cast(),
        strides: strides.cast(),
        byte_offset: 0,
    };
    (tensor, context)
}

/// A capsule with the bytes as a one-dimensional tensor of `uint8`; `versioned` where the consumer knows
/// DLPack 1.0, without which nothing can be said to be read-only.
pub(crate) fn export_dlpack<'py, K: Keeper>(
    py: Python<'py>,
    keeper: Arc<K>,
    range: Range,
    readonly: bool,
    versioned: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let (tensor, context) = tensor(keeper, range);
    let context = context.cast();
    let capsule = if versioned {
        let managed = Box::into_raw(Box::new(DlManagedVersioned {
            version: [1, 0],
            context,
            deleter: Some(delete_versioned::<K>),
            flags: if readonly { DLPACK_READ_ONLY } else { 0 },
            tensor,
        }));
        // SAFETY: a new capsule; its destructor frees `managed` unless a consumer took it and renamed it.
        unsafe { ffi::PyCapsule_New(managed.cast(), VERSIONED.as_ptr(), Some(destroy_versioned)) }
    } else {
        let managed = Box::into_raw(Box::new(DlManaged { tensor, context, deleter: Some(delete::<K>) }));
        // SAFETY: as above.
        unsafe { ffi::PyCapsule_New(managed.cast(), UNVERSIONED.as_ptr(), Some(destroy)) }
    };
    // SAFETY: a new reference, or null with an exception set. (Out of memory then; the tensor leaks.)
    unsafe { Bound::from_owned_ptr_or_err(py, capsule) }
}

/// The consumer has done with it; from any thread, with or without the GIL: nothing of Python is touched.
unsafe extern "C" fn delete<K: Keeper>(managed: *mut DlManaged) {
    // SAFETY: made by `export_dlpack`; consumers call this once.
    unsafe {
        let managed = Box::from_raw(managed);
        drop(Box::from_raw(managed.context.cast::<Context<K>>()));
    }
}

/// As [`delete`].
unsafe extern "C" fn delete_versioned<K: Keeper>(managed: *mut DlManagedVersioned) {
    // SAFETY: as in `delete`.
    unsafe {
        let managed = Box::from_raw(managed);
        drop(Box::from_raw(managed.context.cast::<Context<K>>()));
    }
}

/// A capsule goes; unless it was renamed, nobody took the tensor.
unsafe extern "C" fn destroy(capsule: *mut ffi::PyObject) {
    // SAFETY: a capsule of ours, in its destructor; the pointer is what `export_dlpack` put there.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, UNVERSIONED.as_ptr()) == 1 {
            let managed = ffi::PyCapsule_GetPointer(capsule, UNVERSIONED.as_ptr()).cast::<DlManaged>();
            if let Some(deleter) = (*managed).deleter {
                deleter(managed);
            }
        }
    }
}

/// As [`destroy`].
unsafe extern "C" fn destroy_versioned(capsule: *mut ffi::PyObject) {
    // SAFETY: as in `destroy`.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, VERSIONED.as_ptr()) == 1 {
            let managed = ffi::PyCapsule_GetPointer(capsule, VERSIONED.as_ptr()).cast::<DlManagedVersioned>();
            if let Some(deleter) = (*managed).deleter {
                deleter(managed);
            }
        }
    }
}

/// Any object's bytes, borrowed by the buffer protocol whatever their format.
pub(crate) struct Source(Box<ffi::Py_buffer>);

// SAFETY: the bytes stay valid until the view is released, from whatever thread they are read; releasing takes
// the GIL, see `drop`.
unsafe impl Send for Source {}
// SAFETY: as above; it is only read.
unsafe impl Sync for Source {}

impl Source {
    /// Contiguous bytes only.
    pub(crate) fn get(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        // SAFETY: all zeros is a `Py_buffer`; CPython fills it or sets an exception.
        let mut view: Box<ffi::Py_buffer> = Box::new(unsafe { std::mem::zeroed() });
        // SAFETY: `view` stays where it is, in its box, until it is released.
        let status = unsafe { ffi::PyObject_GetBuffer(object.as_ptr(), &mut *view, ffi::PyBUF_SIMPLE) };
        match status {
            0 => Ok(Self(view)),
            _ => Err(PyErr::fetch(object.py())),
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match usize::try_from(self.0.len) {
            Ok(bytes @ 1..) if !self.0.buf.is_null() => {
                // SAFETY: valid until released. Should another Python thread write there meanwhile, the block
                // holds a mixture, and its checksum is that of the mixture or refused.
                unsafe { std::slice::from_raw_parts(self.0.buf.cast(), bytes) }
            }
            _ => &[],
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        // Without an interpreter there is nothing left to give back.
        Python::try_attach(|_| {
            // SAFETY: filled by `PyObject_GetBuffer`, released once, with the GIL.
            unsafe { ffi::PyBuffer_Release(&mut *self.0) };
        });
    }
}
