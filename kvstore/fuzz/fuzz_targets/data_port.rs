//! The first bytes of a connection to the data port, and the heads of its messages.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kelvin_kvstore::fuzz_data_port(bytes));
