//! What a session knows of one stream: credit both ways, how far opening and closing went, and its places in the
//! session's lists. Plain data; only the [`Session`](super::Session) changes it.

use super::INITIAL_WINDOW;
use super::session::{Links, Output, Timer};

/// One stream of a session with its owner's tag.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Stream<T> {
    /// The owner's tag; none on a stream of the peer that was not accepted yet.
    pub tag: Option<T>,
    /// Bytes we may still send.
    pub(super) send_credit: u32,
    /// Bytes the peer may still send.
    pub(super) receive_credit: u32,
    /// Bytes delivered to the owner and not yet reported as consumed.
    pub(super) unconsumed: u32,
    /// Credit to return or to grant that was not announced yet.
    pub(super) pending_credit: u32,
    /// Neighbours in the list that `timer` names, then in the one that `output` names.
    pub(super) links: [Links; 2],
    /// Opened by us.
    pub(super) local: bool,
    /// Own: the peer's ACK arrived. The peer's: we accepted.
    pub(super) established: bool,
    pub(super) sent_fin: bool,
    pub(super) received_fin: bool,
    pub(super) timer: Timer,
    pub(super) output: Output,
    pub(super) opened_at_ns: u64,
    pub(super) finished_at_ns: u64,
}

impl<T> Stream<T> {
    pub(super) const fn new(local: bool, now: u64, tag: Option<T>) -> Self {
        Self {
            tag,
            send_credit: INITIAL_WINDOW,
            receive_credit: INITIAL_WINDOW,
            unconsumed: 0,
            pending_credit: 0,
            links: [Links::NONE; 2],
            local,
            established: false,
            sent_fin: false,
            received_fin: false,
            timer: Timer::None,
            output: Output::None,
            opened_at_ns: now,
            finished_at_ns: 0,
        }
    }

    /// Adds credit to announce, as far as the peer can count it.
    pub(super) const fn add_credit(&mut self, len: u32) {
        let room = (u32::MAX - self.receive_credit).saturating_sub(self.pending_credit);
        self.pending_credit += if len < room { len } else { room };
    }

    /// Whether credit needs a window update of its own: not while one is queued, nor before the ACK, which will carry it.
    pub(super) fn may_announce(&self) -> bool {
        self.output == Output::None && (self.local || self.established)
    }

    /// Credit for the header that is about to be sent: from now on the peer may use it.
    pub(super) const fn announce_credit(&mut self) -> u32 {
        let len = self.pending_credit;
        self.pending_credit = 0;
        self.receive_credit += len;
        len
    }

    /// Bytes we may still send.
    #[must_use]
    pub const fn send_credit(&self) -> u32 {
        self.send_credit
    }

    /// Bytes the peer may still send, by what was announced to it.
    #[must_use]
    pub const fn receive_credit(&self) -> u32 {
        self.receive_credit
    }

    /// Bytes delivered to the owner that it has not reported as consumed.
    #[must_use]
    pub const fn unconsumed(&self) -> u32 {
        self.unconsumed
    }

    /// Whether we opened it.
    #[must_use]
    pub const fn is_local(&self) -> bool {
        self.local
    }

    /// Own stream: the peer's ACK arrived. The peer's stream: it was accepted.
    #[must_use]
    pub const fn acked(&self) -> bool {
        self.established
    }

    /// Whether our direction ended.
    #[must_use]
    pub const fn sent_fin(&self) -> bool {
        self.sent_fin
    }

    /// Whether the peer's direction ended.
    #[must_use]
    pub const fn received_fin(&self) -> bool {
        self.received_fin
    }

    /// When it was opened, on the clock of the session's inputs.
    #[must_use]
    pub const fn opened_at(&self) -> u64 {
        self.opened_at_ns
    }
}
