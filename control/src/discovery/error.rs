//! What can go wrong with a request to a discovery.
//!
//! The one distinction that everything hangs on: [`DiscoveryError::NotFound`] is the discovery's own statement that
//! a key has no entry. A gateway's 404, a time-out or a 500 is not, and whoever takes one for it overwrites a live
//! entry (control-plane 5).

use std::time::Duration;

use ringwire_proto::identity::PublicKey;
use thiserror::Error;

/// What a discovery says when a key has no entry (services 2.3).
pub(super) const ENTRY_NOT_FOUND: &str = "entry of public key is not found";

/// What a discovery says when it has no server to list (services 2.3).
pub(super) const NO_SERVERS: &str = "no delegated dmsg servers available for remote";

/// What stands before the text of a 422 (services 2.2).
pub(super) const VALIDATION_PREFIX: &str = "entry validation error: ";

/// Why a request to a discovery failed. Every text names the discovery.
#[derive(Debug, Clone, Error)]
pub enum DiscoveryError {
    /// The text is not the URL of a discovery.
    #[error(
        "{text:?} is not the URL of a discovery ({reason}); write http://HOST[:PORT] or https://HOST[:PORT]"
    )]
    Url {
        /// The text as given.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The HTTP client could not be set up.
    #[error("cannot set up HTTP for {url}: {reason}; for https, install the system's CA certificates")]
    Setup {
        /// The discovery.
        url: String,
        /// The library's answer.
        reason: String,
    },
    /// The discovery itself says that the key has no entry. Nothing else is this error.
    #[error("{url} has no entry of {key}")]
    NotFound {
        /// The discovery.
        url: String,
        /// Whose entry was asked for.
        key: PublicKey,
    },
    /// The discovery refused what was posted.
    #[error("{url} refused the entry: {refusal} ({status}: {message})")]
    Refused {
        /// The discovery.
        url: String,
        /// Which rule.
        refusal: Refusal,
        /// HTTP status.
        status: u16,
        /// Its own words.
        message: String,
    },
    /// The discovery asks for a slower pace (status 429).
    #[error("{url} limits the rate of requests; try again in {} s", retry_after.as_secs())]
    RateLimited {
        /// The discovery.
        url: String,
        /// How long it asks to wait; 1 s when it does not say.
        retry_after: Duration,
    },
    /// An answer with a status that is no part of the interface: a fault of the discovery or of something before it.
    #[error("{url} answered {status} ({message}){}", redirect_cure(location.as_deref()))]
    Status {
        /// The discovery.
        url: String,
        /// HTTP status.
        status: u16,
        /// The start of the answer.
        message: String,
        /// Where a redirection points to. None is followed.
        location: Option<String>,
    },
    /// No answer within the time limit.
    #[error("{url} did not answer within {} s", limit.as_secs_f32())]
    Timeout {
        /// The discovery.
        url: String,
        /// How long it was waited.
        limit: Duration,
    },
    /// No connection, or it broke.
    #[error("cannot reach {url}: {reason}")]
    Unreachable {
        /// The discovery.
        url: String,
        /// The causes, outermost first.
        reason: String,
    },
    /// The answer is longer than an answer can be.
    #[error("{url} answered with more than {limit_bytes} bytes; is it a dmsg discovery?")]
    Oversize {
        /// The discovery.
        url: String,
        /// The bound.
        limit_bytes: usize,
    },
    /// The answer is not what was asked for.
    #[error("{url} answered with something else than was asked for ({reason}); is it a dmsg discovery?")]
    Malformed {
        /// The discovery.
        url: String,
        /// What is wrong.
        reason: String,
    },
}

fn redirect_cure(location: Option<&str>) -> String {
    location.map(|target| format!("; it redirects to {target}: name that one instead")).unwrap_or_default()
}

impl DiscoveryError {
    /// True exactly for the discovery's own statement that there is no such entry.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// The rule that a posted entry broke, if that is the error.
    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Refused { refusal, .. } => Some(*refusal),
            _ => None,
        }
    }

    /// True when the same request may succeed later without anybody changing a setting.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::RateLimited { .. }
            | Self::Timeout { .. }
            | Self::Unreachable { .. }
            | Self::Oversize { .. }
            | Self::Malformed { .. }
            // Whatever the status: a gateway that is being set up answers 403 or 404 for a while.
            | Self::Status { .. }
            | Self::Refused { refusal: Refusal::Sequence | Refusal::TimestampOrder, .. } => true,
            Self::Url { .. } | Self::Setup { .. } | Self::NotFound { .. } | Self::Refused { .. } => false,
        }
    }
}

/// Which rule a posted entry broke (services 2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Another entry of the key has this sequence or a greater one: read it again and go on from there.
    #[error("the stored entry has this sequence or a greater one")]
    Sequence,
    /// The stored entry is newer by its timestamp.
    #[error("the stored entry has a later timestamp; check the clocks of all that post for this key")]
    TimestampOrder,
    /// The timestamp of a server's entry is more than 60 s old or 5 s ahead.
    #[error("the timestamp is too far from the discovery's clock; set this machine's clock (NTP)")]
    Clock,
    /// A loopback address or none was advertised.
    #[error("a loopback address cannot be reached from elsewhere; set the public address")]
    Loopback,
    /// The signature does not verify there.
    #[error("the signature does not verify there; it may be older than a member of the entry")]
    Signature,
    /// Any other.
    #[error("it does not allow that")]
    Other,
}

impl Refusal {
    /// Reads the discovery's words; `status` is 401 or 422.
    pub(super) fn of(status: u16, message: &str) -> Self {
        use ringwire_proto::entry::EntryError;
        let text = message.strip_prefix(VALIDATION_PREFIX).unwrap_or(message);
        let is = |error: EntryError| text == error.to_string();
        if is(EntryError::Sequence) {
            Self::Sequence
        } else if is(EntryError::TimestampOrder) {
            Self::TimestampOrder
        } else if is(EntryError::Outdated) {
            Self::Clock
        } else if is(EntryError::Loopback) {
            Self::Loopback
        } else if status == 401 || is(EntryError::Signature) {
            Self::Signature
        } else {
            Self::Other
        }
    }
}
