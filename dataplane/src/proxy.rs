//! The PROXY header in front of a connection, version 1 or 2 (dmsg-wire 4.2).
//!
//! In: the first bytes of a connection, as many as have arrived. Out: that more are needed, that there is no header, or whose
//! connection it really is. No waiting for a first byte: a connection that says nothing is a stranger like any other. Whether
//! the sender may be believed is the caller's question: the Go servers believe anybody.
//!
//! The parsing is the `ppp` crate's, which is given whole headers only: of a header that is still arriving it cannot always
//! tell "more to come" from "malformed". The control plane asks it for its HTTP listeners, too.

use std::net::SocketAddr;

use ppp::{v1, v2};

use crate::limits;

/// What the first bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// Too few to say.
    Incomplete,
    /// Not a header: the first byte of a handshake, or garbage.
    Bare,
    /// A header of `len` bytes; `source` is absent when the proxy speaks for itself (`LOCAL`, `UNKNOWN`).
    Header {
        /// Bytes to drop.
        len: usize,
        /// Whose connection it is.
        source: Option<SocketAddr>,
    },
}

/// A header that cannot be read.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum ProxyFault {
    /// No end of line where one must have been.
    #[error("a PROXY header of version 1 has {V1_LEN_MAX} bytes at most, and this one has no end")]
    Endless,
    /// More than we keep of a stranger.
    #[error(
        "a PROXY header of {len} bytes is longer than the {} that are kept; let the proxy send fewer extensions",
        limits::STRANGER_STASH_LEN_MAX
    )]
    TooLong {
        /// Bytes announced.
        len: usize,
    },
    /// Version 1 with wrong contents.
    #[error("PROXY header of version 1: {0}")]
    Text(v1::BinaryParseError),
    /// Version 2 with wrong contents.
    #[error("PROXY header of version 2: {0}")]
    Binary(v2::ParseError),
}

/// Longest header of version 1 in bytes, its end of line included.
const V1_LEN_MAX: usize = 107;

/// Bytes of a header of version 2 up to and with the length of the rest.
const V2_HEAD_LEN: usize = 16;

/// Whether the bytes begin with the whole signature of a header, of either version.
pub fn has_signature(bytes: &[u8]) -> bool {
    bytes.starts_with(v1::PROTOCOL_PREFIX.as_bytes()) || bytes.starts_with(v2::PROTOCOL_PREFIX)
}

/// Whether the bytes, as far as they go, are those of a signature: a frame of a handshake begins with 00 or 04.
fn agrees(bytes: &[u8], signature: &[u8]) -> bool {
    bytes.iter().zip(signature).all(|(found, expected)| found == expected)
}

/// Looks at the first bytes of a connection.
pub fn open(bytes: &[u8]) -> Result<Opening, ProxyFault> {
    if bytes.is_empty() {
        Ok(Opening::Incomplete)
    } else if agrees(bytes, v2::PROTOCOL_PREFIX) {
        open_binary(bytes)
    } else if agrees(bytes, v1::PROTOCOL_PREFIX.as_bytes()) {
        open_text(bytes)
    } else {
        Ok(Opening::Bare)
    }
}

fn open_text(bytes: &[u8]) -> Result<Opening, ProxyFault> {
    let window = &bytes[..bytes.len().min(V1_LEN_MAX)];
    let Some(end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() < V1_LEN_MAX { Ok(Opening::Incomplete) } else { Err(ProxyFault::Endless) };
    };
    let header = v1::Header::try_from(&bytes[..end + 2]).map_err(ProxyFault::Text)?;
    let source = match header.addresses {
        v1::Addresses::Unknown => None,
        v1::Addresses::Tcp4(pair) => Some(SocketAddr::from((pair.source_address, pair.source_port))),
        v1::Addresses::Tcp6(pair) => Some(SocketAddr::from((pair.source_address, pair.source_port))),
    };
    Ok(Opening::Header { len: end + 2, source })
}

fn open_binary(bytes: &[u8]) -> Result<Opening, ProxyFault> {
    let Some(head) = bytes.first_chunk::<V2_HEAD_LEN>() else { return Ok(Opening::Incomplete) };
    let len = V2_HEAD_LEN + usize::from(u16::from_be_bytes([head[14], head[15]]));
    if len > limits::STRANGER_STASH_LEN_MAX {
        return Err(ProxyFault::TooLong { len });
    }
    let Some(whole) = bytes.get(..len) else { return Ok(Opening::Incomplete) };
    let header = v2::Header::try_from(whole).map_err(ProxyFault::Binary)?;
    let source = match (header.command, header.addresses) {
        (v2::Command::Local, _) => None,
        (v2::Command::Proxy, v2::Addresses::IPv4(pair)) => {
            Some(SocketAddr::from((pair.source_address, pair.source_port)))
        }
        (v2::Command::Proxy, v2::Addresses::IPv6(pair)) => {
            Some(SocketAddr::from((pair.source_address, pair.source_port)))
        }
        (v2::Command::Proxy, v2::Addresses::Unspecified | v2::Addresses::Unix(_)) => None,
    };
    Ok(Opening::Header { len, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binary(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut header = v2::PROTOCOL_PREFIX.to_vec();
        header.extend([0x20 | command, family]);
        header.extend((body.len() as u16).to_be_bytes());
        header.extend(body);
        header
    }

    const V4_BODY: [u8; 12] = [203, 0, 113, 7, 192, 0, 2, 1, 0x9c, 0x40, 0x1f, 0x91];

    /// Every cut of a header is incomplete, the whole is read, and what follows is left alone.
    fn check(header: &[u8], source: Option<&str>) {
        for len in 0..header.len() {
            assert_eq!(open(&header[..len]), Ok(Opening::Incomplete), "{len} of {header:?}");
        }
        let expected =
            Opening::Header { len: header.len(), source: source.map(|address| address.parse().unwrap()) };
        assert_eq!(open(header), Ok(expected));
        let followed = [header, &[0, 49, 2, 3]].concat();
        assert_eq!(open(&followed), Ok(expected));
    }

    #[test]
    fn headers_of_both_versions_are_read_whatever_their_pieces() {
        check(b"PROXY TCP4 203.0.113.7 192.0.2.1 40000 8081\r\n", Some("203.0.113.7:40000"));
        check(b"PROXY TCP6 2001:db8::7 2001:db8::1 40000 8081\r\n", Some("[2001:db8::7]:40000"));
        check(b"PROXY UNKNOWN\r\n", None);
        check(b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", None);
        check(&binary(1, 0x11, &V4_BODY), Some("203.0.113.7:40000"));
        let mut v6 = [0; 36];
        v6[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        v6[15] = 7;
        v6[32..34].copy_from_slice(&40_000_u16.to_be_bytes());
        check(&binary(1, 0x21, &v6), Some("[2001:db8::7]:40000"));
        // Extensions behind the addresses are of no interest.
        check(&binary(1, 0x11, &[&V4_BODY[..], &[4, 0, 200], &[0; 200]].concat()), Some("203.0.113.7:40000"));
        check(&binary(0, 0x11, &V4_BODY), None);
        check(&binary(1, 0, &[]), None);
    }

    #[test]
    fn a_handshake_is_no_header() {
        for bytes in [&[0][..], &[4, 0], &[0xff], b"POST / HTTP/1.1", b"\r\nGET", b"PROX-", b"PING"] {
            assert_eq!(open(bytes), Ok(Opening::Bare));
            assert!(!has_signature(bytes));
        }
        assert!(has_signature(b"PROXY ") && has_signature(v2::PROTOCOL_PREFIX));
        assert!(!has_signature(b"PROX") && !has_signature(&v2::PROTOCOL_PREFIX[..11]));
    }

    #[test]
    fn malformed_headers_are_named() {
        assert_eq!(open(&[&b"PROXY TCP4 "[..], &[b'1'; 200]].concat()), Err(ProxyFault::Endless));
        for text in ["PROXY TCP9 1.1.1.1 2.2.2.2 1 2\r\n", "PROXY TCP4 1.1.1 2.2.2.2 1 2\r\n", "PROXY\r\n"] {
            assert!(matches!(open(text.as_bytes()), Err(ProxyFault::Text(_))), "{text}");
        }
        assert!(matches!(open(b"PROXY TCP4 \xff\xfe\r\n"), Err(ProxyFault::Text(_))));
        assert!(matches!(open(&binary(9, 0x11, &V4_BODY)), Err(ProxyFault::Binary(_))));
        assert!(matches!(open(&binary(1, 0x11, &V4_BODY[..5])), Err(ProxyFault::Binary(_))));
        let long = binary(1, 0x11, &[0; 2000]);
        assert_eq!(open(&long[..16]), Err(ProxyFault::TooLong { len: 2016 }), "known from its length alone");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_are_a_panic(bytes: Vec<u8>, text in "PROXY [ -~\r\n]{0,120}") {
            let _ = open(&bytes);
            let _ = open(text.as_bytes());
            let _ = open(&[v2::PROTOCOL_PREFIX, &bytes].concat());
        }
    }
}
