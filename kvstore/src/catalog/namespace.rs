//! What the catalog says about a namespace: enough to open it again before a client comes.

use kelvin_proto::{NamespaceSpec, kv::v1};

use super::bytes::{Reader, put_text, seal, unseal};

/// Identity of a namespace across restarts and nodes.
pub type NamespaceId = [u8; 16];

/// Version of the encoding below.
const VERSION: u8 = 1;

/// A namespace that has blocks in a cold tier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceRecord {
    /// Its id, from [`namespace_id`].
    pub id: NamespaceId,
    /// Name of its tenant.
    pub tenant: String,
    /// What its blocks are.
    pub spec: NamespaceSpec,
}

/// Identity of a tenant's namespace, from all that makes blocks of two namespaces unequal and from the model's
/// public name, by which quotas and statistics tell them apart. Keyed with the
/// tenant's secret: who reads a bucket's names learns nothing about models.
pub fn namespace_id(tenant_secret: &[u8; 32], tenant: &str, spec: &NamespaceSpec) -> NamespaceId {
    let mut hasher = blake3::Hasher::new_keyed(tenant_secret);
    hasher.update(b"kelvin namespace id v1\0");
    hasher.update(&(tenant.len() as u64).to_le_bytes());
    hasher.update(tenant.as_bytes());
    hasher.update(&(spec.model.len() as u64).to_le_bytes());
    hasher.update(spec.model.as_bytes());
    hasher.update(spec.canonical().as_bytes());
    let mut id = [0; 16];
    id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    id
}

impl NamespaceRecord {
    pub(super) fn encode(&self) -> Vec<u8> {
        let wire = self.spec.to_wire("");
        let fingerprint = wire.fingerprint.unwrap_or_default();
        let shard = wire.shard.unwrap_or_default();
        let mut value = vec![VERSION];
        for text in [
            &self.tenant,
            &wire.model,
            &fingerprint.model_digest,
            &fingerprint.engine,
            &fingerprint.engine_build,
            &fingerprint.layout,
            &fingerprint.dtype,
        ] {
            put_text(&mut value, text);
        }
        let numbers = [shard.tensor_rank, shard.tensor_size, shard.pipeline_rank, shard.pipeline_size];
        numbers.into_iter().chain([wire.block_tokens]).for_each(|number| value.extend(number.to_le_bytes()));
        value.extend(wire.block_bytes.to_le_bytes());
        // In order, so that equal namespaces have equal bytes.
        let attributes: std::collections::BTreeMap<_, _> = fingerprint.attributes.iter().collect();
        value.extend((attributes.len() as u16).to_le_bytes());
        for (name, text) in attributes {
            put_text(&mut value, name);
            put_text(&mut value, text);
        }
        seal(&self.id, value)
    }

    /// `None` if the bytes are no namespace; what they say is checked as if a client had sent it.
    pub(super) fn decode(key: &[u8], value: &[u8]) -> Option<Self> {
        let id: NamespaceId = key.try_into().ok()?;
        let mut reader = Reader::new(unseal(key, value)?);
        if reader.u8()? != VERSION {
            return None;
        }
        let (tenant, model) = (reader.text()?, reader.text()?);
        let mut fingerprint = v1::Fingerprint {
            model_digest: reader.text()?,
            engine: reader.text()?,
            engine_build: reader.text()?,
            layout: reader.text()?,
            dtype: reader.text()?,
            ..Default::default()
        };
        let shard = v1::Shard {
            tensor_rank: reader.u32()?,
            tensor_size: reader.u32()?,
            pipeline_rank: reader.u32()?,
            pipeline_size: reader.u32()?,
        };
        let (block_tokens, block_bytes) = (reader.u32()?, reader.u64()?);
        for _ in 0..reader.u16()? {
            fingerprint.attributes.insert(reader.text()?, reader.text()?);
        }
        reader.end()?;
        let wire = v1::OpenNamespaceRequest {
            model,
            fingerprint: Some(fingerprint),
            shard: Some(shard),
            block_tokens,
            block_bytes,
            ..Default::default()
        };
        Some(Self { id, tenant, spec: wire.try_into().ok()? })
    }
}
