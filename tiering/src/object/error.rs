//! What goes wrong with packs, and whether asking again helps.

use std::{error::Error as _, fmt, time::Duration};

use object_store::client::{HttpError, HttpErrorKind};

use super::PackError;

/// Why an operation on packs failed.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// The options are wrong; the text says what to change.
    #[error("{0}")]
    Configuration(String),
    /// The blocks given make no pack.
    #[error("{0}")]
    Invalid(&'static str),
    /// There is no such bucket.
    #[error("{action}: there is no such bucket: {place}")]
    NoBucket {
        /// A verb phrase.
        action: &'static str,
        /// The store.
        place: String,
    },
    /// The credentials don't do.
    #[error("{action}: access to {place} is refused: {text}")]
    Refused {
        /// A verb phrase.
        action: &'static str,
        /// The store.
        place: String,
        /// What the server said.
        text: String,
    },
    /// There is no such pack.
    #[error("{action}: there is no such pack")]
    Missing {
        /// A verb phrase.
        action: &'static str,
    },
    /// What is there is not what was written.
    #[error("{action}: {source}")]
    Damaged {
        /// A verb phrase.
        action: &'static str,
        /// What is wrong with it.
        source: PackError,
    },
    /// It took too long.
    #[error("{action}: no answer within {deadline:?}")]
    Timeout {
        /// A verb phrase.
        action: &'static str,
        /// The time it had.
        deadline: Duration,
    },
    /// The store failed lately and is left alone for a while.
    #[error("{action}: the object store failed lately and is left alone for a while")]
    Unavailable {
        /// A verb phrase.
        action: &'static str,
    },
    /// Anything else.
    #[error("{action}: {text}")]
    Failed {
        /// A verb phrase.
        action: &'static str,
        /// What the store said.
        text: String,
    },
}

impl ObjectError {
    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Timeout { .. } | Self::Unavailable { .. } | Self::Failed { .. })
    }
}

/// Why a block was not read. To the store it is a miss.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadFailure {
    /// It fails its checksum, read twice.
    #[error("the block fails its checksum")]
    Damaged,
    /// The pack is not there, or too short for it.
    #[error("the pack is not there")]
    Missing,
    /// It took too long.
    #[error("no answer in time")]
    Timeout,
    /// The object store failed lately and is left alone for a while.
    #[error("the object store is left alone for a while")]
    Unavailable,
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// What one request ran into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    Missing,
    Exists,
    NoBucket,
    Refused(String),
    /// The range leaves the object.
    OutOfRange,
    Timeout,
    /// The breaker is open.
    Unavailable,
    /// May go better the next time.
    Passing(String),
    /// Will not.
    Lasting(String),
}

impl Fault {
    /// Whether the next try may go better.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self, Self::Passing(_) | Self::Timeout)
    }

    /// Whether it speaks against the whole store, not against one object.
    pub(super) fn is_the_stores(&self) -> bool {
        matches!(self, Self::NoBucket | Self::Refused(_) | Self::Timeout | Self::Passing(_))
    }

    pub(super) fn of(error: &object_store::Error) -> Self {
        use object_store::Error;
        let text = || error.to_string();
        match error {
            Error::NotFound { .. } if text().contains("NoSuchBucket") => Self::NoBucket,
            Error::NotFound { .. } => Self::Missing,
            Error::AlreadyExists { .. } | Error::Precondition { .. } => Self::Exists,
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => Self::Refused(brief(&text())),
            Error::Generic { .. } => Self::of_generic(error),
            Error::JoinError { .. } => Self::Passing(text()),
            _ => Self::Lasting(brief(&text())),
        }
    }

    /// The HTTP status is only in the text; what has none did not get that far.
    fn of_generic(error: &object_store::Error) -> Self {
        let whole = chain(error);
        let text = brief(&whole);
        let mut source = error.source();
        while let Some(error) = source {
            match error.downcast_ref::<HttpError>().map(HttpError::kind) {
                Some(HttpErrorKind::Timeout) => return Self::Timeout,
                Some(_) => return Self::Passing(text),
                None => source = error.source(),
            }
        }
        let says = |what| whole.contains(what);
        match status(&whole) {
            Some(401 | 403) => Self::Refused(text),
            Some(404) if says("NoSuchBucket") => Self::NoBucket,
            Some(404) => Self::Missing,
            Some(416) => Self::OutOfRange,
            None if says("Requested ") || says("Wanted range ") => Self::OutOfRange,
            Some(408 | 429 | 500..) | None => Self::Passing(text),
            Some(_) => Self::Lasting(text),
        }
    }
}

/// `... status code: 503 ...`
fn status(text: &str) -> Option<u16> {
    text.split_once("status code: ")?.1.get(..3)?.parse().ok()
}

/// An error and its causes, those left out whose text is part of what is said already.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

/// Servers answer with pages; a line is enough, and where they give a code, that and its message.
fn brief(text: &str) -> String {
    const CHARS_MAX: usize = 300;
    let tag = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>")).map(|(value, _)| value)
    };
    let said = tag("Code").map(|code| format!("{code} {}", tag("Message").unwrap_or_default()));
    let text = said.as_deref().unwrap_or(text);
    let mut line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = line.char_indices().nth(CHARS_MAX) {
        line.truncate(end);
        line.push_str(" ...");
    }
    line
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("not found"),
            Self::Exists => f.write_str("exists"),
            Self::NoBucket => f.write_str("no such bucket"),
            Self::OutOfRange => f.write_str("the range leaves the object"),
            Self::Timeout => f.write_str("no answer in time"),
            Self::Unavailable => f.write_str("left alone for a while"),
            Self::Refused(text) | Self::Passing(text) | Self::Lasting(text) => f.write_str(text),
        }
    }
}

impl From<Fault> for ReadFailure {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Missing | Fault::OutOfRange => Self::Missing,
            Fault::Timeout => Self::Timeout,
            Fault::Unavailable => Self::Unavailable,
            Fault::Refused(text) => Self::Failed(format!("access refused: {text}")),
            // A bucket that is gone may be a wrong turn on the way: no word about the pack.
            Fault::NoBucket | Fault::Exists | Fault::Passing(_) | Fault::Lasting(_) => {
                Self::Failed(fault.to_string())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(text: &str) -> object_store::Error {
        object_store::Error::Generic { store: "S3", source: text.into() }
    }

    #[test]
    fn statuses_are_read_from_the_text() {
        let of = |status: &str| {
            Fault::of(&generic(&format!("Server returned non-2xx status code: {status}: <x/>")))
        };
        assert!(of("503 Service Unavailable").is_passing());
        assert!(of("500 Internal Server Error").is_passing());
        assert!(of("429 Too Many Requests").is_passing());
        assert!(matches!(of("400 Bad Request"), Fault::Lasting(_)));
        assert!(matches!(of("403 Forbidden"), Fault::Refused(_)));
        assert_eq!(of("404 Not Found"), Fault::Missing);
        assert_eq!(of("404 Not Found <Code>NoSuchBucket</Code>"), Fault::NoBucket);
        assert_eq!(of("416 Range Not Satisfiable"), Fault::OutOfRange);
        assert!(Fault::of(&generic("connection closed")).is_passing());
        assert_eq!(Fault::of(&generic("Requested 0..9, got 0..5")), Fault::OutOfRange);
        let cut = HttpError::new(HttpErrorKind::Interrupted, std::io::Error::other("cut"));
        let cut = object_store::Error::Generic { store: "S3", source: Box::new(cut) };
        assert!(Fault::of(&cut).is_passing());
    }

    #[test]
    fn long_answers_are_cut() {
        assert!(brief(&"ä \n".repeat(10_000)).chars().count() < 310);
        assert_eq!(brief("a\n  b"), "a b");
        let page = "403: <Error><Code>AccessDenied</Code><Message>Not you.</Message></Error>";
        assert_eq!(brief(page), "AccessDenied Not you.");
    }
}
