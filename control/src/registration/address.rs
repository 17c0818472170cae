//! The address a server advertises, apart from those it listens on.
//!
//! In: the listeners, the operator's public address if there is one, whether a discovery elsewhere is to hear of it.
//! Out: `host:port`, or an error with its cure. An address that only this machine can reach is refused as soon as others
//! would read it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use thiserror::Error;

/// Why no address can be advertised.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AddressError {
    /// The public address is not `host:port`.
    #[error(
        "{text:?} is not a public address ({reason}); write HOST:PORT or [IPV6]:PORT, such as 203.0.113.7:8081"
    )]
    Malformed {
        /// As given.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Nobody elsewhere could connect to it.
    #[error(
        "{address} cannot be reached from other machines, and {discovery} would tell it to them; name the address that \
         clients use with --public-address HOST:PORT (public_address in the configuration)"
    )]
    Unreachable {
        /// The address that would have been advertised.
        address: String,
        /// A discovery that is not on this machine.
        discovery: String,
    },
    /// There is no listener to advertise.
    #[error("there is no address to listen on; name one with --listen ADDRESS:PORT")]
    NoListener,
}

/// The `host:port` to advertise: `public` if given, else the first listener. `discovery` is one that is not on this
/// machine, if any is configured. A wildcard listener that only discoveries on this machine hear of is advertised by the
/// address of the default route, or by loopback where there is none.
///
/// # Errors
/// [`AddressError`].
pub fn advertised_address(
    public: Option<&str>,
    listeners: &[SocketAddr],
    discovery: Option<&str>,
) -> Result<String, AddressError> {
    let refuse = |address: &str| match discovery {
        Some(discovery) => {
            Err(AddressError::Unreachable { address: address.to_owned(), discovery: discovery.to_owned() })
        }
        None => Ok(()),
    };
    if let Some(public) = public {
        if host_of(public)?.parse().is_ok_and(is_unreachable) {
            refuse(public)?;
        }
        return Ok(public.to_owned());
    }
    let first = *listeners.first().ok_or(AddressError::NoListener)?;
    if is_unreachable(first.ip()) {
        refuse(&first.to_string())?;
    }
    Ok(if first.ip().is_unspecified() {
        SocketAddr::new(own_address(first.is_ipv6()), first.port()).to_string()
    } else {
        first.to_string()
    })
}

fn is_unreachable(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    ip.is_loopback() || ip.is_unspecified()
}

/// The host of `host:port`.
fn host_of(text: &str) -> Result<&str, AddressError> {
    let malformed = |reason| AddressError::Malformed { text: text.to_owned(), reason };
    let (host, port) = text.rsplit_once(':').ok_or(malformed("no port"))?;
    match port.parse() {
        Ok(1..=u16::MAX) => {}
        Ok(0) | Err(_) => return Err(malformed("the port is not a number from 1 to 65535")),
    }
    let host = match host.strip_prefix('[') {
        Some(bracketed) => {
            let host = bracketed.strip_suffix(']').ok_or(malformed("a bracket is not closed"))?;
            host.parse::<Ipv6Addr>().map_err(|_| malformed("no IPv6 address between the brackets"))?;
            host
        }
        None if host.contains(':') => return Err(malformed("an IPv6 address needs brackets")),
        None => host,
    };
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':');
    if host.is_empty() || !host.bytes().all(is_name) {
        return Err(malformed("no host name or IP address before the port"));
    }
    Ok(host)
}

/// The address of the interface that leads out of this machine. Connecting a datagram socket chooses it and sends
/// nothing.
fn own_address(v6: bool) -> IpAddr {
    // From the ranges for documentation, so nobody is ever addressed.
    let (any, out, loopback): (IpAddr, IpAddr, IpAddr) = if v6 {
        (
            Ipv6Addr::UNSPECIFIED.into(),
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
            Ipv6Addr::LOCALHOST.into(),
        )
    } else {
        (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into(), Ipv4Addr::LOCALHOST.into())
    };
    let chosen = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((out, 9))?;
        socket.local_addr()
    });
    chosen.map_or(loopback, |address| address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ELSEWHERE: Option<&str> = Some("http://dmsgd.example");

    fn listeners(list: &[&str]) -> Vec<SocketAddr> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_public_address_wins_over_the_listeners() {
        let listening = listeners(&["0.0.0.0:8081"]);
        for public in ["203.0.113.7:8081", "relay.example:443", "[2001:db8::7]:8081"] {
            assert_eq!(advertised_address(Some(public), &listening, ELSEWHERE).unwrap(), public);
        }
        assert_eq!(
            advertised_address(None, &listeners(&["10.1.2.3:8081"]), ELSEWHERE).unwrap(),
            "10.1.2.3:8081"
        );
    }

    #[test]
    fn what_only_this_machine_reaches_is_refused_with_the_cure_once_others_would_read_it() {
        for local in ["127.0.0.1:8081", "0.0.0.0:8081", "[::1]:8081", "[::]:8081", "[::ffff:127.0.0.1]:8081"]
        {
            let text = advertised_address(None, &listeners(&[local]), ELSEWHERE).unwrap_err().to_string();
            assert!(text.contains("--public-address") && text.contains("http://dmsgd.example"), "{text}");
            advertised_address(Some(local), &[], ELSEWHERE).unwrap_err();
            advertised_address(None, &listeners(&[local]), None).unwrap();
        }
    }

    #[test]
    fn a_wildcard_is_never_advertised() {
        for wildcard in ["0.0.0.0:8081", "[::]:8081"] {
            let advertised = advertised_address(None, &listeners(&[wildcard]), None).unwrap();
            let advertised: SocketAddr = advertised.parse().unwrap();
            assert!(!advertised.ip().is_unspecified() && advertised.port() == 8081, "{advertised}");
        }
    }

    #[test]
    fn what_is_no_address_is_named() {
        for text in ["", "x", ":8081", "x:0", "x:65536", "x:y", "[::1:80", "::1:80", "a b:80", "[relay]:80"] {
            let error = advertised_address(Some(text), &[], None).unwrap_err();
            assert!(matches!(error, AddressError::Malformed { .. }), "{text}: {error}");
        }
        assert_eq!(advertised_address(None, &[], None).unwrap_err(), AddressError::NoListener);
    }
}
