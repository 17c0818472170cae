//! The embedded discovery against the recorded exchanges of the discovery of 2024, and beyond them: lifetimes, bounds,
//! malformed requests.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail")]

use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use reqwest::{Client, Method, StatusCode};
use ringwire::discovery::{
    Changes, DiscoveryClient, DiscoveryCounters, DiscoveryError, DiscoveryHost, DiscoveryService,
    DiscoverySettings, KindLimits, MemoryStore, PutError, Record, Refusal, Sender, Source, Store as _,
    StoreLimits, UnixClock, deployment_of, journal, unix_now_ns,
};
use ringwire::http::{BuildInfo, Health, HttpServer, Limits, bind};
use ringwire_proto::entry::{ClientPart, Deployment, ENTRY_VERSION, Entry, ServerPart};
use ringwire_proto::identity::{PublicKey, SecretKey};
use serde_json::Value;

const SECOND_NS: i64 = 1_000_000_000;

struct Discovery {
    server: HttpServer,
    url: String,
    store: Arc<MemoryStore>,
    counters: DiscoveryCounters,
}

async fn started(settings: DiscoverySettings, clock: UnixClock) -> Discovery {
    let store = Arc::new(MemoryStore::new(StoreLimits::default()));
    let service = DiscoveryService::new(Arc::clone(&store), settings).with_clock(clock);
    let counters = service.counters().clone();
    let mut server = HttpServer::new(service.router(), Limits::default());
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    server.listen(listener);
    Discovery { server, url, store, counters }
}

fn key(number: u8) -> SecretKey {
    SecretKey::from_bytes(&[number; 32]).unwrap()
}

fn client_entry(secret_key: &SecretKey, sequence: u64, timestamp_ns: i64) -> Entry {
    let mut entry = Entry {
        version: ENTRY_VERSION.to_owned(),
        sequence,
        timestamp_ns,
        client: Some(ClientPart { delegated_servers: Some(vec![key(200).public_key()]) }),
        ..Entry::default()
    };
    entry.sign(secret_key);
    entry
}

fn server_entry(secret_key: &SecretKey, sequence: u64, timestamp_ns: i64, available_sessions: i64) -> Entry {
    let server =
        ServerPart { address: "203.0.113.7:8081".to_owned(), available_sessions, ..ServerPart::default() };
    let mut entry = Entry {
        version: ENTRY_VERSION.to_owned(),
        sequence,
        timestamp_ns,
        server: Some(server),
        ..Entry::default()
    };
    entry.sign(secret_key);
    entry
}

fn vectors() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../dataplane/proto/tests/vectors/services/dmsg-discovery-api.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The time at which the exchanges were recorded.
fn recorded_at() -> i64 {
    1_795_165_076_837_068_391
}

fn recorded_settings(vectors: &Value) -> DiscoverySettings {
    let mut settings = DiscoverySettings::new(Deployment::Production);
    settings.official_passphrase =
        vectors["configuration"]["auth_passphrase"].as_str().unwrap().to_owned().into();
    settings.official_servers = vectors["configuration"]["official_servers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|key| key.as_str().unwrap().parse().unwrap())
        .collect();
    settings.network_monitors =
        HashSet::from(["02f866db9edad5a0c7d375eed340194374f90f994c543b84b4ced1f030b9fcc0fe"
            .parse()
            .unwrap()]);
    settings.health = Health {
        build_info: Some(BuildInfo::default()),
        started_at: "2026-11-20T08:57:56.83704083Z".to_owned(),
        dmsg_address: "0245c68cb8b2c2c78064f2f34c286667bb98ce12b81918ec449dd4074dcfc87f95:80".to_owned(),
        dmsg_servers: vec!["03358669f8a5a2c21d0089a4db5f175753d255468fa7c2b087efcf49d8583694bb".to_owned()],
        ..Health::default()
    };
    settings
}

/// Lists whose order is that of a set are compared as sets.
fn as_set(text: &str) -> BTreeSet<String> {
    let list: Vec<Value> = serde_json::from_str(text).unwrap();
    list.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn every_recorded_exchange_is_answered_byte_for_byte() {
    let vectors = vectors();
    let discovery = started(recorded_settings(&vectors), recorded_at).await;
    let http = Client::new();
    let exchanges = vectors["exchanges"].as_array().unwrap();
    for exchange in exchanges {
        let name = exchange["name"].as_str().unwrap();
        let (request, response) = (&exchange["request"], &exchange["response"]);
        let method = Method::from_bytes(request["method"].as_str().unwrap().as_bytes()).unwrap();
        let mut sent =
            http.request(method, format!("{}{}", discovery.url, request["path"].as_str().unwrap()));
        for (header, value) in request["headers"].as_object().into_iter().flatten() {
            sent = sent.header(header, value.as_str().unwrap());
        }
        if let Some(body) = request["body"].as_str() {
            sent = sent.body(body.to_owned());
        }
        let answer = sent.send().await.unwrap();
        assert_eq!(u64::from(answer.status().as_u16()), response["status"].as_u64().unwrap(), "{name}");
        for (header, value) in response["headers"].as_object().into_iter().flatten() {
            assert_eq!(answer.headers()[header.as_str()], value.as_str().unwrap(), "{name}");
        }
        let (body, expected) = (answer.text().await.unwrap(), response["body"].as_str().unwrap());
        match name {
            "entries" | "all_servers" => assert_eq!(as_set(&body), as_set(expected), "{name}"),
            _ => assert_eq!(body, expected, "{name}"),
        }
    }
    assert_eq!(exchanges.len(), 31);
    let counters = &discovery.counters;
    assert_eq!((counters.posts_stored.get(), counters.posts_refused.get()), (7, 8));
    assert_eq!((counters.found.get(), counters.not_found.get()), (1, 1));
    assert_eq!((counters.deletes.get(), counters.deregistered.get()), (1, 1));
    discovery.server.stop().await;
}

#[tokio::test]
async fn our_client_and_our_discovery_understand_each_other() {
    let discovery = started(DiscoverySettings::new(Deployment::Production), unix_now_ns).await;
    let client = DiscoveryClient::new(&discovery.url).unwrap();
    let (visor, server) = (key(1), key(2));
    assert!(client.entry(&visor.public_key()).await.unwrap_err().is_not_found());
    assert_eq!(client.available_servers().await.unwrap(), []);

    let entry = client_entry(&visor, 0, 1);
    client.put(&entry).await.unwrap();
    assert_eq!(client.entry(&visor.public_key()).await.unwrap(), entry);
    let error = client.put(&client_entry(&visor, 0, 2)).await.unwrap_err();
    assert_eq!(error.refusal(), Some(Refusal::Sequence), "{error}");
    let error = client.put(&client_entry(&visor, 1, 0)).await.unwrap_err();
    assert_eq!(error.refusal(), Some(Refusal::TimestampOrder), "{error}");

    let now_ns = unix_now_ns();
    let error = client.put(&server_entry(&server, 0, now_ns - 61 * SECOND_NS, 1)).await.unwrap_err();
    assert_eq!(error.refusal(), Some(Refusal::Clock), "{error}");
    client.put(&server_entry(&server, 0, now_ns, 0)).await.unwrap();
    assert_eq!(client.available_servers().await.unwrap(), [], "a full server is not available");
    let listed = client.all_servers().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].server.as_ref().unwrap().server_type, "community", "nobody vouches for it");
    listed[0].verify().unwrap_err();

    client.delete(&entry).await.unwrap();
    assert!(client.entry(&visor.public_key()).await.unwrap_err().is_not_found());
    client.delete(&entry).await.unwrap();
    assert_eq!(client.health().await.unwrap().service_name, "dmsg-discovery");
    discovery.server.stop().await;
}

#[tokio::test]
async fn loopback_servers_are_for_boxes_that_only_listen_there() {
    let parse = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
    for (listeners, deployment) in [
        (&["127.0.0.1:8081"][..], Deployment::Test),
        (&["127.0.0.1:8081", "[::1]:8081", "127.0.0.9:9090"], Deployment::Test),
        (&["127.0.0.1:8081", "0.0.0.0:9090"], Deployment::Production),
        (&["[::]:8081"], Deployment::Production),
        (&["10.0.0.1:8081"], Deployment::Production),
        (&[], Deployment::Production),
    ] {
        assert_eq!(deployment_of(&parse(listeners)), deployment, "{listeners:?}");
    }
    let mut entry = server_entry(&key(1), 0, unix_now_ns(), 1);
    entry.server.as_mut().unwrap().address = "127.0.0.1:8081".to_owned();
    entry.sign(&key(1));
    let test = started(DiscoverySettings::new(Deployment::Test), unix_now_ns).await;
    DiscoveryClient::new(&test.url).unwrap().put(&entry).await.unwrap();
    let production = started(DiscoverySettings::new(Deployment::Production), unix_now_ns).await;
    let error = DiscoveryClient::new(&production.url).unwrap().put(&entry).await.unwrap_err();
    assert_eq!(error.refusal(), Some(Refusal::Loopback), "{error}");
}

static LIFETIME_CLOCK_NS: AtomicI64 = AtomicI64::new(0);

#[tokio::test]
async fn entries_expire_unless_they_are_refreshed() {
    fn clock() -> i64 {
        LIFETIME_CLOCK_NS.load(Ordering::Relaxed)
    }
    let start_ns = recorded_at();
    let at = |seconds: i64| LIFETIME_CLOCK_NS.store(start_ns + seconds * SECOND_NS, Ordering::Relaxed);
    at(0);
    let discovery = started(DiscoverySettings::new(Deployment::Production), clock).await;
    let client = DiscoveryClient::new(&discovery.url).unwrap();
    let (visor, short, server) = (key(1), key(2), key(3));
    client.put(&client_entry(&visor, 0, 0)).await.unwrap();
    let body = client_entry(&short, 0, 0).to_json();
    let url = format!("{}/dmsg-discovery/entry/?timeout=true", discovery.url);
    assert_eq!(Client::new().post(url).body(body).send().await.unwrap().status(), StatusCode::OK);
    for minute in 0..5 {
        at(minute * 60);
        let sequence = u64::try_from(minute).unwrap();
        client.put(&server_entry(&server, sequence, clock(), 1)).await.unwrap();
    }
    // 2 min after the last post of the server at 240 s; 3 min and 60 min after the posts of the clients at 0 s.
    let alive = async |second: i64, key: &SecretKey| {
        at(second);
        client.entry(&key.public_key()).await.is_ok()
    };
    assert!(alive(179, &short).await && !alive(180, &short).await);
    assert!(alive(359, &server).await && !alive(360, &server).await);
    assert_eq!(client.all_servers().await.unwrap(), []);
    assert!(alive(3599, &visor).await && !alive(3600, &visor).await);
    // An expired entry is no predecessor: any sequence may follow, and it is new.
    assert_eq!(discovery.store.counts(), (1, 2));
    at(3601);
    client.put(&client_entry(&visor, 0, 0)).await.unwrap();
    assert_eq!(discovery.store.sweep(clock(), |_| None), 2);
    assert_eq!(discovery.store.counts(), (0, 1));
}

#[tokio::test]
async fn available_servers_come_emptiest_first_and_at_most_512() {
    let discovery = started(DiscoverySettings::new(Deployment::Production), unix_now_ns).await;
    let now_ns = unix_now_ns();
    for number in 0..600u16 {
        let mut bytes = [7; 32];
        bytes[..2].copy_from_slice(&number.to_be_bytes());
        let entry = server_entry(&SecretKey::from_bytes(&bytes).unwrap(), 0, now_ns, i64::from(number % 7));
        discovery.store.put(Record::new(entry, None, now_ns), Sender::UNKNOWN, true, now_ns).await.unwrap();
    }
    let client = DiscoveryClient::new(&discovery.url).unwrap();
    assert_eq!(client.all_servers().await.unwrap().len(), 600);
    let available = client.available_servers().await.unwrap();
    let room: Vec<_> =
        available.iter().map(|entry| entry.server.as_ref().unwrap().available_sessions).collect();
    assert_eq!(room.len(), 512);
    assert!(room.is_sorted_by(|left, right| left >= right) && room.iter().all(|&room| room > 0), "{room:?}");
    let again = client.available_servers().await.unwrap();
    assert_ne!(available, again, "the choice is random");
}

#[tokio::test]
async fn many_entries_and_the_clients_of_servers() {
    let discovery = started(DiscoverySettings::new(Deployment::Production), unix_now_ns).await;
    let client = DiscoveryClient::new(&discovery.url).unwrap();
    let keys = [key(1), key(2)];
    for key in &keys {
        client.put(&client_entry(key, 0, 1)).await.unwrap();
    }
    let http = Client::new();
    let post = async |body: String| {
        let answer =
            http.post(format!("{}/dmsg-discovery/entries/batch", discovery.url)).body(body).send().await;
        let answer = answer.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let (one, absent) = (keys[0].public_key(), key(9).public_key());
    let (status, text) = post(format!("[\"{one}\",\"{absent}\",\"{one}\"]")).await;
    let stored = client.entry(&one).await.unwrap().to_json();
    assert_eq!((status, text), (200, format!("{{\"{one}\":{stored}}}")));
    assert_eq!(post("[]".to_owned()).await, (200, "{}".to_owned()));
    let thousand = format!("[{}]", vec![format!("\"{one}\""); 1000].join(","));
    assert_eq!(post(thousand).await.0, 200);
    let more = format!("[{}]", vec![format!("\"{one}\""); 1001].join(","));
    assert_eq!(post(more).await.0, 400);
    for body in ["", "{}", "[7]", "[\"zz\"]", "[\"\"]"] {
        assert_eq!(post(body.to_owned()).await.0, 400, "{body}");
    }

    let server = key(200).public_key();
    let mut clients: Vec<_> = keys.iter().map(|key| key.public_key().to_string()).collect();
    clients.sort();
    let read = async |path: String| {
        let answer = http.get(format!("{}/dmsg-discovery/{path}", discovery.url)).send().await.unwrap();
        answer.text().await.unwrap()
    };
    let list = serde_json::to_string(&clients).unwrap();
    assert_eq!(read("servers/clients".to_owned()).await, format!("{{\"{server}\":{list}}}"));
    assert_eq!(read(format!("server/{server}/clients")).await, list);
    assert_eq!(read(format!("server/{absent}/clients")).await, "[]");
}

#[tokio::test]
async fn malformed_requests_get_their_answer_and_change_nothing() {
    let discovery = started(DiscoverySettings::new(Deployment::Production), unix_now_ns).await;
    let client = DiscoveryClient::new(&discovery.url).unwrap();
    client.put(&client_entry(&key(1), 0, 1)).await.unwrap();
    let http = Client::new();
    let send = async |method: &str, path: &str, body: Vec<u8>| {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let url = format!("{}/dmsg-discovery/{path}", discovery.url);
        http.request(method, url).body(body).send().await.unwrap().status().as_u16()
    };
    let deep = b"[".repeat(100_000);
    let mut long = client_entry(&key(2), 0, 1);
    long.client = Some(ClientPart { delegated_servers: Some(vec![key(3).public_key(); 300]) });
    long.sign(&key(2));
    let mut unsigned = client_entry(&key(2), 0, 1);
    unsigned.version = "9".to_owned();
    for (method, path, body, status) in [
        ("POST", "entry/", b"".to_vec(), 500),
        ("POST", "entry/", b"null".to_vec(), 500),
        ("POST", "entry/", b"[]".to_vec(), 500),
        ("POST", "entry/", b"{}".to_vec(), 422),
        ("POST", "entry/", b"{\"sequence\":-1}".to_vec(), 500),
        ("POST", "entry/", b"{\"sequence\":18446744073709551616}".to_vec(), 500),
        ("POST", "entry/", b"{\"static\":\"02\"}".to_vec(), 500),
        ("POST", "entry/", b"\xff\xfe{}".to_vec(), 500),
        ("POST", "entry/", deep.clone(), 500),
        ("POST", "entry/", vec![b' '; (1 << 20) + 1], 413),
        ("POST", "entry/", long.to_json().into_bytes(), 413),
        ("POST", "entry/", unsigned.to_json().into_bytes(), 401),
        ("DELETE", "entry", b"{".to_vec(), 500),
        ("DELETE", "entry", unsigned.to_json().into_bytes(), 401),
        ("DELETE", "entry", b"{}".to_vec(), 422),
        ("POST", "entries/batch", deep, 400),
        ("GET", "entry/%00", Vec::new(), 400),
        ("GET", "entry/%ff%fe", Vec::new(), 400),
        ("GET", "server/zz/clients", Vec::new(), 400),
        ("POST", "all_servers", Vec::new(), 405),
        ("BREW", "entry", Vec::new(), 405),
        ("DELETE", "deregister", b"[]".to_vec(), 403),
    ] {
        let length = body.len();
        assert_eq!(send(method, path, body).await, status, "{method} {path}, {length} bytes");
    }
    assert_eq!(discovery.store.counts(), (0, 1));
    client.entry(&key(1).public_key()).await.unwrap();
}

#[tokio::test]
async fn a_monitor_is_believed_only_with_a_listed_key_and_its_signature() {
    let monitor = key(50);
    let mut settings = DiscoverySettings::new(Deployment::Production);
    settings.network_monitors = HashSet::from([monitor.public_key()]);
    let discovery = started(settings, unix_now_ns).await;
    let client = DiscoveryClient::new(&discovery.url).unwrap();
    client.put(&client_entry(&key(1), 0, 1)).await.unwrap();
    let sign = |signer: &SecretKey, signed: &PublicKey| {
        ringwire_proto::identity::sign(signer, signed.to_string().as_bytes()).to_string()
    };
    let http = Client::new();
    let call = async |pk: String, signature: String, body: String| {
        let url = format!("{}/dmsg-discovery/deregister", discovery.url);
        let answer =
            http.delete(url).header("NM-PK", pk).header("NM-Sign", signature).body(body).send().await;
        let answer = answer.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let list = format!("[\"{}\"]", key(1).public_key());
    let own = monitor.public_key();
    let stranger = key(51);
    for (pk, signature, status) in [
        (stranger.public_key().to_string(), sign(&stranger, &stranger.public_key()), 403),
        ("zz".to_owned(), sign(&monitor, &own), 400),
        (own.to_string(), "zz".to_owned(), 400),
        (own.to_string(), sign(&stranger, &own), 403),
    ] {
        assert_eq!(call(pk.clone(), signature, list.clone()).await, (status, String::new()), "{pk}");
    }
    assert_eq!(call(own.to_string(), sign(&monitor, &own), "[\"zz\"]".to_owned()).await.0, 400);
    client.entry(&key(1).public_key()).await.unwrap();
    assert_eq!(call(own.to_string(), sign(&monitor, &own), list).await, (200, "null".to_owned()));
    assert!(client.entry(&key(1).public_key()).await.unwrap_err().is_not_found());
}

const ROOMY: KindLimits =
    KindLimits { entries_max: 1000, bytes_max: 1 << 20, source_entries_max: 1000, source_bytes_max: 1 << 20 };

#[tokio::test]
async fn a_full_store_keeps_what_is_in_use_and_leaves_servers_their_room() {
    let limits = StoreLimits {
        servers: KindLimits { entries_max: 1, ..ROOMY },
        clients: KindLimits { entries_max: 2, ..ROOMY },
    };
    let store = MemoryStore::new(limits);
    let put = async |entry: Entry, second: i64| {
        let now_ns = second * SECOND_NS;
        store.put(Record::new(entry, None, now_ns), Sender::UNKNOWN, true, now_ns).await
    };
    for (number, sequence, second) in [(1, 0, 0), (2, 0, 0), (1, 1, 30), (2, 1, 30)] {
        assert_eq!(put(client_entry(&key(number), sequence, 0), second).await.unwrap().evicted, 0);
    }
    assert_eq!(put(client_entry(&key(3), 0, 0), 31).await.unwrap_err(), PutError::Full);
    put(client_entry(&key(1), 2, 0), 31).await.unwrap();
    put(server_entry(&key(4), 0, 0, 1), 0).await.unwrap();
    put(server_entry(&key(4), 1, 0, 1), 30).await.unwrap();
    assert_eq!(put(server_entry(&key(5), 0, 0, 1), 31).await.unwrap_err(), PutError::Full);
    // A client cannot turn into one server too many.
    assert_eq!(put(server_entry(&key(1), 3, 0, 1), 31).await.unwrap_err(), PutError::Full);
    assert_eq!(store.counts(), (1, 2));
    let stored = store.entry(&key(1).public_key(), 0).await.unwrap();
    assert_eq!((stored.entry.sequence, stored.entry.server.is_none()), (2, true));

    let limits = StoreLimits { clients: KindLimits { bytes_max: 700, ..ROOMY }, ..StoreLimits::default() };
    let store = MemoryStore::new(limits);
    let put = async |entry: Entry| store.put(Record::new(entry, None, 0), Sender::UNKNOWN, true, 0).await;
    put(client_entry(&key(1), 0, 0)).await.unwrap();
    assert_eq!(put(client_entry(&key(2), 0, 0)).await.unwrap().evicted, 1, "the first is unproven");
    put(client_entry(&key(2), 1, 0)).await.unwrap();
    assert_eq!(store.counts(), (0, 1));
    store.remove(&key(2).public_key()).await;
    assert_eq!(store.bytes(), 0);
}

#[tokio::test]
async fn a_flood_displaces_itself_and_neither_what_was_renewed_nor_whoever_has_a_session() {
    let limits = StoreLimits { clients: KindLimits { entries_max: 10, ..ROOMY }, ..StoreLimits::default() };
    let store = MemoryStore::new(limits);
    let from =
        |number: u8| Sender::direct(Source::Network(std::net::IpAddr::from([203, 0, 113, number]).into()));
    let put = async |number: u8, sequence, second: i64| {
        let now_ns = second * SECOND_NS;
        let entry = client_entry(&key(number), sequence, 0);
        store.put(Record::new(entry, None, now_ns), from(number), true, now_ns).await.unwrap()
    };
    let is_there = async |number: u8| store.entry(&key(number).public_key(), 0).await.is_some();
    // Renewed at once, as a flood could; renewed later; with a session; one by itself.
    for (number, sequence, second) in [(1, 0, 0), (1, 1, 1), (2, 0, 0), (2, 1, 30), (3, 0, 0), (4, 0, 31)] {
        put(number, sequence, second).await;
    }
    assert!(!store.is_dense());
    store.prove([key(3).public_key(), key(99).public_key()]);
    // Every one from an address of its own.
    for number in 10..200 {
        put(number, 0, 32).await;
    }
    assert!(store.is_dense());
    let left: Vec<_> = [is_there(1).await, is_there(2).await, is_there(3).await, is_there(4).await].into();
    assert_eq!(left, [false, true, true, false]);
    assert_eq!(store.counts(), (0, 10));
    // What the flood renews is in use; a newcomer displaces the oldest of it all the same.
    for number in 192..200 {
        put(number, 1, 70).await;
    }
    assert_eq!(put(5, 0, 71).await.evicted, 1);
    assert!(is_there(5).await);
}

#[tokio::test]
async fn a_full_discovery_says_so() {
    let store = Arc::new(MemoryStore::new(StoreLimits {
        clients: KindLimits { entries_max: 0, ..ROOMY },
        ..StoreLimits::default()
    }));
    let service = DiscoveryService::new(store, DiscoverySettings::new(Deployment::Production));
    let mut server = HttpServer::new(service.router(), Limits::default());
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let client = DiscoveryClient::new(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    server.listen(listener);
    let error = client.put(&client_entry(&key(1), 0, 0)).await.unwrap_err();
    assert!(matches!(error, DiscoveryError::Status { status: 503, .. }), "{error}");
    assert!(error.is_transient());
    tokio::time::timeout(Duration::from_secs(30), server.stop()).await.unwrap();
}

async fn host(path: &Path) -> DiscoveryHost {
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    DiscoveryHost::start(listener, DiscoverySettings::new(Deployment::Test), path.to_owned()).unwrap()
}

#[tokio::test]
async fn entries_outlive_a_stop_and_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("discovery.json");
    let now_ns = unix_now_ns();
    let (visor, server, gone) = (key(1), key(2), key(3));
    let first = host(&path).await;
    let client = DiscoveryClient::new(&first.local_url()).unwrap();
    client.put(&client_entry(&visor, 4, 1)).await.unwrap();
    client.put(&client_entry(&gone, 0, 1)).await.unwrap();
    client.put(&server_entry(&server, 0, now_ns, 1)).await.unwrap();
    client.delete(&client_entry(&gone, 0, 1)).await.unwrap();
    first.stop().await;

    let second = host(&path).await;
    let client = DiscoveryClient::new(&second.local_url()).unwrap();
    assert_eq!(client.entry(&visor.public_key()).await.unwrap().sequence, 4);
    assert_eq!(client.available_servers().await.unwrap().len(), 1);
    assert!(client.entry(&gone.public_key()).await.unwrap_err().is_not_found());
    client.put(&client_entry(&visor, 5, 1)).await.unwrap();
    let written = async {
        while !std::fs::read_to_string(&path).unwrap_or_default().contains("\"sequence\":5,") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), written).await.expect("the journal is written by itself");
    // No orderly end: what is on the disk must do.
    drop(second);

    let third = host(&path).await;
    let client = DiscoveryClient::new(&third.local_url()).unwrap();
    assert_eq!(client.entry(&visor.public_key()).await.unwrap().sequence, 5);
    assert_eq!(third.store().counts(), (1, 1));
    third.stop().await;
}

#[tokio::test]
async fn a_damaged_file_is_kept_beside_and_the_discovery_starts() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("discovery.json");
    std::fs::write(&path, "{\"entries\":[]}\n").unwrap();
    let discovery = host(&path).await;
    let client = DiscoveryClient::new(&discovery.local_url()).unwrap();
    client.put(&client_entry(&key(1), 0, 1)).await.unwrap();
    discovery.stop().await;
    let kept = std::fs::read_to_string(directory.path().join("discovery.json.damaged")).unwrap();
    assert_eq!(kept, "{\"entries\":[]}\n");
    assert_eq!(host(&path).await.store().counts(), (0, 1));
}

#[tokio::test]
async fn a_damaged_line_costs_no_other_entry() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("discovery.json");
    let first = host(&path).await;
    let client = DiscoveryClient::new(&first.local_url()).unwrap();
    for number in 1..=20 {
        client.put(&client_entry(&key(number), 0, 1)).await.unwrap();
    }
    first.stop().await;
    let text = std::fs::read_to_string(&path).unwrap();
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines[5].insert(9, '\u{1}');
    std::fs::write(&path, lines.join("\n") + "\n").unwrap();
    let second = host(&path).await;
    assert_eq!(second.store().counts(), (0, lines.len() - 2));
    second.stop().await;
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), lines.len() - 1, "written anew");
}

#[tokio::test]
async fn a_fifo_instead_of_the_file_is_an_error_that_names_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("discovery.json");
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, 0o600.into()).unwrap();
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let settings = DiscoverySettings::new(Deployment::Test);
    let error = DiscoveryHost::start(listener, settings, path.clone()).unwrap_err().to_string();
    assert!(error.contains("FIFO") && error.contains(&path.display().to_string()), "{error}");
}

#[tokio::test]
async fn an_entry_from_a_clock_that_was_ahead_does_not_stay_for_ever() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("discovery.json");
    let year_ns = 365 * 24 * 3600 * SECOND_NS;
    let record = Record::new(client_entry(&key(1), 0, 1), None, 0);
    let ahead = Record { expires_ns: Some(unix_now_ns() + year_ns), ..record };
    let mut journal = journal::Journal::new(path.clone());
    journal.write(&Changes::All(vec![Arc::new(ahead)])).unwrap();
    let discovery = host(&path).await;
    let now_ns = unix_now_ns();
    let stored = discovery.store().entry(&key(1).public_key(), now_ns).await.unwrap();
    assert!(stored.expires_ns.unwrap() <= now_ns + 3600 * SECOND_NS);
    discovery.stop().await;
}
