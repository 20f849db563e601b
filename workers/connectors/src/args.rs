//! What Python hands in, checked.

use std::{collections::BTreeMap, time::Duration};

use kelvin_kvstore::SequenceHash;
use kelvin_proto::{Fingerprint, Shard};
use pyo3::{
    buffer::PyBuffer,
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
    types::{PyByteArray, PyBytes, PyString},
};

/// A day: longer waits and times to live are slips of a unit.
const SECONDS_MAX: f64 = 366.0 * 86_400.0;

/// `kelvin.Fingerprint`.
#[derive(FromPyObject)]
pub(crate) struct FingerprintArg {
    model_digest: String,
    engine: String,
    engine_build: String,
    layout: String,
    dtype: String,
    attributes: BTreeMap<String, String>,
}

impl From<FingerprintArg> for Fingerprint {
    fn from(arg: FingerprintArg) -> Self {
        let FingerprintArg { model_digest, engine, engine_build, layout, dtype, attributes } = arg;
        Self { model_digest, engine, engine_build, layout, dtype, attributes }
    }
}

/// `kelvin.Shard`.
#[derive(FromPyObject)]
pub(crate) struct ShardArg {
    tensor_rank: u32,
    tensor_size: u32,
    pipeline_rank: u32,
    pipeline_size: u32,
}

impl From<ShardArg> for Shard {
    fn from(arg: ShardArg) -> Self {
        Self { tensor: (arg.tensor_rank, arg.tensor_size), pipeline: (arg.pipeline_rank, arg.pipeline_size) }
    }
}

/// Seconds, as Python counts them.
pub(crate) fn duration(what: &str, seconds: f64) -> PyResult<Duration> {
    match (0.0..=SECONDS_MAX).contains(&seconds) {
        true => Ok(Duration::from_secs_f64(seconds)),
        false => {
            Err(PyValueError::new_err(format!("{what} must be 0 to {SECONDS_MAX} seconds, not {seconds}")))
        }
    }
}

/// Token ids: a buffer of 32- or 64-bit integers (numpy, array), or any sequence of integers.
pub(crate) fn tokens(value: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    if value.is_instance_of::<PyBytes>() || value.is_instance_of::<PyString>() {
        return Err(PyTypeError::new_err("token ids are integers, not text or bytes"));
    }
    let py = value.py();
    let wrong = |_| PyValueError::new_err("a token id is an integer from 0 to 4294967295");
    if let Ok(buffer) = PyBuffer::<i64>::get(value) {
        one_axis(buffer.dimensions())?;
        return buffer.to_vec(py)?.into_iter().map(|id| u32::try_from(id).map_err(wrong)).collect();
    }
    if let Ok(buffer) = PyBuffer::<i32>::get(value) {
        one_axis(buffer.dimensions())?;
        return buffer.to_vec(py)?.into_iter().map(|id| u32::try_from(id).map_err(wrong)).collect();
    }
    if let Ok(buffer) = PyBuffer::<u32>::get(value) {
        one_axis(buffer.dimensions())?;
        return buffer.to_vec(py);
    }
    value.extract::<Vec<u32>>().map_err(|error| {
        let message = "token ids are a sequence of integers from 0 to 4294967295";
        let typed = error.is_instance_of::<PyTypeError>(py);
        let outer = if typed { PyTypeError::new_err(message) } else { PyValueError::new_err(message) };
        outer.set_cause(py, Some(error));
        outer
    })
}

fn one_axis(axes: usize) -> PyResult<()> {
    match axes {
        1 => Ok(()),
        _ => Err(PyValueError::new_err(format!("token ids have one axis, not {axes}"))),
    }
}

/// One block's hash.
pub(crate) fn hash(value: &Bound<'_, PyAny>) -> PyResult<SequenceHash> {
    let bytes = value
        .cast::<PyBytes>()
        .map_err(|_| PyTypeError::new_err("a hash is bytes, as Namespace.hashes makes them"))?;
    SequenceHash::try_from(bytes.as_bytes()).map_err(|error| PyValueError::new_err(error.to_string()))
}

/// A sequence of hashes.
pub(crate) fn hashes(value: &Bound<'_, PyAny>) -> PyResult<Vec<SequenceHash>> {
    if value.is_instance_of::<PyBytes>() || value.is_instance_of::<PyByteArray>() {
        return Err(PyTypeError::new_err("hashes are a sequence of bytes, not one of them"));
    }
    value.try_iter()?.map(|item| hash(&item?)).collect()
}

/// Whether a sequence holds hashes rather than token ids. An empty one is either.
pub(crate) fn holds_hashes(value: &Bound<'_, PyAny>) -> bool {
    value.get_item(0).is_ok_and(|first| first.is_instance_of::<PyBytes>())
}
