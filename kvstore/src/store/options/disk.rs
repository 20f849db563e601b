//! What the disks say about the paths of an operator: kind, identity, free space.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Seek, SeekFrom},
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use rustix::fs::{Access, access, statvfs};

use super::{NvmeSpace, show};

/// The file that an NVMe directory's blocks are in.
const BLOCK_FILE: &str = "kelvin.blocks";

/// A place for blocks, as the kernel knows it.
#[derive(Debug)]
pub(super) struct Spot {
    /// Of the file system, or of the raw device itself.
    device: u64,
    /// Of the directory or file; 0 for a raw device.
    inode: u64,
    /// Bytes that a file here may have, with what it has already; or the size of a raw device.
    room: u64,
    is_raw: bool,
}

impl Spot {
    pub(super) fn look(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        check_absolute("--nvme", path)?;
        let facts = fs::metadata(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => format!(
                "--nvme {shown} is not there: mount the disk first, or make the directory if it is to be on the \
                 disk above it"
            ),
            _ => format!("--nvme {shown}: {error}"),
        })?;
        let kind = facts.file_type();
        if !(kind.is_dir() || kind.is_file() || kind.is_block_device()) {
            return Err(format!("--nvme {shown} is no directory, file or block device: give one of these"));
        }
        let needed = if kind.is_dir() {
            Access::WRITE_OK | Access::EXEC_OK
        } else {
            Access::READ_OK | Access::WRITE_OK
        };
        if access(path, needed).is_err() {
            return Err(format!(
                "--nvme {shown} cannot be written by this user: change its owner or its mode"
            ));
        }
        if kind.is_block_device() {
            if let Some(at) = mounted_at(facts.rdev()) {
                return Err(format!(
                    "--nvme {shown} is mounted at {at}: give a directory there, or unmount it"
                ));
            }
            let size = File::open(path).and_then(|mut file| file.seek(SeekFrom::End(0)));
            let room = size.map_err(|error| format!("--nvme {shown}: {error}"))?;
            return Ok(Self { device: facts.rdev(), inode: 0, room, is_raw: true });
        }
        let file = if kind.is_dir() { fs::metadata(path.join(BLOCK_FILE)).ok() } else { Some(facts.clone()) };
        // What is allocated already is not free, but the tier's.
        let has = file.map_or(0, |file| file.blocks() * 512);
        let free = statvfs(path).map_err(|error| format!("--nvme {shown}: {error}"))?;
        let room = free.f_bavail.saturating_mul(free.f_frsize).saturating_add(has);
        Ok(Self { device: facts.dev(), inode: facts.ino(), room, is_raw: false })
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        (self.device, self.inode, self.is_raw) == (other.device, other.inode, other.is_raw)
    }
}

/// Refuses more than there is: paths on one file system share what is free.
pub(super) fn check_free(spots: &[(&NvmeSpace, Spot)]) -> Result<(), String> {
    let mut asked: BTreeMap<(u64, u64), (u64, u64, Vec<&NvmeSpace>)> = BTreeMap::new();
    for (space, spot) in spots {
        // A raw device stands alone.
        let key = (spot.device, u64::from(spot.is_raw));
        let (sum, room, spaces) = asked.entry(key).or_default();
        *sum = sum.saturating_add(space.bytes);
        *room = spot.room.max(*room);
        spaces.push(space);
    }
    for (sum, room, spaces) in asked.into_values() {
        if sum <= room {
            continue;
        }
        // A file system needs some of it for itself, and whole mebibytes read better.
        let most = (room / 100 * 98 / spaces.len() as u64) >> 20 << 20;
        let given: Vec<String> = spaces
            .iter()
            .map(|space| format!("--nvme {}={}", space.path.display(), show(space.bytes)))
            .collect();
        let advice = match most {
            0 => "free some, or give another disk".to_owned(),
            most => {
                let each: Vec<String> = spaces
                    .iter()
                    .map(|space| format!("{}={}MiB", space.path.display(), most >> 20))
                    .collect();
                format!("write at most {}", each.join(" and "))
            }
        };
        return Err(format!(
            "{} is more than the disk has free, {}: {advice}",
            given.join(" and "),
            show(room)
        ));
    }
    Ok(())
}

/// A directory that is there, or can be made in one that is there.
pub(super) fn check_directory(flag: &str, path: &Path) -> Result<(), String> {
    let shown = path.display();
    check_absolute(flag, path)?;
    let at = match fs::metadata(path) {
        Ok(facts) if facts.is_dir() => path,
        Ok(_) => return Err(format!("{flag} {shown} is no directory: give one")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => match path.parent() {
            Some(parent) if parent.is_dir() => parent,
            _ => {
                return Err(format!(
                    "{flag} {shown} is in a directory that is not there: make that one first"
                ));
            }
        },
        Err(error) => return Err(format!("{flag} {shown}: {error}")),
    };
    if access(at, Access::WRITE_OK | Access::EXEC_OK).is_err() {
        return Err(format!(
            "{flag} {shown}: this user cannot write in {}: change its owner or its mode",
            at.display()
        ));
    }
    Ok(())
}

fn check_absolute(flag: &str, path: &Path) -> Result<(), String> {
    match path.is_absolute() {
        true => Ok(()),
        false => Err(format!(
            "{flag} {} is not absolute: write the whole path, from / on, so that it does not depend on where the \
             store is started",
            path.display()
        )),
    }
}

/// The path without links and dots, as far as it is there; of a block device, its place in the tree of
/// devices, where a partition stands below its disk.
pub(super) fn resolved(path: &Path) -> PathBuf {
    if let Ok(facts) = fs::metadata(path)
        && facts.file_type().is_block_device()
    {
        let (major, minor) = (rustix::fs::major(facts.rdev()), rustix::fs::minor(facts.rdev()));
        return fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).unwrap_or_else(|_| path.into());
    }
    fs::canonicalize(path).unwrap_or_else(|_| match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => resolved(parent).join(name),
        _ => path.into(),
    })
}

/// Where a block device is mounted.
fn mounted_at(device: u64) -> Option<String> {
    let wanted = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(2);
        let found = fields.next()? == wanted;
        found.then(|| fields.nth(1).map(str::to_owned)).flatten()
    })
}
