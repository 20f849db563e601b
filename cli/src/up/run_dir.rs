//! The private directory of one cluster.
//!
//! # Life
//! It is made under a hidden name, its lock file is locked, and only then it gets the name that others look
//! for; so a directory under that name without a lock belongs to a process that is dead, and whoever
//! comes next removes it. The kernel drops the lock however the owner ends.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};

const PREFIX: &str = "kelvin-up-";
const PREFIX_NEW: &str = ".kelvin-new-";
const LOCK: &str = "lock";

/// Removed, with everything in it, on drop.
pub(super) struct RunDir {
    path: PathBuf,
    _lock: File,
}

impl RunDir {
    /// Makes one in `base`, or where the system wants such directories, and removes those of dead processes.
    pub(super) fn create(base: Option<&Path>) -> anyhow::Result<RunDir> {
        let base = base.map_or_else(default_base, Path::to_path_buf);
        fs::create_dir_all(&base).with_context(|| format!("make the directory {}", base.display()))?;
        let context = || format!("make a run directory in {}", base.display());
        remove_stale(&base);
        Self::create_in(&base).with_context(context)
    }

    fn create_in(base: &Path) -> io::Result<RunDir> {
        // Mode 0700: the store's socket is for this user alone.
        let private = fs::Permissions::from_mode(0o700);
        let new = tempfile::Builder::new().prefix(PREFIX_NEW).permissions(private).tempdir_in(base)?;
        let lock = File::create_new(new.path().join(LOCK))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        let name = new
            .path()
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_prefix(PREFIX_NEW));
        let name = name.ok_or_else(|| io::Error::other("a temporary directory without a name"))?;
        let path = base.join(format!("{PREFIX}{name}"));
        fs::rename(new.path(), &path)?;
        let _ = new.keep();
        Ok(RunDir { path, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the run directory could not be removed");
        }
    }
}

fn default_base() -> PathBuf {
    std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(|path| path.is_dir())
        .unwrap_or_else(std::env::temp_dir)
}

/// Removes the directories whose owner is dead. Those of other users fail to open and stay.
fn remove_stale(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else { return };
    for entry in entries.flatten() {
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        if !ours || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let Ok(lock) = File::options().write(true).open(entry.path().join(LOCK)) else { continue };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        match fs::remove_dir_all(entry.path()) {
            Ok(()) => {
                tracing::info!(path = %entry.path().display(), "removed the run directory of a dead cluster")
            }
            Err(error) => {
                tracing::debug!(path = %entry.path().display(), %error, "a stale run directory stays")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(base: &Path) -> Vec<PathBuf> {
        fs::read_dir(base).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn goes_with_its_owner() {
        let base = tempfile::tempdir().unwrap();
        let dir = RunDir::create(Some(base.path())).unwrap();
        assert_eq!(fs::metadata(dir.path()).unwrap().permissions().mode() & 0o777, 0o700);
        fs::write(dir.path().join("store.sock"), "").unwrap();
        assert_eq!(names(base.path()), [dir.path()]);
        drop(dir);
        assert!(names(base.path()).is_empty());
    }

    #[test]
    fn a_dead_ones_is_removed_and_a_living_ones_stays() {
        let base = tempfile::tempdir().unwrap();
        let living = RunDir::create(Some(base.path())).unwrap();
        let dead = base.path().join("kelvin-up-dead");
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join(LOCK), "").unwrap();
        let foreign = base.path().join("kelvin-up-without-lock");
        fs::create_dir(&foreign).unwrap();
        let other = RunDir::create(Some(base.path())).unwrap();
        assert!(!dead.exists());
        assert!(foreign.exists() && living.path().exists() && other.path().exists());
    }
}
