#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| wifshare::fuzzing::gateway_request(bytes));
