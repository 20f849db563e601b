//! What can go wrong with a catalog, and whether trying again helps.

use std::{io, path::PathBuf};

/// A catalog could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// Another process (or another catalog of this one) has the data directory.
    #[error(
        "the data directory {} is in use by another process{}: stop it, or give this store a directory of its own",
        dir.display(), holder.map_or(String::new(), |pid| format!(" (pid {pid})"))
    )]
    InUse {
        /// The data directory.
        dir: PathBuf,
        /// Who has it, where it could be found out.
        holder: Option<u32>,
    },
    /// Written by a newer Kelvin.
    #[error(
        "the catalog in {} has format {found}, and this build knows up to {known}: run the newer Kelvin that \
         wrote it, or move the directory away to start empty",
        dir.display()
    )]
    NewerFormat {
        /// The data directory.
        dir: PathBuf,
        /// Its format.
        found: u32,
        /// The newest that this build reads.
        known: u32,
    },
    /// There is no catalog to read.
    #[error("there is no catalog in {}: is it the --data directory of a store?", dir.display())]
    Absent {
        /// The data directory.
        dir: PathBuf,
    },
    /// It cannot be read, and was left as it is.
    #[error("the catalog in {} is damaged: {why}; the next start of its store moves it aside and begins empty", dir.display())]
    Damaged {
        /// The data directory.
        dir: PathBuf,
        /// What cannot be read.
        why: String,
    },
    /// The database failed.
    #[error("{context}: {source}")]
    Database {
        /// What was being done.
        context: &'static str,
        /// RocksDB's words.
        source: rocksdb::Error,
    },
    /// A file beside the database failed.
    #[error("{context} {}: {source}", path.display())]
    Io {
        /// What was being done.
        context: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// A write failed a moment ago; the database is opened again after a while.
    #[error("the catalog is closed since a write failed; it is tried again within a second")]
    Closed,
    /// It was opened to be read.
    #[error("the catalog is open for reading alone")]
    ReadOnly,
    /// A record names a file that is not in the list of files.
    #[error("file {file} is not one of the {files} files of this catalog")]
    UnknownFile {
        /// Index in the record.
        file: u16,
        /// How many there are.
        files: usize,
    },
    /// More files than a record can number.
    #[error("a catalog knows at most {max} files")]
    TooManyFiles {
        /// How many it knows.
        max: usize,
    },
}

impl CatalogError {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Database { .. } | Self::Io { .. } | Self::Closed => true,
            Self::InUse { .. }
            | Self::NewerFormat { .. }
            | Self::Absent { .. }
            | Self::Damaged { .. }
            | Self::ReadOnly
            | Self::UnknownFile { .. }
            | Self::TooManyFiles { .. } => false,
        }
    }

    /// Whether it was refused only because RocksDB's background work is behind.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Database { source, .. } if is_busy(source))
    }

    pub(super) fn database(context: &'static str) -> impl FnOnce(rocksdb::Error) -> Self {
        move |source| Self::Database { context, source }
    }
}

/// It would have had to wait.
pub(super) fn is_busy(error: &rocksdb::Error) -> bool {
    use rocksdb::ErrorKind::{Busy, Incomplete, TryAgain};
    matches!(error.kind(), Incomplete | Busy | TryAgain)
}
