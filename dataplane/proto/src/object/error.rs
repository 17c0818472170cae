//! Error codes of the dmsg protocol (dmsg-wire 9.4) and the two ways an object can be refused.

use core::fmt;

use crate::gob::GobError;

/// An error number of the dmsg protocol: carried in [`super::StreamResponse::error_code`], and the verdict of
/// our own checks (dmsg-wire 9.4).
///
/// Displayed as the Go peers do: `dmsg error <code> - <words>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum ErrorCode {
    /// The discovery has no entry of the key.
    EntryNotFound = 100,
    /// The entry is not a server's.
    EntryNotServer = 101,
    /// The entry is not a client's.
    EntryNotClient = 102,
    /// The client entry names no delegated servers.
    NoDelegatedServers = 103,
    /// The local client or server is closed.
    EntityClosed = 200,
    /// The session is closed.
    SessionClosed = 201,
    /// None of the delegated servers could be reached.
    CannotConnectToServer = 202,
    /// Bytes came behind the last message of the session handshake.
    ExtraHandshakeBytes = 203,
    /// The request's signature is not its source's.
    RequestSignature = 300,
    /// The request's timestamp is not positive.
    RequestTimestamp = 301,
    /// The request's source key is null, or not the session's.
    RequestSourceKey = 302,
    /// The request's destination key is null, or not ours.
    RequestDestinationKey = 303,
    /// The request's source port is zero.
    RequestSourcePort = 304,
    /// The request's destination port is zero.
    RequestDestinationPort = 305,
    /// Nobody listens on the destination port. Temporary.
    NoListener = 306,
    /// The server has no session to the next hop.
    NoNextSession = 307,
    /// The server carries no more relayed streams. Temporary; 2026, since August.
    RelayCapacity = 308,
    /// The response's signature is not the destination's.
    ResponseSignature = 350,
    /// The response answers another request.
    ResponseHash = 351,
    /// The response says no, for no known reason.
    ResponseRefused = 352,
    /// The signed object has no bytes behind its signature.
    ObjectTooShort = 370,
    /// The local port is in use.
    PortInUse = 400,
    /// The listener's accept queue is full. Temporary.
    AcceptQueueFull = 401,
}

impl ErrorCode {
    /// Every code there is, rising.
    pub const ALL: [Self; 23] = [
        Self::EntryNotFound,
        Self::EntryNotServer,
        Self::EntryNotClient,
        Self::NoDelegatedServers,
        Self::EntityClosed,
        Self::SessionClosed,
        Self::CannotConnectToServer,
        Self::ExtraHandshakeBytes,
        Self::RequestSignature,
        Self::RequestTimestamp,
        Self::RequestSourceKey,
        Self::RequestDestinationKey,
        Self::RequestSourcePort,
        Self::RequestDestinationPort,
        Self::NoListener,
        Self::NoNextSession,
        Self::RelayCapacity,
        Self::ResponseSignature,
        Self::ResponseHash,
        Self::ResponseRefused,
        Self::ObjectTooShort,
        Self::PortInUse,
        Self::AcceptQueueFull,
    ];

    /// The number on the wire.
    pub const fn code(self) -> u16 {
        self as u16
    }

    /// The code of a number, `None` for one that is not in the table.
    pub fn from_code(code: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.code() == code)
    }

    /// True for the codes after which trying again is sensible: the accept loop of a 2024 client survives
    /// only these.
    pub const fn is_temporary(self) -> bool {
        matches!(self, Self::NoListener | Self::RelayCapacity | Self::AcceptQueueFull)
    }

    /// The words behind the number. Those of 202, 302 and 304 are known from recordings and documents of the
    /// Go code; the others say what the code means.
    pub const fn words(self) -> &'static str {
        match self {
            Self::EntryNotFound => "discovery entry is not found",
            Self::EntryNotServer => "discovery entry is not of a server",
            Self::EntryNotClient => "discovery entry is not of a client",
            Self::NoDelegatedServers => "client entry has no delegated servers",
            Self::EntityClosed => "local entity is closed",
            Self::SessionClosed => "session is closed",
            Self::CannotConnectToServer => "cannot connect to delegated server",
            Self::ExtraHandshakeBytes => "extra bytes behind session handshake",
            Self::RequestSignature => "request has invalid signature",
            Self::RequestTimestamp => "request has invalid timestamp",
            Self::RequestSourceKey => "request has invalid source public key",
            Self::RequestDestinationKey => "request has invalid destination public key",
            Self::RequestSourcePort => "request has invalid source port",
            Self::RequestDestinationPort => "request has invalid destination port",
            Self::NoListener => "request has no listener on destination port",
            Self::NoNextSession => "request has no session to next hop",
            Self::RelayCapacity => "relay capacity is reached",
            Self::ResponseSignature => "response has invalid signature",
            Self::ResponseHash => "response has hash of another request",
            Self::ResponseRefused => "response is not accepted",
            Self::ObjectTooShort => "signed object is too short",
            Self::PortInUse => "local port is in use",
            Self::AcceptQueueFull => "accept queue of listener is full",
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dmsg error {} - {}", self.code(), self.words())
    }
}

impl core::error::Error for ErrorCode {}

/// Why the bytes of a peer are not an object we act on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// The gob part does not decode; the protocol has no number for it.
    #[error(transparent)]
    Gob(#[from] GobError),
    /// A check of dmsg-wire 9 failed, or the peer's response says no.
    #[error(transparent)]
    Refused(#[from] ErrorCode),
}

impl ObjectError {
    /// The protocol's number for this error; `None` for gob that does not decode.
    pub const fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Gob(_) => None,
            Self::Refused(code) => Some(*code),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_rise_and_come_back() {
        assert!(ErrorCode::ALL.windows(2).all(|pair| pair[0].code() < pair[1].code()));
        for code in 0..=u16::MAX {
            assert!(ErrorCode::from_code(code).is_none_or(|found| found.code() == code));
        }
        assert_eq!((0..=u16::MAX).filter_map(ErrorCode::from_code).count(), ErrorCode::ALL.len());
    }

    #[test]
    fn temporary_codes() {
        let temporary: alloc::vec::Vec<_> =
            ErrorCode::ALL.into_iter().filter(|code| code.is_temporary()).map(ErrorCode::code).collect();
        assert_eq!(temporary, [306, 308, 401]);
    }
}
