//! A user-space delay line: a TCP proxy that passes bytes on after a fixed time, each way.
//!
//! It stands in for a long path where the machine has no network emulation. What is under way is bounded, so that a sender
//! without flow control of its own would block, as on a real path.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Bytes under way each way at most.
const UNDER_WAY_MAX: usize = 64 * 1024 * 1024;

/// Starts a proxy to `target` that delays each direction by `delay`; returns its address. Its threads end with the
/// connections.
pub fn start(target: SocketAddr, delay: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (Ok(client), Ok(server)) = (client, TcpStream::connect(target)) else { return };
            client.set_nodelay(true).unwrap();
            server.set_nodelay(true).unwrap();
            carry(client.try_clone().unwrap(), server.try_clone().unwrap(), delay);
            carry(server, client, delay);
        }
    });
    address
}

fn carry(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    let (sender, receiver) = mpsc::sync_channel::<(Instant, Vec<u8>)>(UNDER_WAY_MAX / 65_536);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        while let Ok(len) = from.read(&mut buffer) {
            if len == 0 || sender.send((Instant::now() + delay, buffer[..len].to_vec())).is_err() {
                return;
            }
        }
    });
    std::thread::spawn(move || {
        let mut late: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
        while let Some((due, bytes)) = late.pop_front().or_else(|| receiver.recv().ok()) {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
            late.extend(receiver.try_iter().take(16));
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}
