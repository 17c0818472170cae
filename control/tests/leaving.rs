//! A server that drains or stops: it says so, its entry goes, newcomers are refused, and only then is a session closed.
//!
//! Every order is shown by what had happened when something else did, never by a clock.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail")]

mod common;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State as Shared;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use common::process::{Planes, json, ringwire, send};
use common::{eventually, within};
use ringwire::discovery::{DiscoveryClient, DiscoveryHost, DiscoverySettings};
use ringwire::dmsg::{Client, ClientConfig, ServerAddress, Session, SessionConfig};
use ringwire::http::{HttpServer, Limits, bind};
use ringwire::state::State;
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_proto::entry::{Deployment, Entry};
use ringwire_proto::identity::{PublicKey, SecretKey};
use rustix::process::Signal;

/// Sessions that a drain is to move.
const CLIENTS: usize = 6;

/// What was so when a server asked for its entry to be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    sessions: usize,
    /// What `/health` said.
    health: u16,
}

/// Who is asked when an entry is to be removed.
struct Witness {
    key: PublicKey,
    state: PathBuf,
    http: String,
}

/// A discovery with somebody before it who notes who asks for what.
struct Front {
    upstream: String,
    http: reqwest::Client,
    log: Mutex<Vec<(Method, PublicKey)>>,
    witness: Mutex<Option<Witness>>,
    seen: Mutex<Vec<Seen>>,
    /// Removals are never answered.
    is_deaf: AtomicBool,
    /// Somebody who asked for a removal went away without an answer.
    given_up: Arc<AtomicBool>,
}

struct GivenUp(Arc<AtomicBool>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Front {
    /// In front of a discovery of its own, with a client of it.
    async fn start(directory: &Path) -> (Arc<Self>, DiscoveryClient, (HttpServer, DiscoveryHost)) {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let settings = DiscoverySettings::new(Deployment::Test);
        let host = DiscoveryHost::start(listener, settings, directory.join("discovery.json")).unwrap();
        let front = Arc::new(Self {
            upstream: host.local_url(),
            http: reqwest::Client::new(),
            log: Mutex::default(),
            witness: Mutex::default(),
            seen: Mutex::default(),
            is_deaf: AtomicBool::new(false),
            given_up: Arc::default(),
        });
        let router = Router::new().fallback(pass).with_state(Arc::clone(&front));
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let client = DiscoveryClient::new(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        // The frame's own fallback answers for what a router does not know: nest ours.
        let mut server =
            HttpServer::new(Router::new().nest_service("/dmsg-discovery", router), Limits::default());
        server.listen(listener);
        (front, client, (server, host))
    }

    fn watch(&self, planes: &Planes, state: &Path) {
        *self.witness.lock().unwrap() = Some(Witness {
            key: key_of(planes),
            state: state.to_owned(),
            http: planes.ready["http"].as_str().unwrap().to_owned(),
        });
    }

    /// What this key's server asked for, apart from reads.
    fn asked(&self, key: PublicKey) -> Vec<Method> {
        let log = self.log.lock().unwrap();
        let asked = log.iter().filter(|(method, asking)| *asking == key && *method != Method::GET);
        asked.map(|(method, _)| method.clone()).collect()
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Looks at the server that wants to be removed.
    async fn look(&self, key: PublicKey) {
        let (state, http) = match &*self.witness.lock().unwrap() {
            Some(witness) if witness.key == key => (witness.state.clone(), witness.http.clone()),
            _ => return,
        };
        let health = reqwest::get(format!("http://{http}/health")).await.unwrap().status().as_u16();
        let sessions = tokio::task::spawn_blocking(move || {
            let state = State::locate(Some(state)).unwrap();
            ringwire::admin::dump(&state).map_or(0, |(sessions, ..)| sessions.sessions.len())
        });
        let sessions = sessions.await.unwrap();
        self.seen.lock().unwrap().push(Seen { sessions, health });
    }
}

async fn pass(Shared(front): Shared<Arc<Front>>, method: Method, uri: Uri, body: Bytes) -> Response {
    if let Some(key) = Entry::from_json(&body).ok().and_then(|entry| entry.static_key) {
        front.log.lock().unwrap().push((method.clone(), key));
        if method == Method::DELETE {
            front.look(key).await;
            if front.is_deaf.load(Ordering::SeqCst) {
                let _given_up = GivenUp(Arc::clone(&front.given_up));
                std::future::pending::<()>().await;
            }
        }
    }
    let url = format!("{}/dmsg-discovery{uri}", front.upstream);
    let answer = front.http.request(method, url).body(body).send().await.unwrap();
    let status = answer.status();
    (StatusCode::from_u16(status.as_u16()).unwrap(), answer.bytes().await.unwrap()).into_response()
}

fn key_of(planes: &Planes) -> PublicKey {
    planes.ready["public_key"].as_str().unwrap().parse().unwrap()
}

/// A server that registers there, registered.
async fn server(state: &Path, discovery: &DiscoveryClient) -> Planes {
    let (state, url) = (state.to_owned(), discovery.url().to_owned());
    let planes = tokio::task::spawn_blocking(move || {
        Planes::start(&state, &["--discovery", &url, "--http-listen", "127.0.0.1:0"])
    });
    let planes = planes.await.unwrap();
    let key = key_of(&planes);
    within(async {
        while discovery.entry(&key).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
    planes
}

async fn session(server: &ServerAddress) -> Session {
    let mut config = SessionConfig::new(SecretKey::generate(&mut OsEntropy), server.clone());
    config.first_frame_pause = std::time::Duration::ZERO;
    common::connect(config).await
}

fn client(discovery: &DiscoveryClient) -> Client {
    let secret = SecretKey::generate(&mut OsEntropy);
    Client::start(ClientConfig::new(secret, Arc::new(discovery.clone()))).unwrap()
}

fn is_at(client: &Client, key: PublicKey) -> bool {
    client.sessions().iter().any(|session| session.server.key == key)
}

fn counter(state: &Path, name: &str) -> u64 {
    json(state, &["show", "counters"])["total"][name].as_u64().unwrap()
}

/// A command of the program, while this runtime goes on.
async fn command(state: &Path, arguments: &'static [&'static str]) -> std::process::Output {
    let state = state.to_owned();
    tokio::task::spawn_blocking(move || ringwire(&state).args(arguments).output().unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_moves_every_client_elsewhere_and_none_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = (directory.path().join("a"), directory.path().join("b"));
    let (front, discovery, _running) = Front::start(directory.path()).await;
    let mut first = server(&a, &discovery).await;
    let leaving = key_of(&first);
    let clients: Vec<_> = (0..CLIENTS).map(|_| client(&discovery)).collect();
    for client in &clients {
        client.ready(common::PATIENCE).await.unwrap();
        assert!(is_at(client, leaving));
    }
    let second = server(&b, &discovery).await;
    let staying = key_of(&second);
    // Something that lasts: the drain does not end the server before it was looked at.
    let (from, to) = (session(&first.address()).await, session(&first.address()).await);
    let mut listener = to.listen(80).unwrap();
    let held = common::pair(&from, &to, &mut listener).await;
    front.watch(&first, &a);
    let opened = counter(&a, "sessions_opened_total");
    let accepted = counter(&a, "connections_accepted_total");

    let began = Instant::now();
    let drained = command(&a, &["drain", "--within", "600"]).await;
    assert!(drained.status.success(), "{drained:?}");
    eventually("every client is elsewhere", || clients.iter().all(|client| is_at(client, staying))).await;
    println!("{CLIENTS} clients are elsewhere {:?} after the order", began.elapsed());

    // When the entry was to go, nobody's session had been closed, and the server was not ready any more.
    assert_eq!(front.seen(), [Seen { sessions: CLIENTS + 2, health: 503 }]);
    assert!(discovery.entry(&leaving).await.unwrap_err().is_not_found());
    // Whoever counts sessions and posts what changed has done so by the time the other server's entry says it.
    eventually("the new sessions are counted", || {
        counter(&b, "sessions_opened_total") >= CLIENTS as u64 && front.asked(staying).len() > 1
    })
    .await;
    let asked = front.asked(leaving);
    let removed = asked.iter().position(|method| *method == Method::DELETE).unwrap();
    assert!(asked[removed + 1..].is_empty(), "nothing is posted behind the removal: {asked:?}");
    assert!(discovery.entry(&leaving).await.unwrap_err().is_not_found());
    assert_eq!(counter(&a, "sessions_opened_total"), opened, "nobody came back");
    assert_eq!(counter(&a, "connections_accepted_total"), accepted, "nobody was let in to be closed");
    let status = json(&a, &["status"]);
    let standing = &status["control"]["discoveries"][0];
    assert!(standing["withdrawn"] == true && standing["registered_s"].is_null(), "{status}");

    drop((held, listener, from, to));
    assert_eq!(tokio::task::spawn_blocking(move || first.exit_code()).await.unwrap(), Some(0));
    for client in &clients {
        client.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_takes_the_entry_away_and_refuses_before_it_closes() {
    for by_signal in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("a");
        let (front, discovery, _running) = Front::start(directory.path()).await;
        let mut planes = server(&state, &discovery).await;
        let client = session(&planes.address()).await;
        front.watch(&planes, &state);
        if by_signal {
            planes.signal(Signal::TERM);
        } else {
            let state = state.clone();
            // Its answer comes last.
            tokio::task::spawn_blocking(move || ringwire(&state).arg("stop").output().unwrap());
        }
        within(client.closed()).await;
        let back = std::net::TcpStream::connect(planes.address().address);
        assert_eq!(back.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused, "{by_signal}");
        assert_eq!(front.seen(), [Seen { sessions: 1, health: 503 }], "{by_signal}");
        let key = key_of(&planes);
        assert_eq!(tokio::task::spawn_blocking(move || planes.exit_code()).await.unwrap(), Some(0));
        assert_eq!(front.asked(key).last(), Some(&Method::DELETE));
        assert!(discovery.entry(&key).await.unwrap_err().is_not_found());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_discovery_that_does_not_answer_holds_up_neither_drain_nor_stop() {
    for order in ["drain", "stop", "signal"] {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("a");
        let (front, discovery, _running) = Front::start(directory.path()).await;
        let mut planes = server(&state, &discovery).await;
        let client = session(&planes.address()).await;
        front.is_deaf.store(true, Ordering::SeqCst);
        let began = Instant::now();
        match order {
            "signal" => planes.signal(Signal::TERM),
            order => {
                let state = state.clone();
                tokio::task::spawn_blocking(move || ringwire(&state).arg(order).output().unwrap());
            }
        }
        within(client.closed()).await;
        println!("{order}: closed {:?} after the order", began.elapsed());
        let asked = front.asked(key_of(&planes));
        assert_eq!(asked.last(), Some(&Method::DELETE), "{order}: not before it was asked for");
        // The request alone would have been waited for ten seconds.
        assert!(!front.given_up.load(Ordering::SeqCst), "{order}");
        assert_eq!(tokio::task::spawn_blocking(move || planes.exit_code()).await.unwrap(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_could_not_be_drained_is_registered_again() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("a");
    let (front, discovery, _running) = Front::start(directory.path()).await;
    let planes = server(&state, &discovery).await;
    let key = key_of(&planes);
    // It does not take the order.
    send(planes.dataplane_pid, Signal::STOP);
    let drained = command(&state, &["drain"]).await;
    send(planes.dataplane_pid, Signal::CONT);
    assert_eq!(drained.status.code(), Some(1), "{drained:?}");
    eventually("it is there again", || {
        let asked = front.asked(key);
        let removed = asked.iter().position(|method| *method == Method::DELETE);
        removed.is_some_and(|removed| asked[removed..].contains(&Method::POST))
    })
    .await;
    let url = format!("http://{}/health", planes.ready["http"].as_str().unwrap());
    within(async {
        while discovery.entry(&key).await.is_err() || reqwest::get(&url).await.unwrap().status() != 200 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
    session(&planes.address()).await.ping().await.unwrap();
}
