//! Names that an operator gave to prefixes: in memory, and in the data directory of a store that has one.
//!
//! A name is a block's: hashes are keyed by their namespace, so those of two namespaces are never alike.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use parking_lot::Mutex;

use super::hash;
use crate::SequenceHash;

const NAMES_MAX: usize = 4096;
const NAME_BYTES_MAX: usize = 64;
/// A name a line: the hash in 32 hexadecimal digits, a space, the name.
const FILE: &str = "names";

/// Names by block.
#[derive(Debug, Default)]
pub(super) struct Names {
    names: Mutex<HashMap<SequenceHash, String>>,
    /// Where they are kept, if anywhere. Held by who writes there.
    file: Mutex<Option<PathBuf>>,
}

impl Names {
    /// Those that were kept in the data directory. A file that cannot be read is none, and lines of it that mean
    /// nothing are passed over.
    pub(super) fn open(data: Option<&Path>) -> Self {
        let file = data.map(|data| data.join(FILE));
        let text = file.as_deref().and_then(|path| match fs::read(path) {
            Ok(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the names of prefixes cannot be read");
                None
            }
        });
        let of_line = |line: &str| {
            let (block, name) = line.split_once(' ')?;
            Some((hash(block)?, checked(name).ok().filter(|name| !name.is_empty())?.to_owned()))
        };
        let names = text.iter().flat_map(|text| text.lines()).filter_map(of_line).take(NAMES_MAX).collect();
        Self { names: Mutex::new(names), file: Mutex::new(file) }
    }

    pub(super) fn of(&self, hash: SequenceHash) -> Option<String> {
        self.names.lock().get(&hash).cloned()
    }

    /// All of them, as they are now, kept nowhere.
    pub(super) fn copy(&self) -> Self {
        Self { names: Mutex::new(self.names.lock().clone()), file: Mutex::default() }
    }

    /// Gives a name, or takes it away with an empty one; an error says what to change. Writes to the disk.
    pub(super) fn give(&self, hash: SequenceHash, name: &str) -> Result<(), String> {
        let name = checked(name)?;
        // First, so that the file is never older than what it was written from.
        let file = self.file.lock();
        let mut names = self.names.lock();
        if name.is_empty() {
            names.remove(&hash);
        } else {
            if names.len() >= NAMES_MAX && !names.contains_key(&hash) {
                return Err(format!("{NAMES_MAX} prefixes have names: take some away first"));
            }
            names.insert(hash, name.to_owned());
        }
        let Some(path) = &*file else { return Ok(()) };
        let text: String = names.iter().map(|(hash, name)| format!("{hash} {name}\n")).collect();
        drop(names);
        if let Err(error) = replace(path, &text) {
            tracing::warn!(path = %path.display(), %error, "a name is not kept over a restart");
        }
        Ok(())
    }
}

fn checked(name: &str) -> Result<&str, String> {
    let name = name.trim();
    if name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
        return Err(format!("a name has at most {NAME_BYTES_MAX} bytes, and no control characters"));
    }
    Ok(name)
}

/// Replaces a file: whole, or not at all.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let young = path.with_extension("new");
    let mut file = File::create(&young)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&young, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(byte: u8) -> SequenceHash {
        SequenceHash::try_from(&[byte; 16][..]).unwrap()
    }

    #[test]
    fn names_outlast_a_restart_with_a_data_directory() {
        let dir = tempfile::tempdir().unwrap();
        let names = Names::open(Some(dir.path()));
        names.give(block(1), " system prompt of support ").unwrap();
        names.give(block(2), "gone").unwrap();
        names.give(block(2), "").unwrap();
        assert!(names.give(block(3), &"x".repeat(65)).is_err() && names.give(block(3), "a\nb").is_err());
        let again = Names::open(Some(dir.path()));
        assert_eq!(again.of(block(1)).as_deref(), Some("system prompt of support"));
        assert_eq!((again.of(block(2)), again.of(block(3))), (None, None));
        assert_eq!(Names::open(None).of(block(1)), None);
    }

    #[test]
    fn any_file_can_be_opened() {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("no line\n{} good\n{} {}\n\n{} \n", block(1), block(2), "x".repeat(65), block(3));
        fs::write(dir.path().join(FILE), [text.as_bytes(), &[0xff, 0xfe]].concat()).unwrap();
        let names = Names::open(Some(dir.path()));
        assert_eq!(names.names.lock().len(), 1);
        fs::remove_file(dir.path().join(FILE)).unwrap();
        fs::create_dir(dir.path().join(FILE)).unwrap();
        let names = Names::open(Some(dir.path()));
        names.give(block(1), "kept in memory").unwrap();
        assert_eq!(names.of(block(1)).as_deref(), Some("kept in memory"));
    }
}
