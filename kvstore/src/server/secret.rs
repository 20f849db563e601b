//! The secret behind the hash keys, and its place in the data directory.
//!
//! Hashes must survive a restart, or no block in a cold tier is ever found again. So the secret is made once and
//! kept in `secret`, readable by the store's user alone; or it is given at every start, and the directory only
//! notes its digest in `secret-id`, so that another one given by mistake is refused instead of orphaning
//! every block.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

type Secret = [u8; 32];

const DIGEST_CONTEXT: &str = "kelvin store 1 secret id";

/// The secret of a store: the one given, the one that the data directory has, or a new one.
pub(super) fn settle(given: Option<Secret>, data: Option<&Path>) -> Result<Secret, String> {
    let Some(data) = data else { return Ok(given.unwrap_or_else(crate::random::bytes)) };
    let failed = |error: io::Error| format!("keep the secret in {}: {error}", data.display());
    match fs::DirBuilder::new().mode(0o700).create(data) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    let kept = read(&data.join("secret")).map_err(failed)?;
    let secret = match (given, kept) {
        (Some(given), _) => given,
        (None, Some(kept)) => Secret::try_from(&kept[..]).map_err(|_| {
            format!(
                "{}/secret has {} bytes in place of 32: put the right one back, or give another --data directory",
                data.display(),
                kept.len()
            )
        })?,
        (None, None) if data.join("secret-id").exists() => {
            return Err(format!(
                "the blocks in {} were stored under a secret that was given: give it again with --secret-file",
                data.display()
            ));
        }
        (None, None) => {
            let made: Secret = crate::random::bytes();
            write_once(&data.join("secret"), &made).map_err(failed)?;
            made
        }
    };
    let digest = blake3::derive_key(DIGEST_CONTEXT, &secret);
    match read(&data.join("secret-id")).map_err(failed)? {
        None => write_once(&data.join("secret-id"), &digest).map_err(failed)?,
        Some(known) if known == digest => {}
        Some(_) => {
            return Err(format!(
                "the blocks in {} were stored under another secret, and none would be found under this one: give \
                 that one with --secret-file, or another --data directory",
                data.display()
            ));
        }
    }
    Ok(secret)
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whole or not at all: a half-written secret would orphan what is stored under it.
fn write_once(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let half = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&half)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&half, path)?;
    fs::File::open(path.parent().expect("a file is in a directory"))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_secret_is_made_once_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let first = settle(None, Some(&data)).unwrap();
        assert_eq!(settle(None, Some(&data)), Ok(first));
        assert_eq!(settle(Some(first), Some(&data)), Ok(first));
        let mode = fs::metadata(data.join("secret")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(settle(Some([1; 32]), Some(&data)).unwrap_err().contains("under another secret"));
        fs::write(data.join("secret"), [1; 31]).unwrap();
        assert!(settle(None, Some(&data)).unwrap_err().contains("31 bytes in place of 32"));
    }

    #[test]
    fn a_secret_that_was_given_is_not_written_down() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(settle(Some([7; 32]), Some(folder.path())), Ok([7; 32]));
        assert!(!folder.path().join("secret").exists());
        let error = settle(None, Some(folder.path())).unwrap_err();
        assert!(error.contains("--secret-file"), "{error}");
        assert_eq!(settle(Some([7; 32]), Some(folder.path())), Ok([7; 32]));
    }

    #[test]
    fn without_a_directory_it_is_another_each_time() {
        assert_ne!(settle(None, None), settle(None, None));
    }
}
