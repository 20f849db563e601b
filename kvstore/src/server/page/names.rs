//! Names that an operator gave to prefixes: in memory, until the store stops.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::SequenceHash;

const NAMES_MAX: usize = 4096;
const NAME_BYTES_MAX: usize = 64;

/// Names by namespace and block.
#[derive(Debug, Default)]
pub(super) struct Names(Mutex<HashMap<(u64, SequenceHash), String>>);

impl Names {
    pub(super) fn of(&self, namespace: u64, hash: SequenceHash) -> Option<String> {
        self.0.lock().get(&(namespace, hash)).cloned()
    }

    /// All of them, as they are now.
    pub(super) fn copy(&self) -> Self {
        Self(Mutex::new(self.0.lock().clone()))
    }

    /// Gives a name, or takes it away with an empty one; an error says what to change.
    pub(super) fn give(&self, namespace: u64, hash: SequenceHash, name: &str) -> Result<(), String> {
        let name = name.trim();
        if name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
            return Err(format!("a name has at most {NAME_BYTES_MAX} bytes, and no control characters"));
        }
        let mut names = self.0.lock();
        if name.is_empty() {
            names.remove(&(namespace, hash));
            return Ok(());
        }
        if names.len() >= NAMES_MAX && !names.contains_key(&(namespace, hash)) {
            return Err(format!("{NAMES_MAX} prefixes have names: take some away first"));
        }
        names.insert((namespace, hash), name.to_owned());
        Ok(())
    }
}
