//! Who sent a request, as far as its connection tells (services 1.10).

use std::fmt;
use std::net::SocketAddr;

use ringwire_proto::identity::Address;

/// The far end of a connection. The frame puts it into every request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// Over TCP.
    Ip(SocketAddr),
    /// Over dmsg: the key was authenticated.
    Key(Address),
    /// Over a Unix socket: whoever may open it.
    Local,
}

impl From<SocketAddr> for Caller {
    fn from(address: SocketAddr) -> Self {
        Self::Ip(address)
    }
}

impl From<Address> for Caller {
    fn from(address: Address) -> Self {
        Self::Key(address)
    }
}

impl From<tokio::net::unix::SocketAddr> for Caller {
    fn from(_: tokio::net::unix::SocketAddr) -> Self {
        Self::Local
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Key(address) => address.fmt(f),
            Self::Local => f.write_str("local"),
        }
    }
}
