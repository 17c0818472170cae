//! The data plane's socket: messages and descriptors arrive whole, and whatever else arrives is a typed error.
#![cfg(not(any(feature = "loom", feature = "shuttle")))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Duration;

use ringwire_ipc::LAYOUT_HASH;
use ringwire_ipc::channel::{ControlEnd, WorkerEnd};
use ringwire_ipc::counters::{CellIndex, CounterPage, CounterWriter};
use ringwire_ipc::doorbell::{Bell, SocketBell};
use ringwire_ipc::message::{Answer, Command, Event, Order};
use ringwire_ipc::region::{Region, RegionError};
use ringwire_ipc::socket::{
    Address, Attach, Attached, Channel, Client, ClientError, Connection, ConnectionError, Empty,
    FRAME_LEN_MAX, Hello, Refusal, Refused, Reply, Request, Start,
};

const TIMEOUT: Duration = Duration::from_secs(60);

fn pair() -> (Connection, Connection) {
    let (one, other) = UnixStream::pair().unwrap();
    (Connection::new(one, TIMEOUT), Connection::new(other, TIMEOUT))
}

#[test]
fn an_attach_joins_the_two_ends_of_a_channel() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let server = thread::spawn(move || {
        let mut connection = Connection::new(listener.accept().unwrap().0, TIMEOUT);
        let (request, descriptors) = connection.receive_request().unwrap();
        assert!(matches!(request, Request::Attach(Attach { layout: LAYOUT_HASH })) && descriptors.is_empty());
        let (ours, theirs) = SocketBell::pair().unwrap();
        let (end, rings) = WorkerEnd::create(7, ours).unwrap();
        let counters = CounterWriter::new(Region::<CounterPage>::create(0).unwrap());
        let bell = Bell::new().unwrap();
        let attached = Reply::Attached(Attached { epoch: 7, workers: 1 });
        connection.send_reply(attached, &[theirs.as_fd()]).unwrap();
        let region = counters.region().unwrap();
        let channel = [rings.commands.as_fd(), rings.events.as_fd(), region.as_fd(), bell.as_fd()];
        connection.send_reply(Reply::Channel(Channel { worker: 0 }), &channel).unwrap();
        (end, counters, bell)
    });
    let mut client = Client::connect(&path, TIMEOUT).unwrap();
    let mut attachment = client.attach(LAYOUT_HASH).unwrap();
    let (mut worker, counters, bell) = server.join().unwrap();
    let mut control = ControlEnd::open(attachment.channels.remove(0), attachment.epoch).unwrap();
    let heard = SocketBell::from_descriptor(attachment.bell);

    assert!(!worker.announce_sleep());
    let command = Command { request: 3, order: Order::ListSessions };
    control.command(&command).unwrap();
    bell.wait(TIMEOUT).unwrap();
    worker.withdraw_sleep();
    assert_eq!(worker.command(), Ok(Some(command)));

    assert!(!control.announce_sleep());
    let event = Event::Answered { request: 3, answer: Answer::Done(0) };
    assert_eq!(worker.event(&event), Ok(true));
    worker.ring();
    let mut waited = [rustix::event::PollFd::new(&heard, rustix::event::PollFlags::IN)];
    assert_eq!(rustix::event::poll(&mut waited, None).unwrap(), 1);
    assert!(heard.silence());
    control.withdraw_sleep();
    assert_eq!(control.event(), Ok(Some(event)));

    counters.add(CellIndex::new(3).unwrap(), 5);
    assert_eq!(control.counters().read(CellIndex::new(3).unwrap()), 5);
}

#[test]
fn a_full_event_ring_drops_counts_and_asks_for_a_new_listing() {
    let (bell, _heard) = SocketBell::pair().unwrap();
    let (mut worker, rings) = WorkerEnd::create(1, bell).unwrap();
    let counters = Region::<CounterPage>::create(0).unwrap();
    let descriptors = ringwire_ipc::socket::ChannelDescriptors {
        worker: 0,
        commands: rings.commands,
        events: rings.events,
        counters: counters.as_fd().try_clone_to_owned().unwrap(),
        bell: OwnedFd::from(std::fs::File::open("/dev/null").unwrap()),
    };
    let mut control = ControlEnd::open(descriptors, 1).unwrap();
    let event = |request| Event::Answered { request, answer: Answer::NotFound };
    for request in 0..4096 {
        assert_eq!(worker.event(&event(request)), Ok(true));
    }
    assert_eq!(worker.event(&event(4096)), Ok(false));
    assert_eq!(worker.event(&event(4097)), Ok(false));
    for request in 0..4096 {
        assert_eq!(control.event(), Ok(Some(event(request))));
    }
    assert_eq!(worker.event(&event(4098)), Ok(true));
    assert_eq!(control.event(), Ok(Some(Event::Resync { dropped: 2 })), "before what follows the gap");
    assert_eq!(control.event(), Ok(Some(event(4098))));
    assert_eq!(worker.event_if_room(&event(1), 4095), Ok(true));
    assert_eq!(worker.event_if_room(&event(2), 4095), Ok(false));
}

#[test]
fn a_region_of_another_attach_is_refused() {
    let (bell, _heard) = SocketBell::pair().unwrap();
    let (_worker, rings) = WorkerEnd::create(1, bell).unwrap();
    let descriptors = ringwire_ipc::socket::ChannelDescriptors {
        worker: 0,
        commands: rings.commands,
        events: rings.events,
        counters: Region::<CounterPage>::create(0).unwrap().as_fd().try_clone_to_owned().unwrap(),
        bell: OwnedFd::from(std::fs::File::open("/dev/null").unwrap()),
    };
    let error = ControlEnd::open(descriptors, 2).unwrap_err();
    assert!(matches!(error, RegionError::Header { field: "epoch", found: 1, expected: 2 }), "{error}");
}

#[test]
fn requests_and_their_descriptors_arrive_in_order() {
    let (mut asker, mut answerer) = pair();
    let listeners: Vec<_> = (0..3).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let start = Start {
        secret_key: vec![171; 32],
        settings: "{}".into(),
        configuration: vec![1, 2],
        listen: listeners.iter().map(|listener| Address::new(listener.local_addr().unwrap())).collect(),
    };
    assert!(!format!("{start:?}").contains("171, 171"), "no key in what is shown");
    let descriptors: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
    asker.send_request(Request::Start(start.clone()), &descriptors).unwrap();
    asker.send_request(Request::Status(Empty {}), &[]).unwrap();
    let (request, received) = answerer.receive_request().unwrap();
    assert_eq!(request, Request::Start(start));
    for (descriptor, listener) in received.into_iter().zip(&listeners) {
        let copy = std::net::TcpListener::from(descriptor);
        assert_eq!(copy.local_addr().unwrap(), listener.local_addr().unwrap());
    }
    let (request, received) = answerer.receive_request().unwrap();
    assert!(matches!(request, Request::Status(_)) && received.is_empty());
}

#[test]
fn what_is_no_message_is_a_typed_error() {
    let frame = |len: u32, descriptors: u32, body: &[u8]| {
        [&len.to_le_bytes()[..], &descriptors.to_le_bytes()[..], body].concat()
    };
    type Check = fn(&ConnectionError) -> bool;
    let cases: [(Vec<u8>, Check); 6] = [
        (frame(FRAME_LEN_MAX as u32 + 1, 0, &[]), |e| matches!(e, ConnectionError::TooLong(_))),
        (frame(2, 0, &[0x0a, 0x55]), |e| matches!(e, ConnectionError::Malformed(_))),
        (frame(0, 0, &[]), |e| matches!(e, ConnectionError::Unknown)),
        // A field number that only a later build knows.
        (frame(3, 0, &[0xfa, 0x01, 0x00]), |e| matches!(e, ConnectionError::Unknown)),
        (frame(0, 2, &[]), |e| matches!(e, ConnectionError::Descriptors { found: 0, announced: 2 })),
        (frame(5, 0, &[1]), |e| matches!(e, ConnectionError::Closed)),
    ];
    for (bytes, check) in cases {
        let (mut one, other) = UnixStream::pair().unwrap();
        one.write_all(&bytes).unwrap();
        drop(one);
        let error = Connection::new(other, TIMEOUT).receive_request().unwrap_err();
        assert!(check(&error), "{bytes:?}: {error:?}");
    }
}

#[test]
fn a_silent_or_dripping_peer_meets_the_deadline() {
    let (mut one, other) = UnixStream::pair().unwrap();
    let mut connection = Connection::new(other, Duration::from_millis(50));
    assert!(matches!(connection.receive_request(), Err(ConnectionError::Timeout(_))));
    let drip = thread::spawn(move || {
        for byte in [200, 0, 0, 0, 0, 0, 0, 0].into_iter().chain([0; 200]) {
            if one.write_all(&[byte]).is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
    });
    assert!(matches!(connection.receive_request(), Err(ConnectionError::Timeout(_))));
    drop(connection);
    drip.join().unwrap();
}

#[test]
fn a_refusal_says_reason_and_cure_and_an_absent_data_plane_its_path() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let error = Client::connect(&path, TIMEOUT).unwrap_err();
    assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    let listener = UnixListener::bind(&path).unwrap();
    let server = thread::spawn(move || {
        let mut connection = Connection::new(listener.accept().unwrap().0, TIMEOUT);
        let (Request::Hello(hello), _) = connection.receive_request().unwrap() else { panic!("hello first") };
        connection.send_reply(Reply::Hello(hello), &[]).unwrap();
        connection.receive_request().unwrap();
        let refused = Refused {
            refusal: Refusal::Layout.into(),
            reason: "another layout".into(),
            cure: "Upgrade.".into(),
        };
        connection.send_reply(Reply::Refused(refused), &[]).unwrap();
        connection.receive_request().unwrap();
        connection.send_reply(Reply::Done(Empty {}), &[]).unwrap();
    });
    let mut client = Client::connect(&path, TIMEOUT).unwrap();
    let hello = Hello { protocol: 1, build: "x".into(), layout: 5, ..Hello::default() };
    assert_eq!(client.hello(hello.clone()).unwrap(), hello);
    let error = client.attach(5).unwrap_err();
    assert!(matches!(error, ClientError::Refused { refusal: Refusal::Layout, .. }), "{error:?}");
    assert_eq!(error.to_string(), "another layout. Upgrade.");
    assert!(matches!(client.status(), Err(ClientError::Unexpected("done"))));
    server.join().unwrap();
}
