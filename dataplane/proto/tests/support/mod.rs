//! What the vector tests of identities, handshakes and packets share: reading the files, and entropy that replays.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(unreachable_pub, reason = "shared by several test crates")]

use ringwire_proto::entropy::Entropy;
use serde_json::Value;

/// Parses a vector file. The text is included at compile time, so an absent file fails the build.
pub fn parse(text: &str) -> Value {
    serde_json::from_str(text).expect("a vector file is JSON")
}

/// A list inside a vector; an empty one is a defect of the file.
pub fn list<'a>(value: &'a Value, name: &str) -> &'a Vec<Value> {
    let list = value[name].as_array().unwrap_or_else(|| panic!("no list {name}"));
    assert!(!list.is_empty(), "{name} is empty");
    list
}

/// A text inside a vector.
pub fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_else(|| panic!("no text {name} in {value}"))
}

/// A truth value inside a vector.
pub fn flag(value: &Value, name: &str) -> bool {
    value[name].as_bool().unwrap_or_else(|| panic!("no flag {name} in {value}"))
}

/// Bytes written in hex inside a vector.
pub fn bytes(value: &Value, name: &str) -> Vec<u8> {
    hex::decode(text(value, name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// 32 bytes written in hex inside a vector.
pub fn array(value: &Value, name: &str) -> [u8; 32] {
    bytes(value, name).try_into().unwrap_or_else(|_| panic!("{name} has not 32 bytes"))
}

/// Gives out recorded bytes and insists that exactly these are drawn.
pub struct Replay(pub Vec<u8>);

impl Entropy for Replay {
    fn fill(&mut self, out: &mut [u8]) {
        let rest = self.0.split_off(out.len());
        out.copy_from_slice(&self.0);
        self.0 = rest;
    }
}
