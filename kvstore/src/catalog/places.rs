//! Where the copies are that the catalog tells of, so that who has the data directory can find them.

use std::{ffi::OsString, os::unix::ffi::OsStringExt, path::PathBuf};

use super::bytes::{Reader, put_bytes, put_text, seal, unseal};
use crate::store::TierOptions;

/// Version of the encoding below.
const VERSION: u8 = 1;

/// Where a store had its cold tiers when it started last.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Places {
    /// Files, directories and devices of the NVMe tier, and the bytes for blocks in each.
    pub nvme: Vec<(PathBuf, u64)>,
    /// URL of the object tier.
    pub object: Option<String>,
    /// The S3 server, if it is another than AWS.
    pub object_endpoint: Option<String>,
    /// Most bytes in the object tier.
    pub object_bytes: Option<u64>,
}

impl From<&TierOptions> for Places {
    fn from(options: &TierOptions) -> Self {
        let object = options.object.as_ref();
        Self {
            nvme: options.nvme.iter().map(|space| (space.path.clone(), space.bytes)).collect(),
            object: object.map(|space| space.url.clone()),
            object_endpoint: object.and_then(|space| space.endpoint.clone()),
            object_bytes: object.and_then(|space| space.bytes),
        }
    }
}

impl Places {
    pub(super) fn encode(&self, key: &[u8]) -> Vec<u8> {
        let mut value = vec![VERSION];
        value.extend((self.nvme.len() as u16).to_le_bytes());
        for (path, bytes) in &self.nvme {
            put_bytes(&mut value, path.as_os_str().as_encoded_bytes());
            value.extend(bytes.to_le_bytes());
        }
        for text in [&self.object, &self.object_endpoint] {
            value.push(u8::from(text.is_some()));
            put_text(&mut value, text.as_deref().unwrap_or_default());
        }
        value.push(u8::from(self.object_bytes.is_some()));
        value.extend(self.object_bytes.unwrap_or(0).to_le_bytes());
        seal(key, value)
    }

    /// `None` if the bytes are no places. Any bytes may come.
    pub(super) fn decode(key: &[u8], value: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(unseal(key, value)?);
        if reader.u8()? != VERSION {
            return None;
        }
        let mut places = Self::default();
        for _ in 0..reader.u16()? {
            let path = PathBuf::from(OsString::from_vec(reader.text_bytes()?.to_vec()));
            places.nvme.push((path, reader.u64()?));
        }
        let mut text = || Some((reader.u8()? != 0, reader.text()?));
        let ((has_object, object), (has_endpoint, endpoint)) = (text()?, text()?);
        places.object = has_object.then_some(object);
        places.object_endpoint = has_endpoint.then_some(endpoint);
        let (has_bytes, bytes) = (reader.u8()? != 0, reader.u64()?);
        places.object_bytes = has_bytes.then_some(bytes);
        reader.end()?;
        Some(places)
    }
}
