//! The bytes of messages as the wire has them, kept in `golden/`: a change of one of them breaks clients that are
//! built already. `KELVIN_UPDATE_GOLDEN=1` writes those of messages that are new.

use std::{fmt::Write, fs, path::Path};

use kelvin_proto::{
    kv::v1::{self, BlockStatus, Tier},
    worker,
};
use prost::Message;

/// Sixteen bytes a line, so that a difference can be seen.
fn to_hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for line in bytes.chunks(16) {
        let words: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        let _ = writeln!(text, "{}", words.join(" "));
    }
    text
}

fn from_hex(text: &str) -> Vec<u8> {
    text.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).expect("two digits")).collect()
}

fn check<M: Message + Default + PartialEq + std::fmt::Debug>(name: &str, message: &M) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(format!("{name}.hex"));
    if !path.exists() && std::env::var_os("KELVIN_UPDATE_GOLDEN").is_some() {
        fs::write(&path, to_hex(&message.encode_to_vec())).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(to_hex(&message.encode_to_vec()), golden, "{name} is written otherwise than it was");
    assert_eq!(
        M::decode(&from_hex(&golden)[..]).as_ref(),
        Ok(message),
        "{name} is read otherwise than it was"
    );
}

fn hash(byte: u8) -> bytes::Bytes {
    vec![byte; 16].into()
}

fn tokens() -> v1::TokenIds {
    v1::TokenIds { ids: vec![1, 300, 70_000], extra: b"lora".as_slice().into() }
}

fn read_lease() -> v1::ReadLease {
    v1::ReadLease {
        status: BlockStatus::Leased.into(),
        lease_id: 7,
        location: Some(v1::Location { offset: 8192, bytes: 4096 }),
        checksum: 0x0123_4567_89ab_cdef,
        tier: Tier::Dram.into(),
    }
}

#[test]
fn the_handshake() {
    let fingerprint = v1::Fingerprint {
        model_digest: "ab12".into(),
        engine: "vllm".into(),
        engine_build: "0.32.0".into(),
        layout: "layer-kv-token".into(),
        dtype: "bf16".into(),
        attributes: [("rope".to_owned(), "yarn".to_owned())].into(),
    };
    let shard = v1::Shard { tensor_rank: 1, tensor_size: 2, pipeline_rank: 3, pipeline_size: 4 };
    check(
        "open_namespace_request",
        &v1::OpenNamespaceRequest {
            model: "m".into(),
            fingerprint: Some(fingerprint),
            shard: Some(shard),
            block_tokens: 16,
            block_bytes: 1 << 20,
            client_name: "decode-0".into(),
        },
    );
    check(
        "open_namespace_response",
        &v1::OpenNamespaceResponse {
            namespace_id: 1,
            session_id: 2,
            session_ttl_ms: 10_000,
            namespace_key: vec![9; 32].into(),
            shared_memory: Some(v1::SharedMemory {
                socket_path: "/run/kv.sock".into(),
                token: hash(5),
                region_bytes: 1 << 30,
                takes_calls: false,
                takes_traces: false,
            }),
            limits: Some(v1::Limits {
                keys_max: 8192,
                message_bytes_max: 4 << 20,
                leases_max: 65_536,
                wait_ms_max: 60_000,
                lease_ttl_ms_max: 60_001,
                pins_max: 4096,
            }),
            incarnation: u64::MAX,
            data_port: Some(v1::DataPort { address: ":7001".into(), token: hash(6) }),
            packs_leases: false,
        },
    );
    check(
        "shared_memory",
        &v1::SharedMemory {
            socket_path: "/run/kv.sock".into(),
            token: hash(5),
            region_bytes: 1 << 30,
            takes_calls: true,
            takes_traces: false,
        },
    );
    check(
        "open_namespace_response_packs",
        &v1::OpenNamespaceResponse { packs_leases: true, ..Default::default() },
    );
}

#[test]
fn finding_and_reading() {
    check(
        "match_request_tokens",
        &v1::MatchRequest {
            session_id: 2,
            prefix: Some(v1::match_request::Prefix::Tokens(tokens())),
            lease_ttl_ms: 30_000,
            wait_ms: 5,
            return_hashes: true,
        },
    );
    let hashes = v1::Hashes { hashes: vec![hash(1), hash(2)] };
    check(
        "match_request_hashes",
        &v1::MatchRequest {
            session_id: 2,
            prefix: Some(v1::match_request::Prefix::Hashes(hashes)),
            ..Default::default()
        },
    );
    check(
        "match_response",
        &v1::MatchResponse {
            blocks: 2,
            tokens: 32,
            tiers: vec![Tier::Dram.into(), Tier::Nvme.into()],
            restorable_tokens: vec![16, 32],
            filling_blocks: 1,
            loads: vec![v1::TierLoad { tier: Tier::Nvme.into(), blocks: 1, load_us_estimate: 321 }],
            leases: vec![read_lease()],
            hashes: vec![hash(1)],
            missed: None,
        },
    );
    check(
        "match_response_missed",
        &v1::MatchResponse {
            missed: Some(v1::BlockExplanation {
                reason: v1::MissReason::Evicted.into(),
                lost_from: Tier::Nvme.into(),
                age_ms: Some(77),
                ..Default::default()
            }),
            ..Default::default()
        },
    );
    check(
        "acquire_request",
        &v1::AcquireRequest {
            session_id: 2,
            hashes: vec![hash(1)],
            wait_ms: 3,
            lease_ttl_ms: 4,
            packed_hashes: bytes::Bytes::new(),
        },
    );
    check("acquire_response", &v1::AcquireResponse { leases: vec![read_lease()], packed: None });
    check(
        "acquire_request_packed",
        &v1::AcquireRequest {
            session_id: 2,
            packed_hashes: [hash(1), hash(2)].concat().into(),
            ..Default::default()
        },
    );
    let packed = v1::PackedLeases {
        first_lease_id: 7,
        checksums: vec![1, u64::MAX],
        offsets: vec![0, 8192],
        tier: Tier::Dram.into(),
        stopped: BlockStatus::Missing.into(),
    };
    check("acquire_response_packed", &v1::AcquireResponse { leases: Vec::new(), packed: Some(packed) });
    check(
        "read_request",
        &v1::ReadRequest {
            session_id: 2,
            lease_ids: vec![7, 8],
            range: Some(v1::ByteRange { offset: 4096, bytes: 100 }),
        },
    );
    check(
        "read_response",
        &v1::ReadResponse {
            lease_id: 7,
            offset: 4096,
            data: b"bytes".as_slice().into(),
            status: BlockStatus::Leased.into(),
        },
    );
}

#[test]
fn storing() {
    check(
        "reserve_request",
        &v1::ReserveRequest {
            session_id: 2,
            parent: hash(1),
            hashes: vec![hash(2)],
            lease_ttl_ms: 4,
            priority: -5,
            block_ttl_ms: 6,
        },
    );
    let location = Some(v1::Location { offset: 0, bytes: 4096 });
    let lease = v1::WriteLease { status: BlockStatus::Reserved.into(), lease_id: 9, location };
    check("reserve_response", &v1::ReserveResponse { leases: vec![lease] });
    let blocks = vec![v1::CommitBlock { lease_id: 9, checksum: u64::MAX }];
    check("commit_request", &v1::CommitRequest { session_id: 2, blocks });
    let statuses = vec![BlockStatus::Stored.into(), BlockStatus::Conflict.into()];
    check("commit_response", &v1::CommitResponse { statuses });
    check(
        "write_request",
        &v1::WriteRequest { session_id: 2, lease_id: 9, data: b"bytes".as_slice().into(), checksum: Some(0) },
    );
    check("write_response", &v1::WriteResponse { status: BlockStatus::NoParent.into() });
    check("abort_request", &v1::AbortRequest { session_id: 2, lease_ids: vec![9] });
}

#[test]
fn keeping() {
    check(
        "renew_request",
        &v1::RenewRequest { session_id: 2, lease_ids: vec![7], lease_ttl_ms: 4, all_leases: true },
    );
    check(
        "release_request",
        &v1::ReleaseRequest {
            session_id: 2,
            lease_ids: vec![7],
            end_session: true,
            damaged_lease_ids: vec![8],
        },
    );
    let hashes = v1::Hashes { hashes: vec![hash(1)] };
    check(
        "explain_request",
        &v1::ExplainRequest {
            session_id: 2,
            namespace_id: 1,
            blocks: Some(v1::explain_request::Blocks::Hashes(hashes)),
        },
    );
    check(
        "block_explanation",
        &v1::BlockExplanation {
            hash: hash(1),
            reason: v1::MissReason::Evicted.into(),
            tiers: vec![Tier::Object.into()],
            lost_from: Tier::Dram.into(),
            age_ms: Some(0),
            other_namespace_id: 3,
            pinned: true,
        },
    );
}

#[test]
fn watching() {
    check(
        "watch_request",
        &v1::WatchRequest { session_id: 2, namespace_id: 1, cursor: 5, incarnation: 6, describe: false },
    );
    check(
        "watch_response",
        &v1::WatchResponse {
            cursor: 5,
            incarnation: 6,
            events: vec![v1::BlockEvent {
                kind: v1::block_event::Kind::Removed.into(),
                hash: hash(2),
                parent: hash(1),
                tier: Tier::Nvme.into(),
            }],
            lost: 3,
            snapshot_begin: true,
            snapshot_end: true,
            described: None,
        },
    );
}

#[test]
fn generating() {
    let sampling = worker::v1::Sampling {
        temperature: 0.5,
        top_p: 0.9,
        top_k: 40,
        seed: Some(7),
        logit_bias: [(3, -1.5)].into(),
        ..Default::default()
    };
    let request = worker::v1::GenerateRequest {
        request_id: "r-1".into(),
        model: "m".into(),
        tokens: vec![1, 300, 70_000],
        extra: b"salt:a".as_slice().into(),
        sampling: Some(sampling),
        tokens_max: 64,
        stop_tokens: vec![2],
        wait_blocks: 1,
        wait_ms: 250,
        logprobs: Some(2),
        grammar: "start: \"a\"".into(),
        generated_tokens: 0,
    };
    check("generate_request", &request);
    check("generate_request_resumed", &worker::v1::GenerateRequest { generated_tokens: 2, ..request });
    let top = vec![worker::v1::TokenLogprob { token: 5, logprob: -0.25 }];
    let token = worker::v1::GeneratedToken { token: 5, logprob: Some(-0.25), top };
    check("generate_response", &worker::v1::GenerateResponse { tokens: vec![token], ..Default::default() });
    let usage = worker::v1::Usage {
        prompt_tokens: 40,
        generated_tokens: 1,
        imported_tokens: 32,
        evaluated_tokens: 8,
        import_us: 90,
        evaluate_us: 1_000,
    };
    check(
        "generate_response_last",
        &worker::v1::GenerateResponse {
            finish: worker::v1::FinishReason::Stop.into(),
            usage: Some(usage),
            ..Default::default()
        },
    );
}
