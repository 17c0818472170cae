//! The PROXY header in front of a connection, version 1 or 2, from networks that are believed (setting `proxy_from`).
//!
//! In: the first bytes of a connection. Out: whose it is, and what was read behind the header; or why it ends. The rules are those
//! in front of dmsg sessions, and so is the parser: a header from elsewhere, or one that cannot be read, ends the connection; a
//! connection without one is that of its own address.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::BufMut as _;
use ipnet::IpNet;
use ringwire_dataplane::limits::STRANGER_STASH_LEN_MAX;
use ringwire_dataplane::proxy::{self, Opening, ProxyFault};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

/// Networks whose headers are believed.
pub(super) type ProxyNetworks = Arc<[IpNet]>;

/// Whether one of them has this address.
pub(super) fn is_believed(networks: &[IpNet], address: SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    networks.iter().any(|network| network.contains(&ip))
}

/// Why a connection ends before it is served.
#[derive(Debug, Error)]
pub(super) enum HeaderFault {
    /// A header of a proxy that is not to be believed.
    #[error("a PROXY header from an address that is no trusted proxy (setting `proxy_from`)")]
    Untrusted,
    /// A header of a proxy that cannot be read.
    #[error(transparent)]
    Malformed(#[from] ProxyFault),
    /// The connection.
    #[error(transparent)]
    Connection(#[from] io::Error),
}

/// How a connection begins.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// It had a header.
    pub(super) has_header: bool,
    /// Whose connection it is, if not that of its own address.
    pub(super) source: Option<SocketAddr>,
    /// What was read and is HTTP.
    pub(super) front: Vec<u8>,
}

/// Reads until it is clear whether there is a header, and the header.
pub(super) async fn read_head<Io: AsyncRead + Unpin>(
    io: &mut Io,
    is_believed: bool,
) -> Result<Head, HeaderFault> {
    let mut front = Vec::with_capacity(STRANGER_STASH_LEN_MAX);
    loop {
        if !is_believed && proxy::has_signature(&front) {
            return Err(HeaderFault::Untrusted);
        }
        match proxy::open(&front)? {
            Opening::Incomplete => {}
            Opening::Bare => return Ok(Head { has_header: false, source: None, front }),
            Opening::Header { len, source } => {
                front.drain(..len);
                return Ok(Head { has_header: true, source, front });
            }
        }
        // No header is longer, or the parser has said so.
        let room = STRANGER_STASH_LEN_MAX.saturating_sub(front.len());
        if io.read_buf(&mut (&mut front).limit(room)).await? == 0 {
            return Ok(Head { has_header: false, source: None, front });
        }
    }
}

/// A connection of which something was read already.
pub(super) struct Fronted<Io> {
    io: Io,
    front: Vec<u8>,
    /// How much of it was read again.
    at: usize,
}

impl<Io> Fronted<Io> {
    pub(super) fn new(io: Io, front: Vec<u8>) -> Self {
        Self { io, front, at: 0 }
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Fronted<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let rest = &this.front[this.at..];
        if rest.is_empty() {
            return Pin::new(&mut this.io).poll_read(context, buffer);
        }
        let taken = rest.len().min(buffer.remaining());
        buffer.put_slice(&rest[..taken]);
        this.at += taken;
        if this.at == this.front.len() {
            (this.front, this.at) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Fronted<Io> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &[u8] = b"PROXY TCP4 203.0.113.7 192.0.2.1 40000 80\r\n";

    async fn head(bytes: &[u8], is_believed: bool) -> Result<Head, HeaderFault> {
        // Byte by byte, as bad as it comes.
        let (mut near, mut far) = tokio::io::duplex(1);
        let bytes = bytes.to_vec();
        let writer = tokio::spawn(async move {
            use tokio::io::AsyncWriteExt as _;
            far.write_all(&bytes).await.ok();
        });
        let head = read_head(&mut near, is_believed).await;
        drop(near);
        writer.await.unwrap();
        head
    }

    #[tokio::test]
    async fn a_header_is_read_from_a_believed_address_and_refused_from_others() {
        let with = head(V1, true).await.unwrap();
        assert_eq!(with.source, Some("203.0.113.7:40000".parse().unwrap()));
        assert!(with.has_header && with.front.is_empty());
        assert!(matches!(head(V1, false).await, Err(HeaderFault::Untrusted)));
        let broken = b"PROXY TCP4 1.1.1 2.2.2.2 1 2\r\n";
        assert!(matches!(head(broken, true).await, Err(HeaderFault::Malformed(_))));
        assert!(matches!(head(broken, false).await, Err(HeaderFault::Untrusted)));
    }

    #[tokio::test]
    async fn what_is_no_header_is_left_as_it_is() {
        for bytes in [&b"GET / HTTP/1.1"[..], b"POST", b"PROP", b"P", b"", b"\r\nGET"] {
            for is_believed in [false, true] {
                let found = head(bytes, is_believed).await.unwrap();
                assert!(!found.has_header && found.source.is_none());
                assert!(bytes.starts_with(&found.front), "{bytes:?}");
            }
        }
    }

    #[tokio::test]
    async fn what_was_read_is_read_again_in_front_of_the_rest() {
        let mut fronted = Fronted::new(&b" behind"[..], b"in front,".to_vec());
        let mut text = String::new();
        fronted.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "in front, behind");
    }
}
