//! The part of Go's `encoding/gob` that session objects need (dmsg-wire 8).
//!
//! [`decode`] reads one self-describing stream: it takes the type definitions from the stream, matches the
//! fields of the first value with the receiver's [`Field`] list **by name**, and skips fields it does not
//! know whatever their kind. [`StructWriter`] and [`push_value_message`] write the value part behind a
//! constant prefix of definitions. The session objects in [`crate::object`] are the only callers; nothing
//! here knows about keys or signatures.
//!
//! The input is a peer's and unauthenticated. The work is bounded: every step of the walk over a value uses
//! up at least one byte of input, nothing is copied while skipping, and definitions, fields and nesting have
//! caps.

mod decode;
mod encode;
mod reader;
mod types;

pub use decode::{BadValue, Field, Set, decode};
pub use encode::{StructWriter, push_int, push_uint, push_value_message};

/// Most bytes of gob that [`decode`] looks at: a packet of 65535 less 24 of sealing less 65 of signature
/// (dmsg-wire 7). Longer input is refused before anything is read.
pub const GOB_MAX: usize = 65_446;

/// Most type definitions in one stream. The objects need three; the widest recording, with a foreign field of
/// every kind, has nine.
pub const TYPES_MAX: usize = 64;

/// Most struct fields over all definitions of one stream. The widest object has ten.
pub const FIELDS_MAX: usize = 256;

/// Deepest nesting of values inside one value. The objects nest two deep.
pub const NESTING_MAX: usize = 16;

/// Why a gob stream was refused (dmsg-wire 8.4).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GobError {
    /// The input is longer than [`GOB_MAX`].
    #[error("gob: input longer than {GOB_MAX} bytes")]
    TooLong,
    /// The input, or the message in it, ends inside a number, a definition or a value. Empty input is this
    /// too.
    #[error("gob: truncated")]
    Truncated,
    /// A number that says it has more than eight bytes.
    #[error("gob: number of more than eight bytes")]
    BadNumber,
    /// A value, an element or a field of a type id that the stream has not defined.
    #[error("gob: type id {0} was not defined")]
    UnknownType(i64),
    /// A second definition of the same type id.
    #[error("gob: type id {0} defined twice")]
    DuplicateType(i64),
    /// A definition of a predefined id, of an id outside 32 bits, or one whose content is not a type
    /// description.
    #[error("gob: malformed definition of type id {0}")]
    BadDefinition(i64),
    /// Bytes behind a type definition inside its message.
    #[error("gob: extra data behind a type definition")]
    ExtraData,
    /// More than [`TYPES_MAX`] definitions.
    #[error("gob: more than {TYPES_MAX} type definitions")]
    TooManyTypes,
    /// More than [`FIELDS_MAX`] struct fields over all definitions.
    #[error("gob: more than {FIELDS_MAX} struct fields")]
    TooManyFields,
    /// Values nested deeper than [`NESTING_MAX`].
    #[error("gob: values nested deeper than {NESTING_MAX}")]
    TooDeep,
    /// The top-level value is not a struct.
    #[error("gob: the value is not a struct")]
    NotAStruct,
    /// The sender's struct and the receiver's have no field name in common.
    #[error("gob: no field in common")]
    NoCommonField,
    /// A field both sides know has another kind at the sender.
    #[error("gob: field {0} has another kind")]
    KindMismatch(&'static str),
    /// The value of a field does not fit the receiver's type.
    #[error("gob: value of field {0} is out of range")]
    OutOfRange(&'static str),
    /// A field whose own type refused the bytes: a public key that is none.
    #[error("gob: value of field {0} is invalid")]
    Invalid(&'static str),
    /// A struct value that names a field its definition does not have.
    #[error("gob: field number out of range")]
    FieldNumber,
    /// An array value with another element count than its definition.
    #[error("gob: array length differs from its definition")]
    ArrayLength,
}
