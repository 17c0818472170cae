//! Length-prefixed frames, and the byte stream of a dmsg stream inside them (dmsg-wire 3, 7).
//!
//! ```text
//!   frame = length (2 bytes, big-endian) || body
//! ```
//!
//! In: pieces of a byte stream, cut anywhere; or plaintext. Out: whole bodies ([`FrameReader`]: handshake messages and
//! session objects), plaintext ([`StreamReader`]), or frames ready to send ([`push_prefix`], [`StreamWriter`]). Called
//! by sessions during their handshake and at the head of streams, and by both ends of a stream.

use alloc::vec::Vec;

use crate::aead::Aead;
use crate::noise::DirectionKey;
use crate::noise::sealed::{NUMBER_LEN, Opener, OrderedReplay, SEALED_OVERHEAD, SealedError, Sealer};

/// Longest body of a frame of section 3 in bytes: a frame has at most 4096 with its prefix.
pub const FRAME_BODY_MAX: usize = 4094;
/// Most plaintext in one frame of a stream, in bytes (dmsg-wire 3).
pub const FRAME_PLAINTEXT_MAX: usize = FRAME_BODY_MAX - SEALED_OVERHEAD;

/// Length of the prefix in bytes.
pub const PREFIX_LEN: usize = 2;

/// Appends the prefix of a body of `len` bytes.
///
/// # Errors
/// [`FrameError::TooLong`] above 65535, which two bytes cannot say. Smaller limits (4094, section 3) are the caller's.
pub fn push_prefix(len: usize, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let prefix = u16::try_from(len).map_err(|_| FrameError::TooLong { len, limit: u16::MAX.into() })?;
    out.extend_from_slice(&prefix.to_be_bytes());
    Ok(())
}

/// Reassembles frames from a byte stream that arrives in arbitrary pieces.
///
/// Memory grows with the bytes that have really arrived, at most to twice as much, never to the length that a prefix
/// merely announces. It is kept for the next frame and never exceeds the limit plus two.
#[derive(Debug)]
pub struct FrameReader {
    body_max: usize,
    /// The frame so far, prefix included.
    frame: Vec<u8>,
    /// The frame was handed out and goes away with the next call.
    complete: bool,
}

impl FrameReader {
    /// A reader for bodies of up to `body_max` bytes: [`FRAME_BODY_MAX`] for section 3, 65535 for section 7.
    pub fn new(body_max: usize) -> Self {
        Self { body_max, frame: Vec::new(), complete: false }
    }

    /// Takes bytes from the front of `input` up to the end of the current frame, and returns its body when it is
    /// whole. Call again until it returns `None`: then `input` is used up. The body may be overwritten in place; it may
    /// be empty (the ping marker of dmsg-wire 10.5).
    ///
    /// Bytes behind the frame stay in `input`, so whatever follows the last frame is not lost.
    ///
    /// # Errors
    /// [`FrameError::TooLong`] when the prefix announces more than the limit; every later call says so again.
    pub fn push<'a>(&'a mut self, input: &mut &[u8]) -> Result<Option<&'a mut [u8]>, FrameError> {
        if self.complete {
            self.frame.clear();
            self.complete = false;
        }
        self.take(PREFIX_LEN, input);
        let Some(prefix) = self.frame.first_chunk() else { return Ok(None) };
        let len = usize::from(u16::from_be_bytes(*prefix));
        if len > self.body_max {
            return Err(FrameError::TooLong { len, limit: self.body_max });
        }
        self.take(PREFIX_LEN + len, input);
        self.complete = self.frame.len() == PREFIX_LEN + len;
        Ok(self.complete.then(|| &mut self.frame[PREFIX_LEN..]))
    }

    /// True when no byte of an unfinished frame is held: here the peer may close, or the next layer begin.
    pub fn is_between_frames(&self) -> bool {
        self.complete || self.frame.is_empty()
    }

    fn take(&mut self, until: usize, input: &mut &[u8]) {
        let count = until.saturating_sub(self.frame.len()).min(input.len());
        let (taken, rest) = input.split_at(count);
        let needed = self.frame.len() + count;
        if needed > self.frame.capacity() {
            // Doubling, so that a trickle of bytes is not copied over and over, but not beyond what is announced.
            let target = (2 * self.frame.capacity()).clamp(needed, until.max(needed));
            self.frame.reserve_exact(target - self.frame.len());
        }
        self.frame.extend_from_slice(taken);
        *input = rest;
    }
}

/// Cuts the plaintext of a stream into sealed frames (dmsg-wire 3).
pub struct StreamWriter<A> {
    sealer: Sealer<A>,
}

impl<A: Aead> StreamWriter<A> {
    /// Starts the direction that `key` belongs to.
    pub fn new(key: &DirectionKey) -> Self {
        Self { sealer: Sealer::new(key) }
    }

    /// Continues with a sealer that has sealed before.
    pub fn from_sealer(sealer: Sealer<A>) -> Self {
        Self { sealer }
    }

    /// Appends the frames of `plaintext` to `out`: full ones of [`FRAME_PLAINTEXT_MAX`], the rest last, none for
    /// nothing. The plaintext is copied once, into its frame, and sealed there.
    pub fn write(&mut self, plaintext: &[u8], out: &mut Vec<u8>) {
        out.reserve(Self::written_len(plaintext.len()));
        for piece in plaintext.chunks(FRAME_PLAINTEXT_MAX) {
            #[allow(clippy::expect_used, reason = "the message is the proof")]
            push_prefix(piece.len() + SEALED_OVERHEAD, out)
                .expect("a piece and its overhead are at most 4094 bytes");
            self.sealer.seal(piece, out);
        }
    }

    /// How many bytes [`write`](Self::write) appends for `len` bytes of plaintext.
    pub fn written_len(len: usize) -> usize {
        len + len.div_ceil(FRAME_PLAINTEXT_MAX) * (PREFIX_LEN + SEALED_OVERHEAD)
    }
}

/// Turns the frames of a stream back into plaintext (dmsg-wire 3).
///
/// Numbers must grow ([`OrderedReplay`]). The first error is permanent: a byte stream with a hole is of no use.
pub struct StreamReader<A> {
    opener: Opener<A, OrderedReplay>,
    frames: FrameReader,
    failure: Option<StreamError>,
}

impl<A: Aead> StreamReader<A> {
    /// Starts the direction that `key` belongs to.
    pub fn new(key: &DirectionKey) -> Self {
        Self::from_opener(Opener::new(key))
    }

    /// Continues with an opener that has opened before.
    pub fn from_opener(opener: Opener<A, OrderedReplay>) -> Self {
        Self { opener, frames: FrameReader::new(FRAME_BODY_MAX), failure: None }
    }

    /// Takes the next piece of the stream, cut anywhere, and appends the plaintext of every frame that it completes to
    /// `out`. Frames with empty plaintext add nothing.
    ///
    /// # Errors
    /// The first [`StreamError`] and from then on always the same. The plaintext of the frames before it is in `out`.
    pub fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), StreamError> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        let result = self.push_all(input, out);
        self.failure = result.err();
        result
    }

    /// True when the peer may close here: no frame is cut off.
    pub fn is_between_frames(&self) -> bool {
        self.frames.is_between_frames()
    }

    fn push_all(&mut self, mut input: &[u8], out: &mut Vec<u8>) -> Result<(), StreamError> {
        loop {
            // A frame that lies whole in the input skips the reassembly, and with it one copy.
            while let Some(body) = self.take_whole_frame(&mut input)? {
                open_into(&mut self.opener, body, out)?;
            }
            match self.frames.push(&mut input)? {
                Some(body) => open_into(&mut self.opener, body, out)?,
                None => return Ok(()),
            }
        }
    }

    fn take_whole_frame<'a>(&self, input: &mut &'a [u8]) -> Result<Option<&'a [u8]>, FrameError> {
        if !self.frames.is_between_frames() {
            return Ok(None);
        }
        let Some((prefix, rest)) = input.split_first_chunk() else { return Ok(None) };
        let len = usize::from(u16::from_be_bytes(*prefix));
        if len > FRAME_BODY_MAX {
            return Err(FrameError::TooLong { len, limit: FRAME_BODY_MAX });
        }
        let Some((body, rest)) = rest.split_at_checked(len) else { return Ok(None) };
        *input = rest;
        Ok(Some(body))
    }
}

/// Copies the ciphertext of a packet to the end of `out` and opens it there; takes it back when it is refused.
fn open_into<A: Aead>(
    opener: &mut Opener<A, OrderedReplay>,
    packet: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), SealedError> {
    let too_short = SealedError::TooShort { found: packet.len() };
    let (number, rest) = packet.split_first_chunk::<NUMBER_LEN>().ok_or(too_short)?;
    let (body, tag) = rest.split_last_chunk().ok_or(too_short)?;
    let start = out.len();
    out.extend_from_slice(body);
    let result = opener.open_parts(number, &mut out[start..], tag);
    if result.is_err() {
        out.truncate(start);
    }
    result
}

/// Why a byte stream holds no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A body longer than the limit.
    #[error("a frame of {len} bytes exceeds the limit of {limit}")]
    TooLong {
        /// The length in bytes that was announced or asked for.
        len: usize,
        /// The most that is allowed, in bytes.
        limit: usize,
    },
}

/// Why a stream ended: permanent, the application closes it (dmsg-wire 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The framing is broken.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame's packet was refused.
    #[error(transparent)]
    Packet(#[from] SealedError),
}
