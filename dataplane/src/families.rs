//! Hosts without IPv6: what is listened on instead of every address.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Where to listen instead when `[::]` was refused because the host has no IPv6 (`ipv6.disable=1`, a sandbox that forbids the
/// family): on every IPv4 address. `None`: the refusal stands. A single IPv6 address is not replaced; who names one means it.
pub fn ipv4_instead(address: SocketAddr, refusal: &io::Error) -> Option<SocketAddr> {
    let is_missing = refusal.kind() == io::ErrorKind::AddrNotAvailable
        || refusal.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error());
    let is_every = address.is_ipv6() && address.ip().is_unspecified();
    (is_missing && is_every).then_some(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port()))
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn only_every_address_is_replaced_and_only_where_the_family_is_missing() {
        let instead = |address: &str, errno: Errno| {
            ipv4_instead(address.parse().unwrap(), &io::Error::from(errno)).map(|found| found.to_string())
        };
        for missing in [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL] {
            assert_eq!(instead("[::]:8081", missing).as_deref(), Some("0.0.0.0:8081"));
            for address in ["[::1]:8081", "[2001:db8::1]:8081", "0.0.0.0:8081", "192.0.2.1:8081"] {
                assert_eq!(instead(address, missing), None, "{address}");
            }
        }
        for other in [Errno::ADDRINUSE, Errno::ACCESS, Errno::PERM, Errno::MFILE] {
            assert_eq!(instead("[::]:8081", other), None);
        }
    }
}
