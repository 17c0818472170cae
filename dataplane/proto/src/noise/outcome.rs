//! What a handshake ends with: keys by direction, or the reason why there are none (dmsg-wire 2.5).
//!
//! In: the split of [`super::Handshake`]. Out: [`Outcome`] for the packet layer ([`crate::noise::sealed`]), or
//! [`HandshakeError`] for the owner of the connection, who closes it.

use core::fmt;

use zeroize::Zeroizing;

use super::MESSAGE_MAX;
use crate::identity::PublicKey;

/// The result of a finished handshake.
#[derive(Debug)]
pub struct Outcome {
    /// Key of the packets that we send.
    pub send: DirectionKey,
    /// Key of the packets that we receive.
    pub receive: DirectionKey,
    /// Who the peer is, proven.
    pub remote: PublicKey,
    /// The handshake hash after the last message; the same on both sides.
    pub hash: [u8; 32],
    /// True when both sides took part in the post-quantum exchange (dmsg-wire 2.8).
    pub hybrid: bool,
}

/// The key of one direction. Erased when dropped, never shown by `Debug`.
pub struct DirectionKey(Zeroizing<[u8; 32]>);

impl DirectionKey {
    pub(super) fn new(bytes: Zeroizing<[u8; 32]>) -> Self {
        Self(bytes)
    }

    /// A key that was agreed elsewhere: handed over by another process, or fixed in a test.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The 32 secret bytes.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for DirectionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DirectionKey(secret)")
    }
}

/// Why a handshake failed, or why a call was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The pattern needs the peer's key beforehand.
    #[error("the pattern needs the peer's public key beforehand")]
    MissingRemote,
    /// A message shorter than its keys and tag, or longer than Noise allows.
    #[error("a handshake message of {least} to {MESSAGE_MAX} bytes was expected, not of {found}")]
    MessageLength {
        /// Fewest bytes of the message expected now.
        least: usize,
        /// Bytes that came.
        found: usize,
    },
    /// A public key in a message is not a point of the curve (dmsg-wire 1.3: fail, where the Go code of 2024 panics).
    #[error("the peer sent a public key that is not a point of secp256k1")]
    InvalidRemoteKey,
    /// The peer does not hold the keys that it should, it expects another key of ours, or the message is damaged.
    #[error("the handshake message is not authentic")]
    BadTag,
    /// The initiator proved another identity than the one that is let in.
    #[error("the peer proved another identity than the expected one")]
    OtherRemote,
    /// The peer takes no part in the post-quantum exchange that we require.
    #[error("the peer takes no part in the post-quantum exchange, which is required here")]
    HybridRequired,
    /// It is the other side's turn, or nothing is left to say.
    #[error("the handshake expects another step now")]
    OutOfTurn,
    /// The last message has not been exchanged yet.
    #[error("the handshake is not finished")]
    NotFinished,
    /// An earlier step failed.
    #[error("the handshake has failed before")]
    Failed,
    /// The Noise engine refused a step that the checks before it had allowed.
    #[error("the Noise engine refused the step")]
    Engine,
}

/// Names the engine's refusals. `Input` and the states are excluded by the checks in front of each call.
#[allow(clippy::needless_pass_by_value, reason = "shaped for map_err")]
pub(super) fn engine(error: snow::Error) -> HandshakeError {
    match error {
        snow::Error::Dh => HandshakeError::InvalidRemoteKey,
        snow::Error::Decrypt => HandshakeError::BadTag,
        _ => HandshakeError::Engine,
    }
}
