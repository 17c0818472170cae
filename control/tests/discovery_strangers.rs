//! What strangers can take from an embedded discovery: the entries of others, its room, its memory.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail")]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use ringwire::discovery::{
    DiscoveryCounters, DiscoveryService, DiscoverySettings, MemoryStore, StoreLimits, UnixClock, withdrawal,
};
use ringwire::http::Caller;
use ringwire_proto::entry::{ClientPart, Deployment, ENTRY_VERSION, Entry, ServerPart};
use ringwire_proto::identity::{Address, SecretKey};
use serde_json::Value;
use tower::ServiceExt as _;

const SECOND_NS: i64 = 1_000_000_000;
const START_NS: i64 = 1_795_165_076_837_068_391;

const HERE: &str = "203.0.113.7";
const ELSEWHERE: &str = "198.51.100.9";

fn key(number: u64) -> SecretKey {
    let mut bytes = [7; 32];
    bytes[24..].copy_from_slice(&number.to_be_bytes());
    SecretKey::from_bytes(&bytes).unwrap()
}

/// The entry of a client at a time in seconds.
fn client(secret_key: &SecretKey, sequence: u64, second: i64) -> Entry {
    let mut entry = Entry {
        version: ENTRY_VERSION.to_owned(),
        sequence,
        timestamp_ns: START_NS + second * SECOND_NS,
        client: Some(ClientPart { delegated_servers: Some(vec![key(200).public_key()]) }),
        ..Entry::default()
    };
    entry.sign(secret_key);
    entry
}

/// The entry of a server at a time in seconds.
fn server(secret_key: &SecretKey, sequence: u64, second: i64) -> Entry {
    let server = ServerPart {
        address: "203.0.113.7:8081".to_owned(),
        available_sessions: 2048,
        ..ServerPart::default()
    };
    let mut entry = Entry {
        version: ENTRY_VERSION.to_owned(),
        sequence,
        timestamp_ns: START_NS + second * SECOND_NS,
        server: Some(server),
        ..Entry::default()
    };
    entry.sign(secret_key);
    entry
}

struct Discovery {
    router: Router,
    store: Arc<MemoryStore>,
    counters: DiscoveryCounters,
}

/// A discovery without sockets, so that callers can have any address.
fn discovery(settings: DiscoverySettings, clock: UnixClock) -> Discovery {
    let store = Arc::new(MemoryStore::new(StoreLimits::default()));
    if let Some(key) = settings.own_server {
        store.pin(key);
    }
    let service = DiscoveryService::new(Arc::clone(&store), settings).with_clock(clock);
    let counters = service.counters().clone();
    Discovery { router: service.router(), store, counters }
}

fn settings() -> DiscoverySettings {
    DiscoverySettings::new(Deployment::Production)
}

fn ip(text: &str) -> Caller {
    Caller::Ip(SocketAddr::new(text.parse::<IpAddr>().unwrap(), 4711))
}

impl Discovery {
    async fn send(
        &self,
        method: &str,
        path: &str,
        caller: Caller,
        header: Option<&str>,
        body: String,
    ) -> (u16, String) {
        let mut request = Request::builder().method(method).uri(format!("/dmsg-discovery/{path}"));
        if let Some(name) = header {
            request = request.header(name, HERE);
        }
        let request = request.extension(caller).body(Body::from(body)).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn post(&self, entry: &Entry, from: &str) -> u16 {
        self.send("POST", "entry/", ip(from), None, entry.to_json()).await.0
    }

    async fn delete(&self, entry: &Entry, from: &str) -> u16 {
        self.send("DELETE", "entry", ip(from), None, entry.to_json()).await.0
    }

    async fn get(&self, path: &str) -> (u16, String) {
        self.send("GET", path, ip(HERE), None, String::new()).await
    }

    /// What anybody reads of a key's entry.
    async fn shown(&self, secret_key: &SecretKey) -> Option<Entry> {
        let (status, text) = self.get(&format!("entry/{}", secret_key.public_key())).await;
        (status == 200).then(|| Entry::from_json(text.as_bytes()).unwrap())
    }

    /// The `serverType` of every server that is listed as available.
    async fn types(&self) -> Vec<String> {
        let (_, text) = self.get("available_servers").await;
        let servers: Vec<Value> = serde_json::from_str(&text).unwrap();
        servers.iter().map(|entry| entry["server"]["serverType"].as_str().unwrap().to_owned()).collect()
    }
}

fn started() -> i64 {
    START_NS
}

#[tokio::test]
async fn what_everybody_can_read_removes_an_entry_only_from_where_it_was_posted() {
    let discovery = discovery(settings(), started);
    for (secret_key, entry) in [(key(1), client(&key(1), 0, 0)), (key(2), server(&key(2), 0, 0))] {
        assert_eq!(discovery.post(&entry, HERE).await, 200);
        let mut shown = discovery.shown(&secret_key).await.unwrap();
        // What the discovery put over what was signed, and everybody can take away again.
        if let Some(server) = &mut shown.server {
            server.server_type.clear();
        }
        assert_eq!(shown, entry);
        let refused = discovery.send("DELETE", "entry", ip(ELSEWHERE), None, shown.to_json()).await;
        assert_eq!(refused, (401, "{\"message\":\"invalid signature\",\"code\":401}".to_owned()));
        // Through a proxy the address is the proxy's, whoever asks.
        for header in ["X-Forwarded-For", "X-Real-IP", "Forwarded", "Via"] {
            let proxied = discovery.send("DELETE", "entry", ip(HERE), Some(header), shown.to_json()).await;
            assert_eq!(proxied.0, 401, "{header}");
        }
        assert!(discovery.shown(&secret_key).await.is_some());
        assert_eq!(discovery.delete(&shown, HERE).await, 200);
        assert!(discovery.shown(&secret_key).await.is_none());
        assert_eq!(discovery.delete(&shown, ELSEWHERE).await, 200, "nothing is there to be removed");
    }
    assert_eq!(discovery.counters.deletes_refused.get(), 10);
}

#[tokio::test]
async fn a_newer_entry_from_another_discovery_gives_its_sender_no_right() {
    let discovery = discovery(settings(), started);
    let (first, second) = (client(&key(1), 0, 0), client(&key(1), 7, 1));
    assert_eq!(discovery.post(&first, HERE).await, 200);
    // Signed by its key, so it is taken; posted to another discovery, so everybody has it.
    assert_eq!(discovery.post(&second, ELSEWHERE).await, 200);
    assert_eq!(discovery.delete(&second, ELSEWHERE).await, 401);
    assert_eq!(discovery.delete(&second, HERE).await, 401, "the address may have changed hands");
    assert_eq!(discovery.shown(&key(1)).await, Some(second));
}

#[tokio::test]
async fn over_dmsg_the_key_itself_removes_its_entry_and_no_other_key() {
    let discovery = discovery(settings(), started);
    let entry = client(&key(1), 0, 0);
    let over_dmsg = |number| Caller::Key(Address { key: key(number).public_key(), port: 49152 });
    for (from, by, status) in [(1, 2, 401), (1, 1, 200), (3, 3, 401), (3, 1, 200)] {
        discovery.send("POST", "entry/", over_dmsg(from), None, entry.to_json()).await;
        let (got, _) = discovery.send("DELETE", "entry", over_dmsg(by), None, entry.to_json()).await;
        assert_eq!(got, status, "posted by {from}, removed by {by}");
    }
}

static WITHDRAWALS_NS: AtomicI64 = AtomicI64::new(START_NS);

#[tokio::test]
async fn a_removal_that_was_signed_as_one_counts_from_anywhere_once() {
    let discovery = discovery(settings(), || WITHDRAWALS_NS.load(Ordering::Relaxed));
    let at = |second: i64| WITHDRAWALS_NS.store(START_NS + second * SECOND_NS, Ordering::Relaxed);
    let signed = |entry: Entry, secret_key: &SecretKey| {
        let mut entry = withdrawal(entry);
        entry.sign(secret_key);
        entry
    };
    for secret_key in [key(1), key(2)] {
        at(0);
        let entry = |sequence, second| {
            if secret_key == key(1) {
                client(&secret_key, sequence, second)
            } else {
                server(&secret_key, sequence, second)
            }
        };
        assert_eq!(discovery.post(&entry(0, 0), HERE).await, 200);
        let removal = signed(entry(1, 10), &secret_key);
        assert_eq!(discovery.post(&removal, HERE).await, 422, "it is no entry to be stored");
        at(10);
        let mut forged = removal.clone();
        forged.sequence += 1;
        assert_eq!(discovery.delete(&forged, ELSEWHERE).await, 401);
        assert_eq!(discovery.delete(&removal, ELSEWHERE).await, 200);
        assert!(discovery.shown(&secret_key).await.is_none());
        // Whoever has heard it can say it again, but not about a later entry.
        at(11);
        assert_eq!(discovery.post(&entry(2, 11), HERE).await, 200);
        assert_eq!(discovery.delete(&removal, ELSEWHERE).await, 401);
        let second = signed(entry(3, 12), &secret_key);
        at(12 + 61);
        assert_eq!(discovery.delete(&second, ELSEWHERE).await, 401, "it is over a minute old");
        assert!(discovery.shown(&secret_key).await.is_some());
    }
}

#[tokio::test]
async fn the_own_server_stays_whatever_strangers_send_and_only_it_is_official() {
    let own = key(1);
    let settings = DiscoverySettings { own_server: Some(own.public_key()), ..settings() };
    let discovery = discovery(settings, started);
    let entry = server(&own, 0, 0);
    assert_eq!(discovery.post(&entry, "127.0.0.1").await, 200);
    for from in [HERE, "127.0.0.1"] {
        assert_eq!(discovery.delete(&entry, from).await, 401, "{from}");
    }
    for number in 0..5000 {
        let prefix = format!("2001:db8:{:x}:{:x}::1", number / 16 / 0x10000, number / 16 % 0x10000);
        assert_eq!(discovery.post(&server(&key(1000 + number), 0, 0), &prefix).await, 200, "{number}");
    }
    assert_eq!(discovery.store.counts(), (4097, 0));
    assert_eq!(discovery.counters.evicted.get(), 5000 - 4096);
    assert_eq!(discovery.shown(&own).await.unwrap().server.unwrap().server_type, "official");
    assert_eq!(discovery.post(&server(&own, 1, 0), "127.0.0.1").await, 200);
    let types = discovery.types().await;
    assert_eq!(types.len(), 512);
    assert!(types.iter().filter(|text| *text == "official").count() == 1, "{types:?}");
    // New at a full discovery.
    assert_eq!(
        discovery
            .delete(
                &{
                    let mut removal = withdrawal(server(&own, 2, 0));
                    removal.sign(&own);
                    removal
                },
                "127.0.0.1"
            )
            .await,
        200
    );
    assert_eq!(discovery.post(&server(&own, 0, 0), "127.0.0.1").await, 200);
    assert_eq!(discovery.post(&server(&key(2), 0, 0), HERE).await, 200, "an honest newcomer");
}

static ROOM_NS: AtomicI64 = AtomicI64::new(START_NS);

#[tokio::test]
async fn one_address_has_room_for_so_many_servers_and_the_oldest_unproven_leaves() {
    let discovery = discovery(settings(), || ROOM_NS.load(Ordering::Relaxed));
    let (proven, neighbour) = (key(1), key(2));
    assert_eq!(discovery.post(&server(&proven, 0, 0), HERE).await, 200);
    assert_eq!(discovery.post(&server(&neighbour, 0, 0), ELSEWHERE).await, 200);
    ROOM_NS.store(START_NS + 40 * SECOND_NS, Ordering::Relaxed);
    assert_eq!(discovery.post(&server(&proven, 1, 40), HERE).await, 200);
    for number in 0..20 {
        assert_eq!(discovery.post(&server(&key(100 + number), 0, 40), HERE).await, 200);
    }
    assert_eq!(discovery.store.counts().0, 16 + 1);
    let mut left = Vec::new();
    for number in 0..20 {
        if discovery.shown(&key(100 + number)).await.is_none() {
            left.push(number);
        }
    }
    assert_eq!(left, [0, 1, 2, 3, 4], "the oldest of the address");
    assert!(discovery.shown(&proven).await.is_some() && discovery.shown(&neighbour).await.is_some());
    // All are proven: nobody leaves, and the next is refused.
    ROOM_NS.store(START_NS + 80 * SECOND_NS, Ordering::Relaxed);
    for number in 5..20 {
        assert_eq!(discovery.post(&server(&key(100 + number), 1, 80), HERE).await, 200);
    }
    let (status, text) =
        discovery.send("POST", "entry/", ip(HERE), None, server(&key(300), 0, 80).to_json()).await;
    assert!(status == 503 && text.contains("from this address"), "{status} {text}");
    assert_eq!(discovery.post(&server(&key(301), 0, 80), "198.51.100.77").await, 200);
}

#[tokio::test]
async fn concurrent_readers_share_one_listing_of_all_clients() {
    let discovery = Arc::new(discovery(settings(), started));
    for number in 0..300 {
        assert_eq!(discovery.post(&client(&key(number), 0, 0), HERE).await, 200);
    }
    for path in ["servers/clients", "entries", "visorEntries"] {
        let before = discovery.counters.listings_built.get();
        let asked: Vec<_> = (0..16)
            .map(|_| {
                let discovery = Arc::clone(&discovery);
                tokio::spawn(async move { discovery.get(path).await })
            })
            .collect();
        let mut answers = Vec::new();
        for task in asked {
            answers.push(task.await.unwrap());
        }
        assert!(answers.iter().all(|answer| answer.0 == 200 && *answer == answers[0]), "{path}");
        discovery.get(path).await;
        assert_eq!(discovery.counters.listings_built.get() - before, 1, "{path}");
    }
    let before = discovery.counters.listings_built.get();
    let (_, text) = discovery.get(&format!("server/{}/clients", key(200).public_key())).await;
    let clients: Vec<String> = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (clients.len(), discovery.counters.listings_built.get()),
        (300, before),
        "a part of the whole"
    );
}

static BACK_NS: AtomicI64 = AtomicI64::new(START_NS);

#[tokio::test]
async fn an_entry_of_a_clock_that_was_ahead_blocks_nobody_and_lives_no_longer() {
    let settings = settings();
    let lifetime = std::time::Duration::from_secs(120);
    let discovery = discovery(settings, || BACK_NS.load(Ordering::Relaxed));
    let at = |second: i64| BACK_NS.store(START_NS + second * SECOND_NS, Ordering::Relaxed);
    at(600);
    for number in 1..=2 {
        assert_eq!(discovery.post(&server(&key(number), 4, 600), HERE).await, 200);
    }
    at(0);
    assert_eq!(discovery.post(&server(&key(1), 4, 0), HERE).await, 422, "the sequence must still grow");
    assert_eq!(discovery.post(&server(&key(1), 5, 0), HERE).await, 200);
    assert_eq!(discovery.shown(&key(1)).await.unwrap().sequence, 5);
    assert_eq!(
        discovery.post(&server(&key(1), 6, -1), HERE).await,
        422,
        "its own time is not ahead any more"
    );
    assert_eq!(discovery.store.sweep(BACK_NS.load(Ordering::Relaxed), |_| Some(lifetime)), 0);
    at(119);
    assert!(discovery.shown(&key(2)).await.is_some());
    at(120);
    assert!(discovery.shown(&key(2)).await.is_none(), "it would have stayed 600 s longer");
}
