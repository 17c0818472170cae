//! The streams of one connection: buffers and wakers around [`yamux::Session`], which decides.
//!
//! In: bytes from the server ([`Mux::receive`], called by the driver) and the wishes of stream owners. Out: bytes for
//! the server ([`Mux::transmit`]) and wake-ups. Everything here runs under the connection's lock, so it moves whole
//! buffers by swapping them and copies at most [`LOCKED_BYTES`] at a time. No I/O, no clock, no await.
//!
//! The driver's side is here, the owners' side in [`owners`]. Full queues: a writer waits ([`Mux::poll_room`]); a reader that does not read uses up the credit it granted, and
//! the sender waits; streams beyond the session's limit are reset by the session itself.

mod owners;

use std::collections::VecDeque;
use std::task::Waker;

use ringwire_proto::yamux::{self, Cutter, Header, Incoming, Payload, Piece, Session, Timeout, Violation};

use super::buffers::{Broken, Finish, Stream};
use super::error::{Disconnected, PeerFault};
use super::limits::{LOCKED_BYTES, STREAM_QUEUE_BYTES, STREAM_TURN_BYTES, WRITE_BYTES};

/// Index of a stream in its connection. Stays taken until its owner lets go of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Slot(u32);

/// All streams of one connection.
pub(super) struct Mux {
    session: Session<Slot>,
    cutter: Cutter,
    /// Where the payload of the frame in progress goes.
    payload: Destination,
    streams: Vec<Option<Stream>>,
    free: Vec<Slot>,
    /// Streams with something to send, in turn.
    ready: VecDeque<Slot>,
    /// A control header taken from the session early, to see whether there is one.
    control: Option<Header>,
    /// Streams the server opened that nobody serves yet.
    opened: VecDeque<Slot>,
    /// Wakers to call once the lock is free.
    wakes: Vec<Waker>,
    driver: Option<Waker>,
    driver_needed: bool,
    driver_blocked: bool,
    closing: bool,
    ended: Option<Disconnected>,
    /// One data frame per Noise frame, as the Go client writes.
    go_frames: bool,
}

/// Where payload bytes go.
#[derive(Clone, Copy)]
enum Destination {
    Nowhere,
    Stream { slot: Slot, finished: bool },
}

impl Mux {
    pub(super) fn new(config: yamux::Config, go_frames: bool) -> Self {
        Self {
            session: Session::new(config, 0),
            cutter: Cutter::default(),
            payload: Destination::Nowhere,
            streams: Vec::new(),
            free: Vec::new(),
            ready: VecDeque::new(),
            control: None,
            opened: VecDeque::new(),
            wakes: Vec::new(),
            driver: None,
            driver_needed: false,
            driver_blocked: false,
            closing: false,
            ended: None,
            go_frames,
        }
    }

    // The driver's side.

    /// Takes bytes that arrived. An error ends the connection; the go-away to send is among the next bytes out.
    pub(super) fn receive(&mut self, now_ns: u64, input: &[u8]) -> Result<(), Disconnected> {
        debug_assert!(input.len() <= LOCKED_BYTES, "a longer input holds the lock for too long");
        self.session.handle_bytes_received(now_ns);
        let mut at = 0;
        loop {
            match self.cutter.next(input, &mut at) {
                Ok(None) => {
                    // Go-away 0 shows at the next open, answered pings need no action.
                    while self.session.poll_event().is_some() {}
                    self.look_for_control();
                    return Ok(());
                }
                Ok(Some(Piece::Header { header, .. })) => match self.session.handle_header(now_ns, &header) {
                    Ok(incoming) => self.apply(&incoming),
                    Err(Violation::PeerWentAway { code }) => return Err(Disconnected::GoAway(code)),
                    Err(violation) => {
                        self.control = violation.go_away().or(self.control.take());
                        return Err(fault(&violation));
                    }
                },
                Ok(Some(Piece::Payload { range, last })) => {
                    self.deliver(input.get(range).unwrap_or_default(), last);
                }
                Err(error) => return Err(fault(&error)),
            }
        }
    }

    /// Appends bytes to send, at most about [`LOCKED_BYTES`], and keeps `out` within [`WRITE_BYTES`]. Says whether
    /// there may be more.
    pub(super) fn transmit(&mut self, now_ns: u64, out: &mut Vec<u8>) -> bool {
        let end = WRITE_BYTES.min(out.len() + LOCKED_BYTES);
        while out.len() + yamux::HEADER_LEN <= end {
            match self.control.take().or_else(|| self.session.poll_control()) {
                Some(header) => out.extend_from_slice(&header.encode()),
                None => break,
            }
        }
        while out.len() + yamux::HEADER_LEN < end {
            let Some(slot) = self.ready.pop_front() else {
                self.driver_needed = false;
                return false;
            };
            if self.transmit_stream(now_ns, slot, out, end) {
                self.ready.push_back(slot);
            }
        }
        true
    }

    /// Handles timers that are due. Returns when to call again.
    pub(super) fn handle_timeout(&mut self, now_ns: u64) -> Result<Option<u64>, Disconnected> {
        while let Some(timeout) = self.session.handle_timeout(now_ns) {
            match timeout {
                Timeout::StreamTimedOut { tag: Some(slot), .. } => self.forget(slot, Some(Broken::TimedOut)),
                Timeout::StreamTimedOut { tag: None, .. } => {}
                Timeout::SessionDead(reason) => return Err(Disconnected::Silent(reason.to_string())),
            }
        }
        self.look_for_control();
        Ok(self.session.next_timeout())
    }

    /// Asks the peer's multiplexer for a sign of life; all of them answer.
    pub(super) fn ping(&mut self, now_ns: u64) {
        self.session.ping(now_ns);
        self.look_for_control();
    }

    pub(super) fn next_timeout_ns(&self) -> Option<u64> {
        self.session.next_timeout()
    }

    /// A stream the server opened since the last call. It belongs to the caller, who must [`Self::release`] it.
    pub(super) fn poll_opened(&mut self) -> Option<Slot> {
        self.opened.pop_front()
    }

    /// Moves the wakers to call into `out`.
    pub(super) fn take_wakes(&mut self, out: &mut Vec<Waker>) {
        out.append(&mut self.wakes);
    }

    /// Puts the driver to sleep unless there is work for it. A `blocked` driver, which cannot send now, is woken for
    /// the end of the connection only.
    pub(super) fn sleep(&mut self, waker: &Waker, blocked: bool) -> bool {
        if self.driver_needed && !blocked {
            return false;
        }
        self.driver_blocked = blocked;
        match &mut self.driver {
            Some(known) => known.clone_from(waker),
            None => self.driver = Some(waker.clone()),
        }
        true
    }

    /// The driver to wake, when there is work for it and it sleeps.
    pub(super) fn driver_wake(&mut self) -> Option<Waker> {
        let wanted = if self.driver_blocked { self.closing } else { self.driver_needed };
        if wanted { self.driver.take() } else { None }
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing
    }

    /// Everything that was written is handed over.
    pub(super) fn is_drained(&self) -> bool {
        self.streams.iter().flatten().all(|stream| !stream.alive || !stream.has_work())
    }

    /// Ends everything: all owners are woken and learn `reason` once they have read what arrived.
    pub(super) fn end(&mut self, reason: Disconnected) {
        self.ended.get_or_insert(reason);
        self.opened.clear();
        for stream in self.streams.iter_mut().flatten() {
            stream.alive = false;
            stream.drop_queue();
            self.wakes.extend(stream.reader.take());
            self.wakes.extend(stream.writer.take());
        }
    }

    pub(super) fn ended(&self) -> Option<Disconnected> {
        self.ended.clone()
    }

    // Details.

    fn apply(&mut self, incoming: &Incoming<Slot>) {
        self.payload = Destination::Nowhere;
        let slot = if incoming.opened {
            let slot = self.insert();
            self.stream_mut(slot).id = incoming.stream;
            self.session.accept(incoming.stream, slot);
            self.opened.push_back(slot);
            slot
        } else {
            match incoming.tag {
                Some(slot) => slot,
                None => return,
            }
        };
        if incoming.credit > 0 && self.stream_mut(slot).has_work() {
            self.schedule(slot);
        }
        let with_payload = matches!(incoming.payload, Payload::Deliver(length) if length > 0);
        if with_payload {
            self.payload = Destination::Stream { slot, finished: incoming.finished };
        } else if incoming.finished {
            self.receive_end(slot);
        }
        if incoming.reset {
            self.forget(slot, Some(Broken::Reset));
        } else if incoming.closed {
            // With payload outstanding the buffers stay reachable through the destination.
            self.stream_mut(slot).alive = false;
            if !with_payload {
                self.remove_unowned(slot);
            }
        }
    }

    fn deliver(&mut self, bytes: &[u8], last: bool) {
        let Destination::Stream { slot, finished } = self.payload else { return };
        let stream = self.stream_mut(slot);
        let (id, alive) = (stream.id, stream.alive);
        if stream.owned {
            stream.received.extend_from_slice(bytes);
            let reader = stream.reader.take();
            self.wakes.extend(reader);
        } else if alive {
            // Nobody reads any more, but the sender's end must still come through.
            self.session.consumed(id, u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        }
        if last {
            self.payload = Destination::Nowhere;
            if finished {
                self.receive_end(slot);
            }
            self.remove_unowned(slot);
        }
    }

    fn receive_end(&mut self, slot: Slot) {
        let stream = self.stream_mut(slot);
        stream.received_end = true;
        let reader = stream.reader.take();
        self.wakes.extend(reader);
    }

    /// The session knows the stream no longer.
    fn forget(&mut self, slot: Slot, broken: Option<Broken>) {
        let stream = self.stream_mut(slot);
        stream.alive = false;
        stream.broken = stream.broken.or(broken);
        stream.drop_queue();
        let wakers = [stream.reader.take(), stream.writer.take()];
        self.wakes.extend(wakers.into_iter().flatten());
        self.remove_unowned(slot);
    }

    /// Sends of one stream until its turn, its credit or the room is used up. Says whether it has more right now.
    fn transmit_stream(&mut self, now_ns: u64, slot: Slot, out: &mut Vec<u8>, end: usize) -> bool {
        let go_frames = self.go_frames;
        let Some(Some(stream)) = self.streams.get_mut(slot.0 as usize) else { return false };
        stream.scheduled = false;
        if !stream.alive {
            return false;
        }
        let turn_end = end.min(out.len() + STREAM_TURN_BYTES);
        while stream.queued > 0 {
            let Some(room) = turn_end.checked_sub(out.len() + yamux::HEADER_LEN).filter(|room| *room > 0)
            else {
                stream.scheduled = true;
                break;
            };
            let want = if go_frames { stream.frame_left().min(room) } else { stream.queued.min(room) };
            let granted = self.session.reserve(stream.id, u32::try_from(want).unwrap_or(u32::MAX));
            if granted == 0 {
                break;
            }
            out.extend_from_slice(&Header::data(stream.id, granted).encode());
            stream.take(granted as usize, out);
        }
        if stream.queued == 0 && stream.finish == Finish::Wanted {
            stream.finish = Finish::Sent;
            if let Some(header) = self.session.finish(now_ns, stream.id) {
                out.extend_from_slice(&header.encode());
            }
        }
        if stream.queued <= STREAM_QUEUE_BYTES / 2 {
            self.wakes.extend(stream.writer.take());
        }
        let more = stream.scheduled;
        if self.session.stream(stream.id).is_none() {
            stream.alive = false;
            self.remove_unowned(slot);
        }
        more
    }

    fn schedule(&mut self, slot: Slot) {
        let stream = self.stream_mut(slot);
        if !stream.scheduled && stream.alive {
            stream.scheduled = true;
            self.ready.push_back(slot);
            self.driver_needed = true;
        }
    }

    fn look_for_control(&mut self) {
        if self.control.is_none() {
            self.control = self.session.poll_control();
        }
        self.driver_needed |= self.control.is_some();
    }

    fn insert(&mut self) -> Slot {
        let stream = Some(Stream::new());
        match self.free.pop() {
            Some(slot) => {
                self.streams[slot.0 as usize] = stream;
                slot
            }
            None => {
                // The session limits how many streams there are, far below 2^32.
                let slot = Slot(u32::try_from(self.streams.len()).unwrap_or(u32::MAX));
                self.streams.push(stream);
                slot
            }
        }
    }

    fn remove_unowned(&mut self, slot: Slot) {
        let waits = matches!(self.payload, Destination::Stream { slot: busy, .. } if busy == slot);
        if let Some(Some(stream)) = self.streams.get(slot.0 as usize)
            && !stream.alive
            && !stream.owned
            && !waits
        {
            self.remove(slot);
        }
    }

    fn remove(&mut self, slot: Slot) {
        if let Some(place) = self.streams.get_mut(slot.0 as usize)
            && place.take().is_some()
        {
            self.ready.retain(|ready| *ready != slot);
            self.free.push(slot);
        }
    }

    #[allow(
        clippy::expect_used,
        reason = "a slot is removed only when neither its owner, the session nor a payload refers to it"
    )]
    fn stream_mut(&mut self, slot: Slot) -> &mut Stream {
        self.streams
            .get_mut(slot.0 as usize)
            .and_then(Option::as_mut)
            .expect("slots outlive what refers to them")
    }
}

fn fault(reason: &dyn std::fmt::Display) -> Disconnected {
    Disconnected::Fault(PeerFault::Multiplexer(reason.to_string()))
}

#[cfg(test)]
mod tests;
