//! Frames of calls over the socket of shared memory.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kelvin_kvstore::fuzz_calls(bytes));
