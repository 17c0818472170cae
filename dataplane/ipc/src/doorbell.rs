//! How a sleeping consumer is woken: a word in shared memory that says "I sleep", and an eventfd that is rung only then.
//!
//! ```text
//!   consumer                                   producer
//!   1. sleep word := next odd number           1. publish the record
//!   2. fence                                   2. fence
//!   3. look again; something there: stay up    3. sleep word odd, and not the one last rung for: ring the bell
//!   4. wait for the bell
//!   5. sleep word := next even number
//! ```
//!
//! Of two sequentially consistent fences one comes first, so either the consumer's second look sees the record or the
//! producer sees the announcement; a wake-up cannot be lost. The word has one writer, and each side keeps its own memory
//! of it. `tests/loom.rs` checks this with this code.
//!
//! [`Sleeper`] and [`Ringer`], which the ring's handles contain (workers that wait for several rings share one word among
//! these instead, see `ringwire-exchange`), make no system call; [`Bell`] is the eventfd. A worker
//! that waits in its io_uring announces, looks again, waits with a poll on the bell, and withdraws. In the other
//! direction the bell is a [`SocketBell`]: the process that waits for an eventfd can make ringing it block.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{Errno, IoSliceMut, ReadWriteFlags};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, recv, send, shutdown, socketpair,
};

use crate::sync::{AtomicU64, Ordering, fence};

/// How often its consumer has announced or withdrawn sleep: odd while it sleeps. Part of a
/// [`Ring`](crate::ring::Ring), or one for all rings of a consumer. See the module's head.
#[derive(Debug)]
#[repr(transparent)]
pub struct SleepWord(AtomicU64);

impl SleepWord {
    /// Awake. Zeroed memory says the same.
    pub fn new() -> Self {
        Self(AtomicU64::new(0))
    }
}

impl Default for SleepWord {
    fn default() -> Self {
        Self::new()
    }
}

/// The consumer's memory of its sleep word. It never reads the shared one, so a hostile producer that overwrites it
/// gains no more than by not ringing.
#[derive(Debug, Default)]
pub struct Sleeper {
    changes: u64,
}

impl Sleeper {
    /// "From now on, ring." Look again after this and before waiting.
    pub fn announce(&mut self, word: &SleepWord) {
        // To the next odd number; announcing twice is a new announcement.
        self.changes = self.changes.wrapping_add(1 + (self.changes & 1));
        word.0.store(self.changes, Ordering::Relaxed);
        // SeqCst: partner is the fence in `must_ring`. The store above comes before the look that follows.
        fence(Ordering::SeqCst);
    }

    /// Awake again, whatever the reason.
    pub fn withdraw(&mut self, word: &SleepWord) {
        self.changes = self.changes.wrapping_add(self.changes & 1);
        // Relaxed: a producer that still sees the announcement rings once too often, which ends the next wait early.
        word.0.store(self.changes, Ordering::Relaxed);
    }
}

/// The producer's memory of the announcement it last rang for. A hostile consumer that announces all the time costs one
/// ring of the bell per look, so look once per batch.
#[derive(Debug, Default)]
pub struct Ringer {
    rung_for: u64,
}

impl Ringer {
    /// After publishing: whether the bell must be rung. True once per announcement.
    #[must_use = "the consumer sleeps on if its bell is not rung"]
    pub fn must_ring(&mut self, word: &SleepWord) -> bool {
        // SeqCst: partner is the fence in `announce`. The publication comes before the load below.
        fence(Ordering::SeqCst);
        let changes = word.0.load(Ordering::Relaxed);
        let must = changes & 1 == 1 && changes != self.rung_for;
        if must {
            self.rung_for = changes;
        }
        must
    }
}

/// The bell: an eventfd that both processes hold. Its count is of no meaning beyond "not zero".
#[derive(Debug)]
pub struct Bell(OwnedFd);

impl Bell {
    /// A new bell, not rung.
    ///
    /// # Errors
    /// The kernel's: descriptors are used up.
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// The bell behind a descriptor that the other process passed.
    pub fn from_descriptor(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }

    /// Ends the current or the next wait. Call it when [`Producer::must_ring`](crate::ring::Producer::must_ring) said so.
    ///
    /// The other process holds the same open file and could make it blocking and fill its count. A thread that must not
    /// wait for it under any circumstances writes to the bell through its io_uring instead.
    ///
    /// # Errors
    /// The descriptor is none that can be written to.
    pub fn ring(&self) -> io::Result<()> {
        loop {
            match rustix::io::write(&self.0, &1_u64.to_ne_bytes()) {
                // A full count wakes as well as any other.
                Ok(_) | Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Silences the bell. Do so before draining, never after: a ring in between would be forgotten.
    ///
    /// # Errors
    /// The descriptor is none that can be read from without waiting.
    pub fn silence(&self) -> io::Result<()> {
        let mut count = [0; 8];
        // "No wait" in the call itself, because the other process can change the mode of the shared open file.
        let read = rustix::io::preadv2(
            &self.0,
            &mut [IoSliceMut::new(&mut count)],
            u64::MAX,
            ReadWriteFlags::NOWAIT,
        );
        match read {
            // Not rung is silent already; an interrupted read leaves it rung, which ends the next wait early.
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until the bell is rung, for at most `timeout`, and silences it. Returns early after a signal. For
    /// [`Consumer::sleep`](crate::ring::Consumer::sleep).
    ///
    /// # Errors
    /// The kernel's: the descriptor cannot be polled or read.
    pub fn wait(&self, timeout: Duration) -> io::Result<()> {
        let timeout = Timespec {
            // Beyond the range of seconds is for ever in practice.
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => Ok(()),
            Ok(_) => self.silence(),
            Err(error) => Err(error.into()),
        }
    }
}

/// A bell whose ringing never waits, whatever the other process does to it: one end of a pair of sockets. For a worker that
/// rings for the control plane. Both ends can ring and wait.
#[derive(Debug)]
pub struct SocketBell(OwnedFd);

impl SocketBell {
    /// The two ends of a new bell, not rung.
    ///
    /// # Errors
    /// The kernel's: descriptors are used up.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        Ok((Self(one), Self(other)))
    }

    /// The end behind a descriptor that the other process passed.
    pub fn from_descriptor(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }

    /// Another handle on the same end.
    ///
    /// # Errors
    /// The kernel's: descriptors are used up.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Ends the current or the next wait of the other end, without waiting itself. A bell that nobody hears any more, or
    /// that is as rung as it can be, needs no ringing.
    pub fn ring(&self) {
        // "No wait" in the call, because a mode of the socket would be the other process's to change.
        let _ = send(&self.0, &[1], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }

    /// Ends the conversation for every handle on this end: the other end learns that it is gone for good.
    pub fn hang_up(&self) {
        // Fails where the other end is gone already, which is as good.
        let _ = shutdown(&self.0, Shutdown::Both);
    }

    /// Silences this end: do so before draining. False when the other end is gone for good.
    pub fn silence(&self) -> bool {
        let mut rings = [0; 256];
        match recv(&self.0, &mut rings[..], RecvFlags::DONTWAIT) {
            Ok((_, 0)) => false,
            // More rings than fit only end the next wait early.
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => true,
            Err(_) => false,
        }
    }
}

impl AsFd for SocketBell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(all(test, not(any(feature = "loom", feature = "shuttle"))))]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn one_ring_per_announcement() {
        let word = SleepWord::new();
        let (mut sleeper, mut ringer) = (Sleeper::default(), Ringer::default());
        assert!(!ringer.must_ring(&word));
        for _ in 0..3 {
            sleeper.announce(&word);
            assert!(ringer.must_ring(&word));
            assert!(!ringer.must_ring(&word));
            sleeper.announce(&word);
            assert!(ringer.must_ring(&word), "announced again without withdrawing");
            sleeper.announce(&word);
            sleeper.withdraw(&word);
            sleeper.withdraw(&word);
            assert!(!ringer.must_ring(&word));
        }
    }

    #[test]
    fn an_early_ring_ends_the_next_wait_and_only_that() {
        let bell = Bell::new().unwrap();
        bell.ring().unwrap();
        bell.ring().unwrap();
        let start = Instant::now();
        bell.wait(Duration::from_secs(120)).unwrap();
        assert!(start.elapsed() < Duration::from_secs(60));
        let start = Instant::now();
        bell.wait(Duration::from_millis(20)).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn a_socket_bell_never_waits_and_tells_when_the_other_end_is_gone() {
        let (ours, theirs) = SocketBell::pair().unwrap();
        // Far more than the kernel stores, on a socket that the other side may have made blocking.
        for _ in 0..100_000 {
            ours.ring();
        }
        let mut fds = [PollFd::new(&theirs, PollFlags::IN)];
        assert_eq!(poll(&mut fds, Some(&Timespec::default())).unwrap(), 1);
        while poll(&mut [PollFd::new(&theirs, PollFlags::IN)], Some(&Timespec::default())).unwrap() == 1 {
            assert!(theirs.silence());
        }
        assert!(theirs.silence(), "silent and still there");
        drop(ours);
        assert!(!theirs.silence());
        theirs.ring();
    }

    #[test]
    fn one_of_several_handles_can_hang_up_for_all() {
        let (ours, theirs) = SocketBell::pair().unwrap();
        let (one, another) = (ours.try_clone().unwrap(), ours.try_clone().unwrap());
        drop(ours);
        assert!(theirs.silence(), "others hold it");
        one.hang_up();
        another.ring();
        assert!(!theirs.silence());
    }

    #[test]
    fn silencing_does_not_wait_even_if_the_other_side_made_the_bell_blocking() {
        let bell = Bell::new().unwrap();
        rustix::fs::fcntl_setfl(&bell, rustix::fs::OFlags::empty()).unwrap();
        bell.silence().unwrap();
    }
}
