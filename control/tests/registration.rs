//! Registration over HTTP, against a discovery with a script and against our own.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail")]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::Method;
use axum::response::{IntoResponse as _, Response};
use ringwire::discovery::{DiscoveryClient, DiscoveryHost, DiscoverySettings};
use ringwire::http::{HttpServer, Limits, Reply, bind};
use ringwire::registration::{Content, Registration, UPDATE_INTERVAL};
use ringwire_proto::entry::{Deployment, Entry};
use ringwire_proto::identity::SecretKey;

/// Generous: it only tells a hang from an answer.
const PATIENCE: Duration = Duration::from_secs(60);

const NOT_FOUND: &str = "entry of public key is not found";

/// A discovery that answers reads from a script; when the script is at its end it serves what was posted.
#[derive(Default)]
struct Stub {
    reads: VecDeque<(u16, &'static str)>,
    stored: Option<Entry>,
    /// Every request: its method, and the entry in its body.
    requests: Vec<(Method, Option<Entry>)>,
}

type Shared = Arc<Mutex<Stub>>;

async fn answer(State(stub): State<Shared>, method: Method, body: Bytes) -> Response {
    let mut stub = stub.lock().unwrap();
    let entry = Entry::from_json(&body).ok();
    stub.requests.push((method.clone(), entry.clone()));
    if method == Method::POST {
        stub.stored = entry;
        return Reply::message(200.try_into().unwrap(), "wrote a new entry").into_response();
    }
    if method == Method::DELETE {
        stub.stored = None;
        return Reply::message(200.try_into().unwrap(), "deleted entry").into_response();
    }
    match (stub.reads.pop_front(), &stub.stored) {
        (Some((status, text)), _) => Reply::message(status.try_into().unwrap(), text).into_response(),
        (None, Some(entry)) => Reply::Json(entry.to_json()).into_response(),
        (None, None) => Reply::message(404.try_into().unwrap(), NOT_FOUND).into_response(),
    }
}

async fn stub(reads: &[(u16, &'static str)]) -> (HttpServer, DiscoveryClient, Shared) {
    let shared = Shared::new(Mutex::new(Stub { reads: reads.iter().copied().collect(), ..Stub::default() }));
    let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let client = DiscoveryClient::new(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    // The frame's own fallback answers 404 for what a router does not know: nest ours.
    let mut server =
        HttpServer::new(Router::new().nest_service("/dmsg-discovery", router), Limits::default());
    server.listen(listener);
    (server, client, shared)
}

fn key() -> SecretKey {
    SecretKey::from_bytes(&[3; 32]).unwrap()
}

fn content(available: i64) -> Content {
    Content::server("127.0.0.1:8081".to_owned(), available, String::new())
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn posts(stub: &Shared) -> Vec<Entry> {
    let stub = stub.lock().unwrap();
    let posts = stub.requests.iter().filter(|(method, _)| method == Method::POST);
    posts.map(|(_, entry)| entry.clone().unwrap()).collect()
}

#[tokio::test]
async fn after_500_404_and_200_there_was_one_fresh_post_and_it_came_after_the_404() {
    let (server, client, stub) =
        stub(&[(500, "something unexpected happened"), (404, "404 page not found"), (404, NOT_FOUND)]).await;
    let registration = Registration::start(vec![client], key(), content(10), UPDATE_INTERVAL);
    until("the fresh entry is posted", || posts(&stub).len() == 1).await;
    {
        let stub = stub.lock().unwrap();
        let methods: Vec<_> = stub.requests.iter().map(|(method, _)| method.as_str()).collect();
        assert_eq!(methods, ["GET", "GET", "GET", "POST"]);
    }
    registration.set_content(content(9));
    until("the next is posted", || posts(&stub).len() == 2).await;
    let posts = posts(&stub);
    assert_eq!(posts.iter().map(|entry| entry.sequence).collect::<Vec<_>>(), [0, 1]);
    assert!(posts[0].timestamp_ns < posts[1].timestamp_ns);
    for (entry, available) in posts.iter().zip([10, 9]) {
        entry.verify().unwrap();
        assert_eq!(entry.static_key, Some(key().public_key()));
        assert_eq!(entry.server.as_ref().unwrap().available_sessions, available);
    }
    // The discovery has it a moment before its answer is counted here.
    until("the answer is there", || {
        registration.standings()[0].accepted.is_some_and(|(sequence, _)| sequence == 1)
            && registration.counters().posts_accepted.get() == 2
    })
    .await;
    let counters = registration.counters();
    assert_eq!((counters.requests.get(), counters.posts_accepted.get(), counters.failures.get()), (6, 2, 2));
    assert!(registration.standings()[0].error.is_none());
    registration.stop().await;
    assert_eq!(stub.lock().unwrap().requests.last().unwrap().0, Method::DELETE);
    server.stop().await;
}

#[tokio::test]
async fn ten_flaps_with_an_unchanged_set_are_not_heard_of() {
    let (server, client, stub) = stub(&[]).await;
    let registration = Registration::start(vec![client], key(), content(10), UPDATE_INTERVAL);
    until("registered", || registration.standings()[0].accepted.is_some()).await;
    loop {
        let (begin, before) = (Instant::now(), stub.lock().unwrap().requests.len());
        for _ in 0..10 {
            registration.set_content(content(9));
            tokio::time::sleep(Duration::from_millis(10)).await;
            registration.set_content(content(10));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let took = begin.elapsed();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        if took < Duration::from_millis(900) {
            assert_eq!(stub.lock().unwrap().requests.len(), before);
            break;
        }
        // So slow a machine that the flaps outlasted the debouncing; say nothing and try again.
        until("settled", || {
            stub.lock().unwrap().stored.as_ref().is_some_and(|entry| entry.server == content(10).server)
        })
        .await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
    }
    registration.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn a_discovery_that_is_down_delays_no_other_and_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let settings = DiscoverySettings::new(Deployment::Test);
    let host = DiscoveryHost::start(listener, settings, directory.path().join("discovery.json")).unwrap();
    let down = bind("127.0.0.1:0".parse().unwrap()).await.unwrap().local_addr().unwrap();
    let client = DiscoveryClient::new(&host.local_url()).unwrap();
    let registration = Registration::start(
        vec![DiscoveryClient::new(&format!("http://{down}")).unwrap(), client.clone()],
        key(),
        content(10),
        UPDATE_INTERVAL,
    );
    until("registered at the one that is up", || registration.standings()[1].accepted.is_some()).await;
    let listed = client.available_servers().await.unwrap();
    assert_eq!(listed[0].server.as_ref().unwrap().address, "127.0.0.1:8081");
    until("the other is named", || registration.standings()[0].error.is_some()).await;
    let standing = &registration.standings()[0];
    assert!(standing.accepted.is_none());
    assert!(standing.error.as_ref().unwrap().to_string().contains(&down.to_string()));

    registration.set_content(content(0));
    until("full", || host.store().counts() == (1, 0) && registration.counters().posts_accepted.get() == 2)
        .await;
    assert_eq!(client.available_servers().await.unwrap(), []);
    tokio::time::timeout(PATIENCE, registration.stop()).await.unwrap();
    assert!(client.entry(&key().public_key()).await.unwrap_err().is_not_found());

    // A registration that is dropped leaves its entry: another process goes on with it.
    let registration = Registration::start(vec![client.clone()], key(), content(10), UPDATE_INTERVAL);
    until("registered again", || registration.standings()[0].accepted.is_some()).await;
    drop(registration);
    client.entry(&key().public_key()).await.unwrap();
    let registration = Registration::start(vec![client.clone()], key(), content(10), UPDATE_INTERVAL);
    until("taken over", || registration.standings()[0].accepted.is_some()).await;
    assert_eq!(client.entry(&key().public_key()).await.unwrap().sequence, 1);
    drop(registration);
    host.stop().await;
}

#[tokio::test]
async fn a_withdrawn_entry_is_not_posted_until_it_is_restored() {
    let (server, client, stub) = stub(&[]).await;
    let registration = Registration::start(vec![client], key(), content(10), Duration::from_millis(50));
    until("it is renewed", || posts(&stub).len() > 2).await;
    registration.withdraw().await;
    {
        let stub = stub.lock().unwrap();
        assert_eq!(stub.requests.last().unwrap().0, Method::DELETE);
        assert!(stub.stored.is_none());
    }
    let standing = &registration.standings()[0];
    assert!(standing.withdrawn && standing.accepted.is_none());
    let before = stub.lock().unwrap().requests.len();
    registration.set_content(content(9));
    // Many times what a renewal or a change takes.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    registration.withdraw().await;
    assert_eq!(stub.lock().unwrap().requests.len(), before, "nothing is asked for meanwhile");
    registration.restore();
    until("it is there again", || stub.lock().unwrap().stored.is_some()).await;
    {
        let stub = stub.lock().unwrap();
        let again = stub.requests[before..].iter().find_map(|(_, entry)| entry.clone()).unwrap();
        assert_eq!(again.sequence, 0);
        assert_eq!(again.server.unwrap().available_sessions, 9);
    }
    until("and known to be", || !registration.standings()[0].withdrawn).await;
    registration.stop().await;
    server.stop().await;
}
