use ringwire_proto::entry::ServerPart;

use super::*;

/// A machine with a clock, and what it asked for.
struct Rig {
    machine: Machine,
    start: Instant,
    now: Instant,
}

const UNIX_NS: i64 = 1_795_165_076_000_000_000;

fn content(available: i64) -> Content {
    Content::server("203.0.113.7:8081".to_owned(), available, String::new())
}

fn stored(sequence: u64, timestamp_ns: i64) -> Entry {
    Entry { sequence, timestamp_ns, server: Some(ServerPart::default()), ..Entry::default() }
}

const LATER: Failure = Failure::Transient(Duration::ZERO);

impl Rig {
    fn new() -> Self {
        let now = Instant::now();
        Self { machine: Machine::new(content(10), UPDATE_INTERVAL, now, 7), start: now, now }
    }

    fn unix_ns(&self) -> i64 {
        UNIX_NS + i64::try_from((self.now - self.start).as_nanos()).unwrap()
    }

    fn set(&mut self, available: i64) {
        self.machine.set_content(content(available), self.now);
    }

    fn action(&mut self) -> Option<Action> {
        let unix_ns = self.unix_ns();
        self.machine.next_action(self.now, unix_ns)
    }

    fn read(&mut self, read: Result<&Entry, Failure>) -> Option<Action> {
        let unix_ns = self.unix_ns();
        self.machine.handle_read(read, self.now, unix_ns)
    }

    fn post(&mut self, posted: Result<(), Failure>) {
        self.machine.handle_post(posted, self.now);
    }

    /// Advances to the machine's next time; how long that was.
    fn sleep(&mut self) -> Duration {
        let next = self.machine.next_time().expect("the machine is idle").max(self.now);
        let slept = next - self.now;
        self.now = next;
        slept
    }

    /// One whole update with an entry that is there; the sequence that was posted.
    fn update(&mut self, found: &Entry) -> u64 {
        assert_eq!(self.action(), Some(Action::Read));
        let Some(Action::Post(entry)) = self.read(Ok(found)) else { panic!("no post") };
        self.post(Ok(()));
        entry.sequence
    }
}

#[test]
fn a_fresh_entry_is_posted_once_and_only_after_a_genuine_not_found() {
    let mut rig = Rig::new();
    let mut posts = Vec::new();
    // 500, then a time-out, then the discovery's own not-found, then what was posted.
    for read in [Err(LATER), Err(LATER), Err(Failure::Permanent), Err(Failure::NotFound)] {
        assert_eq!(rig.action(), Some(Action::Read));
        if let Some(Action::Post(entry)) = rig.read(read) {
            assert_eq!(read, Err(Failure::NotFound));
            posts.push(entry);
            rig.post(Ok(()));
        } else {
            assert_eq!(rig.action(), None, "no second request at once");
            rig.sleep();
        }
    }
    assert_eq!(posts.iter().map(|entry| entry.sequence).collect::<Vec<_>>(), [0]);
    assert_eq!(posts[0].server, content(10).server);
    assert_eq!(rig.machine.pushed(), Some(&content(10)));
    rig.sleep();
    assert_eq!(rig.update(&posts[0]), 1);
}

#[test]
fn an_unchanged_entry_is_refreshed_a_little_more_often_than_once_a_minute() {
    let mut rig = Rig::new();
    for sequence in 5..50 {
        assert_eq!(rig.update(&stored(sequence, 0)), sequence + 1);
        assert_eq!(rig.action(), None);
        let slept = rig.sleep();
        assert!((54..=60).contains(&slept.as_secs()), "{slept:?}");
    }
}

#[test]
fn changes_are_collected_for_a_second_and_posted_as_they_are_then() {
    let mut rig = Rig::new();
    rig.update(&stored(1, 0));
    rig.set(9);
    assert_eq!(rig.action(), None);
    rig.now += Duration::from_millis(900);
    // A later change does not push the post away, or a busy server would never post.
    rig.set(8);
    assert_eq!(rig.sleep(), Duration::from_millis(100));
    assert_eq!(rig.action(), Some(Action::Read));
    let Some(Action::Post(entry)) = rig.read(Ok(&stored(2, 0))) else { panic!("no post") };
    assert_eq!(entry.server, content(8).server);
    rig.post(Ok(()));
    assert!(rig.sleep() > Duration::from_secs(50));
}

#[test]
fn ten_flaps_with_an_unchanged_set_cause_no_request() {
    let mut rig = Rig::new();
    rig.update(&stored(1, 0));
    let refresh = rig.machine.next_time().unwrap();
    for _ in 0..10 {
        rig.set(9);
        assert_eq!(rig.action(), None);
        rig.now += Duration::from_millis(500);
        rig.set(10);
        rig.now += Duration::from_millis(500);
        assert_eq!(rig.action(), None);
    }
    rig.now += Duration::from_secs(1);
    assert_eq!(rig.action(), None);
    assert_eq!(rig.machine.next_time(), Some(refresh), "the refresh is where it was");
}

#[test]
fn a_change_during_a_request_is_posted_after_it() {
    let mut rig = Rig::new();
    assert_eq!(rig.action(), Some(Action::Read));
    let Some(Action::Post(_)) = rig.read(Err(Failure::NotFound)) else { panic!("no post") };
    rig.set(9);
    assert_eq!(rig.action(), None, "one request at a time");
    rig.post(Ok(()));
    assert_eq!(rig.machine.pushed(), Some(&content(10)));
    assert_eq!(rig.sleep(), Duration::from_secs(1));
    rig.update(&stored(0, 0));
    assert_eq!(rig.machine.pushed(), Some(&content(9)));
}

#[test]
fn failures_are_waited_out_with_doubled_and_spread_waits() {
    let mut rig = Rig::new();
    let mut waits = Vec::new();
    for _ in 0..10 {
        assert_eq!(rig.action(), Some(Action::Read));
        rig.read(Err(LATER));
        // A change does not cut the wait short.
        rig.set(i64::try_from(waits.len()).unwrap());
        waits.push(rig.sleep().as_secs_f64());
    }
    for (index, wait) in waits.iter().enumerate() {
        let most = f64::from(1 << index.min(5)).min(30.0);
        assert!((most / 2.0..=most).contains(wait), "{waits:?}");
    }
    assert_eq!(rig.action(), Some(Action::Read));
    rig.read(Err(Failure::Transient(Duration::from_secs(45))));
    assert_eq!(rig.sleep(), Duration::from_secs(45), "the discovery's own wait counts");
    rig.update(&stored(1, 0));
    rig.sleep();
    assert_eq!(rig.action(), Some(Action::Read));
    rig.read(Err(LATER));
    assert!(rig.sleep() <= Duration::from_secs(1), "a success ends the doubling");
}

#[test]
fn what_nobody_can_cure_by_waiting_is_tried_once_a_minute() {
    let mut rig = Rig::new();
    assert_eq!(rig.action(), Some(Action::Read));
    let Some(Action::Post(_)) = rig.read(Err(Failure::NotFound)) else { panic!("no post") };
    rig.post(Err(Failure::Permanent));
    assert_eq!(rig.sleep(), UPDATE_INTERVAL);
    assert_eq!(rig.action(), Some(Action::Read));
}

#[test]
fn a_refused_sequence_is_read_again_at_most_five_times() {
    let mut rig = Rig::new();
    let mut waits = Vec::new();
    for sequence in 0..6 {
        assert_eq!(rig.action(), Some(Action::Read));
        let found = stored(sequence * 10, 0);
        let Some(Action::Post(entry)) = rig.read(Ok(&found)) else { panic!("no post") };
        assert_eq!(entry.sequence, sequence * 10 + 1);
        rig.post(Err(Failure::Sequence));
        waits.push(rig.sleep().as_millis());
    }
    assert_eq!(waits[..5], [100, 200, 400, 800, 1600]);
    assert!(waits[5] >= 54_000, "{waits:?}");
    assert_eq!(rig.update(&stored(70, 0)), 71);
}

#[test]
fn an_entry_posted_later_by_somebody_else_is_left_alone_until_the_next_update() {
    let mut rig = Rig::new();
    assert_eq!(rig.action(), Some(Action::Read));
    rig.read(Ok(&stored(4, 0)));
    rig.post(Err(Failure::Sequence));
    rig.sleep();
    assert_eq!(rig.action(), Some(Action::Read));
    assert_eq!(rig.read(Ok(&stored(9, rig.unix_ns() + 1))), None);
    assert!(rig.sleep() >= Duration::from_secs(54));
    assert_eq!(rig.update(&stored(9, 0)), 10);
}

#[test]
fn a_clock_that_was_set_back_never_posts_an_earlier_time() {
    let mut rig = Rig::new();
    assert_eq!(rig.action(), Some(Action::Read));
    let ahead_ns = rig.unix_ns() + 3_000_000_000;
    let Some(Action::Post(entry)) = rig.read(Ok(&stored(4, ahead_ns))) else { panic!("no post") };
    assert_eq!((entry.sequence, entry.timestamp_ns), (5, ahead_ns));
}

#[test]
fn a_stored_time_that_no_discovery_would_take_again_is_not_imitated() {
    let mut rig = Rig::new();
    assert_eq!(rig.action(), Some(Action::Read));
    let (now_ns, ahead_ns) = (rig.unix_ns(), rig.unix_ns() + 600_000_000_000);
    let Some(Action::Post(entry)) = rig.read(Ok(&stored(4, ahead_ns))) else { panic!("no post") };
    assert_eq!((entry.sequence, entry.timestamp_ns), (5, now_ns));
}

#[test]
fn a_stop_deletes_what_may_be_there_and_nothing_else() {
    let mut rig = Rig::new();
    rig.machine.stop();
    assert!(rig.machine.is_stopped(), "nothing was ever posted");

    let mut rig = Rig::new();
    rig.update(&stored(1, 0));
    rig.machine.stop();
    assert!(!rig.machine.is_stopped());
    assert!(matches!(rig.action(), Some(Action::Delete(_))));
    rig.machine.handle_delete();
    assert!(rig.machine.is_stopped());
    assert_eq!(rig.action(), None);

    // In the middle of a read: its answer is awaited, and nothing is posted any more.
    let mut rig = Rig::new();
    assert_eq!(rig.action(), Some(Action::Read));
    rig.machine.stop();
    assert_eq!(rig.read(Err(Failure::NotFound)), None);
    assert!(rig.machine.is_stopped());

    let mut rig = Rig::new();
    assert_eq!(rig.action(), Some(Action::Read));
    rig.machine.stop();
    assert_eq!(rig.read(Ok(&stored(1, 0))), None);
    assert!(matches!(rig.action(), Some(Action::Delete(_))), "an entry of an earlier run");

    // In the middle of a post that failed on its way back: it may have arrived.
    let mut rig = Rig::new();
    assert_eq!(rig.action(), Some(Action::Read));
    rig.read(Err(Failure::NotFound));
    rig.machine.stop();
    rig.post(Err(LATER));
    assert!(matches!(rig.action(), Some(Action::Delete(_))), "not held back by the wait");
}

#[test]
fn answers_that_nobody_waits_for_change_nothing() {
    let mut rig = Rig::new();
    assert_eq!(rig.read(Err(Failure::NotFound)), None);
    rig.post(Ok(()));
    rig.machine.handle_delete();
    assert_eq!(rig.machine.pushed(), None);
    assert_eq!(rig.action(), Some(Action::Read));
}
