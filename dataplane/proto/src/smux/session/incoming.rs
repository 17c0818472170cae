//! What a received frame means (dmsg-wire 6).

use super::{Session, Stream};
use crate::smux::{Command, Header, StreamFault, Update, Violation};

/// What the caller does about one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incoming<T> {
    /// The id in the header.
    pub stream: u32,
    /// The owner's tag; none for unknown streams and those not accepted yet.
    pub tag: Option<T>,
    /// The peer opened this stream: [`Session::accept`] it.
    pub opened: bool,
    /// Bytes by which our credit on the stream grew.
    pub credit: u32,
    /// The peer broke a rule of this stream: [`Session::reset`] it. Comes once for a stream.
    pub fault: Option<StreamFault>,
    /// What to do with the payload behind the header.
    pub payload: Payload,
    /// The peer's direction ended.
    pub finished: bool,
    /// Both directions ended: the stream is forgotten, `tag` is its last tag.
    pub closed: bool,
}

/// What to do with the payload behind a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// There is none.
    None,
    /// So many bytes are the stream's; report them with [`Session::consumed`] once they left.
    Deliver(u16),
    /// So many bytes belong to no stream: drop them.
    Discard(u16),
}

impl<T> Incoming<T> {
    const fn ignored(stream: u32) -> Self {
        Self {
            stream,
            tag: None,
            opened: false,
            credit: 0,
            fault: None,
            payload: Payload::None,
            finished: false,
            closed: false,
        }
    }
}

impl<T: Copy> Session<T> {
    /// Takes the next header. The payload of a data frame follows the answer; updates go to
    /// [`handle_update`](Self::handle_update), whole.
    ///
    /// # Errors
    /// A breach that ends the session: close the connection.
    pub fn handle_header(&mut self, now: u64, header: &Header) -> Result<Incoming<T>, Violation> {
        self.last_byte_at = now;
        let id = header.stream;
        match header.command {
            Command::Syn => self.handle_syn(id),
            Command::Fin => Ok(self.handle_fin(id)),
            Command::Push => Ok(self.handle_push(id, header.length)),
            // A lone update header changes nothing; its payload comes through `handle_update`.
            Command::Nop | Command::Update => Ok(Incoming::ignored(id)),
        }
    }

    /// Notes that bytes arrived, whole frame or not: a large frame on a slow connection is no silence.
    pub const fn handle_bytes_received(&mut self, now: u64) {
        self.last_byte_at = now;
    }

    /// Takes an update frame (version 2). One for an unknown stream is ignored.
    pub fn handle_update(&mut self, now: u64, id: u32, update: Update) -> Incoming<T> {
        self.last_byte_at = now;
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.broken) else {
            return Incoming::ignored(id);
        };
        let mut incoming = Incoming { tag: stream.tag, ..Incoming::ignored(id) };
        match stream.apply_update(id, update) {
            Ok(credit) => incoming.credit = credit,
            Err(fault) => incoming.fault = Some(fault),
        }
        incoming
    }

    /// A SYN for a known id is ignored.
    fn handle_syn(&mut self, id: u32) -> Result<Incoming<T>, Violation> {
        if self.streams.contains_key(&id) {
            return Ok(Incoming::ignored(id));
        }
        if self.waiting >= self.config.accept_backlog {
            return Err(Violation::BacklogFull { waiting: self.waiting });
        }
        self.check_room().map_err(|open| Violation::TooManyStreams { open })?;
        // Before every new stream, because each one may end in a FIN that the peer does not read.
        match u32::try_from(self.finishes.len()) {
            Ok(pending) if pending < self.config.pending_finishes_max => {}
            pending => return Err(Violation::FinishesUnread { pending: pending.unwrap_or(u32::MAX) }),
        }
        self.streams.insert(id, Stream::new(false, None));
        self.waiting += 1;
        self.inbound_open += 1;
        Ok(Incoming { opened: true, ..Incoming::ignored(id) })
    }

    /// A second FIN, or one for an unknown stream, is ignored.
    fn handle_fin(&mut self, id: u32) -> Incoming<T> {
        let mut incoming = Incoming::ignored(id);
        if let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.received_fin) {
            stream.received_fin = true;
            incoming.tag = stream.tag;
            incoming.finished = true;
            if stream.sent_fin {
                incoming.closed = true;
                self.release(id);
            }
        }
        incoming
    }

    fn handle_push(&mut self, id: u32, length: u16) -> Incoming<T> {
        let mut incoming = Incoming::ignored(id);
        if length == 0 {
            return incoming;
        }
        let version = self.config.version;
        match self.streams.get_mut(&id).filter(|stream| !stream.received_fin && !stream.broken) {
            Some(stream) => {
                incoming.tag = stream.tag;
                match stream.receive(id, version, length) {
                    Ok(()) => {
                        self.buffered += u64::from(length);
                        incoming.payload = Payload::Deliver(length);
                    }
                    Err(fault) => {
                        incoming.fault = Some(fault);
                        incoming.payload = Payload::Discard(length);
                    }
                }
            }
            None => incoming.payload = Payload::Discard(length),
        }
        incoming
    }
}
