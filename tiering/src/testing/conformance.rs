//! What every device must do, as one function to call from its tests.

use std::{
    future::Future,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::Thread,
};

use crate::{Device, DeviceError};

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future on this thread; devices bring no runtime of their own into tests.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|i| (i.wrapping_mul(0x9e37_79b9) ^ seed.wrapping_mul(131)) as u8).collect()
}

/// Panics where `device`, fresh and empty, does not do what [`Device`] says.
pub fn check_device<D: Device>(device: &D) {
    let block = 12_288;
    assert_eq!(device.usage().used_bytes, 0, "the suite wants an empty device");
    assert!(device.allocate(0).is_none(), "no place for nothing");
    assert!(device.allocate(u64::MAX).is_none(), "no place for more than there is");

    // Fill it; every place keeps its own bytes.
    let mut places = Vec::new();
    while let Some(place) = device.allocate(block) {
        let seed = places.len() as u64;
        let (place, _, result) = block_on(device.write(place, 0, pattern(seed, block as usize)));
        result.expect("write a whole place");
        places.push(place);
    }
    assert!(places.len() > 2, "the suite wants room for three places");
    let usage = device.usage();
    assert_eq!(usage.places, places.len() as u64);
    assert!(usage.used_bytes >= usage.places * block && usage.used_bytes <= usage.capacity_bytes);

    let mut shared: Vec<Arc<D::Place>> = places.into_iter().map(Arc::new).collect();
    for (seed, place) in shared.iter().enumerate() {
        let expected = pattern(seed as u64, block as usize);
        let (_, bytes, result) = block_on(device.read(place.clone(), 0, vec![0; block as usize]));
        result.expect("read a whole place");
        assert!(bytes == expected, "place {seed} lost its bytes");
        let (_, bytes, result) = block_on(device.read(place.clone(), 4096, vec![0; 100]));
        result.expect("read a part");
        assert_eq!(bytes, expected[4096..4196]);
    }

    check_parts(device, shared.pop().expect("two places"));

    // Out of bounds is an error and changes nothing.
    let last = Arc::into_inner(shared.pop().expect("two places")).expect("the only owner");
    for offset in [block, block - 1, u64::MAX] {
        let (_, _, result) = block_on(device.read(shared[0].clone(), offset, vec![0; 2]));
        assert!(matches!(result, Err(DeviceError::OutOfBounds { .. })), "read at {offset}");
    }
    let (last, _, result) = block_on(device.write(last, 1, pattern(0, block as usize)));
    assert!(matches!(result, Err(DeviceError::OutOfBounds { .. })));

    // A dropped place can be had again.
    drop(last);
    assert!(device.allocate(block).is_some());
    drop(shared);
    assert_eq!(device.usage().used_bytes, 0, "every place came back");
}

/// A part of a place, whatever its edges, is written and read without touching the rest; memory on any
/// boundary serves; nothing at all is moved without fuss; an operation that nobody waits for does no harm.
fn check_parts<D: Device>(device: &D, place: Arc<D::Place>) {
    let mut place = Arc::into_inner(place).expect("the only owner");
    let mut expected = pattern(77, 12_288);
    let mut result;
    (place, _, result) = block_on(device.write(place, 0, expected.clone()));
    result.expect("write a whole place");
    let edges = [0, 1, 511, 512, 4095, 4096, 4097, 8192, 10_000, 12_287, 12_288];
    for (i, (from, to)) in edges.iter().flat_map(|&from| edges.map(|to| (from, to))).enumerate() {
        if from > to {
            continue;
        }
        let part = pattern(i as u64, to - from);
        expected[from..to].copy_from_slice(&part);
        (place, _, result) = block_on(device.write(place, from as u64, part));
        result.expect("write a part");
        let shared = Arc::new(place);
        let (_, bytes, result) = block_on(device.read(shared.clone(), 0, vec![0; 12_288]));
        result.expect("read a whole place");
        assert!(bytes == expected, "a write of {from}..{to} went wrong");
        let (_, bytes, result) = block_on(device.read(shared.clone(), from as u64, vec![0; to - from]));
        result.expect("read a part");
        assert!(bytes == expected[from..to], "a read of {from}..{to} went wrong");
        place = Arc::into_inner(shared).expect("the only owner");
    }

    let shared = Arc::new(place);
    {
        let mut context = Context::from_waker(Waker::noop());
        let mut given_up = pin!(device.read(shared.clone(), 0, vec![0; 12_288]));
        let _ = given_up.as_mut().poll(&mut context);
    }
    let (shared, bytes, result) = block_on(device.read(shared, 0, vec![0; 12_288]));
    result.expect("read after one that was given up");
    assert!(bytes == expected);
    // Whoever gave up may be a moment behind.
    let mut shared = shared;
    let place = loop {
        match Arc::try_unwrap(shared) {
            Ok(place) => break place,
            Err(other) => shared = other,
        }
        std::thread::yield_now();
    };
    drop(place);
}
