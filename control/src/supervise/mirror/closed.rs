//! The last sessions that ended, with reason and time. Old ones make room for new ones.

use std::collections::VecDeque;

use ringwire_ipc::message::{Reason, SessionNote};

use super::Nanos;

/// Ended sessions remembered: enough to see what happened in the last second of a storm, some 150 KiB.
const CLOSED_MAX: usize = 1024;

/// A session that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClosedSession {
    /// Number of the worker that had it.
    pub worker: usize,
    /// The session; its time is when it ended, or when its end was noticed if there is no reason.
    pub note: SessionNote,
    /// When it began, if that is known.
    pub opened_ns: Option<Nanos>,
    /// Why it ended; none if nobody was listening when it did.
    pub reason: Option<Reason>,
}

/// Why a session ended, as one word, and the system's number of the failure where there is one.
pub fn reason_text(reason: Option<Reason>) -> (&'static str, Option<i32>) {
    match reason {
        None => ("unobserved", None),
        Some(Reason::PeerClosed) => ("peer_closed", None),
        Some(Reason::ConnectionFailed(errno)) => ("connection_failed", Some(errno)),
        Some(Reason::Displaced) => ("displaced", None),
        Some(Reason::Violation) => ("violation", None),
        Some(Reason::Dead) => ("dead", None),
        Some(Reason::Ordered) => ("ordered", None),
        Some(Reason::Stopping) => ("stopping", None),
        Some(Reason::AddressShare) => ("address_share", None),
    }
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct ClosedLog(VecDeque<ClosedSession>);

impl ClosedLog {
    pub(super) fn push(&mut self, session: ClosedSession) {
        if self.0.len() == CLOSED_MAX {
            self.0.pop_front();
        }
        self.0.push_back(session);
    }

    /// A session that was there before is not there any longer, and nobody said why.
    pub(super) fn vanished(&mut self, worker: usize, note: SessionNote, now: Nanos) {
        let opened_ns = Some(note.at_ns);
        let note = SessionNote { at_ns: now, ..note };
        self.push(ClosedSession { worker, note, opened_ns, reason: None });
    }

    /// The latest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &ClosedSession> {
        self.0.iter().rev()
    }
}
