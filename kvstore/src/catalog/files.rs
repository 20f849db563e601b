//! Which number a record uses for which NVMe file.
//!
//! A file is known by the id in its header, not by its place on the command line. So paths that changed
//! places find their blocks again, and the records of a file that was replaced are noticed.

use super::bytes::{Reader, seal, unseal};

/// Files a catalog knows, those that are no longer there included.
pub const FILES_MAX: usize = 1024;

/// What became of the files since the last start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FilesFound {
    /// Known from before.
    pub kept: usize,
    /// Not seen before.
    pub added: usize,
    /// Known, and not there now: their records are dropped when the catalog is loaded.
    pub absent: usize,
}

/// The files in the catalog's own numbering, and how the device numbers them now.
#[derive(Debug, Clone, Default)]
pub(super) struct FileTable {
    /// By the catalog's number. `None`: free.
    known: Vec<Option<[u8; 16]>>,
    /// By the device's index: the catalog's number.
    numbers: Vec<u16>,
    /// By the catalog's number: the device's index.
    indices: Vec<Option<u16>>,
}

impl FileTable {
    /// Takes the device's files as they are now.
    ///
    /// # Errors
    /// When there are too many to number; the table is then as it was.
    pub(super) fn set(&mut self, files: &[[u8; 16]]) -> Option<FilesFound> {
        let mut known = self.known.clone();
        let mut found = FilesFound::default();
        let mut numbers = Vec::with_capacity(files.len());
        for uuid in files {
            let number = match known.iter().position(|known| known.as_ref() == Some(uuid)) {
                Some(number) => {
                    found.kept += 1;
                    number
                }
                None => {
                    found.added += 1;
                    // Only a number whose records are gone is free, so none is misread.
                    let free = known.iter().position(Option::is_none).unwrap_or(known.len());
                    known.resize(known.len().max(free + 1), None);
                    known[free] = Some(*uuid);
                    free
                }
            };
            numbers.push(u16::try_from(number).ok()?);
        }
        if known.len() > FILES_MAX {
            return None;
        }
        let mut indices = vec![None; known.len()];
        for (index, &number) in numbers.iter().enumerate() {
            indices[usize::from(number)] = u16::try_from(index).ok();
        }
        found.absent =
            known.iter().zip(&indices).filter(|(uuid, index)| uuid.is_some() && index.is_none()).count();
        *self = Self { known, numbers, indices };
        Some(found)
    }

    /// Frees the numbers of files that are not there, once their records are gone. Whether it changed.
    pub(super) fn forget_absent(&mut self) -> bool {
        let mut changed = false;
        for (uuid, index) in self.known.iter_mut().zip(&self.indices) {
            if index.is_none() && uuid.take().is_some() {
                changed = true;
            }
        }
        changed
    }

    /// Ids in the device's order.
    pub(super) fn uuids(&self) -> Vec<[u8; 16]> {
        self.numbers.iter().filter_map(|&number| self.known[usize::from(number)]).collect()
    }

    /// Every id known, whether its file is there or not.
    pub(super) fn known(&self) -> impl Iterator<Item = (u16, [u8; 16])> + '_ {
        self.known.iter().zip(0..).filter_map(|(uuid, number)| Some((number, (*uuid)?)))
    }

    /// The catalog's number of the device's file.
    pub(super) fn number(&self, index: u16) -> Option<u16> {
        self.numbers.get(usize::from(index)).copied()
    }

    /// The device's index of the catalog's file.
    pub(super) fn index(&self, number: u16) -> Option<u16> {
        self.indices.get(usize::from(number)).copied().flatten()
    }

    pub(super) fn len(&self) -> usize {
        self.numbers.len()
    }

    /// Number and id of each known file.
    pub(super) fn encode(&self, key: &[u8]) -> Vec<u8> {
        let mut value = Vec::new();
        for (number, uuid) in self.known() {
            value.extend(number.to_le_bytes());
            value.extend(uuid);
        }
        seal(key, value)
    }

    /// Known files, none of them there yet.
    pub(super) fn decode(key: &[u8], value: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(unseal(key, value)?);
        let mut known: Vec<Option<[u8; 16]>> = Vec::new();
        while reader.left() > 0 {
            let (number, uuid) = (usize::from(reader.u16()?), reader.array()?);
            if number >= FILES_MAX || known.contains(&Some(uuid)) {
                return None;
            }
            known.resize(known.len().max(number + 1), None);
            if known[number].replace(uuid).is_some() {
                return None;
            }
        }
        let indices = vec![None; known.len()];
        Some(Self { known, numbers: Vec::new(), indices })
    }
}
