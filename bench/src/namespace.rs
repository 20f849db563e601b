//! Namespaces of blocks that no model made.

use kelvin_proto::{Fingerprint, NamespaceSpec, Shard};

/// Of blocks of so many tokens and bytes.
pub(crate) fn spec(model: impl Into<String>, block_tokens: u32, block_bytes: u64) -> NamespaceSpec {
    let text = || "bench".to_owned();
    let fingerprint = Fingerprint {
        model_digest: text(),
        engine: text(),
        engine_build: text(),
        layout: text(),
        dtype: text(),
        attributes: Default::default(),
    };
    NamespaceSpec { model: model.into(), fingerprint, shard: Shard::default(), block_tokens, block_bytes }
}
