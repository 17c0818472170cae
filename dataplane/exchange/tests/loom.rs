//! Models of the directory and the mailboxes, run by loom on every schedule.
//! `cargo test -p ringwire-exchange --features loom --test loom`
#![cfg(feature = "loom")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use loom::sync::{Condvar, Mutex};
use loom::thread;
use ringwire_exchange::directory::{Directory, Place};
use ringwire_exchange::mailbox::{Mailbox, mailboxes};
use ringwire_exchange::proofs::Proofs;

/// An eventfd as loom can schedule it: a count, and a wait that takes it.
#[derive(Default)]
struct ModelBell {
    count: Mutex<u64>,
    rung: Condvar,
}

impl ModelBell {
    fn ring(&self) {
        *self.count.lock().unwrap() += 1;
        self.rung.notify_one();
    }

    fn wait(&self) {
        let mut count = self.count.lock().unwrap();
        while *count == 0 {
            count = self.rung.wait(count).unwrap();
        }
        *count = 0;
    }
}

fn two<const SLOTS: usize, const WORDS: usize>() -> (Mailbox<SLOTS, WORDS>, Mailbox<SLOTS, WORDS>) {
    let mut all = mailboxes(2).into_iter();
    (all.next().unwrap(), all.next().unwrap())
}

/// Preemptions of a schedule at most, for the models whose schedules are too many to run all; loom's authors find that
/// two or three show nearly everything.
fn bounded(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// Receives so many records, asleep whenever there is none.
fn receive(mailbox: &mut Mailbox<1, 1>, count: u64, bell: &ModelBell, peer_bell: &ModelBell) {
    let mut expected = 1;
    while expected <= count {
        if let Some(received) = mailbox.receive() {
            assert_eq!(received, (0, [expected]));
            expected += 1;
            mailbox.wake_due(|_| peer_bell.ring());
            continue;
        }
        if !mailbox.announce_sleep() {
            bell.wait();
        }
        mailbox.withdraw_sleep();
    }
}

/// A sender that sleeps whenever there is no room, a receiver that sleeps whenever there is nothing: all arrives, and a
/// lost wake-up, for a record or for room, is a deadlock to loom.
#[test]
fn no_wake_up_is_lost_for_records_or_for_room() {
    bounded(3, || {
        let bells = [Arc::new(ModelBell::default()), Arc::new(ModelBell::default())];
        let [bell, peer_bell] = bells.clone();
        let (mut sender, mut receiver) = two::<1, 1>();
        let sending = thread::spawn(move || {
            for number in 1..=2 {
                while sender.send(1, &[number]).is_err() {
                    if !sender.announce_sleep() {
                        bell.wait();
                    }
                    sender.withdraw_sleep();
                }
                sender.wake_due(|_| peer_bell.ring());
            }
        });
        let [peer_bell, bell] = bells;
        receive(&mut receiver, 2, &bell, &peer_bell);
        sending.join().unwrap();
        assert_eq!(receiver.receive(), None);
    });
}

/// The model can see it: room that is looked at before the sleep is announced, instead of after, is missed.
#[test]
#[should_panic(expected = "deadlock")]
fn looking_for_room_too_early_loses_a_wake_up() {
    bounded(3, || {
        let bells = [Arc::new(ModelBell::default()), Arc::new(ModelBell::default())];
        let [bell, peer_bell] = bells.clone();
        let (mut sender, mut receiver) = two::<1, 1>();
        let sending = thread::spawn(move || {
            for number in 1..=2 {
                while sender.send(1, &[number]).is_err() {
                    let looked_early = sender.room(1) > 0;
                    let _ = sender.announce_sleep();
                    if !looked_early {
                        bell.wait();
                    }
                    sender.withdraw_sleep();
                }
                sender.wake_due(|_| peer_bell.ring());
            }
        });
        let [peer_bell, bell] = bells;
        receive(&mut receiver, 2, &bell, &peer_bell);
        sending.join().unwrap();
    });
}

/// What a worker has open: the generation of its one session of the key.
struct Sessions {
    worker: u16,
    directory: Arc<Directory<u8>>,
    mailbox: Mailbox<2, 2>,
    open: Vec<(u64, u64)>,
}

const KEY: u8 = 7;
const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1);

impl Sessions {
    /// A session begins; whoever holds its key is silent, and is closed here, or by the other worker.
    fn begin(&mut self, session: u64) {
        let inserted = self.directory.insert(KEY, self.worker, session, ADDRESS);
        self.open.push((session, inserted.generation));
        match inserted.holder {
            Some(place) if place.worker == self.worker => self.close(place.session, place.generation),
            Some(place) => self.mailbox.send(place.worker, &[place.session, place.generation]).unwrap(),
            None => {}
        }
    }

    /// Ends a session that may have ended before.
    fn close(&mut self, session: u64, generation: u64) {
        if let Some(at) = self.open.iter().position(|&open| open == (session, generation)) {
            self.open.remove(at);
            self.directory.remove(&KEY, generation, 0);
        }
    }

    fn obey(&mut self) {
        while let Some((_, [session, generation])) = self.mailbox.receive() {
            self.close(session, generation);
        }
    }
}

/// A key reconnects to two workers at once while a session of it ends by itself: one session is left, and it is the one
/// that the directory names. Session numbers are reused, as tables reuse places.
#[test]
fn reconnects_that_cross_leave_one_session() {
    loom::model(|| {
        let directory = Arc::new(Directory::with_shards(1));
        let (one, other) = two::<2, 2>();
        let sessions = |worker, mailbox| {
            let directory = Arc::clone(&directory);
            Sessions { worker, directory, mailbox, open: Vec::new() }
        };
        let (mut here, mut there) = (sessions(0, one), sessions(1, other));
        here.begin(1);
        let reconnecting = thread::spawn(move || {
            there.begin(1);
            there.obey();
            there
        });
        // Its connection breaks; then the client is back, in the same place of the table.
        let (session, generation) = here.open[0];
        here.close(session, generation);
        here.begin(1);
        here.obey();
        let mut there = reconnecting.join().unwrap();
        here.obey();
        there.obey();
        let open: Vec<Place> = [&here, &there]
            .iter()
            .flat_map(|at| {
                at.open.iter().map(|&(session, generation)| Place {
                    worker: at.worker,
                    session,
                    generation,
                    address: ADDRESS,
                    settled_at: 0,
                })
            })
            .collect();
        assert_eq!(open.len(), 1, "one session of a key is left");
        assert_eq!(directory.find(&KEY), Some(open[0]));
        assert_eq!(directory.len(), 1);
    });
}

/// A dial to a key whose proof is with another worker: either it finds the session, or it waits and is told.
#[test]
fn a_dial_never_misses_a_proof_that_was_under_way() {
    loom::model(|| {
        let directory = Arc::new(Directory::with_shards(1));
        let proofs = Arc::new(Proofs::of(2));
        let letters = Arc::new(loom::sync::atomic::AtomicUsize::new(0));
        proofs.begin(1);
        let proving = thread::spawn({
            let (directory, proofs, letters) =
                (Arc::clone(&directory), Arc::clone(&proofs), Arc::clone(&letters));
            move || {
                let _ = directory.insert(KEY, 1, 1, ADDRESS);
                proofs.decide(1, |worker| {
                    assert_eq!(worker, 0);
                    letters.fetch_add(1, loom::sync::atomic::Ordering::Release);
                });
            }
        });
        let waits_for = proofs.wait(0);
        let is_found = directory.find(&KEY).is_some();
        proving.join().unwrap();
        let is_told = letters.load(loom::sync::atomic::Ordering::Acquire) == 1;
        assert!(
            is_found || (waits_for == 1 && is_told),
            "found {is_found}, waits for {waits_for}, told {is_told}"
        );
    });
}
