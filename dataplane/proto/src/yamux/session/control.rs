//! What a session wants sent or known: control headers in order of urgency, and events.

use alloc::collections::VecDeque;

use super::{Output, Session};
use crate::yamux::{Flags, Header};

/// Events that wait for `poll_event`; when full the oldest is dropped.
const EVENTS_MAX: usize = 16;

/// News of the session as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Event {
    /// The peer answered a ping.
    PingAnswered {
        /// The ping's value, as [`Session::ping`] returned it.
        value: u32,
        /// From the request to the answer.
        rtt_ns: u64,
    },
    /// The peer takes no new streams; existing ones go on (dmsg-wire 5.6). Comes once.
    GoAwayReceived {
        /// Always 0: other codes end the session as [`Violation::PeerWentAway`](crate::yamux::Violation::PeerWentAway).
        code: u32,
    },
}

impl<T: Copy> Session<T> {
    /// The next control header to send, in this order: ping answers, RST, go-away, SYN and ACK, window updates, pings.
    /// What waits here is bounded: one entry per stream, and `pending_replies_max` answers of each kind.
    pub fn poll_control(&mut self) -> Option<Header> {
        if let Some(value) = self.pongs.pop_front() {
            return Some(Header::pong(value));
        }
        if let Some(id) = self.resets.pop_front().or_else(|| self.own_resets.pop_front()) {
            return Some(Header::window_update(id, 0).with_flags(Flags::RST));
        }
        if let Some(code) = self.go_away_pending.take() {
            return Some(Header::go_away(code));
        }
        if let Some(id) = self.handshakes.first().or(self.updates.first()) {
            return self.take_update(id);
        }
        let unsent = self.pings.len() - self.pings_unsent;
        let ping = self.pings.get(unsent)?;
        self.pings_unsent -= 1;
        Some(Header::ping(ping.value))
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The window update of a stream in one of the output lists, with its SYN or ACK if that is due.
    fn take_update(&mut self, id: u32) -> Option<Header> {
        let stream = self.streams.get_mut(&id)?;
        let flags = match (stream.output, stream.local) {
            (Output::Handshake, true) => Flags::SYN,
            (Output::Handshake, false) => Flags::ACK,
            (Output::Update | Output::None, _) => Flags::NONE,
        };
        let header = Header::window_update(id, stream.announce_credit()).with_flags(flags);
        self.set_output(id, Output::None);
        Some(header)
    }

    pub(super) fn push_event(events: &mut VecDeque<Event>, event: Event) {
        if events.len() >= EVENTS_MAX {
            events.pop_front();
        }
        events.push_back(event);
    }
}
