//! Opening a catalog: of a store that starts, or of one that is stopped.

use std::{fs, io, path::Path};

use rocksdb::DB;

use super::{
    Access, Catalog, CatalogError, Opened, Start,
    bytes::unseal,
    database::{CLEAN_KEY, FILES_KEY, FORMAT_KEY, INCARNATION_KEY, SEQUENCE_KEY, STORE_KEY, family},
    files::FileTable,
    home::{self, FORMAT, Lock, Mark, Refused},
    settings::{self, BLOCKS},
};

/// Facts of a database.
struct Facts {
    store_uuid: [u8; 16],
    incarnation: u64,
    clean: bool,
    sequence: u64,
    files: FileTable,
}

impl Catalog {
    /// Opens the catalog in the data directory `dir`, both made if they are not there.
    ///
    /// A database that cannot be read is moved aside, and a fresh one begins.
    ///
    /// # Errors
    /// When the directory is in use, of a newer format, or the disk fails.
    pub fn open(dir: &Path) -> Result<(Self, Opened), CatalogError> {
        fs::create_dir_all(dir).map_err(|source| CatalogError::Io {
            context: "make the data directory",
            path: dir.to_owned(),
            source,
        })?;
        let lock = Lock::take(dir)?;
        let mark = Mark::read(dir);
        if let Some(mark) = mark.filter(|mark| mark.format > FORMAT) {
            return Err(newer(dir, mark.format));
        }
        let (database, facts, damaged) = match open_with_facts(dir) {
            Ok((database, facts)) => (database, facts, None),
            Err(Refused::Failed(error)) => return Err(error),
            Err(Refused::Damaged(why)) => {
                let moved_to = home::move_aside(dir)?;
                let (database, facts) = open_with_facts(dir).map_err(|refused| match refused {
                    Refused::Failed(error) => error,
                    Refused::Damaged(why) => CatalogError::Io {
                        context: "begin a fresh catalog in",
                        path: dir.to_owned(),
                        source: io::Error::other(why),
                    },
                })?;
                (database, facts, Some(Start::Damaged { moved_to, why }))
            }
        };
        let start = damaged.unwrap_or(match (&facts, mark) {
            (None, None) => Start::First,
            (None, Some(_)) => Start::Deleted,
            (Some(facts), Some(mark)) if facts.incarnation < mark.incarnation => {
                Start::Older { starts: mark.incarnation - facts.incarnation }
            }
            (Some(_), _) => Start::Kept,
        });
        say(dir, &start);
        let before = facts.as_ref().map(|facts| facts.incarnation).max(mark.map(|mark| mark.incarnation));
        // Random at first, so that a store that lost everything does not take up its old numbers.
        let incarnation = before.map_or_else(|| u64::from_le_bytes(crate::random::bytes()) >> 8, |n| n + 1);
        let known = facts.as_ref().map(|facts| facts.store_uuid).or(mark.map(|mark| mark.store_uuid));
        let store_uuid = known.unwrap_or_else(crate::random::bytes);
        let clean = facts.as_ref().is_some_and(|facts| facts.clean);
        let sequence = facts.as_ref().map_or(1, |facts| facts.sequence);
        let files = facts.map(|facts| facts.files).unwrap_or_default();
        let catalog = Self::with(dir, Access::Serve, lock, database, files, sequence);
        catalog.put_facts(&[
            (FORMAT_KEY, &FORMAT.to_le_bytes()),
            (STORE_KEY, &store_uuid),
            (INCARNATION_KEY, &incarnation.to_le_bytes()),
            (CLEAN_KEY, &[0]),
            (SEQUENCE_KEY, &sequence.to_le_bytes()),
        ])?;
        // After the database, so that a crash in between does not look like an older copy.
        Mark { format: FORMAT, store_uuid, incarnation }.write(dir)?;
        Ok((catalog, Opened { clean, incarnation, store_uuid, start }))
    }

    /// Opens the catalog of a stopped store, with `Access::Read` or `Access::Change`. Neither counts as a start.
    ///
    /// # Errors
    /// When there is none, the store runs, or the catalog is damaged; it is then left as it is.
    pub fn open_stopped(dir: &Path, access: Access) -> Result<(Self, Opened), CatalogError> {
        assert!(access != Access::Serve, "a store that runs uses `open`");
        if !home::has_database(dir) {
            return Err(CatalogError::Absent { dir: dir.to_owned() });
        }
        let lock = Lock::take(dir)?;
        let mark = Mark::read(dir);
        if let Some(mark) = mark.filter(|mark| mark.format > FORMAT) {
            return Err(newer(dir, mark.format));
        }
        let database = match access {
            Access::Read => home::open_read_only(dir),
            _ => home::open_database(dir),
        };
        let opened = database.and_then(|database| Ok((read_facts(dir, &database)?, database)));
        let (facts, database) = opened.map_err(|refused| match refused {
            Refused::Failed(error) => error,
            Refused::Damaged(why) => CatalogError::Damaged { dir: dir.to_owned(), why },
        })?;
        let Some(facts) = facts else { return Err(CatalogError::Absent { dir: dir.to_owned() }) };
        let start = match mark.map_or(0, |mark| mark.incarnation.saturating_sub(facts.incarnation)) {
            0 => Start::Kept,
            starts => Start::Older { starts },
        };
        let Facts { store_uuid, incarnation, clean, sequence, files } = facts;
        let catalog = Self::with(dir, access, lock, database, files, sequence);
        Ok((catalog, Opened { clean, incarnation, store_uuid, start }))
    }
}

/// Opens the database and reads its facts; `None` if it is new.
fn open_with_facts(dir: &Path) -> Result<(DB, Option<Facts>), Refused> {
    let database = home::open_database(dir)?;
    let facts = read_facts(dir, &database)?;
    Ok((database, facts))
}

fn read_facts(dir: &Path, database: &DB) -> Result<Option<Facts>, Refused> {
    let damaged = |key: &[u8]| Refused::Damaged(format!("the fact `{}` cannot be read", key.escape_ascii()));
    let read = |key: &[u8]| -> Result<Option<Vec<u8>>, Refused> {
        let Some(value) = database.get(key).map_err(|error| home::refused(dir, error))? else {
            return Ok(None);
        };
        unseal(key, &value).map(|body| Some(body.to_vec())).ok_or_else(|| damaged(key))
    };
    let Some(format) = read(FORMAT_KEY)? else {
        // All facts are written at once, before any record.
        let mut any = database.raw_iterator_cf_opt(family(database, BLOCKS), settings::scan());
        any.seek_to_first();
        return if any.valid() { Err(damaged(FORMAT_KEY)) } else { Ok(None) };
    };
    let format = format.try_into().map(u32::from_le_bytes).map_err(|_| damaged(FORMAT_KEY))?;
    if format > FORMAT {
        return Err(Refused::Failed(newer(dir, format)));
    }
    let number = |key: &[u8]| -> Result<u64, Refused> {
        let value = read(key)?.and_then(|value| value.try_into().ok());
        value.map(u64::from_le_bytes).ok_or_else(|| damaged(key))
    };
    let files = match database.get(FILES_KEY).map_err(|error| home::refused(dir, error))? {
        Some(value) => FileTable::decode(FILES_KEY, &value).ok_or_else(|| damaged(FILES_KEY))?,
        None => FileTable::default(),
    };
    Ok(Some(Facts {
        store_uuid: read(STORE_KEY)?
            .and_then(|value| value.try_into().ok())
            .ok_or_else(|| damaged(STORE_KEY))?,
        incarnation: number(INCARNATION_KEY)?,
        clean: read(CLEAN_KEY)?.is_some_and(|value| value == [1]),
        sequence: number(SEQUENCE_KEY)?,
        files,
    }))
}

fn newer(dir: &Path, found: u32) -> CatalogError {
    CatalogError::NewerFormat { dir: dir.to_owned(), found, known: FORMAT }
}

/// Says aloud what the operator should know.
fn say(dir: &Path, start: &Start) {
    let dir = dir.display();
    match start {
        Start::First => tracing::info!(%dir, "a new catalog"),
        Start::Kept => tracing::debug!(%dir, "the catalog is as it was left"),
        Start::Deleted => {
            tracing::warn!(%dir, "the catalog was deleted: it begins empty, cold copies are lost")
        }
        Start::Damaged { moved_to, why } => tracing::error!(
            %dir, moved_to = %moved_to.display(), why,
            "the catalog is damaged: it was moved aside and begins empty, cold copies are lost"
        ),
        Start::Older { starts } => tracing::warn!(
            %dir, starts,
            "the catalog is an older copy: copies written since are lost, and slots used again since fail their \
             checksums"
        ),
    }
}
