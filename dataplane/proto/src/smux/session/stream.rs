//! What an smux session knows of one stream: bytes counted both ways, and which directions ended (dmsg-wire 6).

use crate::smux::{INITIAL_WINDOW, StreamFault, Update, Version};

/// One stream of a session with its owner's tag.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Stream<T> {
    /// The owner's tag; none on a stream of the peer that was not accepted yet.
    pub tag: Option<T>,
    /// Opened by us.
    pub(super) local: bool,
    /// Its SYN waits for `poll_control`.
    pub(super) syn_queued: bool,
    /// Bytes sent, mod 2^32.
    pub(super) written: u32,
    /// Of these, bytes the peer's reader took, as it last told.
    pub(super) peer_consumed: u32,
    /// Bytes that may be in flight, as it last told.
    pub(super) peer_window: u32,
    /// Bytes received, mod 2^32.
    pub(super) received: u32,
    /// Count of received bytes, mod 2^32, that the peer was told it may reach: never taken back.
    pub(super) receive_limit: u32,
    /// Bytes delivered to the owner and not yet reported as consumed.
    pub(super) unconsumed: u32,
    /// All bytes the owner consumed, mod 2^32.
    pub(super) consumed_total: u32,
    /// Of these, bytes since the last update.
    pub(super) since_update: u32,
    pub(super) was_read: bool,
    pub(super) update_queued: bool,
    pub(super) sent_fin: bool,
    pub(super) received_fin: bool,
    pub(super) broken: bool,
}

impl<T> Stream<T> {
    pub(super) const fn new(local: bool, tag: Option<T>) -> Self {
        Self {
            tag,
            local,
            syn_queued: false,
            written: 0,
            peer_consumed: 0,
            peer_window: INITIAL_WINDOW,
            received: 0,
            receive_limit: INITIAL_WINDOW,
            unconsumed: 0,
            consumed_total: 0,
            since_update: 0,
            was_read: false,
            update_queued: false,
            sent_fin: false,
            received_fin: false,
            broken: false,
        }
    }

    /// Bytes that may be sent now; without bound in version 1, which has no flow control.
    #[must_use]
    pub const fn send_credit(&self, version: Version) -> u32 {
        match version {
            Version::V1 => u32::MAX,
            Version::V2 => self.peer_window.saturating_sub(self.written.wrapping_sub(self.peer_consumed)),
        }
    }

    /// Bytes the peer may still send, by what was announced to it; without bound in version 1.
    #[must_use]
    pub const fn receive_credit(&self, version: Version) -> u32 {
        match version {
            Version::V1 => u32::MAX,
            Version::V2 => self.receive_limit.wrapping_sub(self.received),
        }
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

    /// Whether the peer broke a rule of the stream: nothing more is sent or taken (dmsg-wire 6).
    #[must_use]
    pub const fn is_broken(&self) -> bool {
        self.broken
    }

    pub(super) fn reserve(&mut self, version: Version, want: u16) -> u16 {
        if self.sent_fin || self.broken || self.syn_queued {
            return 0;
        }
        let granted = u16::try_from(self.send_credit(version)).unwrap_or(u16::MAX).min(want);
        self.written = self.written.wrapping_add(u32::from(granted));
        granted
    }

    /// Counts a data frame of the peer.
    ///
    /// # Errors
    /// It is longer than the credit: the stream is broken.
    pub(super) fn receive(&mut self, id: u32, version: Version, length: u16) -> Result<(), StreamFault> {
        let credit = self.receive_credit(version);
        if u32::from(length) > credit {
            self.broken = true;
            return Err(StreamFault::WindowExceeded { stream: id, length, credit });
        }
        self.received = self.received.wrapping_add(u32::from(length));
        self.unconsumed = self.unconsumed.saturating_add(u32::from(length));
        Ok(())
    }

    /// Takes the peer's counts; returns by how much our credit grew.
    ///
    /// # Errors
    /// It read what was never sent: the stream is broken.
    pub(super) const fn apply_update(&mut self, id: u32, update: Update) -> Result<u32, StreamFault> {
        let before = self.send_credit(Version::V2);
        self.peer_consumed = update.consumed;
        self.peer_window = update.window;
        // In flight is signed: below zero the peer read what was never sent.
        if (self.written.wrapping_sub(update.consumed) as i32) < 0 {
            self.broken = true;
            let beyond = update.consumed.wrapping_sub(self.written);
            return Err(StreamFault::ConsumedUnsent { stream: id, beyond });
        }
        Ok(self.send_credit(Version::V2).saturating_sub(before))
    }

    /// The update to send now: from here on the peer may count on it.
    pub(super) const fn announce(&mut self, window: u32) -> Update {
        self.update_queued = false;
        let limit = self.consumed_total.wrapping_add(window);
        // A smaller window takes nothing back of what was announced: it may be under way.
        if (limit.wrapping_sub(self.receive_limit) as i32) > 0 {
            self.receive_limit = limit;
        }
        Update { consumed: self.consumed_total, window }
    }

    /// Counts `len` bytes as consumed; returns how many were there, and whether an update is due.
    pub(super) fn consume(&mut self, len: u32, threshold: u32) -> (u32, bool) {
        debug_assert!(len <= self.unconsumed, "consumed more than was delivered");
        let len = len.min(self.unconsumed);
        self.unconsumed -= len;
        self.consumed_total = self.consumed_total.wrapping_add(len);
        self.since_update = self.since_update.saturating_add(len);
        let due = len > 0 && (!self.was_read || self.since_update >= threshold);
        self.was_read |= len > 0;
        if due {
            self.since_update = 0;
        }
        // Behind its FIN the peer needs no credit.
        (len, due && !self.received_fin)
    }
}
