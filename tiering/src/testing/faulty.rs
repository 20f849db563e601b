//! A device that fails when told to.
//!
//! # Fault model
//! One fault is armed at a time and strikes the next operation of its kind. Errors are reported; a torn
//! write and a flipped bit are silent, as they are on hardware: only a checksum finds them. Where a silent
//! fault strikes follows from the seed.

use parking_lot::Mutex;

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
    /// The next allocation finds the device full.
    Full,
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

    /// The device without faults.
    pub fn inner(&self) -> &D {
        &self.inner
    }

    /// Arms a fault in place of any armed before.
    pub fn inject(&self, fault: Fault) {
        *self.armed.lock() = Some(fault);
    }

    fn strikes(&self, fault: Fault) -> bool {
        let mut armed = self.armed.lock();
        let hit = *armed == Some(fault);
        if hit {
            *armed = None;
        }
        hit
    }
}

fn eio(action: &'static str) -> DeviceError {
    DeviceError::Io { action, source: std::io::Error::from_raw_os_error(5) }
}

impl<D: Device> Device for Faulty<D> {
    type Place = D::Place;

    fn tier(&self) -> Tier {
        self.inner.tier()
    }

    fn allocate(&self, bytes: u64) -> Option<D::Place> {
        if self.strikes(Fault::Full) { None } else { self.inner.allocate(bytes) }
    }

    async fn write<B: AsRef<[u8]> + Send + 'static>(
        &self,
        place: D::Place,
        offset: u64,
        source: B,
    ) -> (D::Place, B, Result<(), DeviceError>) {
        if self.strikes(Fault::WriteError) {
            return (place, source, Err(eio("write block")));
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
        if self.strikes(Fault::ReadError) {
            return (place, target, Err(eio("read block")));
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
