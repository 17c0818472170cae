//! Cuts a byte stream that arrives in arbitrary pieces into headers, updates and payload (dmsg-wire 6).
//!
//! In: each received buffer, in order. Out: [`Piece`]s that point into it. Headers and updates that lie across two
//! buffers are put together here; payload is never copied.

use core::ops::Range;

use super::{Command, HEADER_LEN, Header, HeaderError, UPDATE_LEN, Update, Version};

/// Where a received byte stream stands between two buffers. Plain data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Cutter {
    version: Version,
    /// The first bytes of a header or an update whose rest has not arrived.
    partial: [u8; HEADER_LEN],
    partial_len: u8,
    /// Payload bytes of the current data frame that have not arrived.
    payload_left: u16,
    /// The stream whose update comes next.
    update_of: Option<u32>,
}

/// One part of the input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A frame begins: anything but an update.
    Header(Header),
    /// A whole update frame.
    Update {
        /// The stream.
        stream: u32,
        /// Its content.
        update: Update,
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
    pub const fn new(version: Version) -> Self {
        Self { version, partial: [0; HEADER_LEN], partial_len: 0, payload_left: 0, update_of: None }
    }

    /// The next piece of `input` from `*at` on, which moves behind it. `None`: the input is used up.
    ///
    /// # Errors
    /// An unreadable header: the connection must be closed. The same error comes again on every later call.
    pub fn next(&mut self, input: &[u8], at: &mut usize) -> Result<Option<Piece>, HeaderError> {
        loop {
            let rest = input.get(*at..).unwrap_or_default();
            if self.payload_left > 0 {
                return Ok(self.next_payload(rest.len(), at));
            }
            let Some(bytes) = self.fill(rest, at) else { return Ok(None) };
            if let Some(stream) = self.update_of.take() {
                self.partial_len = 0;
                return Ok(Some(Piece::Update { stream, update: Update::decode(&bytes) }));
            }
            // An unreadable header stays in `partial`, so that the error repeats.
            let header = Header::decode(self.version, &bytes)?;
            self.partial_len = 0;
            if header.command == Command::Update {
                self.update_of = Some(header.stream);
                continue;
            }
            self.payload_left = header.length;
            return Ok(Some(Piece::Header(header)));
        }
    }

    /// Whether the stream stands between two frames: the only place where an end-of-file is clean.
    #[must_use]
    pub const fn is_between_frames(&self) -> bool {
        self.payload_left == 0 && self.partial_len == 0 && self.update_of.is_none()
    }

    /// Completes the eight bytes of a header or an update.
    fn fill(&mut self, rest: &[u8], at: &mut usize) -> Option<[u8; HEADER_LEN]> {
        const { assert!(HEADER_LEN == UPDATE_LEN) };
        let filled = usize::from(self.partial_len);
        let taken = rest.len().min(HEADER_LEN - filled);
        self.partial[filled..filled + taken].copy_from_slice(&rest[..taken]);
        *at += taken;
        // At most 8.
        self.partial_len = (filled + taken) as u8;
        (filled + taken == HEADER_LEN).then_some(self.partial)
    }

    fn next_payload(&mut self, available: usize, at: &mut usize) -> Option<Piece> {
        if available == 0 {
            return None;
        }
        // More than fits 16 bits is more than any frame lacks.
        let taken = u16::try_from(available).unwrap_or(u16::MAX).min(self.payload_left);
        self.payload_left -= taken;
        let start = *at;
        *at += usize::from(taken);
        Some(Piece::Payload { range: start..*at, last: self.payload_left == 0 })
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn any_chunking_gives_the_same_frames() {
        let mut input = Header::push(Version::V2, 3, 3).encode().to_vec();
        input.extend_from_slice(b"abc");
        input.extend_from_slice(&Header::update(3).encode());
        let update = Update { consumed: 7, window: 9 };
        input.extend_from_slice(&update.encode());
        input.extend_from_slice(&Header::push(Version::V2, 3, 0).encode());
        for chunk in 1..=input.len() {
            let mut cutter = Cutter::new(Version::V2);
            let (mut headers, mut payload) = (Vec::new(), Vec::new());
            for bytes in input.chunks(chunk) {
                let mut at = 0;
                while let Some(piece) = cutter.next(bytes, &mut at).expect("readable") {
                    match piece {
                        Piece::Payload { range, .. } => payload.extend_from_slice(&bytes[range]),
                        other => headers.push(other),
                    }
                }
                assert_eq!(at, bytes.len());
            }
            assert_eq!(payload, b"abc");
            assert_eq!(
                headers,
                [
                    Piece::Header(Header::push(Version::V2, 3, 3)),
                    Piece::Update { stream: 3, update },
                    Piece::Header(Header::push(Version::V2, 3, 0)),
                ]
            );
            assert!(cutter.is_between_frames());
        }
    }

    #[test]
    fn an_unreadable_header_stays_an_error() {
        let mut cutter = Cutter::new(Version::V2);
        assert_eq!(cutter.next(&[0; 3], &mut 0), Ok(None));
        assert_eq!(cutter.next(&[0; 5], &mut 0), Err(HeaderError::Version(0)));
        assert_eq!(cutter.next(&[2; 50], &mut 0), Err(HeaderError::Version(0)));
    }
}
