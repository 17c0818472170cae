//! The multiplexer of a model client: yamux or smux, with the same calls.
//!
//! On `ringwire_proto` alone: the tests of the data plane include this file too (`dataplane/tests/support`).
#![allow(unreachable_pub, reason = "it is part of more than one package")]

use ringwire_proto::yamux::{OpenError, StreamError};
use ringwire_proto::{smux, yamux};

/// See the module's head.
#[derive(Debug)]
pub enum ClientMux {
    /// What nearly all clients speak.
    Yamux(Box<yamux::Connection>),
    /// The other one.
    Smux(Box<smux::Connection>),
}

/// News of either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MuxEvent {
    /// The server opened this stream: `accept` returns it.
    Opened(u32),
    /// The server acknowledged a stream of ours; yamux only.
    Acked(u32),
    /// Bytes arrived.
    Readable(u32),
    /// The stream ended at once: a reset of yamux, or a stream of smux that the server broke.
    Reset(u32),
    /// The server answered a ping; yamux only.
    PingAnswered {
        /// From the request to the answer.
        rtt_ns: u64,
    },
    /// The session is over.
    Closed {
        /// The server broke a rule; else it is silent.
        is_violation: bool,
    },
    /// Nothing that a client here acts on.
    Other,
}

impl ClientMux {
    /// A client's yamux, or smux of a version.
    pub fn new(smux: Option<smux::Version>, now: u64) -> Self {
        match smux {
            None => Self::Yamux(Box::new(yamux::Connection::new(yamux::Config::client(), now))),
            Some(version) => Self::Smux(Box::new(smux::Connection::new(smux::Config::client(version), now))),
        }
    }

    /// Takes received bytes.
    pub fn push(&mut self, now: u64, bytes: &[u8]) {
        match self {
            Self::Yamux(mux) => mux.push(now, bytes),
            Self::Smux(mux) => mux.push(now, bytes),
        }
    }

    /// Whether the connection is to be read.
    pub fn may_receive(&self) -> bool {
        match self {
            Self::Yamux(_) => true,
            Self::Smux(mux) => mux.may_receive(),
        }
    }

    /// Appends up to `max` bytes to send.
    pub fn poll_transmit(&mut self, out: &mut Vec<u8>, max: usize) -> usize {
        match self {
            Self::Yamux(mux) => mux.poll_transmit(out, max),
            Self::Smux(mux) => mux.poll_transmit(out, max),
        }
    }

    /// When `handle_timeout` has something to do.
    pub fn next_timeout(&self) -> Option<u64> {
        match self {
            Self::Yamux(mux) => mux.next_timeout(),
            Self::Smux(mux) => mux.next_timeout(),
        }
    }

    /// Runs what is due.
    pub fn handle_timeout(&mut self, now: u64) {
        match self {
            Self::Yamux(mux) => mux.handle_timeout(now),
            Self::Smux(mux) => mux.handle_timeout(now),
        }
    }

    /// Opens a stream.
    pub fn open(&mut self, now: u64) -> Result<u32, OpenError> {
        match self {
            Self::Yamux(mux) => mux.open(now),
            Self::Smux(mux) => mux.open().map_err(|error| match error {
                smux::OpenError::TooManyStreams { open } => OpenError::BacklogFull { waiting: open },
                smux::OpenError::IdsExhausted => OpenError::IdsExhausted,
            }),
        }
    }

    /// Takes the next stream that the server opened.
    pub fn accept(&mut self) -> Option<u32> {
        match self {
            Self::Yamux(mux) => mux.accept(),
            Self::Smux(mux) => mux.accept(),
        }
    }

    /// Queues bytes and returns how many, at least one.
    pub fn write(&mut self, id: u32, bytes: &[u8]) -> Result<usize, StreamError> {
        match self {
            Self::Yamux(mux) => mux.write(id, bytes),
            Self::Smux(mux) => mux.write(id, bytes),
        }
    }

    /// Bytes that were written to a stream and have not left yet.
    pub fn unsent_len(&self, id: u32) -> usize {
        match self {
            Self::Yamux(mux) => mux.unsent_len(id),
            Self::Smux(mux) => mux.unsent_len(id),
        }
    }

    /// Takes received bytes of a stream and returns how many; 0 is the end.
    pub fn read(&mut self, id: u32, out: &mut [u8]) -> Result<usize, StreamError> {
        match self {
            Self::Yamux(mux) => mux.read(id, out),
            Self::Smux(mux) => mux.read(id, out),
        }
    }

    /// Ends our direction behind the bytes that wait.
    pub fn finish(&mut self, now: u64, id: u32) {
        match self {
            Self::Yamux(mux) => mux.finish(now, id),
            Self::Smux(mux) => mux.finish(id),
        }
    }

    /// Likewise, and reads no more.
    pub fn close(&mut self, now: u64, id: u32) {
        match self {
            Self::Yamux(mux) => mux.close(now, id),
            Self::Smux(mux) => mux.close(id),
        }
    }

    /// Ends a stream at once; the server of an smux client sees an orderly end.
    pub fn reset(&mut self, id: u32) {
        match self {
            Self::Yamux(mux) => mux.reset(id),
            Self::Smux(mux) => mux.reset(id),
        }
    }

    /// Asks for a sign of life; smux has no such thing.
    pub fn ping(&mut self, now: u64) {
        if let Self::Yamux(mux) = self {
            mux.ping(now);
        }
    }

    /// Tells the server to open no more streams; smux has no such thing.
    pub fn go_away(&mut self) {
        if let Self::Yamux(mux) = self {
            mux.go_away(0);
        }
    }

    /// How many streams there are.
    pub fn stream_count(&self) -> usize {
        match self {
            Self::Yamux(mux) => mux.session().stream_count(),
            Self::Smux(mux) => mux.session().stream_count(),
        }
    }

    /// Whether a stream exists still.
    pub fn has(&self, id: u32) -> bool {
        match self {
            Self::Yamux(mux) => mux.session().stream(id).is_some(),
            Self::Smux(mux) => mux.session().stream(id).is_some(),
        }
    }

    /// Whether it is smux.
    pub fn is_smux(&self) -> bool {
        matches!(self, Self::Smux(_))
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<MuxEvent> {
        Some(match self {
            Self::Yamux(mux) => match mux.poll_event()? {
                yamux::ConnectionEvent::Opened(stream) => MuxEvent::Opened(stream),
                yamux::ConnectionEvent::Acked(stream) => MuxEvent::Acked(stream),
                yamux::ConnectionEvent::Readable(stream) => MuxEvent::Readable(stream),
                yamux::ConnectionEvent::Reset(stream) => MuxEvent::Reset(stream),
                yamux::ConnectionEvent::PingAnswered { rtt_ns, .. } => MuxEvent::PingAnswered { rtt_ns },
                yamux::ConnectionEvent::Closed(reason) => {
                    MuxEvent::Closed { is_violation: matches!(reason, yamux::CloseReason::Violation(_)) }
                }
                yamux::ConnectionEvent::Writable(_)
                | yamux::ConnectionEvent::Finished(_)
                | yamux::ConnectionEvent::GoAway => MuxEvent::Other,
            },
            Self::Smux(mux) => match mux.poll_event()? {
                smux::ConnectionEvent::Opened(stream) => MuxEvent::Opened(stream),
                smux::ConnectionEvent::Readable(stream) => MuxEvent::Readable(stream),
                smux::ConnectionEvent::Broken(stream, _) => MuxEvent::Reset(stream),
                smux::ConnectionEvent::Closed(reason) => {
                    MuxEvent::Closed { is_violation: matches!(reason, smux::CloseReason::Violation(_)) }
                }
                smux::ConnectionEvent::Writable(_) | smux::ConnectionEvent::Finished(_) => MuxEvent::Other,
            },
        })
    }
}
