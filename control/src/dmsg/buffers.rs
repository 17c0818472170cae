//! The buffers of one stream: what waits to be sent, what arrived, who waits for either.
//!
//! Pure data under the connection's lock; [`super::mux::Mux`] decides what happens to it.

use std::collections::VecDeque;
use std::task::Waker;

use super::limits::{BUFFER_KEEP_BYTES, STREAM_SPARES};

/// What ended a stream early.
#[derive(Clone, Copy)]
pub(super) enum Broken {
    Reset,
    TimedOut,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Finish {
    No,
    Wanted,
    Sent,
}

pub(super) struct Stream {
    pub(super) id: u32,
    /// The session still knows the stream.
    pub(super) alive: bool,
    /// A [`super::raw::RawStream`] still exists.
    pub(super) owned: bool,
    pub(super) broken: Option<Broken>,
    /// Sealed bytes in order; each buffer starts at a frame's length prefix.
    pub(super) queue: VecDeque<Vec<u8>>,
    /// Bytes of the first buffer that are sent already.
    pub(super) front_at: usize,
    pub(super) queued: usize,
    /// With `go_frames`: bytes left of the frame being sent.
    pub(super) frame_left: usize,
    pub(super) finish: Finish,
    /// Is in `ready`.
    pub(super) scheduled: bool,
    pub(super) spares: Vec<Vec<u8>>,
    pub(super) received: Vec<u8>,
    pub(super) received_end: bool,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
}

impl Stream {
    pub(super) fn new() -> Self {
        Self {
            id: 0,
            alive: true,
            owned: true,
            broken: None,
            queue: VecDeque::new(),
            front_at: 0,
            queued: 0,
            frame_left: 0,
            finish: Finish::No,
            scheduled: false,
            spares: Vec::new(),
            received: Vec::new(),
            received_end: false,
            reader: None,
            writer: None,
        }
    }

    pub(super) fn has_work(&self) -> bool {
        self.queued > 0 || self.finish == Finish::Wanted
    }

    /// What is left of the frame at the head of the queue: each starts with its own length (dmsg-wire 3 and 7).
    pub(super) fn frame_left(&mut self) -> usize {
        if self.frame_left == 0 {
            let prefix = self.queue.front().and_then(|front| front.get(self.front_at..self.front_at + 2));
            self.frame_left = match prefix {
                Some(&[high, low]) => 2 + usize::from(u16::from_be_bytes([high, low])),
                _ => self.queued,
            };
        }
        self.frame_left
    }

    /// Moves the next `length` queued bytes to `out`.
    pub(super) fn take(&mut self, length: usize, out: &mut Vec<u8>) {
        self.queued -= length;
        self.frame_left = self.frame_left.saturating_sub(length);
        let mut left = length;
        while left > 0 {
            let Some(front) = self.queue.front_mut() else { return };
            let part = left.min(front.len() - self.front_at);
            out.extend_from_slice(&front[self.front_at..self.front_at + part]);
            self.front_at += part;
            left -= part;
            if self.front_at == front.len() {
                self.front_at = 0;
                self.retire();
            }
        }
    }

    /// Keeps the emptied first buffer for the next write.
    pub(super) fn retire(&mut self) {
        if let Some(mut empty) = self.queue.pop_front()
            && self.spares.len() < STREAM_SPARES
            && empty.capacity() <= BUFFER_KEEP_BYTES
        {
            empty.clear();
            self.spares.push(empty);
        }
    }

    pub(super) fn drop_queue(&mut self) {
        self.queue.clear();
        self.front_at = 0;
        self.queued = 0;
    }
}
