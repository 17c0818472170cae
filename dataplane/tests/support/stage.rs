//! A few workers of one server, each with a listener and a handshake lane of its own, on threads of the test.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringwire_dataplane::counters::{Counter, CounterBlock};
use ringwire_dataplane::driver::Driver;
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_dataplane::inspect::Inspection;
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

use super::{LIMIT, Peer};

pub const MEMORY_LEN: usize = 64 << 20;

pub fn wait_until(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "it never came to that");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Two workers, each with a listener and a handshake lane of its own.
pub struct Stage {
    public_key: PublicKey,
    pub directory: Arc<Directory<PublicKey>>,
    stop: Arc<AtomicBool>,
    pub workers: Vec<Running>,
}

pub struct Running {
    pub address: SocketAddr,
    pub counters: Arc<CounterBlock>,
    pub waker: Waker,
    thread: JoinHandle<Inspection>,
}

impl Stage {
    pub fn start(choice: DriverChoice) -> Self {
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
                        body.run(driver, waker.clone(), team(waker))
                    }
                    DriverChoice::Uring | DriverChoice::Auto => {
                        let driver = UringDriver::new(vec![listener], MEMORY_LEN).unwrap();
                        let waker = driver.waker();
                        body.run(driver, waker.clone(), team(waker))
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

    pub fn connect(&self, secret: &SecretKey, worker: usize) -> Peer {
        let address = self.workers[worker].address;
        Peer::handshake(secret.clone(), self.public_key, address, Hybrid::Offer, &[]).unwrap()
    }

    pub fn sum(&self, counter: Counter) -> u64 {
        self.workers.iter().map(|worker| worker.counters.value(counter)).sum()
    }

    pub fn open_sessions(&self) -> u64 {
        // Closed first: what ends in between is counted as open still.
        let closed = self.sum(Counter::SessionsClosed);
        self.sum(Counter::SessionsOpened) - closed
    }

    /// Ends them, and says what each holds then.
    pub fn stop(self) -> Vec<Inspection> {
        self.stop.store(true, Ordering::Release);
        for worker in &self.workers {
            worker.waker.wake();
        }
        self.workers.into_iter().map(|worker| worker.thread.join().unwrap()).collect()
    }
}

struct Body {
    identity: Arc<Identity>,
    counters: Arc<CounterBlock>,
    stop: Arc<AtomicBool>,
}

impl Body {
    fn run<D: Driver>(self, driver: D, waker: Waker, team: Team) -> Inspection {
        let lane = LaneThreads::start(&self.identity, 1).unwrap();
        let mut worker =
            Worker::new(driver, 1, Settings::default(), lane.port(waker), self.counters, self.stop);
        worker.join(team);
        worker.run().unwrap();
        worker.inspect()
    }
}
