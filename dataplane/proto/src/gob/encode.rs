//! Writing gob values behind a constant prefix of type definitions (dmsg-wire 8.1, 8.2).
//!
//! In: field numbers and values. Out: bytes appended to a vector, zero fields left out as Go leaves them out
//! (dmsg-wire 8.3). [`crate::object`] is the caller and owns the prefixes.

use alloc::vec::Vec;

/// Appends an unsigned number in its shortest form.
pub fn push_uint(value: u64, out: &mut Vec<u8>) {
    let bytes = value.to_be_bytes();
    if value < 0x80 {
        out.push(bytes[7]);
        return;
    }
    let zeros = value.leading_zeros() as usize / 8;
    // The first byte is the negated count: ff for one byte, f8 for eight.
    out.push((zeros as u8).wrapping_sub(8));
    out.extend_from_slice(&bytes[zeros..]);
}

/// Appends a signed number.
pub fn push_int(value: i64, out: &mut Vec<u8>) {
    // The sign moves to bit 0; a negative number is complemented.
    push_uint((value << 1 ^ value >> 63).cast_unsigned(), out);
}

/// Appends the message of a struct value of type `type_id`, whose fields `write` sends.
pub fn push_value_message(type_id: i64, out: &mut Vec<u8>, write: impl FnOnce(&mut StructWriter<'_>)) {
    let mut content = Vec::new();
    push_int(type_id, &mut content);
    write_struct(&mut content, write);
    push_uint(content.len() as u64, out);
    out.extend_from_slice(&content);
}

/// Writes the fields of one struct value, in rising order of their numbers.
pub struct StructWriter<'o> {
    out: &'o mut Vec<u8>,
    /// Number of the next field; the distance sent is the field's number less this, plus one.
    next: u64,
}

impl StructWriter<'_> {
    /// A signed integer, left out when zero.
    pub fn int(&mut self, field: u64, value: i64) {
        if value != 0 {
            self.announce(field);
            push_int(value, self.out);
        }
    }

    /// An unsigned integer, left out when zero.
    pub fn uint(&mut self, field: u64, value: u64) {
        if value != 0 {
            self.announce(field);
            push_uint(value, self.out);
        }
    }

    /// A bool, left out when false.
    pub fn bool(&mut self, field: u64, value: bool) {
        self.uint(field, u64::from(value));
    }

    /// A float, left out when zero (of either sign).
    pub fn float(&mut self, field: u64, value: f64) {
        if value != 0.0 {
            self.announce(field);
            push_uint(value.to_bits().swap_bytes(), self.out);
        }
    }

    /// Bytes, a string, or a value that encodes itself; left out when empty.
    pub fn bytes(&mut self, field: u64, value: &[u8]) {
        if !value.is_empty() {
            self.announce(field);
            push_uint(value.len() as u64, self.out);
            self.out.extend_from_slice(value);
        }
    }

    /// An array of bytes, sent even when zero: each element is a number of its own, two bytes from 128 on.
    pub fn byte_array(&mut self, field: u64, value: &[u8]) {
        self.announce(field);
        push_uint(value.len() as u64, self.out);
        for &byte in value {
            push_uint(u64::from(byte), self.out);
        }
    }

    /// A struct, sent even when all its fields are zero.
    pub fn structure(&mut self, field: u64, write: impl FnOnce(&mut StructWriter<'_>)) {
        self.announce(field);
        write_struct(self.out, write);
    }

    fn announce(&mut self, field: u64) {
        debug_assert!(field >= self.next, "fields go out in rising order");
        push_uint(field + 1 - self.next, self.out);
        self.next = field + 1;
    }
}

fn write_struct(out: &mut Vec<u8>, write: impl FnOnce(&mut StructWriter<'_>)) {
    let mut writer = StructWriter { out, next: 0 };
    write(&mut writer);
    out.push(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uint(value: u64) -> Vec<u8> {
        let mut out = Vec::new();
        push_uint(value, &mut out);
        out
    }

    fn int(value: i64) -> Vec<u8> {
        let mut out = Vec::new();
        push_int(value, &mut out);
        out
    }

    #[test]
    fn numbers() {
        assert_eq!(uint(0), [0]);
        assert_eq!(uint(127), [127]);
        assert_eq!(uint(128), [0xff, 0x80]);
        assert_eq!(uint(0xffff), [0xfe, 0xff, 0xff]);
        assert_eq!(uint(0x1_0000), [0xfd, 1, 0, 0]);
        assert_eq!(uint(u64::MAX), [0xf8, 255, 255, 255, 255, 255, 255, 255, 255]);
        assert_eq!(int(-64), [0x7f]);
        assert_eq!(int(-65), [0xff, 0x81]);
        assert_eq!(int(64), [0xff, 0x80]);
        assert_eq!(int(i64::MIN), [0xf8, 255, 255, 255, 255, 255, 255, 255, 255]);
        assert_eq!(int(i64::MAX), [0xf8, 255, 255, 255, 255, 255, 255, 255, 254]);
    }
}
