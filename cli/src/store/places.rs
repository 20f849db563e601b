//! Flags that say where the tiers below memory keep their blocks. `kelvin up` has them too.

use std::ffi::OsString;
use std::path::PathBuf;

use kelvin_kvstore::server::{NvmeSpace, ObjectSpace, TierOptions};

use crate::values::Size;

#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Tiers below memory")]
pub(crate) struct Places {
    /// Directory of the catalog and of the store's secret, which the tiers below memory need; blocks survive
    /// a restart only with it [default: none]
    #[arg(long, env = "KELVIN_STORE_DATA", value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,

    /// A directory or raw device for blocks, and how much of it; again for each device, blocks are striped
    /// over them [default: none]
    #[arg(long, env = "KELVIN_STORE_NVME", value_name = "PATH=SIZE", value_delimiter = ',', value_parser = nvme)]
    pub(crate) nvme: Vec<NvmeSpace>,

    /// A bucket for blocks, s3://BUCKET/PREFIX, or a directory in place of one; credentials come from
    /// AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY [default: none]
    #[arg(long, env = "KELVIN_STORE_OBJECT", value_name = "URL")]
    pub(crate) object: Option<String>,

    /// Where the S3 service is, e.g. https://minio:9000 [default: AWS]
    #[arg(long, env = "KELVIN_STORE_OBJECT_ENDPOINT", value_name = "URL", requires = "object")]
    pub(crate) object_endpoint: Option<String>,

    /// Most bytes in the bucket; above it, the blocks least worth are dropped [default: no bound]
    #[arg(long, env = "KELVIN_STORE_OBJECT_SIZE", value_name = "SIZE", requires = "object")]
    pub(crate) object_size: Option<Size>,

    /// Bytes of one object in the bucket, about; many blocks share one [default: 32MiB]
    #[arg(long, env = "KELVIN_STORE_OBJECT_PACK_SIZE", value_name = "SIZE", requires = "object")]
    pub(crate) object_pack_size: Option<Size>,
}

impl Places {
    /// As options of a store, with everything else at its default.
    pub(crate) fn tiers(&self) -> TierOptions {
        let object = self.object.as_ref().map(|url| ObjectSpace {
            url: url.clone(),
            endpoint: self.object_endpoint.clone(),
            bytes: self.object_size.map(|size| size.0),
            pack_bytes: self.object_pack_size.map(|size| size.0),
        });
        TierOptions { data: self.data.clone(), nvme: self.nvme.clone(), object, ..TierOptions::default() }
    }

    /// The flags that give these places.
    pub(crate) fn flags(&self) -> Vec<OsString> {
        let mut flags = Vec::new();
        let mut flag = |name: &str, value: Option<OsString>| {
            flags.extend(value.into_iter().flat_map(|value| [OsString::from(name), value]));
        };
        flag("--data", self.data.clone().map(OsString::from));
        for space in &self.nvme {
            let mut value = space.path.clone().into_os_string();
            value.push(format!("={}", space.bytes));
            flag("--nvme", Some(value));
        }
        flag("--object", self.object.clone().map(OsString::from));
        flag("--object-endpoint", self.object_endpoint.clone().map(OsString::from));
        flag("--object-size", self.object_size.map(|size| size.0.to_string().into()));
        flag("--object-pack-size", self.object_pack_size.map(|size| size.0.to_string().into()));
        flags
    }
}

/// Reads `/mnt/a=200GiB`.
fn nvme(text: &str) -> Result<NvmeSpace, String> {
    match text.rsplit_once('=') {
        Some((path, size)) if !path.is_empty() => {
            Ok(NvmeSpace { path: path.into(), bytes: size.parse::<Size>()?.0 })
        }
        _ => Err(format!("{text:?} has no size; write PATH=SIZE, e.g. /mnt/a=200GiB")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        places: Places,
    }

    fn parse(flags: &[OsString]) -> Places {
        let words = [OsString::from("kelvin")].into_iter().chain(flags.iter().cloned());
        Flags::try_parse_from(words).unwrap().places
    }

    #[test]
    fn paths_have_sizes() {
        assert_eq!(nvme("/mnt/a=2GiB"), Ok(NvmeSpace { path: "/mnt/a".into(), bytes: 2 << 30 }));
        assert_eq!(nvme("/mnt/x=y=1GiB"), Ok(NvmeSpace { path: "/mnt/x=y".into(), bytes: 1 << 30 }));
        for (text, hint) in [
            ("/mnt/a", "PATH=SIZE"),
            ("=1GiB", "PATH=SIZE"),
            ("/mnt/a=", "e.g. 512MiB"),
            ("/a=1GX", "the units are"),
        ] {
            let error = nvme(text).unwrap_err();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }

    #[test]
    fn flags_give_the_same_places_again() {
        let words = [
            "--data",
            "/d",
            "--nvme",
            "/a=1GiB",
            "--nvme",
            "/b=2GiB",
            "--object",
            "s3://bucket/p",
            "--object-endpoint",
            "http://127.0.0.1:1",
            "--object-size",
            "1TiB",
            "--object-pack-size",
            "64MiB",
        ];
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        let places = parse(&words);
        let tiers = places.tiers();
        assert_eq!(tiers.nvme.len(), 2);
        assert_eq!(tiers.object.as_ref().and_then(|object| object.bytes), Some(1 << 40));
        assert_eq!(tiers.object.as_ref().and_then(|object| object.pack_bytes), Some(64 << 20));
        assert_eq!(format!("{:?}", parse(&places.flags()).tiers()), format!("{tiers:?}"));
        assert!(parse(&[]).flags().is_empty());
    }
}
