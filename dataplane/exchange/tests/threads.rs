//! Real threads as workers: what loom shows of a few steps, of many.
#![cfg(not(feature = "loom"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, OnceLock};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use ringwire_exchange::directory::{Directory, Removed};
use ringwire_exchange::mailbox::{Mailbox, mailboxes};

const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1);

/// How long nothing may happen before the test gives up: a lost wake-up never ends.
const STUCK: Duration = Duration::from_secs(60);

/// The threads, whose `unpark` is the bell.
type Bells = OnceLock<Vec<Thread>>;

/// Rings for whom it may concern, then sleeps if there is nothing to do.
fn end_turn<const SLOTS: usize, const WORDS: usize>(mailbox: &mut Mailbox<SLOTS, WORDS>, bells: &Bells) {
    let bells = bells.get().unwrap();
    mailbox.wake_due(|worker| bells[usize::from(worker)].unpark());
    if !mailbox.announce_sleep() {
        let since = Instant::now();
        thread::park_timeout(STUCK);
        assert!(since.elapsed() < STUCK, "worker {} was never woken", mailbox.worker());
    }
    mailbox.withdraw_sleep();
}

/// Runs one thread for each mailbox.
fn run<const SLOTS: usize, const WORDS: usize, T: Send>(
    workers: u16,
    body: impl Fn(Mailbox<SLOTS, WORDS>, &Bells) -> T + Sync,
) -> Vec<T> {
    let bells = Bells::new();
    let ready = Barrier::new(usize::from(workers) + 1);
    thread::scope(|scope| {
        let threads: Vec<_> = mailboxes(workers)
            .into_iter()
            .map(|mailbox| {
                let (body, bells, ready) = (&body, &bells, &ready);
                scope.spawn(move || {
                    ready.wait();
                    body(mailbox, bells)
                })
            })
            .collect();
        bells.set(threads.iter().map(|thread| thread.thread().clone()).collect()).unwrap();
        ready.wait();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Three workers send to each other through mailboxes far too small, and sleep whenever they cannot go on.
#[test]
fn all_arrives_in_order_at_workers_that_sleep() {
    const EACH: u64 = 20_000;
    const WORKERS: u16 = 3;
    let received = run(WORKERS, |mut mailbox: Mailbox<4, 2>, bells| {
        let others: Vec<u16> = (0..WORKERS).filter(|&other| other != mailbox.worker()).collect();
        let mut next = HashMap::from([(others[0], 0), (others[1], 0)]);
        let mut expected = next.clone();
        while next.values().chain(expected.values()).any(|&number| number < EACH) {
            for &other in &others {
                let number = next.get_mut(&other).unwrap();
                while *number < EACH && mailbox.send(other, &[*number, !*number]).is_ok() {
                    *number += 1;
                }
            }
            while let Some((from, record)) = mailbox.receive() {
                let number = expected.get_mut(&from).unwrap();
                assert_eq!(record, [*number, !*number]);
                *number += 1;
            }
            if next.values().chain(expected.values()).any(|&number| number < EACH) {
                end_turn(&mut mailbox, bells);
            }
        }
        // The others may sleep until they hear of the last records and of the room.
        mailbox.wake_due(|worker| bells.get().unwrap()[usize::from(worker)].unpark());
        expected.values().sum::<u64>()
    });
    assert_eq!(received, [2 * EACH; 3]);
}

/// A worker's sessions: its table, and what it could not send yet.
struct Sessions<'a> {
    directory: &'a Directory<u64>,
    mailbox: Mailbox<8, 2>,
    /// Key and generation by number. Numbers are reused, as a table reuses places.
    open: HashMap<u64, (u64, u64)>,
    free: Vec<u64>,
    parked: VecDeque<(u16, [u64; 2])>,
    closed: usize,
}

impl Sessions<'_> {
    fn begin(&mut self, key: u64) {
        let number = self.free.pop().unwrap_or(self.open.len() as u64);
        let inserted = self.directory.insert(key, self.mailbox.worker(), number, ADDRESS);
        self.open.insert(number, (key, inserted.generation));
        for place in inserted.holder.into_iter().chain(inserted.crowded_out) {
            if place.worker == self.mailbox.worker() {
                self.close(place.session, place.generation);
            } else {
                self.parked.push_back((place.worker, [place.session, place.generation]));
            }
        }
    }

    /// Closes the session if it is still that one.
    fn close(&mut self, number: u64, generation: u64) {
        if self.open.get(&number).is_some_and(|open| open.1 == generation) {
            let (key, _) = self.open.remove(&number).unwrap();
            self.directory.remove(&key, generation, 0);
            self.free.push(number);
            self.closed += 1;
        }
    }

    fn exchange(&mut self) {
        while let Some(&(to, record)) = self.parked.front() {
            if self.mailbox.send(to, &record).is_err() {
                break;
            }
            self.parked.pop_front();
        }
        while let Some((_, [number, generation])) = self.mailbox.receive() {
            self.close(number, generation);
        }
    }
}

/// 10,000 reconnects of 100 keys against two workers; every third comes after its worker has noticed the end of a former
/// session, the others end its holder, on this worker or the other.
#[test]
fn reconnects_leave_a_holder_for_each_key_and_an_entry_for_each_session() {
    const KEYS: u64 = 100;
    const RECONNECTS: u64 = 10_000;
    let directory = Directory::default();
    let finished = AtomicUsize::new(0);
    let ends = run(2, |mailbox: Mailbox<8, 2>, bells| {
        let worker = u64::from(mailbox.worker());
        let mut sessions = Sessions {
            directory: &directory,
            mailbox,
            open: HashMap::new(),
            free: Vec::new(),
            parked: VecDeque::new(),
            closed: 0,
        };
        // Not random, but in another order at each worker; each key comes to both.
        for step in 0..RECONNECTS / 2 {
            let mut key = step * (7 + 6 * worker) % KEYS;
            if step % 3 == 0
                && let Some((&number, &(ending, generation))) = sessions.open.iter().next()
            {
                sessions.close(number, generation);
                key = ending;
            }
            sessions.begin(key);
            sessions.exchange();
            sessions.mailbox.wake_due(|worker| bells.get().unwrap()[usize::from(worker)].unpark());
        }
        while !sessions.parked.is_empty() {
            end_turn(&mut sessions.mailbox, bells);
            sessions.exchange();
        }
        finished.fetch_add(1, Ordering::SeqCst);
        bells.get().unwrap().iter().for_each(Thread::unpark);
        while finished.load(Ordering::SeqCst) < 2 {
            end_turn(&mut sessions.mailbox, bells);
            sessions.exchange();
        }
        sessions.exchange();
        (worker, sessions.open, sessions.closed)
    });
    assert_eq!(directory.len() as u64, KEYS);
    let (mut open, mut holders) = (0, 0);
    for (worker, sessions, _) in &ends {
        for (&number, &(key, generation)) in sessions {
            let place = directory.find(&key).unwrap();
            let is_holder = place.generation == generation;
            assert!(!is_holder || (u64::from(place.worker), place.session) == (*worker, number));
            (open, holders) = (open + 1, holders + u64::from(is_holder));
        }
    }
    assert_eq!(holders, KEYS, "each key's holder is a session that is open");
    let closed: usize = ends.iter().map(|(_, _, closed)| closed).sum();
    assert_eq!(closed as u64 + open, RECONNECTS, "each session was closed once, or is open");
    for (key, generation) in ends.iter().flat_map(|(_, sessions, _)| sessions.values()) {
        assert_ne!(directory.remove(key, *generation, 0), Removed::Nothing, "each session has its entry");
    }
    assert!(directory.is_empty(), "and there are no others");
}
