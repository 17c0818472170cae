//! The lane's threads, shared by all workers of a process.
//!
//! A worker writes to an inbox and reads from its own list of results, both without locks, so that a thread of lower priority
//! can never hold it up. The queue itself belongs to whichever lane thread looks for its next job. Threads run at a slightly
//! lower priority than the workers: a flood of handshakes cannot delay a forwarded byte, and yet saturated workers cannot
//! starve handshakes, as they would those of the idle class.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{JoinHandle, Thread};

use crossbeam::channel::{Receiver, Sender, unbounded};

use super::queue::Port;
use super::{Class, Done, Finding, Job, JobQueue, Lane, Owner, Verifier};
use crate::driver::Nanos;
use crate::entropy::OsEntropy;
use crate::limits;
use crate::waker::Waker;
use crate::worker::Identity;

/// Lane threads unless configured otherwise: one on a machine of two cores or fewer, else one for every two workers, at
/// least two and never more than there are cores.
///
/// All workers share them. A lane of its own for each would be a second thread for each core, idle beside workers that
/// forward, and no help to the one worker that many clients come to at a time.
pub fn default_threads(workers: usize) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    threads_for(workers, cores)
}

fn threads_for(workers: usize, cores: usize) -> usize {
    if cores <= 2 { 1 } else { workers.div_ceil(2).clamp(2, cores) }
}

/// The lane's threads cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("a thread of the handshake lane did not start: {0}. Raise the limit of threads (`ulimit -u`)")]
pub struct StartLaneError(#[from] io::Error);

/// The running lane. Dropping it ends its threads; jobs that wait are dropped.
#[derive(Debug)]
pub struct LaneThreads {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// Unbounded by itself: what may be in it is bounded by what each port may have under way.
    inbox: Receiver<Message>,
    to_inbox: Sender<Message>,
    state: Mutex<State>,
    beds: Arc<Beds>,
    stop: AtomicBool,
}

#[derive(Debug)]
enum Message {
    Job(Port, Job),
    Cancel(Port, Owner),
}

#[derive(Debug, Default)]
struct State {
    queue: JobQueue,
    homes: Vec<Arc<Home>>,
}

/// Where the lane's threads sleep. The channel's own wait is not used: it spins and yields for some 10 us before it sleeps,
/// twice in every handshake.
#[derive(Debug)]
struct Beds(Box<[Bed]>);

#[derive(Debug, Default)]
struct Bed {
    /// Set by the thread that wants to sleep, cleared by whoever wakes it.
    is_asleep: AtomicBool,
    thread: OnceLock<Thread>,
}

impl Beds {
    /// Wakes a thread for something that is in the inbox or in the queue, if one sleeps.
    fn wake_one(&self) {
        // The other half of this is in `sleep`: either that thread sees what was sent, or this one sees it asleep.
        fence(Ordering::SeqCst);
        let _ = self.0.iter().any(Bed::wake);
    }

    fn wake_all(&self) {
        fence(Ordering::SeqCst);
        for bed in &self.0 {
            bed.wake();
        }
    }
}

impl Bed {
    /// Whether a thread was asleep here.
    fn wake(&self) -> bool {
        let was_asleep =
            self.is_asleep.load(Ordering::Relaxed) && self.is_asleep.swap(false, Ordering::AcqRel);
        if was_asleep && let Some(thread) = self.thread.get() {
            thread.unpark();
        }
        was_asleep
    }

    /// Sleeps until it is woken, unless there is `news` since the bed was made.
    fn sleep(&self, news: impl FnOnce() -> bool) {
        fence(Ordering::SeqCst);
        if news() {
            self.is_asleep.store(false, Ordering::Relaxed);
        }
        while self.is_asleep.load(Ordering::Acquire) {
            std::thread::park();
        }
    }
}

/// Where the results of one worker go.
#[derive(Debug)]
struct Home {
    results: Sender<Done>,
    waker: Waker,
    /// The worker has been woken and has not looked yet.
    is_woken: AtomicBool,
    /// The worker is gone.
    is_left: AtomicBool,
}

impl LaneThreads {
    /// Starts `threads` threads (at least one) that act for `identity`.
    ///
    /// # Errors
    /// The kernel's: threads are used up.
    pub fn start(identity: &Arc<Identity>, threads: usize) -> Result<Self, StartLaneError> {
        let (to_inbox, inbox) = unbounded();
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            inbox,
            to_inbox,
            state: Mutex::new(State::default()),
            beds: Arc::new(Beds((0..threads).map(|_| Bed::default()).collect())),
            stop: AtomicBool::new(false),
        });
        let mut lane = Self { shared, threads: Vec::new() };
        for index in 0..threads {
            let shared = Arc::clone(&lane.shared);
            let verifier = Verifier::new(Arc::clone(identity), Box::new(OsEntropy));
            let builder = std::thread::Builder::new().name(format!("lane-{index}"));
            lane.threads.push(builder.spawn(move || shared.run(verifier, &shared.beds.0[index]))?);
        }
        Ok(lane)
    }

    /// A worker's way in and out; `waker` wakes that worker when results have come.
    pub fn port(&self, waker: Waker) -> Box<dyn Lane> {
        let (send, results) = unbounded();
        let home = Arc::new(Home {
            results: send,
            waker,
            is_woken: AtomicBool::new(false),
            is_left: AtomicBool::new(false),
        });
        let mut state = self.shared.lock();
        let port = state.homes.len();
        state.homes.push(Arc::clone(&home));
        let (inbox, beds) = (self.shared.to_inbox.clone(), Arc::clone(&self.shared.beds));
        Box::new(LanePort { port, home, inbox, beds, results, established: 0, strangers: 0 })
    }
}

impl Drop for LaneThreads {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.beds.wake_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the handshake lane had panicked");
            }
        }
    }
}

/// Messages moved to the queue at a time.
const MESSAGES_MAX: usize = 4096;

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in the state is left halfway by a panic of another thread: each change is a whole one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, mut verifier: Verifier, bed: &Bed) {
        // Of this thread alone: nobody has set it before.
        let _ = bed.thread.set(std::thread::current());
        // Of this thread alone, as Linux has it. Always permitted: it is downwards, also where the whole process was started
        // with a lower priority.
        let lowered = rustix::process::getpriority_process(None)
            .and_then(|nice| rustix::process::setpriority_process(None, nice + limits::LANE_NICE));
        if let Err(error) = lowered {
            tracing::warn!(%error, "the handshake lane runs at the priority of the workers");
        }
        let mut unannounced = Unannounced::default();
        while !self.stop.load(Ordering::Acquire) {
            match self.next(bed) {
                Some((home, job)) => {
                    let done = Done { owner: job.owner, finding: verifier.run(job.work) };
                    unannounced.deliver(home, done);
                }
                None => {
                    unannounced.announce();
                    bed.sleep(|| !self.inbox.is_empty() || self.stop.load(Ordering::Acquire));
                }
            }
        }
    }

    /// The next job. `None`: there is none, and this thread's bed is made.
    fn next(&self, bed: &Bed) -> Option<(Arc<Home>, Job)> {
        let mut state = self.lock();
        for message in self.inbox.try_iter().take(MESSAGES_MAX) {
            state.handle(message);
        }
        loop {
            let Some((port, job)) = state.queue.pop() else {
                // Under the lock: who puts a job into the queue sees it.
                bed.is_asleep.store(true, Ordering::Release);
                return None;
            };
            let Some(home) = state.homes.get(port).map(Arc::clone) else { continue };
            if home.is_left.load(Ordering::Acquire) {
                continue;
            }
            // This thread may have emptied the inbox for others that were to look into it.
            if !state.queue.is_empty() {
                self.beds.wake_one();
            }
            return Some((home, job));
        }
    }
}

impl State {
    fn handle(&mut self, message: Message) {
        match message {
            Message::Job(port, job) => {
                if let Some((port, job)) = self.queue.push(port, job)
                    && let Some(home) = self.homes.get(port)
                {
                    // Told with its next result: it has some under way.
                    let _ = home.results.send(Done { owner: job.owner, finding: Finding::Refused });
                }
            }
            Message::Cancel(port, owner) => {
                if self.queue.cancel(port, owner).is_some()
                    && let Some(home) = self.homes.get(port)
                {
                    // Not worth waking anybody.
                    let _ = home.results.send(Done { owner, finding: Finding::Cancelled });
                }
            }
        }
    }
}

impl Home {
    fn announce(&self) {
        if !self.is_woken.swap(true, Ordering::AcqRel) {
            self.waker.wake();
        }
    }
}

/// Results that their workers have not been told of: while jobs wait, several are worth one wake-up.
#[derive(Debug, Default)]
struct Unannounced(Vec<Arc<Home>>);

impl Unannounced {
    fn deliver(&mut self, home: Arc<Home>, done: Done) {
        // A worker that is gone has no use for it.
        if home.results.send(done).is_ok() {
            self.0.push(home);
        }
        if self.0.len() >= limits::LANE_RESULTS_PER_WAKE {
            self.announce();
        }
    }

    /// Wakes those that were not told. Always before this thread sleeps.
    fn announce(&mut self) {
        for home in self.0.drain(..) {
            home.announce();
        }
    }
}

/// One worker's side of the lane.
#[derive(Debug)]
struct LanePort {
    port: Port,
    home: Arc<Home>,
    inbox: Sender<Message>,
    beds: Arc<Beds>,
    results: Receiver<Done>,
    /// Jobs under way.
    established: usize,
    strangers: usize,
}

impl Lane for LanePort {
    fn submit(&mut self, _now: Nanos, job: Job) -> Result<(), Job> {
        let (under_way, most) = match job.class {
            // The queue refuses whoever has most when it is full; what is refused comes back as a result. This bounds what is on the
            // way, whatever the lane's threads get done.
            Class::Established(_) => (&mut self.established, 2 * limits::ESTABLISHED_JOBS_MAX),
            Class::Stranger(_) => (&mut self.strangers, 2 * limits::STRANGER_JOBS_MAX),
        };
        if *under_way >= most {
            return Err(job);
        }
        *under_way += 1;
        // The inbox lives as long as this sender's clone in the lane; after the end of the lane nobody answers, as at a stop.
        let _ = self.inbox.send(Message::Job(self.port, job));
        self.beds.wake_one();
        Ok(())
    }

    fn cancel(&mut self, owner: Owner) {
        let _ = self.inbox.send(Message::Cancel(self.port, owner));
        self.beds.wake_one();
    }

    fn take(&mut self, _now: Nanos) -> Option<Done> {
        let done = match self.results.try_recv() {
            Ok(done) => done,
            Err(_) => {
                // Between the last look and this store a result may have come without a wake-up: look once more.
                if !self.home.is_woken.swap(false, Ordering::AcqRel) {
                    return None;
                }
                self.results.try_recv().ok()?
            }
        };
        match done.owner {
            Owner::Half(_) => self.established -= 1,
            Owner::Session(_) => self.strangers -= 1,
        }
        Some(done)
    }

    fn due(&self) -> Option<Nanos> {
        None
    }
}

impl Drop for LanePort {
    fn drop(&mut self) {
        self.home.is_left.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::IpAddr;
    use std::time::{Duration, Instant};

    use ringwire_proto::identity::SecretKey;
    use ringwire_proto::noise::Hybrid;

    use super::super::Work;
    use super::*;
    use crate::prefix::Prefix;
    use crate::slab::Key;
    use crate::waker::WakeEvent;

    const LIMIT: Duration = Duration::from_secs(60);

    fn start(threads: usize) -> LaneThreads {
        let secret_key = SecretKey::generate(&mut OsEntropy);
        let identity = Arc::new(Identity { public_key: secret_key.public_key(), secret_key });
        LaneThreads::start(&identity, threads).unwrap()
    }

    fn owner(index: u32) -> Owner {
        Owner::Session(Key { index, generation: 7 })
    }

    fn job(index: u32) -> Job {
        let prefix = Prefix::from(IpAddr::from([10, 0, 0, (index % 3) as u8]));
        // Not a message: the verifier has its work with it all the same.
        let frame = vec![0, 49];
        Job {
            owner: owner(index),
            class: Class::Stranger(prefix),
            work: Work::Greet { frame, hybrid: Hybrid::Offer },
        }
    }

    /// Takes results as a worker does: sleeping until it is woken, and only then looking.
    fn collect(port: &mut dyn Lane, event: &WakeEvent, count: usize) -> Vec<Done> {
        let mut all = Vec::new();
        let deadline = Instant::now() + LIMIT;
        while all.len() < count {
            assert!(Instant::now() < deadline, "only {} of {count}", all.len());
            let mut waits = [rustix::event::PollFd::new(event, rustix::event::PollFlags::IN)];
            let patience = rustix::time::Timespec { tv_sec: 1, tv_nsec: 0 };
            if rustix::event::poll(&mut waits, Some(&patience)).unwrap() == 0 {
                continue;
            }
            event.clear();
            all.extend(std::iter::from_fn(|| port.take(0)));
        }
        all
    }

    #[test]
    fn there_are_never_more_threads_than_cores() {
        let of = |workers, cores| threads_for(workers, cores);
        assert_eq!([of(1, 1), of(2, 2), of(64, 2)], [1, 1, 1]);
        assert_eq!([of(1, 4), of(4, 4), of(6, 16), of(16, 16), of(64, 16)], [2, 2, 3, 8, 16]);
    }

    #[test]
    fn each_worker_gets_its_own_results_each_once_and_is_woken_for_them() {
        let lane = start(2);
        let workers: Vec<(WakeEvent, Box<dyn Lane>)> = (0..3)
            .map(|_| {
                let event = WakeEvent::new().unwrap();
                let port = lane.port(event.waker());
                (event, port)
            })
            .collect();
        std::thread::scope(|scope| {
            for (event, mut port) in workers {
                scope.spawn(move || {
                    for round in 0..20 {
                        for index in 0..50 {
                            port.submit(0, job(50 * round + index)).unwrap();
                        }
                        let results = collect(&mut *port, &event, 50);
                        let owners: BTreeSet<Owner> = results.iter().map(|done| done.owner).collect();
                        let expected: BTreeSet<Owner> =
                            (0..50).map(|index| owner(50 * round + index)).collect();
                        assert_eq!(owners, expected);
                        assert!(results.iter().all(|done| matches!(done.finding, Finding::Greeted(Err(_)))));
                    }
                });
            }
        });
    }

    #[test]
    fn what_is_cancelled_comes_back_too_and_a_worker_that_left_holds_up_nobody() {
        let lane = start(1);
        let event = WakeEvent::new().unwrap();
        let mut left = lane.port(event.waker());
        for index in 0..500 {
            left.submit(0, job(index)).unwrap();
        }
        drop(left);
        let mut port = lane.port(event.waker());
        for index in 0..200 {
            port.submit(0, job(index)).unwrap();
            if index % 2 == 0 {
                port.cancel(owner(index));
            }
        }
        // The last is not cancelled, so a wake-up comes when all the others are there.
        let results = collect(&mut *port, &event, 200);
        let owners: BTreeSet<Owner> = results.iter().map(|done| done.owner).collect();
        assert_eq!((results.len(), owners.len()), (200, 200), "each once");
    }

    /// Wherever the process itself stands: an absolute value could be above it.
    #[test]
    fn its_threads_are_nicer_than_who_started_them() {
        let ours = rustix::process::getpriority_process(None).unwrap() + 3;
        let nice_of = |task: &std::path::Path| -> Option<i32> {
            let stat = std::fs::read_to_string(task.join("stat")).ok()?;
            let (name, rest) = stat.rsplit_once(')')?;
            name.contains("(lane-").then(|| rest.split_whitespace().nth(16)?.parse().ok())?
        };
        // Of this test's thread alone.
        rustix::process::setpriority_process(None, ours).unwrap();
        let _lane = start(1);
        let deadline = Instant::now() + LIMIT;
        let expected = (ours + limits::LANE_NICE).min(19);
        let tasks = || std::fs::read_dir("/proc/self/task").unwrap().flatten();
        while !tasks().any(|task| nice_of(&task.path()) == Some(expected)) {
            assert!(Instant::now() < deadline, "no thread of a lane has {expected}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The word of the end must reach every thread, also when another one, or its own last look for work, took it along.
    #[test]
    fn a_lane_ends_at_whatever_moment() {
        const ROUNDS: usize = 2000;
        let (send_done, done) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for round in 0..ROUNDS {
                let lane = start(1 + round % 2);
                let event = WakeEvent::new().unwrap();
                let mut port = lane.port(event.waker());
                // Many, and nobody wants them any more: all is taken from the inbox, and there is nothing to do.
                for index in 0..round as u32 % 300 {
                    port.submit(0, job(index)).unwrap();
                }
                drop(port);
                drop(lane);
                send_done.send(()).unwrap();
            }
        });
        for round in 0..ROUNDS {
            done.recv_timeout(LIMIT).unwrap_or_else(|_| panic!("round {round} does not end"));
        }
    }

    #[test]
    fn the_bound_of_jobs_is_kept_and_comes_free_again() {
        let lane = start(1);
        let event = WakeEvent::new().unwrap();
        let mut port = lane.port(event.waker());
        let half = |index| {
            let session = Key { index: 1, generation: 0 };
            let owner = Owner::Half(Key { index, generation: 0 });
            Job {
                owner,
                class: Class::Established(session),
                work: Work::Greet { frame: Vec::new(), hybrid: Hybrid::Offer },
            }
        };
        // Those that wait are fewer: what is beyond comes back as refused.
        let most = 2 * limits::ESTABLISHED_JOBS_MAX as u32;
        for index in 0..most {
            port.submit(0, half(index)).unwrap();
        }
        let refused = port.submit(0, half(most)).unwrap_err();
        assert_eq!(refused.owner, Owner::Half(Key { index: most, generation: 0 }), "it comes back whole");
        port.submit(0, job(1)).expect("strangers have a bound of their own");
        collect(&mut *port, &event, most as usize + 1);
        port.submit(0, half(0)).unwrap();
    }
}
