//! A device that fails when told to.
//!
//! # Fault model
//! One fault is armed at a time. Most strike the next operation of their kind and are over; a slow or a
//! vanished device stays so until [`Faulty::heal`]. Errors are reported; a torn write and a flipped bit are
//! silent, as they are on hardware: only a checksum finds them. Where a silent fault strikes follows from the
//! seed.

use std::{io, time::Duration};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::{Device, DeviceError, Tier, Usage};

/// What goes wrong next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The next write fails with EIO and writes nothing.
    WriteError,
    /// The next read fails with EIO.
    ReadError,
    /// The next write keeps only its first half.
    TornWrite,
    /// The next read returns one flipped bit.
    BitFlip,
    /// The next read fails with its buffer half filled.
    ShortRead,
    /// The next write fails with ENOSPC and writes nothing: a file system that others filled.
    NoSpace,
    /// The next allocation finds the device full.
    Full,
    /// Every read and write takes so much longer.
    SlowDown(Duration),
    /// Every read and write fails with ENODEV, and nothing can be allocated: a device that was pulled out.
    Vanish,
}

/// A device with faults on demand.
pub struct Faulty<D> {
    inner: D,
    seed: u64,
    armed: Mutex<Option<Fault>>,
}

impl<D> Faulty<D> {
    /// Wraps a device; silent faults strike where `seed` says.
    pub fn new(inner: D, seed: u64) -> Self {
        Self { inner, seed, armed: Mutex::new(None) }
    }

    /// Arms a fault in place of any armed before.
    pub fn inject(&self, fault: Fault) {
        *self.armed.lock() = Some(fault);
    }

    /// Disarms whatever is armed.
    pub fn heal(&self) {
        *self.armed.lock() = None;
    }

    /// Whether the device was pulled out.
    pub fn is_away(&self) -> bool {
        *self.armed.lock() == Some(Fault::Vanish)
    }

    /// The device itself.
    pub fn inner(&self) -> &D {
        &self.inner
    }

    fn strikes(&self, fault: Fault) -> bool {
        let mut armed = self.armed.lock();
        let hit = *armed == Some(fault);
        if hit {
            *armed = None;
        }
        hit
    }

    /// What befalls every operation; else what befalls this kind once.
    async fn befalls(&self, once: &[(Fault, i32)]) -> Option<io::Error> {
        let lasting = *self.armed.lock();
        match lasting {
            Some(Fault::SlowDown(delay)) => pause(delay).await,
            Some(Fault::Vanish) => return Some(io::Error::from_raw_os_error(ENODEV)),
            _ => {}
        }
        let (_, code) = once.iter().find(|&&(fault, _)| self.strikes(fault))?;
        Some(io::Error::from_raw_os_error(*code))
    }
}

const EIO: i32 = 5;
const ENODEV: i32 = 19;
const ENOSPC: i32 = 28;

/// Waits on a thread of its own, so that it works under any runtime and under none.
async fn pause(delay: Duration) {
    let (over, is_over) = oneshot::channel();
    std::thread::spawn(move || {
        std::thread::sleep(delay);
        let _ = over.send(());
    });
    let _ = is_over.await;
}

impl<D: Device> Device for Faulty<D> {
    type Place = D::Place;

    fn tier(&self) -> Tier {
        self.inner.tier()
    }

    fn allocate(&self, bytes: u64) -> Option<D::Place> {
        if self.is_away() || self.strikes(Fault::Full) { None } else { self.inner.allocate(bytes) }
    }

    async fn write<B: AsRef<[u8]> + Send + 'static>(
        &self,
        place: D::Place,
        offset: u64,
        source: B,
    ) -> (D::Place, B, Result<(), DeviceError>) {
        if let Some(error) = self.befalls(&[(Fault::WriteError, EIO), (Fault::NoSpace, ENOSPC)]).await {
            return (place, source, Err(DeviceError::Io { action: "write block", source: error }));
        }
        if self.strikes(Fault::TornWrite) {
            let half = source.as_ref()[..source.as_ref().len() / 2].to_vec();
            let (place, _, result) = self.inner.write(place, offset, half).await;
            return (place, source, result);
        }
        self.inner.write(place, offset, source).await
    }

    async fn read<P, B>(&self, place: P, offset: u64, target: B) -> (P, B, Result<(), DeviceError>)
    where
        P: AsRef<D::Place> + Send + 'static,
        B: AsMut<[u8]> + Send + 'static,
    {
        let failed = |source| Err(DeviceError::Io { action: "read block", source });
        if let Some(error) = self.befalls(&[(Fault::ReadError, EIO)]).await {
            return (place, target, failed(error));
        }
        if self.strikes(Fault::ShortRead) {
            let mut target = target;
            let half = vec![0; target.as_mut().len() / 2];
            let (place, half, result) = self.inner.read(place, offset, half).await;
            target.as_mut()[..half.len()].copy_from_slice(&half);
            return (place, target, result.and(failed(io::ErrorKind::UnexpectedEof.into())));
        }
        let (place, mut target, result) = self.inner.read(place, offset, target).await;
        if result.is_ok() && !target.as_mut().is_empty() && self.strikes(Fault::BitFlip) {
            let bytes = target.as_mut();
            let bit = (self.seed as usize) % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        (place, target, result)
    }

    fn usage(&self) -> Usage {
        self.inner.usage()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DramPool, testing::block_on};

    fn device() -> (Faulty<DramPool>, crate::DramSlot) {
        let device = Faulty::new(DramPool::new("test", 1 << 20).unwrap(), 3);
        let place = device.allocate(8192).unwrap();
        let (place, _, result) = block_on(device.write(place, 0, vec![1u8; 8192]));
        result.unwrap();
        (device, place)
    }

    fn code(result: Result<(), DeviceError>) -> Option<i32> {
        match result {
            Err(DeviceError::Io { source, .. }) => source.raw_os_error(),
            _ => None,
        }
    }

    #[test]
    fn a_short_read_is_reported_and_fills_half() {
        let (device, place) = device();
        device.inject(Fault::ShortRead);
        let (place, target, result) = block_on(device.read(place, 0, vec![0u8; 8192]));
        assert!(
            matches!(result, Err(DeviceError::Io { source, .. }) if source.kind() == io::ErrorKind::UnexpectedEof)
        );
        assert!(target[..4096].iter().all(|&byte| byte == 1) && target[4096..].iter().all(|&byte| byte == 0));
        assert!(block_on(device.read(place, 0, target)).2.is_ok(), "once");
    }

    #[test]
    fn no_space_strikes_writes_alone() {
        let (device, place) = device();
        device.inject(Fault::NoSpace);
        let (place, _, result) = block_on(device.read(place, 0, vec![0u8; 8192]));
        result.unwrap();
        assert_eq!(code(block_on(device.write(place, 0, vec![2u8; 8192])).2), Some(ENOSPC));
    }

    #[test]
    fn a_vanished_device_stays_away_until_healed() {
        let (device, mut place) = device();
        device.inject(Fault::Vanish);
        for _ in 0..3 {
            assert!(device.allocate(8192).is_none());
            let written = block_on(device.write(place, 0, vec![2u8; 8192]));
            assert_eq!(code(written.2), Some(ENODEV));
            let read = block_on(device.read(written.0, 0, vec![0u8; 8192]));
            assert_eq!(code(read.2), Some(ENODEV));
            place = read.0;
        }
        device.heal();
        assert!(device.allocate(8192).is_some());
        let (_, target, result) = block_on(device.read(place, 0, vec![0u8; 8192]));
        assert!(result.is_ok() && target == vec![1u8; 8192], "nothing was written meanwhile");
    }

    #[test]
    fn a_slow_device_gets_there() {
        let (device, place) = device();
        device.inject(Fault::SlowDown(Duration::from_millis(1)));
        let (place, _, result) = block_on(device.read(place, 0, vec![0u8; 8192]));
        result.unwrap();
        block_on(device.write(place, 0, vec![2u8; 8192])).2.unwrap();
    }
}
