//! The worker's memory budget: what was promised to senders as credit, and what is really held.
//!
//! Credit is a promise: whoever has it may send that much, and it must find room. A stream's base window is promised when the
//! stream opens, further credit when it is granted, and both count as used from then on. Pages held count at their true size.
//! The larger of the two is what is used:
//!
//! * from 75 % on no extra credit is granted,
//! * from 90 % on new streams are refused,
//! * at 100 % the longest-stalled backlog is reset.

use ringwire_proto::yamux::INITIAL_WINDOW;

use crate::limits;

/// See the module's head.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    limit: usize,
    /// What the buffer memory can bear.
    limit_max: usize,
    promised: usize,
}

impl Budget {
    /// The budget of a worker with `memory_len` bytes of buffer memory: all of it but the receive ring and a reserve, so that
    /// queues can never take the last page and one flow can never end another's receive.
    pub fn new(memory_len: usize) -> Self {
        let ring = limits::RECEIVE_RING_PAGES * limits::PAGE_LEN;
        let reserve = memory_len / 100 * limits::RESERVED_PERCENT;
        let limit = memory_len.saturating_sub(ring + reserve);
        Self { limit, limit_max: limit, promised: 0 }
    }

    /// Lowers or raises the limit, at most to what the buffer memory can bear. Returns what is in force.
    pub fn set_limit(&mut self, limit: usize) -> usize {
        self.limit = limit.min(self.limit_max);
        self.limit
    }

    /// Bytes that may be used in all.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Bytes of credit promised.
    pub fn promised(&self) -> usize {
        self.promised
    }

    /// Bytes used: promised or held, whichever is more.
    pub fn used(&self, held: usize) -> usize {
        self.promised.max(held)
    }

    /// Promises `len` bytes.
    pub fn promise(&mut self, len: usize) {
        self.promised += len;
    }

    /// `len` promised bytes are no longer owed.
    pub fn release(&mut self, len: usize) {
        debug_assert!(len <= self.promised, "only what was promised is released");
        self.promised = self.promised.saturating_sub(len);
    }

    /// Whether `len` bytes of credit beyond the base window may be granted.
    pub fn allows_extra(&self, held: usize, len: usize) -> bool {
        self.used(held) + len <= self.limit / 100 * limits::EXTRA_CREDIT_PERCENT
    }

    /// Whether another stream may open: its own base window and that of the stream it leads to.
    pub fn allows_stream(&self, held: usize) -> bool {
        self.used(held) + 2 * INITIAL_WINDOW as usize <= self.limit / 100 * limits::NEW_STREAMS_PERCENT
    }

    /// Bytes that may be promised to one session, so that one peer with many streams cannot have it all.
    pub fn session_limit(&self) -> usize {
        self.limit / 100 * limits::SESSION_PERCENT
    }

    /// Whether a backlog must go.
    pub fn is_exhausted(&self, held: usize) -> bool {
        held >= self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_come_in_order() {
        let mut budget = Budget::new(1 << 30);
        let window = INITIAL_WINDOW as usize;
        assert!(budget.limit() < 1 << 30);
        assert!(budget.allows_extra(0, window) && budget.allows_stream(0) && !budget.is_exhausted(0));
        budget.promise(budget.limit() / 100 * 75);
        assert!(!budget.allows_extra(0, window) && budget.allows_stream(0));
        budget.promise(budget.limit() / 100 * 15);
        assert!(!budget.allows_stream(0) && !budget.is_exhausted(0));
        // What is held counts as well, at its true size.
        let fresh = Budget::new(1 << 30);
        assert!(!fresh.allows_extra(fresh.limit() / 100 * 76, 1));
        assert!(!fresh.allows_stream(fresh.limit() / 100 * 90));
        assert!(fresh.is_exhausted(fresh.limit()));
        budget.release(budget.promised());
        assert_eq!(budget.used(0), 0);
    }
}
