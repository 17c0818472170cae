//! Who posts or removes an entry, as far as the connection tells.
//!
//! In: the caller of a request and its headers. Out: a [`Sender`]. Entries are signed, so the source proves nothing about
//! their key. It decides with whom an entry is counted when there is little room, and whether a removal that shows nothing
//! but what everybody can read comes from whoever posted it.

use std::net::Ipv4Addr;

use axum::http::HeaderMap;
use ringwire_dataplane::prefix::Prefix;
use ringwire_proto::identity::PublicKey;

use crate::http::Caller;

/// Headers that a proxy adds. Whoever adds one himself only loses what his address would be worth.
const FORWARDED: [&str; 4] = ["forwarded", "via", "x-forwarded-for", "x-real-ip"];

/// Where a request comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// Nobody knows, for instance of an entry that a journal remembers.
    Unknown,
    /// A Unix socket of this machine.
    Local,
    /// An IPv4 address or an IPv6 /64.
    Network(Prefix),
    /// A key that was authenticated, over dmsg.
    Key(PublicKey),
}

impl Source {
    /// With whom an entry from here is counted. Keys cost nothing, so they are counted together.
    pub(super) fn counted(self) -> Self {
        if matches!(self, Self::Key(_)) { Self::Unknown } else { self }
    }

    /// True when the bounds on one source hold for it. 127.0.0.1 and ::1 are not told apart: behind them is a proxy, or
    /// whoever could stop this process anyway.
    pub(super) fn is_bounded(self) -> bool {
        match self {
            Self::Unknown | Self::Local | Self::Key(_) => false,
            Self::Network(Prefix::V4(address)) => address != Ipv4Addr::LOCALHOST,
            // ::/64 has no host but ::1.
            Self::Network(Prefix::V6(upper)) => upper != 0,
        }
    }
}

/// Who sent a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sender {
    /// The far end of the connection.
    pub source: Source,
    /// False when there is a proxy between: the source is then not the sender's.
    pub direct: bool,
}

impl Sender {
    /// Of nobody in particular.
    pub const UNKNOWN: Self = Self { source: Source::Unknown, direct: false };

    /// Directly from a source.
    pub fn direct(source: Source) -> Self {
        Self { source, direct: source != Source::Unknown }
    }

    pub(super) fn of(caller: Option<&Caller>, headers: &HeaderMap) -> Self {
        let source = match caller {
            None => return Self::UNKNOWN,
            Some(Caller::Ip(address)) => Source::Network(address.ip().into()),
            Some(Caller::Key(address)) => Source::Key(address.key),
            Some(Caller::Local) => Source::Local,
        };
        Self { source, direct: !FORWARDED.iter().any(|name| headers.contains_key(*name)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sender(address: &str, headers: &HeaderMap) -> Sender {
        Sender::of(Some(&Caller::Ip(address.parse().unwrap())), headers)
    }

    #[test]
    fn a_source_is_a_prefix_and_a_proxy_hides_it() {
        let none = HeaderMap::new();
        let one = sender("203.0.113.7:1", &none);
        assert_eq!(one, sender("[::ffff:203.0.113.7]:2", &none));
        assert_ne!(one, sender("203.0.113.8:1", &none));
        assert_eq!(sender("[2001:db8::1]:1", &none), sender("[2001:db8::2]:1", &none));
        assert!(one.direct && one.source.is_bounded());
        for name in FORWARDED {
            let headers = HeaderMap::from_iter([(name.parse().unwrap(), "x".parse().unwrap())]);
            let proxied = sender("203.0.113.7:1", &headers);
            assert_eq!((proxied.source, proxied.direct), (one.source, false), "{name}");
        }
        for local in ["127.0.0.1:1", "[::ffff:127.0.0.1]:1", "[::1]:1"] {
            assert!(!sender(local, &none).source.is_bounded(), "{local}");
        }
        assert_eq!(Sender::of(None, &none), Sender::UNKNOWN);
    }
}
