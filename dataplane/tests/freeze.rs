//! A worker is frozen and thawed again and again under a verified transfer of 64 streams: on real connections, on both drivers.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringwire_dataplane::counters::{Counter, CounterBlock};
use ringwire_dataplane::driver::{Batch, Driver};
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_dataplane::freeze::{FreezeError, Frozen};
use ringwire_dataplane::lane::{InlineLane, LaneThreads};
use ringwire_dataplane::poll::PollDriver;
use ringwire_dataplane::ring::UringDriver;
use ringwire_dataplane::worker::{Identity, Settings, Worker};
use ringwire_dataplane::{DriverChoice, Waker};
use ringwire_proto::identity::{PublicKey, SecretKey};
use ringwire_proto::noise::Hybrid;
use ringwire_proto::smux::Version;
use socket2::{Domain, Socket, Type};
use support::drivers::{current, on_each_driver};
use support::{LIMIT, Peer, pattern};

on_each_driver!(a_transfer_survives_fifty_hand_overs);

const STREAMS: usize = 64;
const LEN: usize = 400_000;
const HAND_OVERS: u64 = 50;
const MEMORY_LEN: usize = 256 << 20;

fn a_transfer_survives_fifty_hand_overs() {
    let stage = Stage::start(current());
    // One of either multiplexer.
    let (mut a, mut b) = (stage.connect(None), stage.connect(Some(Version::V2)));
    let bridges: Vec<(u32, u32)> = (0..STREAMS).map(|_| support::bridge(&mut a, &mut b)).collect();
    stage.hand_over.store(true, Ordering::Relaxed);
    let sender = std::thread::spawn({
        let bridges = bridges.clone();
        move || {
            let bytes: Vec<Vec<u8>> = (0..STREAMS).map(|seed| pattern(seed as u64, 0, LEN)).collect();
            let mut sent = [0; STREAMS];
            let deadline = Instant::now() + 3 * LIMIT;
            while !a.closed && sent.iter().any(|&sent| sent < LEN) {
                assert!(Instant::now() < deadline, "sent only {sent:?}");
                for (index, &(stream, _)) in bridges.iter().enumerate() {
                    // Pieces of a size that matches nothing.
                    let piece = (sent[index] + 3333).min(LEN);
                    if let Ok(taken) = a.mux.write(stream, &bytes[index][sent[index]..piece]) {
                        sent[index] += taken;
                    }
                }
                a.pump();
            }
            for &(stream, _) in &bridges {
                a.wait_end(stream);
            }
            assert!(!a.closed, "the session lived through it");
        }
    });
    // All streams in turns: an smux client that leaves too much unread leaves its connection unread.
    let mut got = vec![Vec::new(); STREAMS];
    let deadline = Instant::now() + 3 * LIMIT;
    while got.iter().any(|got| got.len() < LEN) {
        assert!(Instant::now() < deadline, "got only {:?}", got.iter().map(Vec::len).collect::<Vec<_>>());
        let mut buffer = [0; 65_536];
        for (got, &(_, stream)) in got.iter_mut().zip(&bridges) {
            if let Ok(len) = b.mux.read(stream, &mut buffer) {
                got.extend_from_slice(&buffer[..len]);
            }
        }
        b.pump();
    }
    for (index, got) in got.iter().enumerate() {
        assert!(*got == pattern(index as u64, 0, LEN), "stream {index}");
    }
    // The hand-overs go on beside idle streams too, until there were enough.
    let deadline = Instant::now() + 3 * LIMIT;
    while stage.counters.value(Counter::Thaws) < HAND_OVERS {
        assert!(Instant::now() < deadline, "{} hand-overs", stage.counters.value(Counter::Thaws));
        b.pump();
    }
    for &(_, stream) in &bridges {
        let now = b.now();
        b.mux.finish(now, stream);
    }
    b.pump();
    sender.join().unwrap();
    assert_eq!(stage.counters.value(Counter::BridgesOpened), STREAMS as u64);
    assert_eq!(stage.counters.value(Counter::BytesDropped), 0);
    stage.stop();
}

#[test]
fn what_is_no_frozen_worker_is_refused_by_name() {
    let thaw = |bytes: Vec<u8>| {
        let driver = PollDriver::new(Vec::new(), MEMORY_LEN).unwrap();
        let secret_key = SecretKey::generate(&mut OsEntropy);
        let identity = Arc::new(Identity { public_key: secret_key.public_key(), secret_key });
        let lane = Box::new(InlineLane::new(identity, Box::new(OsEntropy)));
        let (counters, stop) = (Arc::default(), Arc::default());
        let frozen = Frozen::from_bytes(bytes);
        Worker::thaw(&frozen, driver, 0, Settings::default(), lane, counters, stop).unwrap_err()
    };
    assert!(matches!(thaw(vec![0x63]), FreezeError::Version { found: 0x63 }));
    assert!(matches!(thaw(Vec::new()), FreezeError::Malformed(_)));
    let this_version = ringwire_dataplane::freeze::VERSION as u8;
    assert!(matches!(thaw(vec![this_version, 1, 2, 3]), FreezeError::Malformed(_)));
}

/// A worker on a thread of its own that is replaced by its thawed self every few milliseconds.
struct Stage {
    address: SocketAddr,
    public_key: PublicKey,
    counters: Arc<CounterBlock>,
    stop: Arc<AtomicBool>,
    hand_over: Arc<AtomicBool>,
    waker: Waker,
    thread: JoinHandle<()>,
}

impl Stage {
    fn start(driver: DriverChoice) -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(64).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let secret_key = SecretKey::generate(&mut OsEntropy);
        let public_key = secret_key.public_key();
        let identity = Arc::new(Identity { secret_key, public_key });
        let counters = Arc::new(CounterBlock::default());
        let (stop, hand_over) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let (send_waker, wakers) = std::sync::mpsc::channel();
        let thread = std::thread::spawn({
            let (counters, stop, hand_over) = (counters.clone(), stop.clone(), hand_over.clone());
            move || match driver {
                DriverChoice::Poll => {
                    let driver = PollDriver::new(vec![listener], MEMORY_LEN).unwrap();
                    let waker = driver.waker();
                    send_waker.send(waker.clone()).unwrap();
                    run(driver, &waker, &identity, &counters, &stop, &hand_over);
                }
                DriverChoice::Uring | DriverChoice::Auto => {
                    let driver = UringDriver::new(vec![listener], MEMORY_LEN).unwrap();
                    let waker = driver.waker();
                    send_waker.send(waker.clone()).unwrap();
                    run(driver, &waker, &identity, &counters, &stop, &hand_over);
                }
            }
        });
        let waker = wakers.recv().unwrap();
        Self { address, public_key, counters, stop, hand_over, waker, thread }
    }

    fn connect(&self, smux: Option<Version>) -> Peer {
        let secret = SecretKey::generate(&mut OsEntropy);
        let mut peer = Peer::handshake(secret, self.public_key, self.address, Hybrid::Offer, &[]).unwrap();
        if let Some(version) = smux {
            peer.speak_smux(version);
        }
        peer.settle();
        peer
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Release);
        self.waker.wake();
        self.thread.join().unwrap();
    }
}

fn run<D: Driver>(
    driver: D,
    waker: &Waker,
    identity: &Arc<Identity>,
    counters: &Arc<CounterBlock>,
    stop: &Arc<AtomicBool>,
    hand_over: &AtomicBool,
) {
    let settings = Settings::default();
    let lane = LaneThreads::start(identity, 1).unwrap();
    let port = lane.port(waker.clone());
    let mut worker = Worker::new(driver, 1, settings.clone(), port, counters.clone(), stop.clone());
    let mut batch = Batch::default();
    let mut since = Instant::now();
    while !stop.load(Ordering::Acquire) {
        worker.turn(&mut batch).unwrap();
        if hand_over.load(Ordering::Relaxed) && since.elapsed() > Duration::from_millis(3) {
            let (mut driver, frozen) = worker.freeze().unwrap();
            assert_eq!(driver.pool().held_len(), 0, "a frozen worker holds no page");
            // The listener is armed still: the successor must not ask for it twice.
            worker = Worker::thaw(
                &frozen,
                driver,
                0,
                settings.clone(),
                lane.port(waker.clone()),
                counters.clone(),
                stop.clone(),
            )
            .unwrap();
            since = Instant::now();
        }
    }
}
