//! Lists through the streams of a session: each stream holds the ids of its neighbours, so that taking one out of the
//! middle costs no search and no memory, and the order of every output is the order in which things happened.
//!
//! A stream is in at most one list of timers and at most one list of outputs, which its `timer` and `output` name.
//! Called by the session only.

use alloc::boxed::Box;
use hashbrown::HashMap;

use crate::yamux::Stream;

/// The streams of a session by id. Boxed, so that a table that doubles has 16 bytes for each place and not 80, and leaves little
/// behind.
pub(super) type Streams<T> = HashMap<u32, Box<Stream<T>>>;

/// Neighbours of a stream in one list; 0, never a stream's id, is the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(in crate::yamux) struct Links {
    previous: u32,
    next: u32,
}

impl Links {
    pub(in crate::yamux) const NONE: Self = Self { previous: 0, next: 0 };
}

/// Which list of timers a stream is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(in crate::yamux) enum Timer {
    None,
    /// Opened by us, waits for the peer's ACK.
    Open,
    /// Finished by us, waits for the peer's FIN.
    Close,
}

/// Which list of outputs a stream is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(in crate::yamux) enum Output {
    None,
    /// Its SYN or ACK has to be sent.
    Handshake,
    /// A window update has to be sent.
    Update,
}

/// Which pair of neighbours a list uses.
#[derive(Clone, Copy, Debug)]
pub(super) enum Chain {
    Timer = 0,
    Output = 1,
}

/// First and last id of a list, 0 when it is empty.
#[derive(Clone, Copy, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct List {
    head: u32,
    tail: u32,
}

impl List {
    /// The id that waits longest.
    pub(super) const fn first(&self) -> Option<u32> {
        if self.head == 0 { None } else { Some(self.head) }
    }

    /// Appends a stream that is in no list of this chain.
    pub(super) fn push_back<T>(&mut self, streams: &mut Streams<T>, chain: Chain, id: u32) {
        let previous = self.tail;
        if let Some(stream) = streams.get_mut(&id) {
            stream.links[chain as usize] = Links { previous, next: 0 };
            self.tail = id;
            match streams.get_mut(&previous) {
                Some(last) => last.links[chain as usize].next = id,
                None => self.head = id,
            }
        }
    }

    /// Takes out the stream that had these neighbours; the stream itself may be gone already.
    pub(super) fn unlink<T>(&mut self, streams: &mut Streams<T>, chain: Chain, links: Links) {
        match streams.get_mut(&links.previous) {
            Some(previous) => previous.links[chain as usize].next = links.next,
            None => self.head = links.next,
        }
        match streams.get_mut(&links.next) {
            Some(next) => next.links[chain as usize].previous = links.previous,
            None => self.tail = links.previous,
        }
    }
}
