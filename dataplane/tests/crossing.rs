//! Bridges between sessions of two workers, on real connections, on both drivers: every byte verified, and nothing left behind.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use ringwire_dataplane::counters::{Counter, CounterBlock};
use ringwire_dataplane::driver::{Batch, Driver, Wait};
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_dataplane::inspect::Inspection;
use ringwire_dataplane::lane::InlineLane;
use ringwire_dataplane::mail::{Order, mailbox};
use ringwire_dataplane::poll::PollDriver;
use ringwire_dataplane::ring::UringDriver;
use ringwire_dataplane::team::Team;
use ringwire_dataplane::worker::{Identity, Settings, Worker};
use ringwire_dataplane::{DriverChoice, Waker};
use ringwire_proto::identity::{PublicKey, SecretKey};
use ringwire_proto::noise::Hybrid;
use ringwire_proto::yamux::StreamError;
use socket2::{Domain, Socket, Type};
use support::drivers::{current, on_each_driver};
use support::stage::{MEMORY_LEN, Stage, wait_until};
use support::{LIMIT, Peer, bridge, pattern};

on_each_driver!(
    bytes_cross_both_ways_in_order_whatever_their_frames,
    what_ends_in_mid_transfer_leaves_nothing_behind,
    keys_that_reconnect_here_and_there_leave_one_session_each,
    a_worker_that_is_awake_is_not_woken,
    a_dial_waits_for_a_proof_that_is_with_the_other_worker,
    memory_used_up_by_loans_comes_home,
);

fn pair(stage: &Stage) -> (Peer, Peer) {
    let connect = |worker| {
        let mut peer = stage.connect(&SecretKey::generate(&mut OsEntropy), worker);
        peer.settle();
        peer
    };
    (connect(0), connect(1))
}

/// Ends the workers: nothing is left of what crossed.
fn stop(stage: Stage) {
    let counters = [
        (Counter::StreamsOpened, Counter::StreamsClosed),
        (Counter::ForwardsOpened, Counter::ForwardsClosed),
        (Counter::BridgesOpened, Counter::BridgesClosed),
        (Counter::SessionsOpened, Counter::SessionsClosed),
    ];
    let blocks: Vec<_> = stage.workers.iter().map(|worker| worker.counters.clone()).collect();
    let directory = stage.directory.clone();
    let left = stage.stop();
    for Inspection {
        sessions,
        halves,
        streams,
        spans_queued,
        pool_held_len,
        extra_len,
        charged,
        loans,
        ..
    } in left
    {
        assert_eq!((sessions, halves, streams, spans_queued), (0, 0, 0, 0));
        assert_eq!((pool_held_len, extra_len, charged.0, loans), (0, 0, 0, (0, 0)));
    }
    for (opened, closed) in counters {
        let sum = |counter| blocks.iter().map(|block| block.value(counter)).sum::<u64>();
        assert_eq!(sum(opened), sum(closed), "{}", opened.name());
    }
    assert!(directory.is_empty());
}

/// Sends and verifies `len` bytes both ways, in writes of so many bytes.
fn transfer(a: &mut Peer, b: &mut Peer, streams: (u32, u32), len: usize, write_len: usize) {
    let (forth, back) = (pattern(1, 0, len), pattern(2, 0, len));
    let (mut sent, mut returned) = (0, 0);
    let (mut at_b, mut at_a) = (Vec::new(), Vec::new());
    let deadline = Instant::now() + LIMIT;
    while at_b.len() < len || at_a.len() < len {
        assert!(Instant::now() < deadline, "stuck at {} and {}", at_b.len(), at_a.len());
        for (peer, stream, source, done, sink) in [
            (&mut *a, streams.0, &forth, &mut sent, &mut at_a),
            (&mut *b, streams.1, &back, &mut returned, &mut at_b),
        ] {
            for _ in 0..64 {
                let piece = (*done + write_len).min(len);
                if *done == len {
                    break;
                }
                let Ok(taken) = peer.mux.write(stream, &source[*done..piece]) else { break };
                *done += taken;
            }
            let mut buffer = [0; 50_000];
            while let Ok(read @ 1..) = peer.mux.read(stream, &mut buffer) {
                sink.extend_from_slice(&buffer[..read]);
            }
            peer.pump();
        }
    }
    assert!(at_b == forth, "what arrived at b is what a sent");
    assert!(at_a == back, "what arrived at a is what b sent");
}

fn bytes_cross_both_ways_in_order_whatever_their_frames() {
    let stage = Stage::start(current());
    let (mut a, mut b) = pair(&stage);
    let mut total = 0;
    // Frames of which several fit a page, that fill several, and that are copied.
    for (len, write_len) in [(3_000_000, 7001), (4_000_000, 65_536), (150_000, 100)] {
        let streams = bridge(&mut a, &mut b);
        transfer(&mut a, &mut b, streams, len, write_len);
        total += 2 * len as u64;
        a.finish(streams.0);
        assert!(b.wait_end(streams.1), "finished, not reset");
        b.finish(streams.1);
        assert!(a.wait_end(streams.0));
    }
    assert_eq!(stage.sum(Counter::BridgesOpened), 3);
    assert_eq!(stage.sum(Counter::BridgesCrossing), 3);
    assert_eq!(stage.sum(Counter::BytesBridged), total);
    assert_eq!(stage.sum(Counter::BytesLent), total);
    assert_eq!(stage.sum(Counter::BytesDropped), 0);
    wait_until(|| stage.sum(Counter::BridgesClosed) == 3);
    stop(stage);
}

/// What happens in the middle of a transfer, to the streams or the sessions of `a` (who dialled) and `b`.
#[derive(Debug, Clone, Copy)]
enum Blow {
    SourceResets,
    DestinationResets,
    SourceFinishes,
    DestinationFinishes,
    SourceLeaves,
    DestinationLeaves,
}

fn what_ends_in_mid_transfer_leaves_nothing_behind() {
    use Blow::{
        DestinationFinishes, DestinationLeaves, DestinationResets, SourceFinishes, SourceLeaves, SourceResets,
    };
    let stage = Stage::start(current());
    for (round, blow) in [
        SourceResets,
        DestinationResets,
        SourceFinishes,
        DestinationFinishes,
        SourceLeaves,
        DestinationLeaves,
    ]
    .into_iter()
    .cycle()
    .take(12)
    .enumerate()
    {
        let (mut a, mut b) = pair(&stage);
        // Half of the rounds with an application at `b` that does not read, so that much is queued on the way.
        let reads = round % 2 == 0;
        let bridges: Vec<(u32, u32)> = (0..4).map(|_| bridge(&mut a, &mut b)).collect();
        for at in 0..60 {
            for &(on_a, on_b) in &bridges {
                let piece = pattern(3, 5000 * at, 5000);
                let _ = a.mux.write(on_a, &piece);
                let _ = b.mux.write(on_b, &piece);
                let mut buffer = [0; 20_000];
                let _ = a.mux.read(on_a, &mut buffer);
                if reads {
                    let _ = b.mux.read(on_b, &mut buffer);
                }
            }
            a.pump();
            b.pump();
        }
        let (on_a, on_b) = bridges[0];
        match blow {
            SourceResets => a.mux.reset(on_a),
            DestinationResets => b.mux.reset(on_b),
            SourceFinishes => a.finish(on_a),
            DestinationFinishes => b.finish(on_b),
            SourceLeaves | DestinationLeaves => {}
        }
        a.pump();
        b.pump();
        match blow {
            SourceResets => assert!(!b.wait_end(on_b), "{blow:?}"),
            DestinationResets => assert!(!a.wait_end(on_a), "{blow:?}"),
            // All of it, and then the end.
            SourceFinishes => assert!(b.wait_end(on_b), "{blow:?}"),
            DestinationFinishes => assert!(a.wait_end(on_a), "{blow:?}"),
            SourceLeaves => {
                a.abort();
                assert!(!b.wait_end(on_b), "{blow:?}");
                continue;
            }
            DestinationLeaves => {
                b.abort();
                assert!(!a.wait_end(on_a), "{blow:?}");
                continue;
            }
        }
        // Its neighbours live: what one of them writes now arrives behind what it wrote before.
        let (other_a, other_b) = bridges[1];
        let mut buffer = [0; 20_000];
        a.wait("credit of a neighbour", |a| {
            b.pump();
            let _ = b.mux.read(other_b, &mut buffer);
            a.mux.write(other_a, b"still here").ok().filter(|&taken| taken == 10)
        });
        // And both leave with everything under way.
    }
    wait_until(|| stage.open_sessions() == 0);
    wait_until(|| stage.sum(Counter::BridgesOpened) == stage.sum(Counter::BridgesClosed));
    assert_eq!(stage.sum(Counter::BridgesCrossing), 48);
    stop(stage);
}

/// How often keys reconnect in all, instead of the few times of a usual run: 100 keys then.
const RECONNECTS: &str = "RINGWIRE_RECONNECTS";

fn keys_that_reconnect_here_and_there_leave_one_session_each() {
    let full: Option<usize> = std::env::var(RECONNECTS).ok().map(|count| count.parse().unwrap());
    let (reconnects, key_count) = full.map_or((300, 20), |count| (count, 100));
    let stage = Stage::start(current());
    let keys: Vec<SecretKey> = (0..key_count).map(|_| SecretKey::generate(&mut OsEntropy)).collect();
    let live: Vec<Peer> = std::thread::scope(|scope| {
        let clients = keys.chunks(key_count / 4).map(|keys| {
            let stage = &stage;
            scope.spawn(move || {
                // The one before leaves when the next one is filed, so its place is another's when its worker learns of it.
                let mut live: Vec<Vec<Peer>> = keys.iter().map(|_| Vec::new()).collect();
                for round in 0..reconnects / key_count {
                    for (number, key) in keys.iter().enumerate() {
                        let mut peer = stage.connect(key, (round + number / 2) % 2);
                        // Filed: a client is done before its server is.
                        peer.settle();
                        live[number].push(peer);
                        if live[number].len() > 1 {
                            live[number].remove(0);
                        }
                    }
                }
                live.into_iter().flatten().collect::<Vec<Peer>>()
            })
        });
        let clients: Vec<_> = clients.collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    wait_until(|| stage.open_sessions() == key_count as u64);
    assert_eq!(stage.directory.len(), key_count);
    assert_eq!(stage.sum(Counter::SessionsOpened), (reconnects / key_count * key_count) as u64);
    // Those that the directory names are the newest: each can be dialled.
    let mut dialler = stage.connect(&SecretKey::generate(&mut OsEntropy), 0);
    for mut newest in live.into_iter() {
        bridge(&mut dialler, &mut newest);
    }
    drop(dialler);
    stop(stage);
}

/// Runs a test with what makes this driver.
macro_rules! with_driver {
    ($test:ident) => {
        match current() {
            DriverChoice::Poll => $test(|listener| {
                let driver = PollDriver::new(vec![listener], MEMORY_LEN).unwrap();
                let waker = driver.waker();
                (driver, waker)
            }),
            DriverChoice::Uring | DriverChoice::Auto => $test(|listener| {
                let driver = UringDriver::new(vec![listener], MEMORY_LEN).unwrap();
                let waker = driver.waker();
                (driver, waker)
            }),
        }
    };
}

fn a_worker_that_is_awake_is_not_woken() {
    with_driver!(awake_or_asleep);
}

fn a_dial_waits_for_a_proof_that_is_with_the_other_worker() {
    with_driver!(dial_before_proof);
}

fn memory_used_up_by_loans_comes_home() {
    with_driver!(exhausted_by_loans);
}

/// Two workers whose turns the test takes by itself, so that it knows which of them does what, and when.
struct Bench<D> {
    public_key: PublicKey,
    addresses: Vec<SocketAddr>,
    counters: Vec<Arc<CounterBlock>>,
    workers: Vec<Worker<D>>,
    batch: Batch,
}

impl<D: Driver> Bench<D> {
    /// Each job of the second worker's lane takes `lane_ns`.
    fn new(make: impl Fn(Socket) -> (D, Waker), lane_ns: u64) -> Self {
        let secret_key = SecretKey::generate(&mut OsEntropy);
        let public_key = secret_key.public_key();
        let identity = Arc::new(Identity { secret_key, public_key });
        let (mut workers, mut wakers) = (Vec::new(), Vec::new());
        let (mut addresses, mut counters) = (Vec::new(), Vec::new());
        for cost in [0, lane_ns] {
            let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
            listener.listen(64).unwrap();
            addresses.push(listener.local_addr().unwrap().as_socket().unwrap());
            let (driver, waker) = make(listener);
            wakers.push(waker);
            let block = Arc::new(CounterBlock::default());
            counters.push(block.clone());
            let cost = Box::new(move || cost);
            let lane = Box::new(InlineLane::with_cost(identity.clone(), Box::new(OsEntropy), 1, cost));
            workers.push(Worker::new(driver, 1, Settings::default(), lane, block, Arc::default()));
        }
        for (worker, mut team) in workers.iter_mut().zip(Team::of(2)) {
            team.set_wakers(wakers.clone());
            worker.join(team);
        }
        Self { public_key, addresses, counters, workers, batch: Batch::default() }
    }

    /// One turn that does not wait.
    fn turn(&mut self, worker: usize) {
        let wait = Wait { poll: true, ..self.workers[worker].begin_turn() };
        self.workers[worker].driver().turn(wait, &mut self.batch).unwrap();
        self.workers[worker].finish_turn(&mut self.batch);
    }

    /// Turns of both until it has come to that.
    fn turn_until(&mut self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !condition(self) {
            assert!(Instant::now() < deadline, "in vain: {what}");
            (0..2).for_each(|worker| self.turn(worker));
        }
    }

    fn connect(&self, worker: usize, secret: SecretKey) -> JoinHandle<Peer> {
        let (public_key, address) = (self.public_key, self.addresses[worker]);
        std::thread::spawn(move || Peer::handshake(secret, public_key, address, Hybrid::Off, &[]).unwrap())
    }
}

fn awake_or_asleep<D: Driver>(make: impl Fn(Socket) -> (D, Waker)) {
    let mut bench = Bench::new(make, 0);
    let connecting = [0, 1].map(|worker| bench.connect(worker, SecretKey::generate(&mut OsEntropy)));
    let bridging = std::thread::spawn(move || {
        let [mut a, mut b] = connecting.map(|peer| peer.join().unwrap());
        a.settle();
        b.settle();
        let (stream, _) = bridge(&mut a, &mut b);
        (a, b, stream)
    });
    bench.turn_until("a bridge", |_| bridging.is_finished());
    let (mut a, _b, stream) = bridging.join().unwrap();
    let counters = bench.counters[0].clone();
    let (lent, woken) = (Counter::BytesLent, Counter::WorkersWoken);
    // The first worker receives so many bytes and passes them on, in however many turns.
    let mut pass = |bench: &mut Bench<D>| {
        let before = counters.value(lent);
        a.write(stream, &[7; 3000]);
        let deadline = Instant::now() + LIMIT;
        while counters.value(lent) < before + 3000 {
            assert!(Instant::now() < deadline, "nothing is passed on");
            bench.turn(0);
        }
    };
    let before = counters.value(woken);
    for _ in 0..20 {
        // Busy with its turns: it reads what there is at the next one anyway.
        pass(&mut bench);
        bench.turn(1);
    }
    pass(&mut bench);
    assert!(bench.workers[1].begin_turn().poll, "there is something to read: it does not sleep");
    pass(&mut bench);
    assert_eq!(counters.value(woken), before, "awake all the time");
    bench.workers[1].finish_turn(&mut Batch::default());

    let wait = bench.workers[1].begin_turn();
    assert!(!wait.poll, "nothing is left: it sleeps");
    for _ in 0..5 {
        pass(&mut bench);
    }
    assert_eq!(counters.value(woken), before + 1, "woken once");
    // The wake-up ends its wait, however long that is; what else ends it comes first now and then.
    bench.workers[1].driver().turn(wait, &mut bench.batch).unwrap();
    bench.workers[1].finish_turn(&mut bench.batch);
}

fn dial_before_proof<D: Driver>(make: impl Fn(Socket) -> (D, Waker)) {
    let mut bench = Bench::new(make, 20_000_000);
    let dialling = bench.connect(0, SecretKey::generate(&mut OsEntropy));
    bench.turn_until("a session", |_| dialling.is_finished());
    let mut a = dialling.join().unwrap();
    let secret = SecretKey::generate(&mut OsEntropy);
    let key = secret.public_key();
    let proving = bench.connect(1, secret);
    let second = bench.counters[1].clone();
    bench.turn_until("message 3", |_| second.value(Counter::LaneJobs) == 2);
    // Its proof is with the lane; meanwhile it is dialled elsewhere.
    let stream = a.open();
    let signed = a.sign(&a.request(key));
    a.write_object(stream, &signed);
    let first = bench.counters[0].clone();
    let jobs = first.value(Counter::LaneResults);
    let deadline = Instant::now() + LIMIT;
    while first.value(Counter::LaneResults) == jobs {
        assert!(Instant::now() < deadline, "the request is never judged");
        // The other one's lane goes on with its turns, and so not now.
        bench.turn(0);
    }
    assert_eq!(first.value(Counter::RefusedDestination), 0, "the dial waits");
    bench.turn_until("a stream to the destination", |_| second.value(Counter::ForwardsOpened) == 1);
    assert_eq!(first.value(Counter::RefusedDestination), 0);
    // A dial to somebody who is not coming is refused as soon as that is known.
    let nobody = SecretKey::generate(&mut OsEntropy).public_key();
    let stream = a.open();
    let signed = a.sign(&a.request(nobody));
    a.write_object(stream, &signed);
    bench.turn_until("a refusal", |_| first.value(Counter::RefusedDestination) == 1);
    drop(proving);
}

fn exhausted_by_loans<D: Driver>(make: impl Fn(Socket) -> (D, Waker)) {
    let mut bench = Bench::new(make, 0);
    let (orders, mail) = mailbox();
    bench.workers[0].set_mail(mail);
    let connecting = [0, 1].map(|worker| bench.connect(worker, SecretKey::generate(&mut OsEntropy)));
    let bridging = std::thread::spawn(move || {
        let [mut a, mut b] = connecting.map(|peer| peer.join().unwrap());
        a.settle();
        b.settle();
        let streams = [bridge(&mut a, &mut b), bridge(&mut a, &mut b)];
        (a, b, streams)
    });
    bench.turn_until("two bridges", |_| bridging.is_finished());
    let (mut a, mut b, [(stalled, _), _]) = bridging.join().unwrap();
    // A window is with the destination, which reads its connection and gives no more credit; half of another waits at its
    // worker, on loan. Nobody waits for anybody else: the workers only go on with the turns that this thread gives them.
    let bytes = pattern(9, 0, 2 * 262_144);
    let enough = 262_144 + 131_072;
    let (counters, mut taken) = (bench.counters[0].clone(), 0);
    let deadline = Instant::now() + LIMIT;
    while counters.value(Counter::BytesLent) < enough {
        assert!(Instant::now() < deadline, "only {} bytes are lent", counters.value(Counter::BytesLent));
        taken += a.mux.write(stalled, &bytes[taken..]).unwrap_or(0);
        a.pump_without_waiting();
        b.pump_without_waiting();
        (0..2).for_each(|worker| bench.turn(worker));
    }
    let held = bench.workers[0].inspect();
    assert!(held.pool_held_len >= 100_000 && held.loans.0 > 0, "{held:?}");
    assert_eq!(counters.value(Counter::ResetsMemory), 0);
    // A report has a bridge that crosses once, with what the other worker said of its end.
    let report = bench.workers[0].report();
    let stalled_report = report.bridges.iter().find(|bridge| bridge.forth.bytes > 0).unwrap();
    assert_eq!((stalled_report.source, stalled_report.destination), (a.key, b.key));
    assert!(stalled_report.forth.bytes >= enough, "{stalled_report:?}");
    assert!(stalled_report.forth.window >= 262_144, "{stalled_report:?}");
    assert_eq!((report.bridges.len(), bench.workers[1].report().bridges.len()), (2, 0));

    let (answer, _answered) = crossbeam::channel::bounded(1);
    orders.send(Order::Budget(64 * 1024, answer)).unwrap();
    bench.turn_until("the reset", |_| counters.value(Counter::ResetsMemory) == 1);
    for _ in 0..20 {
        (0..2).for_each(|worker| bench.turn(worker));
    }
    let [first, second] = [0, 1].map(|worker| bench.workers[worker].inspect());
    assert_eq!((first.pool_held_len, first.loans, second.loans), (0, (0, 0), (0, 0)));
    assert_eq!(
        counters.value(Counter::ResetsMemory),
        1,
        "what was on its way home cost nobody else his stream"
    );
    assert_eq!(first.halves, 2, "the other bridge lives");
    bench.turn_until("the end of the stream at its source", |_| {
        a.pump_without_waiting();
        match a.mux.read(stalled, &mut [0; 64]) {
            Err(StreamError::Blocked) => false,
            Err(_) => true,
            Ok(_) => panic!("finished, not reset"),
        }
    });
    drop(b);
}
