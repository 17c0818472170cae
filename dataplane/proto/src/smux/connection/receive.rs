//! Received bytes into stream buffers and events.

use super::{Channel, Connection, ConnectionEvent};
use crate::smux::{Incoming, Payload, Piece, Violation};

impl Connection {
    /// Takes received bytes, cut anywhere. A breach ends the connection with [`ConnectionEvent::Closed`]; bytes behind it
    /// are ignored.
    pub fn push(&mut self, now: u64, bytes: &[u8]) {
        if self.closed.is_some() {
            return;
        }
        self.session.handle_bytes_received(now);
        if let Err(violation) = self.push_pieces(now, bytes) {
            self.end(violation.into());
        }
    }

    fn push_pieces(&mut self, now: u64, bytes: &[u8]) -> Result<(), Violation> {
        let mut at = 0;
        while let Some(piece) = self.cutter.next(bytes, &mut at)? {
            match piece {
                Piece::Header(header) => {
                    let incoming = self.session.handle_header(now, &header)?;
                    self.take_incoming(&incoming);
                }
                Piece::Update { stream, update } => {
                    let incoming = self.session.handle_update(now, stream, update);
                    self.take_incoming(&incoming);
                }
                Piece::Payload { range, .. } => self.take_payload(bytes.get(range).unwrap_or_default()),
            }
        }
        Ok(())
    }

    fn take_incoming(&mut self, incoming: &Incoming<()>) {
        let id = incoming.stream;
        if incoming.opened {
            // A peer may use an id again while the bytes of its former stream were not read yet; those are lost.
            self.forget(id);
            self.channels.insert(id, Channel::default());
            self.backlog.push_back(id);
            self.events.push_back(ConnectionEvent::Opened(id));
        }
        self.receiving = match incoming.payload {
            Payload::Deliver(_) => Some(id),
            Payload::Discard(_) | Payload::None => None,
        };
        if let Some(fault) = incoming.fault {
            self.events.push_back(ConnectionEvent::Broken(id, fault));
            return self.reset(id);
        }
        if incoming.credit > 0 {
            self.make_ready(id);
        }
        if incoming.finished
            && let Some(channel) = self.channels.get_mut(&id)
        {
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
