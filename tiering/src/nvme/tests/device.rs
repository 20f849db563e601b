//! What every device does, what this one keeps over a restart, and odd buffers and ranges.

use super::*;

#[test]
fn conforms() {
    for engine in ENGINES {
        for (direct, staging) in [(true, Staging::Never), (true, Staging::Always), (false, Staging::Auto)] {
            let dir = tempfile::tempdir().unwrap();
            let options = NvmeOptions { direct, staging, ..options(&[dir.path()], engine) };
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
    assert_ne!(files[0].uuid, files[1].uuid);
    let places: Vec<_> = (0..10).map(|_| device.allocate(65_536).unwrap()).collect();
    assert_eq!(places.iter().filter(|place| place.address().file == 0).count(), 5);
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

#[test]
fn a_probe_leaves_no_trace_and_measures_a_full_file_too() {
    let dir = tempfile::tempdir().unwrap();
    let device = NvmeDevice::open(&options(&[dir.path()], NvmeEngine::Auto)).unwrap();
    let probes = block_on(device.probe(None));
    assert!(probes.len() == 1 && probes[0].read.is_some() && probes[0].write.is_some(), "{}", probes[0]);
    // What the probe found best is what operations do from now on.
    let staged = [probes[0].read, probes[0].write].map(|rate| rate.unwrap().staged);
    assert_eq!(device.files()[0].staged, staged);
    assert_eq!(device.usage().places, 0);
    let places: Vec<_> = std::iter::from_fn(|| device.allocate(MIB)).collect();
    let probes = block_on(device.probe(None));
    assert!(probes[0].read.is_some() && probes[0].write.is_none(), "{}", probes[0]);
    drop(places);
}

#[test]
fn an_emptied_extent_takes_another_size() {
    let dir = tempfile::tempdir().unwrap();
    let device = NvmeDevice::open(&options(&[dir.path()], NvmeEngine::Auto)).unwrap();
    let mut places: Vec<_> = std::iter::from_fn(|| device.allocate(65_536)).collect();
    assert_eq!(places.len() as u64, 4 * MIB / 65_536);
    assert!(device.allocate(100_000).is_none());
    let (extent, used) = device.extent_of(&places[20]);
    assert_eq!(u64::from(used), MIB / 65_536);
    places.retain(|place| device.extent_of(place).0 != extent);
    let place = device.allocate(100_000).unwrap();
    assert_eq!(device.extent_of(&place), (extent, 1));
}

#[test]
fn claims_answer_in_order_and_refuse_what_cannot_be() {
    let dir = tempfile::tempdir().unwrap();
    let device = NvmeDevice::open(&options(&[dir.path()], NvmeEngine::Auto)).unwrap();
    let at = |file, offset| NvmeAddress { file, offset };
    let wanted = [
        (at(0, MIB), 65_536),
        // Taken, another size in a bound extent, across an extent's end, outside, in the header, no such
        // file, sizes that no slot has.
        (at(0, MIB), 65_536),
        (at(0, MIB + 65_536), 4096),
        (at(0, 3 * MIB - 65_536), 2 * 65_536),
        (at(0, 5 * MIB), 65_536),
        (at(0, 4096), 4096),
        (at(1, MIB), 65_536),
        (at(0, 2 * MIB), 0),
        (at(0, 2 * MIB), u64::MAX),
        (at(0, u64::MAX), 65_536),
        // A block that leaves a part of its last page.
        (at(0, 2 * MIB + 8192), 5000),
    ];
    let slots = device.claim_all(&wanted);
    let got: Vec<bool> = slots.iter().map(Option::is_some).collect();
    let mut expected = vec![false; wanted.len()];
    (expected[0], expected[wanted.len() - 1]) = (true, true);
    assert_eq!(got, expected);
    assert_eq!(device.usage().places, 2);
    drop(slots);
    assert_eq!(device.usage().used_bytes, 0);
}

#[test]
fn memory_on_a_page_boundary_moves_too() {
    for engine in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let device = NvmeDevice::open(&options(&[dir.path()], engine)).unwrap();
        let dram = DramPool::new("test", 4 * MIB).unwrap();
        let other = DramPool::new("test", 4 * MIB).unwrap();
        // Whole pages, a part of one at the end, and nothing but a part.
        for (i, bytes) in [65_536, 70_000, 100].into_iter().cycle().take(9).enumerate() {
            // At first none is registered, then another, then this one too.
            if let (3, pool) | (6, pool) = (i, if i == 3 { &other } else { &dram }) {
                block_on(device.register(pool)).unwrap();
            }
            let mut source = dram.allocate(bytes).unwrap();
            source.bytes_mut().iter_mut().enumerate().for_each(|(i, byte)| *byte = (i / 7) as u8);
            let place = device.allocate(bytes).unwrap();
            let (place, source, result) = block_on(device.write(place, 0, source));
            result.unwrap();
            let target = dram.allocate(bytes).unwrap();
            let (_, target, result) = block_on(device.read(place, 0, target));
            result.unwrap();
            assert!(target.bytes() == source.bytes(), "{bytes} bytes by {engine}");
        }
    }
}

#[test]
fn many_at_once_keep_apart() {
    for engine in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let device = NvmeDevice::open(&options(&[dir.path()], engine)).unwrap();
        let places: Vec<_> = std::iter::from_fn(|| device.allocate(20_000)).collect();
        // More than the queues hold.
        let writes =
            places.into_iter().enumerate().map(|(i, place)| device.write(place, 0, vec![i as u8; 20_000]));
        let written = block_on(futures::future::join_all(writes));
        let reads = written.into_iter().map(|(place, source, result)| {
            result.unwrap();
            let device = &device;
            async move { (device.read(place, 0, vec![0u8; 20_000]).await, source) }
        });
        for ((_, target, result), source) in block_on(futures::future::join_all(reads)) {
            result.unwrap();
            assert!(target == source);
        }
        assert_eq!(device.files()[0].pending, 0);
    }
}

#[test]
fn a_buffer_and_a_place_outlive_whoever_gave_up() {
    let dir = tempfile::tempdir().unwrap();
    let device = NvmeDevice::open(&options(&[dir.path()], NvmeEngine::Auto)).unwrap();
    let places: Vec<_> = std::iter::from_fn(|| device.allocate(MIB / 2)).collect();
    for place in places {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let mut given_up = Box::pin(device.write(place, 0, vec![1u8; MIB as usize / 2]));
        let _ = std::future::Future::poll(given_up.as_mut(), &mut context);
    }
    // Ends when the operations have ended, and not before.
    drop(device);
    let device = NvmeDevice::open(&options(&[dir.path()], NvmeEngine::Auto)).unwrap();
    assert_eq!(device.usage().places, 0);
}

/// What is written through registered memory is on the file, every byte, by another way of reading it.
#[test]
fn large_blocks_of_registered_memory_arrive_whole() {
    use std::os::unix::fs::FileExt;

    let dir = tempfile::tempdir().unwrap();
    let paths = vec![NvmePath { path: dir.path().to_path_buf(), bytes: 48 * MIB }];
    let device = NvmeDevice::open(&NvmeOptions { paths, ..NvmeOptions::default() }).unwrap();
    let dram = DramPool::new("test", 160 * MIB).unwrap();
    block_on(device.register(&dram)).unwrap();
    let bytes = 5 * MIB + 4096;
    let word = |block: u64, at: usize| (block << 32 | at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let writes = (0..5).map(|block| {
        let (place, mut source) = (device.allocate(bytes).unwrap(), dram.allocate(bytes).unwrap());
        for (at, bytes) in source.bytes_mut().chunks_exact_mut(8).enumerate() {
            bytes.copy_from_slice(&word(block, at).to_le_bytes());
        }
        device.write(place, 0, source)
    });
    let written = block_on(futures::future::join_all(writes));
    let file = std::fs::File::open(dir.path().join("kelvin.blocks")).unwrap();
    for (place, source, result) in written {
        result.unwrap();
        let mut found = vec![0; bytes as usize];
        file.read_exact_at(&mut found, place.address().offset).unwrap();
        assert!(found == source.bytes());
        let (_, target, result) = block_on(device.read(place, 0, dram.allocate(bytes).unwrap()));
        result.unwrap();
        assert!(target.bytes() == found);
    }
}
