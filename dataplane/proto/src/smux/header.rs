//! The 8-byte frame header and the payload of updates (dmsg-wire 6): bytes to values and back.
//!
//! Called by the [`Cutter`](super::Cutter) for what arrives and by whoever writes frames. Stream ids, lengths and the
//! fields of an update are little-endian, unlike everything else in dmsg.

use super::{HEADER_LEN, HeaderError, UPDATE_LEN};

/// Protocol version, the first byte of every frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[repr(u8)]
pub enum Version {
    /// Without flow control per stream. dmsg never selects it.
    V1 = 1,
    /// With updates.
    V2 = 2,
}

impl Version {
    /// The version whose frames begin with this byte: how a server tells smux from yamux, whose frames begin with 0
    /// (dmsg-wire 4.5).
    #[must_use]
    pub const fn from_first_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::V1),
            2 => Some(Self::V2),
            _ => None,
        }
    }
}

/// Frame type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Command {
    /// Opens a stream.
    Syn = 0,
    /// Ends the sender's direction.
    Fin = 1,
    /// Data.
    Push = 2,
    /// Nothing but a sign of life.
    Nop = 3,
    /// What the sender's reader took and may have in flight; version 2 only.
    Update = 4,
}

/// One frame header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The session's version.
    pub version: Version,
    /// What the frame is.
    pub command: Command,
    /// Payload bytes that follow.
    pub length: u16,
    /// Stream id; 0 on NOP.
    pub stream: u32,
}

impl Header {
    /// Opens a stream.
    #[must_use]
    pub const fn syn(version: Version, stream: u32) -> Self {
        Self { version, command: Command::Syn, length: 0, stream }
    }

    /// Ends our direction of a stream.
    #[must_use]
    pub const fn fin(version: Version, stream: u32) -> Self {
        Self { version, command: Command::Fin, length: 0, stream }
    }

    /// `length` bytes of data follow.
    #[must_use]
    pub const fn push(version: Version, stream: u32, length: u16) -> Self {
        Self { version, command: Command::Push, length, stream }
    }

    /// A sign of life.
    #[must_use]
    pub const fn nop(version: Version) -> Self {
        Self { version, command: Command::Nop, length: 0, stream: 0 }
    }

    /// An [`Update`] follows. Version 2 only.
    #[must_use]
    pub const fn update(stream: u32) -> Self {
        Self { version: Version::V2, command: Command::Update, length: UPDATE_LEN as u16, stream }
    }

    /// The header as it travels.
    #[must_use]
    pub const fn encode(&self) -> [u8; HEADER_LEN] {
        let length = self.length.to_le_bytes();
        let stream = self.stream.to_le_bytes();
        let (version, command) = (self.version as u8, self.command as u8);
        [version, command, length[0], length[1], stream[0], stream[1], stream[2], stream[3]]
    }

    /// Reads a header of a session of this version.
    ///
    /// # Errors
    /// Another version, an unknown command, or a length that does not fit the command.
    pub const fn decode(version: Version, bytes: &[u8; HEADER_LEN]) -> Result<Self, HeaderError> {
        let [version_byte, command, l0, l1, s0, s1, s2, s3] = *bytes;
        if version_byte != version as u8 {
            return Err(HeaderError::Version(version_byte));
        }
        let length = u16::from_le_bytes([l0, l1]);
        let (command, fits) = match (command, version) {
            (0, _) => (Command::Syn, length == 0),
            (1, _) => (Command::Fin, length == 0),
            (2, _) => (Command::Push, true),
            (3, _) => (Command::Nop, length == 0),
            (4, Version::V2) => (Command::Update, length == UPDATE_LEN as u16),
            (other, _) => return Err(HeaderError::Command(other)),
        };
        if !fits {
            return Err(HeaderError::Length { command, length });
        }
        Ok(Self { version, command, length, stream: u32::from_le_bytes([s0, s1, s2, s3]) })
    }
}

/// The payload of an update frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Update {
    /// All bytes the sender's reader took from the stream so far, mod 2^32.
    pub consumed: u32,
    /// Bytes the other side may have in flight.
    pub window: u32,
}

impl Update {
    /// The payload as it travels.
    #[must_use]
    pub const fn encode(&self) -> [u8; UPDATE_LEN] {
        (self.consumed as u64 | (self.window as u64) << 32).to_le_bytes()
    }

    /// Reads a payload; every value is possible.
    #[must_use]
    pub const fn decode(bytes: &[u8; UPDATE_LEN]) -> Self {
        let both = u64::from_le_bytes(*bytes);
        Self { consumed: both as u32, window: (both >> 32) as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_those_of_the_wire() {
        let header = Header::push(Version::V2, 0x0403_0201, 0x0605);
        assert_eq!(header.encode(), [2, 2, 5, 6, 1, 2, 3, 4]);
        assert_eq!(Header::decode(Version::V2, &header.encode()), Ok(header));
        let update = Update { consumed: 0x0403_0201, window: 0x0807_0605 };
        assert_eq!(update.encode(), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(Update::decode(&update.encode()), update);
    }

    #[test]
    fn the_version_must_be_the_sessions() {
        let bytes = Header::nop(Version::V1).encode();
        assert_eq!(Header::decode(Version::V2, &bytes), Err(HeaderError::Version(1)));
        assert_eq!(Version::from_first_byte(1), Some(Version::V1));
        assert_eq!(Version::from_first_byte(2), Some(Version::V2));
        assert_eq!(Version::from_first_byte(0), None);
    }

    #[test]
    fn commands_and_lengths_must_fit() {
        let decode = |version: Version, command, length| {
            Header::decode(version, &[version as u8, command, length, 0, 1, 0, 0, 0])
                .map(|header| header.command)
        };
        let wrong = |command, length| Err(HeaderError::Length { command, length });
        assert_eq!(decode(Version::V2, 5, 0), Err(HeaderError::Command(5)));
        assert_eq!(decode(Version::V1, 4, 8), Err(HeaderError::Command(4)));
        assert_eq!(decode(Version::V2, 4, 8), Ok(Command::Update));
        assert_eq!(decode(Version::V2, 4, 7), wrong(Command::Update, 7));
        assert_eq!(decode(Version::V2, 0, 1), wrong(Command::Syn, 1));
        assert_eq!(decode(Version::V2, 1, 1), wrong(Command::Fin, 1));
        assert_eq!(decode(Version::V2, 3, 1), wrong(Command::Nop, 1));
        assert_eq!(decode(Version::V1, 2, 255), Ok(Command::Push));
    }
}
