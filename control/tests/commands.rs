//! The dmsg and keys commands as people run them: processes against a server and a discovery in this process.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Redirect;
use axum::routing::{any, get};
use ringwire::discovery::{DiscoveryClient, DiscoveryError, DiscoveryHost, DiscoverySettings, unix_now_ns};
use ringwire_dataplane::counters::Counter;
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_dataplane::{Server, ServerConfig};
use ringwire_proto::entry::{Deployment, ENTRY_VERSION, Entry, ServerPart};
use ringwire_proto::identity::SecretKey;
use serde_json::{Value, json};

/// A server, and where commands find it.
struct Place {
    directory: tempfile::TempDir,
    secret_key: SecretKey,
    server: Server,
}

impl Place {
    fn new() -> Self {
        let secret_key = SecretKey::generate(&mut OsEntropy);
        let listen = vec!["127.0.0.1:0".parse().unwrap()];
        let server = Server::start(ServerConfig::new(secret_key.clone(), listen)).unwrap();
        Self { directory: tempfile::tempdir().unwrap(), secret_key, server }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `ringwire` with these words; none of the machine's own state is seen.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringwire"));
        command.env("RINGWIRE_STATE", self.path("state")).env_remove("RINGWIRE_LOG");
        command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The same, over the server.
    fn over(&self, words: &[&str]) -> Command {
        let mut command = self.command(words);
        command.args(["--server", &common::address(&self.server).to_string()]);
        command
    }

    fn output(&self, words: &[&str]) -> Output {
        self.over(words).output().unwrap()
    }

    /// Makes a key file; returns its path and its public key.
    fn key(&self, name: &str) -> (String, String) {
        let path = self.path(name).display().to_string();
        let output = self.command(&["keys", "generate", &path]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        (path, text(&output.stdout).trim().to_owned())
    }
}

/// A command that runs until it is stopped.
struct Running {
    child: Child,
    ready: Value,
    events: BufReader<Box<dyn std::io::Read + Send>>,
}

impl Running {
    /// Starts it and waits for its ready line on the standard output, or on the error output.
    fn start(mut command: Command, on_errors: bool) -> Self {
        let mut child = command.arg("--json").spawn().unwrap();
        let from: Box<dyn std::io::Read + Send> = if on_errors {
            Box::new(child.stderr.take().unwrap())
        } else {
            Box::new(child.stdout.take().unwrap())
        };
        let mut running = Self { child, ready: Value::Null, events: BufReader::new(from) };
        running.ready = running.event();
        // On a busy machine it says first what it waits for.
        while running.ready["event"] == "waiting" {
            running.ready = running.event();
        }
        assert_eq!(running.ready["event"], "ready", "{}", running.ready);
        running
    }

    fn event(&mut self) -> Value {
        let mut line = String::new();
        self.events.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("no event: {line:?}"))
    }

    fn key(&self) -> String {
        self.ready["public_key"].as_str().unwrap().to_owned()
    }

    /// Ends it as a terminal does, and checks that it ends well.
    fn stop(mut self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
        assert_eq!(self.exit_code(), Some(0));
    }

    fn exit_code(&mut self) -> Option<i32> {
        let started = Instant::now();
        while started.elapsed() < common::PATIENCE {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the command does not end");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
}

fn last_line(output: &Output) -> Value {
    let line = text(&output.stdout).lines().last().unwrap_or_default();
    serde_json::from_str(line).unwrap_or_else(|_| panic!("{output:?}"))
}

/// A discovery that lists the server, and its URL.
async fn discovery(place: &Place) -> (DiscoveryHost, String) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let settings = DiscoverySettings::new(Deployment::Test);
    let host = DiscoveryHost::start(listener, settings, place.path("discovery.json")).unwrap();
    let mut entry = Entry {
        version: ENTRY_VERSION.to_owned(),
        timestamp_ns: unix_now_ns(),
        server: Some(ServerPart {
            address: place.server.addresses()[0].to_string(),
            available_sessions: 100,
            ..Default::default()
        }),
        ..Default::default()
    };
    entry.sign(&place.secret_key);
    DiscoveryClient::new(&url).unwrap().put(&entry).await.unwrap();
    (host, url)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

#[test]
fn keys_are_made_once_and_shown_on_request_only() {
    let place = Place::new();
    let (path, public_key) = place.key("my.key");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let secret = std::fs::read_to_string(&path).unwrap().trim().to_owned();
    assert_eq!(SecretKey::from_hex(&secret).unwrap().public_key().to_string(), public_key);

    let again = place.command(&["keys", "generate", &path]).output().unwrap();
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("not overwritten"), "{again:?}");
    assert_eq!(std::fs::read_to_string(&path).unwrap().trim(), secret);

    let shown = place.command(&["keys", "show", &path]).output().unwrap();
    assert_eq!(text(&shown.stdout).trim(), public_key);
    let shown = json_of(&place.command(&["keys", "show", &path, "--json"]).output().unwrap());
    assert_eq!(shown, json!({ "public_key": public_key, "file": path }));
    let shown = json_of(&place.command(&["keys", "show", &path, "--json", "--secret"]).output().unwrap());
    assert_eq!(shown["secret_key"], secret);

    let absent = place.command(&["keys", "show"]).output().unwrap();
    assert_eq!(absent.status.code(), Some(1));
    assert!(text(&absent.stderr).contains("ringwire keys generate"), "{absent:?}");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let exposed = place.output(&["dmsg", "ping", &public_key, "--key-file", &path]);
    assert_eq!(exposed.status.code(), Some(1));
    assert!(text(&exposed.stderr).contains(&format!("chmod 600 {path}")), "{exposed:?}");
}

#[test]
fn ping_measures_servers_and_ports() {
    let place = Place::new();
    let server = place.server.public_key().to_string();
    let output = place.output(&["dmsg", "ping", &server, "--count", "3", "--interval", "0", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let lines: Vec<Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 4, "{lines:?}");
    assert!(lines[..3].iter().all(|line| line["round_trip_us"].as_f64().unwrap() > 0.0), "{lines:?}");
    assert_eq!((&lines[3]["answered"], &lines[3]["target"]), (&json!(3), &json!(server)));
    assert!(lines[3]["min_us"].as_f64() <= lines[3]["max_us"].as_f64());

    // A port where somebody listens, and one where nobody does.
    let listener = Running::start(place.over(&["dmsg", "listen", "9"]), true);
    let target = format!("{}:9", listener.key());
    let output = place.output(&["dmsg", "ping", &target, "-c", "2", "-i", "0"]);
    assert!(output.status.success(), "{output:?}");
    assert!(text(&output.stdout).contains("2 of 2 answered"), "{output:?}");
    let nobody = format!("{}:10", listener.key());
    let output = place.output(&["dmsg", "ping", &nobody, "-c", "1", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(last_line(&output)["answered"], 0);
    assert!(text(&output.stdout).contains("dmsg error 202"), "{output:?}");
    listener.stop();
}

#[test]
fn curl_and_serve_a_directory() {
    let place = Place::new();
    let directory = place.path("public");
    std::fs::create_dir_all(directory.join("sub")).unwrap();
    std::fs::write(directory.join("index.html"), "<p>hello</p>").unwrap();
    let large: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    std::fs::write(directory.join("sub/large.bin"), &large).unwrap();
    let server = Running::start(place.over(&["dmsg", "serve", "--dir", directory.to_str().unwrap()]), false);
    let url = server.ready["url"].as_str().unwrap().to_owned();
    assert_eq!(url, format!("dmsg://{}/", server.key()));

    let output = place.output(&["dmsg", "curl", &url]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(text(&output.stdout), "<p>hello</p>");
    let report = json_of(&place.output(&["dmsg", "curl", "--json", &url]));
    assert_eq!(report["status"], 200);
    assert_eq!(report["headers"]["content-type"][0], "text/html");
    assert_eq!((&report["body"], &report["body_bytes"]), (&json!("<p>hello</p>"), &json!(12)));

    let file = place.path("fetched");
    let path = file.to_str().unwrap();
    let output = place.output(&["dmsg", "curl", "-o", path, &format!("{url}sub/large.bin")]);
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    assert!(std::fs::read(&file).unwrap() == large);

    // Nothing outside of the directory.
    std::fs::write(place.path("outside"), "secret").unwrap();
    for outside in ["../outside", "%2e%2e/outside", "sub/../../outside"] {
        let output = place.output(&["dmsg", "curl", "--json", "--fail", &format!("{url}{outside}")]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let report = json_of(&output);
        assert!(report["status"].as_u64().unwrap() >= 400 && report["body"] != "secret", "{report}");
    }
    server.stop();
}

#[test]
fn curl_speaks_http_to_a_web_server_behind_serve() {
    let place = Place::new();
    let runtime = runtime();
    let web = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let echo = any(|headers: HeaderMap, request: axum::extract::Request| async move {
            let method = request.method().to_string();
            let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
            let named = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
            let answer = json!({
                "method": method,
                "body": text(&body),
                "x": named("x-mine"),
                "from": named("x-forwarded-for"),
                "host": named("host"),
            });
            (StatusCode::CREATED, answer.to_string())
        });
        let router = Router::new()
            .route("/echo", echo)
            .route("/old", get(|| async { Redirect::temporary("/echo") }))
            .route("/out", get(|| async { Redirect::temporary("http://example.com/") }))
            .route("/round", get(|| async { Redirect::temporary("/round") }));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        address.to_string()
    });
    let server = Running::start(place.over(&["dmsg", "serve", "--to", &web, "--port", "8080"]), false);
    let url = format!("dmsg://{}:8080", server.key());
    let (key_file, key) = place.key("caller.key");

    let echo = format!("{url}/echo");
    let output = place.output(&[
        "dmsg",
        "curl",
        "--json",
        "-H",
        "X-Mine: 7",
        "-d",
        "posted",
        "--key-file",
        &key_file,
        &echo,
    ]);
    let report = json_of(&output);
    assert_eq!(report["status"], 201, "{report}");
    let answer: Value = serde_json::from_str(report["body"].as_str().unwrap()).unwrap();
    assert_eq!(
        (&answer["method"], &answer["body"], &answer["x"]),
        (&json!("POST"), &json!("posted"), &json!("7"))
    );
    assert!(answer["from"].as_str().unwrap().starts_with(&key), "the caller is authenticated: {answer}");
    assert_eq!(answer["host"], url.strip_prefix("dmsg://").unwrap());

    let output = place.output(&["dmsg", "curl", "-i", "-X", "PUT", &format!("{url}/old")]);
    assert!(text(&output.stdout).contains("405"), "{output:?}");
    let output = place.output(&["dmsg", "curl", "-i", &format!("{url}/old")]);
    assert!(text(&output.stdout).contains("location: /echo"), "{output:?}");
    let report = json_of(&place.output(&["dmsg", "curl", "-L", "--json", &format!("{url}/old")]));
    assert_eq!((&report["status"], &report["url"]), (&json!(201), &json!(echo)));
    let output = place.output(&["dmsg", "curl", "-L", &format!("{url}/out")]);
    assert!(text(&output.stderr).contains("out of dmsg"), "{output:?}");
    let output = place.output(&["dmsg", "curl", "-L", &format!("{url}/round")]);
    assert!(text(&output.stderr).contains("more than 10"), "{output:?}");

    // Without its web server, it says so.
    drop(runtime);
    let output = place.output(&["dmsg", "curl", "--json", &echo]);
    assert_eq!(json_of(&output)["status"], 502, "{output:?}");
    server.stop();
}

#[test]
fn listen_and_dial_carry_standard_input_and_output() {
    let place = Place::new();
    let mut listener = Running::start(place.over(&["dmsg", "listen", "9", "--once"]), true);
    let target = format!("{}:9", listener.key());
    let mut dialler =
        place.over(&["dmsg", "dial", &target, "--linger", "0"]).stdin(Stdio::piped()).spawn().unwrap();
    let sent: Vec<u8> = (0..1_000_000_u32).map(|number| (number % 253) as u8).collect();
    let (mut input, bytes) = (dialler.stdin.take().unwrap(), sent.clone());
    // What is under way is bounded: somebody must read at the other end.
    let writing = std::thread::spawn(move || input.write_all(&bytes).unwrap());
    let mut received = Vec::new();
    listener.child.stdout.take().unwrap().read_to_end(&mut received).unwrap();
    assert!(received == sent, "{} bytes of {}", received.len(), sent.len());
    writing.join().unwrap();
    assert!(dialler.wait_with_output().unwrap().status.success());
    assert_eq!(listener.event()["event"], "stream");
    let end = listener.event();
    assert_eq!((&end["event"], &end["received"]), (&json!("end"), &json!(1_000_000)));
    assert_eq!(listener.exit_code(), Some(0));
}

#[test]
fn tcp_connections_go_through_both_ends() {
    let place = Place::new();
    // Answers only after the whole question: the end of the question must not end the answer.
    let web = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = web.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for connection in web.incoming() {
            let mut connection = connection.unwrap();
            std::thread::spawn(move || {
                let mut question = [0; 8];
                connection.read_exact(&mut question).unwrap();
                connection.write_all(&question).unwrap();
                connection.write_all(&[b'.'; 100_000]).unwrap();
            });
        }
    });
    let listener = Running::start(place.over(&["dmsg", "listen", "22", "--forward", &address]), false);
    let target = format!("{}:22", listener.key());
    let mut dialler = Running::start(place.over(&["dmsg", "dial", &target, "--from", "127.0.0.1:0"]), false);
    let near = dialler.ready["address"].as_str().unwrap().to_owned();
    for number in 0..3 {
        let mut connection = std::net::TcpStream::connect(&near).unwrap();
        connection.write_all(format!("number {number}").as_bytes()).unwrap();
        connection.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).unwrap();
        assert!(answer.starts_with(format!("number {number}").as_bytes()));
        assert_eq!(answer.len(), 100_008);
        let end = dialler.event();
        assert_eq!(
            (&end["sent"], &end["received"], &end["error"]),
            (&json!(8), &json!(100_008), &Value::Null)
        );
    }
    dialler.stop();
    listener.stop();
}

#[test]
fn a_discovery_finds_everybody_and_forgets_who_leaves() {
    let place = Place::new();
    let runtime = runtime();
    let (host, url) = runtime.block_on(discovery(&place));
    let (key_file, key) = place.key("listener.key");
    let words = ["dmsg", "listen", "9", "--discovery", &url, "--key-file", &key_file];
    let listener = Running::start(place.command(&words), true);
    assert_eq!(listener.key(), key);
    let client = DiscoveryClient::new(&url).unwrap();
    let listener_key = key.parse().unwrap();
    let entry = runtime.block_on(client.entry(&listener_key)).unwrap();
    assert_eq!(entry.client.unwrap().delegated_servers.unwrap(), [place.server.public_key()]);

    let target = format!("{key}:9");
    let output = place.command(&["dmsg", "ping", &target, "-c", "1", "--discovery", &url]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let server = place.server.public_key().to_string();
    let output = place.command(&["dmsg", "ping", &server, "-c", "1", "--discovery", &url]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    // A second process with the same key would evict the first: nothing forbids it, but the entry stays whole.
    listener.stop();
    let error = runtime.block_on(client.entry(&listener_key)).unwrap_err();
    assert!(matches!(error, DiscoveryError::NotFound { .. }), "{error}");
    let output = place.command(&["dmsg", "ping", &key, "-c", "1", "--discovery", &url]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("dmsg error 100"), "{output:?}");
    runtime.block_on(host.stop());
}

#[test]
fn bench_measures_sessions_and_streams_too() {
    let place = Place::new();
    let pid = std::process::id().to_string();
    // The server runs in this process, so its cost is that of the whole test: there is one, and that is all.
    let bench = |words: &[&str]| {
        let words = [&["bench", "bridge", "--json", "--server-pid", &pid, "--seconds", "3"], words].concat();
        let output = place.output(&words);
        assert!(output.status.success(), "{output:?}");
        let report = json_of(&output);
        assert_eq!(report["verified"], true, "{report}");
        report
    };
    let opened = |counter| place.server.counters().value(counter);

    let before = opened(Counter::SessionsOpened);
    let report = bench(&["--mode", "handshakes", "--sessions", "4"]);
    let made = opened(Counter::SessionsOpened) - before;
    let rate = report["handshakes_per_second"].as_f64().unwrap();
    let counted = (rate * report["seconds"].as_f64().unwrap()).round() as u64;
    // One more asked whether the server answers pings.
    assert_eq!(counted + 1, made, "{report}");
    assert_eq!(report["latency_us"]["count"].as_u64().unwrap(), counted);
    assert!(report["server_cpu_ms_per_handshake"].as_f64().unwrap() > 0.0, "{report}");
    // What this mode has not, is not told.
    assert_eq!(report["sessions"], 4);
    for absent in ["pairs", "streams", "write_size", "bytes", "bits_per_second"] {
        assert_eq!(report[absent], Value::Null, "{absent}: {report}");
    }

    let before = opened(Counter::BridgesOpened);
    let report = bench(&["--mode", "opens", "--pairs", "2", "--streams", "3"]);
    let rate = report["opens_per_second"].as_f64().unwrap();
    let counted = (rate * report["seconds"].as_f64().unwrap()).round() as u64;
    assert_eq!(counted, opened(Counter::BridgesOpened) - before, "{report}");
    assert!(report["server_cpu_ms_per_open"].as_f64().unwrap() > 0.0, "{report}");
    assert!(report["latency_us"]["p50"].as_f64().unwrap() > 0.0, "{report}");
    assert_eq!((&report["pairs"], &report["streams"]), (&json!(2), &json!(3)));
    assert_eq!((&report["sessions"], &report["bytes"]), (&Value::Null, &Value::Null), "{report}");

    let before = opened(Counter::SessionsOpened);
    let report = bench(&["--mode", "idle", "--sessions", "150"]);
    assert_eq!(opened(Counter::SessionsOpened) - before, 151);
    measured_or_said(&report, "rss_bytes_per_session");
    assert!(report["server_rss_bytes"].as_u64().unwrap() > 0, "{report}");
    assert_ne!(report["kernel_bytes_per_session"], 0.0, "{report}");

    let before = opened(Counter::BridgesOpened);
    let report = bench(&["--mode", "idle-streams", "--pairs", "2", "--streams", "30"]);
    // Each pair warms the server with a stream of bulk.
    assert_eq!(opened(Counter::BridgesOpened) - before, 60 + 2);
    assert_eq!(report["latency_us"]["count"], 60);
    measured_or_said(&report, "rss_bytes_per_stream");

    let table = place.output(&["bench", "bridge", "--mode", "opens", "--seconds", "0.3"]);
    assert!(text(&table.stdout).contains("opened streams") && table.status.success(), "{table:?}");
    let table = place.output(&["bench", "bridge", "--mode", "handshakes", "--seconds", "0.3"]);
    assert!(text(&table.stdout).contains("every session came about"), "{table:?}");
}

/// Memory that was not seen to grow is no memory of nothing.
fn measured_or_said(report: &Value, name: &str) {
    let is_said = report["warnings"].to_string().contains("did not grow");
    match report[name].as_f64() {
        Some(each) => assert!(each > 0.0 && !is_said, "{report}"),
        None => assert!(report[name].is_null() && is_said, "{report}"),
    }
}

#[test]
fn bench_names_the_flag_that_asks_for_too_much() {
    let place = Place::new();
    for (words, flag) in [
        (&["--pairs", "20000"][..], "lower --pairs,"),
        (&["--pairs", "20000", "--mode", "opens"], "lower --pairs,"),
        (&["--mode", "idle", "--sessions", "20000"], "lower --sessions,"),
        (&["--mode", "handshakes", "--sessions", "20000", "--pairs", "9000"], "20064 open files"),
    ] {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "ulimit -n 1000; exec \"$0\" \"$@\"",
            env!("CARGO_BIN_EXE_ringwire"),
            "bench",
            "bridge",
        ]);
        command.args(["--server", &common::address(&place.server).to_string()]).args(words);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(text(&output.stderr).contains(flag), "{words:?}: {output:?}");
    }
}

#[test]
fn bench_takes_a_server_from_a_discovery() {
    let place = Place::new();
    let runtime = runtime();
    let (host, url) = runtime.block_on(discovery(&place));
    let words = ["bench", "bridge", "--json", "--seconds", "0.3", "--discovery", &url];
    let output = place.command(&words).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let report = json_of(&output);
    assert_eq!(report["verified"], true);
    // Two pairs are what there is, and no sessions besides.
    assert_eq!((&report["pairs"], &report["sessions"]), (&json!(2), &Value::Null), "{report}");
    assert!(report["bytes"].as_u64().unwrap() > 0 && report["bits_per_second"].as_f64().unwrap() > 0.0);
    assert!(place.server.counters().value(Counter::BridgesOpened) > 0);
    runtime.block_on(host.stop());
    let output = place.command(&words).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains(&url), "{output:?}");
}

#[test]
fn a_server_that_dies_fails_every_mode() {
    for mode in ["handshakes", "opens", "idle", "idle-streams"] {
        let place = Place::new();
        let words = [
            "bench",
            "bridge",
            "--json",
            "--seconds",
            "20",
            "--sessions",
            "8",
            "--streams",
            "3",
            "--mode",
            mode,
        ];
        let mut bench = place.over(&words);
        let mut bench = bench.spawn().unwrap();
        let started = Instant::now();
        let under_way = || match mode {
            "opens" | "idle-streams" => place.server.counters().value(Counter::BridgesOpened) > 2,
            _ => place.server.counters().value(Counter::SessionsOpened) > 4,
        };
        while !under_way() {
            assert!(started.elapsed() < common::PATIENCE, "{mode}: nothing happens");
            std::thread::sleep(Duration::from_millis(10));
        }
        place.server.stop().unwrap();
        let mut shown = String::new();
        bench.stdout.take().unwrap().read_to_string(&mut shown).unwrap();
        assert_eq!(bench.wait().unwrap().code(), Some(1), "{mode}: {shown}");
        let report: Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(report["verified"], false, "{mode}: {report}");
        assert!(!report["errors"].as_array().unwrap().is_empty(), "{mode}: {report}");
    }
}

#[test]
fn mistakes_are_told_with_their_cure() {
    let place = Place::new();
    let (_, key) = place.key("any.key");
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let absent_server = format!("{key}@{nobody}");
    let cases: [(&[&str], i32, &str); 9] = [
        (&["dmsg", "ping", &key], 1, "ringwire run"),
        (&["dmsg", "ping", "nobody"], 2, "PK:PORT"),
        (
            &["dmsg", "ping", &key, "--server", &absent_server, "--connect-limit", "1"],
            1,
            "is the server running",
        ),
        (&["dmsg", "ping", &key, "--discovery", "ftp://x"], 1, "http://HOST"),
        (&["dmsg", "curl", "http://example.com"], 2, "dmsg://PUBLICKEY"),
        (&["dmsg", "dial", &key], 2, "found no port"),
        (&["dmsg", "serve"], 2, "--dir"),
        (&["dmsg", "serve", "--dir", "/nonexistent"], 1, "name a directory"),
        (&["dmsg", "listen", "9", "--key-file", "/nonexistent"], 1, "ringwire keys generate"),
    ];
    for (words, code, cure) in cases {
        let output = place.command(words).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{words:?}: {output:?}");
        assert!(text(&output.stderr).contains(cure), "{words:?}: {output:?}");
    }
    for command in ["ping", "curl", "listen", "dial", "serve"] {
        let output = place.command(&["dmsg", command, "--help"]).output().unwrap();
        assert!(output.status.success() && text(&output.stdout).contains("Examples:"), "{command}");
        assert!(text(&output.stdout).contains("--json"), "{command}");
    }
}

#[test]
fn a_stream_that_breaks_off_is_no_success() {
    let place = Place::new();
    let mut listener = Running::start(place.over(&["dmsg", "listen", "9", "--once"]), true);
    let target = format!("{}:9", listener.key());
    let mut dialler =
        place.over(&["dmsg", "dial", &target, "--linger", "0"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = dialler.stdin.take().unwrap();
    input.write_all(&[b'x'; 1000]).unwrap();
    let mut came = [0; 1000];
    listener.child.stdout.take().unwrap().read_exact(&mut came).unwrap();
    let Place { server, directory: _directory, .. } = place;
    server.stop().unwrap();
    assert_eq!(listener.event()["event"], "stream");
    let end = listener.event();
    assert_eq!((&end["event"], &end["received"]), (&json!("end"), &json!(1000)), "{end}");
    assert!(end["error"].is_string(), "{end}");
    assert_eq!(listener.exit_code(), Some(1));
    let mut said = String::new();
    listener.events.read_to_string(&mut said).unwrap();
    assert!(said.contains("not all of it") && said.contains("again"), "{said}");
    drop(input);
    let dialled = dialler.wait_with_output().unwrap();
    assert_eq!(dialled.status.code(), Some(1));
    assert!(text(&dialled.stderr).contains("1000 sent"), "{dialled:?}");
}

/// A web server that has one document, whose answers break off after so many bytes, and what it was asked.
struct Breaking {
    address: String,
    asked: std::sync::mpsc::Receiver<String>,
}

/// The document: `length` bytes that differ from place to place.
fn document(length: usize) -> Vec<u8> {
    (0..length as u32).map(|number| (number % 251) as u8).collect()
}

impl Breaking {
    /// Answers with these: the tag of the document, and the bytes that come before the connection ends.
    fn start(answers: Vec<(&'static str, usize)>) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (tell, asked) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for (tag, comes) in answers {
                let mut reader = BufReader::new(listener.accept().unwrap().0);
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") {
                    assert!(reader.read_line(&mut head).unwrap() > 0, "{head}");
                }
                let head = head.to_ascii_lowercase();
                let all = document(3_000_000);
                let begins = head.split("range: bytes=").nth(1).and_then(|rest| rest.split('-').next());
                let is_same = !tag.is_empty() && head.contains(&format!("if-range: {tag}"));
                let begins: usize = begins.filter(|_| is_same).map_or(0, |text| text.parse().unwrap());
                let mut answer = match begins {
                    0 => "HTTP/1.1 200 OK\r\n".to_owned(),
                    at if at >= all.len() => {
                        format!("HTTP/1.1 416 No\r\nContent-Range: bytes */{}\r\n", all.len())
                    }
                    at => format!(
                        "HTTP/1.1 206 Partial\r\nContent-Range: bytes {at}-{}/{}\r\n",
                        all.len() - 1,
                        all.len()
                    ),
                };
                let rest = &all[begins..];
                if !tag.is_empty() {
                    answer.push_str(&format!("ETag: {tag}\r\n"));
                }
                answer.push_str(&format!("Content-Length: {}\r\n\r\n", rest.len()));
                let connection = reader.get_mut();
                connection.write_all(answer.as_bytes()).unwrap();
                // Who has broken off reads no more.
                connection.write_all(&rest[..comes.min(rest.len())]).ok();
                tell.send(head).ok();
            }
        });
        Self { address, asked }
    }
}

#[test]
fn a_download_that_broke_off_goes_on_where_it_did() {
    let place = Place::new();
    let web = Breaking::start(vec![
        ("\"one\"", 1_000_000),
        ("\"one\"", 500_000),
        ("\"one\"", usize::MAX),
        ("\"one\"", 400_000),
        ("\"two\"", usize::MAX),
    ]);
    let server = Running::start(place.over(&["dmsg", "serve", "--to", &web.address]), false);
    let url = format!("{}image", server.ready["url"].as_str().unwrap());
    let (file, part) = (place.path("image"), place.path("image.part"));
    let path = file.to_str().unwrap();
    let fetch = |further: &[&str]| place.output(&[&["dmsg", "curl", "-o", path, &url], further].concat());
    let partial = || std::fs::read(&part).unwrap();

    let broken = fetch(&[]);
    assert_eq!(broken.status.code(), Some(1));
    let said = text(&broken.stderr);
    assert!(
        said.contains("broke off") && said.contains("image.part") && said.contains("--continue"),
        "{said}"
    );
    assert!(!file.exists() && !partial().is_empty() && document(3_000_000).starts_with(&partial()));
    assert!(!web.asked.recv().unwrap().contains("range:"));
    let first = partial().len();

    let broken = fetch(&["--continue"]);
    assert_eq!(broken.status.code(), Some(1));
    assert!(web.asked.recv().unwrap().contains(&format!("range: bytes={first}-")));
    assert!(partial().len() > first && document(3_000_000).starts_with(&partial()));

    let report = json_of(&fetch(&["--continue", "--json"]));
    assert_eq!(
        (&report["status"], report["continued_at"].as_u64() > Some(first as u64)),
        (&json!(206), true)
    );
    assert!(std::fs::read(&file).unwrap() == document(3_000_000));
    assert!(!part.exists() && !place.path("image.part.json").exists());
    web.asked.recv().unwrap();

    // One that is another by now begins anew, and says so.
    assert_eq!(fetch(&[]).status.code(), Some(1));
    assert!(
        std::fs::read(&file).unwrap() == document(3_000_000),
        "the old one is whole until the new one is"
    );
    let anew = fetch(&["--continue"]);
    assert!(anew.status.success() && text(&anew.stderr).contains("another version"), "{anew:?}");
    assert!(std::fs::read(&file).unwrap() == document(3_000_000));
    server.stop();
}

#[test]
fn a_download_that_cannot_go_on_is_said_to_begin_anew() {
    let place = Place::new();
    let web = Breaking::start(vec![("", 1_000), ("", usize::MAX)]);
    let server = Running::start(place.over(&["dmsg", "serve", "--to", &web.address]), false);
    let url = format!("{}image", server.ready["url"].as_str().unwrap());
    let file = place.path("image");
    let fetch = |further: &[&str]| {
        place.output(&[&["dmsg", "curl", "-o", file.to_str().unwrap(), &url], further].concat())
    };
    let broken = fetch(&[]);
    assert!(broken.status.code() == Some(1) && text(&broken.stderr).contains("begin anew"), "{broken:?}");
    let whole = fetch(&["--continue"]);
    assert!(whole.status.success() && text(&whole.stderr).contains("nothing to continue"), "{whole:?}");
    assert!(std::fs::read(&file).unwrap() == document(3_000_000));
    server.stop();
}

#[test]
fn who_says_nothing_is_given_up_and_who_reads_enough_is_no_failure() {
    let place = Place::new();
    let directory = place.path("public");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("large"), document(3_000_000)).unwrap();
    let server = Running::start(place.over(&["dmsg", "serve", "--dir", directory.to_str().unwrap()]), false);
    let url = format!("{}large", server.ready["url"].as_str().unwrap());
    let mut curl = place.over(&["dmsg", "curl", &url]).spawn().unwrap();
    let mut few = [0; 10];
    curl.stdout.take().unwrap().read_exact(&mut few).unwrap();
    let ended = curl.wait_with_output().unwrap();
    assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
    server.stop();

    // A web server that takes the question and never answers.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let to = mute.local_addr().unwrap().to_string();
    let server = Running::start(place.over(&["dmsg", "serve", "--to", &to]), false);
    let url = server.ready["url"].as_str().unwrap().to_owned();
    let output = place.output(&["dmsg", "curl", &url, "--silence", "1"]);
    let said = text(&output.stderr);
    assert!(
        output.status.code() == Some(1) && said.contains("within 1 s") && said.contains("--silence"),
        "{said}"
    );
    let output = place.output(&["dmsg", "curl", &url, "--max-time", "1"]);
    assert!(text(&output.stderr).contains("--max-time"), "{output:?}");
    server.stop();
}

#[test]
fn a_discovery_that_does_not_answer_is_named_while_it_is_waited_for() {
    let place = Place::new();
    let (key, _) = place.key("a.key");
    let peer = format!("{}:9", place.server.public_key());
    let url = format!("dmsg://{}/", place.server.public_key());
    let directory = place.path("public");
    std::fs::create_dir_all(&directory).unwrap();
    let directory = directory.to_str().unwrap();
    // One that refuses, and one that takes the question and says nothing.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let discoveries = [format!("http://{gone}"), format!("http://{}", mute.local_addr().unwrap())];
    let commands: [&[&str]; 5] = [
        &["dmsg", "ping", &peer],
        &["dmsg", "curl", &url],
        &["dmsg", "listen", "9"],
        &["dmsg", "dial", &peer],
        &["dmsg", "serve", "--dir", directory],
    ];
    for discovery in &discoveries {
        for words in commands {
            // Far from its end when the line is there.
            let further = ["--connect-limit", "600", "--key-file", &key, "--discovery", discovery];
            let mut child = place.command(&[words, &further].concat()).spawn().unwrap();
            let mut line = String::new();
            BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
            child.kill().unwrap();
            child.wait().unwrap();
            assert!(line.contains("does not answer") && line.contains("600 s in all"), "{words:?} {line}");
            assert!(line.contains(discovery.as_str()), "{words:?} {line}");
        }
    }
    let command = &["dmsg", "listen", "9", "--json", "--connect-limit", "6", "--discovery", &discoveries[0]];
    let output = place.command(command).output().unwrap();
    let first: Value = serde_json::from_str(text(&output.stderr).lines().next().unwrap()).unwrap();
    assert_eq!((&first["event"], &first["for"]), (&json!("waiting"), &json!("discovery")), "{first}");
    let last = text(&output.stderr).lines().last().unwrap();
    assert!(last.contains("not connected within 6s") && last.contains("--server"), "{last}");
    assert_eq!(output.status.code(), Some(1));
}
