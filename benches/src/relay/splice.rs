//! Reference relay: epoll and splice(2), the cheapest way to forward bytes that nobody looks at.
//!
//! In: the sinks' addresses. Out: bytes moved from socket to pipe to socket without a copy to user space. One thread,
//! edge-triggered, a budget for each direction and turn so that a ping is not starved by bulk. Started by
//! [`super::child`] in a process of its own.

use super::tokio_copy::is_end;
use super::{Ready, loopback_listener};
use anyhow::Result;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use std::collections::VecDeque;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;

/// Size of each pipe. 128 of them (64 connections, both directions) stay within the 64 MiB that a user without
/// `CAP_SYS_RESOURCE` may have in pipes.
const PIPE_LEN: usize = 256 * 1024;
/// Pipe fillings that one direction moves before the others get their turn.
const FILLINGS_PER_TURN: usize = 4;
/// Epoll tokens: the listeners first, then two sockets for each connection.
const LISTENER_TOKENS: u64 = 1 << 32;
const EVENTS_PER_WAIT: usize = 256;

/// Relays until the process is killed.
///
/// # Errors
/// When listening or polling fails. A connection that fails is reported on standard error.
pub fn run(sinks: &[SocketAddr]) -> Result<()> {
    let mut relay = Splicer {
        epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        pairs: Vec::new(),
        ready: VecDeque::new(),
    };
    let mut listeners = Vec::new();
    let mut addresses = Vec::new();
    for (index, sink) in sinks.iter().copied().enumerate() {
        let listener = loopback_listener()?;
        listener.set_nonblocking(true)?;
        addresses.push(listener.local_addr()?);
        let token = epoll::EventData::new_u64(LISTENER_TOKENS + index as u64);
        epoll::add(&relay.epoll, &listener, token, epoll::EventFlags::IN)?;
        listeners.push((listener, sink));
    }
    Ready { addresses, public_key: None, driver: "epoll + splice".into(), company_us_max: None }.print()?;
    let mut events: Vec<epoll::Event> = Vec::with_capacity(EVENTS_PER_WAIT);
    loop {
        events.clear();
        let no_wait = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let timeout = (!relay.ready.is_empty()).then_some(&no_wait);
        match epoll::wait(&relay.epoll, rustix::buffer::spare_capacity(&mut events), timeout) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            match event.data.u64().checked_sub(LISTENER_TOKENS) {
                Some(index) => {
                    let (listener, sink) = &listeners[usize::try_from(index)?];
                    relay.accept(listener, *sink)?;
                }
                None => relay.wake(usize::try_from(event.data.u64())?, event.flags),
            }
        }
        for _ in 0..relay.ready.len() {
            if let Some(direction) = relay.ready.pop_front() {
                relay.turn(direction);
            }
        }
    }
}

/// One direction of one connection: even numbers client to sink, odd ones back; the pair is the number halved.
type DirectionNumber = usize;

struct Splicer {
    epoll: OwnedFd,
    pairs: Vec<Pair>,
    ready: VecDeque<DirectionNumber>,
}

/// A client's socket, the sink's, and the two directions between them.
struct Pair {
    sockets: [TcpStream; 2],
    directions: [Direction; 2],
}

/// What flows from `sockets[n]` to the other one.
#[derive(Default)]
struct Direction {
    /// Made with the first byte: most reference connections never send anything back.
    pipe: Option<(OwnedFd, OwnedFd)>,
    in_pipe: usize,
    queued: bool,
    ended: bool,
}

impl Splicer {
    fn accept(&mut self, listener: &TcpListener, sink: SocketAddr) -> Result<()> {
        loop {
            let client = match listener.accept() {
                Ok((client, _)) => client,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let upstream = TcpStream::connect(sink)?;
            let pair = self.pairs.len();
            let flags = epoll::EventFlags::IN
                | epoll::EventFlags::OUT
                | epoll::EventFlags::RDHUP
                | epoll::EventFlags::ET;
            for (side, socket) in [&client, &upstream].into_iter().enumerate() {
                socket.set_nodelay(true)?;
                socket.set_nonblocking(true)?;
                let token = epoll::EventData::new_u64((pair * 2 + side) as u64);
                epoll::add(&self.epoll, socket, token, flags)?;
            }
            self.pairs.push(Pair { sockets: [client, upstream], directions: Default::default() });
        }
    }

    /// A socket has news: input wakes the direction that reads it, space the one that writes it.
    fn wake(&mut self, socket: usize, flags: epoll::EventFlags) {
        let input = epoll::EventFlags::IN
            | epoll::EventFlags::RDHUP
            | epoll::EventFlags::HUP
            | epoll::EventFlags::ERR;
        if flags.intersects(input) {
            self.queue(socket);
        }
        // Space matters only to a direction that holds bytes; the first edge after accepting would wake all in vain.
        if flags.contains(epoll::EventFlags::OUT) && self.direction(socket ^ 1).in_pipe > 0 {
            self.queue(socket ^ 1);
        }
    }

    fn direction(&mut self, number: DirectionNumber) -> &mut Direction {
        &mut self.pairs[number / 2].directions[number % 2]
    }

    fn queue(&mut self, number: DirectionNumber) {
        let direction = self.direction(number);
        if !direction.queued && !direction.ended {
            direction.queued = true;
            self.ready.push_back(number);
        }
    }

    fn turn(&mut self, number: DirectionNumber) {
        self.direction(number).queued = false;
        let pair = &mut self.pairs[number / 2];
        let (from, to) = (&pair.sockets[number % 2], &pair.sockets[1 - number % 2]);
        match pair.directions[number % 2].pump(from, to) {
            Ok(true) => self.queue(number),
            Ok(false) => {}
            Err(errno) => {
                pair.directions[number % 2].ended = true;
                let error = std::io::Error::from(errno);
                if !is_end(&error) {
                    eprintln!("splice relay: {error}");
                }
            }
        }
    }
}

impl Direction {
    /// Moves bytes until either socket blocks (false) or the budget is spent (true).
    fn pump(&mut self, from: &TcpStream, to: &TcpStream) -> Result<bool, Errno> {
        if self.ended {
            return Ok(false);
        }
        let (read_end, write_end) = match &self.pipe {
            Some(pipe) => pipe,
            None => {
                let pipe = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
                fcntl_setpipe_size(&pipe.1, PIPE_LEN)?;
                self.pipe.insert(pipe)
            }
        };
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        for _ in 0..FILLINGS_PER_TURN {
            if self.in_pipe == 0 {
                match splice(from, None, write_end, None, PIPE_LEN, flags) {
                    Ok(0) => {
                        self.ended = true;
                        // The peer may be gone already; then there is nobody left to tell.
                        let _ = to.shutdown(Shutdown::Write);
                        return Ok(false);
                    }
                    Ok(len) => self.in_pipe = len,
                    Err(Errno::AGAIN) => return Ok(false),
                    Err(error) => return Err(error),
                }
            }
            match splice(read_end, None, to, None, self.in_pipe, flags) {
                Ok(len) => self.in_pipe -= len,
                Err(Errno::AGAIN) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}
