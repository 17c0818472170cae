//! Numbers, byte runs and message borders of a gob stream (dmsg-wire 8.1, 8.2).
//!
//! In: the whole stream. Out: numbers and slices of it. The decoder in `decode.rs` and the type table in
//! `types.rs` call this; every read is bounded by the current message.

use super::GobError;

/// A position in a gob stream and the end of the message it is in.
pub(super) struct Reader<'a> {
    input: &'a [u8],
    at: usize,
    /// End of the current message; reads do not pass it.
    end: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(input: &'a [u8]) -> Self {
        Self { input, at: 0, end: 0 }
    }

    /// True when the current message is used up.
    pub(super) fn message_over(&self) -> bool {
        self.at == self.end
    }

    /// Enters the message behind the current one.
    pub(super) fn next_message(&mut self) -> Result<(), GobError> {
        self.at = self.end;
        self.end = self.input.len();
        let length = self.length()?;
        self.end = self.at + length;
        Ok(())
    }

    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], GobError> {
        let rest = self.input.get(self.at..self.end).ok_or(GobError::Truncated)?;
        let taken = rest.get(..length).ok_or(GobError::Truncated)?;
        self.at += length;
        Ok(taken)
    }

    /// An unsigned number: one byte below 128, or a negated byte count and that many bytes big-endian. Longer
    /// forms than necessary are accepted, as Go accepts them.
    pub(super) fn uint(&mut self) -> Result<u64, GobError> {
        let &[first] = self.take(1)? else { return Err(GobError::Truncated) };
        if first < 0x80 {
            return Ok(u64::from(first));
        }
        let count = usize::from(first.wrapping_neg());
        if count > 8 {
            return Err(GobError::BadNumber);
        }
        Ok(self.take(count)?.iter().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    /// A signed number: the sign in bit 0, complemented when negative.
    pub(super) fn int(&mut self) -> Result<i64, GobError> {
        let value = self.uint()?;
        let magnitude = (value >> 1).cast_signed();
        Ok(if value & 1 == 1 { !magnitude } else { magnitude })
    }

    /// A number that counts bytes which follow; checked against what is left.
    pub(super) fn length(&mut self) -> Result<usize, GobError> {
        let length = usize::try_from(self.uint()?).map_err(|_| GobError::Truncated)?;
        if length > self.end - self.at {
            return Err(GobError::Truncated);
        }
        Ok(length)
    }

    /// A byte string: its length, then the bytes.
    pub(super) fn bytes(&mut self) -> Result<&'a [u8], GobError> {
        let length = self.length()?;
        self.take(length)
    }
}

/// The walk over the fields of one struct value: each is announced by the distance to the one before.
#[derive(Default)]
pub(super) struct FieldCursor {
    next: usize,
}

impl FieldCursor {
    /// Number of the next field sent, `None` at the end of the struct. `count` is how many fields its type
    /// has.
    pub(super) fn advance(
        &mut self,
        reader: &mut Reader<'_>,
        count: usize,
    ) -> Result<Option<usize>, GobError> {
        let delta = usize::try_from(reader.uint()?).map_err(|_| GobError::FieldNumber)?;
        if delta == 0 {
            return Ok(None);
        }
        let next = self.next.checked_add(delta).filter(|&next| next <= count).ok_or(GobError::FieldNumber)?;
        self.next = next;
        Ok(Some(next - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(message: &[u8]) -> Reader<'_> {
        Reader { input: message, at: 0, end: message.len() }
    }

    #[test]
    fn numbers() {
        assert_eq!(reader(&[0x7f]).uint(), Ok(127));
        assert_eq!(reader(&[0xff, 0x80]).uint(), Ok(128));
        assert_eq!(reader(&[0xfe, 0xc0, 0x01]).uint(), Ok(0xc001));
        assert_eq!(reader(&[0xf8, 255, 255, 255, 255, 255, 255, 255, 255]).uint(), Ok(u64::MAX));
        assert_eq!(reader(&[0xff, 0x05]).uint(), Ok(5));
        assert_eq!(reader(&[0xf7, 0, 0, 0, 0, 0, 0, 0, 0, 1]).uint(), Err(GobError::BadNumber));
        assert_eq!(reader(&[0x80]).uint(), Err(GobError::BadNumber));
        assert_eq!(reader(&[0xfe, 1]).uint(), Err(GobError::Truncated));
        assert_eq!(reader(&[]).uint(), Err(GobError::Truncated));
        assert_eq!(reader(&[0x7f]).int(), Ok(-64));
        assert_eq!(reader(&[0xff, 0x81]).int(), Ok(-65));
        assert_eq!(reader(&[0xf8, 255, 255, 255, 255, 255, 255, 255, 255]).int(), Ok(i64::MIN));
        assert_eq!(reader(&[0xf8, 255, 255, 255, 255, 255, 255, 255, 254]).int(), Ok(i64::MAX));
    }

    #[test]
    fn message_borders_hold() {
        let mut reader = Reader::new(&[2, 1, 2, 1, 9]);
        assert!(reader.message_over());
        reader.next_message().unwrap();
        assert_eq!(reader.take(3), Err(GobError::Truncated));
        assert_eq!(reader.take(2), Ok(&[1, 2][..]));
        assert!(reader.message_over());
        assert_eq!(reader.uint(), Err(GobError::Truncated));
        reader.next_message().unwrap();
        assert_eq!(reader.uint(), Ok(9));
        assert_eq!(reader.next_message(), Err(GobError::Truncated));
    }

    #[test]
    fn field_numbers_stay_inside_the_type() {
        let mut input = reader(&[1, 2, 0, 4, 0xf8, 255, 255, 255, 255, 255, 255, 255, 255]);
        let mut cursor = FieldCursor::default();
        assert_eq!(cursor.advance(&mut input, 3), Ok(Some(0)));
        assert_eq!(cursor.advance(&mut input, 3), Ok(Some(2)));
        assert_eq!(cursor.advance(&mut input, 3), Ok(None));
        assert_eq!(FieldCursor::default().advance(&mut input, 3), Err(GobError::FieldNumber));
        assert_eq!(FieldCursor { next: 1 }.advance(&mut input, 3), Err(GobError::FieldNumber));
    }
}
