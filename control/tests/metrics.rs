//! Every metric is moved, and moved by what its name says. A metric that nothing here moves fails the test.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail")]

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use reqwest::Client;
use ringwire::discovery::{DiscoveryClient, DiscoveryHost, DiscoverySettings, unix_now_ns};
use ringwire::http::{Health, Limits, bind};
use ringwire::metrics::{CounterSource, Facts, Metrics, Rates, Totals};
use ringwire::registration::{Content, Registration, UPDATE_INTERVAL};
use ringwire_dataplane::counters::Counter;
use ringwire_proto::entry::{ClientPart, Deployment, ENTRY_VERSION, Entry, ServerPart};
use ringwire_proto::identity::{SecretKey, sign};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};

/// Generous: it only tells a hang from an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Counters that a test writes.
#[derive(Clone)]
struct Pages(Arc<Mutex<Option<Totals>>>);

impl Pages {
    fn new(workers: usize) -> Self {
        let workers = vec![vec![0; Counter::ALL.len()]; workers];
        Self(Arc::new(Mutex::new(Some(Totals { attached: true, workers }))))
    }

    fn add(&self, worker: usize, counter: Counter, amount: u64) {
        self.0.lock().unwrap().as_mut().unwrap().workers[worker][counter as usize] += amount;
    }
}

impl CounterSource for Pages {
    async fn totals(&self) -> Option<Totals> {
        self.0.lock().unwrap().clone()
    }
}

/// Samples by name and labels.
type Samples = BTreeMap<String, f64>;

async fn scrape(address: SocketAddr) -> Samples {
    let answer = Client::new().get(format!("http://{address}/metrics")).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
    assert!(kind.starts_with("application/openmetrics-text; version=1.0.0"), "{kind}");
    let text = answer.text().await.unwrap();
    assert!(text.ends_with("# EOF\n"), "{text}");
    let mut families = HashSet::new();
    let mut samples = Samples::new();
    for line in text.lines() {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            assert!(families.insert(family.to_owned()), "{family} is there twice");
        }
        if line.starts_with('#') {
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(samples.insert(name.to_owned(), value.parse().unwrap()).is_none(), "{name} is there twice");
    }
    samples
}

/// What differs, with by how much. The reading itself moves the counters of its own listener, which are left out.
fn moved(before: &Samples, after: &Samples) -> BTreeMap<String, f64> {
    let changed = after.iter().map(|(name, value)| (name.clone(), value - before.get(name).unwrap_or(&0.0)));
    changed.filter(|(name, by)| *by != 0.0 && !name.contains("listener=\"http\"")).collect()
}

/// A name without its labels.
fn family(name: &str) -> String {
    name.split('{').next().unwrap().to_owned()
}

/// The names of the Go server that a counter of the data plane moves, and by how much for each unit.
fn derived(counter: Counter) -> &'static [(&'static str, f64)] {
    match counter {
        Counter::SessionsOpened => &[
            ("dmsg_server_vm_session_success_total", 1.0),
            ("dmsg_server_clients_count", 1.0),
            ("dmsg_server_vm_active_sessions_count", 1.0),
        ],
        Counter::SessionsClosed => {
            &[("dmsg_server_clients_count", -1.0), ("dmsg_server_vm_active_sessions_count", -1.0)]
        }
        Counter::HandshakesFailed | Counter::HandshakesTimedOut => {
            &[("dmsg_server_vm_session_fail_total", 1.0)]
        }
        Counter::BridgesOpened => {
            &[("dmsg_server_vm_stream_success_total", 1.0), ("dmsg_server_vm_active_streams_count", 1.0)]
        }
        Counter::BufferTaken => &[("ringwire_buffer_memory_used_bytes", 1.0)],
        Counter::BufferGivenBack => &[("ringwire_buffer_memory_used_bytes", -1.0)],
        Counter::BridgesClosed => &[("dmsg_server_vm_active_streams_count", -1.0)],
        Counter::RefusedObject
        | Counter::RefusedSource
        | Counter::RefusedDestination
        | Counter::RefusedBudget
        | Counter::RefusedDraining
        | Counter::RefusedOpen
        | Counter::RefusedResponse => &[("dmsg_server_vm_stream_fail_total", 1.0)],
        _ => &[],
    }
}

fn key(number: u8) -> SecretKey {
    SecretKey::from_bytes(&[number; 32]).unwrap()
}

fn client_entry(number: u8, sequence: u64) -> Entry {
    let mut entry = Entry {
        version: ENTRY_VERSION.to_owned(),
        sequence,
        client: Some(ClientPart::default()),
        ..Entry::default()
    };
    entry.sign(&key(number));
    entry
}

fn server_entry(number: u8) -> Entry {
    let server = ServerPart { address: "127.0.0.1:1".to_owned(), ..ServerPart::default() };
    let mut entry =
        Entry { timestamp_ns: unix_now_ns(), client: None, server: Some(server), ..client_entry(number, 0) };
    entry.sign(&key(number));
    entry
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn every_counter_of_the_data_plane_shows_under_its_name_and_in_what_is_computed_from_it() {
    let (pages, rates) = (Pages::new(2), Arc::new(Rates::default()));
    let mut server = Metrics::new(&rates).serve(pages.clone(), Health::default, Limits::default());
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    server.listen(listener);
    // So that a difference can shrink.
    pages.add(0, Counter::SessionsOpened, 100);
    pages.add(1, Counter::BridgesOpened, 100);
    pages.add(0, Counter::BufferTaken, 100);
    let mut before = scrape(address).await;
    assert_eq!(before["ringwire_dataplane_attached"], 1.0);
    for &counter in Counter::ALL {
        pages.add(1, counter, 5);
        let after = scrape(address).await;
        let mut expected: BTreeMap<String, f64> =
            derived(counter).iter().map(|(name, each)| ((*name).to_owned(), each * 5.0)).collect();
        expected.insert(format!("ringwire_{}{{worker=\"1\"}}", counter.name()), 5.0);
        assert_eq!(moved(&before, &after), expected, "{counter:?}");
        before = after;
    }
    let start = Instant::now();
    rates.note(10, start);
    rates.note(40, start + Duration::from_secs(1));
    let after = scrape(address).await;
    let expected = [("dmsg_server_packets_per_minute", 30.0), ("dmsg_server_packets_per_second", 30.0)];
    assert_eq!(moved(&before, &after), expected.map(|(name, by)| (name.to_owned(), by)).into());

    // The data plane goes: its last counters stay, and it shows.
    pages.0.lock().unwrap().as_mut().unwrap().attached = false;
    assert_eq!(
        moved(&after, &scrape(address).await),
        [("ringwire_dataplane_attached".to_owned(), -1.0)].into()
    );
    *pages.0.lock().unwrap() = None;
    let without = scrape(address).await;
    assert_eq!(without["dmsg_server_clients_count"], 0.0);
    server.stop().await;
}

#[tokio::test]
async fn every_metric_of_the_control_plane_is_moved_by_what_its_name_says() {
    let directory = tempfile::tempdir().unwrap();
    let mut settings = DiscoverySettings::new(Deployment::Test);
    settings.network_monitors = HashSet::from([key(50).public_key()]);
    settings.limits.servers.entries_max = 1;
    settings.proxy_from = ["127.0.0.1/32".parse().unwrap()].into();
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let limits = Limits { connections_max: 4, request: Duration::from_millis(500), ..Limits::default() };
    let discovery =
        DiscoveryHost::start_with(listener, settings, directory.path().join("discovery.json"), limits)
            .unwrap();
    let client = DiscoveryClient::new(&discovery.local_url()).unwrap();
    let down = bind("127.0.0.1:0".parse().unwrap()).await.unwrap().local_addr().unwrap();
    let down = DiscoveryClient::new(&format!("http://{down}")).unwrap();
    let content = Content::server("127.0.0.1:1".to_owned(), 1, String::new());
    let other = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let other_path = directory.path().join("other.json");
    let other = DiscoveryHost::start(other, DiscoverySettings::new(Deployment::Test), other_path).unwrap();
    let up = DiscoveryClient::new(&other.local_url()).unwrap();
    let registration = Registration::start(vec![down, up], key(9), content, UPDATE_INTERVAL);

    let mut metrics = Metrics::new(&Arc::new(Rates::default()));
    let (discovery_counters, listener_counters) = discovery.counters();
    discovery_counters.register(metrics.registry());
    registration.counters().register(metrics.registry());
    metrics.add_listener("discovery", listener_counters.clone());
    let health = Health { service_name: "dmsg-server".to_owned(), ..Health::default() };
    let mut server = metrics.serve(Pages::new(1), move || health.clone(), Limits::default());
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    server.listen(listener);

    let mut seen = BTreeSet::new();
    let before: Samples = scrape(address).await.into_keys().map(|name| (name, 0.0)).collect();
    // What each step must move; other listeners' counters may move with it.
    let mut step = async |names: &[&str]| {
        until(&format!("{names:?} move"), async || {
            let changed: BTreeSet<_> =
                moved(&before, &scrape(address).await).keys().map(|name| family(name)).collect();
            seen.extend(changed.clone());
            names.iter().all(|name| changed.contains(*name))
        })
        .await;
    };
    client.put(&client_entry(1, 0)).await.unwrap();
    step(&[
        "ringwire_discovery_posts_stored_total",
        "ringwire_http_connections_opened_total",
        "ringwire_http_requests_opened_total",
        "ringwire_http_requests_closed_total",
        "ringwire_http_answers_total",
    ])
    .await;
    client.put(&client_entry(1, 0)).await.unwrap_err();
    step(&["ringwire_discovery_posts_refused_total"]).await;
    client.entry(&key(1).public_key()).await.unwrap();
    step(&["ringwire_discovery_entries_found_total"]).await;
    client.entry(&key(2).public_key()).await.unwrap_err();
    step(&["ringwire_discovery_entries_not_found_total"]).await;
    let url = format!("{}/dmsg-discovery", discovery.local_url());
    let http = Client::builder().pool_max_idle_per_host(0).build().unwrap();
    let through_a_proxy = http.delete(format!("{url}/entry")).header("Via", "a proxy");
    let answer = through_a_proxy.body(client_entry(1, 0).to_json()).send().await.unwrap();
    assert_eq!(answer.status(), 401);
    step(&["ringwire_discovery_deletes_refused_total"]).await;
    http.get(format!("{url}/servers/clients")).send().await.unwrap().text().await.unwrap();
    step(&["ringwire_discovery_listings_built_total"]).await;
    client.put(&server_entry(3)).await.unwrap();
    step(&["ringwire_discovery_servers_noted_total"]).await;
    client.put(&server_entry(4)).await.unwrap();
    step(&["ringwire_discovery_evicted_total"]).await;
    client.delete(&client_entry(1, 0)).await.unwrap();
    step(&["ringwire_discovery_deletes_total"]).await;
    let mut stranger = TcpStream::connect(discovery.address()).await.unwrap();
    stranger.write_all(b"\x16\x03\x01\r\n\r\n").await.unwrap();
    step(&["ringwire_http_connections_closed_total", "ringwire_http_connections_failed_total"]).await;

    for (from, header, name) in [
        ("127.0.0.1:0", "PROXY UNKNOWN\r\n\r\n", "ringwire_http_proxy_headers_total"),
        ("127.0.0.2:0", "PROXY UNKNOWN\r\n", "ringwire_http_proxy_untrusted_total"),
        ("127.0.0.1:0", "PROXY NOTHING\r\n", "ringwire_http_proxy_malformed_total"),
    ] {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(from.parse().unwrap()).unwrap();
        let mut proxy = socket.connect(discovery.address()).await.unwrap();
        proxy.write_all(header.as_bytes()).await.unwrap();
        step(&[name]).await;
    }

    let monitor = key(50).public_key().to_string();
    let answer = Client::new()
        .delete(format!("{}/dmsg-discovery/deregister", discovery.local_url()))
        .header("NM-Sign", sign(&key(50), monitor.as_bytes()).to_string())
        .header("NM-PK", monitor)
        .header("Connection", "close")
        .body(format!("[\"{}\"]", key(1).public_key()))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    step(&["ringwire_discovery_deregistered_total"]).await;

    let mut slow = TcpStream::connect(discovery.address()).await.unwrap();
    let head = "POST /dmsg-discovery/entry/ HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{";
    slow.write_all(head.as_bytes()).await.unwrap();
    step(&["ringwire_http_requests_timed_out_total"]).await;
    let mut silent = Vec::new();
    for _ in 0..5 {
        silent.push(TcpStream::connect(discovery.address()).await.unwrap());
    }
    step(&["ringwire_http_connections_refused_total"]).await;
    drop(silent);

    step(&[
        "ringwire_registration_requests_total",
        "ringwire_registration_failures_total",
        "ringwire_registration_posts_accepted_total",
    ])
    .await;
    registration.stop().await;

    let data_plane: BTreeSet<_> =
        Counter::ALL.iter().map(|counter| format!("ringwire_{}", counter.name())).collect();
    let unmoved: Vec<_> = scrape(address)
        .await
        .keys()
        .map(|name| family(name))
        .filter(|name| !seen.contains(name) && !data_plane.contains(name))
        .filter(|name| !name.starts_with("dmsg_server_"))
        .filter(|name| {
            !["ringwire_dataplane_attached", "ringwire_buffer_memory_used_bytes"].contains(&name.as_str())
        })
        .collect();
    assert_eq!(unmoved, Vec::<String>::new(), "metrics that no test moves");

    let health = Client::new().get(format!("http://{address}/health")).send().await.unwrap();
    assert_eq!(health.headers()["content-type"], "application/json");
    assert_eq!(health.text().await.unwrap(), "{\"service_name\":\"dmsg-server\"}");
    server.stop().await;
    discovery.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn what_is_looked_at_is_shown_as_it_is_and_in_the_format_that_is_asked_for() {
    let facts = Arc::new(Mutex::new(Facts::default()));
    let mut metrics = Metrics::new(&Arc::new(Rates::default()));
    let asked = Arc::clone(&facts);
    metrics.add_facts(move || asked.lock().unwrap().clone());
    let mut server = metrics.serve(Pages::new(1), Health::default, Limits::default());
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    server.listen(listener);
    let before = scrape(address).await;
    let build = before.keys().find(|name| name.starts_with("ringwire_build_info{")).unwrap();
    assert!(build.contains(concat!("version=\"", env!("CARGO_PKG_VERSION"), "\"")), "{build}");
    for name in
        ["process_resident_memory_bytes", "process_open_fds", "process_max_fds", "process_cpu_seconds_total"]
    {
        assert!(before.contains_key(&format!("{name}{{plane=\"control\"}}")), "{name}");
        assert!(!before.contains_key(&format!("{name}{{plane=\"dataplane\"}}")), "{name}");
    }
    assert!(!before.keys().any(|name| name.contains("registration_age")));
    let [up, down] = ["http://up", "http://down"].map(str::to_owned);
    let accepted = SystemTime::now() - Duration::from_secs(100);
    *facts.lock().unwrap() = Facts {
        dataplane_pid: std::process::id(),
        dataplane_losses: 3,
        connections_max: 4711,
        registrations: vec![(up, Some(accepted)), (down, None)],
    };
    let after = scrape(address).await;
    assert_eq!(after["ringwire_dataplane_losses_total"], 3.0);
    assert_eq!(after["ringwire_connections_max"], 4711.0);
    assert!(after["ringwire_registration_age_seconds{discovery=\"http://up\"}"] >= 100.0);
    assert!(!after.contains_key("ringwire_registration_age_seconds{discovery=\"http://down\"}"));
    assert!(after.contains_key("process_resident_memory_bytes{plane=\"dataplane\"}"));

    let request = Client::new().get(format!("http://{address}/metrics"));
    let answer = request.header("Accept", "text/plain;version=0.0.4").send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let text = answer.text().await.unwrap();
    for line in [
        "# TYPE ringwire_dataplane_losses_total counter",
        "ringwire_dataplane_losses_total 3",
        "# TYPE ringwire_connections_max gauge",
        "ringwire_sessions_opened_total{worker=\"0\"} 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is missing in {text}");
    }
    assert!(!text.contains("# EOF"), "{text}");
    server.stop().await;
}
