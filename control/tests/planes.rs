//! Two processes that may die: what survives whom, measured with clients whose every byte is checked.
//!
//! Sizes can be raised by the environment: `RINGWIRE_KILLS` (control planes killed), `RINGWIRE_STOP_SECONDS` (how long the
//! control plane stands still).
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail")]

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::process::{Planes, is_alive, json, json_of, ringwire, send, until};
use ringwire::dmsg::{ServerAddress, Session, SessionConfig};
use ringwire::state::State;
use ringwire::supervise::settings::Settings;
use ringwire::supervise::{self, ObtainError, Wanted};
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_proto::identity::{Address, SecretKey};
use rustix::process::Signal;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

/// A number from the environment.
fn size(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// A session that the server has filed.
async fn session(server: &ServerAddress) -> Session {
    let mut config = SessionConfig::new(SecretKey::generate(&mut OsEntropy), server.clone());
    config.first_frame_pause = Duration::ZERO;
    common::connect(config).await
}

/// Reached under every address of the loopback, see [`under`].
const EVERYWHERE: [&str; 4] = ["--listen", "0.0.0.0:0", "--orphan-limit", "60"];

/// The server of `planes` under the address number `host` of the loopback. Sessions that come and go by the thousand use up
/// the ports between two addresses within a minute; a port that is used again while the other end still has the former
/// connection would be refused by the kernel.
fn under(server: &ServerAddress, host: usize) -> ServerAddress {
    let port = server.address.rsplit_once(':').unwrap().1;
    ServerAddress { key: server.key, address: format!("127.0.0.{host}:{port}") }
}

/// Load on a server for as long as it is held: a verified transfer, sessions that come and go, and pings.
struct Load {
    over: Arc<AtomicBool>,
    bytes: Arc<AtomicU64>,
    sessions: Arc<AtomicU64>,
    worst_ping_us: Arc<AtomicU64>,
    tasks: JoinSet<()>,
    started: Instant,
}

/// What a load has done.
#[derive(Debug)]
struct Done {
    bytes: u64,
    sessions: u64,
    worst_ping: Duration,
    lasted: Duration,
}

impl Load {
    /// Begins; every task ends with a panic if anything is lost.
    async fn begin(server: &ServerAddress, churners: usize) -> Self {
        let mut load = Self {
            over: Arc::default(),
            bytes: Arc::default(),
            sessions: Arc::default(),
            worst_ping_us: Arc::default(),
            tasks: JoinSet::new(),
            started: Instant::now(),
        };
        load.transfer(server).await;
        let pinger = session(server).await;
        let (over, worst) = (Arc::clone(&load.over), Arc::clone(&load.worst_ping_us));
        load.tasks.spawn(async move {
            while !over.load(Ordering::Relaxed) {
                let asked = Instant::now();
                pinger.ping().await.expect("no session is lost");
                worst.fetch_max(asked.elapsed().as_micros() as u64, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        for churner in 0..churners {
            let (over, sessions) = (Arc::clone(&load.over), Arc::clone(&load.sessions));
            let server = under(server, 2 + churner);
            load.tasks.spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    session(&server).await;
                    sessions.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        load
    }

    /// Numbered words in one direction of one bridge, compared at the other end.
    async fn transfer(&mut self, server: &ServerAddress) {
        let (source, destination) = (session(server).await, session(server).await);
        let mut listener = destination.listen(80).unwrap();
        let address = Address { key: destination.public_key(), port: 80 };
        let (dialled, accepted) = tokio::join!(source.dial(address), listener.accept());
        let (mut dialled, mut accepted) = (dialled.unwrap(), accepted.unwrap());
        let over = Arc::clone(&self.over);
        self.tasks.spawn(async move {
            let _held = source;
            let mut number = 0_u64;
            while !over.load(Ordering::Relaxed) {
                let block: Vec<u8> = (number..number + 512).flat_map(u64::to_le_bytes).collect();
                number += 512;
                dialled.write_all(&block).await.expect("no byte is lost");
                // A pace that leaves the machine to the others.
                tokio::time::sleep(Duration::from_micros(500)).await;
            }
            dialled.shutdown().await.expect("no byte is lost");
        });
        let bytes = Arc::clone(&self.bytes);
        self.tasks.spawn(async move {
            let _held = (destination, listener);
            let (mut expected, mut word) = (0_u64, [0; 8]);
            loop {
                match accepted.read_exact(&mut word).await {
                    Ok(_) => assert_eq!(u64::from_le_bytes(word), expected, "a byte changed or was lost"),
                    Err(error) => {
                        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof, "{error}");
                        break;
                    }
                }
                expected += 1;
                bytes.store(expected * 8, Ordering::Relaxed);
            }
        });
    }

    async fn end(mut self) -> Done {
        let lasted = self.started.elapsed();
        let sessions = self.sessions.load(Ordering::Relaxed);
        self.over.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("nothing is lost");
        }
        let bytes = self.bytes.load(Ordering::Relaxed);
        let worst_ping = Duration::from_micros(self.worst_ping_us.load(Ordering::Relaxed));
        Done { bytes, sessions, worst_ping, lasted }
    }

    fn rate(&self) -> f64 {
        self.sessions.load(Ordering::Relaxed) as f64 / self.started.elapsed().as_secs_f64()
    }
}

/// The sessions of a list, without what depends on the moment of looking.
fn table(sessions: &Value) -> Vec<String> {
    let mut rows: Vec<_> = sessions["sessions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|session| {
            let mut session = session.clone();
            session.as_object_mut().unwrap().remove("age_s");
            session.to_string()
        })
        .collect();
    rows.sort();
    rows
}

/// Waits until the control plane's list equals the data plane's own.
fn until_lists_agree(state: &Path) -> usize {
    let mut count = 0;
    until("the lists agree", || {
        let control = json(state, &["show", "sessions"]);
        let dataplane = json(state, &["show", "sessions", "--from", "dataplane"]);
        count = table(&dataplane).len();
        control["current"] == true && table(&control) == table(&dataplane)
    });
    count
}

fn counter(state: &Path, name: &str) -> u64 {
    json(state, &["show", "counters"])["total"][name].as_u64().unwrap()
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Anything from 0 to `most`, different each time.
fn random_below(most: u64) -> u64 {
    let mut bytes = [0; 8];
    ringwire_proto::entropy::Entropy::fill(&mut OsEntropy, &mut bytes);
    u64::from_le_bytes(bytes) % most
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_planes_are_killed_at_random_moments_and_nothing_is_lost() {
    let kills = size("RINGWIRE_KILLS", 12);
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().to_owned();
    let mut planes = Planes::try_start(&state, &EVERYWHERE).unwrap();
    let (address, dataplane) = (planes.address(), planes.dataplane_pid);
    let load = Load::begin(&address, 8).await;
    let mut opened_before = 0;
    for kill in 0..kills {
        // A third in mid-attach, a third in mid-command, a third in between.
        match kill % 3 {
            0 => {
                planes.kill_control();
                let mut starting =
                    ringwire(&state).args(["run", "--json"]).stdout(Stdio::null()).spawn().unwrap();
                tokio::time::sleep(Duration::from_micros(random_below(60_000))).await;
                starting.kill().unwrap();
                starting.wait().unwrap();
            }
            1 => {
                let mut asking = ringwire(&state)
                    .args(["show", "streams"])
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .unwrap();
                tokio::time::sleep(Duration::from_micros(random_below(30_000))).await;
                planes.kill_control();
                asking.wait().unwrap();
            }
            _ => {
                tokio::time::sleep(Duration::from_micros(random_below(50_000))).await;
                planes.kill_control();
            }
        }
        planes.run_again(&state, &[]);
        assert_eq!(planes.dataplane_pid, dataplane, "the same data plane");
        let opened = counter(&state, "sessions_opened_total");
        assert!(opened >= opened_before, "counters go on: {opened_before}, then {opened}");
        opened_before = opened;
    }
    let rate = load.rate();
    let done = load.end().await;
    println!("{kills} kills, {rate:.0} sessions/s, {done:?}");
    assert!(done.bytes > 0 && done.sessions > 0, "{done:?}");
    until_lists_agree(&state);
    assert!(counter(&state, "sessions_opened_total") >= done.sessions);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_that_stands_still_costs_the_data_plane_nothing() {
    let still = Duration::from_secs(size("RINGWIRE_STOP_SECONDS", 3));
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().to_owned();
    let planes = Planes::try_start(&state, &EVERYWHERE).unwrap();
    let address = planes.address();
    let keeper = session(&address).await;
    // What is resident from use is so before the measurement.
    Load::begin(&address, 8).await.end().await;
    let load = Load::begin(&address, 8).await;
    tokio::time::sleep(still / 2).await;
    let (rate_before, before_kib) = (load.rate(), resident_kib(planes.dataplane_pid));
    let before = load.end().await;

    send(planes.control_pid(), Signal::STOP);
    let load = Load::begin(&address, 8).await;
    tokio::time::sleep(still).await;
    let (rate_during, during_kib) = (load.rate(), resident_kib(planes.dataplane_pid));
    let during = load.end().await;
    send(planes.control_pid(), Signal::CONT);
    println!(
        "attended: {rate_before:.0} sessions/s, worst ping {:?}, {before_kib} KiB; alone for {:?}: {rate_during:.0} sessions/s, \
         worst ping {:?}, {during_kib} KiB",
        before.worst_ping, during.lasted, during.worst_ping
    );
    assert!(during_kib < before_kib + 16 * 1024, "{before_kib} KiB, then {during_kib} KiB");

    assert!(until_lists_agree(&state) > 0);
    let opened = counter(&state, "sessions_opened_total");
    assert!(opened >= before.sessions + during.sessions, "{opened}");
    let key = keeper.public_key().to_string();
    let closed = json(&state, &["close", &key]);
    assert_eq!(closed["count"], 1);
    until("the closed session is shown with its reason", || {
        let closed = json(&state, &["show", "sessions", "--closed"]);
        closed["closed"].as_array().unwrap().iter().any(|session| {
            session["public_key"] == key.as_str()
                && session["reason"] == "ordered"
                && session["lasted_s"].is_f64()
        })
    });
    let gone = ringwire(&state).args(["close", &key]).output().unwrap();
    assert_eq!(gone.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&gone.stderr).contains("show sessions"), "{gone:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_plane_that_is_killed_is_replaced_on_the_same_address() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().to_owned();
    let planes = Planes::start(&state, &[]);
    let address = planes.address();
    let lost = session(&address).await;
    let killed = Instant::now();
    send(planes.dataplane_pid, Signal::KILL);
    // Its ring may still accept while it dies, and what it accepted ends with it.
    until("it is gone", || !is_alive(planes.dataplane_pid));
    // The listener never closes: whoever connects in between is answered by the successor.
    let back = session(&address).await;
    println!("a client is back {:?} after the data plane was killed", killed.elapsed());
    back.ping().await.unwrap();
    assert!(lost.ping().await.is_err());
    until("another one is noted", || planes.noted_dataplane() != Some(planes.dataplane_pid));
    assert!(until_lists_agree(&state) > 0);
    let status = json(&state, &["status"]);
    assert_eq!(status["control"]["losses"], 1);
    let shown = String::from_utf8(ringwire(&state).arg("status").output().unwrap().stdout).unwrap();
    let line = shown.lines().find(|line| line.contains("lost")).unwrap_or_else(|| panic!("{shown}"));
    assert!(line.starts_with("  data plane   was lost 1 time since"), "{shown}");
    assert!(!shown.contains("went away"), "{shown}");
    assert_ne!(status["dataplane"]["pid"], planes.dataplane_pid);
    assert_eq!(status["dataplane"]["addresses"][0], planes.ready["address"]);
}

#[test]
fn an_orphan_is_shown_attached_to_and_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path();
    let mut planes = Planes::start(state, &[]);
    let dataplane = planes.dataplane_pid;
    planes.kill_control();

    let status = ringwire(state).args(["status", "--json"]).output().unwrap();
    assert_eq!(status.status.code(), Some(3), "{status:?}");
    let status = json_of(&status);
    assert_eq!(status["control"], Value::Null);
    assert_eq!(status["dataplane"]["pid"], dataplane);
    let status = ringwire(state).arg("status").output().unwrap();
    let text = String::from_utf8(status.stdout).unwrap();
    assert!(text.contains("not running") && text.contains("ringwire stop"), "{text}");
    assert_eq!(json(state, &["show", "sessions", "--from", "dataplane"])["sessions"], Value::Array(vec![]));
    let sessions = ringwire(state).args(["show", "sessions", "--from", "control"]).output().unwrap();
    assert_eq!(sessions.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&sessions.stderr).contains("ringwire run"), "{sessions:?}");
    // Who does not mind whose list it is has the data plane's.
    let sessions = ringwire(state).args(["show", "sessions", "--json"]).output().unwrap();
    assert_eq!(json_of(&sessions)["from"], "dataplane");
    assert!(String::from_utf8_lossy(&sessions.stderr).contains("no control plane answers"), "{sessions:?}");

    // Left alone on purpose, and found again.
    planes.run_again(state, &[]);
    assert_eq!(planes.dataplane_pid, dataplane);
    json(state, &["stop", "--leave-dataplane"]);
    assert_eq!(planes.exit_code(), Some(0));
    assert!(is_alive(dataplane));

    let stopped = ringwire(state).arg("stop").output().unwrap();
    assert!(stopped.status.success(), "{stopped:?}");
    assert!(!is_alive(dataplane));
    assert!(!state.join("server.json").exists());
    let nothing = ringwire(state).arg("stop").output().unwrap();
    assert_eq!(nothing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("nothing runs"), "{nothing:?}");
    assert_eq!(ringwire(state).arg("status").output().unwrap().status.code(), Some(1));
}

#[test]
fn an_orphan_ends_by_itself_after_its_limit() {
    let directory = tempfile::tempdir().unwrap();
    // In either unit, and with either dash.
    for limit in ["--orphan-limit=0.3", "--orphan_limit_s=0.3", "--orphan-limit-ms=300"] {
        let mut planes = Planes::try_start(directory.path(), &["--listen", "127.0.0.1:0", limit]).unwrap();
        let settings = json(directory.path(), &["show", "settings"]);
        assert_eq!(settings["settings"]["orphan_limit_ms"], 300, "{settings}");
        std::thread::sleep(Duration::from_millis(600));
        assert!(is_alive(planes.dataplane_pid), "not while it is attended");
        planes.kill_control();
        until("the orphan ends", || !is_alive(planes.dataplane_pid));
    }
}

#[test]
fn an_order_to_stop_ends_both() {
    let directory = tempfile::tempdir().unwrap();
    let mut planes = Planes::start(directory.path(), &[]);
    let done = json(directory.path(), &["stop"]);
    assert!(done["message"].as_str().unwrap().contains("both"), "{done}");
    assert_eq!(planes.exit_code(), Some(0));
    assert!(!is_alive(planes.dataplane_pid));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_is_shown_with_its_own_age_and_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path();
    let planes = Planes::start(state, &[]);
    let _load = Load::begin(&planes.address(), 0).await;
    let before = json(state, &["status"]);
    assert_eq!(before["dataplane"]["draining_s"], Value::Null);
    let serving = ringwire(state).arg("status").output().unwrap();
    assert!(String::from_utf8_lossy(&serving.stdout).contains(", serving for "), "{serving:?}");
    tokio::time::sleep(Duration::from_millis(1200)).await;
    json(state, &["drain", "--within", "5000"]);
    let status = json(state, &["status"]);
    let of = |name: &str| status["dataplane"][name].as_f64().unwrap_or_else(|| panic!("{name}: {status}"));
    assert_eq!(status["dataplane"]["state"], "draining");
    assert!(of("draining_s") + 1.0 < of("serving_s"), "not the server's age: {status}");
    let all = of("draining_s") + of("drain_left_s");
    assert!((4999.0..5001.0).contains(&all), "{status}");
    let shown = ringwire(state).arg("status").output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("draining for ") && shown.contains(" at the latest, up "), "{shown}");
    assert!(shown.contains("listening    no more"), "{shown}");
}

#[test]
fn a_drain_ends_both_when_nobody_is_left() {
    let directory = tempfile::tempdir().unwrap();
    let mut planes = Planes::start(directory.path(), &[]);
    json(directory.path(), &["drain", "--within", "20"]);
    assert_eq!(planes.exit_code(), Some(0));
    until("the data plane ends", || !is_alive(planes.dataplane_pid));
    assert!(!directory.path().join("server.json").exists());
}

#[test]
fn an_interrupt_of_the_whole_foreground_ends_both_cleanly() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = ringwire(directory.path());
    command.args(["run", "--json", "--listen", "127.0.0.1:0", "--orphan-limit", "60"]);
    // As a terminal has it: the program leads the group that Ctrl-C goes to.
    let mut control = command.process_group(0).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(control.stdout.take().unwrap()), &mut line)
        .unwrap();
    let ready: Value = serde_json::from_str(&line).unwrap();
    let dataplane = ready["dataplane_pid"].as_u64().unwrap() as u32;
    let group = rustix::process::Pid::from_raw(control.id() as i32).unwrap();
    rustix::process::kill_process_group(group, Signal::INT).unwrap();
    assert_eq!(control.wait().unwrap().code(), Some(0));
    assert!(!is_alive(dataplane));
}

#[test]
fn a_second_control_plane_is_refused_and_names_the_first() {
    let directory = tempfile::tempdir().unwrap();
    let planes = Planes::start(directory.path(), &[]);
    let second = ringwire(directory.path()).args(["run"]).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let text = String::from_utf8(second.stderr).unwrap();
    assert!(text.contains(&format!("process {}", planes.program_pid())), "{text}");
    assert!(text.contains("ringwire stop") && text.contains("--state"), "{text}");
    assert!(is_alive(planes.control_pid()) && is_alive(planes.dataplane_pid));
}

fn wanted(state: &Path) -> Wanted {
    let state = State::locate(Some(state.to_owned())).unwrap();
    let key = state.key().unwrap();
    Wanted {
        state,
        key,
        settings: Settings::default(),
        program: None,
        layout: ringwire_ipc::LAYOUT_HASH,
        log: None,
        log_sessions: false,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_that_does_not_fit_is_refused_with_the_cure_and_traffic_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path();
    let planes = Planes::try_start(state, &[&EVERYWHERE[..], &["--driver", "poll"]].concat()).unwrap();
    let load = Load::begin(&planes.address(), 1).await;

    let other_build = Wanted { layout: ringwire_ipc::LAYOUT_HASH ^ 1, ..wanted(state) };
    let error = supervise::start(other_build).await.unwrap_err();
    assert!(matches!(error, ObtainError::Layout { pid, .. } if pid == planes.dataplane_pid), "{error}");
    assert!(error.to_string().contains("ringwire stop"), "{error}");

    let other_key = Wanted { key: SecretKey::generate(&mut OsEntropy), ..wanted(state) };
    let error = supervise::start(other_key).await.unwrap_err();
    assert!(matches!(error, ObtainError::OtherKey { .. }), "{error}");
    assert!(error.to_string().contains(planes.ready["public_key"].as_str().unwrap()), "{error}");

    let settings = Settings { driver: Some("uring".into()), ..Settings::default() };
    let error = supervise::start(Wanted { settings, ..wanted(state) }).await.unwrap_err();
    assert!(matches!(error, ObtainError::OtherSettings { .. }), "{error}");
    assert!(error.to_string().contains("its driver is poll where uring is asked for"), "{error}");

    let done = load.end().await;
    assert!(done.bytes > 0, "{done:?}");
    let status = json(state, &["status"]);
    assert_eq!(status["control"]["attached"], true, "who was attached still is: {status}");
    assert_eq!(status["control"]["losses"], 0);
    assert_eq!(status["dataplane"]["epoch"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_change_while_it_runs() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path();
    let planes = Planes::start(state, &["--hybrid", "off"]);
    let hybrid = || json(state, &["show", "sessions"])["sessions"][0]["hybrid"].clone();
    let classical = session(&planes.address()).await;
    until("the session is listed", || hybrid() == false);
    drop(classical);
    json(state, &["set", "hybrid", "require"]);
    until("the session is gone", || hybrid() == Value::Null);
    let _hybrid = session(&planes.address()).await;
    until("the session is listed", || hybrid() == true);
    // As the file has it, and as a flag would be.
    for (name, set) in [("company_us", "company_us"), ("company_us", "company-us"), ("pause_us", "pause-us")]
    {
        let value = set.len() + usize::from(set.contains('-'));
        let done = json(state, &["set", set, &value.to_string()]);
        assert_eq!(done["message"], format!("{name} is {value} from now on"));
        until("it is in force", || json(state, &["show", "settings"])["settings"][name] == value);
    }
    for (name, cure) in [("half-open-max", "half_open_max holds until"), ("company", "no setting `company`")]
    {
        let refused = ringwire(state).args(["set", name, "1"]).output().unwrap();
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(1) && text.contains(cure), "{text}");
        assert!(text.contains("hybrid, company_us, pause_us"), "{text}");
    }
    let refused = ringwire(state).args(["set", "hybrid", "maybe"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("off, offer, require"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_on_is_shown_to_people_and_programs() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path();
    let planes = Planes::start(state, &[]);
    let load = Load::begin(&planes.address(), 0).await;
    until("the bridge is listed", || {
        json(state, &["show", "streams"])["streams"][0]["forth_bytes"].as_u64().is_some_and(|bytes| bytes > 0)
    });
    assert_eq!(json(state, &["show", "streams"])["missing"], 0);
    let limits = json(state, &["show", "limits"]);
    let memory = &limits["limits"][0];
    assert!(
        memory["used"].as_u64().unwrap() > 0 && memory["value"].as_u64() > memory["used"].as_u64(),
        "{limits}"
    );
    let origin = memory["origin"].as_str().unwrap();
    assert!(
        origin.contains("the machine's memory") || origin.contains("the control group's limit"),
        "{origin}"
    );
    let named =
        |name| limits["limits"].as_array().unwrap().iter().find(|limit| limit["name"] == name).unwrap();
    assert_eq!(named("connections")["used"], 3, "{limits}");
    assert_eq!(named("connections")["value"], json(state, &["status"])["dataplane"]["connections_max"]);
    for (arguments, word) in [
        (&["status"][..], "attached"),
        (&["show", "sessions"], "3 sessions\n"),
        (&["show", "sessions", "--closed"], "reason"),
        (&["show", "streams"], "1 bridge\n"),
        (&["show", "streams", "--from", "dataplane"], "1 bridge\n"),
        (&["show", "counters"], "sessions_opened_total"),
        (&["show", "limits"], "half-open-connections"),
        (&["show", "limits"], "MiB"),
        (&["show", "limits"], "buffer-memory: "),
    ] {
        let output = ringwire(state).args(arguments).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains(word), "{arguments:?}: {text}");
    }
    load.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_may_be_named_by_its_first_digits() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path();
    let planes = Planes::start(state, &[]);
    // Two that begin alike, and a third.
    let (mut first, mut second, mut other) = (None, None, None);
    let mut seen = std::collections::HashMap::new();
    while first.is_none() || other.is_none() {
        let key = SecretKey::generate(&mut OsEntropy);
        let head = key.public_key().to_string()[..4].to_owned();
        match seen.remove(&head) {
            Some(former) if first.is_none() => (first, second) = (Some((head, former)), Some(key)),
            _ if first.as_ref().is_some_and(|(alike, _)| *alike != head) => other = Some(key),
            _ => drop(seen.insert(head, key)),
        }
    }
    let ((alike, first), second, other) = (first.unwrap(), second.unwrap(), other.unwrap());
    let keys = [&first, &second, &other].map(|key| key.public_key().to_string());
    let mut sessions = Vec::new();
    for key in [first, second, other] {
        let mut config = SessionConfig::new(key, planes.address());
        config.first_frame_pause = Duration::ZERO;
        sessions.push(common::connect(config).await);
    }
    let mut listener = sessions[2].listen(9).unwrap();
    let _bridge = common::pair(&sessions[0], &sessions[2], &mut listener).await;
    let listed = |words: &[&str], list: &str, name: &str| {
        let answer = json(state, words);
        let rows = answer[list].as_array().unwrap_or_else(|| panic!("{answer}"));
        rows.iter().map(|row| row[name].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    until("all are listed", || listed(&["show", "sessions"], "sessions", "public_key").len() == 3);
    let head = &keys[2][..4];
    for from in ["control", "dataplane"] {
        let sessions = ["show", "sessions", head, "--from", from];
        assert_eq!(listed(&sessions, "sessions", "public_key"), [keys[2].as_str()]);
        let streams = ["show", "streams", head, "--from", from];
        assert_eq!(listed(&streams, "streams", "source"), [keys[0].as_str()]);
    }
    // As tables show it, and a whole one that has no stream.
    let short = format!("{}..{}", &keys[1][..10], &keys[1][62..]);
    assert_eq!(listed(&["show", "sessions", &short], "sessions", "public_key"), [keys[1].as_str()]);
    assert!(listed(&["show", "streams", &keys[1]], "streams", "source").is_empty());

    let refused = |words: &[&str]| {
        let output = ringwire(state).args(words).arg("--json").output().unwrap();
        assert_ne!(output.status.code(), Some(0), "{words:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    for words in [
        &["close", &alike][..],
        &["show", "sessions", &alike],
        &["show", "sessions", &alike, "--from", "dataplane"],
    ] {
        let text = refused(words);
        assert!(text.contains(&keys[0]) && text.contains(&keys[1]) && !text.contains(&keys[2]), "{text}");
    }
    for words in [&["close", "02"][..], &["show", "sessions", "027"], &["show", "streams", "nobody&key=02"]] {
        assert!(refused(words).contains("4 of the first"), "{words:?}");
    }
    assert!(refused(&["close", "02ffffffffffffff"]).contains("no key begins with"));
    assert_eq!(listed(&["show", "sessions"], "sessions", "public_key").len(), 3, "nobody was closed");

    let done = json(state, &["close", head]);
    assert!(done["count"] == 1 && done["message"].to_string().contains(&keys[2]), "{done}");
    until("it is gone", || listed(&["show", "sessions"], "sessions", "public_key").len() == 2);
    until("it is listed as closed", || {
        let closed = ringwire(state).args(["show", "sessions", "--closed", head, "--json"]).output().unwrap();
        closed.status.success() && json_of(&closed)["closed"][0]["public_key"] == keys[2]
    });
}

#[test]
fn signals_of_one_act_end_both_planes() {
    let directory = tempfile::tempdir().unwrap();
    let mut planes = Planes::start(directory.path(), &[]);
    // As `timeout` does it, and a terminal with its shell.
    for signal in [Signal::TERM, Signal::INT, Signal::TERM] {
        planes.signal(signal);
    }
    assert_eq!(planes.exit_code(), Some(0));
    until("the data plane is gone", || !is_alive(planes.dataplane_pid));
}

#[test]
fn the_admin_socket_is_its_owners_alone() {
    let directory = tempfile::tempdir().unwrap();
    let _planes = Planes::start(directory.path(), &[]);
    for name in ["control.sock", "dataplane.sock", "key", "server.json", "lock"] {
        let mode = std::fs::metadata(directory.path().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{name}");
    }
}

/// What a process tells systemd until it has said all of `words`.
fn until_told(socket: &std::os::unix::net::UnixDatagram, words: &[&str]) {
    socket.set_read_timeout(Some(common::process::PATIENCE)).unwrap();
    let (mut heard, mut message) = (String::new(), [0; 4096]);
    while !words.iter().all(|word| heard.contains(word)) {
        let len = socket.recv(&mut message).unwrap_or_else(|error| panic!("{error} after: {heard}"));
        heard.push_str(std::str::from_utf8(&message[..len]).unwrap());
        heard.push('\n');
    }
}

#[test]
fn as_two_units_each_tells_systemd_that_it_is_ready_and_lives() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path();
    let hear = |name: &str| std::os::unix::net::UnixDatagram::bind(state.join(name)).unwrap();
    let (of_dataplane, of_control) = (hear("dataplane.notify"), hear("control.notify"));
    let mut command = ringwire(state);
    command.args(["dataplane", "--start-within", "60"]);
    command.env("NOTIFY_SOCKET", state.join("dataplane.notify")).env("WATCHDOG_USEC", "200000");
    let mut dataplane = command.spawn().unwrap();
    until_told(&of_dataplane, &["READY=1", "WATCHDOG=1"]);

    let mut command = ringwire(state);
    command.args(["run", "--json", "--no-spawn", "--leave-dataplane", "--listen", "127.0.0.1:0"]);
    command.args(["--orphan-limit", "60"]).stdout(Stdio::null());
    command.env("NOTIFY_SOCKET", state.join("control.notify")).env("WATCHDOG_USEC", "200000");
    let mut control = command.spawn().unwrap();
    until_told(&of_control, &["READY=1", "WATCHDOG=1", "STATUS=attached to data plane"]);

    // A restart of the one is not felt by the other.
    send(control.id(), Signal::TERM);
    until_told(&of_control, &["STOPPING=1"]);
    assert!(control.wait().unwrap().success());
    assert!(dataplane.try_wait().unwrap().is_none());
    assert!(ringwire(state).arg("stop").status().unwrap().success());
    assert!(dataplane.wait().unwrap().success());
}
