//! Whether a worker fits: its own words, checked against the router's vocabulary and the definition.

use kelvin_proto::{
    NamespaceSpec,
    kv::v1::OpenNamespaceRequest,
    worker::v1::{DescribeResponse, Role as WireRole},
};

use super::{Definition, Fleet};
use crate::cost::Role;

/// A description that makes sense.
#[derive(Debug, Clone)]
pub(super) struct Admitted {
    pub(super) role: Role,
    pub(super) spec: NamespaceSpec,
}

/// Checks a description by itself: it comes over the network.
pub(super) fn check(described: &DescribeResponse, vocab_tokens: u32) -> Result<Admitted, String> {
    let role = match described.role() {
        WireRole::Prefill => Role::Prefill,
        WireRole::Decode => Role::Decode,
        WireRole::Unspecified => return Err("it has no role".into()),
    };
    // The handshake's own checks: what the store would refuse is refused here.
    let spec = NamespaceSpec::try_from(OpenNamespaceRequest {
        model: described.model.clone(),
        fingerprint: described.fingerprint.clone(),
        shard: None,
        block_tokens: described.block_tokens,
        block_bytes: described.block_bytes,
        client_name: String::new(),
    })
    .map_err(|refusal| format!("its description is not valid: {}", refusal.message))?;
    if described.context_tokens_max < 2 {
        return Err(format!("context_tokens_max is {}", described.context_tokens_max));
    }
    if described.vocab_tokens != vocab_tokens {
        return Err(format!(
            "it has {} tokens in its vocabulary, the router's model file has {vocab_tokens}",
            described.vocab_tokens
        ));
    }
    Ok(Admitted { role, spec })
}

impl Fleet {
    /// Checks a worker's description, and lets it define the model if none did before.
    pub(super) fn admit(&self, endpoint: &str, described: &DescribeResponse) -> Result<Admitted, String> {
        let admitted = check(described, self.vocab_tokens)?;
        let defined_by = format!("{} ({endpoint})", described.name);
        let definition =
            self.definition.get_or_init(|| Definition { spec: admitted.spec.clone(), defined_by });
        match mismatch(definition, &admitted.spec) {
            None => Ok(admitted),
            Some(why) => Err(why),
        }
    }
}

/// In which fields `spec` is not what was defined, with both sides in words.
fn mismatch(definition: &Definition, spec: &NamespaceSpec) -> Option<String> {
    let expected = &definition.spec;
    let mut fields = expected.fingerprint.differences(&spec.fingerprint);
    let plain = [
        ("model", expected.model != spec.model),
        ("block_tokens", expected.block_tokens != spec.block_tokens),
        ("block_bytes", expected.block_bytes != spec.block_bytes),
    ];
    fields.extend(plain.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name.to_owned()));
    (!fields.is_empty()).then(|| {
        format!(
            "it differs in {} from {}: it has {}, defined is {}",
            fields.join(", "),
            definition.defined_by,
            words(spec),
            words(expected)
        )
    })
}

fn words(spec: &NamespaceSpec) -> String {
    format!(
        "model={} block_tokens={} block_bytes={} fingerprint={}",
        spec.model, spec.block_tokens, spec.block_bytes, spec.fingerprint
    )
}

#[cfg(test)]
mod tests {
    use kelvin_proto::kv::v1::Fingerprint;

    use super::*;

    fn described() -> DescribeResponse {
        DescribeResponse {
            role: WireRole::Decode.into(),
            model: "toy".into(),
            fingerprint: Some(Fingerprint {
                model_digest: "ab".into(),
                engine: "toy".into(),
                engine_build: "1".into(),
                layout: "flat".into(),
                dtype: "f16".into(),
                attributes: Default::default(),
            }),
            block_tokens: 16,
            block_bytes: 64,
            context_tokens_max: 512,
            vocab_tokens: 258,
            name: "decode-0".into(),
            ..Default::default()
        }
    }

    fn fleet() -> Fleet {
        Fleet::new(&["http://127.0.0.1:1".to_owned()], 258).unwrap()
    }

    #[tokio::test]
    async fn the_first_defines_and_the_same_fits() {
        let fleet = fleet();
        assert!(fleet.admit("http://a", &described()).is_ok());
        assert_eq!(fleet.definition().unwrap().defined_by, "decode-0 (http://a)");
        let prefill = DescribeResponse { role: WireRole::Prefill.into(), ..described() };
        assert_eq!(fleet.admit("http://b", &prefill).unwrap().role, Role::Prefill);
    }

    #[tokio::test]
    async fn a_difference_is_named_with_both_sides() {
        let fleet = fleet();
        fleet.admit("http://a", &described()).unwrap();
        let mut other = described();
        other.fingerprint.as_mut().unwrap().dtype = "q8_0".into();
        other.block_bytes = 32;
        let why = fleet.admit("http://b", &other).unwrap_err();
        for part in
            ["differs in dtype, block_bytes from decode-0", "dtype=q8_0", "dtype=f16", "block_bytes=32"]
        {
            assert!(why.contains(part), "{part} is not in: {why}");
        }
    }

    #[test]
    fn nonsense_is_refused_in_words() {
        let check = |change: fn(&mut DescribeResponse), expected: &str| {
            let mut wire = described();
            change(&mut wire);
            let why = super::check(&wire, 258).unwrap_err();
            assert!(why.contains(expected), "{why}");
        };
        check(|w| w.role = 0, "no role");
        check(|w| w.role = 77, "no role");
        check(|w| w.fingerprint = None, "fingerprint is missing");
        check(|w| w.block_tokens = 0, "block_tokens must be");
        check(|w| w.context_tokens_max = 0, "context_tokens_max is 0");
        check(|w| w.vocab_tokens = 49_152, "49152 tokens in its vocabulary, the router's model file has 258");
        check(|w| w.model.clear(), "model must");
    }
}
