//! Reference relay: epoll, read(2) and write(2), the plainest loop there is and the yardstick of our poll driver.
//!
//! In: the sinks' addresses. Out: copied bytes. One thread, level-triggered: a direction that holds bytes waits for space
//! and reads nothing meanwhile. Started by [`super::child`] in a process of its own.

use super::tokio_copy::is_end;
use super::{Ready, loopback_listener};
use anyhow::Result;
use rustix::event::epoll::{self, EventFlags};
use rustix::io::Errno;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;

/// Size of the one buffer: a direction that cannot write all of it keeps the rest in one of its own.
const BUFFER_LEN: usize = 64 * 1024;
/// Epoll tokens: the listeners from here on, two sockets for each connection below.
const LISTENER_TOKENS: u64 = 1 << 32;
const EVENTS_PER_WAIT: usize = 256;

/// Relays until the process is killed.
///
/// # Errors
/// When listening or polling fails. A connection that fails is reported on standard error.
pub fn run(sinks: &[SocketAddr]) -> Result<()> {
    let mut relay = Relay {
        epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        pairs: Vec::new(),
        buffer: vec![0; BUFFER_LEN],
    };
    let mut listeners = Vec::new();
    let mut addresses = Vec::new();
    for (index, sink) in sinks.iter().copied().enumerate() {
        let listener = loopback_listener()?;
        listener.set_nonblocking(true)?;
        addresses.push(listener.local_addr()?);
        let token = epoll::EventData::new_u64(LISTENER_TOKENS + index as u64);
        epoll::add(&relay.epoll, &listener, token, EventFlags::IN)?;
        listeners.push((listener, sink));
    }
    Ready { addresses, public_key: None, driver: "epoll".into(), company_us_max: None }.print()?;
    let mut events: Vec<epoll::Event> = Vec::with_capacity(EVENTS_PER_WAIT);
    loop {
        events.clear();
        match epoll::wait(&relay.epoll, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            match event.data.u64().checked_sub(LISTENER_TOKENS) {
                Some(index) => {
                    let (listener, sink) = &listeners[usize::try_from(index)?];
                    relay.accept(listener, *sink)?;
                }
                None => relay.wake(usize::try_from(event.data.u64())?, event.flags)?,
            }
        }
    }
}

struct Relay {
    epoll: OwnedFd,
    pairs: Vec<Pair>,
    /// What is being copied; empty between events.
    buffer: Vec<u8>,
}

/// A client's socket, the sink's, and what flows from `sockets[n]` to the other one.
struct Pair {
    sockets: [TcpStream; 2],
    /// What epoll knows of each socket, for a change costs a system call.
    watched: [EventFlags; 2],
    directions: [Direction; 2],
}

#[derive(Default)]
struct Direction {
    /// Read and not yet written.
    rest: Vec<u8>,
    ended: bool,
}

impl Relay {
    fn accept(&mut self, listener: &TcpListener, sink: SocketAddr) -> Result<()> {
        loop {
            let client = match listener.accept() {
                Ok((client, _)) => client,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let sockets = [client, TcpStream::connect(sink)?];
            let pair = Pair { sockets, watched: [EventFlags::IN; 2], directions: Default::default() };
            let number = self.pairs.len() * 2;
            for (side, socket) in pair.sockets.iter().enumerate() {
                socket.set_nodelay(true)?;
                socket.set_nonblocking(true)?;
                let token = epoll::EventData::new_u64((number + side) as u64);
                epoll::add(&self.epoll, socket, token, EventFlags::IN)?;
            }
            self.pairs.push(pair);
        }
    }

    /// A socket has news: input for the direction that reads it, space for the one that writes it.
    fn wake(&mut self, socket: usize, flags: EventFlags) -> Result<()> {
        let (pair, side) = (&mut self.pairs[socket / 2], socket % 2);
        let mut outcome = Ok(());
        if flags.contains(EventFlags::OUT) {
            outcome = pair.directions[1 - side].flush(&pair.sockets[side]);
        }
        if outcome.is_ok() && flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            let [one, other] = &pair.sockets;
            let (from, to) = if side == 0 { (one, other) } else { (other, one) };
            outcome = pair.directions[side].pump(from, to, &mut self.buffer);
        }
        // Nothing passes a socket whose two halves are gone; epoll would go on about it.
        let is_gone = flags.intersects(EventFlags::HUP | EventFlags::ERR) && pair.directions[side].ended;
        if let Err(error) = &outcome
            && !is_end(error)
        {
            eprintln!("epoll relay: {error}");
        }
        if outcome.is_err() || is_gone {
            pair.directions.iter_mut().for_each(Direction::abandon);
        }
        self.watch(socket / 2)
    }

    /// Each socket is watched for input unless its direction holds bytes, and for space if the other one does.
    fn watch(&mut self, number: usize) -> Result<()> {
        let Pair { sockets, watched, directions } = &mut self.pairs[number];
        if directions.iter().all(|direction| direction.ended) {
            for socket in sockets {
                // It may have been taken out before.
                let _ = epoll::delete(&self.epoll, socket);
            }
            return Ok(());
        }
        for (side, socket) in sockets.iter().enumerate() {
            let mut flags = EventFlags::empty();
            flags.set(EventFlags::IN, directions[side].rest.is_empty() && !directions[side].ended);
            flags.set(EventFlags::OUT, !directions[1 - side].rest.is_empty());
            if flags != watched[side] {
                watched[side] = flags;
                let token = epoll::EventData::new_u64((number * 2 + side) as u64);
                epoll::modify(&self.epoll, socket, token, flags)?;
            }
        }
        Ok(())
    }
}

impl Direction {
    fn pump(&mut self, mut from: &TcpStream, mut to: &TcpStream, buffer: &mut [u8]) -> std::io::Result<()> {
        if self.ended || !self.rest.is_empty() {
            return Ok(());
        }
        let len = match from.read(buffer) {
            Ok(0) => {
                self.ended = true;
                return to.shutdown(Shutdown::Write);
            }
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        let written = match to.write(&buffer[..len]) {
            Ok(written) => written,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        self.rest.extend_from_slice(&buffer[written..len]);
        Ok(())
    }

    fn flush(&mut self, mut to: &TcpStream) -> std::io::Result<()> {
        match to.write(&self.rest) {
            Ok(written) => {
                self.rest.drain(..written);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn abandon(&mut self) {
        self.ended = true;
        self.rest.clear();
    }
}
