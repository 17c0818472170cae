//! What a server tells those who listen: events for programs, lines for every session, colours only where they are wanted.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail")]

mod common;

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use common::process::{is_alive, json, lasting_address, ringwire, send, until};
use ringwire::discovery::{DiscoveryHost, DiscoverySettings};
use ringwire::dmsg::{ServerAddress, Session, SessionConfig};
use ringwire::http::bind;
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_proto::entry::Deployment;
use ringwire_proto::identity::SecretKey;
use rustix::process::Signal;
use serde_json::Value;

/// A server that does not outlive the test, and what it prints.
struct Server {
    process: Child,
    out: BufReader<ChildStdout>,
    dataplane: u32,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
        send(self.dataplane, Signal::KILL);
    }
}

impl Server {
    fn start(mut command: Command) -> (Self, Value) {
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(process.stdout.take().unwrap());
        let mut server = Self { process, out, dataplane: 0 };
        let ready = server.event();
        assert_eq!(ready["event"], "ready");
        server.dataplane = ready["dataplane_pid"].as_u64().unwrap() as u32;
        (server, ready)
    }

    fn event(&mut self) -> Value {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        let event: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        if let Some(pid) = event["dataplane_pid"].as_u64() {
            self.dataplane = pid as u32;
        }
        event
    }
}

fn run(state: &Path, arguments: &[&str]) -> Command {
    let mut command = ringwire(state);
    command.args(["run", "--json", "--listen", "127.0.0.1:0", "--orphan-limit", "60"]).args(arguments);
    command
}

fn address(ready: &Value) -> ServerAddress {
    let text = format!("{}@{}", ready["public_key"].as_str().unwrap(), ready["address"].as_str().unwrap());
    text.parse().unwrap()
}

fn config(server: &ServerAddress) -> SessionConfig {
    let mut config = SessionConfig::new(SecretKey::generate(&mut OsEntropy), server.clone());
    config.first_frame_pause = Duration::ZERO;
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_are_told_of_the_data_plane_the_registration_and_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let place = lasting_address();
    let host = |listener| {
        let settings = DiscoverySettings::new(Deployment::Test);
        DiscoveryHost::start(listener, settings, directory.path().join("elsewhere.json")).unwrap()
    };
    let discovery = host(bind(place.parse().unwrap()).await.unwrap());
    let url = format!("http://{place}");
    let (mut server, ready) = Server::start(run(&state, &["--discovery", &url, "--update-interval-s", "1"]));
    let event = server.event();
    assert_eq!(
        (&event["event"], &event["discovery"]),
        (&"registered".into(), &url.as_str().into()),
        "{event}"
    );

    let killed = ready["dataplane_pid"].as_u64().unwrap() as u32;
    send(killed, Signal::KILL);
    let event = server.event();
    assert_eq!((&event["event"], &event["losses"]), (&"dataplane_lost".into(), &1.into()), "{event}");
    assert_eq!(event["dataplane_pid"], killed);
    assert!(event["reason"].as_str().unwrap().contains("hung up"), "{event}");
    let event = server.event();
    assert_eq!(event["event"], "dataplane", "{event}");
    assert!(is_alive(server.dataplane) && server.dataplane != killed);
    assert_eq!(event["addresses"][0], ready["address"]);

    discovery.stop().await;
    let event = server.event();
    assert_eq!(event["event"], "registration_lost", "{event}");
    assert!(event["reason"].as_str().unwrap().contains(&place), "{event}");
    let discovery = host(bind(place.parse().unwrap()).await.unwrap());
    assert_eq!(server.event()["event"], "registered");

    // A crash of the control plane is told by the one in its place.
    send(ready["control_pid"].as_u64().unwrap() as u32, Signal::KILL);
    let again = server.event();
    assert_eq!((&again["event"], &again["public_key"]), (&"ready".into(), &ready["public_key"]));
    assert_ne!(again["control_pid"], ready["control_pid"]);
    assert_eq!(server.event()["event"], "registered");

    // Somebody stays, so that it drains for a while.
    let session = Session::connect(config(&address(&again))).await.unwrap();
    let mut listener = session.listen(80).unwrap();
    let other = Session::connect(config(&address(&again))).await.unwrap();
    let to = ringwire_proto::identity::Address { key: session.public_key(), port: 80 };
    let (dialled, accepted) = tokio::join!(other.dial(to), listener.accept());
    json(&state, &["drain", "--within", "600"]);
    assert_eq!(server.event()["event"], "draining");
    json(&state, &["stop"]);
    let event = server.event();
    assert_eq!(event["event"], "ending", "{event}");
    drop((dialled, accepted));
    assert!(server.process.wait().unwrap().success());
    let mut rest = String::new();
    server.out.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
    discovery.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_session_has_its_lines_with_its_address_when_that_is_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let said = || std::fs::read_to_string(&log).unwrap();
    let state = directory.path().join("state");
    let mut command = run(&state, &["--log-sessions"]);
    command.stderr(File::create(&log).unwrap());
    let (server, ready) = Server::start(command);
    let to = address(&ready);
    let mut keys = Vec::new();
    for _ in 0..50 {
        let session = common::connect(config(&to)).await;
        keys.push(session.public_key().to_string());
    }
    let lines = |word: &str, key: &str| {
        said()
            .lines()
            .filter(|line| line.contains(word) && line.contains(key))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    for key in &keys {
        until("the end of each is there", || !lines("session closed", key).is_empty());
        let (opened, closed) = (lines("session opened", key), lines("session closed", key));
        assert!(opened.len() == 1 && closed.len() == 1, "{key}: {}", said());
        assert!(
            opened[0].contains("INFO ringwire::sessions") && opened[0].contains("address=127.0.0.1:"),
            "{opened:?}"
        );
        assert!(
            closed[0].contains("reason=\"peer_closed\"") && closed[0].contains("lasted_ms="),
            "{closed:?}"
        );
    }
    // Who was there before the control plane was started again is found.
    let session = common::connect(config(&to)).await;
    send(ready["control_pid"].as_u64().unwrap() as u32, Signal::KILL);
    until("it is found", || !lines("session found", &session.public_key().to_string()).is_empty());
    drop((session, server));
}

#[test]
fn sessions_are_no_lines_unless_that_is_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let state = directory.path().join("state");
    let mut command = run(&state, &[]);
    command.stderr(File::create(&log).unwrap());
    let (server, ready) = Server::start(command);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let key =
        runtime.block_on(async { common::connect(config(&address(&ready))).await.public_key().to_string() });
    until("it has ended", || {
        json(&state, &["show", "sessions", "--closed"])["closed"][0]["public_key"] == key
    });
    assert!(!std::fs::read_to_string(&log).unwrap().contains(&key));
    drop(server);
}

/// What a command writes to a terminal as its error output.
fn on_terminal(mut command: Command) -> String {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
    let end = File::options().read(true).write(true).open(name).unwrap();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(end).status().unwrap();
    drop(command);
    let mut text = Vec::new();
    // It ends with an error: nobody has the other side any more.
    File::from(terminal).read_to_end(&mut text).ok();
    String::from_utf8(text).unwrap()
}

#[test]
fn a_log_has_colours_on_a_terminal_unless_nobody_wants_any() {
    let directory = tempfile::tempdir().unwrap();
    let command = || {
        // A wrong filter is worth a warning, and there is nothing to listen on.
        let mut command = ringwire(directory.path());
        command
            .args(["run", "--no-parent", "--listen", "192.0.2.1:1"])
            .env("RINGWIRE_LOG", "nonsense")
            .env_remove("NO_COLOR");
        command
    };
    let coloured = on_terminal(command());
    assert!(coloured.contains("nonsense") && coloured.contains('\u{1b}'), "{coloured:?}");
    let mut plain = command();
    plain.env("NO_COLOR", "1");
    let plain = on_terminal(plain);
    assert!(plain.contains("nonsense") && !plain.contains('\u{1b}'), "{plain:?}");
    // Set to nothing it says nothing.
    let mut empty = command();
    empty.env("NO_COLOR", "");
    assert!(on_terminal(empty).contains('\u{1b}'));
    let piped = command().output().unwrap();
    assert!(!String::from_utf8(piped.stderr).unwrap().contains('\u{1b}'));
}
