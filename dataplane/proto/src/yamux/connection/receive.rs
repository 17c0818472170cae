//! Received bytes into stream buffers and events.

use super::{Connection, ConnectionEvent};
use crate::yamux::{Event, Header, Incoming, Payload, Piece, Violation};

impl Connection {
    /// Takes received bytes, cut anywhere. A breach ends the connection with [`ConnectionEvent::Closed`]; bytes behind it
    /// are ignored.
    pub fn push(&mut self, now: u64, bytes: &[u8]) {
        self.now = self.now.max(now);
        if self.closed.is_some() {
            return;
        }
        if let Err(violation) = self.push_pieces(now, bytes) {
            self.end(violation.into());
        }
        while let Some(event) = self.session.poll_event() {
            self.events.push_back(match event {
                Event::PingAnswered { value, rtt_ns } => ConnectionEvent::PingAnswered { value, rtt_ns },
                Event::GoAwayReceived { .. } => ConnectionEvent::GoAway,
            });
        }
    }

    fn push_pieces(&mut self, now: u64, bytes: &[u8]) -> Result<(), Violation> {
        self.session.handle_bytes_received(now);
        let mut at = 0;
        while let Some(piece) = self.cutter.next(bytes, &mut at)? {
            match piece {
                Piece::Header { header, .. } => self.take_header(now, &header)?,
                Piece::Payload { range, .. } => self.take_payload(bytes.get(range).unwrap_or_default()),
            }
        }
        Ok(())
    }

    fn take_header(&mut self, now: u64, header: &Header) -> Result<(), Violation> {
        let incoming = self.session.handle_header(now, header)?;
        let id = incoming.stream;
        if incoming.opened {
            self.insert_channel(id);
            self.backlog.push_back(id);
            self.events.push_back(ConnectionEvent::Opened(id));
        }
        self.receiving = match incoming.payload {
            Payload::Deliver(_) => Some(id),
            Payload::Discard(_) | Payload::None => None,
        };
        if incoming.acked {
            self.events.push_back(ConnectionEvent::Acked(id));
        }
        if incoming.credit > 0 {
            self.make_ready(id);
        }
        if incoming.reset {
            self.lose(id);
        } else {
            self.take_end(&incoming);
        }
        Ok(())
    }

    /// The peer's FIN. Payload of the same frame still comes, and is readable before the end.
    fn take_end(&mut self, incoming: &Incoming<()>) {
        let id = incoming.stream;
        if !incoming.finished {
            return;
        }
        if let Some(channel) = self.channels.get_mut(&id) {
            channel.peer_finished = true;
            if !channel.discards {
                self.events.push_back(ConnectionEvent::Finished(id));
            }
            self.forget_if_over(id);
        }
    }

    fn take_payload(&mut self, bytes: &[u8]) {
        let Some(id) = self.receiving else { return };
        let Some(channel) = self.channels.get_mut(&id) else { return };
        if channel.discards {
            // Below the length of one frame.
            self.session.consumed(id, bytes.len() as u32);
            return;
        }
        channel.received.extend(bytes);
        if !channel.readable_told {
            channel.readable_told = true;
            self.events.push_back(ConnectionEvent::Readable(id));
        }
    }
}
