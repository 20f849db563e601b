//! The data directory: who has it, what it was, and what to do with a database that cannot be read.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use parking_lot::Mutex;
use rocksdb::{DB, ErrorKind};
use rustix::fs::{FlockOperation, fcntl_lock};

use super::{CatalogError, settings};

/// Version of the layout of keys and values. A build refuses a newer one.
pub const FORMAT: u32 = 1;
const DATABASE: &str = "catalog";
const LOCK: &str = "catalog.lock";
const MARK: &str = "catalog.mark";
const DAMAGED: &str = "catalog.damaged";
/// Left in a database in which damage was met: the next start moves it aside.
const DAMAGE_FLAG: &str = "KELVIN-DAMAGED";
/// Databases moved aside that are kept.
const DAMAGED_MAX: usize = 3;

/// How a catalog was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// The first start in this directory.
    First,
    /// As it was left.
    Kept,
    /// The mark beside it tells of a catalog, and it is gone: it begins empty.
    Deleted,
    /// It could not be read: it was moved aside, and begins empty.
    Damaged {
        /// Where it is now.
        moved_to: PathBuf,
        /// What could not be read.
        why: String,
    },
    /// An older copy was put back: what was written since is lost, and some of its blocks fail their checksum.
    Older {
        /// Starts that it knows nothing of.
        starts: u64,
    },
}

/// What opening found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Whether the last process closed it in good order.
    pub clean: bool,
    /// Number of this start: larger than that of any before it in this directory.
    pub incarnation: u64,
    /// Identity of the store, random, made at its first start.
    pub store_uuid: [u8; 16],
    /// How it was found.
    pub start: Start,
}

/// The directory's lock; dropping it lets others in.
pub(super) struct Lock {
    path: PathBuf,
    _file: File,
}

/// Directories open in this process, for which the system's lock says nothing.
static HERE: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

impl Lock {
    /// Locks the directory, which must be there.
    ///
    /// The lock is one of the process: a child that inherits the file does not keep it.
    pub(super) fn take(dir: &Path) -> Result<Self, CatalogError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| CatalogError::Io { context: "lock", path, source }
        };
        let path = dir.canonicalize().map_err(failed(dir))?.join(LOCK);
        let mut here = HERE.lock();
        // Before the file is opened: closing any handle to it would end this process's lock on it.
        if here.contains(&path) {
            return Err(CatalogError::InUse { dir: dir.to_owned(), holder: Some(std::process::id()) });
        }
        let mut options = File::options();
        let mut file =
            options.read(true).write(true).create(true).truncate(false).open(&path).map_err(failed(&path))?;
        match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => {
                let mut holder = String::new();
                let holder = file.read_to_string(&mut holder).ok().and_then(|_| holder.trim().parse().ok());
                return Err(CatalogError::InUse { dir: dir.to_owned(), holder });
            }
            Err(error) => return Err(failed(&path)(error.into())),
        }
        // Only for the message above.
        if file.set_len(0).is_ok() {
            _ = write!(file, "{}", std::process::id());
        }
        here.insert(path.clone());
        Ok(Self { path, _file: file })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        HERE.lock().remove(&self.path);
    }
}

/// What the file beside the database says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) format: u32,
    pub(super) store_uuid: [u8; 16],
    pub(super) incarnation: u64,
}

impl Mark {
    /// `None` if there is none that can be read.
    pub(super) fn read(dir: &Path) -> Option<Self> {
        Self::parse(&fs::read(dir.join(MARK)).ok()?)
    }

    /// Any bytes may come. A newer format may say more: what is not known is passed over.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let field = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::trim)
        };
        let store_uuid = u128::from_str_radix(field("store")?, 16).ok()?.to_be_bytes();
        Some(Self {
            format: field("format")?.parse().ok()?,
            store_uuid,
            incarnation: field("incarnation")?.parse().ok()?,
        })
    }

    pub(super) fn text(&self) -> String {
        let store = u128::from_be_bytes(self.store_uuid);
        format!("format={}\nstore={store:032x}\nincarnation={}\n", self.format, self.incarnation)
    }

    /// Replaces the file: whole, or not at all.
    pub(super) fn write(&self, dir: &Path) -> Result<(), CatalogError> {
        let path = dir.join(MARK);
        let write = || -> io::Result<()> {
            let young = path.with_extension("mark.new");
            let mut file = File::create(&young)?;
            file.write_all(self.text().as_bytes())?;
            file.sync_all()?;
            fs::rename(&young, &path)?;
            File::open(dir)?.sync_all()
        };
        write().map_err(|source| CatalogError::Io { context: "write", path: path.clone(), source })
    }
}

/// Why a database did not open.
#[derive(Debug)]
pub(super) enum Refused {
    /// It is damaged, and a later try finds it so as well.
    Damaged(String),
    /// Anything else.
    Failed(CatalogError),
}

/// Where the database is.
pub(super) fn database_dir(dir: &Path) -> PathBuf {
    dir.join(DATABASE)
}

/// Opens the database of a data directory, an empty one if there is none.
pub(super) fn open_database(dir: &Path) -> Result<DB, Refused> {
    let path = database_dir(dir);
    if path.join(DAMAGE_FLAG).exists() {
        return Err(Refused::Damaged("damage was met while it was in use".to_owned()));
    }
    DB::open_cf_descriptors(&settings::database(), &path, settings::families())
        .map_err(|error| refused(dir, error))
}

/// Opens the database of a stopped store as it is, and changes nothing in it.
pub(super) fn open_read_only(dir: &Path) -> Result<DB, Refused> {
    let path = database_dir(dir);
    DB::open_cf_descriptors_read_only(&settings::database(), &path, settings::families(), false)
        .map_err(|error| refused(dir, error))
}

/// Whether there is a database.
pub(super) fn has_database(dir: &Path) -> bool {
    database_dir(dir).is_dir()
}

/// Sorts RocksDB's refusals.
pub(super) fn refused(dir: &Path, error: rocksdb::Error) -> Refused {
    let text: &str = error.as_ref();
    match error.kind() {
        ErrorKind::Corruption => Refused::Damaged(text.to_owned()),
        // A file that its own lists name is missing.
        ErrorKind::IOError if text.contains("No such file or directory") => Refused::Damaged(text.to_owned()),
        ErrorKind::IOError if text.contains("lock") || text.contains("LOCK") => {
            Refused::Failed(CatalogError::InUse { dir: dir.to_owned(), holder: None })
        }
        // Families, or table formats, that this build does not know.
        ErrorKind::InvalidArgument | ErrorKind::NotSupported => Refused::Failed(CatalogError::NewerFormat {
            dir: dir.to_owned(),
            found: FORMAT + 1,
            known: FORMAT,
        }),
        _ => Refused::Failed(CatalogError::Database { context: "open the catalog", source: error }),
    }
}

/// Lets the next start move the database aside. It is in use now, so not more can be done.
pub(super) fn flag_damage(dir: &Path) {
    if let Err(error) = File::create(database_dir(dir).join(DAMAGE_FLAG)) {
        tracing::warn!(%error, "the catalog is damaged, and that could not be noted down");
    }
}

/// Moves a damaged database aside, so that a fresh one can begin. Of those moved before, the newest stay.
pub(super) fn move_aside(dir: &Path) -> Result<PathBuf, CatalogError> {
    let mut numbers = damaged(dir);
    let next = numbers.last().map_or(0, |last| last + 1);
    let target = dir.join(format!("{DAMAGED}-{next}"));
    let source = database_dir(dir);
    fs::rename(&source, &target).map_err(|error| CatalogError::Io {
        context: "move aside",
        path: source.clone(),
        source: error,
    })?;
    numbers.push(next);
    for old in numbers.iter().rev().skip(DAMAGED_MAX) {
        let path = dir.join(format!("{DAMAGED}-{old}"));
        if let Err(error) = fs::remove_dir_all(&path) {
            tracing::warn!(path = %path.display(), %error, "remove an old damaged catalog");
        }
    }
    Ok(target)
}

/// Numbers of the databases that were moved aside, in order.
pub(super) fn damaged(dir: &Path) -> Vec<u64> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let number = |name: &str| name.strip_prefix(DAMAGED)?.strip_prefix('-')?.parse::<u64>().ok();
    let mut numbers: Vec<u64> =
        entries.flatten().filter_map(|entry| number(entry.file_name().to_str()?)).collect();
    numbers.sort_unstable();
    numbers
}
