//! What is refused at the start, and what a file keeps when it is opened otherwise.

use std::os::unix::fs::FileExt;

use super::{super::header::Header, *};

fn at(path: &Path, bytes: u64) -> NvmeOptions {
    let path = NvmePath { path: path.to_path_buf(), bytes };
    NvmeOptions { paths: vec![path], queue_depth: 4, ..NvmeOptions::default() }
}

fn refused(options: &NvmeOptions) -> NvmeError {
    NvmeDevice::open(options).expect_err("refused")
}

#[test]
fn two_paths_to_one_file_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(dir.path(), &link).unwrap();
    for other in [dir.path().to_path_buf(), link, dir.path().join("kelvin.blocks")] {
        let options = options(&[dir.path(), &other], NvmeEngine::Auto);
        let error = refused(&options);
        assert!(matches!(error, NvmeError::Overlap { .. }), "{error}");
        assert!(error.to_string().contains("give each path its own"));
    }
}

#[test]
fn a_file_serves_one_device_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(&[dir.path()], NvmeEngine::Auto);
    let device = NvmeDevice::open(&options).unwrap();
    assert!(matches!(refused(&options), NvmeError::InUse { .. }));
    drop(device);
    NvmeDevice::open(&options).unwrap();
}

#[test]
fn sizes_that_do_not_divide_are_refused_with_those_that_do() {
    let dir = tempfile::tempdir().unwrap();
    let error = refused(&at(dir.path(), 100_000_000));
    assert!(matches!(error, NvmeError::DoesNotDivide { unit_bytes: 4096, .. }));
    assert!(error.to_string().ends_with("give 99999744 or 100003840"), "{error}");
    let extents = |extent_bytes, bytes| NvmeOptions { extent_bytes, ..at(dir.path(), bytes) };
    assert!(matches!(refused(&extents(MIB, MIB + 4096)), NvmeError::DoesNotDivide { unit_bytes: MIB, .. }));
    assert!(matches!(refused(&extents(5000, 10_000)), NvmeError::ExtentBytes { .. }));
    assert!(matches!(refused(&extents(2 * MIB, MIB)), NvmeError::TooSmall { .. }));
    assert!(matches!(refused(&at(dir.path(), 0)), NvmeError::TooSmall { .. }));
    assert!(matches!(refused(&at(dir.path(), u64::MAX - 4095)), NvmeError::TooBig { .. }));
    assert!(!dir.path().join("kelvin.blocks").exists(), "nothing is made for a bad size");
    let none = NvmeOptions::default();
    assert!(matches!(refused(&none), NvmeError::Paths { found: 0, .. }));
    let depth = NvmeOptions { queue_depth: 0, ..at(dir.path(), MIB) };
    assert!(matches!(refused(&depth), NvmeError::QueueDepth { .. }));
}

#[test]
fn more_than_the_disk_has_is_refused_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let error = refused(&at(dir.path(), 1 << 60));
    assert!(matches!(error, NvmeError::TooBig { room_bytes, .. } if room_bytes < 1 << 60), "{error}");
    assert!(!dir.path().join("kelvin.blocks").exists());
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("precious");
    std::fs::write(&path, b"somebody's thesis").unwrap();
    assert!(matches!(refused(&at(&path, MIB)), NvmeError::Foreign { .. }));
    assert_eq!(std::fs::read(&path).unwrap(), b"somebody's thesis");
    let socket = dir.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    assert!(matches!(refused(&at(&socket, MIB)), NvmeError::Unsuitable { .. }));
    assert!(matches!(refused(&at(&dir.path().join("no/such"), MIB)), NvmeError::Io { .. }));
}

#[test]
fn another_format_is_refused_and_a_damaged_header_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let options = at(dir.path(), 4 * MIB);
    let uuid = NvmeDevice::open(&options).unwrap().files()[0].uuid;
    let path = dir.path().join("kelvin.blocks");
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[9], 8).unwrap();
    assert!(matches!(refused(&options), NvmeError::Version { found: 9, .. }));
    file.write_all_at(&[1], 8).unwrap();
    file.write_all_at(&[0xff], 40).unwrap();
    assert_ne!(NvmeDevice::open(&options).unwrap().files()[0].uuid, uuid);
}

#[test]
fn a_file_grows_and_shrinks_and_keeps_its_blocks() {
    let dir = tempfile::tempdir().unwrap();
    // The directory is made.
    let path = dir.path().join("made");
    let sized = |extents: u64| NvmeOptions { extent_bytes: MIB, ..at(&path, extents * MIB) };
    let device = NvmeDevice::open(&sized(2)).unwrap();
    let uuid = device.files()[0].uuid;
    let first = device.allocate(MIB).unwrap();
    let (first, _, result) = block_on(device.write(first, 0, vec![1u8; MIB as usize]));
    result.unwrap();
    let last = device.allocate(MIB).unwrap();
    let addresses = [(first.address(), MIB), (last.address(), MIB)];
    drop((first, last, device));
    for (extents, kept) in [(4, [true, true]), (1, [true, false]), (2, [true, true])] {
        let device = NvmeDevice::open(&sized(extents)).unwrap();
        assert_eq!(device.files()[0].uuid, uuid);
        let slots = device.claim_all(&addresses);
        assert_eq!(slots.iter().map(Option::is_some).collect::<Vec<_>>(), kept);
        let first = slots.into_iter().next().flatten().unwrap();
        let (_, bytes, result) = block_on(device.read(first, 0, vec![0u8; MIB as usize]));
        result.unwrap();
        assert!(bytes == vec![1u8; MIB as usize]);
        assert_eq!(device.usage().capacity_bytes, extents * MIB);
        assert_eq!(std::fs::metadata(path.join("kelvin.blocks")).unwrap().len(), (extents + 1) * MIB);
    }
    assert_eq!(NvmeDevice::open(&at(&path, 2 * MIB)).unwrap().block_bytes_max(), MIB, "as the file has it");
    let error = refused(&NvmeOptions { extent_bytes: 2 * MIB, ..sized(2) });
    assert!(matches!(error, NvmeError::OtherExtents { found: MIB, .. }), "{error}");
}

#[test]
fn a_header_beyond_reason_is_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("blocks");
    let header = Header { uuid: [1; 16], extent_bytes: 1 << 62, room_bytes: 1 << 63 };
    std::fs::write(&path, header.encode()).unwrap();
    assert!(matches!(refused(&at(&path, 4 * MIB)), NvmeError::TooSmall { .. }));
}

#[test]
fn threads_stand_in_where_io_uring_is_forbidden() {
    let forbidden = || Err(std::io::Error::from_raw_os_error(1));
    assert_eq!(choose_engine(NvmeEngine::Auto, forbidden).unwrap(), NvmeEngine::Pread);
    assert_eq!(choose_engine(NvmeEngine::Pread, forbidden).unwrap(), NvmeEngine::Pread);
    let error = choose_engine(NvmeEngine::Uring, forbidden).unwrap_err();
    assert!(error.to_string().contains("choose the engine auto or pread"), "{error}");
    assert_eq!(choose_engine(NvmeEngine::Auto, || Ok(())).unwrap(), NvmeEngine::Uring);
}
