//! What thousands of strangers cost before they have proved anything: at most 4 KiB of memory each, all in, and given back; and a MiB
//! for those with a long message 1, all together.
//!
//! A counting allocator watches this process, which is the server; the strangers are another process (this program again), so
//! that neither runs out of descriptors. `RINGWIRE_STRANGERS=15000` makes the crowd as large as the promise says; the times of
//! honest handshakes beside it are printed with `--nocapture`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(unsafe_code, reason = "a global allocator is an unsafe trait")]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ringwire_dataplane::Server;
use ringwire_dataplane::counters::Counter;
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_dataplane::limits::{
    ANSWERED_STASH_LEN_MAX, LONG_STASH_LEN_MAX, LONG_STASHES_LEN_MAX, LONG_STRANGER_LEN_MAX,
    STRANGER_LEN_MAX, STRANGER_STASH_LEN_MAX,
};
use ringwire_proto::identity::{PublicKey, SecretKey};
use ringwire_proto::noise::{Handshake, Hybrid, Pattern, Role};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::drivers::on_each_driver;
use support::{LIMIT, Peer, read_frame, start_server_with};

struct Counting;

/// Bytes allocated and not freed.
static LIVE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: needed to count; every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The counter is one for the program: one test at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

on_each_driver!(
    silent_connections,
    connections_with_a_full_stash,
    connections_with_half_a_long_message_1,
    connections_that_stop_after_message_1,
    long_messages_share_what_they_have_beyond_others,
);

/// What the strangers of the other process do.
#[derive(Clone, Copy)]
enum Manner {
    /// Connect and say nothing.
    Silent,
    /// Send as much of a first message as is kept, and a byte more now and then.
    Full,
    /// Send message 1, read the answer, and then as much of something as is kept.
    Third,
    /// Send a message 1 as long as a frame can be, but for its last byte.
    Long,
}

/// Descriptors of a server process that has few.
const FEW: u64 = 160;

/// Environment that makes this program such a server.
const SERVER_OF_FEW: &str = "RINGWIRE_SERVER_OF_FEW";

/// The limit of open files is met by strangers: accepting goes on, and honest clients take their places.
#[test]
fn a_server_with_few_descriptors_is_not_stopped_by_strangers() {
    // Its clients live in this process, and would be counted.
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_server_of_another_process", "--nocapture"])
        .env(SERVER_OF_FEW, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready = lines.map_while(Result::ok).find(|line| line.contains("serving")).unwrap();
    let _child = Strangers(child);
    let words: Vec<&str> = ready.split("serving ").nth(1).unwrap().split(' ').collect();
    let (address, key): (SocketAddr, PublicKey) = (words[0].parse().unwrap(), words[1].parse().unwrap());
    let connections_max: usize = words[2].parse().unwrap();
    assert!((10..FEW as usize - 64).contains(&connections_max), "{connections_max}");
    let strangers: Vec<TcpStream> = (0..400).map(|_| TcpStream::connect(address).unwrap()).collect();
    for _ in 0..5 {
        Peer::come(key, Hybrid::Offer, || TcpStream::connect(address));
    }
    drop(strangers);
}

/// Not a test by itself: the body of the server with few descriptors.
#[test]
fn the_server_of_another_process() {
    if std::env::var(SERVER_OF_FEW).is_err() {
        return;
    }
    let few = Rlimit { current: Some(FEW), maximum: Some(FEW) };
    setrlimit(Resource::Nofile, few).unwrap();
    let server = start_server_with(|_| {});
    println!("serving {} {} {} .", server.addresses()[0], server.public_key(), server.connections_max());
    let _ = std::io::stdin().read(&mut [0; 1]);
}

/// Environment of the other process: address, key, number, manner.
const STRANGERS: &str = "RINGWIRE_STRANGERS_OF";

fn crowd(usual: usize) -> usize {
    std::env::var("RINGWIRE_STRANGERS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

fn silent_connections() {
    measure(Manner::Silent, crowd(1500));
}

fn connections_with_a_full_stash() {
    measure(Manner::Full, crowd(1500));
}

fn connections_with_half_a_long_message_1() {
    // As many as have room together.
    measure(Manner::Long, crowd(400).min(LONG_TOGETHER));
}

/// Strangers with the longest message 1 that have room together.
const LONG_TOGETHER: usize = LONG_STASHES_LEN_MAX / (LONG_STASH_LEN_MAX - STRANGER_STASH_LEN_MAX);

/// Beyond what every stranger has they hold 1 MiB, and whoever comes later with as long a message has its turn.
fn long_messages_share_what_they_have_beyond_others() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    // Again, if a machine is so slow that the time-out came first.
    assert!((0..5).any(|_| the_oldest_make_room_for_a_long_message()), "they are timed out");
}

/// False when some were timed out before all had come.
fn the_oldest_make_room_for_a_long_message() -> bool {
    let server = start_server_with(|config| config.half_open_max = 20_000);
    let address = server.addresses()[0];
    let come = || Peer::come(server.public_key(), Hybrid::Offer, || TcpStream::connect(address));
    come();
    wait_for_nobody(&server);
    let empty = live();
    let count = crowd(1200);
    let _strangers = spawn_strangers(&server, Manner::Long, count);
    let counted = |counter| usize::try_from(server.counters().value(counter)).unwrap();
    wait_for("the oldest to make room", || {
        counted(Counter::LongHandshakesEvicted) + counted(Counter::HandshakesTimedOut)
            >= count - LONG_TOGETHER
    });
    if counted(Counter::HandshakesTimedOut) > 0 {
        return false;
    }
    let half_open = server.report().unwrap().half_open;
    assert!(half_open <= LONG_TOGETHER, "{half_open}");
    // Answers of a server that is kept from the processor may be under way still.
    wait_for("what they hold", || live().saturating_sub(empty) <= LONG_TOGETHER * LONG_STRANGER_LEN_MAX);
    println!("{count} long messages: {half_open} left, {} bytes", live().saturating_sub(empty));
    // Honest clients of the same address: with an ordinary message, and with one that is as long.
    come();
    let is_answered = || {
        let (secret, key) = (SecretKey::generate(&mut OsEntropy), server.public_key());
        let (pattern, role) = (Pattern::Xk, Role::Initiator);
        let mut noise =
            Handshake::new(pattern, role, &secret, Some(&key), Hybrid::Offer, &mut OsEntropy).unwrap();
        let mut message = Vec::new();
        noise.write_message_with(&[0x55; 4045], &mut message).unwrap();
        let mut socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        let _ = socket.write_all(&[&(message.len() as u16).to_be_bytes()[..], &message].concat());
        read_frame(&mut socket).is_ok_and(|answer| noise.read_message(&answer).is_ok())
    };
    assert!((0..5).any(|_| is_answered()), "a long message of somebody honest");
    true
}

fn connections_that_stop_after_message_1() {
    // Each costs its client and the lane a key agreement.
    measure(Manner::Third, crowd(1500).min(600));
}

fn measure(manner: Manner, count: usize) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let server = start_server_with(|config| config.half_open_max = 20_000);
    let come = || {
        let address = server.addresses()[0];
        Peer::come(server.public_key(), Hybrid::Offer, || TcpStream::connect(address))
    };
    come();
    // Of the server's descriptors at most half are for strangers. And as many as this machine brings together before they are
    // timed out; in a smaller crowd what all share would count.
    let mut seen = Vec::new();
    let descriptors = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let count = count.min(usize::try_from(descriptors / 2).unwrap_or(usize::MAX).saturating_sub(100));
    let crowd = [count, count / 2, count / 4, count / 4].into_iter().find_map(|count| {
        wait_for_nobody(&server);
        let empty = live();
        let strangers = spawn_strangers(&server, manner, count);
        weigh(&server, manner, count, empty).map_err(|found| seen.push(found)).ok()?;
        Some((count, strangers, empty))
    });
    let Some((count, strangers, empty)) = crowd else { panic!("{seen:?}") };
    // Honest clients beside them.
    let mut times: Vec<Duration> = (0..50).map(|_| come().1).collect();
    times.sort_unstable();
    println!("honest handshakes: p50 {:?}, p99 {:?}", times[25], times[49]);
    drop(strangers);
    wait_for_nobody(&server);
    // Lists keep the room of their fullest moment, and a later crowd may have a fuller one; what is lost with a stranger is
    // lost with every stranger of every crowd.
    let mut kept = vec![live()];
    let given_back = (0..6).any(|_| {
        drop(spawn_strangers(&server, manner, count));
        wait_for_nobody(&server);
        let most = kept.iter().max().unwrap() + KEPT_EACH_MAX * count;
        let patience = Instant::now() + Duration::from_secs(5);
        while live() > most && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(5));
        }
        kept.push(live());
        live() <= most
    });
    println!("kept after each crowd: {:?} bytes", kept.iter().map(|kept| kept - empty).collect::<Vec<_>>());
    assert!(given_back, "each crowd leaves more: {kept:?}, {empty} before the first");
    assert!(live() - empty <= KEPT_MAX + KEPT_EACH_MAX * count, "{kept:?}, {empty} before the first");
}

/// The memory of each stranger of this crowd is what it may be; else what was found instead.
fn weigh(server: &Server, manner: Manner, count: usize, empty: usize) -> Result<(), String> {
    // A server that is kept from the processor has answers and results of the lane still under way: until it has caught up.
    let mut least = usize::MAX;
    let most = if let Manner::Long = manner { LONG_STRANGER_LEN_MAX } else { STRANGER_LEN_MAX };
    loop {
        let report = server.report().unwrap();
        let held = live().saturating_sub(empty);
        if report.half_open < count * 9 / 10 {
            return Err(format!("{} of {count} strangers left, {least} bytes each", report.half_open));
        }
        assert_eq!(report.held_len, 0, "no page of buffer memory is held");
        least = least.min(held / report.half_open);
        if least <= most {
            println!("{count} strangers: {least} bytes each");
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What may stay after a crowd, in bytes: room in lists, whatever their size was, and for each the timer of its five seconds,
/// which is forgotten when its time has come.
const KEPT_MAX: usize = 2 * 1024 * 1024;
const KEPT_EACH_MAX: usize = 64;

fn live() -> usize {
    LIVE.load(Ordering::Relaxed)
}

fn wait_for_nobody(server: &Server) {
    wait_for("everybody to be gone", || {
        let report = server.report().unwrap();
        report.half_open + report.sessions.len() == 0
    });
}

fn wait_for(what: &str, mut is_met: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_met() {
        assert!(Instant::now() < deadline, "in vain: {what} ({} bytes live)", live());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Starts the other process, and returns when all its strangers are connected and have said what they say.
fn spawn_strangers(server: &Server, manner: Manner, count: usize) -> Strangers {
    let order = format!("{} {} {count} {}", server.addresses()[0], server.public_key(), manner as u8);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_strangers_of_another_process", "--nocapture"])
        .env(STRANGERS, order)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let strangers = Strangers(child);
    assert!(lines.any(|line| line.unwrap().contains("all there")), "the strangers failed");
    strangers
}

/// The other process; it ends with this.
struct Strangers(Child);

impl Drop for Strangers {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a test by itself: the body of the other process.
#[test]
fn the_strangers_of_another_process() {
    let Ok(order) = std::env::var(STRANGERS) else { return };
    let words: Vec<&str> = order.split(' ').collect();
    let (address, key): (SocketAddr, PublicKey) = (words[0].parse().unwrap(), words[1].parse().unwrap());
    let (count, manner): (usize, u8) = (words[2].parse().unwrap(), words[3].parse().unwrap());
    raise_descriptors();
    let mut first = Vec::new();
    let secret = SecretKey::generate(&mut OsEntropy);
    let mut noise =
        Handshake::new(Pattern::Xk, Role::Initiator, &secret, Some(&key), Hybrid::Offer, &mut OsEntropy)
            .unwrap();
    noise.write_message(&mut first).unwrap();
    let frame = [&(first.len() as u16).to_be_bytes()[..], &first].concat();
    // The longest frame that is waited for, but for its last byte.
    let stuffing = |len_max: usize| {
        let mut stuffing = vec![7; len_max - 1];
        stuffing[..2].copy_from_slice(&((len_max - 2) as u16).to_be_bytes());
        stuffing
    };
    let mut sockets: Vec<TcpStream> = Vec::with_capacity(count);
    for _ in 0..count {
        let mut socket = TcpStream::connect(address).unwrap();
        if manner == Manner::Full as u8 {
            let _ = socket.write_all(&stuffing(STRANGER_STASH_LEN_MAX));
        } else if manner == Manner::Long as u8 {
            let _ = socket.write_all(&stuffing(LONG_STASH_LEN_MAX));
        } else if manner == Manner::Third as u8 {
            let _ = socket.write_all(&frame);
        }
        sockets.push(socket);
    }
    if manner == Manner::Third as u8 {
        for socket in &mut sockets {
            socket.set_read_timeout(Some(LIMIT)).unwrap();
            if read_frame(socket).is_ok() {
                let _ = socket.write_all(&stuffing(ANSWERED_STASH_LEN_MAX));
            }
        }
    }
    // The server has it all once it has answered somebody who comes later.
    std::thread::sleep(Duration::from_millis(100));
    println!("all there");
    let _ = std::io::stdin().read(&mut [0; 1]);
}

fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
}
