//! Where a server is: its key and its TCP address, in the form people write it: `PUBLICKEY@HOST:PORT`.

use std::fmt;
use std::str::FromStr;

use ringwire_proto::entry::Entry;
use ringwire_proto::identity::PublicKey;
use thiserror::Error;

/// A server's key and where it listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServerAddress {
    /// The key the server must prove to have (dmsg-wire 2.3).
    pub key: PublicKey,
    /// `HOST:PORT`; the host may be a name, an IPv4 address or a bracketed IPv6 address.
    pub address: String,
}

impl ServerAddress {
    /// Of a server's entry; `None` when it is not a server's or has no usable address. Its signature is not asked for:
    /// a discovery changes stored server entries (dmsg-wire 12.2), and the handshake proves the key.
    pub fn of_entry(entry: &Entry) -> Option<Self> {
        let address = &entry.server.as_ref()?.address;
        let (host, port) = address.rsplit_once(':')?;
        let is_usable = !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0);
        is_usable.then_some(Self { key: entry.static_key?, address: address.clone() })
    }
}

/// Why a text is no server address.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ServerAddressError {
    /// The `@` between key and address is missing.
    #[error("expected PUBLICKEY@HOST:PORT, found no @")]
    NoSeparator,
    /// The key is none.
    #[error("the public key before the @ is not valid: {0}")]
    Key(String),
    /// The port is missing or no number from 1 to 65535.
    #[error("expected HOST:PORT behind the @, found {0:?}")]
    Port(String),
}

impl FromStr for ServerAddress {
    type Err = ServerAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (key, address) = text.split_once('@').ok_or(ServerAddressError::NoSeparator)?;
        let key = key.parse().map_err(|error| ServerAddressError::Key(format!("{error}")))?;
        let port = || ServerAddressError::Port(address.to_owned());
        let (host, number) = address.rsplit_once(':').ok_or_else(port)?;
        if host.is_empty() || number.parse::<u16>().map_or(true, |number| number == 0) {
            return Err(port());
        }
        Ok(Self { key, address: address.to_owned() })
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}@{}", self.key, self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The generator point of secp256k1: a valid key.
    const KEY: &str = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";

    #[test]
    fn the_text_form_comes_back() {
        for address in ["127.0.0.1:8081", "[::1]:8081", "relay.example:1"] {
            let text = format!("{KEY}@{address}");
            assert_eq!(text.parse::<ServerAddress>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn half_an_address_is_refused_with_its_reason() {
        assert_eq!("127.0.0.1:1".parse::<ServerAddress>(), Err(ServerAddressError::NoSeparator));
        assert!(matches!("02@127.0.0.1:1".parse::<ServerAddress>(), Err(ServerAddressError::Key(_))));
        for address in ["127.0.0.1", ":8081", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:", ""] {
            let text = format!("{KEY}@{address}");
            assert!(matches!(text.parse::<ServerAddress>(), Err(ServerAddressError::Port(_))), "{address}");
        }
    }
}
