//! Queued bytes into frames: control frames first, then one frame of each stream in turn.

use alloc::vec::Vec;

use super::{Connection, ConnectionEvent};
use crate::smux::{HEADER_LEN, Header, UPDATE_LEN};
use crate::yamux::SEND_QUEUE_MAX;

/// What became of a stream's turn.
enum Turn {
    /// It has more to send and may.
    Again,
    /// It has nothing more to send, or waits for credit.
    Done,
    /// What it has does not fit any more.
    NoRoom,
}

/// The longest control frame: an update.
const CONTROL_LEN_MAX: usize = HEADER_LEN + UPDATE_LEN;

impl Connection {
    /// Appends up to `max` bytes to send and returns how many. Call until it returns 0. `max` below 16 moves no control
    /// frames.
    pub fn poll_transmit(&mut self, out: &mut Vec<u8>, max: usize) -> usize {
        let start = out.len();
        if self.closed.is_some() {
            return 0;
        }
        let end = start.saturating_add(max);
        while end - out.len() >= CONTROL_LEN_MAX {
            let Some(control) = self.session.poll_control() else { break };
            control.encode_to(out);
        }
        while let Some(id) = self.ready.pop_front() {
            match self.take_turn(id, out, end) {
                Turn::Again => self.ready.push_back(id),
                Turn::Done => {
                    if let Some(channel) = self.channels.get_mut(&id) {
                        channel.queued = false;
                    }
                    self.forget_if_over(id);
                }
                Turn::NoRoom => {
                    self.ready.push_front(id);
                    break;
                }
            }
        }
        out.len() - start
    }

    /// Sends one frame of a stream, and its FIN if that was the last of its bytes.
    fn take_turn(&mut self, id: u32, out: &mut Vec<u8>, end: usize) -> Turn {
        let Some(channel) = self.channels.get_mut(&id) else { return Turn::Done };
        let version = self.session.config().version;
        if !channel.unsent.is_empty() {
            let room = (end - out.len()).saturating_sub(HEADER_LEN);
            if room == 0 || self.session.is_syn_queued(id) {
                return Turn::NoRoom;
            }
            let want = u16::try_from(channel.unsent.len().min(room)).unwrap_or(u16::MAX);
            let granted = self.session.reserve(id, want);
            if granted == 0 {
                return Turn::Done;
            }
            out.extend_from_slice(&Header::push(version, id, granted).encode());
            out.extend(channel.unsent.drain(..usize::from(granted)));
            if channel.write_refused && channel.unsent.len() <= SEND_QUEUE_MAX / 2 {
                channel.write_refused = false;
                self.events.push_back(ConnectionEvent::Writable(id));
            }
            if !channel.unsent.is_empty() {
                return Turn::Again;
            }
        }
        if channel.finish_wanted && !channel.finish_sent {
            if end - out.len() < HEADER_LEN {
                return Turn::NoRoom;
            }
            channel.finish_sent = true;
            if let Some(header) = self.session.finish(id) {
                out.extend_from_slice(&header.encode());
            }
        }
        Turn::Done
    }
}
