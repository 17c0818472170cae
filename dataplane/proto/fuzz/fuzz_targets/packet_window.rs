#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringwire_proto_fuzz::packet_window::run(data));
