//! What must be equal for two engines to understand each other's bytes.

use std::{collections::BTreeMap, fmt};

use crate::{Refusal, kv::v1};

const NAME_BYTES_MAX: usize = 256;
const ATTRIBUTES_MAX: usize = 64;
const BLOCK_TOKENS_MAX: u32 = 4096;
/// A block lies within one chunk of a tier's memory, which has at most as many bytes.
const BLOCK_BYTES_MAX: u64 = 64 << 20;

/// Everything that decides the bytes of a block of one model, apart from the tokens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fingerprint {
    /// Digest of the weights, lowercase hex.
    pub model_digest: String,
    /// Engine, e.g. `llama.cpp`.
    pub engine: String,
    /// Build whose state format the block holds.
    pub engine_build: String,
    /// Order of the bytes in a block.
    pub layout: String,
    /// Type of a KV element.
    pub dtype: String,
    /// The rest, by name.
    pub attributes: BTreeMap<String, String>,
}

impl Fingerprint {
    /// One line a field, in a fixed order: equal text if and only if equal fingerprints.
    pub fn canonical(&self) -> String {
        self.fields().map(|(name, value)| format!("{}={}\n", escape(name), escape(value))).collect()
    }

    /// Names of the fields in which two fingerprints differ.
    pub fn differences(&self, other: &Fingerprint) -> Vec<String> {
        let mine: BTreeMap<&str, &str> = self.fields().collect();
        let theirs: BTreeMap<&str, &str> = other.fields().collect();
        let names: std::collections::BTreeSet<&str> = mine.keys().chain(theirs.keys()).copied().collect();
        names.into_iter().filter(|name| mine.get(name) != theirs.get(name)).map(str::to_owned).collect()
    }

    fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        [
            ("model_digest", self.model_digest.as_str()),
            ("engine", &self.engine),
            ("engine_build", &self.engine_build),
            ("layout", &self.layout),
            ("dtype", &self.dtype),
        ]
        .into_iter()
        .chain(self.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())))
    }
}

/// Keeps `name=value` lines unambiguous whatever the values hold.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\n', "\\n").replace('=', "\\=")
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        f.write_str("{")?;
        for (name, value) in self.fields() {
            write!(f, "{separator}{name}={value}")?;
            separator = ", ";
        }
        f.write_str("}")
    }
}

impl TryFrom<v1::Fingerprint> for Fingerprint {
    type Error = Refusal;

    fn try_from(wire: v1::Fingerprint) -> Result<Self, Refusal> {
        let named = [
            ("model_digest", &wire.model_digest),
            ("engine", &wire.engine),
            ("engine_build", &wire.engine_build),
            ("layout", &wire.layout),
            ("dtype", &wire.dtype),
        ];
        for (name, value) in named {
            if value.is_empty() || value.len() > NAME_BYTES_MAX {
                return Err(Refusal::invalid(format!(
                    "fingerprint.{name} must have 1 to {NAME_BYTES_MAX} bytes"
                )));
            }
        }
        if wire.attributes.len() > ATTRIBUTES_MAX {
            return Err(Refusal::invalid(format!("fingerprint has more than {ATTRIBUTES_MAX} attributes")));
        }
        for (name, value) in &wire.attributes {
            if name.is_empty() || name.len() > NAME_BYTES_MAX || value.len() > NAME_BYTES_MAX {
                return Err(Refusal::invalid(format!(
                    "fingerprint attributes must have 1 to {NAME_BYTES_MAX} bytes"
                )));
            }
            if named.iter().any(|(field, _)| field == name) {
                return Err(Refusal::invalid(format!(
                    "fingerprint attribute `{name}` has the name of a field"
                )));
            }
        }
        Ok(Self {
            model_digest: wire.model_digest,
            engine: wire.engine,
            engine_build: wire.engine_build,
            layout: wire.layout,
            dtype: wire.dtype,
            attributes: wire.attributes.into_iter().collect(),
        })
    }
}

impl From<Fingerprint> for v1::Fingerprint {
    fn from(domain: Fingerprint) -> Self {
        Self {
            model_digest: domain.model_digest,
            engine: domain.engine,
            engine_build: domain.engine_build,
            layout: domain.layout,
            dtype: domain.dtype,
            attributes: domain.attributes.into_iter().collect(),
        }
    }
}

/// A slice of a model that is split over several engines; `Default` is the whole model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shard {
    /// Tensor-parallel rank and group size.
    pub tensor: (u32, u32),
    /// Pipeline-parallel rank and group size.
    pub pipeline: (u32, u32),
}

impl Default for Shard {
    fn default() -> Self {
        Self { tensor: (0, 1), pipeline: (0, 1) }
    }
}

/// What a client asks for in the handshake: which blocks, and what each of them looks like.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NamespaceSpec {
    /// Public name of the model.
    pub model: String,
    /// What its bytes depend on.
    pub fingerprint: Fingerprint,
    /// Which slice of the model.
    pub shard: Shard,
    /// Tokens a block.
    pub block_tokens: u32,
    /// Bytes a block.
    pub block_bytes: u64,
}

impl NamespaceSpec {
    /// Fixed text of all that makes blocks of two namespaces unequal (not the model's public name).
    pub fn canonical(&self) -> String {
        let Shard { tensor, pipeline } = self.shard;
        format!(
            "{}shard={}/{},{}/{}\nblock_tokens={}\nblock_bytes={}\n",
            self.fingerprint.canonical(),
            tensor.0,
            tensor.1,
            pipeline.0,
            pipeline.1,
            self.block_tokens,
            self.block_bytes
        )
    }
}

impl TryFrom<v1::OpenNamespaceRequest> for NamespaceSpec {
    type Error = Refusal;

    fn try_from(wire: v1::OpenNamespaceRequest) -> Result<Self, Refusal> {
        if wire.model.is_empty() || wire.model.len() > NAME_BYTES_MAX {
            return Err(Refusal::invalid(format!("model must have 1 to {NAME_BYTES_MAX} bytes")));
        }
        if !(1..=BLOCK_TOKENS_MAX).contains(&wire.block_tokens) {
            return Err(Refusal::invalid(format!("block_tokens must be 1 to {BLOCK_TOKENS_MAX}")));
        }
        if !(1..=BLOCK_BYTES_MAX).contains(&wire.block_bytes) {
            return Err(Refusal::invalid(format!("block_bytes must be 1 to {BLOCK_BYTES_MAX}")));
        }
        let shard = match wire.shard {
            None => Shard::default(),
            Some(shard) => Shard {
                tensor: (shard.tensor_rank, shard.tensor_size),
                pipeline: (shard.pipeline_rank, shard.pipeline_size),
            },
        };
        for (what, (rank, size)) in [("tensor", shard.tensor), ("pipeline", shard.pipeline)] {
            if rank >= size {
                return Err(Refusal::invalid(format!(
                    "shard: {what} rank {rank} is not below its size {size}"
                )));
            }
        }
        let fingerprint =
            wire.fingerprint.ok_or_else(|| Refusal::invalid("fingerprint is missing"))?.try_into()?;
        Ok(Self {
            model: wire.model,
            fingerprint,
            shard,
            block_tokens: wire.block_tokens,
            block_bytes: wire.block_bytes,
        })
    }
}

impl NamespaceSpec {
    /// The handshake's wire form.
    pub fn to_wire(&self, client_name: &str) -> v1::OpenNamespaceRequest {
        v1::OpenNamespaceRequest {
            model: self.model.clone(),
            fingerprint: Some(self.fingerprint.clone().into()),
            shard: Some(v1::Shard {
                tensor_rank: self.shard.tensor.0,
                tensor_size: self.shard.tensor.1,
                pipeline_rank: self.shard.pipeline.0,
                pipeline_size: self.shard.pipeline.1,
            }),
            block_tokens: self.block_tokens,
            block_bytes: self.block_bytes,
            client_name: client_name.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fingerprint() -> Fingerprint {
        Fingerprint {
            model_digest: "ab".into(),
            engine: "toy".into(),
            engine_build: "1".into(),
            layout: "layer-kv-token".into(),
            dtype: "f16".into(),
            attributes: [("rope".to_owned(), "1e4".to_owned())].into(),
        }
    }

    fn spec() -> NamespaceSpec {
        let shard = Shard::default();
        NamespaceSpec {
            model: "m".into(),
            fingerprint: fingerprint(),
            shard,
            block_tokens: 16,
            block_bytes: 64,
        }
    }

    #[test]
    fn differences_names_fields_and_attributes() {
        let mut other = fingerprint();
        other.dtype = "q8_0".into();
        other.attributes.insert("flash".into(), "on".into());
        assert_eq!(fingerprint().differences(&other), ["dtype", "flash"]);
        assert!(fingerprint().differences(&fingerprint()).is_empty());
    }

    #[test]
    fn canonical_text_cannot_be_forged_by_a_value() {
        let mut forged = fingerprint();
        forged.attributes.clear();
        forged.dtype = "f16\nrope=1e4".into();
        assert_ne!(forged.canonical(), fingerprint().canonical());
    }

    #[test]
    fn a_spec_survives_the_wire() {
        assert_eq!(NamespaceSpec::try_from(spec().to_wire("x")).unwrap(), spec());
    }

    #[test]
    fn bad_handshakes_say_what_to_change() {
        let check = |change: fn(&mut v1::OpenNamespaceRequest), expected: &str| {
            let mut wire = spec().to_wire("x");
            change(&mut wire);
            let error = NamespaceSpec::try_from(wire).unwrap_err();
            assert!(error.message.contains(expected), "{}", error.message);
        };
        check(|w| w.model.clear(), "model must");
        check(|w| w.block_tokens = 0, "block_tokens must be 1 to 4096");
        check(|w| w.block_bytes = u64::MAX, "block_bytes");
        check(|w| w.fingerprint = None, "fingerprint is missing");
        check(|w| w.fingerprint.as_mut().unwrap().dtype.clear(), "fingerprint.dtype");
        check(|w| w.shard.as_mut().unwrap().tensor_rank = 1, "rank 1 is not below its size 1");
        check(
            |w| {
                w.fingerprint.as_mut().unwrap().attributes.insert("dtype".into(), "x".into());
            },
            "has the name of a field",
        );
    }
}
