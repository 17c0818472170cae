//! The control plane's picture of the data plane: which sessions there are, and which questions wait for an answer.
//!
//! A state machine without I/O, fed from the event rings and drained into the command rings by `channel`.
//!
//! * inputs: [`attached`](Mirror::attached), [`detached`](Mirror::detached), [`handle_event`](Mirror::handle_event), [`handle_time`](Mirror::handle_time)
//! * requests: [`ask`](Mirror::ask)
//! * outputs, to be drained after each of these: [`next_command`](Mirror::next_command) with
//!   [`command_sent`](Mirror::command_sent), [`poll_outcome`](Mirror::poll_outcome)
//! * questions: [`sessions`](Mirror::sessions), [`closed`](Mirror::closed), [`is_current`](Mirror::is_current)
//!
//! **How the picture stays true.** The events of one worker come in order, and where some were dropped a resync marker
//! stands in their place. So whatever comes behind the last marker holds. At each marker, and at each attach, a new *round*
//! begins: the worker is told to list its sessions, everything it says from then on carries the round's number, and when
//! the listing is complete, sessions that were not mentioned in this round are gone.

mod closed;
mod pending;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use ringwire_ipc::message::{Answer, Command, Event, Order, SessionNote};

use closed::ClosedLog;
pub use closed::{ClosedSession, reason_text};
use pending::Pending;
pub use pending::{AskError, BridgeList, Outcome, Ticket};

/// Sessions remembered per worker. A data plane that claims more is not believed; what is beyond is counted.
pub const SESSIONS_MAX: usize = 1 << 20;

/// Questions that may wait for an answer at a time; the next one is refused.
pub const QUESTIONS_MAX: usize = 64;

/// How long a question may wait for the workers: thousands of their turns.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A listing that the worker refuses, or that does not add up, is asked for again after this long.
const LIST_AGAIN: Duration = Duration::from_secs(1);

/// Time of CLOCK_MONOTONIC in nanoseconds.
pub type Nanos = u64;

/// The picture. See the module's head.
#[derive(Debug, Default)]
pub struct Mirror {
    workers: Vec<WorkerView>,
    closed: ClosedLog,
    pending: BTreeMap<Ticket, Pending>,
    outcomes: VecDeque<(Ticket, Outcome)>,
    last_request: u64,
    is_attached: bool,
}

/// What is known of one worker.
#[derive(Debug, Default)]
struct WorkerView {
    /// By the worker's number of the session.
    sessions: HashMap<u64, Known>,
    round: u64,
    listing: Listing,
    /// Not yet in the command ring: at most one per pending question, and one for a listing.
    commands: VecDeque<Command>,
    /// Events it said it dropped since the attach.
    events_dropped: u64,
    /// Sessions not remembered because of [`SESSIONS_MAX`].
    untracked: u64,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    note: SessionNote,
    round: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Listing {
    /// The picture is true up to the last event.
    #[default]
    Current,
    /// Asked for, so many sessions came.
    Asked { request: u64, count: u64 },
    /// To be asked for again at this time.
    Again(Nanos),
}

/// A session and the worker that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MirroredSession {
    /// Number of the worker.
    pub worker: usize,
    /// What the worker said.
    pub note: SessionNote,
}

impl Mirror {
    /// A data plane with so many workers was attached to, with empty rings. Questions of before get no answer; sessions of
    /// before stay until their worker has listed what it has. `same` tells whether it is the data plane of before: another
    /// one's sessions are not this one's.
    pub fn attached(&mut self, workers: usize, same: bool, now: Nanos) {
        self.detached();
        self.is_attached = true;
        if !same || workers != self.workers.len() {
            for (worker, view) in std::mem::take(&mut self.workers).into_iter().enumerate() {
                view.sessions.into_values().for_each(|known| self.closed.vanished(worker, known.note, now));
            }
        }
        self.workers.resize_with(workers, WorkerView::default);
        for view in &mut self.workers {
            view.commands.clear();
            view.events_dropped = 0;
            view.begin_round(&mut self.last_request);
        }
    }

    /// The data plane went away: questions get no answer any more, and no new one is put. The sessions stay for the time
    /// being, see [`attached`](Self::attached).
    pub fn detached(&mut self) {
        self.is_attached = false;
        for ticket in std::mem::take(&mut self.pending).into_keys() {
            self.outcomes.push_back((ticket, Outcome::Lost));
        }
    }

    /// What a worker said. Events of a worker that does not exist are ignored.
    pub fn handle_event(&mut self, worker: usize, event: &Event, now: Nanos) {
        let Some(view) = self.workers.get_mut(worker) else { return };
        match *event {
            Event::Opened(note) => view.remember(note),
            Event::Closed(note, reason) => {
                let opened = view.sessions.remove(&note.session).map(|known| known.note.at_ns);
                self.closed.push(ClosedSession { worker, note, opened_ns: opened, reason: Some(reason) });
            }
            Event::Listed { request, session } => {
                if let Listing::Asked { request: asked, count } = &mut view.listing
                    && *asked == request
                {
                    *count += 1;
                }
                view.remember(session);
            }
            Event::Bridged { request, bridge } => {
                if let Some(pending) = self.pending.get_mut(&Ticket(request)) {
                    pending.listed(worker, bridge);
                }
            }
            Event::Answered { request, answer } => self.answered(worker, request, answer, now),
            Event::Resync { dropped } => {
                view.events_dropped = dropped;
                view.begin_round(&mut self.last_request);
            }
        }
    }

    /// Time passes: questions run out of it, listings are asked for again.
    pub fn handle_time(&mut self, now: Nanos) {
        let late: Vec<_> = self.pending.iter().filter(|(_, pending)| pending.deadline <= now).collect();
        let late: Vec<_> = late.into_iter().map(|(ticket, _)| *ticket).collect();
        for ticket in late {
            self.pending.remove(&ticket);
            self.outcomes.push_back((ticket, Outcome::TimedOut));
            for view in &mut self.workers {
                view.commands.retain(|command| command.request != ticket.0);
            }
        }
        for view in &mut self.workers {
            if matches!(view.listing, Listing::Again(at) if at <= now) {
                view.begin_round(&mut self.last_request);
            }
        }
    }

    /// When [`handle_time`](Self::handle_time) has something to do.
    pub fn next_time(&self) -> Option<Nanos> {
        let questions = self.pending.values().map(|pending| pending.deadline);
        let listings = self.workers.iter().filter_map(|view| match view.listing {
            Listing::Again(at) => Some(at),
            Listing::Current | Listing::Asked { .. } => None,
        });
        questions.chain(listings).min()
    }

    /// Puts an order to every worker; [`poll_outcome`](Self::poll_outcome) tells how it went.
    ///
    /// # Errors
    /// [`AskError`]: nothing is attached, or too many questions wait.
    pub fn ask(&mut self, order: Order, now: Nanos) -> Result<Ticket, AskError> {
        if !self.is_attached {
            return Err(AskError::Detached);
        }
        if self.pending.len() >= QUESTIONS_MAX {
            return Err(AskError::Busy);
        }
        self.last_request += 1;
        let ticket = Ticket(self.last_request);
        let timeout = u64::try_from(ANSWER_TIMEOUT.as_nanos()).unwrap_or(u64::MAX);
        let deadline = now.saturating_add(timeout);
        self.pending.insert(ticket, Pending::new(self.workers.len(), deadline, order == Order::ListBridges));
        for view in &mut self.workers {
            view.commands.push_back(Command { request: ticket.0, order });
        }
        Ok(ticket)
    }

    /// The next command for a worker's ring. Stays the next one until [`command_sent`](Self::command_sent).
    pub fn next_command(&self, worker: usize) -> Option<Command> {
        self.workers.get(worker)?.commands.front().copied()
    }

    /// The command is in the ring.
    pub fn command_sent(&mut self, worker: usize) {
        if let Some(view) = self.workers.get_mut(worker) {
            view.commands.pop_front();
        }
    }

    /// The next question that has an outcome.
    pub fn poll_outcome(&mut self) -> Option<(Ticket, Outcome)> {
        self.outcomes.pop_front()
    }

    /// All sessions, in no particular order.
    pub fn sessions(&self) -> impl Iterator<Item = MirroredSession> + '_ {
        self.workers.iter().enumerate().flat_map(|(worker, view)| {
            view.sessions.values().map(move |known| MirroredSession { worker, note: known.note })
        })
    }

    /// One of a worker's sessions, by its number.
    pub fn session(&self, worker: usize, session: u64) -> Option<SessionNote> {
        self.workers.get(worker)?.sessions.get(&session).map(|known| known.note)
    }

    /// Sessions that ended, the latest first.
    pub fn closed(&self) -> impl Iterator<Item = &ClosedSession> {
        self.closed.iter()
    }

    /// Whether the picture is true up to the last event: every worker has listed what it has.
    pub fn is_current(&self) -> bool {
        self.is_attached && self.workers.iter().all(|view| view.listing == Listing::Current)
    }

    /// Events dropped by the workers because nobody read them, since the attach.
    pub fn events_dropped(&self) -> u64 {
        self.workers.iter().map(|view| view.events_dropped).sum()
    }

    /// Sessions that exist but are not remembered, see [`SESSIONS_MAX`].
    pub fn untracked(&self) -> u64 {
        self.workers.iter().map(|view| view.untracked).sum()
    }

    fn answered(&mut self, worker: usize, request: u64, answer: Answer, now: Nanos) {
        let Some(view) = self.workers.get_mut(worker) else { return };
        if let Listing::Asked { request: asked, count } = view.listing
            && asked == request
        {
            view.listing = if answer == Answer::Done(count) {
                let round = view.round;
                view.sessions.retain(|_, known| {
                    let kept = known.round == round;
                    if !kept {
                        self.closed.vanished(worker, known.note, now);
                    }
                    kept
                });
                Listing::Current
            } else {
                Listing::Again(now.saturating_add(LIST_AGAIN.as_nanos() as u64))
            };
            return;
        }
        let ticket = Ticket(request);
        let Some(pending) = self.pending.get_mut(&ticket) else { return };
        if let Some(outcome) = pending.answered(worker, answer) {
            self.pending.remove(&ticket);
            self.outcomes.push_back((ticket, outcome));
        }
    }
}

impl WorkerView {
    fn begin_round(&mut self, last_request: &mut u64) {
        // A listing that is still in the queue has become pointless.
        if let Listing::Asked { request, .. } = self.listing {
            self.commands.retain(|command| command.request != request);
        }
        self.round += 1;
        *last_request += 1;
        self.listing = Listing::Asked { request: *last_request, count: 0 };
        // In front: one listing at a time, and answers to questions should find a true picture.
        self.commands.push_front(Command { request: *last_request, order: Order::ListSessions });
    }

    fn remember(&mut self, note: SessionNote) {
        if self.sessions.len() >= SESSIONS_MAX && !self.sessions.contains_key(&note.session) {
            self.untracked += 1;
            return;
        }
        self.sessions.insert(note.session, Known { note, round: self.round });
    }
}
