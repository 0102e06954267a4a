#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| podvisor_fuzz::vfio::run(bytes));
