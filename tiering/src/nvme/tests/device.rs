//! What every device does, what this one keeps over a restart, and odd buffers and ranges.

use super::*;

#[test]
fn conforms() {
    for engine in ENGINES {
        for (direct, staged) in [(true, false), (true, true), (false, false)] {
            let dir = tempfile::tempdir().unwrap();
            let options = NvmeOptions { direct, staged, ..options(&[dir.path()], engine) };
            check_device(&NvmeDevice::open(&options).unwrap());
            check_device(&Faulty::new(NvmeDevice::open(&options).unwrap(), 1));
        }
    }
}

#[test]
fn several_files_conform_and_share_the_load() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let device = NvmeDevice::open(&options(&[dirs[0].path(), dirs[1].path()], NvmeEngine::Auto)).unwrap();
    check_device(&device);
    let files = device.files();
    assert_eq!(files[0].writes, files[1].writes);
    assert_ne!(files[0].uuid, files[1].uuid);
}

#[test]
fn a_restart_finds_the_blocks_again() {
    for engine in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let options = options(&[dir.path()], engine);
        let device = NvmeDevice::open(&options).unwrap();
        let uuid = device.files()[0].uuid;
        let place = device.allocate(10_000).unwrap();
        let (place, source, result) = block_on(device.write(place, 0, vec![7u8; 10_000]));
        result.unwrap();
        block_on(device.sync()).unwrap();
        let address = place.address();
        drop((place, device));

        let device = NvmeDevice::open(&options).unwrap();
        assert_eq!(device.files()[0].uuid, uuid);
        let place = device.claim(address, 10_000).unwrap();
        assert!(device.claim(address, 10_000).is_none(), "a slot is claimed once");
        assert_eq!(device.usage().places, 1);
        let (_, target, result) = block_on(device.read(place, 0, vec![0u8; 10_000]));
        result.unwrap();
        assert_eq!(target, source);
    }
}
