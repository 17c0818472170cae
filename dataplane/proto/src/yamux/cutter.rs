//! Cuts a byte stream that arrives in arbitrary pieces into headers and payload (dmsg-wire 5.2).
//!
//! In: each received buffer, in order. Out: [`Piece`]s that point into it; nothing is copied but a header that lies
//! across two buffers. Called by the data plane and by [`Connection`](super::Connection).

use core::ops::Range;

use super::{HEADER_LEN, Header, HeaderError};

/// Where a received byte stream stands between two buffers. 20 bytes, plain data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Cutter {
    /// The first bytes of a header whose rest has not arrived.
    partial: [u8; HEADER_LEN],
    /// How many of them are there.
    partial_len: u8,
    /// Payload bytes of the current frame that have not arrived.
    payload_left: u32,
}

/// One part of the input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A frame begins.
    Header {
        /// Its header.
        header: Header,
        /// Where its 12 bytes start in this input; none when they came in several inputs.
        start: Option<usize>,
    },
    /// Payload of the data frame whose header came last; never empty.
    Payload {
        /// Where in this input.
        range: Range<usize>,
        /// Whether the frame ends with it.
        last: bool,
    },
}

impl Cutter {
    /// The state at the start of a connection.
    #[must_use]
    pub const fn new() -> Self {
        Self { partial: [0; HEADER_LEN], partial_len: 0, payload_left: 0 }
    }

    /// The next piece of `input` from `*at` on, which moves behind it. `None`: the input is used up, and the next call
    /// takes the next buffer with `*at` at 0.
    ///
    /// # Errors
    /// An unreadable header: the connection must be closed. The same error comes again on every later call.
    #[inline]
    pub fn next(&mut self, input: &[u8], at: &mut usize) -> Result<Option<Piece>, HeaderError> {
        let rest = input.get(*at..).unwrap_or_default();
        if self.payload_left > 0 {
            return Ok(self.next_payload(rest.len(), at));
        }
        if self.partial_len == 0
            && let Some(bytes) = rest.first_chunk::<HEADER_LEN>()
        {
            let header = self.decode(bytes)?;
            let start = *at;
            *at += HEADER_LEN;
            return Ok(Some(Piece::Header { header, start: Some(start) }));
        }
        self.next_split_header(rest, at)
    }

    /// Payload bytes that the current frame still lacks.
    #[must_use]
    pub const fn payload_left(&self) -> u32 {
        self.payload_left
    }

    /// Whether the stream stands between two frames: the only place where an end-of-file is clean.
    #[must_use]
    pub const fn is_between_frames(&self) -> bool {
        self.payload_left == 0 && self.partial_len == 0
    }

    fn next_payload(&mut self, available: usize, at: &mut usize) -> Option<Piece> {
        if available == 0 {
            return None;
        }
        // More than fits 32 bits is more than any frame lacks.
        let taken = u32::try_from(available).unwrap_or(u32::MAX).min(self.payload_left);
        self.payload_left -= taken;
        let start = *at;
        *at += taken as usize;
        Some(Piece::Payload { range: start..*at, last: self.payload_left == 0 })
    }

    fn next_split_header(&mut self, rest: &[u8], at: &mut usize) -> Result<Option<Piece>, HeaderError> {
        let filled = usize::from(self.partial_len);
        let taken = rest.len().min(HEADER_LEN - filled);
        self.partial[filled..filled + taken].copy_from_slice(&rest[..taken]);
        *at += taken;
        if filled + taken < HEADER_LEN {
            // Below 12 by the line above.
            self.partial_len = (filled + taken) as u8;
            return Ok(None);
        }
        let bytes = self.partial;
        let header = self.decode(&bytes)?;
        self.partial_len = 0;
        Ok(Some(Piece::Header { header, start: None }))
    }

    /// Reads a whole header and expects its payload; an unreadable one stays in `partial`, so that the error repeats.
    fn decode(&mut self, bytes: &[u8; HEADER_LEN]) -> Result<Header, HeaderError> {
        match Header::decode(bytes) {
            Ok(header) => {
                self.payload_left = header.payload_len();
                Ok(header)
            }
            Err(error) => {
                self.partial = *bytes;
                self.partial_len = HEADER_LEN as u8;
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    fn cut(cutter: &mut Cutter, input: &[u8]) -> Vec<Piece> {
        let (mut at, mut pieces) = (0, Vec::new());
        while let Some(piece) = cutter.next(input, &mut at).expect("readable") {
            pieces.push(piece);
        }
        assert_eq!(at, input.len());
        pieces
    }

    #[test]
    fn state_is_small() {
        assert!(size_of::<Cutter>() <= 20);
    }

    #[test]
    fn whole_frames_are_cut_where_they_lie() {
        let mut input = Header::data(1, 3).encode().to_vec();
        input.extend_from_slice(b"abc");
        input.extend_from_slice(&Header::ping(5).encode());
        assert_eq!(
            cut(&mut Cutter::new(), &input),
            [
                Piece::Header { header: Header::data(1, 3), start: Some(0) },
                Piece::Payload { range: 12..15, last: true },
                Piece::Header { header: Header::ping(5), start: Some(15) },
            ]
        );
    }

    #[test]
    fn single_bytes_give_one_header_and_single_byte_payloads() {
        let mut input = Header::data(9, 2).encode().to_vec();
        input.extend_from_slice(b"xy");
        let mut cutter = Cutter::new();
        let pieces: Vec<Piece> = input.iter().flat_map(|byte| cut(&mut cutter, &[*byte])).collect();
        assert_eq!(
            pieces,
            [
                Piece::Header { header: Header::data(9, 2), start: None },
                Piece::Payload { range: 0..1, last: false },
                Piece::Payload { range: 0..1, last: true },
            ]
        );
        assert!(cutter.is_between_frames());
    }

    #[test]
    fn a_zero_length_frame_has_no_payload_piece() {
        let input = Header::data(1, 0).encode();
        assert_eq!(cut(&mut Cutter::new(), &input).len(), 1);
    }

    #[test]
    fn an_unreadable_header_stays_an_error() {
        for split in 0..=12 {
            let mut cutter = Cutter::new();
            let input = [7_u8; 12];
            let mut at = 0;
            let first = cutter.next(&input[..split], &mut at);
            if split < 12 {
                assert_eq!(first, Ok(None));
                at = 0;
                assert_eq!(cutter.next(&input[split..], &mut at), Err(HeaderError::Version(7)));
            }
            assert_eq!(cutter.next(&[0; 40], &mut 0), Err(HeaderError::Version(7)));
        }
    }

    #[test]
    fn a_position_behind_the_input_is_no_panic() {
        assert_eq!(Cutter::new().next(&[1, 2], &mut 5), Ok(None));
    }
}
