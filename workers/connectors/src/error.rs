//! Failures, as Python's exceptions.

use kelvin_kvstore::client::{ChecksumMismatch, Error};
use pyo3::{exceptions::PyRuntimeError, prelude::*};

/// What ends a verb.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The client's or the store's.
    Store(Error),
    /// A block that was asked for by itself is damaged.
    Damaged(ChecksumMismatch),
    /// A block that was asked for by itself is not there.
    Missing(String),
    /// Already an exception.
    Python(PyErr),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

impl From<ChecksumMismatch> for Failure {
    fn from(error: ChecksumMismatch) -> Self {
        Self::Damaged(error)
    }
}

impl From<PyErr> for Failure {
    fn from(error: PyErr) -> Self {
        Self::Python(error)
    }
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Python(error) => error,
            Failure::Store(Error::Refused(refusal)) => {
                kelvin(&refusal.message, refusal.reason.name(), refusal.reason.is_retryable())
            }
            Failure::Store(error @ Error::Unreachable { .. }) => kelvin(&chain(&error), "UNAVAILABLE", true),
            Failure::Store(error @ Error::Protocol(_)) => kelvin(&error.to_string(), "PROTOCOL", false),
            Failure::Damaged(error) => kelvin(&error.to_string(), "CHECKSUM_MISMATCH", false),
            Failure::Missing(message) => kelvin(&message, "UNKNOWN_BLOCK", false),
        }
    }
}

/// An error with what caused it, which is where a refused connection says so.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let next_text = next.to_string();
        if !text.contains(&next_text) {
            text = format!("{text}: {next_text}");
        }
        cause = next.source();
    }
    text
}

/// `kelvin.errors.from_reason(message, reason, retryable)`.
fn kelvin(message: &str, reason: &str, retryable: bool) -> PyErr {
    Python::attach(|py| {
        let made = py
            .import("kelvin.errors")
            .and_then(|module| module.call_method1("from_reason", (message, reason, retryable)));
        match made {
            Ok(exception) => PyErr::from_value(exception),
            Err(_) => PyRuntimeError::new_err(format!("{message} ({reason})")),
        }
    })
}
