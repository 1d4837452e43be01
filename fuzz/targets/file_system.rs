#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vmm::fuzzing::file_system(data));
