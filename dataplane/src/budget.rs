//! The worker's memory budget: what is held decides, and what was promised beyond what the wire forces.
//!
//! The first window of a stream (256 KiB) is in the multiplexer's rules: whoever opens a stream has it, for 24 bytes. To count it
//! as used would let a few idle streams lock everybody out, so it is not counted: base windows are promised to more than could
//! use them at a time, and *held* bytes count, pages at their true size and streams at what their places in the tables take.
//! Credit beyond the base window is our choice, and counts as used from the moment it is granted until it is used up or its
//! stream has been idle for a while:
//!
//! * from 75 % on no extra credit is granted,
//! * from 90 % on the largest holder lets go (module `holders`): its prefix opens no stream, and its backlogs are reset,
//! * one holder has a quarter at most, whatever is free.

use crate::limits;

/// See the module's head.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    limit: usize,
    /// What the buffer memory can bear.
    limit_max: usize,
    extra: usize,
}

impl Budget {
    /// The budget of a worker with `memory_len` bytes of buffer memory: all of it but the receive ring and a reserve, so that
    /// queues can never take the last page and one flow can never end another's receive.
    pub fn new(memory_len: usize) -> Self {
        let ring = limits::RECEIVE_RING_PAGES * limits::PAGE_LEN;
        let reserve = memory_len / 100 * limits::RESERVED_PERCENT;
        let limit = memory_len.saturating_sub(ring + reserve);
        Self { limit, limit_max: limit, extra: 0 }
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

    /// Bytes of credit granted beyond base windows.
    pub fn extra(&self) -> usize {
        self.extra
    }

    /// Grants `len` bytes beyond a base window.
    pub fn grant(&mut self, len: usize) {
        self.extra += len;
    }

    /// `len` granted bytes are no longer owed.
    pub fn release(&mut self, len: usize) {
        debug_assert!(len <= self.extra, "only what was granted is released");
        self.extra = self.extra.saturating_sub(len);
    }

    /// Whether `len` bytes of credit beyond the base window may be granted while `held` bytes are held.
    pub fn allows_extra(&self, held: usize, len: usize) -> bool {
        self.extra.max(held) + len <= self.limit / 100 * limits::EXTRA_CREDIT_PERCENT
    }

    /// Whether the largest holder has to let go.
    pub fn is_tight(&self, held: usize) -> bool {
        held > self.limit / 100 * limits::TIGHT_PERCENT
    }

    /// How much is to be let go of then, in bytes: to somewhat below the threshold, so that it is not met again at once.
    pub fn surplus(&self, held: usize) -> usize {
        held.saturating_sub(self.limit / 100 * limits::RELIEVED_PERCENT)
    }

    /// Dials that may be unanswered at a time: what they take in the tables is a small part of the budget.
    pub fn dials_max(&self) -> usize {
        self.limit / limits::UNANSWERED_BUDGET_PART / limits::UNANSWERED_LEN
    }

    /// Bytes that one holder may have, so that one peer with many streams cannot have it all.
    pub fn holder_limit(&self) -> usize {
        self.limit / 100 * limits::HOLDER_PERCENT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_come_in_order() {
        let mut budget = Budget::new(1 << 30);
        let percent = budget.limit() / 100;
        assert!(budget.limit() < 1 << 30);
        assert!(budget.allows_extra(0, 1000) && !budget.is_tight(0));
        budget.grant(percent * 75);
        assert!(!budget.allows_extra(0, 1000) && !budget.is_tight(0), "a promise takes nothing from others");
        budget.release(percent * 75);
        assert_eq!(budget.extra(), 0);
        // What is held counts, at its true size.
        assert!(!budget.allows_extra(percent * 76, 1));
        assert!(!budget.is_tight(percent * 90) && budget.is_tight(percent * 90 + 1));
        assert_eq!(budget.surplus(percent * 90), percent * 5);
        assert_eq!(budget.surplus(percent * 80), 0);
        assert_eq!(budget.holder_limit(), percent * 25);
    }
}
