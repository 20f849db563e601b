//! Real file systems and devices, and real faults of theirs: one that is full, a disk that fails, as images on
//! loop devices. They need root and a kernel with loop devices; where those are missing the tests say so and do nothing.

use std::{
    path::PathBuf,
    process::{Command, Output},
    time::Duration,
};

use super::*;

/// A file system of its own on a loop device, for one test.
struct Image {
    dir: tempfile::TempDir,
    mounted: bool,
}

fn command(program: &str, arguments: &[&str]) -> std::io::Result<Output> {
    Command::new(program).args(arguments).output()
}

impl Image {
    /// A file system of `mkfs`'s kind and so many MiB, or `None`, loudly, where that cannot be.
    fn mount(mkfs: &[&str], mib: u64) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut image = Self { dir, mounted: false };
        let skip = |what: &str| {
            eprintln!("SKIPPED, because {what}: this test wants root, mkfs and loop devices");
            None
        };
        if !rustix::process::geteuid().is_root() {
            return skip("this is not root");
        }
        std::fs::create_dir(image.root()).unwrap();
        let file = std::fs::File::create(image.file()).unwrap();
        file.set_len(mib * MIB).unwrap();
        let (file, root) = (image.file(), image.root());
        let (file, root) = (file.to_str().unwrap(), root.to_str().unwrap());
        let made = command(mkfs[0], &[&mkfs[1..], &[file]].concat());
        if !made.is_ok_and(|output| output.status.success()) {
            return skip("no such file system can be made");
        }
        match command("mount", &["-o", "loop", file, root]) {
            Ok(output) if output.status.success() => {
                image.mounted = true;
                Some(image)
            }
            Ok(output) => skip(String::from_utf8_lossy(&output.stderr).trim()),
            Err(error) => skip(&error.to_string()),
        }
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// Takes away what lies behind the file system, from `bytes` on: reads and writes there fail with EIO.
    fn break_from(&self, bytes: u64) {
        let file = std::fs::OpenOptions::new().write(true).open(self.file()).unwrap();
        file.set_len(bytes).unwrap();
    }

    fn mend(&self, bytes: u64) {
        self.break_from(bytes);
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if self.mounted {
            let _ = command("umount", &["-l", self.root().to_str().unwrap()]);
        }
    }
}

fn io_code(result: &Result<(), DeviceError>) -> Option<i32> {
    match result {
        Err(DeviceError::Io { source, .. }) => source.raw_os_error(),
        _ => None,
    }
}

fn on(image: &Image, bytes: u64, engine: NvmeEngine) -> NvmeOptions {
    let paths = vec![NvmePath { path: image.root(), bytes }];
    let retry_after = Duration::ZERO;
    NvmeOptions { paths, engine, queue_depth: 4, extent_bytes: MIB, retry_after, ..NvmeOptions::default() }
}

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

#[test]
fn a_full_file_system_refuses_the_file_and_says_what_fits() {
    let Some(image) = Image::mount(&["mkfs.ext4", "-q"], 32) else { return };
    let error = NvmeDevice::open(&on(&image, 64 * MIB, NvmeEngine::Auto)).unwrap_err();
    let NvmeError::TooBig { room_bytes, .. } = error else { panic!("{error}") };
    assert!(room_bytes < 32 * MIB);
    // A little less, as the file takes some of the file system's own bookkeeping too.
    let fits = room_bytes / MIB * MIB - MIB;
    let device = NvmeDevice::open(&on(&image, fits, NvmeEngine::Auto)).unwrap();
    // Others fill what is left; the room is ours already.
    let _ = std::fs::write(image.root().join("others"), vec![1; 32 * MIB as usize]);
    for _ in 0..fits / MIB {
        let place = device.allocate(MIB).unwrap();
        let (place, _, result) = block_on(device.write(place, 0, vec![3u8; MIB as usize]));
        result.unwrap();
        std::mem::forget(place);
    }
    block_on(device.sync()).unwrap();
}

/// ext2 knows no preallocation, so that others can take the room.
#[test]
fn a_file_system_that_fills_up_fails_writes_and_keeps_blocks() {
    for engine in ENGINES {
        let Some(image) = Image::mount(&["mkfs.ext2", "-q"], 32) else { return };
        let device = NvmeDevice::open(&on(&image, 16 * MIB, engine)).unwrap();
        let written = device.allocate(MIB).unwrap();
        let (written, _, result) = block_on(device.write(written, 0, vec![3u8; MIB as usize]));
        result.unwrap();
        let _ = std::fs::write(image.root().join("others"), vec![1; 32 * MIB as usize]);
        let mut failed = 0;
        while let Some(place) = device.allocate(MIB) {
            let (_, source, result) = block_on(device.write(place, 0, vec![4u8; MIB as usize]));
            assert_eq!(io_code(&result), Some(ENOSPC), "{result:?}");
            assert_eq!(source.len() as u64, MIB, "the buffer comes back");
            failed += 1;
        }
        assert_eq!(failed, 8, "then it gives no more places");
        assert_eq!(device.files()[0].errors, 8);
        let (_, bytes, result) = block_on(device.read(written, 0, vec![0u8; MIB as usize]));
        result.unwrap();
        assert!(bytes == vec![3u8; MIB as usize]);
        // Once there is room it recovers by itself.
        std::fs::remove_file(image.root().join("others")).unwrap();
        recovers(&device);
    }
}

/// Asks until the file is healthy again; each question may have it looked at.
fn recovers(device: &NvmeDevice) {
    while device.files()[0].health != DeviceHealth::Healthy {
        std::thread::yield_now();
    }
    assert!(device.allocate(4096).is_some());
}

#[test]
fn a_disk_that_fails_is_taken_out_of_service_and_comes_back() {
    for engine in ENGINES {
        let Some(image) = Image::mount(&["mkfs.ext4", "-q", "-O", "^has_journal"], 32) else { return };
        let device = NvmeDevice::open(&on(&image, 16 * MIB, engine)).unwrap();
        let place = device.allocate(MIB).unwrap();
        let (place, source, result) = block_on(device.write(place, 0, vec![3u8; MIB as usize]));
        result.unwrap();
        block_on(device.sync()).unwrap();

        let disk = std::fs::metadata(image.file()).unwrap().len();
        image.break_from(0);
        let mut place = place;
        let mut codes = Vec::new();
        while device.0.files[0].health.get() != DeviceHealth::Failed {
            let (back, target, result) = block_on(device.read(place, 0, vec![9u8; MIB as usize]));
            assert_eq!(target.len() as u64, MIB, "the buffer comes back");
            codes.push(io_code(&result));
            place = back;
        }
        assert_eq!(codes, vec![Some(EIO); 8], "eight failures in a row, then no more");
        assert!(device.allocate(MIB).is_none(), "no new places on a failed disk");
        let (back, _, result) = block_on(device.read(place, 0, vec![0u8; MIB as usize]));
        assert!(result.is_err());

        image.mend(disk);
        recovers(&device);
        let (_, target, result) = block_on(device.read(back, 0, vec![0u8; MIB as usize]));
        result.unwrap();
        assert!(target != source, "what was behind the disk is gone: the block's checksum would tell");
    }
}

#[test]
fn a_raw_device_serves_unless_it_is_mounted() {
    let Some(image) = Image::mount(&["mkfs.ext4", "-q"], 32) else { return };
    let found = command("findmnt", &["-n", "-o", "SOURCE", image.root().to_str().unwrap()]).unwrap();
    let mounted = PathBuf::from(String::from_utf8(found.stdout).unwrap().trim());
    let at = |path: &Path, bytes| {
        let paths = vec![NvmePath { path: path.to_path_buf(), bytes }];
        NvmeOptions { paths, queue_depth: 4, extent_bytes: MIB, ..NvmeOptions::default() }
    };
    let error = NvmeDevice::open(&at(&mounted, 8 * MIB)).unwrap_err();
    assert!(matches!(error, NvmeError::InUse { .. }), "{error}");

    let raw = image.dir.path().join("raw");
    std::fs::File::create(&raw).unwrap().set_len(8 * MIB).unwrap();
    let attached = command("losetup", &["--find", "--show", raw.to_str().unwrap()]).unwrap();
    let device = PathBuf::from(String::from_utf8(attached.stdout).unwrap().trim());
    let error = NvmeDevice::open(&at(&device, 8 * MIB)).unwrap_err();
    assert!(matches!(error, NvmeError::TooBig { room_bytes, .. } if room_bytes == 7 * MIB), "{error}");
    let opened = NvmeDevice::open(&at(&device, 7 * MIB)).unwrap();
    check_device(&opened);
    assert!(opened.files()[0].direct);
    drop(opened);
    command("losetup", &["-d", device.to_str().unwrap()]).unwrap();
}
