//! Reading copies back from NVMe: checked, within a deadline.
//!
//! # What a failure means
//! A place that cannot be read, or has other bytes than were written, takes its copy along: the copy in the next
//! tier, or a miss, is as good. A device that is away or fails as a whole says nothing about its copies: they
//! stay, and are there again when it is.

use std::{future::Future, time::Duration};

use kelvin_kernels::{Checksum, checksum};
use kelvin_tiering::{Device, DeviceError, DramSlot};
use rustix::io::Errno;

use super::{
    LoadFailure,
    nvme::{Nvme, NvmeCopy},
};
use crate::{
    insight::Reason,
    store::{BlockKey, meters},
};

/// A read that takes longer than this is given up.
pub(super) const READ_DEADLINE: Duration = Duration::from_secs(5);
/// Slots kept away from use since their bytes came back wrong.
const QUARANTINE_MAX: usize = 64;

impl Nvme {
    /// Reads a copy into a slot of DRAM and checks it.
    pub(super) async fn load(
        &self,
        key: &BlockKey,
        copy: &NvmeCopy,
        target: DramSlot,
    ) -> Result<DramSlot, LoadFailure> {
        let (bytes, began) = (target.len(), meters::begin());
        let read = async {
            let permit = self.lane().read(target.len()).await.ok_or(LoadFailure::Busy)?;
            let (_, target, result) = self.device().read(copy.slot.clone(), 0, target).await;
            result.map_err(|error| self.failed(key, copy, &error))?;
            permit.done();
            Ok(target)
        };
        // The wait for the turn counts: with a slow device each turn ahead takes the whole deadline.
        let target = self.in_time(read).await?;
        self.check(key, copy, target.bytes())?;
        self.counters.to_dram.note(bytes, began);
        Ok(target)
    }

    /// The bytes of a copy, checked, behind everything else that waits for the device.
    pub(super) async fn read_quietly(&self, key: &BlockKey, copy: &NvmeCopy) -> Result<Vec<u8>, LoadFailure> {
        let bytes = copy.slot.bytes();
        // A place among the writes: those wait for reads.
        let mut permit = self.lane().write(bytes).await.ok_or(LoadFailure::Busy)?;
        let read = async {
            let (_, bytes, result) = self.device().read(copy.slot.clone(), 0, vec![0; bytes as usize]).await;
            result.map(|()| bytes).map_err(|error| self.failed(key, copy, &error))
        };
        let bytes = self.in_time(read).await?;
        // It says nothing about the speed of writes.
        permit.give_back();
        drop(permit);
        self.check(key, copy, &bytes)?;
        Ok(bytes)
    }

    async fn in_time<T>(&self, read: impl Future<Output = Result<T, LoadFailure>>) -> Result<T, LoadFailure> {
        tokio::time::timeout(self.read_deadline, read).await.unwrap_or_else(|_| {
            self.counters.timeouts.add(1);
            Err(LoadFailure::Late)
        })
    }

    fn failed(&self, key: &BlockKey, copy: &NvmeCopy, error: &DeviceError) -> LoadFailure {
        if is_away(error) || !self.device().reads_from(&copy.slot) {
            tracing::debug!(block = %key.hash, %error, "NVMe is out of reach");
            return LoadFailure::Busy;
        }
        tracing::warn!(block = %key.hash, %error, "a block could not be read from NVMe: its copy is dropped");
        self.drop_this(key, copy, Reason::TierFailed);
        LoadFailure::Failed
    }

    fn check(&self, key: &BlockKey, copy: &NvmeCopy, bytes: &[u8]) -> Result<(), LoadFailure> {
        let found = checksum(bytes);
        if found == copy.checksum {
            return Ok(());
        }
        self.quarantine(key, copy, found);
        Err(LoadFailure::Damaged)
    }

    /// Drops a copy whose bytes are wrong, and keeps its slot from being used again for now.
    fn quarantine(&self, key: &BlockKey, copy: &NvmeCopy, found: Checksum) {
        let at = copy.slot.address();
        tracing::error!(block = %key.hash, expected = %copy.checksum, %found, file = at.file, offset = at.offset,
            "damaged block on NVMe dropped");
        self.counters.damaged.add(1);
        {
            let mut table = self.copies.lock();
            let kept = &mut table.more.quarantine;
            if kept.len() < QUARANTINE_MAX && !kept.iter().any(|slot| slot.address() == at) {
                kept.push(copy.slot.clone());
            }
        }
        self.drop_this(key, copy, Reason::Quarantined);
    }
}

/// Whether the device is not there, or known to fail everything.
fn is_away(error: &DeviceError) -> bool {
    match error {
        DeviceError::Unavailable => true,
        DeviceError::Io { source, .. } => {
            matches!(Errno::from_io_error(source), Some(Errno::NODEV | Errno::NXIO))
        }
        DeviceError::OutOfBounds { .. } => false,
    }
}
