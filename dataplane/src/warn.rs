//! Log lines that strangers can provoke: one of each kind per interval, with the number of those that were not written.
//!
//! In: the kind and the time. Out: whether to write the line, and what to say of its suppressed predecessors. Counters count
//! every occurrence; the log is for noticing, and must not become a way to fill disks.

use crate::driver::Nanos;
use crate::limits;

/// What a line is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Kind {
    AcceptFailed,
    DescriptorLimit,
    HalfOpenLimit,
    LongHandshakes,
    AddressLimit,
    AddressShare,
    ProxyUntrusted,
    ProxyMalformed,
    LaneFull,
    HandshakeFailed,
    SessionOpened,
    SessionClosed,
    SessionDead,
    Violation,
    MemoryUsedUp,
    KeyContested,
}

const KINDS: usize = Kind::KeyContested as usize + 1;

/// See the module's head. One for each worker.
#[derive(Debug, Default)]
pub(crate) struct Warnings([Line; KINDS]);

#[derive(Debug, Default, Clone, Copy)]
struct Line {
    /// From when on the next one is written.
    free_at: Nanos,
    suppressed: u64,
}

impl Warnings {
    /// Whether to write a line of this kind now: then how many were suppressed before it.
    pub(crate) fn admit(&mut self, kind: Kind, now: Nanos) -> Option<u64> {
        let line = &mut self.0[kind as usize];
        if now < line.free_at {
            line.suppressed += 1;
            return None;
        }
        line.free_at = now + limits::WARNING_INTERVAL_NS;
        Some(std::mem::take(&mut line.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_of_a_kind_per_interval_says_how_many_there_were() {
        let mut warnings = Warnings::default();
        let interval = limits::WARNING_INTERVAL_NS;
        assert_eq!(warnings.admit(Kind::AcceptFailed, interval), Some(0));
        for now in interval + 1..interval + 1001 {
            assert_eq!(warnings.admit(Kind::AcceptFailed, now), None);
        }
        assert_eq!(warnings.admit(Kind::MemoryUsedUp, interval + 5), Some(0), "kinds do not share");
        assert_eq!(warnings.admit(Kind::AcceptFailed, 2 * interval), Some(1000));
        assert_eq!(warnings.admit(Kind::AcceptFailed, 3 * interval), Some(0));
    }
}
