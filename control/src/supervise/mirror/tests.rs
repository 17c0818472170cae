//! The mirror against a model of a worker: a ring that overflows, a picture that must be true in the end.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;
use ringwire_ipc::message::{BridgeNote, HybridPolicy, PeerKey, Reason, Setting};

use super::*;

fn key(number: u8) -> PeerKey {
    let mut bytes = [number; 33];
    bytes[0] = 2;
    PeerKey::new(bytes).unwrap()
}

fn note(session: u64, at_ns: Nanos) -> SessionNote {
    let peer = key(session as u8);
    SessionNote {
        session,
        peer,
        address: ([127, 0, 0, 1], 1).into(),
        hybrid: session.is_multiple_of(2),
        stands_by: session.is_multiple_of(3),
        at_ns,
    }
}

/// A worker as the data plane has it: its event ring drops what does not fit and owes a marker then.
#[derive(Debug, Default)]
struct Model {
    sessions: BTreeMap<u64, SessionNote>,
    next: u64,
    ring: VecDeque<Event>,
    dropped: u64,
    owes_marker: bool,
}

const RING: usize = 8;

impl Model {
    fn say(&mut self, event: Event) {
        if self.owes_marker && self.ring.len() < RING {
            self.ring.push_back(Event::Resync { dropped: self.dropped });
            self.owes_marker = false;
        }
        if self.ring.len() < RING && !self.owes_marker {
            self.ring.push_back(event);
        } else {
            self.dropped += 1;
            self.owes_marker = true;
        }
    }

    fn turn(&mut self) {
        if self.owes_marker && self.ring.len() < RING {
            self.ring.push_back(Event::Resync { dropped: self.dropped });
            self.owes_marker = false;
        }
    }

    fn open(&mut self) {
        self.next += 1;
        let note = note(self.next, self.next);
        self.sessions.insert(self.next, note);
        self.say(Event::Opened(note));
    }

    fn close(&mut self, pick: usize) {
        let Some(session) = self.sessions.keys().nth(pick % self.sessions.len().max(1)).copied() else {
            return;
        };
        let note = self.sessions.remove(&session).unwrap();
        self.say(Event::Closed(SessionNote { at_ns: 99, ..note }, Reason::PeerClosed));
    }

    fn obey(&mut self, command: Command) {
        let answer = match command.order {
            Order::ListSessions => {
                let listed: Vec<_> = self.sessions.values().copied().collect();
                for &session in &listed {
                    self.say(Event::Listed { request: command.request, session });
                }
                Answer::Done(listed.len() as u64)
            }
            Order::CloseSession(peer) => {
                let found = self.sessions.values().find(|note| note.peer == peer).copied();
                found.map_or(Answer::NotFound, |note| {
                    self.sessions.remove(&note.session);
                    self.say(Event::Closed(note, Reason::Ordered));
                    Answer::Done(1)
                })
            }
            _ => Answer::Done(1),
        };
        self.say(Event::Answered { request: command.request, answer });
    }
}

/// Moves at most so many events, and then as many commands: events first, as the channel does, so that a listing finds room.
fn exchange(mirror: &mut Mirror, models: &mut [Model], most: usize, now: Nanos) {
    for (worker, model) in models.iter_mut().enumerate() {
        for _ in 0..most {
            if let Some(event) = model.ring.pop_front() {
                mirror.handle_event(worker, &event, now);
            }
            model.turn();
        }
        for _ in 0..most {
            if let Some(command) = mirror.next_command(worker) {
                mirror.command_sent(worker);
                model.obey(command);
            }
        }
    }
}

fn table(mirror: &Mirror) -> Vec<(usize, u64, Nanos)> {
    let mut table: Vec<_> =
        mirror.sessions().map(|session| (session.worker, session.note.session, session.note.at_ns)).collect();
    table.sort_unstable();
    table
}

fn truth(models: &[Model]) -> Vec<(usize, u64, Nanos)> {
    let rows = models.iter().enumerate();
    rows.flat_map(|(worker, model)| {
        model.sessions.values().map(move |note| (worker, note.session, note.at_ns))
    })
    .collect()
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Open(usize),
    Close(usize, usize),
    Exchange(usize),
    Attach,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..2_usize).prop_map(Step::Open),
        3 => (0..2_usize, any::<usize>()).prop_map(|(worker, pick)| Step::Close(worker, pick)),
        4 => (0..6_usize).prop_map(Step::Exchange),
        1 => Just(Step::Attach),
    ];
    proptest::collection::vec(step, 0..120)
}

proptest! {
    /// Whatever is dropped and whenever somebody attaches: once there is quiet, the picture is the truth, and every
    /// session of which an opening was heard and that is gone is in the log of the closed.
    #[test]
    fn in_quiet_the_picture_is_the_truth(steps in steps()) {
        let mut models = [Model::default(), Model::default()];
        let mut mirror = Mirror::default();
        mirror.attached(2, true, 0);
        for step in steps {
            match step {
                Step::Open(worker) => models[worker].open(),
                Step::Close(worker, pick) => models[worker].close(pick),
                Step::Exchange(most) => exchange(&mut mirror, &mut models, most, 5),
                Step::Attach => {
                    for model in &mut models {
                        model.ring.clear();
                        model.owes_marker = false;
                        model.dropped = 0;
                    }
                    mirror.attached(2, true, 5);
                }
            }
        }
        // A list longer than the ring can never be told at once here, as it is by a worker that pauses.
        for model in &mut models {
            while model.sessions.len() > RING - 4 {
                model.close(0);
            }
        }
        let mut now = 5;
        for _ in 0..20 {
            exchange(&mut mirror, &mut models, 2 * RING, now);
            now += LIST_AGAIN.as_nanos() as u64;
            mirror.handle_time(now);
        }
        prop_assert!(mirror.is_current());
        prop_assert_eq!(table(&mirror), truth(&models));
    }
}

#[test]
fn a_question_is_done_when_every_worker_has_answered() {
    let mut mirror = Mirror::default();
    assert_eq!(mirror.ask(Order::CloseSession(key(1)), 0), Err(AskError::Detached));
    let mut models = [Model::default(), Model::default()];
    models[0].open();
    models[1].open();
    mirror.attached(2, true, 0);
    exchange(&mut mirror, &mut models, 10, 0);
    exchange(&mut mirror, &mut models, 10, 0);
    assert_eq!(table(&mirror), truth(&models));

    let ticket = mirror.ask(Order::CloseSession(key(1)), 0).unwrap();
    exchange(&mut mirror, &mut models[..1], 10, 0);
    exchange(&mut mirror, &mut models[..1], 10, 0);
    assert_eq!(mirror.poll_outcome(), None, "one worker has not answered");
    exchange(&mut mirror, &mut models, 10, 0);
    exchange(&mut mirror, &mut models, 10, 0);
    assert_eq!(mirror.poll_outcome(), Some((ticket, Outcome::Done(2))));
    assert_eq!(table(&mirror), []);
    let closed: Vec<_> = mirror.closed().map(|closed| (closed.note.session, closed.reason)).collect();
    assert_eq!(closed, [(1, Some(Reason::Ordered)), (1, Some(Reason::Ordered))]);

    let ticket = mirror.ask(Order::CloseSession(key(9)), 0).unwrap();
    exchange(&mut mirror, &mut models, 10, 0);
    exchange(&mut mirror, &mut models, 10, 0);
    assert_eq!(mirror.poll_outcome(), Some((ticket, Outcome::NotFound)));
}

#[test]
fn bridges_are_collected_and_the_missing_counted() {
    let bridge = BridgeNote {
        source: key(1),
        destination: key(2),
        forth: 3,
        back: 4,
        forth_queued: 5,
        back_queued: 6,
        forth_limited: false,
        back_limited: true,
        since_ns: 7,
    };
    let mut mirror = Mirror::default();
    mirror.attached(2, true, 0);
    let ticket = mirror.ask(Order::ListBridges, 0).unwrap();
    let listed = Event::Bridged { request: ticket.0, bridge };
    let answered = |count| Event::Answered { request: ticket.0, answer: Answer::Done(count) };
    mirror.handle_event(0, &listed, 0);
    mirror.handle_event(0, &answered(1), 0);
    mirror.handle_event(0, &listed, 0);
    mirror.handle_event(1, &listed, 0);
    mirror.handle_event(1, &answered(3), 0);
    let list = BridgeList { bridges: vec![(0, bridge), (1, bridge)], missing: 2 };
    assert_eq!(mirror.poll_outcome(), Some((ticket, Outcome::Bridges(list))));
}

#[test]
fn questions_are_bounded_and_run_out_of_time() {
    let mut mirror = Mirror::default();
    mirror.attached(1, true, 0);
    let order = Order::Change(Setting::Hybrid(HybridPolicy::Off));
    let tickets: Vec<_> = (0..QUESTIONS_MAX).map(|_| mirror.ask(order, 0).unwrap()).collect();
    assert_eq!(mirror.ask(order, 0), Err(AskError::Busy));
    let late = ANSWER_TIMEOUT.as_nanos() as u64;
    assert_eq!(mirror.next_time(), Some(late));
    mirror.handle_time(late - 1);
    assert_eq!(mirror.poll_outcome(), None);
    mirror.handle_time(late);
    for ticket in tickets {
        assert_eq!(mirror.poll_outcome(), Some((ticket, Outcome::TimedOut)));
    }
    assert!(mirror.ask(order, late).is_ok(), "room again");
    // Commands nobody waits for are not sent any more.
    let mut sent = 0;
    while mirror.next_command(0).is_some() {
        mirror.command_sent(0);
        sent += 1;
    }
    assert_eq!(sent, 2, "the listing and the last question");
}

#[test]
fn an_answer_nobody_asked_for_and_one_given_twice_count_for_nothing() {
    let mut mirror = Mirror::default();
    mirror.attached(2, true, 0);
    let ticket = mirror.ask(Order::CloseSession(key(1)), 0).unwrap();
    let answer = |request| Event::Answered { request, answer: Answer::Done(1) };
    mirror.handle_event(0, &answer(u64::MAX), 0);
    mirror.handle_event(7, &answer(ticket.0), 0);
    mirror.handle_event(0, &answer(ticket.0), 0);
    mirror.handle_event(0, &answer(ticket.0), 0);
    assert_eq!(mirror.poll_outcome(), None);
    mirror.handle_event(1, &answer(ticket.0), 0);
    assert_eq!(mirror.poll_outcome(), Some((ticket, Outcome::Done(2))));
}

#[test]
fn a_new_data_plane_leaves_nothing_of_the_old_one_but_the_log() {
    let mut mirror = Mirror::default();
    mirror.attached(1, true, 0);
    mirror.handle_event(0, &Event::Opened(note(1, 3)), 3);
    let ticket = mirror.ask(Order::ListSessions, 3).unwrap();
    mirror.attached(1, false, 7);
    assert_eq!(mirror.poll_outcome(), Some((ticket, Outcome::Lost)));
    assert_eq!(table(&mirror), []);
    let closed: Vec<_> = mirror.closed().copied().collect();
    let expected = ClosedSession { worker: 0, note: note(1, 7), opened_ns: Some(3), reason: None };
    assert_eq!(closed, [expected]);
}

#[test]
fn the_log_of_the_closed_is_bounded_and_the_latest_comes_first() {
    let mut mirror = Mirror::default();
    mirror.attached(1, true, 0);
    for number in 0..3000 {
        mirror.handle_event(0, &Event::Closed(note(number, number), Reason::Dead), number);
    }
    let closed: Vec<_> = mirror.closed().map(|closed| closed.note.session).collect();
    assert_eq!(closed.len(), 1024);
    assert_eq!((closed[0], closed[1023]), (2999, 1976));
}
