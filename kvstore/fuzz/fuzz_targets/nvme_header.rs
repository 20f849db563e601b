//! The header page of a file of blocks.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kelvin_tiering::fuzzing::nvme_header(bytes));
