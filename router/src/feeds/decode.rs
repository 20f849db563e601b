//! Batches of KV events, as they are on the wire: msgpack, `[time, events, rank?]`.
//!
//! Events are maps with a `type`, or arrays whose first element is the type and whose order is that of vLLM up
//! to 0.22: `["BlockStored", hashes, parent, tokens, block_size, lora_id, medium, lora_name, ...]`,
//! `["BlockRemoved", hashes, medium]`, `["AllBlocksCleared"]`. Unknown keys and unknown events are skipped.

use rmpv::Value;

/// Most bytes of a batch: that of a prompt of a million tokens has 10 MB.
pub(super) const BATCH_BYTES_MAX: usize = 64 << 20;
/// Most tokens a block.
const BLOCK_TOKENS_MAX: u64 = 65_536;

/// A hash as the engine has it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum EngineHash {
    /// Signed or not: the same 64 bits.
    Int(u64),
    Bytes(Box<[u8]>),
}

/// Where an engine has a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Medium {
    /// Its own fast memory.
    Gpu,
    /// Anything behind that.
    Behind,
}

/// One change of an engine's cache.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Event {
    /// Blocks, each the parent of the next, came.
    Stored {
        hashes: Vec<EngineHash>,
        parent: Option<EngineHash>,
        tokens: Vec<u32>,
        block_tokens: u32,
        medium: Medium,
        group: u64,
        /// The adapter, if any: requests name it as their model.
        lora: Option<String>,
        /// What the request salted its cache with; known where a prompt begins, and empty as a rule.
        salt: Vec<u8>,
        /// What decides each block's KV beside all that (images); as many as blocks, or none at all.
        extras: Vec<Vec<u8>>,
    },
    /// Blocks went.
    Removed { hashes: Vec<EngineHash>, medium: Option<Medium>, group: u64 },
    /// All of them went.
    Cleared,
}

/// Events that were published together.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Batch {
    pub(super) events: Vec<Event>,
    pub(super) rank: Option<u64>,
    /// Events of kinds that are not known here, and blocks of which no prompt's beginning can be made: those
    /// of layers that see a window, or keep a state.
    pub(super) unknown: usize,
}

/// Why bytes are no batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum DecodeError {
    #[error("{0} bytes are more than a batch has")]
    TooLong(usize),
    #[error("it is no msgpack: {0}")]
    NoMsgpack(String),
    #[error("{0}")]
    Shape(&'static str),
}

/// Reads one batch.
pub(super) fn batch(mut bytes: &[u8]) -> Result<Batch, DecodeError> {
    if bytes.len() > BATCH_BYTES_MAX {
        return Err(DecodeError::TooLong(bytes.len()));
    }
    let value =
        rmpv::decode::read_value(&mut bytes).map_err(|error| DecodeError::NoMsgpack(error.to_string()))?;
    let (events, rank) = match value {
        Value::Array(mut parts) if parts.len() >= 2 => {
            let rank = parts.get(2).and_then(Value::as_u64);
            (parts.swap_remove(1), rank)
        }
        Value::Map(_) => {
            let fields = Fields(&value);
            let rank = fields
                .get("data_parallel_rank")
                .or_else(|| fields.get("attn_dp_rank"))
                .and_then(Value::as_u64);
            (fields.get("events").cloned().ok_or(DecodeError::Shape("a batch without events"))?, rank)
        }
        _ => return Err(DecodeError::Shape("a batch is an array of time and events")),
    };
    let Value::Array(events) = events else {
        return Err(DecodeError::Shape("a batch's events are no array"));
    };
    let mut batch = Batch { events: Vec::with_capacity(events.len()), rank, unknown: 0 };
    for one in &events {
        match event(one)? {
            Some(event) => batch.events.push(event),
            None => batch.unknown += 1,
        }
    }
    Ok(batch)
}

/// The fields of an event, whichever form it has.
struct Fields<'a>(&'a Value);

impl<'a> Fields<'a> {
    fn get(&self, name: &str) -> Option<&'a Value> {
        let found = self.0.as_map()?.iter().find(|(key, _)| key.as_str() == Some(name));
        found.map(|(_, value)| value).filter(|value| !value.is_nil())
    }
}

const STORED: [&str; 10] = [
    "type",
    "block_hashes",
    "parent_block_hash",
    "token_ids",
    "block_size",
    "lora_id",
    "medium",
    "lora_name",
    "extra_keys",
    "group_idx",
];
const REMOVED: [&str; 4] = ["type", "block_hashes", "medium", "group_idx"];

fn event(value: &Value) -> Result<Option<Event>, DecodeError> {
    let tag = match value {
        Value::Map(_) => Fields(value).get("type"),
        Value::Array(parts) => parts.first(),
        _ => None,
    };
    let tag = tag.and_then(Value::as_str).ok_or(DecodeError::Shape("an event without a type"))?;
    let names: &[&str] = match tag {
        "BlockStored" => &STORED,
        "BlockRemoved" => &REMOVED,
        "AllBlocksCleared" => return Ok(Some(Event::Cleared)),
        _ => return Ok(None),
    };
    let field = |name: &str| match value {
        Value::Array(parts) => {
            let at = names.iter().position(|known| *known == name)?;
            parts.get(at).filter(|value| !value.is_nil())
        }
        _ => Fields(value).get(name),
    };
    let hashes = field("block_hashes")
        .and_then(Value::as_array)
        .ok_or(DecodeError::Shape("an event without block hashes"))?;
    let hashes: Vec<_> = hashes.iter().map(hash).collect::<Result<_, _>>()?;
    let group = field("group_idx").and_then(Value::as_u64).unwrap_or(0);
    let medium = field("medium").and_then(Value::as_str).map(medium);
    if tag == "BlockRemoved" {
        return Ok(Some(Event::Removed { hashes, medium, group }));
    }
    let block_tokens =
        field("block_size").and_then(Value::as_u64).filter(|size| (1..=BLOCK_TOKENS_MAX).contains(size));
    let block_tokens = block_tokens.ok_or(DecodeError::Shape("stored blocks without a size"))?;
    let tokens = field("token_ids")
        .and_then(Value::as_array)
        .ok_or(DecodeError::Shape("stored blocks without tokens"))?;
    let token = |value: &Value| value.as_u64().and_then(|token| u32::try_from(token).ok());
    let tokens: Option<Vec<_>> = tokens.iter().map(token).collect();
    let tokens = tokens.ok_or(DecodeError::Shape("a token that is no id"))?;
    let held = block_tokens.saturating_mul(hashes.len() as u64);
    if (tokens.len() as u64) < held {
        return Err(DecodeError::Shape("stored blocks whose tokens are not as many as they hold"));
    }
    let windowed =
        field("kv_cache_spec_sliding_window").and_then(Value::as_u64).is_some_and(|window| window > 0);
    // Blocks that such a layer no longer has are left out of the hashes, not of the tokens.
    if windowed || tokens.len() as u64 > held {
        return Ok(None);
    }
    let parent = field("parent_block_hash").map(hash).transpose()?;
    let lora = field("lora_name").and_then(Value::as_str);
    let extra_keys = field("extra_keys").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let (salt, extras) = extras(parent.is_none(), lora, field("cache_salt"), extra_keys, hashes.len());
    Ok(Some(Event::Stored {
        parent,
        lora: lora.map(str::to_owned),
        salt,
        extras,
        medium: medium.unwrap_or(Medium::Gpu),
        block_tokens: block_tokens as u32,
        hashes,
        tokens,
        group,
    }))
}

fn hash(value: &Value) -> Result<EngineHash, DecodeError> {
    let number = value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned)).map(EngineHash::Int);
    let bytes = || value.as_slice().map(|bytes| EngineHash::Bytes(bytes.into()));
    number.or_else(bytes).ok_or(DecodeError::Shape("a hash that is neither a number nor bytes"))
}

fn medium(name: &str) -> Medium {
    if name.eq_ignore_ascii_case("gpu") { Medium::Gpu } else { Medium::Behind }
}

/// A prompt's salt, where it begins, and what each of `blocks` blocks has beside its tokens.
///
/// `keys` has one entry a block, nil or a list: the adapter's name, what stands for images (pairs, or names),
/// and in a prompt's first block its salt, a string.
fn extras(
    begins: bool,
    lora: Option<&str>,
    cache_salt: Option<&Value>,
    keys: &[Value],
    blocks: usize,
) -> (Vec<u8>, Vec<Vec<u8>>) {
    let mut salts: Vec<&str> = cache_salt.and_then(Value::as_str).into_iter().collect();
    let mut extras = Vec::new();
    for (at, keys) in keys.iter().take(blocks).enumerate() {
        let keys = keys.as_array().map_or(&[][..], Vec::as_slice);
        let own = keys.iter().filter(|key| lora.is_none() || key.as_str() != lora);
        let (strings, others): (Vec<_>, Vec<_>) = own.partition(|key| begins && at == 0 && key.is_str());
        salts.extend(strings.into_iter().filter_map(Value::as_str));
        if !others.is_empty() {
            extras.resize(blocks, Vec::new());
            extras[at] = others.iter().map(|key| format!("{key}\0")).collect::<String>().into_bytes();
        }
    }
    salts.dedup();
    let salt = match salts.as_slice() {
        [] => Vec::new(),
        [one] => one.as_bytes().to_vec(),
        // Nobody's: which of them is the request's own is not said.
        many => format!("\0{many:?}").into_bytes(),
    };
    (salt, extras)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(value: &Value) -> Vec<u8> {
        let mut bytes = Vec::new();
        rmpv::encode::write_value(&mut bytes, value).unwrap();
        bytes
    }

    fn map(fields: &[(&str, Value)]) -> Value {
        Value::Map(fields.iter().map(|(name, value)| ((*name).into(), value.clone())).collect())
    }

    fn list(values: &[Value]) -> Value {
        Value::Array(values.to_vec())
    }

    fn stored() -> Event {
        Event::Stored {
            hashes: vec![EngineHash::Int(u64::MAX), EngineHash::Int(7)],
            parent: Some(EngineHash::Int(1)),
            tokens: vec![1, 2, 3, 4],
            block_tokens: 2,
            medium: Medium::Gpu,
            group: 0,
            lora: None,
            salt: vec![],
            extras: vec![],
        }
    }

    #[test]
    fn both_forms_say_the_same() {
        let hashes = list(&[(-1).into(), 7.into()]);
        let tokens = list(&[1.into(), 2.into(), 3.into(), 4.into()]);
        let tagged = map(&[
            ("type", "BlockStored".into()),
            ("block_hashes", hashes.clone()),
            ("parent_block_hash", 1.into()),
            ("token_ids", tokens.clone()),
            ("block_size", 2.into()),
            ("medium", "GPU".into()),
            ("a_new_key", list(&[map(&[])])),
        ]);
        let positional = list(&[
            "BlockStored".into(),
            hashes.clone(),
            1.into(),
            tokens,
            2.into(),
            Value::Nil,
            "GPU".into(),
        ]);
        let removed = list(&["BlockRemoved".into(), hashes, "CPU".into()]);
        let cleared = list(&["AllBlocksCleared".into()]);
        let new = list(&["BlockPainted".into(), 1.into()]);
        let value = list(&[1.5.into(), list(&[tagged, positional, removed, cleared, new]), 3.into()]);
        let batch = batch(&bytes(&value)).unwrap();
        assert_eq!((batch.rank, batch.unknown), (Some(3), 1));
        assert_eq!(batch.events[0], stored());
        assert_eq!(batch.events[1], stored());
        let hashes = vec![EngineHash::Int(u64::MAX), EngineHash::Int(7)];
        assert_eq!(batch.events[2], Event::Removed { hashes, medium: Some(Medium::Behind), group: 0 });
        assert_eq!(batch.events[3], Event::Cleared);
    }

    #[test]
    fn salts_are_the_requests_own_and_images_their_blocks() {
        let image = list(&["image".into(), 4.into()]);
        let of = |begins, lora, keys: &[Value]| extras(begins, lora, None, keys, 2);
        assert_eq!(of(true, None, &[]), (vec![], vec![]));
        assert_eq!(of(true, None, &[Value::Nil, Value::Nil]), (vec![], vec![]));
        assert_eq!(of(true, None, &[list(&["mine".into()]), Value::Nil]), (b"mine".to_vec(), vec![]));
        assert_eq!(extras(true, None, Some(&"mine".into()), &[], 2), (b"mine".to_vec(), vec![]));
        let lora = [list(&["adapter".into(), "mine".into()]), list(&["adapter".into()])];
        assert_eq!(of(true, Some("adapter"), &lora), (b"mine".to_vec(), vec![]));
        let (salt, extras) = of(true, None, &[list(&["mine".into()]), list(std::slice::from_ref(&image))]);
        assert_eq!((salt.as_slice(), extras[0].len(), extras[1].is_empty()), (&b"mine"[..], 0, false));
        let (salt, extras) = of(false, None, &[list(&[image, "named".into()]), Value::Nil]);
        assert!(salt.is_empty() && !extras[0].is_empty() && extras[1].is_empty());
    }

    #[test]
    fn layers_that_see_a_window_are_left_out() {
        let stored = |hashes: &[Value], window: Value| {
            map(&[
                ("type", "BlockStored".into()),
                ("block_hashes", list(hashes)),
                ("token_ids", list(&[1.into(), 2.into(), 3.into(), 4.into()])),
                ("block_size", 2.into()),
                ("kv_cache_spec_sliding_window", window),
            ])
        };
        let value = list(&[
            1.into(),
            list(&[
                stored(&[7.into()], Value::Nil),
                stored(&[7.into(), 8.into()], 128.into()),
                stored(&[7.into(), 8.into()], Value::Nil),
            ]),
        ]);
        let batch = batch(&bytes(&value)).unwrap();
        assert_eq!((batch.events.len(), batch.unknown), (1, 2));
    }

    #[test]
    fn what_makes_no_sense_is_an_error() {
        let wrong = list(&["BlockStored".into(), list(&[1.into()]), Value::Nil, list(&[1.into()]), 2.into()]);
        for value in [
            Value::Nil,
            list(&[]),
            list(&[1.into(), 2.into()]),
            list(&[1.into(), list(&[1.into()])]),
            list(&[1.into(), list(&[wrong])]),
        ] {
            assert!(batch(&bytes(&value)).is_err(), "{value}");
        }
        assert!(batch(&vec![0; BATCH_BYTES_MAX + 1]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_batch_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = batch(&bytes);
        }

        #[test]
        fn a_damaged_batch_is_a_batch_or_an_error(at in 0..80usize, byte: u8) {
            let value = list(&[1.into(), list(&[list(&["BlockStored".into(), list(&[1.into()]), Value::Nil, list(&[1.into(), 2.into()]), 2.into()])])]);
            let mut bytes = bytes(&value);
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = batch(&bytes);
        }
    }
}
