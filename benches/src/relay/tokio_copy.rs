//! Reference relay: what one writes with tokio in an hour.
//!
//! In: the sinks' addresses and the size of the copy buffers. Out: copied bytes. Started by [`super::child`] in a
//! process of its own.

use super::{Ready, loopback_listener};
use anyhow::Result;
use std::net::SocketAddr;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream};

/// Relays until the process is killed; `buffer_len` is the size of each of the two buffers of a connection, in bytes.
///
/// # Errors
/// When listening fails. A connection that fails is reported on standard error, which makes the row invalid.
pub fn run(sinks: &[SocketAddr], buffer_len: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let mut addresses = Vec::new();
        let mut tasks = Vec::new();
        for sink in sinks.iter().copied() {
            let listener = loopback_listener()?;
            listener.set_nonblocking(true)?;
            addresses.push(listener.local_addr()?);
            tasks.push(tokio::spawn(accept(TcpListener::from_std(listener)?, sink, buffer_len)));
        }
        Ready { addresses, public_key: None, driver: "tokio".into(), company_us_max: None }.print()?;
        for task in tasks {
            task.await??;
        }
        Ok(())
    })
}

async fn accept(listener: TcpListener, sink: SocketAddr, buffer_len: usize) -> Result<()> {
    loop {
        let (mut client, _) = listener.accept().await?;
        tokio::spawn(async move {
            if let Err(error) = copy(&mut client, sink, buffer_len).await
                && !is_end(&error)
            {
                eprintln!("tokio relay: {error}");
            }
        });
    }
}

async fn copy(client: &mut TcpStream, sink: SocketAddr, buffer_len: usize) -> std::io::Result<()> {
    let mut upstream = TcpStream::connect(sink).await?;
    client.set_nodelay(true)?;
    upstream.set_nodelay(true)?;
    copy_bidirectional_with_sizes(client, &mut upstream, buffer_len, buffer_len).await?;
    Ok(())
}

/// The generator closes both ends at the end of a row, with bytes on the way: not a fault of the relay.
pub(super) fn is_end(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::ConnectionReset
            | std::io::ErrorKind::BrokenPipe
            | std::io::ErrorKind::NotConnected
    )
}
