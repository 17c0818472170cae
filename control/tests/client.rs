//! The client of many servers: real servers in this process, a discovery in memory.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::directory::{Listing, Memory, Request};
use common::proxy::Proxy;
use common::{address, eventually, server, within};
use ringwire::dmsg::{
    Backoff, Client, ClientConfig, Directory, DirectoryError, Disconnected, KnownServers, Listener, NotReady,
    ReachError, ServerAddress, Session, SessionConfig, SessionError, StartError, Stream,
};
use ringwire_dataplane::Server;
use ringwire_dataplane::counters::Counter;
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_proto::entry::{ClientPart, Entry, ServerPart};
use ringwire_proto::identity::{Address, PublicKey, SecretKey};
use ringwire_proto::noise::Hybrid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const READY: Duration = common::PATIENCE;

fn new_key() -> SecretKey {
    SecretKey::generate(&mut OsEntropy)
}

/// Quick to notice and to retry, so that a test needs no minutes.
fn config(directory: Arc<dyn Directory>) -> ClientConfig {
    let mut config = ClientConfig::new(new_key(), directory);
    config.first_frame_pause = Duration::ZERO;
    config.redial = Backoff { first: Duration::from_millis(50), longest: Duration::from_millis(400) };
    config.post.settle = Duration::from_millis(100);
    config.post.retry = config.redial;
    config
}

async fn ready(config: ClientConfig) -> Client {
    let client = Client::start(config).unwrap();
    client.ready(READY).await.unwrap();
    client
}

fn only(directory: &Arc<Memory>, server: &Server) -> Arc<Listing> {
    Arc::new(Listing { of: Arc::clone(directory), servers: vec![server.public_key()] })
}

fn listed(servers: &[&Server]) -> Arc<Memory> {
    let directory = Arc::new(Memory::default());
    servers.iter().for_each(|server| directory.add(server));
    directory
}

fn servers_of(client: &Client) -> Vec<PublicKey> {
    let mut keys: Vec<_> = client.sessions().iter().map(|session| session.server.key).collect();
    keys.sort_unstable();
    keys
}

fn to(client: &Client, port: u16) -> Address {
    Address { key: client.public_key(), port }
}

/// Dials until it works: the other side may be between two sessions.
async fn reach(client: &Client, destination: Address) -> Stream {
    loop {
        match client.dial(destination).await {
            Ok(stream) => return stream,
            Err(error) => println!("not yet: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn prove(stream: &mut Stream, listener: &mut Listener) {
    let mut accepted = loop {
        let accepted = listener.accept().await.unwrap();
        if accepted.peer_address() == stream.local_address() {
            break accepted;
        }
    };
    stream.write_all(b"hello").await.unwrap();
    let mut heard = [0; 5];
    accepted.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"hello");
    accepted.write_all(b"world").await.unwrap();
    stream.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"world");
}

fn counts(server: &Server, counter: Counter) -> u64 {
    server.counters().value(counter)
}

#[tokio::test]
async fn a_dial_goes_to_the_server_of_the_other_side() {
    within(async {
        let (one, two) = (server(Hybrid::Offer), server(Hybrid::Offer));
        let directory = listed(&[&one, &two]);
        let dialler = ready(config(only(&directory, &one))).await;
        let destination = ready(config(only(&directory, &two))).await;
        let mut listener = destination.listen(80).unwrap();
        assert_eq!(servers_of(&dialler), [one.public_key()]);
        assert_eq!(directory.delegated(&destination.public_key()), [two.public_key()]);

        let mut stream = dialler.dial(to(&destination, 80)).await.unwrap();
        prove(&mut stream, &mut listener).await;
        assert_eq!(counts(&two, Counter::BridgesOpened), 1);
        assert_eq!(dialler.sessions().len(), 2);
        // The new session is announced too.
        let mut both = vec![one.public_key(), two.public_key()];
        both.sort_unstable();
        eventually("both are announced", || directory.delegated(&dialler.public_key()) == both).await;
        // The next dial starts with what worked.
        let mut stream = dialler.dial(to(&destination, 80)).await.unwrap();
        prove(&mut stream, &mut listener).await;
        assert_eq!(
            counts(&one, Counter::RefusedDestination),
            1,
            "only the first dial asked the other server"
        );
        assert_eq!(counts(&two, Counter::BridgesOpened), 2);
    })
    .await;
}

#[tokio::test]
async fn sessions_move_when_a_server_dies_and_dials_work_again() {
    within(async {
        let (one, two) = (server(Hybrid::Offer), server(Hybrid::Offer));
        let directory = listed(&[&one]);
        let with = |directory| config(directory);
        let (dialler, destination) =
            (ready(with(directory.clone())).await, ready(with(directory.clone())).await);
        let mut listener = destination.listen(80).unwrap();
        let mut stream = dialler.dial(to(&destination, 80)).await.unwrap();
        prove(&mut stream, &mut listener).await;

        directory.add(&two);
        directory.forget(&one.public_key());
        one.stop().unwrap();
        assert!(stream.read_u8().await.is_err(), "a stream ends with its server");
        // Who dials before the other side is there leaves the route alone for 30 s.
        eventually("both are at the new server", || counts(&two, Counter::SessionsOpened) == 2).await;
        let mut stream = reach(&dialler, to(&destination, 80)).await;
        prove(&mut stream, &mut listener).await;
        assert_eq!(servers_of(&dialler), [two.public_key()]);
        for client in [&dialler, &destination] {
            let moved = || directory.delegated(&client.public_key()) == [two.public_key()];
            eventually("the entry names the new server", moved).await;
        }
    })
    .await;
}

#[tokio::test]
async fn as_many_sessions_are_kept_as_wanted() {
    within(async {
        let servers = [server(Hybrid::Offer), server(Hybrid::Offer), server(Hybrid::Offer)];
        let directory = listed(&servers.iter().collect::<Vec<_>>());
        let client = ready(ClientConfig { sessions_min: 2, ..config(directory.clone()) }).await;
        eventually("two sessions", || client.sessions().len() == 2).await;
        let before = servers_of(&client);
        eventually("both are announced", || directory.delegated(&client.public_key()) == before).await;
        // One of the two goes; the third takes its place.
        let [a, b, c] = servers;
        let (gone, rest): (Vec<_>, Vec<_>) =
            [a, b, c].into_iter().partition(|server| server.public_key() == before[0]);
        for server in gone {
            server.stop().unwrap();
        }
        let mut expected: Vec<_> = rest.iter().map(Server::public_key).collect();
        expected.sort_unstable();
        eventually("the third server is used", || servers_of(&client) == expected).await;
    })
    .await;
}

#[tokio::test]
async fn sessions_made_for_a_dial_go_when_they_are_idle() {
    within(async {
        let (one, two) = (server(Hybrid::Offer), server(Hybrid::Offer));
        let directory = listed(&[&one, &two]);
        let idle_interval = Duration::from_millis(200);
        let dialler = ready(ClientConfig { idle_interval, ..config(only(&directory, &one)) }).await;
        let destination = ready(config(only(&directory, &two))).await;
        let mut listener = destination.listen(80).unwrap();
        let mut stream = dialler.dial(to(&destination, 80)).await.unwrap();
        prove(&mut stream, &mut listener).await;
        // One too many: the one without a stream goes, the one with a stream stays, and is announced alone.
        eventually("one session is closed", || servers_of(&dialler) == [two.public_key()]).await;
        eventually("the server saw it", || counts(&one, Counter::SessionsClosed) == 1).await;
        let key = dialler.public_key();
        eventually("the entry follows", || directory.delegated(&key) == [two.public_key()]).await;
        tokio::time::sleep(4 * idle_interval).await;
        assert_eq!(servers_of(&dialler), [two.public_key()], "as many as wanted stay, idle or not");
    })
    .await;
}

#[tokio::test]
async fn an_absent_destination_is_told_with_its_causes_and_left_alone() {
    within(async {
        let server = server(Hybrid::Offer);
        let directory = listed(&[&server]);
        let dialler = ready(config(directory.clone())).await;
        let absent = new_key();
        let destination = Address { key: absent.public_key(), port: 80 };
        // Nothing is known of it: the servers at hand are asked all the same.
        let error = dialler.dial(destination).await.unwrap_err();
        let ReachError::NoRoute { causes, .. } = &error else { panic!("{error:?}") };
        assert_eq!(causes.len(), 2, "{causes:?}");
        assert!(causes[0].text.contains("dmsg error 100"), "{causes:?}");
        assert_eq!(causes[1].server, Some(server.public_key()));
        let text = error.to_string();
        assert!(
            text.starts_with("dmsg error 202") && text.contains(&server.public_key().to_string()),
            "{text}"
        );
        assert_eq!(counts(&server, Counter::RefusedDestination), 1);

        // Right away: refused here.
        let error = dialler.dial(destination).await.unwrap_err();
        assert!(matches!(error, ReachError::BackedOff { .. }), "{error:?}");
        // A little later the route still rests: the server is not asked again.
        tokio::time::sleep(Duration::from_millis(2100)).await;
        let error = dialler.dial(destination).await.unwrap_err();
        assert!(error.to_string().contains("not tried again yet"), "{error}");
        assert_eq!(counts(&server, Counter::RefusedDestination), 1);
        // Another port of the same key is another matter.
        dialler.dial(Address { port: 81, ..destination }).await.unwrap_err();
        assert_eq!(counts(&server, Counter::RefusedDestination), 2);
    })
    .await;
}

#[tokio::test]
async fn an_entry_of_another_kind_is_named() {
    within(async {
        let server = server(Hybrid::Offer);
        let directory = listed(&[&server]);
        let dialler = ready(config(directory.clone())).await;
        let nobody = new_key().public_key();
        directory.insert(Entry {
            static_key: Some(nobody),
            client: Some(ClientPart { delegated_servers: Some(Vec::new()) }),
            ..Default::default()
        });
        let error = dialler.dial(Address { key: nobody, port: 80 }).await.unwrap_err();
        assert!(error.to_string().contains("dmsg error 103"), "{error}");
        assert!(matches!(dialler.session(nobody).await, Err(SessionError::NotServer { .. })));
        let stranger = new_key().public_key();
        assert!(matches!(dialler.session(stranger).await, Err(SessionError::NotFound { .. })));
        assert!(dialler.is_server(server.public_key()).await.unwrap());
        assert!(!dialler.is_server(nobody).await.unwrap());
        dialler.session(server.public_key()).await.unwrap().ping().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_destination_that_moved_is_found_at_its_new_server() {
    within(async {
        let (one, two) = (server(Hybrid::Offer), server(Hybrid::Offer));
        let directory = listed(&[&one, &two]);
        let dialler = ready(config(only(&directory, &one))).await;
        let secret_key = new_key();
        let at = |server| ClientConfig { secret_key: secret_key.clone(), ..config(only(&directory, server)) };
        let first = ready(at(&one)).await;
        let mut listener = first.listen(80).unwrap();
        let mut stream = dialler.dial(to(&first, 80)).await.unwrap();
        prove(&mut stream, &mut listener).await;
        first.close().await;
        let second = ready(at(&two)).await;
        let mut listener = second.listen(80).unwrap();
        // The dialler still has the old entry.
        let mut stream = dialler.dial(to(&second, 80)).await.unwrap();
        prove(&mut stream, &mut listener).await;
        assert_eq!(counts(&two, Counter::BridgesOpened), 1);
    })
    .await;
}

#[tokio::test]
async fn dials_that_are_dropped_leak_no_stream() {
    within(async {
        let (one, two) = (server(Hybrid::Offer), server(Hybrid::Offer));
        let directory = listed(&[&one, &two]);
        let dialler = ready(config(only(&directory, &one))).await;
        let destination = ready(config(only(&directory, &two))).await;
        let listener = destination.listen(80).unwrap();
        for wait_us in (0..60).map(|step| step * 100) {
            tokio::time::timeout(Duration::from_micros(wait_us), dialler.dial(to(&destination, 80)))
                .await
                .ok();
        }
        drop(listener);
        let mut listener = destination.listen(80).unwrap();
        let mut stream = reach(&dialler, to(&destination, 80)).await;
        prove(&mut stream, &mut listener).await;
        drop(stream);
        drop(listener);
        for server in [&one, &two] {
            eventually("every stream that was opened is closed", || {
                counts(server, Counter::StreamsOpened) == counts(server, Counter::StreamsClosed)
                    && counts(server, Counter::ForwardsOpened) == counts(server, Counter::ForwardsClosed)
                    && counts(server, Counter::BridgesOpened) == counts(server, Counter::BridgesClosed)
            })
            .await;
        }
        assert!(dialler.sessions().iter().all(|session| session.streams == 0), "{:?}", dialler.sessions());
    })
    .await;
}

#[tokio::test]
async fn one_process_has_one_client_of_a_key() {
    within(async {
        let server = server(Hybrid::Offer);
        let directory = listed(&[&server]);
        let config = config(directory);
        let first = ready(config.clone()).await;
        let error = Client::start(config.clone()).unwrap_err();
        assert!(matches!(error, StartError::KeyInUse(key) if key == first.public_key()), "{error}");
        first.close().await;
        let second = ready(config.clone()).await;
        // Without a close, the end of the last user gives the key back.
        let listener = second.listen(80).unwrap();
        drop(second);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(Client::start(config.clone()).is_err(), "the listener still uses it");
        drop(listener);
        eventually("the key is free again", || Client::start(config.clone()).is_ok()).await;
    })
    .await;
}

#[tokio::test]
async fn a_closed_client_says_so_everywhere() {
    within(async {
        let server = server(Hybrid::Offer);
        let directory = listed(&[&server]);
        let client = ready(config(directory.clone())).await;
        let mut listener = client.listen(80).unwrap();
        assert!(directory.stored(&client.public_key()).is_some());
        client.close().await;
        assert!(directory.stored(&client.public_key()).is_none(), "the entry goes with the client");
        assert!(matches!(listener.accept().await, Err(Disconnected::Here)));
        let destination = Address { key: new_key().public_key(), port: 80 };
        assert!(matches!(client.dial(destination).await, Err(ReachError::Closed)));
        assert!(client.listen(81).is_err());
        assert!(matches!(client.ready(READY).await, Err(NotReady::Closed)));
        assert!(matches!(client.session(server.public_key()).await, Err(SessionError::Closed)));
        eventually("the server saw it", || counts(&server, Counter::SessionsClosed) == 1).await;
    })
    .await;
}

#[tokio::test]
async fn a_frozen_link_is_replaced_by_the_dial_that_meets_it() {
    within(async {
        let server = server(Hybrid::Offer);
        let proxy = Proxy::start(server.addresses()[0]).await;
        let directory = Arc::new(Memory::default());
        directory.add_server(server.public_key(), &proxy.address.to_string());
        // Over the dead session it is waited for in vain; over the fresh one it must suffice on any machine.
        let attempt_limit = Duration::from_secs(3);
        let behind = ready(ClientConfig { attempt_limit, ..config(directory.clone()) }).await;
        let direct: Arc<dyn Directory> = Arc::new(KnownServers::new(vec![address(&server)]));
        let third = ready(config(direct)).await;
        let mut at_third = third.listen(80).unwrap();
        let mut at_behind = behind.listen(80).unwrap();
        directory.insert(Entry {
            static_key: Some(third.public_key()),
            client: Some(ClientPart { delegated_servers: Some(vec![server.public_key()]) }),
            ..Default::default()
        });

        proxy.freeze();
        // One attempt over the dead session, then a fresh one: no keepalive has noticed anything yet.
        let started = Instant::now();
        let mut stream = behind.dial(to(&third, 80)).await.unwrap();
        assert!(started.elapsed() >= attempt_limit);
        prove(&mut stream, &mut at_third).await;
        eventually("the newer session in the dead one's place", || {
            counts(&server, Counter::SessionsDisplaced) == 1
        })
        .await;
        // And others reach it again.
        let mut stream = third.dial(to(&behind, 80)).await.unwrap();
        prove(&mut stream, &mut at_behind).await;
        assert_eq!(behind.sessions().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_frozen_link_is_noticed_by_the_keepalive_and_made_anew() {
    within(async {
        let server = server(Hybrid::Offer);
        let proxy = Proxy::start(server.addresses()[0]).await;
        let directory = Arc::new(Memory::default());
        directory.add_server(server.public_key(), &proxy.address.to_string());
        let behind = ready(ClientConfig {
            keepalive: Duration::from_millis(200),
            // Long enough for the answer of a busy machine: the session that is made anew must live.
            keepalive_limit: Duration::from_secs(3),
            ..config(directory.clone())
        })
        .await;
        let mut listener = behind.listen(80).unwrap();
        let third = ready(config(Arc::new(KnownServers::new(vec![address(&server)])))).await;
        proxy.freeze();
        eventually("a second connection", || proxy.accepted() == 2).await;
        // Who dials before it is there leaves the route alone for 30 s.
        eventually("a session in the frozen one's place", || {
            counts(&server, Counter::SessionsDisplaced) == 1
        })
        .await;
        let mut stream = reach(&third, to(&behind, 80)).await;
        prove(&mut stream, &mut listener).await;
        assert_eq!(counts(&server, Counter::SessionsDisplaced), 1);
    })
    .await;
}

/// Issue of every frozen link: the server still files the dead session, and must not keep it.
#[tokio::test]
async fn a_third_party_reaches_the_new_session_within_one_handshake() {
    within(async {
        let server = server(Hybrid::Offer);
        let third = ready(config(Arc::new(KnownServers::new(vec![address(&server)])))).await;
        let mut took = Vec::new();
        for round in 1..=5 {
            let proxy = Proxy::start(server.addresses()[0]).await;
            let frozen_server =
                ServerAddress { key: server.public_key(), address: proxy.address.to_string() };
            let secret_key = new_key();
            let session = |server| SessionConfig {
                first_frame_pause: Duration::ZERO,
                ..SessionConfig::new(secret_key.clone(), server)
            };
            let frozen = Session::connect(session(frozen_server)).await.unwrap();
            frozen.ping().await.unwrap();
            proxy.freeze();
            let started = Instant::now();
            let again = Session::connect(session(address(&server))).await.unwrap();
            let mut listener = again.listen(80).unwrap();
            again.ping().await.unwrap();
            // At once: the dial waits until the server knows which of the two lives.
            let destination = Address { key: again.public_key(), port: 80 };
            let mut stream = third.dial(destination).await.unwrap();
            prove(&mut stream, &mut listener).await;
            took.push(started.elapsed());
            assert_eq!(counts(&server, Counter::SessionsDisplaced), round);
            // The dead session's own end changes nothing for the living one.
            frozen.close().await;
            drop(proxy);
            again.ping().await.unwrap();
        }
        // The median, so that a pause of the machine is not taken for a time-out.
        took.sort_unstable();
        assert!(took[2] < Duration::from_secs(5), "one handshake: {took:?}");
    })
    .await;
}

#[tokio::test]
async fn only_a_genuine_not_found_makes_a_fresh_entry() {
    within(async {
        let server = server(Hybrid::Offer);
        let directory = listed(&[&server]);
        directory.fail_next(DirectoryError::Failed("500 Internal Server Error".to_owned()));
        directory.fail_next(DirectoryError::Failed("502 Bad Gateway".to_owned()));
        let client = ready(config(directory.clone())).await;
        let key = client.public_key();
        assert_eq!(directory.puts(&key), [0]);
        let asked: Vec<_> = directory.requests();
        assert_eq!(&asked[..3], [Request::Entry(key), Request::Entry(key), Request::Entry(key)]);
        assert!(matches!(asked[3], Request::Put { sequence: 0, .. }), "{asked:?}");
    })
    .await;
}

#[tokio::test]
async fn an_entry_that_is_there_is_continued_and_its_other_parts_stay() {
    within(async {
        let server = server(Hybrid::Offer);
        let directory = listed(&[&server]);
        let secret_key = new_key();
        let part = ServerPart { address: "192.0.2.1:8081".to_owned(), ..Default::default() };
        let mut stored = Entry {
            version: "0.0.1".to_owned(),
            sequence: 41,
            timestamp_ns: i64::MAX - 10,
            client_type: "visor".to_owned(),
            server: Some(part.clone()),
            ..Default::default()
        };
        stored.sign(&secret_key);
        directory.insert(stored);
        let listing = only(&directory, &server);
        let client = ready(ClientConfig { secret_key: secret_key.clone(), ..config(listing) }).await;
        let key = client.public_key();
        let posted = directory.stored(&key).unwrap();
        assert_eq!((posted.sequence, posted.server, &*posted.client_type), (42, Some(part), "visor"));
        assert_eq!(directory.delegated(&key), [server.public_key()]);
        client.close().await;
        let left = directory.stored(&key).unwrap();
        assert!(
            left.client.is_none() && left.server.is_some(),
            "the server's part is not the client's to remove"
        );
        left.verify().unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_sequence_that_somebody_raised_is_followed_unless_it_is_newer() {
    within(async {
        let server = server(Hybrid::Offer);
        let directory = listed(&[&server]);
        let other = |secret_key: &SecretKey, sequence, timestamp_ns| {
            let mut entry = Entry {
                version: "0.0.1".to_owned(),
                sequence,
                timestamp_ns,
                client: Some(ClientPart { delegated_servers: Some(Vec::new()) }),
                ..Default::default()
            };
            entry.sign(secret_key);
            entry
        };
        let first = config(directory.clone());
        directory.interlope(other(&first.secret_key, 7, 1));
        let client = ready(first).await;
        assert_eq!(directory.puts(&client.public_key()), [0, 8]);

        let mut second = config(directory.clone());
        second.post.retry.first = Duration::from_secs(60);
        second.post.retry.longest = Duration::from_secs(60);
        directory.interlope(other(&second.secret_key, 7, i64::MAX));
        let client = Client::start(second).unwrap();
        until_told(&client, "another client use this key").await;
    })
    .await;
}

#[tokio::test]
async fn flaps_that_change_nothing_cost_no_request() {
    within(async {
        let server = server(Hybrid::Offer);
        let proxy = Proxy::start(server.addresses()[0]).await;
        let directory = Arc::new(Memory::default());
        directory.add_server(server.public_key(), &proxy.address.to_string());
        let mut config = config(directory.clone());
        config.post.settle = Duration::from_secs(5);
        // One that lasts costs the shortest pause.
        config.lasting = Duration::ZERO;
        let client = ready(config.clone()).await;
        let before = directory.requests().len();
        for flap in 1..=10 {
            proxy.cut();
            eventually("the client is back", || {
                proxy.accepted() == 1 + flap && !client.sessions().is_empty()
            })
            .await;
        }
        assert_eq!(directory.requests().len(), before, "{:?}", directory.requests());
    })
    .await;
}

#[tokio::test]
async fn a_client_that_cannot_connect_says_what_stands_in_the_way() {
    within(async {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let directory = Arc::new(Memory::default());
        directory.add_server(new_key().public_key(), &free.to_string());
        let client = Client::start(config(directory)).unwrap();
        until_told(&client, &free.to_string()).await;
        let nobody = Client::start(config(Arc::new(Memory::default()))).unwrap();
        until_told(&nobody, "no server").await;
    })
    .await;
}

/// Waits until a client that does not become ready says this: a busy machine has it try a little later.
async fn until_told(client: &Client, why: &str) {
    let patience = Instant::now() + READY;
    loop {
        let error = client.ready(Duration::from_millis(300)).await.unwrap_err();
        if error.to_string().contains(why) {
            return;
        }
        assert!(Instant::now() < patience, "not told: {why}; but: {error}");
    }
}
