//! Mailboxes between workers: a bounded ring per ordered pair, and one sleep word per worker.
//!
//! In go records of `WORDS` words for another worker; out come those of the others, in the order in which each sent them.
//! A worker's turn uses its [`Mailbox`] so:
//!
//! ```text
//!   receive, until empty or enough          (takes turns between the senders)
//!   send, any number of times               Full: park what it was about, never the worker; try again next turn
//!   wake_due                                once a turn: rings only for workers that sleep
//!   announce_sleep: true ── do not wait     something arrived meanwhile, or there is room again for what is parked
//!                   false ─ wait, then withdraw_sleep
//! ```
//!
//! A sender that found a mailbox full says so in a word beside the ring before it sleeps; the receiver rings for it once it
//! took something out. Both directions follow the protocol of [`ringwire_ipc::doorbell`]: write, fence, look at the other's
//! word. So no wake-up is lost, none needs a timer, and none is sent to a worker that is awake.

use std::sync::Arc;

use ringwire_ipc::doorbell::{Ringer, SleepWord, Sleeper};
use ringwire_ipc::ring::{Consumer, Producer, PushError, Ring};

use crate::WorkerIndex;
use crate::sync::{AtomicBool, Ordering, fence};

/// The receiver has as many records waiting as there is room for. What the record was about waits at the sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the mailbox is full")]
pub struct Full;

/// One worker's ends of all its rings. See the module's head.
#[derive(Debug)]
pub struct Mailbox<const SLOTS: usize, const WORDS: usize> {
    worker: WorkerIndex,
    /// The others, in order of their number.
    peers: Vec<Peer<SLOTS, WORDS>>,
    sleep: Arc<SleepWord>,
    sleeper: Sleeper,
    /// Which of `peers` is received from now, and how much in a row.
    turn: usize,
    taken: usize,
}

type Shared<const SLOTS: usize, const WORDS: usize> = Arc<Ring<SLOTS, WORDS>>;

#[derive(Debug)]
struct Peer<const SLOTS: usize, const WORDS: usize> {
    to: Producer<Shared<SLOTS, WORDS>, SLOTS, WORDS>,
    from: Consumer<Shared<SLOTS, WORDS>, SLOTS, WORDS>,
    /// The peer's own, and what this worker last rang for there.
    sleep: Arc<SleepWord>,
    ringer: Ringer,
    /// This worker found the peer's mailbox full; written by this worker alone.
    wants_room: Arc<AtomicBool>,
    /// What this worker last wrote there.
    is_parked: bool,
    /// The same of the peer, about what it sends to this worker.
    peer_wants_room: Arc<AtomicBool>,
    /// Since the last look at the peer's sleep word something was sent to it, taken from it.
    has_sent: bool,
    has_taken: bool,
}

/// The mailboxes of so many workers, in order of their number.
pub fn mailboxes<const SLOTS: usize, const WORDS: usize>(workers: WorkerIndex) -> Vec<Mailbox<SLOTS, WORDS>> {
    let count = usize::from(workers);
    let sleeps: Vec<_> = (0..count).map(|_| Arc::new(SleepWord::new())).collect();
    // By sender, then receiver; the diagonal is never used and holds no ring.
    let pair = |from, to| (from != to).then(|| (Arc::new(Ring::new()), Arc::new(AtomicBool::new(false))));
    let pairs: Vec<Vec<_>> = (0..count).map(|from| (0..count).map(|to| pair(from, to)).collect()).collect();
    let mailbox = |worker: WorkerIndex| {
        let me = usize::from(worker);
        let peer = |other: usize| {
            let (to, wants_room) = pairs[me][other].as_ref()?;
            let (from, peer_wants_room) = pairs[other][me].as_ref()?;
            Some(Peer {
                to: Producer::new(Arc::clone(to)),
                from: Consumer::new(Arc::clone(from)),
                sleep: Arc::clone(&sleeps[other]),
                ringer: Ringer::default(),
                wants_room: Arc::clone(wants_room),
                is_parked: false,
                peer_wants_room: Arc::clone(peer_wants_room),
                has_sent: false,
                has_taken: false,
            })
        };
        Mailbox {
            worker,
            peers: (0..count).filter_map(peer).collect(),
            sleep: Arc::clone(&sleeps[me]),
            sleeper: Sleeper::default(),
            turn: 0,
            taken: 0,
        }
    };
    (0..workers).map(mailbox).collect()
}

impl<const SLOTS: usize, const WORDS: usize> Mailbox<SLOTS, WORDS> {
    /// Whose it is.
    pub fn worker(&self) -> WorkerIndex {
        self.worker
    }

    /// Puts a record into the mailbox of another worker. It is woken, if it sleeps, by the next [`wake_due`](Self::wake_due).
    ///
    /// # Errors
    /// [`Full`] changes nothing. The worker's next sleep ends, or does not begin, once there is room.
    ///
    /// # Panics
    /// There is no worker `to`, or it is this one.
    pub fn send(&mut self, to: WorkerIndex, record: &[u64; WORDS]) -> Result<(), Full> {
        let peer = self.peer_mut(to);
        match peer.to.push(record) {
            Ok(()) => {
                peer.has_sent = true;
                Ok(())
            }
            Err(PushError::Full) => {
                peer.park(true);
                Err(Full)
            }
            Err(PushError::Fault(fault)) => {
                unreachable!("both ends of the ring are handles made here: {fault}")
            }
        }
    }

    /// Records that another worker's mailbox has room for now, at least.
    ///
    /// # Panics
    /// There is no worker `to`, or it is this one.
    pub fn room(&mut self, to: WorkerIndex) -> usize {
        self.peer_mut(to).room()
    }

    /// Says that there is something for `to` that needs room, as a [`send`](Self::send) that finds none does.
    ///
    /// # Panics
    /// There is no worker `to`, or it is this one.
    pub fn await_room(&mut self, to: WorkerIndex) {
        self.peer_mut(to).park(true);
    }

    /// Takes the next record and says whose it is. The senders have turns of at most `SLOTS` records.
    pub fn receive(&mut self) -> Option<(WorkerIndex, [u64; WORDS])> {
        for _ in 0..=self.peers.len() {
            if self.taken == SLOTS {
                self.next_turn();
            }
            let peer = self.peers.get_mut(self.turn)?;
            match peer.from.pop() {
                Ok(Some(record)) => {
                    peer.has_taken = true;
                    self.taken += 1;
                    return Some((self.peer_number(self.turn), record));
                }
                Ok(None) => self.next_turn(),
                Err(fault) => unreachable!("both ends of the ring are handles made here: {fault}"),
            }
        }
        None
    }

    /// Calls `wake` for each worker that sleeps and was sent something, or waits for room that there is now. Once per sleep of
    /// theirs. Call it once a turn, after the last send and receive.
    pub fn wake_due(&mut self, mut wake: impl FnMut(WorkerIndex)) {
        if self.peers.iter().any(|peer| peer.has_taken) {
            // SeqCst: partner is the fence in `announce_sleep`. What was taken comes before the look at who wants room.
            fence(Ordering::SeqCst);
        }
        for at in 0..self.peers.len() {
            let number = self.peer_number(at);
            let peer = &mut self.peers[at];
            let makes_room =
                std::mem::take(&mut peer.has_taken) && peer.peer_wants_room.load(Ordering::Relaxed);
            if (std::mem::take(&mut peer.has_sent) || makes_room) && peer.ringer.must_ring(&peer.sleep) {
                wake(number);
            }
        }
    }

    /// "From now on, wake me." True: do not wait, there is something to receive, or room for what found none.
    #[must_use = "waiting although something is there loses it until the next wake-up"]
    pub fn announce_sleep(&mut self) -> bool {
        self.sleeper.announce(&self.sleep);
        let mut is_ready = false;
        for peer in &mut self.peers {
            is_ready |= peer.from.is_ready();
            if peer.is_parked && peer.room() > 0 {
                // Whoever is still parked tries again in this turn and says so again, if it must.
                peer.park(false);
                is_ready = true;
            }
        }
        is_ready
    }

    /// Awake again, for whatever reason.
    pub fn withdraw_sleep(&mut self) {
        self.sleeper.withdraw(&self.sleep);
    }

    fn next_turn(&mut self) {
        self.turn = (self.turn + 1) % self.peers.len().max(1);
        self.taken = 0;
    }

    /// The number of the worker at a place of `peers`: its own is left out.
    fn peer_number(&self, at: usize) -> WorkerIndex {
        // There are at most as many peers as numbers.
        let at = at as WorkerIndex;
        at + WorkerIndex::from(at >= self.worker)
    }

    fn peer_mut(&mut self, number: WorkerIndex) -> &mut Peer<SLOTS, WORDS> {
        assert_ne!(number, self.worker, "a worker does not write to itself");
        &mut self.peers[usize::from(number) - usize::from(number > self.worker)]
    }
}

impl<const SLOTS: usize, const WORDS: usize> Peer<SLOTS, WORDS> {
    fn room(&mut self) -> usize {
        match self.to.room() {
            Ok(room) => room,
            Err(fault) => unreachable!("both ends of the ring are handles made here: {fault}"),
        }
    }

    fn park(&mut self, wants_room: bool) {
        if self.is_parked != wants_room {
            self.is_parked = wants_room;
            // Relaxed: the fence in `announce_sleep` puts it before the sleep; before that nobody needs to know.
            self.wants_room.store(wants_room, Ordering::Relaxed);
        }
    }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;

    type Small = Mailbox<4, 1>;

    fn woken_by(mailbox: &mut Small) -> Vec<WorkerIndex> {
        let mut woken = Vec::new();
        mailbox.wake_due(|worker| woken.push(worker));
        woken
    }

    #[test]
    fn records_reach_whom_they_are_for_in_order() {
        let mut all: Vec<Small> = mailboxes(3);
        for from in 0..3_u16 {
            for to in (0..3).filter(|&to| to != from) {
                for number in 0..3 {
                    all[usize::from(from)].send(to, &[u64::from(from) * 10 + number]).unwrap();
                }
            }
        }
        for (worker, mailbox) in all.iter_mut().enumerate() {
            assert_eq!(usize::from(mailbox.worker()), worker);
            let mut received: Vec<(u16, u64)> = Vec::new();
            while let Some((from, [number])) = mailbox.receive() {
                received.push((from, number));
            }
            let expected: Vec<(u16, u64)> = (0..3_u16)
                .filter(|&from| usize::from(from) != worker)
                .flat_map(|from| (0..3).map(move |number| (from, u64::from(from) * 10 + number)))
                .collect();
            assert_eq!(received, expected);
        }
    }

    #[test]
    fn a_busy_sender_does_not_keep_the_others_waiting() {
        let mut all: Vec<Small> = mailboxes(3);
        for _ in 0..4 {
            all[0].send(2, &[0]).unwrap();
        }
        all[1].send(2, &[1]).unwrap();
        let mut senders = Vec::new();
        for _ in 0..6 {
            senders.push(all[2].receive().unwrap().0);
            // It sends on as fast as it is read.
            let _ = all[0].send(2, &[0]);
        }
        assert_eq!(senders, [0, 0, 0, 0, 1, 0]);
    }

    #[test]
    fn nobody_who_is_awake_is_woken_and_a_sleeper_once() {
        let mut all: Vec<Small> = mailboxes(2);
        let [one, two] = &mut all[..] else { unreachable!("two were made") };
        one.send(1, &[1]).unwrap();
        assert!(woken_by(one).is_empty());
        assert!(two.announce_sleep(), "a record is there already");
        two.withdraw_sleep();
        assert_eq!(two.receive(), Some((0, [1])));
        assert!(!two.announce_sleep());
        assert!(woken_by(one).is_empty(), "nothing was sent since");
        one.send(1, &[2]).unwrap();
        assert_eq!(woken_by(one), [1]);
        one.send(1, &[3]).unwrap();
        assert!(woken_by(one).is_empty(), "rung already for this sleep");
        two.withdraw_sleep();
        assert!(!all[0].announce_sleep() && all[1].announce_sleep());
    }

    #[test]
    fn whoever_found_no_room_is_woken_when_there_is_some() {
        let mut all: Vec<Small> = mailboxes(2);
        let [one, two] = &mut all[..] else { unreachable!("two were made") };
        for number in 0..4 {
            assert_eq!(one.room(1), 4 - number as usize);
            one.send(1, &[number]).unwrap();
        }
        assert!(!one.announce_sleep(), "a full mailbox alone keeps nobody awake");
        two.receive().unwrap();
        assert!(woken_by(two).is_empty(), "nobody waits for this room");
        one.withdraw_sleep();
        one.send(1, &[4]).unwrap();
        assert_eq!(one.send(1, &[5]), Err(Full));
        assert!(!one.announce_sleep());
        two.receive().unwrap();
        assert_eq!(woken_by(two), [0]);
        assert!(one.announce_sleep(), "there is room for what found none");
        assert!(!one.announce_sleep(), "said once; whoever is still parked has tried again by now");
        one.withdraw_sleep();
        one.send(1, &[5]).unwrap();
        let numbers: Vec<u64> = std::iter::from_fn(|| two.receive()).map(|(_, [number])| number).collect();
        assert_eq!(numbers, [2, 3, 4, 5]);
    }

    #[test]
    fn one_worker_has_nobody_to_hear_from() {
        let mut all: Vec<Small> = mailboxes(1);
        assert_eq!(all[0].receive(), None);
        assert!(!all[0].announce_sleep());
        assert!(woken_by(&mut all[0]).is_empty());
    }
}
