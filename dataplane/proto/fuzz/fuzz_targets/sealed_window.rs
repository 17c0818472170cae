#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringwire_proto_fuzz::sealed_window::run(data));
