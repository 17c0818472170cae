//! What the owner asks of a session: open, accept, send, finish, reset, return credit (dmsg-wire 5.3-5.6).

use super::{Output, Ping, Session, Timer};
use crate::yamux::{Flags, Header, OpenError, Stream, UPDATE_THRESHOLD};
use alloc::boxed::Box;

/// Own pings that may wait for an answer; further requests share the newest one.
const PINGS_MAX: usize = 8;

impl<T: Copy> Session<T> {
    /// Opens a stream and queues its SYN. Data may follow once `poll_control` gave the SYN out, without waiting for the
    /// ACK (dmsg-wire 5.3).
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(&mut self, now: u64, tag: T) -> Result<u32, OpenError> {
        let id = self.insert_own(now, tag)?;
        self.set_output(id, Output::Handshake);
        Ok(id)
    }

    /// As [`open`](Self::open), but the caller sends the SYN header itself, in order with the stream's first data.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_with_header(&mut self, now: u64, tag: T) -> Result<(u32, Header), OpenError> {
        let id = self.insert_own(now, tag)?;
        Ok((id, Header::window_update(id, 0).with_flags(Flags::SYN)))
    }

    fn insert_own(&mut self, now: u64, tag: T) -> Result<u32, OpenError> {
        self.may_open()?;
        let id = self.free_id()?;
        self.next_id = id + 2;
        self.streams.insert(id, Box::new(Stream::new(true, now, Some(tag))));
        self.outbound_waiting += 1;
        self.set_timer(id, Timer::Open);
        Ok(id)
    }

    /// Takes a stream of the peer and queues its ACK. On a stream that was accepted before it only replaces the tag.
    pub fn accept(&mut self, id: u32, tag: T) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.tag = Some(tag);
        if !stream.local && !stream.established {
            stream.established = true;
            self.inbound_waiting -= 1;
            self.set_output(id, Output::Handshake);
        }
    }

    /// Spends up to `want` bytes of our credit and returns how many: send exactly these as one data frame. 0: no credit,
    /// an unknown or finished stream, one not accepted yet, or one whose SYN is still queued.
    #[inline]
    pub fn reserve(&mut self, id: u32, want: u32) -> u32 {
        let Some(stream) = self.streams.get_mut(&id) else { return 0 };
        let may_send = if stream.local { stream.output != Output::Handshake } else { stream.established };
        if stream.sent_fin || !may_send {
            return 0;
        }
        let granted = want.min(stream.send_credit);
        stream.send_credit -= granted;
        granted
    }

    /// Ends our direction: the FIN header, to be sent behind the stream's data. Carries a SYN or ACK that was still
    /// queued. None for unknown streams and those finished before. With the peer's FIN here already, the stream is
    /// forgotten at once.
    pub fn finish(&mut self, now: u64, id: u32) -> Option<Header> {
        let stream = self.streams.get_mut(&id).filter(|stream| !stream.sent_fin)?;
        stream.sent_fin = true;
        stream.finished_at_ns = now;
        let mut header = Header::window_update(id, 0).with_flags(Flags::FIN);
        if stream.local {
            if stream.output == Output::Handshake {
                header = header.with_flags(Flags::SYN);
            }
        } else if stream.output == Output::Handshake || !stream.established {
            header = header.with_flags(Flags::ACK);
            self.inbound_waiting -= u32::from(!stream.established);
            stream.established = true;
        }
        let (established, received_fin) = (stream.established, stream.received_fin);
        if stream.output == Output::Handshake {
            header.length = stream.announce_credit();
            self.set_output(id, Output::None);
        }
        if received_fin {
            self.remove(id);
        } else if established {
            self.set_timer(id, Timer::Close);
        }
        Some(header)
    }

    /// Ends a stream at once: queues RST, unless the peer never heard of the stream, and forgets it. Returns its tag.
    /// Frames that still arrive for it are answered with [`Payload::Discard`](super::Payload::Discard).
    pub fn reset(&mut self, id: u32) -> Option<T> {
        let stream = self.remove(id)?;
        if !stream.local {
            self.resets.push_back(id);
        } else if stream.output != Output::Handshake {
            self.own_resets.push_back(id);
        }
        stream.tag
    }

    /// The owner is done with `len` delivered bytes. Credit goes back to the peer once half a window is due
    /// (dmsg-wire 5.4), one window update per stream at a time.
    #[inline]
    pub fn consumed(&mut self, id: u32, len: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        debug_assert!(len <= stream.unconsumed, "consumed more than was delivered");
        let len = len.min(stream.unconsumed);
        stream.unconsumed -= len;
        if stream.received_fin {
            return;
        }
        stream.add_credit(len);
        if stream.pending_credit >= UPDATE_THRESHOLD && stream.may_announce() {
            self.set_output(id, Output::Update);
        }
    }

    /// Raises the peer's credit by `len` bytes beyond what it consumed; announced at once.
    pub fn grant_extra(&mut self, id: u32, len: u32) {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.received_fin) else { return };
        stream.add_credit(len);
        if stream.pending_credit > 0 && stream.may_announce() {
            self.set_output(id, Output::Update);
        }
    }

    /// Asks for a sign of life; the answer comes as [`Event::PingAnswered`](super::Event::PingAnswered) with the returned
    /// value. Values count up from 0 (dmsg-wire 5.6). While 8 pings wait, the newest of them serves this request too.
    pub fn ping(&mut self, now: u64) -> u32 {
        if let Some(newest) = self.pings.back()
            && self.pings.len() >= PINGS_MAX
        {
            return newest.value;
        }
        let value = self.next_ping;
        self.next_ping = value.wrapping_add(1);
        self.pings.push_back(Ping { value, asked_at: now });
        self.pings_unsent += 1;
        value
    }

    /// Queues a go-away and refuses further streams of the peer; we may still open our own (dmsg-wire 5.6).
    pub const fn go_away(&mut self, code: u32) {
        self.local_going_away = true;
        self.go_away_pending = Some(code);
    }
}
