//! The general decoder: definitions, then one struct value, fields matched by name (dmsg-wire 8.4).
//!
//! In: a gob stream and the receiver's list of fields, each with the function that stores it. Out: the
//! receiver's structure filled, absent fields left as they were. [`crate::object`] calls [`decode`] once per
//! object.

use super::reader::{FieldCursor, Reader};
use super::types::{Kind, Types};
use super::{GOB_MAX, GobError, NESTING_MAX};

/// A field the receiver knows.
#[derive(Debug)]
pub struct Field<T: 'static> {
    /// The name in the sender's definition, compared byte for byte.
    pub name: &'static str,
    /// The kind it must have and where its value goes.
    pub set: Set<T>,
}

/// The kind a field must have at the sender, and what to do with its value.
#[derive(Debug)]
pub enum Set<T: 'static> {
    /// A bool.
    Bool(fn(&mut T, bool)),
    /// A signed integer of any width.
    Int(fn(&mut T, i64)),
    /// An unsigned integer of any width whose value fits 16 bits.
    Uint16(fn(&mut T, u16)),
    /// A float.
    Float(fn(&mut T, f64)),
    /// A byte slice.
    Bytes(fn(&mut T, &[u8])),
    /// A string. Go does not promise UTF-8, so it comes as bytes.
    Text(fn(&mut T, &[u8])),
    /// A value that encodes itself (Go's `BinaryMarshaler`); the receiver judges the bytes.
    Marshaled(fn(&mut T, &[u8]) -> Result<(), BadValue>),
    /// An array of 32 bytes.
    Hash(fn(&mut T, [u8; 32])),
    /// A struct with fields of its own.
    Struct(&'static [Field<T>]),
}

/// The receiver refuses the value of a field; becomes [`GobError::Invalid`] with the name of the field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadValue;

/// Decodes the first value of a gob stream into `target`.
///
/// Bytes behind the message of that value are not looked at (dmsg-wire 8.4). On an error `target` may be half
/// filled.
///
/// # Errors
/// Every [`GobError`].
pub fn decode<T>(input: &[u8], fields: &'static [Field<T>], target: &mut T) -> Result<(), GobError> {
    if input.len() > GOB_MAX {
        return Err(GobError::TooLong);
    }
    let mut decoder = Decoder { reader: Reader::new(input), types: Types::default() };
    let id = decoder.next_value(Place::Top)?;
    let Kind::Struct { .. } = decoder.types.kind(id)? else { return Err(GobError::NotAStruct) };
    let common = decoder.check_struct(id, fields)?;
    if common == 0 {
        return Err(GobError::NoCommonField);
    }
    decoder.read_struct(id, fields, target, 0)
}

/// Where a value stands; an interface carries the definitions of its content inside the value around it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Top,
    Interface,
}

struct Decoder<'a> {
    reader: Reader<'a>,
    types: Types<'a>,
}

impl Decoder<'_> {
    /// Takes in definitions up to the next value and returns the type id of that value.
    fn next_value(&mut self, place: Place) -> Result<i64, GobError> {
        loop {
            if self.reader.message_over() {
                self.reader.next_message()?;
            }
            let id = self.reader.int()?;
            if id >= 0 {
                return Ok(id);
            }
            self.types.define(id.checked_neg().ok_or(GobError::BadDefinition(id))?, &mut self.reader)?;
            if !self.reader.message_over() {
                if place == Place::Top {
                    return Err(GobError::ExtraData);
                }
                // quirk: inside an interface the rest of the message is a message of its own, with its
                // length.
                self.reader.uint()?;
            }
        }
    }

    /// Compares the kinds of all fields both sides know, sent or not, and returns how many there are. Go
    /// compiles the whole type before it reads a value, so a mismatch counts even when the field is absent.
    fn check_struct<T>(&self, id: i64, fields: &'static [Field<T>]) -> Result<usize, GobError> {
        let mut common = 0;
        for wire in self.types.fields(id) {
            if let Some(field) = find(fields, wire.name) {
                self.check_kind(wire.type_id, field)?;
                common += 1;
            }
        }
        Ok(common)
    }

    fn check_kind<T>(&self, type_id: i64, field: &Field<T>) -> Result<(), GobError> {
        let kind = self.types.kind(type_id)?;
        let matches = match (&field.set, kind) {
            (Set::Bool(_), Kind::Bool)
            | (Set::Int(_), Kind::Int)
            | (Set::Uint16(_), Kind::Uint)
            | (Set::Float(_), Kind::Float)
            | (Set::Bytes(_), Kind::Bytes)
            | (Set::Text(_), Kind::Text)
            | (Set::Marshaled(_), Kind::Marshaled) => true,
            (Set::Hash(_), Kind::Array { element, length: 32 }) => self.types.kind(element)? == Kind::Uint,
            (Set::Struct(fields), Kind::Struct { .. }) => {
                self.check_struct(type_id, fields)?;
                true
            }
            _ => false,
        };
        if matches { Ok(()) } else { Err(GobError::KindMismatch(field.name)) }
    }

    fn read_struct<T>(
        &mut self,
        id: i64,
        fields: &'static [Field<T>],
        target: &mut T,
        depth: usize,
    ) -> Result<(), GobError> {
        let count = self.types.fields(id).len();
        let mut cursor = FieldCursor::default();
        while let Some(number) = cursor.advance(&mut self.reader, count)? {
            let wire = self.types.field(id, number)?;
            match find(fields, wire.name) {
                Some(field) => self.read_field(wire.type_id, field, target, depth + 1)?,
                None => self.skip(wire.type_id, depth + 1)?,
            }
        }
        Ok(())
    }

    /// Reads the value of a known field, whose kind [`Self::check_struct`] has found right.
    fn read_field<T>(
        &mut self,
        type_id: i64,
        field: &Field<T>,
        target: &mut T,
        depth: usize,
    ) -> Result<(), GobError> {
        match field.set {
            Set::Bool(set) => set(target, self.reader.uint()? != 0),
            Set::Int(set) => set(target, self.reader.int()?),
            Set::Uint16(set) => {
                let value =
                    u16::try_from(self.reader.uint()?).map_err(|_| GobError::OutOfRange(field.name))?;
                set(target, value);
            }
            // Floats travel byte-reversed, so that round numbers are short.
            Set::Float(set) => set(target, f64::from_bits(self.reader.uint()?.swap_bytes())),
            Set::Bytes(set) | Set::Text(set) => set(target, self.reader.bytes()?),
            Set::Marshaled(set) => {
                set(target, self.reader.bytes()?).map_err(|BadValue| GobError::Invalid(field.name))?;
            }
            Set::Hash(set) => {
                let mut hash = [0; 32];
                if self.reader.uint()? != 32 {
                    return Err(GobError::ArrayLength);
                }
                for byte in &mut hash {
                    *byte =
                        u8::try_from(self.reader.uint()?).map_err(|_| GobError::OutOfRange(field.name))?;
                }
                set(target, hash);
            }
            Set::Struct(fields) => self.read_struct(type_id, fields, target, depth)?,
        }
        Ok(())
    }

    /// Passes over a value of any type. Every call uses up at least one byte, which bounds the loops over
    /// counts that the peer chose.
    fn skip(&mut self, type_id: i64, depth: usize) -> Result<(), GobError> {
        if depth > NESTING_MAX {
            return Err(GobError::TooDeep);
        }
        match self.types.kind(type_id)? {
            Kind::Bool | Kind::Int | Kind::Uint | Kind::Float => drop(self.reader.uint()?),
            Kind::Complex => {
                self.reader.uint()?;
                self.reader.uint()?;
            }
            Kind::Bytes | Kind::Text | Kind::Opaque | Kind::Marshaled => drop(self.reader.bytes()?),
            Kind::Interface => self.skip_interface()?,
            Kind::Array { element, length } => {
                if self.reader.uint()? != length {
                    return Err(GobError::ArrayLength);
                }
                for _ in 0..length {
                    self.skip(element, depth + 1)?;
                }
            }
            Kind::Slice { element } => {
                for _ in 0..self.reader.uint()? {
                    self.skip(element, depth + 1)?;
                }
            }
            Kind::Map { key, element } => {
                for _ in 0..self.reader.uint()? {
                    self.skip(key, depth + 1)?;
                    self.skip(element, depth + 1)?;
                }
            }
            Kind::Struct { field_count } => {
                let mut cursor = FieldCursor::default();
                while let Some(number) = cursor.advance(&mut self.reader, field_count)? {
                    let wire = self.types.field(type_id, number)?;
                    self.skip(wire.type_id, depth + 1)?;
                }
            }
        }
        Ok(())
    }

    /// An interface: the name of the concrete type (empty: nil, nothing follows), definitions, its type id,
    /// and the value with its length in front.
    ///
    /// quirk: Go sends the definitions as messages of their own, so the value around the interface breaks
    /// off, and goes on in the message behind them.
    fn skip_interface(&mut self) -> Result<(), GobError> {
        if self.reader.bytes()?.is_empty() {
            return Ok(());
        }
        self.next_value(Place::Interface)?;
        self.reader.bytes()?;
        Ok(())
    }
}

fn find<T>(fields: &'static [Field<T>], name: &[u8]) -> Option<&'static Field<T>> {
    fields.iter().find(|field| field.name.as_bytes() == name)
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::super::encode::{push_int, push_uint};
    use super::super::{FIELDS_MAX, TYPES_MAX};
    use super::*;

    const FIELDS: &[Field<i64>] = &[
        Field { name: "N", set: Set::Int(|target, value| *target = value) },
        Field { name: "H", set: Set::Hash(|_, _| {}) },
    ];

    fn read(input: &[u8]) -> Result<i64, GobError> {
        let mut target = 0;
        decode(input, FIELDS, &mut target)?;
        Ok(target)
    }

    fn message(id: i64, content: &[u8]) -> Vec<u8> {
        let mut body = Vec::new();
        push_int(id, &mut body);
        body.extend_from_slice(content);
        let mut out = Vec::new();
        push_uint(body.len() as u64, &mut out);
        out.extend_from_slice(&body);
        out
    }

    /// Content of a struct definition with the given fields.
    fn structure(fields: &[(&str, i64)]) -> Vec<u8> {
        let mut out = [3, 2].to_vec();
        push_uint(fields.len() as u64, &mut out);
        for (name, id) in fields {
            out.extend_from_slice(&[1, u8::try_from(name.len()).unwrap()]);
            out.extend_from_slice(name.as_bytes());
            out.push(1);
            push_int(*id, &mut out);
            out.push(0);
        }
        out.extend_from_slice(&[0, 0]);
        out
    }

    #[test]
    fn definition_without_common_part() {
        let input = [message(-64, &structure(&[("N", 2)])), message(64, &[1, 8, 0])].concat();
        assert_eq!(read(&input), Ok(4));
    }

    #[test]
    fn huge_counts_end_with_the_input() {
        // An array type of 2^62 elements, and a value that claims to have them.
        let mut array = [1, 2, 2, 1].to_vec();
        push_int(1 << 62, &mut array);
        array.extend_from_slice(&[0, 0]);
        let mut value = [1].to_vec();
        push_uint(1 << 62, &mut value);
        let input =
            [message(-65, &array), message(-64, &structure(&[("X", 65), ("N", 2)])), message(64, &value)]
                .concat();
        assert_eq!(read(&input), Err(GobError::Truncated));
    }

    #[test]
    fn recursive_type_is_cut_at_the_nesting_cap() {
        let input =
            [message(-64, &structure(&[("X", 64), ("N", 2)])), message(64, &[1; 64]), Vec::new()].concat();
        assert_eq!(read(&input), Err(GobError::TooDeep));
    }

    #[test]
    fn caps_on_types_and_fields() {
        let empty = structure(&[]);
        let many: Vec<u8> = (0..=TYPES_MAX as i64).flat_map(|index| message(-64 - index, &empty)).collect();
        assert_eq!(read(&many), Err(GobError::TooManyTypes));
        let wide: Vec<_> = (0..=FIELDS_MAX).map(|_| ("N", 2)).collect();
        assert_eq!(read(&message(-64, &structure(&wide))), Err(GobError::TooManyFields));
        let half = structure(&wide[..FIELDS_MAX / 2 + 1]);
        let twice = [message(-64, &half), message(-65, &half)].concat();
        assert_eq!(read(&twice), Err(GobError::TooManyFields));
        assert_eq!(read(&[0; GOB_MAX + 1]), Err(GobError::TooLong));
    }

    #[test]
    fn malformed_definitions() {
        assert_eq!(read(&message(-8, &structure(&[]))), Err(GobError::BadDefinition(8)));
        assert_eq!(read(&message(i64::MIN, &[])), Err(GobError::BadDefinition(i64::MIN)));
        assert_eq!(read(&message(-64, &[0])), Err(GobError::BadDefinition(64)));
        // slice and struct at once
        assert_eq!(read(&message(-64, &[2, 0, 1, 0, 0])), Err(GobError::BadDefinition(64)));
        assert_eq!(read(&message(-64, &[8, 0, 0])), Err(GobError::FieldNumber));
        let mut extra = structure(&[("N", 2)]);
        extra.push(0);
        assert_eq!(read(&message(-64, &extra)), Err(GobError::ExtraData));
    }

    #[test]
    fn kinds_are_compared_even_for_absent_fields() {
        let absent = |field| [message(-64, &structure(&[("N", 2), field])), message(64, &[1, 8, 0])].concat();
        assert_eq!(read(&absent(("H", 5))), Err(GobError::KindMismatch("H")));
        assert_eq!(read(&absent(("H", 99))), Err(GobError::UnknownType(99)));
        assert_eq!(read(&absent(("Other", 99))), Ok(4));
    }

    #[test]
    fn every_foreign_kind_is_skipped() {
        let fields = [("C", 7), ("I", 8), ("G", 65), ("T", 66), ("Nil", 8), ("N", 2)];
        let input = [
            message(-65, &[5, 0, 0]),
            message(-66, &[7, 0, 0]),
            message(-64, &structure(&fields)),
            // complex; interface holding an int; two byte strings; nil interface; N
            message(
                64,
                &[
                    1, 0xfe, 0xf0, 0x3f, 0x40, 1, 3, b'i', b'n', b't', 4, 2, 0, 2, 1, 1, 9, 1, 0, 1, 0, 1, 6,
                    0,
                ],
            ),
        ]
        .concat();
        assert_eq!(read(&input), Ok(3));
    }
}
