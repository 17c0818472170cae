//! Two workers of one server, on real connections, on both drivers: a key that reconnects to the other worker displaces its
//! former session there.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringwire_dataplane::counters::{Counter, CounterBlock};
use ringwire_dataplane::driver::Driver;
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_dataplane::lane::LaneThreads;
use ringwire_dataplane::poll::PollDriver;
use ringwire_dataplane::ring::UringDriver;
use ringwire_dataplane::team::Team;
use ringwire_dataplane::worker::{Identity, Settings, Worker};
use ringwire_dataplane::{DriverChoice, Waker};
use ringwire_exchange::directory::Directory;
use ringwire_proto::identity::{PublicKey, SecretKey};
use ringwire_proto::noise::Hybrid;
use socket2::{Domain, Socket, Type};
use support::drivers::{current, on_each_driver};
use support::{LIMIT, Peer};

on_each_driver!(
    a_key_that_comes_to_the_other_worker_displaces_its_session,
    a_key_that_comes_to_both_at_once_keeps_one_session
);

const MEMORY_LEN: usize = 64 << 20;

fn a_key_that_comes_to_the_other_worker_displaces_its_session() {
    let stage = Stage::start(current());
    let secret = SecretKey::generate(&mut OsEntropy);
    // A client is done before the server is, and sessions of one key stand in the order in which they were filed.
    let filed = |count| wait_until(|| stage.sum(Counter::SessionsOpened) == count);
    let mut former = stage.connect(&secret, 0);
    filed(1);
    for round in 1..20 {
        let next = stage.connect(&secret, round % 2);
        filed(round as u64 + 1);
        wait_until(|| {
            former.pump();
            former.closed
        });
        assert_eq!(
            stage.directory.find(&secret.public_key()).map(|place| usize::from(place.worker)),
            Some(round % 2)
        );
        former = next;
    }
    assert_eq!(stage.sum(Counter::SessionsDisplaced), 19);
    assert_eq!((stage.open_sessions(), stage.directory.len()), (1, 1));
    former.settle();
    // It leaves by itself: its worker takes it out.
    drop(former);
    wait_until(|| stage.directory.is_empty());
    assert_eq!(stage.sum(Counter::LettersStale), 0);
    // Each of these letters found a worker asleep, or reading anyway.
    assert!(stage.sum(Counter::WorkersWoken) <= 19);
    stage.stop();
}

fn a_key_that_comes_to_both_at_once_keeps_one_session() {
    let stage = Stage::start(current());
    let secret = SecretKey::generate(&mut OsEntropy);
    for round in 1..=25 {
        let peers = std::thread::scope(|scope| {
            let connect = |worker| {
                let (stage, secret) = (&stage, &secret);
                scope.spawn(move || stage.connect(secret, worker))
            };
            [connect(0), connect(1)].map(|thread| thread.join().unwrap())
        });
        // A client is done before the server is: both must have been filed first.
        wait_until(|| stage.sum(Counter::SessionsOpened) == 2 * round && stage.open_sessions() == 1);
        assert_eq!(stage.directory.len(), 1);
        let place = stage.directory.find(&secret.public_key()).unwrap();
        let [first, second] = peers;
        let (mut stays, mut goes) = if place.worker == 0 { (first, second) } else { (second, first) };
        wait_until(|| {
            goes.pump();
            goes.closed
        });
        stays.settle();
        assert!(!stays.closed, "the session that the directory names lives");
    }
    stage.stop();
}

fn wait_until(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "it never came to that");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Two workers, each with a listener and a handshake lane of its own.
struct Stage {
    public_key: PublicKey,
    directory: Arc<Directory<PublicKey>>,
    stop: Arc<AtomicBool>,
    workers: Vec<Running>,
}

struct Running {
    address: SocketAddr,
    counters: Arc<CounterBlock>,
    waker: Waker,
    thread: JoinHandle<()>,
}

impl Stage {
    fn start(choice: DriverChoice) -> Self {
        let secret_key = SecretKey::generate(&mut OsEntropy);
        let public_key = secret_key.public_key();
        let identity = Arc::new(Identity { secret_key, public_key });
        let stop = Arc::<AtomicBool>::default();
        let teams = Team::of(2);
        let directory = Arc::clone(teams[0].directory());
        let mut workers = Vec::new();
        let mut seats: Vec<Sender<Team>> = Vec::new();
        for _ in 0..teams.len() {
            let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
            listener.listen(64).unwrap();
            let address = listener.local_addr().unwrap().as_socket().unwrap();
            let counters = Arc::new(CounterBlock::default());
            let (seat, seated) = channel();
            let (send_waker, wakers) = channel();
            let body = Body { identity: identity.clone(), counters: counters.clone(), stop: stop.clone() };
            let thread = std::thread::spawn(move || {
                let team = |waker: Waker| -> Team {
                    send_waker.send(waker).unwrap();
                    seated.recv().unwrap()
                };
                match choice {
                    DriverChoice::Poll => {
                        let driver = PollDriver::new(vec![listener], MEMORY_LEN).unwrap();
                        let waker = driver.waker();
                        body.run(driver, waker.clone(), team(waker));
                    }
                    DriverChoice::Uring | DriverChoice::Auto => {
                        let driver = UringDriver::new(vec![listener], MEMORY_LEN).unwrap();
                        let waker = driver.waker();
                        body.run(driver, waker.clone(), team(waker));
                    }
                }
            });
            workers.push(Running { address, counters, waker: wakers.recv().unwrap(), thread });
            seats.push(seat);
        }
        let wakers: Vec<Waker> = workers.iter().map(|worker| worker.waker.clone()).collect();
        for (mut team, seat) in teams.into_iter().zip(seats) {
            team.set_wakers(wakers.clone());
            seat.send(team).unwrap();
        }
        Self { public_key, directory, stop, workers }
    }

    fn connect(&self, secret: &SecretKey, worker: usize) -> Peer {
        let address = self.workers[worker].address;
        Peer::handshake(secret.clone(), self.public_key, address, Hybrid::Offer, &[]).unwrap()
    }

    fn sum(&self, counter: Counter) -> u64 {
        self.workers.iter().map(|worker| worker.counters.value(counter)).sum()
    }

    fn open_sessions(&self) -> u64 {
        // Closed first: what ends in between is counted as open still.
        let closed = self.sum(Counter::SessionsClosed);
        self.sum(Counter::SessionsOpened) - closed
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Release);
        for worker in self.workers {
            worker.waker.wake();
            worker.thread.join().unwrap();
        }
    }
}

struct Body {
    identity: Arc<Identity>,
    counters: Arc<CounterBlock>,
    stop: Arc<AtomicBool>,
}

impl Body {
    fn run<D: Driver>(self, driver: D, waker: Waker, team: Team) {
        let lane = LaneThreads::start(&self.identity, 1).unwrap();
        let mut worker =
            Worker::new(driver, 1, Settings::default(), lane.port(waker), self.counters, self.stop);
        worker.join(team);
        worker.run().unwrap();
    }
}
