//! Reference relay: what one writes with tokio-uring, the ready-made runtime on io_uring, in an hour.
//!
//! In: the sinks' addresses. Out: copied bytes. Two tasks for each connection, one per direction, each with one buffer
//! that travels to the kernel and back. Started by [`super::child`] in a process of its own.

use super::Ready;
use super::tokio_copy::is_end;
use anyhow::Result;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::rc::Rc;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::{TcpListener, TcpStream};

/// Size of the buffer of each direction of a connection, in bytes: that of the smaller tokio relay.
const BUFFER_LEN: usize = 64 * 1024;

/// Relays until the process is killed.
///
/// # Errors
/// When listening fails. A connection that fails is reported on standard error, which makes the row invalid.
pub fn run(sinks: &[SocketAddr]) -> Result<()> {
    tokio_uring::start(async {
        let mut addresses = Vec::new();
        let mut tasks = Vec::new();
        for sink in sinks.iter().copied() {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0).into())?;
            addresses.push(listener.local_addr()?);
            tasks.push(tokio_uring::spawn(accept(listener, sink)));
        }
        Ready { addresses, public_key: None, driver: "tokio-uring".into(), company_us_max: None }.print()?;
        for task in tasks {
            task.await??;
        }
        Ok(())
    })
}

async fn accept(listener: TcpListener, sink: SocketAddr) -> Result<()> {
    loop {
        let (client, _) = listener.accept().await?;
        tokio_uring::spawn(async move {
            if let Err(error) = relay(client, sink).await {
                report(&error);
            }
        });
    }
}

async fn relay(client: TcpStream, sink: SocketAddr) -> io::Result<()> {
    let (client, upstream) = (Rc::new(client), Rc::new(TcpStream::connect(sink).await?));
    client.set_nodelay(true)?;
    upstream.set_nodelay(true)?;
    let back = (Rc::clone(&upstream), Rc::clone(&client));
    tokio_uring::spawn(async move {
        if let Err(error) = copy(&back.0, &back.1).await {
            report(&error);
        }
    });
    copy(&client, &upstream).await
}

async fn copy(from: &TcpStream, to: &TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_LEN];
    loop {
        let (outcome, filled) = from.read(buffer).await;
        let len = outcome?;
        if len == 0 {
            return to.shutdown(Shutdown::Write);
        }
        let (outcome, written) = to.write_all(filled.slice(..len)).await;
        outcome?;
        buffer = written.into_inner();
    }
}

fn report(error: &io::Error) {
    if !is_end(error) {
        eprintln!("tokio-uring relay: {error}");
    }
}
