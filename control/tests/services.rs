//! `ringwire run` with what runs beside the data plane: its own discovery, registration, `/metrics`, `/health`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail")]

mod common;

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::process::{PATIENCE, Planes, json, ringwire, send};
use ringwire::discovery::{DiscoveryClient, DiscoveryError, DiscoveryHost, DiscoverySettings, unix_now_ns};
use ringwire::dmsg::{Client, ClientConfig, ServerAddress, Session, SessionConfig};
use ringwire::http::bind;
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_proto::entry::{Deployment, Entry};
use ringwire_proto::identity::{Address, PublicKey, SecretKey};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn session(server: &ServerAddress) -> Session {
    Session::connect(SessionConfig::new(SecretKey::generate(&mut OsEntropy), server.clone())).await.unwrap()
}

fn own_discovery(planes: &Planes) -> DiscoveryClient {
    DiscoveryClient::new(planes.ready["discovery"].as_str().unwrap()).unwrap()
}

fn key_of(planes: &Planes) -> PublicKey {
    planes.ready["public_key"].as_str().unwrap().parse().unwrap()
}

/// The room that the discovery says the server has.
async fn room(discovery: &DiscoveryClient, key: PublicKey) -> Option<i64> {
    let servers = discovery.all_servers().await.ok()?;
    let entry = servers.into_iter().find(|entry| entry.static_key == Some(key))?;
    Some(entry.server?.available_sessions)
}

async fn get(planes: &Planes, path: &str) -> String {
    let url = format!("http://{}{path}", planes.ready["http"].as_str().unwrap());
    reqwest::get(url).await.unwrap().error_for_status().unwrap().text().await.unwrap()
}

#[tokio::test]
async fn a_server_alone_is_in_its_own_discovery_with_the_room_it_has() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--http-listen", "127.0.0.1:0", "--max-sessions", "4"];
    let mut planes = Planes::start(directory.path(), &arguments);
    let (discovery, key) = (own_discovery(&planes), key_of(&planes));
    until("registered", async || room(&discovery, key).await == Some(4)).await;
    let entry = discovery.entry(&key).await.unwrap();
    assert_eq!(entry.server.unwrap().address, planes.ready["address"].as_str().unwrap());

    // The discovery has the entry a moment before its answer is here.
    until("status says so", async || {
        let status = json(directory.path(), &["status"]);
        let standing = &status["control"]["discoveries"][0];
        assert_eq!(standing["url"], discovery.url());
        assert!(standing["error"].is_null(), "{status}");
        standing["registered_s"].as_f64().is_some()
    })
    .await;

    let server = planes.address();
    let mut sessions = Vec::new();
    for _ in 0..3 {
        sessions.push(session(&server).await);
    }
    until("three sessions are counted", async || room(&discovery, key).await == Some(1)).await;
    sessions.push(session(&server).await);
    sessions.push(session(&server).await);
    until("it is full", async || room(&discovery, key).await == Some(0)).await;
    assert_eq!(discovery.available_servers().await.unwrap(), []);
    let metrics = get(&planes, "/metrics").await;
    for line in [
        "ringwire_sessions_opened_total{worker=\"0\"} 5",
        "dmsg_server_clients_count 5",
        "ringwire_dataplane_attached 1",
        "ringwire_dataplane_losses_total 0",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is missing in {metrics}");
    }
    for start in [
        "ringwire_connections_max ",
        "ringwire_buffer_memory_used_bytes ",
        "ringwire_registration_age_seconds{discovery=",
        "process_cpu_seconds_total{plane=\"control\"} ",
        "process_resident_memory_bytes{plane=\"dataplane\"} ",
    ] {
        assert!(metrics.lines().any(|found| found.starts_with(start)), "{start} is missing in {metrics}");
    }
    drop(sessions);
    until("there is room again", async || room(&discovery, key).await == Some(4)).await;

    let health: ringwire::http::Health = serde_json::from_str(&get(&planes, "/health").await).unwrap();
    assert_eq!(health.service_name, "dmsg-server");
    assert_eq!(health.public_key, key.to_string());
    assert_eq!(health.dmsg_discovery, discovery.url());
    assert!(health.started_at.ends_with('Z') && health.started_at.starts_with("20"), "{}", health.started_at);
    let build = health.build_info.unwrap();
    assert_eq!(build.version, env!("CARGO_PKG_VERSION"));
    // The commit of the sources, where they are a repository of their own.
    let version = ringwire(directory.path()).arg("--version").output().unwrap();
    let version = String::from_utf8(version.stdout).unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let head = Command::new("git").arg("-C").arg(root).args(["rev-parse", "HEAD"]).output();
    if root.join(".git").exists()
        && let Ok(head) = head
    {
        assert_eq!(build.commit, String::from_utf8(head.stdout).unwrap().trim());
    }
    let short: String = build.commit.chars().take(12).collect();
    assert_eq!(version, format!("ringwire {} ({short})\n", env!("CARGO_PKG_VERSION")));
    planes.signal(Signal::TERM);
    assert_eq!(planes.exit_code(), Some(0));
}

/// The services of a box stand behind the proxy that its sessions stand behind.
#[tokio::test]
async fn proxy_headers_are_believed_in_front_of_http_as_in_front_of_sessions() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ringwire.toml");
    for (proxy_from, answer) in [("[\"127.0.0.0/8\", \"::1/128\"]", "HTTP/1.1 200 "), ("\"10.0.0.0/8\"", "")]
    {
        std::fs::write(&file, format!("proxy_from = {proxy_from}\n")).unwrap();
        let state = tempfile::tempdir().unwrap();
        let arguments = ["--config", file.to_str().unwrap(), "--http-listen", "127.0.0.1:0"];
        let planes = Planes::start(state.path(), &arguments);
        let metrics = planes.ready["http"].as_str().unwrap().to_owned();
        let discovery =
            planes.ready["discovery"].as_str().unwrap().strip_prefix("http://").unwrap().to_owned();
        for address in [metrics, discovery] {
            let mut connection = tokio::net::TcpStream::connect(&address).await.unwrap();
            let text = "PROXY TCP4 203.0.113.7 192.0.2.1 40000 80\r\nGET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
            connection.write_all(text.as_bytes()).await.unwrap();
            let mut found = String::new();
            // A connection that is closed with something unread is reset.
            connection.read_to_string(&mut found).await.ok();
            assert!(
                if answer.is_empty() { found.is_empty() } else { found.starts_with(answer) },
                "{address}: {found}"
            );
        }
    }
}

#[tokio::test]
async fn nobody_removes_the_servers_entry_from_its_own_discovery_and_only_it_is_official() {
    let directory = tempfile::tempdir().unwrap();
    let planes = Planes::start(directory.path(), &[]);
    let (discovery, key) = (own_discovery(&planes), key_of(&planes));
    until("registered", async || room(&discovery, key).await.is_some()).await;
    let mut entry = discovery.entry(&key).await.unwrap();
    let class = |entry: &Entry| entry.server.as_ref().unwrap().server_type.clone();
    assert_eq!(class(&entry), "official");
    entry.server.as_mut().unwrap().server_type.clear();
    // From the very address it was posted from.
    let refused = discovery.delete(&entry).await.unwrap_err();
    assert!(matches!(refused, DiscoveryError::Refused { status: 401, .. }), "{refused}");
    assert!(discovery.entry(&key).await.is_ok());

    let stranger = SecretKey::generate(&mut OsEntropy);
    entry.timestamp_ns = unix_now_ns();
    entry.sign(&stranger);
    discovery.put(&entry).await.unwrap();
    assert_eq!(class(&discovery.entry(&stranger.public_key()).await.unwrap()), "community");
}

/// What `/health` and its two halves say: status and reason.
async fn health(planes: &Planes, path: &str) -> (u16, String) {
    let url = format!("http://{}/health{path}", planes.ready["http"].as_str().unwrap());
    let answer = reqwest::get(url).await.unwrap();
    let status = answer.status().as_u16();
    let health: ringwire::http::Health = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    (status, health.not_ready)
}

#[tokio::test]
async fn health_tells_who_is_ready_from_who_is_alive() {
    let directory = tempfile::tempdir().unwrap();
    let planes = Planes::start(directory.path(), &["--http-listen", "127.0.0.1:0"]);
    for path in ["", "/ready", "/live"] {
        assert_eq!(health(&planes, path).await, (200, String::new()), "{path}");
    }
    // A data plane that stands still.
    send(planes.dataplane_pid, Signal::STOP);
    until("it is noticed", async || health(&planes, "").await.0 == 503).await;
    let (status, reason) = health(&planes, "/ready").await;
    assert!(status == 503 && reason.contains("worker 0") && reason.contains("no turns"), "{status} {reason}");
    assert_eq!(health(&planes, "/live").await.0, 200);
    send(planes.dataplane_pid, Signal::CONT);
    until("it goes on", async || health(&planes, "").await.0 == 200).await;
    // One that is gone, for as long as none can be started in its place.
    let lock = directory.path().join("dataplane.lock");
    std::fs::remove_file(&lock).unwrap();
    std::fs::create_dir(&lock).unwrap();
    send(planes.dataplane_pid, Signal::KILL);
    until("it is missed", async || health(&planes, "").await.1.contains("no data plane")).await;
    assert_eq!(health(&planes, "/live").await.0, 200);
    std::fs::remove_dir(&lock).unwrap();
    until("another one is there", async || health(&planes, "").await.0 == 200).await;
    // One that drains: a stream holds it up.
    let config = |server| {
        let mut config = SessionConfig::new(SecretKey::generate(&mut OsEntropy), server);
        config.first_frame_pause = Duration::ZERO;
        config
    };
    let (from, to) =
        (common::connect(config(planes.address())).await, common::connect(config(planes.address())).await);
    let mut listener = to.listen(80).unwrap();
    let held = common::pair(&from, &to, &mut listener).await;
    json(directory.path(), &["drain"]);
    until("it drains", async || health(&planes, "").await.1.contains("draining")).await;
    assert_eq!(health(&planes, "/live").await.0, 200);
    drop(held);
}

#[test]
fn a_server_for_everybody_keeps_its_discovery_to_itself_unless_told() {
    let ready = |arguments: &[&str]| {
        let state = tempfile::tempdir().unwrap();
        let arguments = [&["--listen", "0.0.0.0:0", "--orphan-limit", "60"], arguments].concat();
        Planes::try_start(state.path(), &arguments).unwrap().ready.clone()
    };
    let alone = ready(&[]);
    let listening: std::net::SocketAddr = alone["discovery_listening"].as_str().unwrap().parse().unwrap();
    assert!(listening.ip().is_loopback(), "{alone}");
    assert_eq!(alone["discovery"], format!("http://{listening}"), "{alone}");
    assert!(alone["addresses"][0].as_str().unwrap().starts_with("0.0.0.0:"), "{alone}");
    let told = ready(&["--discovery-listen", "0.0.0.0:0"]);
    assert!(told["discovery_listening"].as_str().unwrap().starts_with("0.0.0.0:"), "{told}");
    assert!(told["discovery"].as_str().unwrap().starts_with("http://127.0.0.1:"), "{told}");
}

// The discovery must answer while the test waits for the process to end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_discovery_keeps_the_entry_over_a_kill_and_loses_it_at_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let settings = DiscoverySettings::new(Deployment::Test);
    let host = DiscoveryHost::start(listener, settings, directory.path().join("elsewhere.json")).unwrap();
    let state = directory.path().join("state");
    let url = host.local_url();
    let mut planes = Planes::start(&state, &["--discovery", &url, "--update-interval-s", "1"]);
    assert_eq!(planes.ready["discovery"], url.as_str(), "none of its own");
    let (discovery, key) = (DiscoveryClient::new(&url).unwrap(), key_of(&planes));
    until("registered", async || discovery.entry(&key).await.is_ok()).await;
    planes.kill_control();
    // What was on its way when the process died has arrived or never will.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let before = discovery.entry(&key).await.unwrap().sequence;
    planes.run_again(&state, &["--discovery", &url, "--update-interval-s", "1"]);
    until("it goes on where the other stopped", async || {
        discovery.entry(&key).await.unwrap().sequence > before
    })
    .await;
    planes.signal(Signal::TERM);
    assert_eq!(planes.exit_code(), Some(0));
    assert!(discovery.entry(&key).await.unwrap_err().is_not_found());
    host.stop().await;
}

/// A client of the network that this discovery keeps.
async fn client(discovery: &DiscoveryClient) -> Client {
    let directory = Arc::new(discovery.clone());
    let client = Client::start(ClientConfig::new(SecretKey::generate(&mut OsEntropy), directory)).unwrap();
    client.ready(PATIENCE).await.unwrap();
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_find_each_other_again_after_a_kill_of_the_control_plane() {
    let directory = tempfile::tempdir().unwrap();
    let mut planes = Planes::start(directory.path(), &[]);
    let (discovery, key) = (own_discovery(&planes), key_of(&planes));
    until("registered", async || room(&discovery, key).await.is_some()).await;
    let (left, right) = (client(&discovery).await, client(&discovery).await);
    let mut listener = right.listen(80).unwrap();
    let journal = directory.path().join("discovery.json");
    until("the entries are on the disk", async || {
        let text = std::fs::read_to_string(&journal).unwrap_or_default();
        [&left, &right].iter().all(|client| text.contains(&format!("\"static\":\"{}\"", client.public_key())))
    })
    .await;
    planes.kill_control();
    planes.run_again(directory.path(), &[]);
    // Under the URL that clients know, and with everybody in it as soon as the new control plane is ready.
    assert_eq!(planes.ready["discovery"], discovery.url());
    discovery.entry(&right.public_key()).await.unwrap();
    let destination = Address { key: right.public_key(), port: 80 };
    let (dialled, accepted) = tokio::join!(left.dial(destination), listener.accept());
    let (mut dialled, mut accepted) = (dialled.unwrap(), accepted.unwrap());
    dialled.write_all(b"still here").await.unwrap();
    let mut heard = [0; 10];
    accepted.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"still here");
    left.close().await;
    right.close().await;
}

fn refused(state: &Path, arguments: &[&str]) -> String {
    let output = ringwire(state).arg("run").args(arguments).output().unwrap();
    assert!(!output.status.success(), "{output:?}");
    assert!(!state.join("dataplane.sock").exists(), "no data plane was started");
    String::from_utf8(output.stderr).unwrap()
}

#[tokio::test]
async fn what_cannot_be_advertised_or_listened_on_is_refused_before_a_data_plane_starts() {
    let directory = tempfile::tempdir().unwrap();
    let elsewhere = "http://dmsgd.example";
    for listen in ["127.0.0.1:0", "0.0.0.0:0"] {
        let text = refused(directory.path(), &["--listen", listen, "--discovery", elsewhere]);
        assert!(text.contains("--public-address") && text.contains(elsewhere), "{text}");
    }
    let public = ["--discovery", elsewhere, "--public-address", "127.0.0.1:8081"];
    assert!(refused(directory.path(), &public).contains("cannot be reached from other machines"));
    let taker = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let taken = taker.local_addr().unwrap().to_string();
    for flag in ["--discovery-listen", "--http-listen"] {
        let text = refused(directory.path(), &["--listen", "127.0.0.1:0", flag, &taken]);
        assert!(text.contains(&taken) && text.contains(flag) && text.contains("another program"), "{text}");
    }
}

#[test]
fn the_ready_text_says_where_the_discovery_is_and_that_it_is_a_test() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = ringwire(directory.path());
    command.args(["run", "--listen", "127.0.0.1:0", "--orphan-limit", "1"]).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let lines: Vec<String> = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap)
        .take_while(|line| !line.starts_with("Stop it"))
        .collect();
    send(child.id(), Signal::TERM);
    assert!(child.wait().unwrap().success());
    let found =
        |start: &str, end: &str| lines.iter().any(|line| line.starts_with(start) && line.ends_with(end));
    assert!(
        found("  discovery    http://127.0.0.1:", "embedded; test mode: every listener is on loopback"),
        "{lines:?}"
    );
    assert!(found("  advertised   127.0.0.1:", ""), "{lines:?}");
}

#[tokio::test]
async fn a_go_servers_file_makes_this_that_server_and_flags_are_stronger() {
    let directory = tempfile::tempdir().unwrap();
    let (state, path) = (directory.path().join("state"), directory.path().join("config.json"));
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let settings = DiscoverySettings::new(Deployment::Test);
    let host = DiscoveryHost::start(listener, settings, directory.path().join("elsewhere.json")).unwrap();
    let secret = SecretKey::generate(&mut OsEntropy);
    let text = serde_json::json!({
        "public_key": secret.public_key().to_string(),
        "secret_key": *secret.to_hex(),
        "discovery": host.local_url(),
        "public_address": "127.0.0.1:7",
        "local_address": "127.0.0.1:0",
        "health_endpoint_address": ":0",
        "log_level": "ERROR",
        "update_interval": 0,
        "max_sessions": 3,
        "peers": [],
    });
    std::fs::write(&path, text.to_string()).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let arguments = ["--config", path.to_str().unwrap(), "--max-sessions", "9", "--orphan-limit", "60"];
    let planes = tokio::task::spawn_blocking({
        let (state, arguments) = (state.clone(), arguments.map(str::to_owned));
        move || {
            let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
            Planes::try_start(&state, &arguments).unwrap()
        }
    });
    let planes = planes.await.unwrap();
    assert_eq!(key_of(&planes), secret.public_key());
    let discovery = DiscoveryClient::new(&host.local_url()).unwrap();
    until("registered", async || room(&discovery, secret.public_key()).await == Some(9)).await;
    let entry = discovery.entry(&secret.public_key()).await.unwrap();
    assert_eq!(entry.server.unwrap().address, "127.0.0.1:7");
    // A port alone is that of both families.
    let port = planes.ready["http"].as_str().unwrap().rsplit_once(':').unwrap().1.to_owned();
    for host in ["127.0.0.1", "[::1]"] {
        let health =
            reqwest::get(format!("http://{host}:{port}/health")).await.unwrap().text().await.unwrap();
        assert!(health.contains(&secret.public_key().to_string()), "{host}: {health}");
    }
    drop(planes);

    std::fs::write(&path, "lisen = \"127.0.0.1:1\"\n").unwrap();
    let text = refused(&directory.path().join("other"), &["--config", path.to_str().unwrap()]);
    assert!(text.contains("config.json:1:") && text.contains("listen"), "{text}");
    host.stop().await;
}
