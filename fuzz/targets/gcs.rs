#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| uvm::fuzzing::gcs(data));
