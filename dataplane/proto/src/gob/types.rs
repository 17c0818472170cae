//! The type definitions of one gob stream (dmsg-wire 8.2).
//!
//! In: the `wireType` structs of definition messages. Out: what a type id means, as small copies, so that the
//! decoder may add definitions (an interface value carries its own) while it walks a value.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::reader::{FieldCursor, Reader};
use super::{FIELDS_MAX, GobError, TYPES_MAX};

/// Highest id that every gob implementation predefines.
const PREDEFINED_MAX: i64 = 8;

/// What a type id stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    Int,
    Uint,
    Float,
    Bytes,
    Text,
    Complex,
    Interface,
    Array {
        element: i64,
        length: u64,
    },
    Slice {
        element: i64,
    },
    Struct {
        field_count: usize,
    },
    Map {
        key: i64,
        element: i64,
    },
    /// A type with its own encoding from Go's `GobEncoder` or `TextMarshaler`: on the wire a byte string.
    Opaque,
    /// A type with its own encoding from Go's `BinaryMarshaler`, as public keys have: on the wire a byte
    /// string.
    Marshaled,
}

/// One field of a struct definition.
#[derive(Debug, Clone, Copy)]
pub(super) struct WireField<'a> {
    pub(super) name: &'a [u8],
    pub(super) type_id: i64,
}

/// All definitions seen so far, by type id.
#[derive(Default)]
pub(super) struct Types<'a> {
    definitions: BTreeMap<i64, Definition<'a>>,
    fields_total: usize,
}

struct Definition<'a> {
    kind: Kind,
    /// Of a struct; empty for every other kind.
    fields: Vec<WireField<'a>>,
}

impl<'a> Types<'a> {
    /// Reads the definition of `id`, whose `wireType` struct starts at the reader.
    pub(super) fn define(&mut self, id: i64, reader: &mut Reader<'a>) -> Result<(), GobError> {
        if id <= PREDEFINED_MAX || id > i64::from(i32::MAX) {
            return Err(GobError::BadDefinition(id));
        }
        if self.definitions.contains_key(&id) {
            return Err(GobError::DuplicateType(id));
        }
        if self.definitions.len() == TYPES_MAX {
            return Err(GobError::TooManyTypes);
        }
        let definition = wire_type(id, reader, FIELDS_MAX - self.fields_total)?;
        self.fields_total += definition.fields.len();
        self.definitions.insert(id, definition);
        Ok(())
    }

    pub(super) fn kind(&self, id: i64) -> Result<Kind, GobError> {
        Ok(match id {
            1 => Kind::Bool,
            2 => Kind::Int,
            3 => Kind::Uint,
            4 => Kind::Float,
            5 => Kind::Bytes,
            6 => Kind::Text,
            7 => Kind::Complex,
            8 => Kind::Interface,
            _ => self.definitions.get(&id).ok_or(GobError::UnknownType(id))?.kind,
        })
    }

    /// The fields of a struct type; empty for every other type.
    pub(super) fn fields(&self, id: i64) -> &[WireField<'a>] {
        self.definitions.get(&id).map_or(&[], |definition| &definition.fields)
    }

    /// Field `number` of the struct type `id`.
    pub(super) fn field(&self, id: i64, number: usize) -> Result<WireField<'a>, GobError> {
        self.fields(id).get(number).copied().ok_or(GobError::FieldNumber)
    }
}

/// A `wireType`: a struct of seven fields of which exactly one is present and names the kind.
fn wire_type<'a>(id: i64, reader: &mut Reader<'a>, fields_left: usize) -> Result<Definition<'a>, GobError> {
    let bad = || GobError::BadDefinition(id);
    let mut cursor = FieldCursor::default();
    let number = cursor.advance(reader, 7)?.ok_or_else(bad)?;
    let mut fields = Vec::new();
    let kind = match number {
        0 => {
            let [element, length] = ints(reader)?;
            Kind::Array { element, length: u64::try_from(length).map_err(|_| bad())? }
        }
        1 => {
            let [element] = ints(reader)?;
            Kind::Slice { element }
        }
        2 => {
            fields = struct_type(reader, fields_left)?;
            Kind::Struct { field_count: fields.len() }
        }
        3 => {
            let [key, element] = ints(reader)?;
            Kind::Map { key, element }
        }
        5 => {
            let [] = ints(reader)?;
            Kind::Marshaled
        }
        _ => {
            let [] = ints(reader)?;
            Kind::Opaque
        }
    };
    if cursor.advance(reader, 7)?.is_some() {
        return Err(bad());
    }
    Ok(Definition { kind, fields })
}

/// A struct of `common` and then `N` integers: every kind but struct has this form. Absent integers are zero.
fn ints<const N: usize>(reader: &mut Reader<'_>) -> Result<[i64; N], GobError> {
    let mut values = [0; N];
    let mut cursor = FieldCursor::default();
    while let Some(number) = cursor.advance(reader, 1 + N)? {
        match number.checked_sub(1).and_then(|index| values.get_mut(index)) {
            Some(value) => *value = reader.int()?,
            None => drop(named_int(reader)?),
        }
    }
    Ok(values)
}

fn struct_type<'a>(reader: &mut Reader<'a>, fields_left: usize) -> Result<Vec<WireField<'a>>, GobError> {
    let mut fields = Vec::new();
    let mut cursor = FieldCursor::default();
    while let Some(number) = cursor.advance(reader, 2)? {
        if number == 0 {
            named_int(reader)?;
            continue;
        }
        let count = usize::try_from(reader.uint()?).map_err(|_| GobError::TooManyFields)?;
        if count > fields_left {
            return Err(GobError::TooManyFields);
        }
        fields.reserve_exact(count);
        for _ in 0..count {
            let (name, type_id) = named_int(reader)?;
            fields.push(WireField { name, type_id });
        }
    }
    Ok(fields)
}

/// A struct of a string and an integer: `common` (name, id) and the description of a field (name, type id).
/// The id in `common` repeats that of the definition and is not compared, as Go does not.
fn named_int<'a>(reader: &mut Reader<'a>) -> Result<(&'a [u8], i64), GobError> {
    let (mut name, mut value) = (&[][..], 0);
    let mut cursor = FieldCursor::default();
    while let Some(number) = cursor.advance(reader, 2)? {
        if number == 0 {
            name = reader.bytes()?;
        } else {
            value = reader.int()?;
        }
    }
    Ok((name, value))
}
