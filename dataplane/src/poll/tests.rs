//! The poll driver over socket pairs and loopback, as a worker uses it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::*;
use crate::limits::PAGE_LEN;
use crate::ring::PAGES_PER_FILL_MAX;

const LEN_MAX: usize = limits::RECEIVE_LEN_MAX;
const LIMIT: Duration = Duration::from_secs(60);
const NO_WAIT: Wait = Wait { until: None, company_us: 0, poll: true };

fn driver(pages: usize) -> PollDriver {
    PollDriver::new(Vec::new(), pages * PAGE_LEN).unwrap()
}

/// A socket of the driver and its peer.
fn pair(driver: &mut PollDriver) -> (SocketKey, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    (driver.add(OwnedFd::from(ours)).unwrap(), theirs)
}

fn tcp_pair(driver: &mut PollDriver) -> (SocketKey, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (ours, _) = listener.accept().unwrap();
    ours.set_nonblocking(true).unwrap();
    (driver.add(OwnedFd::from(ours)).unwrap(), theirs)
}

fn gather(driver: &mut PollDriver, header: &[u8], payload: &[u8]) -> Box<Gather> {
    let mut gather = Box::new(Gather::default());
    gather.push_header(header);
    for piece in payload.chunks(PAGE_LEN) {
        let mut span = driver.pool.allocate(piece.len()).unwrap();
        assert_eq!(driver.pool.append(&mut span, piece), piece.len());
        gather.push_payload(span);
    }
    gather
}

/// What a turn brought, in words, with received bytes; spans and gathers go home.
fn turn(driver: &mut PollDriver, wait: Wait) -> Vec<Event> {
    let mut batch = Batch::default();
    driver.turn(wait, &mut batch).unwrap();
    let mut events = Vec::new();
    for completion in batch.completions.drain(..) {
        events.push(match completion {
            Completion::Received { socket, first, count, .. } => {
                let spans = &batch.spans[first..first + count];
                Event::Bytes(
                    socket,
                    spans.iter().flat_map(|&span| driver.pool.bytes(span).to_vec()).collect(),
                )
            }
            Completion::ReceiveEnded { socket, reason } => Event::Ended(socket, reason),
            Completion::Sent { socket, mut gather, outcome } => {
                gather.reset(&mut driver.pool);
                Event::Sent(socket, outcome)
            }
            Completion::Closed { socket } => Event::Closed(socket),
            Completion::Accepted { socket, peer, .. } => Event::Accepted(socket, peer),
            Completion::AcceptFailed { error, .. } => Event::AcceptFailed(error),
            Completion::Woken => Event::Woken,
        });
    }
    for span in batch.spans {
        driver.pool.release(span);
    }
    events
}

#[derive(Debug, PartialEq, Eq)]
enum Event {
    Bytes(SocketKey, Vec<u8>),
    Ended(SocketKey, ReceiveEnd),
    Sent(SocketKey, Result<usize, i32>),
    Closed(SocketKey),
    Accepted(SocketKey, SocketAddr),
    AcceptFailed(i32),
    Woken,
}

/// Turns until something happens.
fn next(driver: &mut PollDriver) -> Vec<Event> {
    let deadline = Instant::now() + LIMIT;
    loop {
        assert!(Instant::now() < deadline, "in vain");
        let until = Some(driver.now + limits::SECOND_NS / 10);
        let events = turn(driver, Wait { until, company_us: 0, poll: false });
        if !events.is_empty() {
            return events;
        }
    }
}

#[test]
fn a_receive_takes_what_is_there_and_no_more_than_once() {
    let mut driver = driver(64);
    let (socket, mut peer) = pair(&mut driver);
    peer.write_all(b"before it was asked for").unwrap();
    assert_eq!(turn(&mut driver, NO_WAIT), [], "nobody asked");
    driver.receive(socket, LEN_MAX);
    driver.receive(socket, LEN_MAX);
    assert_eq!(next(&mut driver), [Event::Bytes(socket, b"before it was asked for".to_vec())]);
    assert_eq!(turn(&mut driver, NO_WAIT), [], "asked for once");
    driver.receive(socket, LEN_MAX);
    assert_eq!(turn(&mut driver, NO_WAIT), [], "nothing there");
    peer.write_all(b"after").unwrap();
    assert_eq!(next(&mut driver), [Event::Bytes(socket, b"after".to_vec())]);
}

#[test]
fn bulk_is_received_in_order_over_several_pages() {
    let mut driver = driver(64);
    let (socket, mut peer) = tcp_pair(&mut driver);
    let bytes: Vec<u8> = (0..3_000_000_u32).flat_map(|at| at.to_le_bytes()[..3].to_vec()).collect();
    let expected = bytes.clone();
    let writer = std::thread::spawn(move || peer.write_all(&bytes));
    let (mut got, mut largest) = (Vec::new(), 0);
    while got.len() < expected.len() {
        driver.receive(socket, LEN_MAX);
        for event in next(&mut driver) {
            match event {
                Event::Bytes(_, bytes) => {
                    largest = largest.max(bytes.len());
                    got.extend_from_slice(&bytes);
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(got == expected);
    assert!(largest > PAGE_LEN, "several pages at once: {largest}");
    assert!(largest <= PAGES_PER_FILL_MAX * PAGE_LEN);
    assert_eq!((driver.pool.held_len(), driver.pool.kernel_pages()), (0, 0));
    writer.join().unwrap().unwrap();
}

#[test]
fn a_send_larger_than_the_socket_completes_once_and_in_full() {
    let mut driver = driver(64);
    let (socket, mut peer) = tcp_pair(&mut driver);
    let state = driver.sockets.find(socket).unwrap();
    SockRef::from(&state.descriptor()).set_send_buffer_size(1).unwrap();
    let payload: Vec<u8> = (0..800_000_u32).map(|at| (at / 7) as u8).collect();
    let message = gather(&mut driver, b"header", &payload);
    let len = message.len();
    driver.send(socket, message);
    assert_eq!(turn(&mut driver, NO_WAIT), [], "the socket is full");
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; len];
        peer.read_exact(&mut got).map(|()| got)
    });
    assert_eq!(next(&mut driver), [Event::Sent(socket, Ok(len))]);
    let got = reader.join().unwrap().unwrap();
    assert!(got[..6] == *b"header" && got[6..] == payload);
    assert_eq!(driver.pool.held_len(), 0);
}

#[test]
fn the_rest_of_a_gather_is_sent_when_it_is_handed_in_again() {
    let mut driver = driver(8);
    let (socket, mut peer) = pair(&mut driver);
    let mut message = gather(&mut driver, b"abc", b"defgh");
    assert!(!message.advance(4));
    driver.send(socket, message);
    assert_eq!(turn(&mut driver, NO_WAIT), [Event::Sent(socket, Ok(4))]);
    let mut got = [0; 4];
    peer.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"efgh");
}

#[test]
fn the_end_of_the_stream_comes_behind_its_bytes() {
    let mut driver = driver(8);
    for same_moment in [true, false] {
        let (socket, mut peer) = tcp_pair(&mut driver);
        peer.write_all(b"last words").unwrap();
        if same_moment {
            peer.shutdown(std::net::Shutdown::Write).unwrap();
        }
        driver.receive(socket, LEN_MAX);
        assert_eq!(next(&mut driver), [Event::Bytes(socket, b"last words".to_vec())]);
        driver.receive(socket, LEN_MAX);
        peer.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(next(&mut driver), [Event::Ended(socket, ReceiveEnd::EndOfStream)]);
    }
}

#[test]
fn a_reset_fails_the_receive_and_the_send() {
    let mut driver = driver(64);
    let (socket, peer) = tcp_pair(&mut driver);
    SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
    driver.receive(socket, LEN_MAX);
    drop(peer);
    assert_eq!(next(&mut driver), [Event::Ended(socket, ReceiveEnd::Failed(libc::ECONNRESET))]);
    let message = gather(&mut driver, b"too late", &[]);
    driver.send(socket, message);
    assert_eq!(turn(&mut driver, NO_WAIT), [Event::Sent(socket, Err(libc::EPIPE))]);

    // A send that waits for room learns of it too.
    let (socket, peer) = tcp_pair(&mut driver);
    let state = driver.sockets.find(socket).unwrap();
    SockRef::from(&state.descriptor()).set_send_buffer_size(1).unwrap();
    SockRef::from(&peer).set_recv_buffer_size(1).unwrap();
    SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
    let message = gather(&mut driver, b"", &[7; 400_000]);
    driver.send(socket, message);
    assert_eq!(turn(&mut driver, NO_WAIT), []);
    drop(peer);
    let events = next(&mut driver);
    assert!(matches!(events[..], [Event::Sent(_, Err(libc::ECONNRESET | libc::EPIPE))]), "{events:?}");
    assert_eq!(driver.pool.held_len(), 0);
}

#[test]
fn closing_completes_what_is_pending_and_says_closed_last() {
    let mut driver = driver(64);
    let (socket, mut peer) = tcp_pair(&mut driver);
    driver.receive(socket, LEN_MAX);
    let message = gather(&mut driver, b"", &[1; 500_000]);
    let state = driver.sockets.find(socket).unwrap();
    SockRef::from(&state.descriptor()).set_send_buffer_size(1).unwrap();
    SockRef::from(&peer).set_recv_buffer_size(1).unwrap();
    driver.send(socket, message);
    assert_eq!(turn(&mut driver, NO_WAIT), []);
    let taken = driver.sockets.find(socket).unwrap().taken();
    // Something to receive that will find nobody, and a second close: no-ops.
    peer.write_all(b"?").unwrap();
    driver.close(socket);
    driver.close(socket);
    driver.receive(socket, LEN_MAX);
    let late = gather(&mut driver, b"late", &[]);
    driver.send(socket, late);
    assert_eq!(
        turn(&mut driver, NO_WAIT),
        [
            Event::Ended(socket, ReceiveEnd::Cancelled),
            // What the kernel took before it was full.
            Event::Sent(socket, Ok(taken)),
            Event::Closed(socket),
            Event::Sent(socket, Err(libc::ECANCELED)),
        ]
    );
    assert_eq!((driver.pool.held_len(), driver.sockets.len()), (0, 0));
    peer.set_read_timeout(Some(LIMIT)).unwrap();
    while let Ok(1..) = peer.read(&mut [0; 65_536]) {}
    // The place in the table is used again under another generation.
    let (again, _peer) = pair(&mut driver);
    assert_eq!((again.index, again.generation), (socket.index, socket.generation + 1));
    driver.receive(socket, LEN_MAX);
    assert_eq!(turn(&mut driver, NO_WAIT), []);
}

#[test]
fn a_recall_completes_what_is_pending_and_the_connection_lives_on() {
    let mut driver = driver(64);
    let (socket, mut peer) = tcp_pair(&mut driver);
    driver.recall(socket);
    assert_eq!(turn(&mut driver, NO_WAIT), [], "nothing was pending");
    let state = driver.sockets.find(socket).unwrap();
    SockRef::from(&state.descriptor()).set_send_buffer_size(1).unwrap();
    let payload: Vec<u8> = (0..800_000_u32).map(|at| (at / 7) as u8).collect();
    let message = gather(&mut driver, b"", &payload);
    driver.receive(socket, LEN_MAX);
    driver.send(socket, message);
    driver.recall(socket);
    let events = turn(&mut driver, NO_WAIT);
    let [Event::Ended(_, ReceiveEnd::Cancelled), Event::Sent(_, Ok(taken))] = events[..] else {
        panic!("{events:?}")
    };
    assert!(taken > 0 && taken < payload.len(), "{taken}");
    // The rest goes out as a send of its own, and receiving goes on.
    let message = gather(&mut driver, b"", &payload[taken..]);
    driver.send(socket, message);
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; 800_000];
        peer.read_exact(&mut got).unwrap();
        peer.write_all(b"all").unwrap();
        (got, peer)
    });
    assert_eq!(next(&mut driver), [Event::Sent(socket, Ok(payload.len() - taken))]);
    driver.receive(socket, LEN_MAX);
    assert_eq!(next(&mut driver), [Event::Bytes(socket, b"all".to_vec())]);
    assert!(reader.join().unwrap().0 == payload);
}

#[test]
fn without_a_free_page_a_receive_says_so_and_keeps_the_bytes() {
    let mut driver = driver(2);
    let (socket, mut peer) = pair(&mut driver);
    let held = [driver.pool.allocate(PAGE_LEN).unwrap(), driver.pool.allocate(PAGE_LEN).unwrap()];
    driver.receive(socket, LEN_MAX);
    assert_eq!(turn(&mut driver, NO_WAIT), [], "nothing to receive needs no page");
    peer.write_all(b"patience").unwrap();
    assert_eq!(next(&mut driver), [Event::Ended(socket, ReceiveEnd::NoBuffers)]);
    driver.pool.release(held[0]);
    driver.receive(socket, LEN_MAX);
    assert_eq!(next(&mut driver), [Event::Bytes(socket, b"patience".to_vec())]);
    driver.pool.release(held[1]);
}

#[test]
fn connections_are_accepted_while_wanted_and_carry_their_peer() {
    let listener = socket2::Socket::from(TcpListener::bind("127.0.0.1:0").unwrap());
    listener.listen(2 * ACCEPTS_PER_TURN_MAX as i32).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let mut driver = PollDriver::new(vec![listener], 16 * PAGE_LEN).unwrap();
    let early = TcpStream::connect(address).unwrap();
    assert_eq!(turn(&mut driver, NO_WAIT), [], "nobody asked");
    driver.accept(0);
    let events = next(&mut driver);
    let [Event::Accepted(first, peer)] = events[..] else { panic!("{events:?}") };
    assert_eq!(peer, early.local_addr().unwrap());
    // Many at once: at most so many a turn, and none is lost.
    let late: Vec<_> = (0..ACCEPTS_PER_TURN_MAX + 10).map(|_| TcpStream::connect(address).unwrap()).collect();
    let counts: Vec<usize> = (0..2).map(|_| next(&mut driver).len()).collect();
    assert_eq!(counts, [ACCEPTS_PER_TURN_MAX, late.len() - ACCEPTS_PER_TURN_MAX]);
    // A new connection is served like any other.
    driver.receive(first, LEN_MAX);
    (&early).write_all(b"hello").unwrap();
    assert_eq!(next(&mut driver), [Event::Bytes(first, b"hello".to_vec())]);
}

#[test]
fn one_sockets_bulk_leaves_room_for_the_others() {
    let mut driver = driver(1024);
    let mut peers = Vec::new();
    let count = 3 * PAGES_PER_TURN_MAX / 2;
    for _ in 0..count {
        let (socket, mut peer) = pair(&mut driver);
        peer.write_all(&[1; 100]).unwrap();
        driver.receive(socket, LEN_MAX);
        peers.push((socket, peer));
    }
    let mut batch = Batch::default();
    driver.turn(NO_WAIT, &mut batch).unwrap();
    assert_eq!(batch.spans.len(), PAGES_PER_TURN_MAX);
    assert!(batch.exhausted, "more is waiting, and said to be");
    let mut seen: Vec<u32> = Vec::new();
    while seen.len() < count {
        for completion in batch.completions.drain(..) {
            let Completion::Received { socket, .. } = completion else { panic!("{completion:?}") };
            seen.push(socket.index);
            // Asks again, with bytes that are there already: behind those that still wait.
            (&peers[socket.index as usize].1).write_all(&[2; 100]).unwrap();
            driver.receive(socket, LEN_MAX);
        }
        for span in batch.spans.drain(..) {
            driver.pool.release(span);
        }
        driver.turn(NO_WAIT, &mut batch).unwrap();
    }
    for span in batch.spans.drain(..) {
        driver.pool.release(span);
    }
    seen.truncate(count);
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), count, "each was served once before any was served twice");
}

#[test]
fn completions_of_sends_do_not_keep_epoll_from_being_asked() {
    let mut driver = driver(8);
    let (busy, _busy_peer) = pair(&mut driver);
    let (socket, mut peer) = pair(&mut driver);
    turn(&mut driver, NO_WAIT);
    driver.receive(socket, LEN_MAX);
    peer.write_all(b"!").unwrap();
    let wait = Wait { until: None, company_us: 0, poll: false };
    for _ in 0..=UNPOLLED_TURNS_MAX {
        let message = gather(&mut driver, b"x", &[]);
        driver.send(busy, message);
        let events = turn(&mut driver, wait);
        assert_eq!(events[0], Event::Sent(busy, Ok(1)));
        if events.contains(&Event::Bytes(socket, b"!".to_vec())) {
            return;
        }
    }
    panic!("epoll was never asked");
}

#[test]
fn waits_end_by_time_and_by_the_waker() {
    let mut driver = driver(1);
    let started = driver.now;
    let until = started + limits::SECOND_NS / 50;
    for company_us in [0, 100, 1_000_000] {
        let until = until + u64::from(company_us);
        assert_eq!(turn(&mut driver, Wait { until: Some(until), company_us, poll: false }), []);
        assert!(driver.now >= until);
    }
    assert!(driver.now < started + limits::SECOND_NS, "company does not outlast the time");
    let waker = driver.waker();
    let thread = std::thread::spawn(move || {
        waker.wake();
        waker.wake();
    });
    assert_eq!(next(&mut driver), [Event::Woken]);
    thread.join().unwrap();
    // The second may have come before or after the first was seen; then there is quiet.
    turn(&mut driver, NO_WAIT);
    assert_eq!(turn(&mut driver, NO_WAIT), []);
}

#[test]
fn urgent_bytes_do_not_hide_what_is_behind_them() {
    let mut driver = driver(8);
    let (socket, mut peer) = tcp_pair(&mut driver);
    peer.write_all(b"before").unwrap();
    SockRef::from(&peer).send_out_of_band(b"!").unwrap();
    peer.write_all(b"behind").unwrap();
    let mut got = Vec::new();
    while got.len() < 12 {
        driver.receive(socket, LEN_MAX);
        for event in next(&mut driver) {
            if let Event::Bytes(_, bytes) = event {
                got.extend_from_slice(&bytes);
            }
        }
    }
    assert_eq!(got, b"beforebehind");
}
