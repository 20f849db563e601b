//! What an operator says about the tiers below memory, and the checks of it before anything is opened.
//!
//! Every refusal says what to change, in the words of the command line.

mod disk;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use kelvin_tiering::Tier;

use disk::Spot;
pub use kelvin_tiering::PolicyKind;

/// An NVMe path's size is a multiple of this, an I/O page.
const NVME_UNIT_BYTES: u64 = 4096;
/// Less than this holds hardly a block.
const NVME_BYTES_MIN: u64 = 64 << 20;
/// Two packs.
const OBJECT_BYTES_MIN: u64 = 64 << 20;
/// Smaller packs cost requests, larger ones memory while they are written.
const PACK_BYTES: std::ops::RangeInclusive<u64> = 256 << 10..=512 << 20;
const NVME_PATHS_MAX: usize = 64;
const QUOTAS_MAX: usize = 1024;
/// Beyond this the filter remembers a block longer than anything useful.
const ADMISSION_MAX: u32 = 15;

/// The tiers below memory; by default there are none.
#[derive(Debug, Clone, Default)]
pub struct TierOptions {
    /// Directory of the catalog and of the store's secret. Both cold tiers need it.
    pub data: Option<PathBuf>,
    /// Where the NVMe tier has its blocks: striped over all of these.
    pub nvme: Vec<NvmeSpace>,
    /// The object tier.
    pub object: Option<ObjectSpace>,
    /// In which order blocks go, by tier; a tier that is not named has the default.
    pub policies: BTreeMap<Tier, PolicyKind>,
    /// Most bytes that a model may have in a tier.
    pub quotas: Vec<Quota>,
    /// A block is written to a cold tier the n-th time that it is asked for; 0 and 1: at once.
    pub admission: u32,
    /// Whether a block that is read back from a cold tier leaves it.
    pub exclusive: bool,
    /// When blocks are written to a cold tier.
    pub offload: Offload,
}

/// A directory, a file or a raw device of the NVMe tier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NvmeSpace {
    /// Absolute. In a directory, a file is made.
    pub path: PathBuf,
    /// How much of it; a multiple of 4096.
    pub bytes: u64,
}

/// A bucket, or a directory in place of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectSpace {
    /// `s3://bucket/prefix`, `file:///directory` or an absolute directory.
    pub url: String,
    /// Where the S3 service is, if it is not AWS: `https://host:port`.
    pub endpoint: Option<String>,
    /// Most bytes there; `None` for no bound.
    pub bytes: Option<u64>,
    /// Bytes of a pack, about; `None` for 32 MiB. A read is of a quarter of it at most.
    pub pack_bytes: Option<u64>,
}

/// Most bytes that one model may have in a tier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quota {
    /// In which tier.
    pub tier: Tier,
    /// The model's public name.
    pub model: String,
    /// How much.
    pub bytes: u64,
}

/// When blocks are written to a cold tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Offload {
    /// When they come near to being evicted.
    #[default]
    NearEviction,
    /// As soon as they are stored: survives a crash better, and writes what nobody reads.
    Eager,
}

impl FromStr for Offload {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "near-eviction" => Ok(Self::NearEviction),
            "eager" => Ok(Self::Eager),
            _ => Err(format!("{text:?} is no way to offload; write near-eviction or eager")),
        }
    }
}

impl fmt::Display for Offload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NearEviction => "near-eviction",
            Self::Eager => "eager",
        })
    }
}

/// The tier's name on the command line and in metrics.
pub fn tier_name(tier: Tier) -> &'static str {
    match tier {
        Tier::Hbm => "hbm",
        Tier::Dram => "dram",
        Tier::Nvme => "nvme",
        Tier::Object => "object",
    }
}

/// A tier by its name.
pub fn tier_of_name(name: &str) -> Result<Tier, String> {
    [Tier::Dram, Tier::Nvme, Tier::Object]
        .into_iter()
        .find(|tier| tier_name(*tier) == name)
        .ok_or_else(|| format!("{name:?} is no tier; the tiers are dram, nvme and object"))
}

impl TierOptions {
    /// Whether there is any tier below memory.
    pub fn any(&self) -> bool {
        !self.nvme.is_empty() || self.object.is_some()
    }

    /// Whether blocks are kept there.
    pub fn has(&self, tier: Tier) -> bool {
        match tier {
            Tier::Hbm => false,
            Tier::Dram => true,
            Tier::Nvme => !self.nvme.is_empty(),
            Tier::Object => self.object.is_some(),
        }
    }

    /// Bytes of a tier; `None` for one without a bound.
    fn capacity_bytes(&self, tier: Tier, dram_bytes: u64) -> Option<u64> {
        match tier {
            Tier::Hbm => Some(0),
            Tier::Dram => Some(dram_bytes),
            Tier::Nvme => Some(self.nvme.iter().fold(0, |sum, space| sum.saturating_add(space.bytes))),
            Tier::Object => self.object.as_ref().and_then(|object| object.bytes),
        }
    }

    /// Refuses what makes no sense, saying what to change. Looks at the disks; changes nothing.
    pub fn check(&self, dram_bytes: u64) -> Result<(), String> {
        self.check_data()?;
        self.check_nvme()?;
        self.check_object()?;
        self.check_overlaps()?;
        self.check_orders(dram_bytes)
    }

    fn check_data(&self) -> Result<(), String> {
        let Some(data) = &self.data else {
            return match (self.nvme.first(), &self.object) {
                (Some(space), _) => Err(format!(
                    "--nvme {} needs --data DIR: the catalog there is what finds its blocks again",
                    space.path.display()
                )),
                (None, Some(object)) => Err(format!(
                    "--object {} needs --data DIR: the catalog there says which pack holds which block",
                    object.url
                )),
                (None, None) => Ok(()),
            };
        };
        disk::check_directory("--data", data)
    }

    fn check_nvme(&self) -> Result<(), String> {
        if self.nvme.len() > NVME_PATHS_MAX {
            return Err(format!(
                "{} --nvme paths are given; at most {NVME_PATHS_MAX} are possible",
                self.nvme.len()
            ));
        }
        let mut spots: Vec<(&NvmeSpace, Spot)> = Vec::new();
        for space in &self.nvme {
            check_nvme_size(space)?;
            let spot = Spot::look(&space.path)?;
            if let Some((other, _)) = spots.iter().find(|(_, known)| known.is_same(&spot)) {
                return Err(match other.path == space.path {
                    true => format!(
                        "--nvme {} is given twice: give it once, with all of its size",
                        space.path.display()
                    ),
                    false => format!(
                        "--nvme {} and --nvme {} are the same place: leave one out",
                        other.path.display(),
                        space.path.display()
                    ),
                });
            }
            spots.push((space, spot));
        }
        disk::check_free(&spots)
    }

    fn check_object(&self) -> Result<(), String> {
        let Some(object) = &self.object else { return Ok(()) };
        if let Some(bytes) = object.bytes
            && bytes < OBJECT_BYTES_MIN
        {
            return Err(format!(
                "--object-size {} is too little, less than two packs: give at least {}, or leave it out for no \
                 bound",
                show(bytes),
                show(OBJECT_BYTES_MIN)
            ));
        }
        if let Some(bytes) = object.pack_bytes.filter(|bytes| !PACK_BYTES.contains(bytes)) {
            return Err(format!(
                "--object-pack-size {} is not possible: give between {} and {}",
                show(bytes),
                show(*PACK_BYTES.start()),
                show(*PACK_BYTES.end())
            ));
        }
        let directory = object.directory()?;
        if let Some(directory) = &directory {
            disk::check_directory("--object", directory)?;
        }
        let Some(endpoint) = &object.endpoint else { return Ok(()) };
        if directory.is_some() {
            return Err(format!(
                "--object-endpoint {endpoint} is for s3:// only: leave it out for a directory"
            ));
        }
        let host = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
        match host.map(|host| host.trim_end_matches('/')) {
            Some(host) if !host.is_empty() && !host.contains(['/', '?', '#', '@', ' ']) => Ok(()),
            _ => Err(format!(
                "--object-endpoint {endpoint} is no endpoint: write https://HOST:PORT, without a bucket (that \
                 goes into --object s3://BUCKET/PREFIX)"
            )),
        }
    }

    /// No two of the places may lie in each other.
    fn check_overlaps(&self) -> Result<(), String> {
        let object = match &self.object {
            None => None,
            Some(object) => object.directory()?,
        };
        let nvme = self.nvme.iter().map(|space| ("--nvme", space.path.as_path()));
        let all: Vec<(&str, PathBuf)> = nvme
            .chain(object.as_deref().map(|path| ("--object", path)))
            .map(|(flag, path)| (flag, disk::resolved(path)))
            .collect();
        for (at, (flag, path)) in all.iter().enumerate() {
            for (other_flag, other) in &all[..at] {
                if path.starts_with(other) || other.starts_with(path) {
                    return Err(format!(
                        "{other_flag} {} and {flag} {} overlap: give two directories of which none is in the \
                         other",
                        other.display(),
                        path.display()
                    ));
                }
            }
        }
        let Some(data) = self.data.as_deref().map(disk::resolved) else { return Ok(()) };
        // A catalog may well be on the disk of the blocks, in a directory beside them or in theirs; but
        // what is in a bucket's directory is all packs.
        match all
            .iter()
            .find(|(flag, path)| *flag == "--object" && (data.starts_with(path) || path.starts_with(&data)))
        {
            Some((_, path)) => Err(format!(
                "--data {} and --object {} overlap: give two directories of which none is in the other",
                data.display(),
                path.display()
            )),
            None => Ok(()),
        }
    }

    fn check_orders(&self, dram_bytes: u64) -> Result<(), String> {
        if let Some(tier) = self.policies.keys().find(|tier| !self.has(**tier)) {
            return Err(no_tier("--policy", *tier));
        }
        if self.admission > ADMISSION_MAX {
            return Err(format!("--admission {} is too much: give at most {ADMISSION_MAX}", self.admission));
        }
        for (given, flag) in [
            (self.admission > 1, "--admission"),
            (self.exclusive, "--exclusive"),
            (self.offload == Offload::Eager, "--offload eager"),
        ] {
            if given && !self.any() {
                return Err(format!(
                    "{flag} is about cold tiers, but there is none: give --nvme or --object too"
                ));
            }
        }
        if self.quotas.len() > QUOTAS_MAX {
            return Err(format!("{} quotas are given; at most {QUOTAS_MAX} are possible", self.quotas.len()));
        }
        for (at, quota) in self.quotas.iter().enumerate() {
            let name = format!("--quota {}:{}={}", tier_name(quota.tier), quota.model, show(quota.bytes));
            if !self.has(quota.tier) {
                return Err(no_tier(&name, quota.tier));
            }
            if quota.model.is_empty() || quota.bytes == 0 {
                return Err(format!("{name} names no model or no size: write TIER:MODEL=SIZE"));
            }
            if self.quotas[..at].iter().any(|other| other.tier == quota.tier && other.model == quota.model) {
                return Err(format!("{name} is the second quota of this model in this tier: leave one out"));
            }
            if let Some(capacity) = self.capacity_bytes(quota.tier, dram_bytes)
                && quota.bytes > capacity
            {
                return Err(format!("{name} is more than the tier has, {}: give less", show(capacity)));
            }
        }
        Ok(())
    }
}

fn no_tier(flag: &str, tier: Tier) -> String {
    let name = tier_name(tier);
    format!("{flag} is about the {name} tier, but there is none: give --{name} too, or leave it out")
}

fn check_nvme_size(space: &NvmeSpace) -> Result<(), String> {
    let (path, bytes) = (space.path.display(), space.bytes);
    if bytes < NVME_BYTES_MIN {
        return Err(format!(
            "--nvme {path}={} is too little: give at least {}",
            show(bytes),
            show(NVME_BYTES_MIN)
        ));
    }
    let left = bytes % NVME_UNIT_BYTES;
    if left != 0 {
        return Err(format!(
            "--nvme {path}={bytes} does not divide into I/O pages of {NVME_UNIT_BYTES} bytes: write {path}={}",
            bytes - left
        ));
    }
    Ok(())
}

impl ObjectSpace {
    /// The directory, where it is one; refuses what is neither that nor a bucket.
    pub fn directory(&self) -> Result<Option<PathBuf>, String> {
        let url = self.url.as_str();
        let wrong = |what: &str| {
            Err(format!(
                "--object {url} {what}: write s3://BUCKET/PREFIX, file:///DIR or an absolute directory"
            ))
        };
        if let Some(rest) = url.strip_prefix("s3://") {
            let bucket = rest.split('/').next().unwrap_or_default();
            let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-_".contains(c);
            return match bucket {
                "" => wrong("names no bucket"),
                bucket if !(3..=63).contains(&bucket.len()) || !bucket.chars().all(known) => wrong(
                    "names a bucket that S3 does not allow (3 to 63 lowercase letters, digits, `.`, `-`)",
                ),
                _ if rest.contains(['?', '#', ' ']) => wrong("has characters that no prefix has"),
                _ => Ok(None),
            };
        }
        let path = match url.strip_prefix("file://") {
            Some(path) => path,
            None if url.starts_with("http://") || url.starts_with("https://") => {
                return Err(format!(
                    "--object {url} is an endpoint, not a bucket: write --object s3://BUCKET/PREFIX \
                     --object-endpoint https://HOST:PORT"
                ));
            }
            None if url.contains("://") => return wrong("is of a kind this store does not know"),
            None => url,
        };
        if !Path::new(path).is_absolute() {
            return wrong("is not absolute");
        }
        Ok(Some(path.into()))
    }
}

/// A size as it is written on the command line.
pub(crate) fn show(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.iter().find(|(_, shift)| bytes >> shift > 0) {
        None => format!("{bytes}B"),
        Some((unit, shift)) if bytes.trailing_zeros() >= *shift => format!("{}{unit}", bytes >> shift),
        Some((unit, shift)) => format!("{:.1}{unit}", bytes as f64 / (1u64 << shift) as f64),
    }
}
