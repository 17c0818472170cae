//! Planes that come anew beside one that lives, or in the place of one that has ended: what they take over, and what they say.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail")]

mod common;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::process::{Planes, is_alive, json, lasting_address, ringwire, send, until};
use ringwire::dmsg::{ServerAddress, Session, SessionConfig};
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_dataplane::process::SOCKET_NAME;
use ringwire_ipc::socket::{Client, Hello, PROTOCOL};
use ringwire_proto::identity::SecretKey;
use ringwire_proto::noise::Hybrid;
use rustix::process::Signal;
use serde_json::Value;

const DATAPLANE_UNIT: &str = include_str!("../../dist/systemd/ringwire-dataplane.service");
const CONTROL_UNIT: &str = include_str!("../../dist/systemd/ringwire-control.service");

/// A process that does not outlive the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The command of a unit, on this state directory and address, with further arguments.
fn of_unit(unit: &str, state: &Path, listen: &str, further: &[&str]) -> Command {
    let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    let mut words = line.split_whitespace();
    assert_eq!(words.next(), Some("/usr/bin/ringwire"));
    let mut command = ringwire(state);
    for word in words {
        match word {
            "/var/lib/ringwire" => command.arg(state),
            "0.0.0.0:8081" => command.arg(listen),
            word => command.arg(word),
        };
    }
    command.args(further);
    command
}

/// A control plane that says that it is ready, and what it says.
fn ready(mut command: Command) -> (Process, Value) {
    let mut process = Process(command.arg("--json").stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(process.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (process, serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}")))
}

fn address(ready: &Value) -> ServerAddress {
    format!("{}@{}", ready["public_key"].as_str().unwrap(), ready["address"].as_str().unwrap())
        .parse()
        .unwrap()
}

fn config(server: &ServerAddress) -> SessionConfig {
    let mut config = SessionConfig::new(SecretKey::generate(&mut OsEntropy), server.clone());
    config.first_frame_pause = std::time::Duration::ZERO;
    config
}

/// A client that is served, tried until it is.
async fn served(server: &ServerAddress) -> Session {
    let patience = tokio::time::Instant::now() + common::PATIENCE;
    loop {
        let tried = match Session::connect(config(server)).await {
            Ok(session) => session.ping().await.map(|_| session).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match tried {
            Ok(session) => return session,
            Err(error) => assert!(tokio::time::Instant::now() < patience, "nobody is served: {error}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// Status and reason of `/health`.
async fn health(ready: &Value) -> (u16, String) {
    let answer = reqwest::get(format!("http://{}/health", ready["http"].as_str().unwrap())).await.unwrap();
    let status = answer.status().as_u16();
    let health: ringwire::http::Health = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    (status, health.not_ready)
}

/// Waits until the reason of `/health` has this word; it is 503 then.
async fn unready(ready: &Value, word: &str) {
    let patience = tokio::time::Instant::now() + common::PATIENCE;
    loop {
        let (status, reason) = health(ready).await;
        if reason.contains(word) {
            assert_eq!(status, 503, "{reason}");
            return;
        }
        assert!(tokio::time::Instant::now() < patience, "never `{word}`: {status} {reason}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

async fn metric(ready: &Value, name: &str) -> String {
    let url = format!("http://{}/metrics", ready["http"].as_str().unwrap());
    let text = reqwest::get(url).await.unwrap().text().await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} "))).map(str::to_owned);
    line.unwrap_or_else(|| panic!("no {name} in {text}"))
}

/// Text of `ringwire status`, whatever its exit code.
fn status(state: &Path) -> String {
    String::from_utf8(ringwire(state).arg("status").output().unwrap().stdout).unwrap()
}

// What `systemctl restart ringwire-dataplane` does to the two units as they are shipped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_plane_that_systemd_restarts_serves_again() {
    let directory = tempfile::tempdir().unwrap();
    let (state, listen) = (directory.path(), lasting_address());
    let start = || {
        let further = ["--start-within", "60"];
        Process(of_unit(DATAPLANE_UNIT, state, &listen, &further).spawn().unwrap())
    };
    for workers in ["1", "2"] {
        let mut dataplane = start();
        let further = ["--http-listen", "127.0.0.1:0", "--workers", workers, "--orphan-limit", "60"];
        let (mut control, ready) = ready(of_unit(CONTROL_UNIT, state, &listen, &further));
        let server = address(&ready);
        for _ in 0..2 {
            let (from, to) = (served(&server).await, served(&server).await);
            assert_eq!(health(&ready).await, (200, String::new()));
            assert_eq!(metric(&ready, "ringwire_dataplane_attached").await, "1");
            // A stream that holds the drain up.
            let mut listener = to.listen(80).unwrap();
            let held = common::pair(&from, &to, &mut listener).await;
            send(dataplane.0.id(), Signal::TERM);
            unready(&ready, "draining").await;
            assert!(status(state).contains("NOT ready: draining"), "{}", status(state));
            drop(held);
            assert!(dataplane.0.wait().unwrap().success());
            unready(&ready, "no data plane").await;
            assert_eq!(metric(&ready, "ringwire_dataplane_attached").await, "0");
            let text = status(state);
            assert!(text.contains("NOT ready: no data plane") && !text.contains("registered"), "{text}");

            dataplane = start();
            served(&server).await;
            until("it is attached", || status(state).contains("registered"));
            assert_eq!(health(&ready).await, (200, String::new()));
        }
        assert!(ringwire(state).arg("stop").status().unwrap().success());
        assert!(control.0.wait().unwrap().success() && dataplane.0.wait().unwrap().success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_plane_that_was_attached_to_and_ends_in_order_is_replaced_on_its_address() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path();
    let arguments = ["--listen", &lasting_address(), "--orphan-limit", "60", "--workers", "2"];
    let mut planes = Planes::try_start(state, &arguments).unwrap();
    let server = planes.address();
    planes.kill_control();
    planes.run_again(state, &[]);
    let ended = planes.dataplane_pid;
    send(ended, Signal::TERM);
    until("it has ended", || !is_alive(ended));
    served(&server).await;
    until("another one is noted", || planes.noted_dataplane().is_some_and(|pid| pid != ended));
    assert_eq!(json(state, &["status"])["dataplane"]["addresses"][0], server.address);
}

/// Whether a client without the post-quantum part is served.
async fn classical(server: &ServerAddress) -> bool {
    let mut config = config(server);
    config.hybrid = Hybrid::Off;
    match Session::connect(config).await {
        Ok(session) => session.ping().await.is_ok(),
        Err(_) => false,
    }
}

/// What `show settings` says, which is what the data plane says itself.
fn in_force(state: &Path) -> Value {
    let shown = json(state, &["show", "settings"]);
    let mut client = Client::connect(&state.join(SOCKET_NAME), common::PATIENCE).unwrap();
    client.hello(Hello { protocol: PROTOCOL, ..Hello::default() }).unwrap();
    let said: Value = serde_json::from_str(&client.status().unwrap().settings).unwrap();
    assert_eq!(shown["settings"], said);
    said
}

/// Kills the data plane and waits for the one in its place.
fn crash(planes: &Planes) {
    let killed = planes.noted_dataplane().unwrap();
    send(killed, Signal::KILL);
    until("another one is noted", || planes.noted_dataplane().is_some_and(|pid| pid != killed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_new_control_planes_file_says_is_in_force_when_it_is_ready() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path();
    let file = state.join("ringwire.toml");
    let mut planes = Planes::start(state, &["--workers", "2"]);
    let server = planes.address();
    assert!(classical(&server).await);
    assert_eq!(in_force(state)["hybrid"], "offer");
    planes.kill_control();

    std::fs::write(&file, "hybrid = \"require\"\ncompany_us = 7\n").unwrap();
    let log = state.join("log");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringwire"));
    command.stderr(std::fs::File::create(&log).unwrap());
    let file_named = ["--config", file.to_str().unwrap()];
    let dataplane = planes.dataplane_pid;
    let mut planes = {
        let again = Planes::try_start_of(command, state, &file_named).unwrap();
        // The first one's value must not end the data plane.
        planes.dataplane_pid = 0;
        std::mem::forget(planes);
        again
    };
    assert_eq!(planes.dataplane_pid, dataplane, "attached to");
    assert!(!classical(&server).await, "from the moment on that it is ready");
    served(&server).await;
    let now = in_force(state);
    assert_eq!(
        (&now["hybrid"], &now["company_us"], &now["workers"]),
        (&"require".into(), &7.into(), &2.into())
    );
    let log = std::fs::read_to_string(log).unwrap();
    let line =
        log.lines().find(|line| line.contains("setting=\"hybrid\"")).unwrap_or_else(|| panic!("{log}"));
    assert!(line.contains("from=\"offer\"") && line.contains("to=\"require\""), "{line}");

    // And of its successors, with what the first control plane had asked for.
    crash(&planes);
    assert!(!classical(&server).await);
    let now = in_force(state);
    assert_eq!(
        (&now["hybrid"], &now["company_us"], &now["workers"]),
        (&"require".into(), &7.into(), &2.into())
    );
    let text =
        String::from_utf8(ringwire(state).args(["show", "settings"]).output().unwrap().stdout).unwrap();
    let line = text.lines().find(|line| line.starts_with("hybrid")).unwrap();
    assert!(line.contains("require") && line.contains("ringwire set"), "{text}");

    // What cannot change while it runs is refused as ever.
    planes.kill_control();
    std::fs::write(&file, "workers = 3\n").unwrap();
    let refused = ringwire(state).arg("run").args(file_named).output().unwrap();
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && error.contains("its workers is 2 where 3"), "{error}");
    assert_eq!(in_force(state)["hybrid"], "require", "nothing has changed");
    planes.dataplane_pid = planes.noted_dataplane().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_set_is_set_in_every_successor_too() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path();
    let mut planes = Planes::start(state, &["--workers", "2"]);
    let server = planes.address();
    for (name, value) in [("hybrid", "off"), ("hybrid", "require"), ("company-us", "3"), ("pause-us", "4")] {
        json(state, &["set", name, value]);
    }
    let expected = |now: &Value, what: &str| {
        let found = (&now["hybrid"], &now["company_us"], &now["pause_us"], &now["workers"]);
        assert_eq!(found, (&"require".into(), &3.into(), &4.into(), &2.into()), "{what}");
    };
    expected(&in_force(state), "set");
    for _ in 0..2 {
        crash(&planes);
        expected(&in_force(state), "after a crash");
        assert!(!classical(&server).await);
    }
    // A control plane that says nothing of it leaves everything as it is, and hands it on.
    planes.dataplane_pid = planes.noted_dataplane().unwrap();
    planes.kill_control();
    planes.run_again(state, &[]);
    expected(&in_force(state), "attached");
    crash(&planes);
    expected(&in_force(state), "after a crash under another control plane");
    assert!(!classical(&server).await);
    served(&server).await;
}
