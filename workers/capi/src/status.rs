//! What calls answer.

use std::{
    cell::RefCell,
    ffi::{CString, c_char},
    panic::{AssertUnwindSafe, catch_unwind},
};

use kelvin_kvstore::client;
use kelvin_proto::{Reason, kv::v1::BlockStatus};

/// How a call ended.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KelvinStatus {
    /// It did what it says.
    Ok = 0,
    /// An argument makes no sense: nothing was done.
    Invalid = 1,
    /// The store is away or overloaded: the same call can succeed later.
    Unavailable = 2,
    /// The store refused, and will again.
    Refused = 3,
    /// A block's bytes are not those that were committed. It is a miss; the store is told.
    Damaged = 4,
    /// A fault of this library.
    Internal = 5,
}

/// What became of one block of a call.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KelvinBlockStatus {
    /// Nothing to say: the run did not end early.
    None = 0,
    /// Leased for reading.
    Leased = 1,
    /// Not stored, nor being filled.
    Missing = 2,
    /// Being filled by another client.
    Filling = 3,
    /// Reserved: yours to fill.
    Reserved = 4,
    /// Stored already.
    AlreadyStored = 5,
    /// Committed.
    Stored = 6,
    /// Stored before with other bytes; the first copy stays.
    Conflict = 7,
    /// No slot is free and none can be evicted.
    NoSpace = 8,
    /// The lease had ended.
    StaleLease = 9,
    /// The bytes in the slot are not those that were announced.
    ChecksumMismatch = 10,
    /// Done.
    Done = 11,
    /// Not looked at, because an earlier block of the call ended the run.
    Skipped = 12,
    /// The parent is neither stored nor being filled.
    NoParent = 13,
    /// One lease too many for this client.
    LeaseLimit = 14,
}

impl From<BlockStatus> for KelvinBlockStatus {
    fn from(status: BlockStatus) -> Self {
        match status {
            BlockStatus::Unspecified => Self::None,
            BlockStatus::Leased => Self::Leased,
            BlockStatus::Missing => Self::Missing,
            BlockStatus::Filling => Self::Filling,
            BlockStatus::Reserved => Self::Reserved,
            BlockStatus::AlreadyStored => Self::AlreadyStored,
            BlockStatus::Stored => Self::Stored,
            BlockStatus::Conflict => Self::Conflict,
            BlockStatus::NoSpace => Self::NoSpace,
            BlockStatus::StaleLease => Self::StaleLease,
            BlockStatus::ChecksumMismatch => Self::ChecksumMismatch,
            BlockStatus::Ok => Self::Done,
            BlockStatus::Skipped => Self::Skipped,
            BlockStatus::NoParent => Self::NoParent,
            BlockStatus::LeaseLimit => Self::LeaseLimit,
        }
    }
}

/// A call that failed, and why.
pub(crate) struct Failure(KelvinStatus, String);

impl Failure {
    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self(KelvinStatus::Invalid, text.into())
    }
}

impl From<client::Error> for Failure {
    fn from(error: client::Error) -> Self {
        let status = match &error {
            client::Error::Refused(refusal) if refusal.reason == Reason::InvalidArgument => {
                KelvinStatus::Invalid
            }
            error if error.is_retryable() => KelvinStatus::Unavailable,
            _ => KelvinStatus::Refused,
        };
        Self(status, error.to_string())
    }
}

impl From<client::ChecksumMismatch> for Failure {
    fn from(error: client::ChecksumMismatch) -> Self {
        Self(KelvinStatus::Damaged, error.to_string())
    }
}

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// Runs a call; a failure is kept for [`kelvin_last_error`]. A panic ends here, since it must not reach C.
pub(crate) fn call(work: impl FnOnce() -> Result<(), Failure>) -> KelvinStatus {
    let outcome = catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(Failure(KelvinStatus::Internal, "the library panicked".into())));
    let Err(Failure(status, text)) = outcome else { return KelvinStatus::Ok };
    let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
    LAST_ERROR.with(|last| last.replace(text));
    status
}

/// Why the last call of this thread that failed did so, in words; "" when none has. Valid until the thread's next
/// call.
#[unsafe(no_mangle)]
pub extern "C" fn kelvin_last_error() -> *const c_char {
    LAST_ERROR.with(|last| last.borrow().as_ptr())
}
