//! What a received header means: the answer to each frame, in the order of arrival (dmsg-wire 5.3-5.6).

use super::control::Event;
use super::{Output, Ping, Session, Timer};
use crate::yamux::{Flags, GO_AWAY_NORMAL, Header, Kind, Stream, Violation};
use alloc::boxed::Box;

/// What the caller does about one frame. Facts of one frame hold in the order of the fields: a stream opens, then takes
/// the payload, then finishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incoming<T> {
    /// The id in the header; 0 on ping and go-away.
    pub stream: u32,
    /// The owner's tag; none for unknown streams and those not accepted yet.
    pub tag: Option<T>,
    /// The peer opened this stream: answer with [`Session::accept`] or [`Session::reset`].
    pub opened: bool,
    /// The peer acknowledged a stream of ours.
    pub acked: bool,
    /// Bytes by which our credit on the stream grew.
    pub credit: u32,
    /// What to do with the payload behind the header.
    pub payload: Payload,
    /// The peer's direction ends behind this payload.
    pub finished: bool,
    /// The peer reset the stream, which is forgotten; `tag` is its last tag.
    pub reset: bool,
    /// Both directions ended: the stream is forgotten, `tag` is its last tag. The payload is still to be delivered.
    pub closed: bool,
}

/// What to do with the payload behind a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// There is none.
    None,
    /// So many bytes are the stream's; report them with [`Session::consumed`] once they left.
    Deliver(u32),
    /// So many bytes belong to no stream: drop them.
    Discard(u32),
}

impl<T> Incoming<T> {
    /// The answer to a frame that changes nothing; its payload is dropped.
    const fn ignored(header: &Header) -> Self {
        Self {
            stream: header.stream,
            tag: None,
            opened: false,
            acked: false,
            credit: 0,
            payload: match header.payload_len() {
                0 => Payload::None,
                length => Payload::Discard(length),
            },
            finished: false,
            reset: false,
            closed: false,
        }
    }
}

impl<T: Copy> Session<T> {
    /// Takes the next header. Its payload, if any, follows the answer.
    ///
    /// # Errors
    /// A breach that ends the session: send [`Violation::go_away`], if any, and close the connection.
    #[inline]
    pub fn handle_header(&mut self, now: u64, header: &Header) -> Result<Incoming<T>, Violation> {
        self.last_byte_at = now;
        match header.kind {
            Kind::Data | Kind::WindowUpdate if header.flags == Flags::NONE => {
                match self.streams.get_mut(&header.stream) {
                    Some(stream) => apply(stream, header),
                    None => Ok(Incoming::ignored(header)),
                }
            }
            Kind::Data | Kind::WindowUpdate => self.handle_flags(now, header),
            Kind::Ping => self.handle_ping(now, header).map(|()| Incoming::ignored(header)),
            Kind::GoAway => self.handle_go_away(header.length).map(|()| Incoming::ignored(header)),
        }
    }

    /// Notes that bytes arrived, whole header or not: life that excuses a late ping answer.
    #[inline]
    pub const fn handle_bytes_received(&mut self, now: u64) {
        self.last_byte_at = now;
    }

    /// A frame of a stream that carries flags: SYN, then RST, then its content, then ACK and FIN.
    fn handle_flags(&mut self, now: u64, header: &Header) -> Result<Incoming<T>, Violation> {
        let (id, flags) = (header.stream, header.flags);
        let opened = flags.contains(Flags::SYN) && self.handle_syn(now, header)?;
        if flags.contains(Flags::RST) {
            let Some(stream) = self.remove(id) else { return Ok(Incoming::ignored(header)) };
            return Ok(Incoming { tag: stream.tag, reset: true, ..Incoming::ignored(header) });
        }
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(Incoming::ignored(header)) };
        let mut incoming = apply(stream, header)?;
        incoming.opened = opened;
        if flags.contains(Flags::ACK) && stream.local && !stream.established {
            stream.established = true;
            incoming.acked = true;
            self.outbound_waiting -= 1;
            if stream.sent_fin {
                // The time to answer our FIN counts from the moment the peer is known to have the stream.
                stream.finished_at_ns = now;
                self.set_timer(id, Timer::Close);
            } else {
                self.set_timer(id, Timer::None);
            }
        }
        if flags.contains(Flags::FIN) {
            self.handle_fin(&mut incoming)?;
        }
        Ok(incoming)
    }

    /// A new stream of the peer: true when it exists now, false when it was refused (RST is queued).
    fn handle_syn(&mut self, now: u64, header: &Header) -> Result<bool, Violation> {
        let id = header.stream;
        if id == 0 {
            return Err(Violation::StreamZero);
        }
        if self.streams.contains_key(&id) {
            return Err(Violation::StreamInUse { stream: id });
        }
        if header.flags.contains(Flags::RST) {
            return Ok(false);
        }
        // Checked before every new stream, because each one may end in a reset that the peer does not read.
        // As many as may exist at a time can end by our doing at once; more than these are the peer's.
        let replies_max = self.config.pending_replies_max.saturating_add(self.config.streams_max);
        check_replies(self.resets.len(), replies_max)?;
        if self.local_going_away
            || self.inbound_open >= self.config.streams_max
            || self.inbound_waiting >= self.config.accept_backlog
        {
            self.resets.push_back(id);
            return Ok(false);
        }
        self.streams.insert(id, Box::new(Stream::new(false, now, None)));
        self.inbound_open += 1;
        self.inbound_waiting += 1;
        Ok(true)
    }

    /// The peer's direction ends; with ours ended before, the stream does.
    fn handle_fin(&mut self, incoming: &mut Incoming<T>) -> Result<(), Violation> {
        let id = incoming.stream;
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        if stream.received_fin {
            return Err(Violation::UnexpectedFin { stream: id });
        }
        stream.received_fin = true;
        incoming.finished = true;
        if stream.sent_fin {
            incoming.closed = true;
            self.remove(id);
        } else if stream.output == Output::Update {
            // Nothing more will come that would need the credit.
            stream.pending_credit = 0;
            self.set_output(id, Output::None);
        }
        Ok(())
    }

    fn handle_ping(&mut self, now: u64, header: &Header) -> Result<(), Violation> {
        if header.flags.contains(Flags::SYN) {
            check_replies(self.pongs.len(), self.config.pending_replies_max)?;
            self.pongs.push_back(header.length);
            return Ok(());
        }
        // Answers come in order: those of older pings will not come any more. Unsent pings cannot be answered.
        let sent = self.pings.len() - self.pings_unsent;
        let Some(index) = self.pings.iter().take(sent).position(|ping| ping.value == header.length) else {
            return Ok(());
        };
        for Ping { value, asked_at } in self.pings.drain(..=index) {
            if value == header.length {
                let rtt_ns = now.saturating_sub(asked_at);
                Self::push_event(&mut self.events, Event::PingAnswered { value, rtt_ns });
            }
        }
        Ok(())
    }

    fn handle_go_away(&mut self, code: u32) -> Result<(), Violation> {
        if code != GO_AWAY_NORMAL {
            return Err(Violation::PeerWentAway { code });
        }
        if !self.peer_going_away {
            self.peer_going_away = true;
            Self::push_event(&mut self.events, Event::GoAwayReceived { code });
        }
        Ok(())
    }
}

/// The content of a frame for a stream that exists: credit or payload.
#[inline]
fn apply<T: Copy>(stream: &mut Stream<T>, header: &Header) -> Result<Incoming<T>, Violation> {
    let mut incoming = Incoming { tag: stream.tag, ..Incoming::ignored(header) };
    if header.kind == Kind::WindowUpdate {
        let credit = stream.send_credit.saturating_add(header.length);
        incoming.credit = credit - stream.send_credit;
        stream.send_credit = credit;
        return Ok(incoming);
    }
    let Some(credit) = stream.receive_credit.checked_sub(header.length) else {
        return Err(Violation::WindowExceeded {
            stream: header.stream,
            length: header.length,
            credit: stream.receive_credit,
        });
    };
    stream.receive_credit = credit;
    // Data behind the peer's own FIN was announced as not coming; it stays discarded.
    if header.length > 0 && !stream.received_fin {
        stream.unconsumed = stream.unconsumed.saturating_add(header.length);
        incoming.payload = Payload::Deliver(header.length);
    }
    Ok(incoming)
}

/// Refuses one more answer when as many as allowed wait.
fn check_replies(waiting: usize, max: u32) -> Result<(), Violation> {
    match u32::try_from(waiting) {
        Ok(pending) if pending < max => Ok(()),
        Ok(pending) => Err(Violation::RepliesUnread { pending }),
        Err(_) => Err(Violation::RepliesUnread { pending: u32::MAX }),
    }
}
