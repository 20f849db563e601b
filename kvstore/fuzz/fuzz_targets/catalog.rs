//! Keys, values and the mark of the catalog.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kelvin_kvstore::catalog::decode_any(bytes));
