//! The device under the NVMe tier: the real one, or in tests the real one with faults on demand.

#[cfg(test)]
use kelvin_tiering::testing::Faulty;
use kelvin_tiering::{Device, DeviceError, DeviceHealth, NvmeAddress, NvmeDevice, NvmeSlot, Tier, Usage};

/// What the tier writes to.
pub(super) enum Flash {
    #[cfg_attr(test, allow(dead_code, reason = "tests run on the faulty one"))]
    Nvme(NvmeDevice),
    #[cfg(test)]
    Faulty(std::sync::Arc<Faulty<NvmeDevice>>),
}

impl Flash {
    /// The way to inject faults.
    #[cfg(test)]
    pub(super) fn faulty(&self) -> &Faulty<NvmeDevice> {
        match self {
            Self::Faulty(device) => device,
            Self::Nvme(_) => panic!("tests run on the faulty device"),
        }
    }

    /// The device for a tier.
    pub(super) fn new(device: NvmeDevice) -> Self {
        #[cfg(test)]
        return Self::Faulty(std::sync::Arc::new(Faulty::new(device, 7)));
        #[cfg(not(test))]
        Self::Nvme(device)
    }

    fn nvme(&self) -> &NvmeDevice {
        match self {
            Self::Nvme(device) => device,
            #[cfg(test)]
            Self::Faulty(device) => device.inner(),
        }
    }

    /// Takes the slots that the catalog names.
    pub(super) fn claim_all(&self, wanted: &[(NvmeAddress, u64)]) -> Vec<Option<NvmeSlot>> {
        self.nvme().claim_all(wanted)
    }

    pub(super) async fn sync(&self) -> Result<(), DeviceError> {
        self.nvme().sync().await
    }

    /// Whether every file of it works.
    pub(super) fn is_healthy(&self) -> bool {
        !self.is_away() && self.nvme().health().all(|health| health == DeviceHealth::Healthy)
    }

    /// Whether blocks of some file can be read.
    pub(super) fn reads(&self) -> bool {
        !self.is_away() && self.nvme().health().any(|health| health != DeviceHealth::Failed)
    }

    /// Whether some file takes blocks.
    pub(super) fn takes_writes(&self) -> bool {
        !self.is_away() && self.nvme().health().any(|health| health == DeviceHealth::Healthy)
    }

    /// Whether the file of a slot can be read.
    pub(super) fn reads_from(&self, slot: &NvmeSlot) -> bool {
        !self.is_away() && self.nvme().health_at(slot) != DeviceHealth::Failed
    }

    /// A device that a test has pulled out; of a real one its health tells.
    fn is_away(&self) -> bool {
        match self {
            Self::Nvme(_) => false,
            #[cfg(test)]
            Self::Faulty(device) => device.is_away(),
        }
    }

    /// The device itself.
    pub(super) fn device(&self) -> &NvmeDevice {
        self.nvme()
    }
}

impl Device for Flash {
    type Place = NvmeSlot;

    fn tier(&self) -> Tier {
        Tier::Nvme
    }

    fn allocate(&self, bytes: u64) -> Option<NvmeSlot> {
        match self {
            Self::Nvme(device) => device.allocate(bytes),
            #[cfg(test)]
            Self::Faulty(device) => device.allocate(bytes),
        }
    }

    async fn write<B: AsRef<[u8]> + Send + 'static>(
        &self,
        place: NvmeSlot,
        offset: u64,
        source: B,
    ) -> (NvmeSlot, B, Result<(), DeviceError>) {
        match self {
            Self::Nvme(device) => device.write(place, offset, source).await,
            #[cfg(test)]
            Self::Faulty(device) => device.write(place, offset, source).await,
        }
    }

    async fn read<P, B>(&self, place: P, offset: u64, target: B) -> (P, B, Result<(), DeviceError>)
    where
        P: AsRef<NvmeSlot> + Send + 'static,
        B: AsMut<[u8]> + Send + 'static,
    {
        match self {
            Self::Nvme(device) => device.read(place, offset, target).await,
            #[cfg(test)]
            Self::Faulty(device) => device.read(place, offset, target).await,
        }
    }

    fn usage(&self) -> Usage {
        self.nvme().usage()
    }
}
