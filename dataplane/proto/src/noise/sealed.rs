//! Sealed packets: one piece of plaintext with its number in front, under the key of one direction (dmsg-wire 2.6, 2.7).
//!
//! ```text
//!   packet = N (8 bytes, big-endian) || ciphertext || tag (16 bytes)
//! ```
//!
//! In: a [`DirectionKey`] of a finished handshake, then plaintext to [`Sealer`] and packets of the peer to [`Opener`].
//! Out: packets and plaintext, in place, without allocation. Called by [`crate::frame`] for streams
//! ([`OrderedReplay`]) and by the session for its objects ([`WindowReplay`]).

use alloc::vec::Vec;

use super::DirectionKey;
use crate::aead::{Aead, BadTag, NONCE_LEN, TAG_LEN};

/// Bytes that a packet is longer than its plaintext: number and tag (dmsg-wire 2.6).
pub const SEALED_OVERHEAD: usize = NUMBER_LEN + TAG_LEN;

/// Length of the packet number in front, in bytes.
pub(crate) const NUMBER_LEN: usize = 8;

/// Seals packets of one direction, numbered 1, 2, 3 and so on.
///
/// Exactly one `Sealer` may exist for a key: two would use a number twice.
pub struct Sealer<A> {
    aead: A,
    counter: u64,
}

impl<A: Aead> Sealer<A> {
    /// Starts a direction. The counter is raised before use, so the first packet carries 1 (dmsg-wire 2.6).
    pub fn new(key: &DirectionKey) -> Self {
        Self::with_counter(key, 0)
    }

    /// Continues a direction whose last packet carried `counter`.
    pub fn with_counter(key: &DirectionKey, counter: u64) -> Self {
        Self { aead: A::new(key.expose()), counter }
    }

    /// The number of the last packet, 0 before the first.
    pub fn counter(&self) -> u64 {
        self.counter
    }

    /// Appends the packet of `plaintext` to `out`; may allocate only if `out` lacks the room.
    pub fn seal(&mut self, plaintext: &[u8], out: &mut Vec<u8>) {
        out.reserve(plaintext.len() + SEALED_OVERHEAD);
        let number = self.next_number();
        out.extend_from_slice(&number.to_be_bytes());
        let start = out.len();
        out.extend_from_slice(plaintext);
        let tag = self.aead.seal(&aead_nonce(number), &mut out[start..]);
        out.extend_from_slice(&tag);
    }

    /// Seals inside one buffer, laid out as 8 free bytes, the plaintext, 16 free bytes.
    ///
    /// # Errors
    /// [`SealedError::TooShort`] when the free bytes alone do not fit; the counter then stays.
    pub fn seal_in_place(&mut self, packet: &mut [u8]) -> Result<(), SealedError> {
        let found = packet.len();
        let (number_bytes, body, tag) = split_packet(packet).ok_or(SealedError::TooShort { found })?;
        let number = self.next_number();
        *number_bytes = number.to_be_bytes();
        *tag = self.aead.seal(&aead_nonce(number), body);
        Ok(())
    }

    fn next_number(&mut self) -> u64 {
        #[allow(clippy::expect_used, reason = "the message is the proof")]
        let next = self.counter.checked_add(1).expect("2^64 packets take centuries, and numbers start at 1");
        self.counter = next;
        next
    }
}

/// Opens packets of one direction: replay check, then tag, then the number counts as used.
///
/// The Go code marks the number before it verifies the tag; only a forged packet can tell the difference, and here a
/// forged packet changes nothing (dmsg-wire 2.7, advice).
pub struct Opener<A, R> {
    aead: A,
    replay: R,
}

impl<A: Aead, R: Replay> Opener<A, R> {
    /// Starts a direction.
    pub fn new(key: &DirectionKey) -> Self {
        Self::with_replay(key, R::default())
    }

    /// Continues a direction with the memory of numbers it had.
    pub fn with_replay(key: &DirectionKey, replay: R) -> Self {
        Self { aead: A::new(key.expose()), replay }
    }

    /// The memory of numbers, to hand over.
    pub fn replay(&self) -> &R {
        &self.replay
    }

    /// Opens a packet in place and returns its plaintext, which may be empty.
    ///
    /// # Errors
    /// [`SealedError`]; nothing is remembered of a refused packet, and its buffer holds nothing of use.
    pub fn open<'a>(&mut self, packet: &'a mut [u8]) -> Result<&'a mut [u8], SealedError> {
        let found = packet.len();
        let (number, body, tag) = split_packet(packet).ok_or(SealedError::TooShort { found })?;
        self.open_parts(number, body, tag)?;
        Ok(body)
    }

    /// [`open`](Self::open) for a packet whose ciphertext lies apart from its number and tag.
    pub(crate) fn open_parts(
        &mut self,
        number: &[u8; NUMBER_LEN],
        body: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<(), SealedError> {
        let number = u64::from_be_bytes(*number);
        self.replay.check(number)?;
        self.aead.open(&aead_nonce(number), body, tag)?;
        self.replay.mark(number);
        Ok(())
    }
}

/// The nonce of the cipher: four zero bytes, then the number little-endian (dmsg-wire 2.2, 2.6).
pub(crate) fn aead_nonce(number: u64) -> [u8; NONCE_LEN] {
    let mut nonce = [0; NONCE_LEN];
    nonce[4..].copy_from_slice(&number.to_le_bytes());
    nonce
}

fn split_packet(packet: &mut [u8]) -> Option<(&mut [u8; NUMBER_LEN], &mut [u8], &mut [u8; TAG_LEN])> {
    let (number, rest) = packet.split_first_chunk_mut()?;
    let (body, tag) = rest.split_last_chunk_mut()?;
    Some((number, body, tag))
}

/// A rule about which packet numbers are still good.
pub trait Replay: Default {
    /// Says whether a packet with number `n` may be opened; changes nothing.
    ///
    /// # Errors
    /// The reason why not.
    fn check(&self, n: u64) -> Result<(), ReplayError>;

    /// Records `n`, which [`check`](Self::check) has allowed and whose packet was authentic.
    fn mark(&mut self, n: u64);
}

/// Numbers must grow; gaps are allowed. The rule of a stream (dmsg-wire 2.7).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OrderedReplay {
    last: u64,
}

impl OrderedReplay {
    /// Continues after the number `last`; 0 is the start.
    pub fn after(last: u64) -> Self {
        Self { last }
    }

    /// The greatest number so far, 0 before the first.
    pub fn last(&self) -> u64 {
        self.last
    }
}

impl Replay for OrderedReplay {
    fn check(&self, n: u64) -> Result<(), ReplayError> {
        match n {
            0 => Err(ReplayError::Zero),
            n if n > self.last => Ok(()),
            n if n == self.last => Err(ReplayError::Repeated),
            _ => Err(ReplayError::TooOld),
        }
    }

    fn mark(&mut self, n: u64) {
        self.last = n;
    }
}

/// How many numbers [`WindowReplay`] remembers, the greatest included (dmsg-wire 2.7).
pub const WINDOW: u64 = 1024;

const WORDS: usize = (WINDOW / 64) as usize;

/// Each number once, at most 1023 below the greatest. The rule of session objects (dmsg-wire 2.7), whose streams share
/// one counter and are served in any order.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct WindowReplay {
    greatest: u64,
    /// One bit for each number in `greatest - 1023 ..= greatest`, at the number modulo 1024.
    used: [u64; WORDS],
}

impl WindowReplay {
    fn slot(n: u64) -> (usize, u64) {
        ((n % WINDOW / 64) as usize, 1 << (n % 64))
    }
}

impl Default for WindowReplay {
    fn default() -> Self {
        Self { greatest: 0, used: [0; WORDS] }
    }
}

impl Replay for WindowReplay {
    fn check(&self, n: u64) -> Result<(), ReplayError> {
        if n == 0 {
            return Err(ReplayError::Zero);
        }
        if n > self.greatest {
            return Ok(());
        }
        if self.greatest - n >= WINDOW {
            return Err(ReplayError::TooOld);
        }
        let (word, bit) = Self::slot(n);
        if self.used[word] & bit == 0 { Ok(()) } else { Err(ReplayError::Repeated) }
    }

    fn mark(&mut self, n: u64) {
        if n > self.greatest {
            if n - self.greatest >= WINDOW {
                self.used = [0; WORDS];
            } else {
                for skipped in self.greatest + 1..n {
                    let (word, bit) = Self::slot(skipped);
                    self.used[word] &= !bit;
                }
            }
            self.greatest = n;
        }
        let (word, bit) = Self::slot(n);
        self.used[word] |= bit;
    }
}

/// Why a packet number is no good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// Numbers start at 1.
    #[error("packet number zero")]
    Zero,
    /// The number was used before.
    #[error("packet number repeated")]
    Repeated,
    /// The number is behind what the rule remembers.
    #[error("packet number too old")]
    TooOld,
}

/// Why a packet was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealedError {
    /// No room for number and tag.
    #[error("a packet has at least 24 bytes, not {found}")]
    TooShort {
        /// Bytes that came.
        found: usize,
    },
    /// The number is no good.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// Forged, damaged, or sealed under another key.
    #[error(transparent)]
    BadTag(#[from] BadTag),
}
