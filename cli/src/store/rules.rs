//! Flags that say which blocks are kept, where and how long.

use std::path::PathBuf;

use anyhow::{Context, bail};
use kelvin_kvstore::server::{Offload, PolicyKind, Quota, Tier, TierOptions, tier_of_name};

use crate::values::Size;

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Which blocks are kept")]
pub(crate) struct Rules {
    /// In which order blocks leave a tier (dram, nvme, object): lru, lfu, fifo, arc, s3fifo, gdsf, density or adaptive
    #[arg(long, env = "KELVIN_STORE_POLICY", value_name = "TIER=POLICY", value_delimiter = ',', value_parser = policy)]
    policy: Vec<(Tier, PolicyKind)>,

    /// Most bytes that a model's blocks may take in a tier; above it, its own make room [default: no quota]
    #[arg(long, env = "KELVIN_STORE_QUOTA", value_name = "TIER:MODEL=SIZE", value_delimiter = ',', value_parser = quota)]
    quota: Vec<Quota>,

    /// A block is written to a cold tier the N-th time that it is asked for
    #[arg(long, env = "KELVIN_STORE_ADMISSION", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    admission: u32,

    /// A block that is read back from a cold tier leaves it: more room, more writes
    #[arg(long)]
    exclusive: bool,

    /// When blocks are written to a cold tier: near-eviction, as they come near to leaving memory, or eager, as
    /// soon as they are stored
    #[arg(long, env = "KELVIN_STORE_OFFLOAD", value_name = "WHEN", default_value_t)]
    offload: Offload,

    /// File with the 32 bytes, or 64 hexadecimal digits, behind the hashes; stores that share a bucket share
    /// it [default: made once and kept in the data directory]
    #[arg(long, env = "KELVIN_STORE_SECRET_FILE", value_name = "PATH")]
    secret_file: Option<PathBuf>,
}

impl Rules {
    /// These rules on tiers.
    pub(crate) fn on(&self, tiers: TierOptions) -> TierOptions {
        TierOptions {
            policies: self.policy.iter().copied().collect(),
            quotas: self.quota.clone(),
            admission: self.admission,
            exclusive: self.exclusive,
            offload: self.offload,
            ..tiers
        }
    }

    /// The secret, if a file of it is named.
    pub(crate) fn secret(&self) -> anyhow::Result<Option<[u8; 32]>> {
        let Some(path) = &self.secret_file else { return Ok(None) };
        let bytes = std::fs::read(path).with_context(|| format!("read --secret-file {}", path.display()))?;
        match secret(&bytes) {
            Some(secret) => Ok(Some(secret)),
            None => bail!(
                "--secret-file {} has {} bytes that are neither 32 bytes nor 64 hexadecimal digits; make one with: \
                 head -c 32 /dev/urandom > {}",
                path.display(),
                bytes.len(),
                path.display()
            ),
        }
    }
}

fn secret(bytes: &[u8]) -> Option<[u8; 32]> {
    if let Ok(secret) = bytes.try_into() {
        return Some(secret);
    }
    let digits = bytes.trim_ascii();
    if digits.len() != 64 {
        return None;
    }
    let mut secret = [0; 32];
    for (byte, pair) in secret.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |at: usize| (pair[at] as char).to_digit(16);
        *byte = (digit(0)? * 16 + digit(1)?) as u8;
    }
    Some(secret)
}

/// Reads `nvme=arc`.
fn policy(text: &str) -> Result<(Tier, PolicyKind), String> {
    let (tier, policy) = text
        .split_once('=')
        .ok_or_else(|| format!("{text:?} names no policy; write TIER=POLICY, e.g. nvme=arc"))?;
    let policy = policy.parse::<PolicyKind>().map_err(|error| error.to_string())?;
    Ok((tier_of_name(tier)?, policy))
}

/// Reads `nvme:llama-3=50GiB`.
fn quota(text: &str) -> Result<Quota, String> {
    let wrong = || format!("{text:?} is no quota; write TIER:MODEL=SIZE, e.g. nvme:llama-3=50GiB");
    let (rest, size) = text.rsplit_once('=').ok_or_else(wrong)?;
    let (tier, model) = rest.split_once(':').filter(|(_, model)| !model.is_empty()).ok_or_else(wrong)?;
    Ok(Quota { tier: tier_of_name(tier)?, model: model.into(), bytes: size.parse::<Size>()?.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_of_tiers() {
        assert_eq!(policy("nvme=lru"), Ok((Tier::Nvme, PolicyKind::Lru)));
        for (text, hint) in [
            ("arc", "TIER=POLICY"),
            ("disk=arc", "the tiers are dram, nvme and object"),
            ("nvme=best", "no policy is called"),
        ] {
            let error = policy(text).unwrap_err();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }

    #[test]
    fn quotas_are_of_models() {
        let quota_of = |model: &str| Quota { tier: Tier::Dram, model: model.into(), bytes: 1 << 30 };
        assert_eq!(quota("dram:m=1GiB"), Ok(quota_of("m")));
        assert_eq!(quota("dram:org/m:v=1=1GiB"), Ok(quota_of("org/m:v=1")));
        for (text, hint) in [
            ("dram=1GiB", "TIER:MODEL=SIZE"),
            ("dram:=1GiB", "TIER:MODEL=SIZE"),
            ("dram:m", "TIER:MODEL=SIZE"),
            ("hbm:m=1GiB", "the tiers are"),
            ("dram:m=much", "the units are"),
        ] {
            let error = quota(text).unwrap_err();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }

    #[test]
    fn secrets_are_bytes_or_digits() {
        assert_eq!(secret(&[7; 32]), Some([7; 32]));
        assert_eq!(secret(format!("{}\n", "0a".repeat(32)).as_bytes()), Some([10; 32]));
        for wrong in [&[7u8; 31][..], &[b'g'; 64], b"", "é".repeat(32).as_bytes()] {
            assert_eq!(secret(wrong), None);
        }
    }
}
