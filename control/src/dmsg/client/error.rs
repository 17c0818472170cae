//! What can go wrong with a client of many servers.

use std::fmt;
use std::time::Duration;

use ringwire_proto::identity::{Address, PublicKey};
use ringwire_proto::object::ErrorCode;
use thiserror::Error;

use super::directory::DirectoryError;
use crate::dmsg::error::{ConnectError, DialError};

/// Why no client was started.
#[derive(Debug, Error)]
pub enum StartError {
    /// This process has a client with that key already (control-plane 4.2).
    #[error(
        "this process already runs a dmsg client with the key {0}: two of them would evict each other at every \
         server; share the first one, or close it"
    )]
    KeyInUse(PublicKey),
}

/// Why a client is not ready to be used within the given time.
#[derive(Debug, Error)]
pub enum NotReady {
    /// The client was closed.
    #[error("{}", ErrorCode::EntityClosed)]
    Closed,
    /// There is no session, or the entry is not posted.
    #[error("not connected within {limit:?}: {trouble}")]
    TimedOut {
        /// How long was waited.
        limit: Duration,
        /// What stands in the way.
        trouble: String,
    },
}

/// Why no session with a server came about.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The client was closed.
    #[error("{}", ErrorCode::EntityClosed)]
    Closed,
    /// As many sessions as the client may have.
    #[error("all {0} sessions this client may have are in use")]
    Full(usize),
    /// The key has no entry of a server.
    #[error("{} ({key})", ErrorCode::EntryNotServer)]
    NotServer {
        /// The key.
        key: PublicKey,
    },
    /// The key has no entry at all.
    #[error("{} ({key}); is the key right, and is it announced at this discovery?", ErrorCode::EntryNotFound)]
    NotFound {
        /// The key.
        key: PublicKey,
    },
    /// The server failed a moment ago.
    #[error("it failed a moment ago and is tried again in {0:.1?}")]
    Resting(Duration),
    /// The discovery did not tell where the server is.
    #[error("{0}")]
    Directory(#[from] DirectoryError),
    /// No connection.
    #[error("{0}")]
    Connect(#[from] ConnectError),
}

/// Why a dial over all servers gave no stream.
#[derive(Debug, Error)]
pub enum ReachError {
    /// The client was closed.
    #[error("{}", ErrorCode::EntityClosed)]
    Closed,
    /// The destination was reached and said no, or the wish itself cannot be granted: no other server would help.
    #[error("{0}")]
    Final(#[from] DialError),
    /// Every way there failed (dmsg-wire 9.4: 202).
    #[error(
        "{}: {}:{} could not be reached{}",
        ErrorCode::CannotConnectToServer, destination.key, destination.port, Causes(causes)
    )]
    NoRoute {
        /// Who was dialled.
        destination: Address,
        /// What was tried and how it went, in order.
        causes: Vec<Cause>,
    },
    /// Every way failed a moment ago; asking again so soon is not done (dmsg-wire 15).
    #[error(
        "{}: {}:{} could not be reached a moment ago and is tried again in {left:.1?}",
        ErrorCode::CannotConnectToServer, destination.key, destination.port
    )]
    BackedOff {
        /// Who was dialled.
        destination: Address,
        /// How long this still holds.
        left: Duration,
    },
}

/// One failed attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// Over which server; `None` for what comes before any, such as the look-up.
    pub server: Option<PublicKey>,
    /// What went wrong.
    pub text: String,
}

struct Causes<'a>(&'a [Cause]);

impl fmt::Display for Causes<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, cause) in self.0.iter().enumerate() {
            formatter.write_str(if index == 0 { ": " } else { "; " })?;
            if let Some(server) = cause.server {
                write!(formatter, "over server {server}: ")?;
            }
            formatter.write_str(&cause.text)?;
        }
        Ok(())
    }
}
