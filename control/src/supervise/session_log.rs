//! Every session in the log, for those who ask for it (`log_sessions`): a line when it opens and one when it ends, with its address.
//!
//! In: events of the data plane, before the mirror takes them. Out: lines at `info` under [`TARGET`], none left out for their number:
//! what the workers say themselves is throttled. Written by the control plane, so that no worker waits for a log; what opened or ended
//! while there was none is not seen: sessions that are found then have a line that says so.

use ringwire_ipc::message::{Event, SessionNote};

use super::mirror::{Mirror, reason_text};

/// What the lines are filtered by.
pub const TARGET: &str = "ringwire::sessions";

/// Writes what there is to say of an event that `mirror` does not know yet.
pub(super) fn write(worker: usize, event: &Event, mirror: &Mirror) {
    match event {
        Event::Opened(note) if mirror.session(worker, note.session).is_some() => {
            line(worker, note, "changed");
        }
        Event::Opened(note) => line(worker, note, "opened"),
        Event::Listed { session: note, .. } if mirror.session(worker, note.session).is_none() => {
            line(worker, note, "found");
        }
        Event::Closed(note, reason) => {
            let known = mirror.session(worker, note.session);
            let (reason, errno) = reason_text(Some(*reason));
            let lasted_ms = known.map(|known| note.at_ns.saturating_sub(known.at_ns) / 1_000_000);
            tracing::info!(
                target: TARGET,
                worker,
                session = note.session,
                peer = ?note.peer,
                address = %note.address,
                reason,
                errno,
                lasted_ms,
                "session closed"
            );
        }
        Event::Resync { dropped } => {
            tracing::info!(target: TARGET, worker, dropped, "events of sessions were dropped: what there is now is found anew");
        }
        Event::Listed { .. } | Event::Bridged { .. } | Event::Answered { .. } => {}
    }
}

fn line(worker: usize, note: &SessionNote, what: &str) {
    let SessionNote { session, peer, address, hybrid, stands_by, .. } = *note;
    tracing::info!(target: TARGET, worker, session, ?peer, %address, hybrid, standby = stands_by, "session {what}");
}
