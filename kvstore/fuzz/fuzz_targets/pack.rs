//! Header and footer of a pack, and its name.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kelvin_tiering::fuzzing::pack(bytes));
