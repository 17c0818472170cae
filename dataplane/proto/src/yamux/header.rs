//! The 12-byte frame header (dmsg-wire 5.2): bytes to [`Header`] and back.
//!
//! Called by the [`Cutter`](super::Cutter) for what arrives and by whoever writes frames. Only version and type are
//! judged here; what a header means for a stream is the [`Session`](super::Session)'s business.

use core::ops::BitOr;

use super::{HEADER_LEN, HeaderError};

/// Version byte of every frame (dmsg-wire 5.2).
const VERSION: u8 = 0;

/// One frame header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame is.
    pub kind: Kind,
    /// Flags, of which unknown bits are kept and ignored.
    pub flags: Flags,
    /// Stream id; 0 on ping and go-away.
    pub stream: u32,
    /// Payload bytes (data), credit in bytes (window update), value (ping) or code (go-away).
    pub length: u32,
}

/// Frame type (dmsg-wire 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Type 0: `length` payload bytes follow the header.
    Data = 0,
    /// Type 1: the receiver may send `length` bytes more.
    WindowUpdate = 1,
    /// Type 2: SYN asks, ACK answers with the same value.
    Ping = 2,
    /// Type 3: no new streams (code 0) or the end (other codes).
    GoAway = 3,
}

/// Flag bits of a header (dmsg-wire 5.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(pub u16);

impl Flags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// Opens a stream; on a ping: a request.
    pub const SYN: Self = Self(1);
    /// Accepts a stream; on a ping: an answer.
    pub const ACK: Self = Self(2);
    /// Ends the sender's direction.
    pub const FIN: Self = Self(4);
    /// Ends the stream at once.
    pub const RST: Self = Self(8);

    /// Whether every bit of `other` is set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets together.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.union(other)
    }
}

impl Header {
    /// A data frame of `length` payload bytes.
    #[must_use]
    pub const fn data(stream: u32, length: u32) -> Self {
        Self { kind: Kind::Data, flags: Flags::NONE, stream, length }
    }

    /// A window update of `increment` bytes. SYN, ACK, FIN and RST normally travel on one of these.
    #[must_use]
    pub const fn window_update(stream: u32, increment: u32) -> Self {
        Self { kind: Kind::WindowUpdate, flags: Flags::NONE, stream, length: increment }
    }

    /// A ping request.
    #[must_use]
    pub const fn ping(value: u32) -> Self {
        Self { kind: Kind::Ping, flags: Flags::SYN, stream: 0, length: value }
    }

    /// The answer to the ping request with this value.
    #[must_use]
    pub const fn pong(value: u32) -> Self {
        Self { kind: Kind::Ping, flags: Flags::ACK, stream: 0, length: value }
    }

    /// A go-away with this code, see [`GO_AWAY_NORMAL`](super::GO_AWAY_NORMAL) and its siblings.
    #[must_use]
    pub const fn go_away(code: u32) -> Self {
        Self { kind: Kind::GoAway, flags: Flags::NONE, stream: 0, length: code }
    }

    /// The same header with these flags added.
    #[must_use]
    pub const fn with_flags(mut self, flags: Flags) -> Self {
        self.flags = self.flags.union(flags);
        self
    }

    /// Bytes of payload that follow this header on the wire: `length` for data frames, else 0.
    #[must_use]
    pub const fn payload_len(&self) -> u32 {
        match self.kind {
            Kind::Data => self.length,
            Kind::WindowUpdate | Kind::Ping | Kind::GoAway => 0,
        }
    }

    /// The header as it travels.
    #[must_use]
    pub const fn encode(&self) -> [u8; HEADER_LEN] {
        let flags = self.flags.0.to_be_bytes();
        let stream = self.stream.to_be_bytes();
        let length = self.length.to_be_bytes();
        [
            VERSION,
            self.kind as u8,
            flags[0],
            flags[1],
            stream[0],
            stream[1],
            stream[2],
            stream[3],
            length[0],
            length[1],
            length[2],
            length[3],
        ]
    }

    /// Reads a header.
    ///
    /// # Errors
    /// A version other than 0 or a type above 3: the connection must be closed (dmsg-wire 5.2).
    pub const fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, HeaderError> {
        let [version, kind, f0, f1, s0, s1, s2, s3, l0, l1, l2, l3] = *bytes;
        if version != VERSION {
            return Err(HeaderError::Version(version));
        }
        let kind = match kind {
            0 => Kind::Data,
            1 => Kind::WindowUpdate,
            2 => Kind::Ping,
            3 => Kind::GoAway,
            _ => return Err(HeaderError::Kind(kind)),
        };
        Ok(Self {
            kind,
            flags: Flags(u16::from_be_bytes([f0, f1])),
            stream: u32::from_be_bytes([s0, s1, s2, s3]),
            length: u32::from_be_bytes([l0, l1, l2, l3]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_has_the_layout_of_the_wire() {
        let header = Header::window_update(0x0102_0304, 0x0506_0708).with_flags(Flags::SYN | Flags::FIN);
        assert_eq!(header.encode(), [0, 1, 0, 5, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(Header::decode(&header.encode()), Ok(header));
    }

    #[test]
    fn unknown_flag_bits_are_kept_and_not_an_error() {
        let bytes = [0, 0, 0xff, 0xf0, 0, 0, 0, 1, 0, 0, 0, 0];
        assert_eq!(Header::decode(&bytes).map(|header| header.encode()), Ok(bytes));
    }

    #[test]
    fn other_versions_and_types_are_errors() {
        let mut bytes = Header::ping(7).encode();
        bytes[1] = 4;
        assert_eq!(Header::decode(&bytes), Err(HeaderError::Kind(4)));
        bytes[0] = 1;
        assert_eq!(Header::decode(&bytes), Err(HeaderError::Version(1)));
    }

    #[test]
    fn only_data_frames_carry_payload() {
        assert_eq!(Header::data(1, 9).payload_len(), 9);
        for header in [Header::window_update(1, 9), Header::ping(9), Header::pong(9), Header::go_away(9)] {
            assert_eq!(header.payload_len(), 0);
        }
    }
}
