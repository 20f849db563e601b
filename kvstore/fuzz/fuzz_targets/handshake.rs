//! What a client says first: the namespace it wants. What is accepted must come back from its own wire form.
#![no_main]

use kelvin_proto::{NamespaceSpec, kv::v1::OpenNamespaceRequest};
use prost::Message;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(wire) = OpenNamespaceRequest::decode(bytes) else { return };
    let Ok(spec) = NamespaceSpec::try_from(wire) else { return };
    assert_eq!(NamespaceSpec::try_from(spec.to_wire("fuzz")).ok(), Some(spec));
});
