//! yamux frames as the generator sends and checks them (dmsg-wire 5.2).
//!
//! In: a shape, stream ids and positions. Out: prepared bytes, and pieces of received bytes. Called by the generator,
//! the ping rows and the raw session. Written apart from `ringwire_proto::yamux` on purpose: a fault there must not be
//! able to hide itself by being on both sides of a verified round.

/// Length of a yamux header.
pub const HEADER_LEN: usize = 12;
/// Credit of each direction of a new stream (dmsg-wire 5.4).
pub const INITIAL_WINDOW: u64 = 262_144;

/// Frame type: data.
pub const DATA: u8 = 0;
/// Frame type: window update.
pub const WINDOW_UPDATE: u8 = 1;
/// Frame type: ping.
pub const PING: u8 = 2;
/// Frame type: go away.
pub const GO_AWAY: u8 = 3;

/// Flag: opens a stream, or asks a ping.
pub const SYN: u16 = 1;
/// Flag: accepts a stream, or answers a ping.
pub const ACK: u16 = 2;
/// Flag: the sender is finished.
pub const FIN: u16 = 4;
/// Flag: the stream is gone.
pub const RST: u16 = 8;

/// A decoded header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// One of [`DATA`], [`WINDOW_UPDATE`], [`PING`], [`GO_AWAY`].
    pub kind: u8,
    /// Sum of [`SYN`], [`ACK`], [`FIN`], [`RST`].
    pub flags: u16,
    /// Stream id; 0 for the session.
    pub stream: u32,
    /// Payload bytes, increment, ping value or reason, by kind.
    pub length: u32,
}

impl Header {
    /// The twelve bytes on the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[1] = self.kind;
        out[2..4].copy_from_slice(&self.flags.to_be_bytes());
        out[4..8].copy_from_slice(&self.stream.to_be_bytes());
        out[8..].copy_from_slice(&self.length.to_be_bytes());
        out
    }

    /// The header in twelve bytes, or nothing when version or type are not yamux's.
    #[must_use]
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Option<Self> {
        let [version, kind, f0, f1, s0, s1, s2, s3, l0, l1, l2, l3] = *bytes;
        (version == 0 && kind <= GO_AWAY).then_some(Self {
            kind,
            flags: u16::from_be_bytes([f0, f1]),
            stream: u32::from_be_bytes([s0, s1, s2, s3]),
            length: u32::from_be_bytes([l0, l1, l2, l3]),
        })
    }

    /// Header of a data frame.
    #[must_use]
    pub fn data(stream: u32, length: u32) -> Self {
        Self { kind: DATA, flags: 0, stream, length }
    }

    /// A window update that grants `increment` bytes.
    #[must_use]
    pub fn window_update(stream: u32, flags: u16, increment: u32) -> Self {
        Self { kind: WINDOW_UPDATE, flags, stream, length: increment }
    }
}

/// How a load arrives at the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    /// 64 KiB of payload in a frame; each frame is sent whole with one call.
    Bulk64k,
    /// What the Go clients do: a 12-byte header and a 4096-byte body (one Noise frame) in two writes.
    GoClient,
}

impl Shape {
    /// Payload bytes of each frame.
    #[must_use]
    pub fn payload_len(self) -> usize {
        match self {
            Self::Bulk64k => 65_536,
            Self::GoClient => 4096,
        }
    }

    /// The header of each of its frames on `stream`.
    #[must_use]
    pub fn header(self, stream: u32) -> [u8; HEADER_LEN] {
        let length = match self {
            Self::Bulk64k => 65_536,
            Self::GoClient => 4096,
        };
        Header::data(stream, length).encode()
    }
}

/// The content of verified rounds: a byte depends on its stream's number and on its position, so that loss, repetition,
/// disorder and a swap of streams all show.
pub mod content {
    /// The eight bytes at word `index` of stream number `stream`.
    fn word(stream: u32, index: u64) -> [u8; 8] {
        // The finisher of splitmix64; stream numbers are small, positions stay below 2^40.
        let mut value = (u64::from(stream) << 44 | index).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (value ^ (value >> 31)).to_le_bytes()
    }

    /// Writes the content of stream number `stream` from byte `position` on.
    pub fn fill(stream: u32, position: u64, out: &mut [u8]) {
        walk(stream, position, out.len(), |range, expected| {
            out[range].copy_from_slice(expected);
            true
        });
    }

    /// Whether `input` is the content of stream number `stream` from byte `position` on.
    #[must_use]
    pub fn matches(stream: u32, position: u64, input: &[u8]) -> bool {
        walk(stream, position, input.len(), |range, expected| input[range] == *expected)
    }

    /// Visits the content in pieces of up to eight bytes until `visit` answers false.
    fn walk(
        stream: u32,
        position: u64,
        len: usize,
        mut visit: impl FnMut(std::ops::Range<usize>, &[u8]) -> bool,
    ) -> bool {
        let mut at = 0;
        let mut index = position / 8;
        let mut skip = usize::try_from(position % 8).unwrap_or(0);
        while at < len {
            let bytes = word(stream, index);
            let take = (8 - skip).min(len - at);
            if !visit(at..at + take, &bytes[skip..skip + take]) {
                return false;
            }
            at += take;
            index += 1;
            skip = 0;
        }
        true
    }
}

/// Cuts received bytes, in whatever pieces they come, into headers and payload.
#[derive(Clone, Debug, Default)]
pub struct Scanner {
    head: [u8; HEADER_LEN],
    filled: usize,
    payload_left: u32,
    stream: u32,
}

/// One piece of what a [`Scanner`] was given.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// A complete header.
    Header(Header),
    /// Payload of the latest data header, or a part of it; `last` on its end.
    Payload {
        /// The stream of that header.
        stream: u32,
        /// The bytes; never empty.
        bytes: &'a [u8],
        /// No more payload of this frame follows.
        last: bool,
    },
}

/// The bytes are not yamux.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotYamux;

impl std::fmt::Display for NotYamux {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("received bytes are not yamux frames")
    }
}

impl std::error::Error for NotYamux {}

impl Scanner {
    /// Bytes up to the end of the header or payload under way. Who reads no more than this never reads into the frame
    /// after the next.
    #[must_use]
    pub fn wanted(&self) -> usize {
        match self.payload_left {
            0 => HEADER_LEN - self.filled,
            left => left as usize,
        }
    }

    /// Whether the latest frame is complete.
    #[must_use]
    pub fn is_between_frames(&self) -> bool {
        self.payload_left == 0 && self.filled == 0
    }

    /// The next piece of `input`, which is shortened by it. Nothing when the input is used up.
    ///
    /// # Errors
    /// [`NotYamux`] on a wrong version or type; the scanner is of no use afterwards.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Piece<'a>>, NotYamux> {
        if input.is_empty() {
            return Ok(None);
        }
        if self.payload_left > 0 {
            let take = input.len().min(self.payload_left as usize);
            let (bytes, rest) = input.split_at(take);
            *input = rest;
            // `take` is at most `payload_left`, which is 32 bits wide.
            self.payload_left -= u32::try_from(take).unwrap_or(self.payload_left);
            return Ok(Some(Piece::Payload { stream: self.stream, bytes, last: self.payload_left == 0 }));
        }
        let take = input.len().min(HEADER_LEN - self.filled);
        let (bytes, rest) = input.split_at(take);
        *input = rest;
        self.head[self.filled..self.filled + take].copy_from_slice(bytes);
        self.filled += take;
        if self.filled < HEADER_LEN {
            return Ok(None);
        }
        self.filled = 0;
        let header = Header::decode(&self.head).ok_or(NotYamux)?;
        if header.kind == DATA {
            self.payload_left = header.length;
            self.stream = header.stream;
        }
        Ok(Some(Piece::Header(header)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_bytes_are_those_of_the_recorded_session() {
        // dmsg-wire 10.4: A->S, window update with SYN on stream 1; data of 0x174 bytes.
        assert_eq!(Header::window_update(1, SYN, 0).encode(), [0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0]);
        assert_eq!(Header::data(1, 0x174).encode(), [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0x74]);
    }

    #[test]
    fn prepared_frames_parse_back_in_any_pieces() {
        for shape in [Shape::Bulk64k, Shape::GoClient] {
            let mut wire = Vec::new();
            for (number, stream) in [1_u32, 3, 5].into_iter().enumerate() {
                wire.extend_from_slice(&shape.header(stream));
                let start = wire.len();
                wire.resize(start + shape.payload_len(), 0);
                content::fill(u32::try_from(number).unwrap(), 0, &mut wire[start..]);
            }
            for piece_len in [1, 7, 12, 4099, wire.len()] {
                assert_eq!(
                    payload_of(&wire, piece_len),
                    [1, 3, 5].map(|stream| (stream, shape.payload_len()))
                );
            }
        }
    }

    /// Scans `wire` in pieces, checks the content, and says which stream got how much.
    fn payload_of(wire: &[u8], piece_len: usize) -> Vec<(u32, usize)> {
        let mut scanner = Scanner::default();
        let mut found: Vec<(u32, usize)> = Vec::new();
        for mut input in wire.chunks(piece_len) {
            while let Some(piece) = scanner.next(&mut input).unwrap() {
                match piece {
                    Piece::Header(header) => found.push((header.stream, 0)),
                    Piece::Payload { stream, bytes, .. } => {
                        let number = u32::try_from(found.len() - 1).unwrap();
                        let (of, position) = found.last_mut().unwrap();
                        assert_eq!(*of, stream);
                        assert!(content::matches(number, *position as u64, bytes));
                        *position += bytes.len();
                    }
                }
            }
        }
        found
    }

    #[test]
    fn content_tells_streams_and_positions_apart() {
        let mut bytes = [0; 100];
        content::fill(3, 13, &mut bytes);
        assert!(content::matches(3, 13, &bytes));
        assert!(content::matches(3, 20, &bytes[7..]));
        assert!(!content::matches(3, 14, &bytes));
        assert!(!content::matches(2, 13, &bytes));
        bytes[99] ^= 1;
        assert!(!content::matches(3, 13, &bytes));
    }

    #[test]
    fn other_protocols_are_refused() {
        let mut scanner = Scanner::default();
        assert_eq!(scanner.next(&mut &b"HTTP/1.1 400"[..]), Err(NotYamux));
    }
}
