//! Who counts as one stranger: an address prefix, a single IPv4 address or an IPv6 /64.
//!
//! An IPv6 customer gets a /64 at least, so single addresses would be free of charge; and textual keys of such addresses are
//! how one /16 came to share one bucket in the Go server.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv4 /32 or an IPv6 /64. IPv4 addresses in their IPv6 form are IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum Prefix {
    /// One address.
    V4(Ipv4Addr),
    /// The upper half of an address.
    V6(u64),
}

impl From<IpAddr> for Prefix {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => Self::V6((address.to_bits() >> 64) as u64),
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(address) => write!(f, "{address}/32"),
            Self::V6(upper) => write!(f, "{}/64", Ipv6Addr::from_bits(u128::from(*upper) << 64)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(address: &str) -> Prefix {
        Prefix::from(address.parse::<IpAddr>().unwrap())
    }

    #[test]
    fn ipv6_addresses_share_a_bucket_by_slash_64_and_not_by_slash_16() {
        assert_eq!(prefix("2001:db8:1:2::1"), prefix("2001:db8:1:2:ffff::9"));
        assert_ne!(prefix("2001:db8:1:2::1"), prefix("2001:db8:1:3::1"));
        assert_ne!(prefix("2001:1::1"), prefix("2001:2::1"));
        assert_eq!(prefix("::ffff:10.1.2.3"), prefix("10.1.2.3"));
        assert_ne!(prefix("10.1.2.3"), prefix("10.1.2.4"));
        assert_eq!(prefix("2001:db8:1:2::1").to_string(), "2001:db8:1:2::/64");
        assert_eq!(prefix("::ffff:10.1.2.3").to_string(), "10.1.2.3/32");
    }
}
