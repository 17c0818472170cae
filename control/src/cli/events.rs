//! What `run --json` prints: one object per event on the standard output, from `ready` to `ending`.
//!
//! In: states of the data plane and of the registrations, as they change. Out: lines. They go through a bounded queue and are dropped
//! when nobody takes them: a reader that stands still must not hold up the server. The next line says how many are missing.

use std::io::{self, Write as _};
use std::net::SocketAddr;

use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};

use crate::registration::Standing;
use crate::supervise::{End, PlaneStatus};

/// Lines that may wait for a reader.
const LINES_MAX: usize = 1024;

/// An event behind `ready`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Event {
    /// The data plane went away; another one is looked for.
    DataplaneLost { dataplane_pid: u32, reason: Option<String>, losses: u64 },
    /// A data plane serves: another one, or the same again.
    Dataplane { dataplane_pid: u32, addresses: Vec<SocketAddr>, driver: String },
    /// It takes nobody new, and ends with its last session.
    Draining { dataplane_pid: u32 },
    /// A discovery has the server's entry: for the first time, or again.
    Registered { discovery: String },
    /// A discovery does not take the server's entry; what it has expires.
    RegistrationLost { discovery: String, reason: String },
    /// The end has begun.
    Ending { dataplane: &'static str },
}

/// A line.
#[derive(Debug, Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    event: &'a Event,
    /// Lines dropped so far because nobody read them.
    #[serde(skip_serializing_if = "is_zero")]
    dropped: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Events {
    out: Out,
    plane: PlaneStatus,
    _watches: JoinSet<()>,
    /// Writes out what waits, when it is dropped; behind the last line.
    _writer: WorkerGuard,
}

#[derive(Debug, Clone)]
struct Out {
    lines: NonBlocking,
    dropped: ErrorCounter,
}

impl Events {
    /// Prints from now on what differs from this. Must be called inside a tokio runtime.
    pub(super) fn new(plane: PlaneStatus, standings: Vec<watch::Receiver<Standing>>) -> Self {
        let queue = NonBlockingBuilder::default().buffered_lines_limit(LINES_MAX).lossy(true);
        let (lines, writer) = queue.finish(io::stdout());
        let out = Out { dropped: lines.error_counter(), lines };
        let mut watches = JoinSet::new();
        for standing in standings {
            watches.spawn(follow(standing, out.clone()));
        }
        Self { out, plane, _watches: watches, _writer: writer }
    }

    /// How the data plane is now.
    pub(super) fn plane(&mut self, now: &PlaneStatus) {
        for event in changes(&self.plane, now) {
            self.out.print(&event);
        }
        self.plane = now.clone();
    }

    /// The end has begun.
    pub(super) fn ending(&mut self, end: End) {
        let dataplane = match end {
            End::Stop => "stopped",
            End::Leave => "left",
            End::Ended => "ended",
        };
        self.out.print(&Event::Ending { dataplane });
    }
}

impl Out {
    fn print(&mut self, event: &Event) {
        let line = Line { event, dropped: self.dropped.dropped_lines() };
        if let Ok(text) = serde_json::to_string(&line) {
            // Never fails: what has no room is counted.
            self.lines.write_all(format!("{text}\n").as_bytes()).ok();
        }
    }
}

/// What happened between two looks at the data plane.
fn changes(before: &PlaneStatus, now: &PlaneStatus) -> Vec<Event> {
    let mut events = Vec::new();
    let is_another = (now.pid, now.epoch) != (before.pid, before.epoch);
    if before.attached && (!now.attached || is_another || now.losses != before.losses) {
        let (reason, losses) = (now.last_loss.clone(), now.losses);
        events.push(Event::DataplaneLost { dataplane_pid: before.pid, reason, losses });
    }
    if now.attached && (!before.attached || is_another || now.losses != before.losses) {
        let (addresses, driver) = (now.addresses.clone(), now.driver.clone());
        events.push(Event::Dataplane { dataplane_pid: now.pid, addresses, driver });
    }
    if now.draining && !before.draining {
        events.push(Event::Draining { dataplane_pid: now.pid });
    }
    events
}

/// Prints what becomes of an entry.
async fn follow(mut standing: watch::Receiver<Standing>, mut out: Out) {
    let mut before = None;
    loop {
        let (now, event) = registration(&standing.borrow_and_update(), before);
        before = now;
        if let Some(event) = event {
            out.print(&event);
        }
        if standing.changed().await.is_err() {
            return;
        }
    }
}

/// Whether the entry is where it should be, and what to say if that was otherwise before; none: nothing is known yet.
fn registration(standing: &Standing, before: Option<bool>) -> (Option<bool>, Option<Event>) {
    let discovery = standing.url.clone();
    match &standing.error {
        // Taken away on purpose.
        _ if standing.withdrawn => (None, None),
        Some(_) if before == Some(false) => (before, None),
        Some(error) => (Some(false), Some(Event::RegistrationLost { discovery, reason: error.to_string() })),
        None if standing.accepted.is_none() || before == Some(true) => (before, None),
        None => (Some(true), Some(Event::Registered { discovery })),
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::discovery::DiscoveryError;

    fn names(before: &PlaneStatus, now: &PlaneStatus) -> Vec<String> {
        let events = changes(before, now);
        let name = |event| serde_json::to_value(event).unwrap()["event"].as_str().unwrap().to_owned();
        events.iter().map(name).collect()
    }

    #[test]
    fn what_happened_between_two_looks_is_told_in_its_order() {
        let up = PlaneStatus { attached: true, pid: 7, epoch: 1, ..PlaneStatus::default() };
        let down = PlaneStatus { attached: false, losses: 1, ..up.clone() };
        let next = PlaneStatus { attached: true, pid: 8, losses: 1, ..up.clone() };
        let draining = PlaneStatus { draining: true, ..next.clone() };
        assert!(names(&up, &up).is_empty() && names(&down, &down).is_empty());
        assert_eq!(names(&up, &down), ["dataplane_lost"]);
        assert_eq!(names(&down, &next), ["dataplane"]);
        // Between two looks it can go and come.
        assert_eq!(names(&up, &next), ["dataplane_lost", "dataplane"]);
        let again = PlaneStatus { losses: 1, epoch: 2, ..up.clone() };
        assert_eq!(names(&up, &again), ["dataplane_lost", "dataplane"]);
        assert_eq!(names(&next, &draining), ["draining"]);
    }

    #[test]
    fn an_entry_is_spoken_of_when_it_is_lost_and_when_it_is_back() {
        let url = "http://dmsgd.example".to_owned();
        let nothing = Standing { url, accepted: None, error: None, withdrawn: false };
        let accepted = Standing { accepted: Some((1, SystemTime::now())), ..nothing.clone() };
        let error = DiscoveryError::Setup { url: nothing.url.clone(), reason: "for this test".to_owned() };
        let failed = Standing { error: Some(error), ..accepted.clone() };
        let withdrawn = Standing { withdrawn: true, ..accepted.clone() };
        let mut before = None;
        let mut told = Vec::new();
        for standing in [&nothing, &accepted, &accepted, &failed, &failed, &accepted, &withdrawn, &accepted] {
            let (now, event) = registration(standing, before);
            before = now;
            told.push(match event {
                None => "",
                Some(Event::Registered { .. }) => "here",
                Some(_) => "lost",
            });
        }
        assert_eq!(told, ["", "here", "", "lost", "", "here", "", "here"]);
    }
}
