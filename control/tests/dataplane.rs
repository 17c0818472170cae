//! The data plane as a process, seen from its socket: what a control plane does with it, request by request.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail")]

mod common;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::within;
use ringwire::dmsg::{ServerAddress, Session, SessionConfig};
use ringwire_dataplane::counters::Counter;
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_dataplane::process::Configuration;
use ringwire_ipc::LAYOUT_HASH;
use ringwire_ipc::channel::ControlEnd;
use ringwire_ipc::message::{
    Answer, Command as Ordered, Event, HybridPolicy, Order, PeerKey, Reason, Setting,
};
use ringwire_ipc::socket::{
    Address, ChannelDescriptors, Client, ClientError, Hello, PROTOCOL, Refusal, Start, Started,
};
use ringwire_proto::identity::{PublicKey, SecretKey};
use ringwire_proto::noise::Hybrid;
use rustix::process::{Pid, Resource, Rlimit, Signal};

const TIMEOUT: Duration = Duration::from_secs(60);

/// A data plane's process, which does not outlive the test.
struct Plane {
    child: Child,
    state: tempfile::TempDir,
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn spawn(state: &Path, arguments: &[&str]) -> Child {
    common::process::private(state);
    Command::new(env!("CARGO_BIN_EXE_ringwire"))
        .args(["dataplane", "--state"])
        .arg(state)
        .args(if arguments.is_empty() { &["--start-within", "60"][..] } else { arguments })
        .env_remove("RINGWIRE_LOG")
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

impl Plane {
    fn new(arguments: &[&str]) -> Self {
        let state = tempfile::tempdir().unwrap();
        Self { child: spawn(state.path(), arguments), state }
    }

    /// A conversation that has been introduced.
    fn talk(&self) -> Client {
        let path = self.state.path().join("dataplane.sock");
        let deadline = Instant::now() + TIMEOUT;
        let mut client = loop {
            match Client::connect(&path, TIMEOUT) {
                Ok(client) => break client,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let hello = client.hello(Hello { protocol: PROTOCOL, ..Hello::default() }).unwrap();
        assert_eq!((hello.protocol, hello.layout, hello.pid), (PROTOCOL, LAYOUT_HASH, self.child.id()));
        client
    }

    fn ended(&mut self) -> Option<i32> {
        let deadline = Instant::now() + TIMEOUT;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("the data plane does not end");
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }
}

fn start(
    client: &mut Client,
    key: &SecretKey,
    configuration: &Configuration,
) -> Result<Started, ClientError> {
    let start = Start {
        secret_key: key.expose_bytes().to_vec(),
        settings: configuration.to_json(),
        configuration: vec![1, 2, 3],
        listen: vec![Address { text: "127.0.0.1:0".into() }],
    };
    client.start(start, &[])
}

/// A data plane that serves: the process, its server's address, and a conversation.
fn serving(arguments: &[&str], configuration: &Configuration) -> (Plane, ServerAddress, Client) {
    let plane = Plane::new(arguments);
    let mut client = plane.talk();
    let key = SecretKey::generate(&mut OsEntropy);
    let started = start(&mut client, &key, configuration).unwrap();
    let address = ServerAddress { key: key.public_key(), address: started.addresses[0].text.clone() };
    (plane, address, client)
}

async fn session(server: &ServerAddress) -> Session {
    let mut config = SessionConfig::new(SecretKey::generate(&mut OsEntropy), server.clone());
    config.first_frame_pause = Duration::ZERO;
    common::connect(config).await
}

fn attach(client: &mut Client) -> ControlEnd {
    let [control] = attach_all(client).try_into().expect("one worker");
    control
}

/// The channels of all workers, in order of their number.
fn attach_all(client: &mut Client) -> Vec<ControlEnd> {
    let attachment = client.attach(LAYOUT_HASH).unwrap();
    let open = |(worker, channel): (u32, ChannelDescriptors)| {
        assert_eq!(channel.worker, worker);
        ControlEnd::open(channel, attachment.epoch).unwrap()
    };
    (0..).zip(attachment.channels).map(open).collect()
}

/// The next event, waiting for it.
fn event(control: &mut ControlEnd) -> Event {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        if let Some(event) = control.event().unwrap() {
            return event;
        }
        assert!(Instant::now() < deadline, "no event comes");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn ask(control: &mut ControlEnd, request: u64, order: Order) -> (Vec<Event>, Answer) {
    control.command(&Ordered { request, order }).unwrap();
    let mut before = Vec::new();
    loop {
        match event(control) {
            Event::Answered { request: answered, answer } => {
                assert_eq!(answered, request);
                return (before, answer);
            }
            other => before.push(other),
        }
    }
}

fn peer(key: &PublicKey) -> PeerKey {
    PeerKey::new(*key.as_bytes()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_told_listed_and_closed_and_outlive_their_control_plane() {
    within(async {
        let (plane, address, mut client) = serving(&[], &Configuration::default());
        let mut control = attach(&mut client);
        let one = session(&address).await;
        let Event::Opened(note) = event(&mut control) else { panic!("opened") };
        assert_eq!((note.peer, note.hybrid), (peer(&one.public_key()), true));
        assert!(note.address.ip().is_loopback());
        let two = session(&address).await;
        let Event::Opened(_) = event(&mut control) else { panic!("opened") };

        // What the channel lists is what the data plane itself says.
        let (events, answer) = ask(&mut control, 5, Order::ListSessions);
        assert_eq!(answer, Answer::Done(2));
        let listed: BTreeMap<_, _> = events
            .iter()
            .map(|event| match event {
                Event::Listed { request: 5, session } => (session.session, (session.peer, session.at_ns)),
                other => panic!("{other:?}"),
            })
            .collect();
        let dump = client.report().unwrap();
        let dumped: BTreeMap<_, _> = dump
            .sessions
            .iter()
            .map(|s| (s.session, (PeerKey::new(s.peer.clone().try_into().unwrap()).unwrap(), s.opened_ns)))
            .collect();
        assert_eq!(listed, dumped);

        // A bridge, in both views.
        let mut listener = two.listen(80).unwrap();
        let (stream, _accepted) = common::pair(&one, &two, &mut listener).await;
        let (events, answer) = ask(&mut control, 6, Order::ListBridges);
        assert_eq!(answer, Answer::Done(1));
        let [Event::Bridged { request: 6, bridge }] = events[..] else { panic!("{events:?}") };
        assert_eq!((bridge.source, bridge.destination), (peer(&one.public_key()), peer(&two.public_key())));
        assert_eq!(client.report().unwrap().bridges.len(), 1);
        drop(stream);

        // The control plane goes without a word; what it knew is known to the next one, and the counters go on.
        let opened = control.counters().read(Counter::SessionsOpened.cell());
        assert_eq!(opened, 2);
        drop((control, client));
        let mut client = plane.talk();
        let status = client.status().unwrap();
        assert_eq!((status.state.as_str(), status.epoch, status.sessions), ("serving", 1, 2));
        let mut control = attach(&mut client);
        assert_eq!(control.counters().read(Counter::SessionsOpened.cell()), opened);
        one.ping().await.unwrap();

        // One is closed by command; the other stays.
        let (events, answer) = ask(&mut control, 7, Order::CloseSession(peer(&one.public_key())));
        assert_eq!(answer, Answer::Done(1));
        let [Event::Closed(note, Reason::Ordered)] = events[..] else { panic!("{events:?}") };
        assert_eq!(note.peer, peer(&one.public_key()));
        assert_eq!(ask(&mut control, 8, Order::CloseSession(peer(&one.public_key()))).1, Answer::NotFound);
        two.ping().await.unwrap();
        assert_eq!(client.status().unwrap().attached, std::process::id());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_change_while_it_serves() {
    within(async {
        let (_plane, address, mut client) = serving(&[], &Configuration::default());
        let mut control = attach(&mut client);
        let classical = || {
            let mut config = SessionConfig::new(SecretKey::generate(&mut OsEntropy), address.clone());
            config.hybrid = Hybrid::Off;
            Session::connect(config)
        };
        let session = classical().await.unwrap();
        session.ping().await.unwrap();
        let require = Order::Change(Setting::Hybrid(HybridPolicy::Require));
        control.command(&Ordered { request: 1, order: require }).unwrap();
        while !matches!(event(&mut control), Event::Answered { request: 1, answer: Answer::Done(_) }) {}
        let refused = async {
            match classical().await {
                Ok(session) => session.ping().await.is_err(),
                Err(_) => true,
            }
        };
        assert!(refused.await, "a classical peer is refused from now on");
        session.ping().await.unwrap();

        let budget = client.report().unwrap().memory.budget;
        let order = Order::Change(Setting::BudgetLen(budget / 2));
        control.command(&Ordered { request: 2, order }).unwrap();
        while !matches!(event(&mut control), Event::Answered { request: 2, answer: Answer::Done(_) }) {}
        assert_eq!(client.report().unwrap().memory.budget, budget / 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_serves_on_the_same_listeners() {
    within(async {
        let (mut plane, address, mut client) = serving(&[], &Configuration::default());
        let listeners = client.listeners().unwrap();
        assert_eq!(listeners[0].0.to_string(), address.address);
        plane.child.kill().unwrap();
        plane.child.wait().unwrap();
        plane.child = spawn(plane.state.path(), &[]);
        let mut client = plane.talk();
        let start = Start {
            secret_key: SecretKey::generate(&mut OsEntropy).expose_bytes().to_vec(),
            settings: Configuration::default().to_json(),
            configuration: Vec::new(),
            listen: vec![Address::new(listeners[0].0)],
        };
        let key = SecretKey::from_bytes(&start.secret_key).unwrap().public_key();
        let descriptors: Vec<_> = listeners.iter().map(|(_, listener)| listener.as_fd()).collect();
        let started = client.start(start, &descriptors).unwrap();
        assert_eq!(started.addresses[0].text, address.address);
        session(&ServerAddress { key, address: address.address.clone() }).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_lets_streams_finish_and_refuses_what_is_new() {
    within(async {
        let (mut plane, address, mut client) = serving(&[], &Configuration::default());
        let (one, two, idle) = (session(&address).await, session(&address).await, session(&address).await);
        let mut listener = two.listen(80).unwrap();
        let (stream, accepted) = common::pair(&one, &two, &mut listener).await;
        client.drain(Duration::from_secs(60)).unwrap();
        assert_eq!(client.status().unwrap().state, "draining");
        let config = SessionConfig::new(SecretKey::generate(&mut OsEntropy), address.clone());
        assert!(Session::connect(config).await.is_err(), "nobody is accepted any more");
        let (mut near, mut far) = (stream, accepted);
        tokio::io::AsyncWriteExt::write_all(&mut near, b"still here").await.unwrap();
        let mut read = [0; 10];
        tokio::io::AsyncReadExt::read_exact(&mut far, &mut read).await.unwrap();
        assert_eq!(&read, b"still here");
        let deadline = Instant::now() + TIMEOUT;
        while idle.ping().await.is_ok() {
            assert!(Instant::now() < deadline, "an idle session is closed");
        }
        assert!(
            one.dial(ringwire_proto::identity::Address { key: two.public_key(), port: 80 }).await.is_err()
        );
        drop((near, far));
        assert_eq!(plane.ended(), Some(0));
    })
    .await;
}

/// Has more events written than the ring holds and reads none.
fn miss_events(control: &mut ControlEnd) {
    let nobody = PeerKey::new([2; 33]).unwrap();
    // Each is answered with an event.
    let mut request = 0;
    let deadline = Instant::now() + TIMEOUT;
    while request < 5000 {
        assert!(Instant::now() < deadline, "the worker takes no more commands");
        match control.command(&Ordered { request, order: Order::CloseSession(nobody) }) {
            Ok(()) => request += 1,
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    while control.counters().read(Counter::EventsDropped.cell()) < 5000 - 4096 {
        assert!(Instant::now() < deadline, "the worker never waits, it drops");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Reads what is there of [`miss_events`], and that the rest was missed.
fn catch_up(control: &mut ControlEnd) {
    for expected in 0..4096 {
        let answered = event(control);
        assert_eq!(answered, Event::Answered { request: expected, answer: Answer::NotFound });
    }
    assert_eq!(event(control), Event::Resync { dropped: 5000 - 4096 });
}

#[test]
fn a_control_plane_that_missed_events_is_told_when_it_reads_again_though_nothing_happens() {
    let (_plane, _, mut client) = serving(&[], &Configuration::default());
    let mut control = attach(&mut client);
    miss_events(&mut control);
    catch_up(&mut control);
    assert_eq!(ask(&mut control, 9999, Order::ListSessions), (Vec::new(), Answer::Done(0)));
}

#[test]
fn each_worker_has_a_channel_and_events_missed_of_one_cost_the_others_none() {
    let (plane, _, mut client) = serving(&[], &Configuration { workers: 3, ..Configuration::default() });
    let mut controls = attach_all(&mut client);
    assert_eq!(controls.len(), 3);
    miss_events(&mut controls[1]);
    for worker in [0, 2] {
        assert_eq!(ask(&mut controls[worker], 7, Order::ListSessions), (Vec::new(), Answer::Done(0)));
        assert_eq!(controls[worker].counters().read(Counter::EventsDropped.cell()), 0);
        assert!(controls[worker].event().unwrap().is_none(), "nothing was missed here");
    }
    catch_up(&mut controls[1]);
    assert_eq!(ask(&mut controls[1], 9999, Order::ListSessions), (Vec::new(), Answer::Done(0)));

    // A budget is stated for the server, told to each, and divided by them.
    let budget = client.report().unwrap().memory.budget;
    for control in &mut controls {
        let order = Order::Change(Setting::BudgetLen(budget / 2));
        assert_eq!(ask(control, 5, order), (Vec::new(), Answer::Done(0)));
    }
    let halved = plane.talk().report().unwrap().memory.budget;
    assert!(halved <= budget / 2 && halved + 3 >= budget / 2, "{budget}, then {halved}");
}

/// Raises or lowers a soft limit of another process of ours.
fn limit(pid: u32, resource: Resource, current: impl FnOnce(Option<u64>) -> Option<u64>) {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let name = if resource == Resource::Core { "Max core file size" } else { "Max open files" };
    let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let maximum = line.split_whitespace().nth(1).unwrap().parse().ok();
    let limit = Rlimit { current: current(maximum), maximum };
    rustix::process::prlimit(Pid::from_raw(pid as i32), resource, limit).unwrap();
}

#[test]
fn no_core_file_gets_the_key() {
    let directory = tempfile::tempdir().unwrap();
    let aborted = |mut child: Child| {
        rustix::process::kill_process(Pid::from_child(&child), Signal::ABORT).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()));
        status.core_dumped()
    };
    // Whether this machine makes core files at all; where it does not, there is nothing to be seen here.
    let other = Command::new("sleep").arg("60").current_dir(directory.path()).spawn().unwrap();
    limit(other.id(), Resource::Core, |most| most);
    let dumps_here = aborted(other);
    let (mut plane, _, _client) = serving(&[], &Configuration::default());
    let soft = std::fs::read_to_string(format!("/proc/{}/limits", plane.child.id())).unwrap();
    let soft = soft.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
    assert_eq!(soft.split_whitespace().next(), Some("0"));
    // Somebody raises the limit from outside: also then.
    limit(plane.child.id(), Resource::Core, |most| most);
    let child = std::mem::replace(&mut plane.child, Command::new("true").spawn().unwrap());
    assert!(!aborted(child), "a core file with the key in it (others are made here: {dumps_here})");
}

#[test]
fn attaches_leave_nothing_behind() {
    let (plane, _, mut client) = serving(&[], &Configuration::default());
    if std::fs::read_dir(format!("/proc/{}/fd", plane.child.id())).is_err() {
        // Nobody but root looks into a process that has a key. A bound on descriptors, lower than what would be left, says it too.
        limit(plane.child.id(), Resource::Nofile, |_| Some(256));
        for _ in 0..200 {
            let _control = attach(&mut client);
        }
        for _ in 0..100 {
            let _control = attach(&mut plane.talk());
        }
        return;
    }
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", plane.child.id())).unwrap().count();
    let settled = |most: usize| {
        let deadline = Instant::now() + TIMEOUT;
        while descriptors() > most {
            assert!(Instant::now() < deadline, "{} descriptors, {most} before", descriptors());
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let _first = attach(&mut client);
    client.status().unwrap();
    let before = descriptors();
    // Over one conversation, and over one each.
    for _ in 0..200 {
        let _control = attach(&mut client);
    }
    settled(before);
    for _ in 0..100 {
        attach(&mut plane.talk());
    }
    settled(before);
    assert_eq!(client.status().unwrap().epoch, 301);
}

#[test]
fn stop_and_signals_end_it_and_a_terminals_do_not() {
    let (mut plane, _, mut client) = serving(&[], &Configuration::default());
    for ignored in ["INT", "HUP"] {
        plane.signal(ignored);
    }
    client.status().unwrap();
    client.stop().unwrap();
    assert_eq!(plane.ended(), Some(0));
    assert!(!plane.state.path().join("dataplane.sock").exists());

    let (mut plane, ..) = serving(&[], &Configuration::default());
    plane.signal("TERM");
    assert_eq!(plane.ended(), Some(0), "nothing was there to drain");

    let mut waiting = Plane::new(&[]);
    waiting.talk();
    waiting.signal("TERM");
    assert_eq!(waiting.ended(), Some(0));
}

#[test]
fn an_orphan_ends_by_itself_if_it_shall() {
    let configuration = Configuration { orphan_limit_ms: 300, ..Configuration::default() };
    let (mut plane, _, mut client) = serving(&[], &configuration);
    let _control = attach(&mut client);
    std::thread::sleep(Duration::from_millis(900));
    client.status().unwrap();
    drop(client);
    assert_eq!(plane.ended(), Some(0));

    let mut never_started = Plane::new(&["--start-within", "1"]);
    assert_eq!(never_started.ended(), Some(0));
}

#[test]
fn what_cannot_be_is_refused_with_its_cure_and_nothing_is_lost() {
    let (plane, _, mut client) = serving(&[], &Configuration::default());
    let refusal = |outcome: Result<_, ClientError>| match outcome {
        Err(ClientError::Refused { refusal, reason, cure }) => {
            assert!(!reason.is_empty() && !cure.is_empty());
            refusal
        }
        Err(other) => panic!("{other}"),
        Ok(()) => panic!("not refused"),
    };
    let error = client.attach(LAYOUT_HASH ^ 1).unwrap_err();
    assert!(error.to_string().contains("ringwire stop"), "{error}");
    assert_eq!(refusal(Err(error)), Refusal::Layout);
    let key = SecretKey::generate(&mut OsEntropy);
    let again = start(&mut client, &key, &Configuration::default());
    assert_eq!(refusal(again.map(|_| ())), Refusal::AlreadyStarted);

    let waiting = Plane::new(&[]);
    let mut other = waiting.talk();
    assert_eq!(refusal(other.attach(LAYOUT_HASH).map(|_| ())), Refusal::NotStarted);
    assert_eq!(refusal(other.listeners().map(|_| ())), Refusal::NotStarted);
    assert_eq!(refusal(other.report().map(|_| ())), Refusal::NotStarted);
    assert_eq!(refusal(other.drain(TIMEOUT)), Refusal::NotStarted);
    let wrong = Configuration { driver: "dpdk".into(), ..Configuration::default() };
    assert_eq!(refusal(start(&mut other, &key, &wrong).map(|_| ())), Refusal::Malformed);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let on_taken = Start {
        secret_key: key.expose_bytes().to_vec(),
        settings: "{}".into(),
        configuration: Vec::new(),
        listen: vec![Address::new(taken.local_addr().unwrap())],
    };
    assert_eq!(refusal(other.start(on_taken, &[]).map(|_| ())), Refusal::StartFailed);
    // After all that it can still be started.
    start(&mut other, &key, &Configuration::default()).unwrap();

    // What is no conversation ends alone; so does one that does not introduce itself.
    let path = plane.state.path().join("dataplane.sock");
    UnixStream::connect(&path).unwrap().write_all(&[0xff; 64]).unwrap();
    let mut rude = Client::connect(&path, TIMEOUT).unwrap();
    assert_eq!(refusal(rude.status().map(|_| ())), Refusal::Unknown);
    client.status().unwrap();
}

#[test]
fn a_second_data_plane_on_one_state_directory_is_refused_and_names_the_first() {
    let plane = Plane::new(&[]);
    plane.talk();
    let second = spawn(plane.state.path(), &[]).wait_with_output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let shown = String::from_utf8(second.stderr).unwrap();
    assert!(shown.contains(&plane.child.id().to_string()) && shown.contains("ringwire stop"), "{shown}");
    plane.talk();
}
