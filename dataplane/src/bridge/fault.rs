//! What can be wrong with an object at the head of a stream, and what counts it.
//!
//! Each of these costs that stream and nothing else (control-plane 4.4): the session goes on.

use ringwire_proto::noise::sealed::{ReplayError, SealedError};
use ringwire_proto::object::{ErrorCode, ObjectError};

use crate::counters::Counter;

/// See the module's head.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ObjectFault {
    /// The sealed packet.
    #[error(transparent)]
    Packet(#[from] SealedError),
    /// What was in it.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The stream ended inside.
    #[error("the stream ended before its object was complete")]
    Truncated,
    /// A liveness ping on a stream that we opened.
    #[error("a ping instead of a response")]
    Ping,
}

impl ObjectFault {
    /// Which counter of its kind it moves, besides that of the refusal.
    pub(crate) fn counter(&self) -> Counter {
        match self {
            Self::Packet(SealedError::TooShort { .. })
            | Self::Object(ObjectError::Refused(ErrorCode::ObjectTooShort)) => Counter::ObjectsShort,
            Self::Packet(SealedError::Replay(
                ReplayError::Zero | ReplayError::Repeated | ReplayError::TooOld,
            )) => Counter::ObjectsReplayed,
            Self::Packet(SealedError::BadTag(_)) => Counter::ObjectsForged,
            Self::Object(ObjectError::Gob(_)) => Counter::ObjectsGob,
            Self::Object(ObjectError::Refused(
                ErrorCode::RequestSignature | ErrorCode::ResponseSignature,
            )) => Counter::ObjectsSignature,
            Self::Object(ObjectError::Refused(_)) | Self::Ping => Counter::ObjectsInvalid,
            Self::Truncated => Counter::ObjectsTruncated,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_the_peer_is_not_a_bad_signature() {
        let counter = |code| ObjectFault::from(ObjectError::Refused(code)).counter();
        assert_eq!(counter(ErrorCode::ResponseSignature), Counter::ObjectsSignature);
        assert_eq!(counter(ErrorCode::ObjectTooShort), Counter::ObjectsShort);
        for code in [ErrorCode::ResponseHash, ErrorCode::RequestTimestamp, ErrorCode::NoListener] {
            assert_eq!(counter(code), Counter::ObjectsInvalid);
        }
    }
}
