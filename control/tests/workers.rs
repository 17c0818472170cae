//! `ringwire run --workers N`: what an operator sees of several workers, which is one server.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail")]

mod common;

use std::path::Path;
use std::time::Duration;

use common::process::{Planes, is_alive, json, json_of, ringwire, send, until};
use ringwire::dmsg::{ServerAddress, Session, SessionConfig};
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_proto::identity::{Address, SecretKey};
use rustix::process::Signal;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A session that the server has filed.
async fn session(server: &ServerAddress) -> Session {
    let mut config = SessionConfig::new(SecretKey::generate(&mut OsEntropy), server.clone());
    config.first_frame_pause = Duration::ZERO;
    common::connect(config).await
}

/// As [`session`], of a client that was caught and comes again: what the ring of a killed process accepts while the kernel takes it
/// apart ends with it.
async fn session_after_a_kill(server: &ServerAddress) -> Session {
    for _ in 0..50 {
        let mut config = SessionConfig::new(SecretKey::generate(&mut OsEntropy), server.clone());
        config.first_frame_pause = Duration::ZERO;
        if let Ok(session) = Session::connect(config).await
            && session.ping().await.is_ok()
        {
            return session;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    session(server).await
}

/// The session of a key in the list of all, once it is there.
fn listed(state: &Path, key: &str) -> Value {
    let mut found = Value::Null;
    until("the session is listed", || {
        let list = json(state, &["show", "sessions"]);
        let of_key = |session: &&Value| session["public_key"] == key;
        found = list["sessions"].as_array().unwrap().iter().find(of_key).cloned().unwrap_or_default();
        found != Value::Null
    });
    found
}

/// A session on each of two workers: the kernel decides which has whom, so it is tried until both have one.
async fn one_on_each(planes: &Planes, state: &Path) -> [Session; 2] {
    let mut all = [None, None];
    for _ in 0..100 {
        let session = session(&planes.address()).await;
        let worker = listed(state, &session.public_key().to_string())["worker"].as_u64().unwrap();
        all[worker as usize].get_or_insert(session);
        if let [Some(_), Some(_)] = &all {
            return all.map(Option::unwrap);
        }
    }
    panic!("of 100 sessions all came to one worker");
}

fn two_workers_are_one_server(driver: &str) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path();
        let mut planes = Planes::start(state, &["--workers", "2", "--driver", driver]);
        let status = json(state, &["status"]);
        assert_eq!(status["dataplane"]["workers"], 2, "{status}");
        assert_eq!(status["dataplane"]["addresses"].as_array().unwrap().len(), 1, "{status}");
        assert_eq!(status["dataplane"]["fault"], Value::Null);
        assert_eq!(planes.ready["addresses"].as_array().unwrap().len(), 1, "{}", planes.ready);

        // Sixteen sessions, so that bridges of all kinds are among them.
        let bench = ["bench", "bridge", "--json", "--seconds", "1", "--pairs", "8", "--streams", "1"];
        let output = ringwire(state).args(bench).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let report = json_of(&output);
        assert_eq!(report["verified"], true, "{report}");
        assert!(report["bytes"].as_u64().unwrap() > 4 << 20, "{report}");
        let counters = json(state, &["show", "counters"]);
        for name in ["sessions_opened_total", "bridged_bytes_total"] {
            let of_worker = |worker: usize| counters["workers"][worker][name].as_u64().unwrap();
            assert!(of_worker(0) > 0 && of_worker(1) > 0, "{name}: {counters}");
            assert_eq!(counters["total"][name], of_worker(0) + of_worker(1));
        }

        let [one, two] = one_on_each(&planes, state).await;
        let mut listener = two.listen(80).unwrap();
        let to = Address { key: two.public_key(), port: 80 };
        let (near, far) = tokio::join!(one.dial(to), listener.accept());
        let (mut near, mut far) = (near.unwrap(), far.unwrap());
        near.write_all(b"across").await.unwrap();
        let mut read = [0; 6];
        far.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"across");
        for from in ["control", "dataplane"] {
            let streams = json(state, &["show", "streams", "--from", from]);
            assert_eq!((streams["streams"].as_array().unwrap().len(), &streams["missing"]), (1, &0.into()));
            assert_eq!(streams["streams"][0]["destination"], two.public_key().to_string(), "{streams}");
        }
        // Live settings reach both, wherever the next session lands.
        json(state, &["set", "hybrid", "off"]);
        for classical in one_on_each(&planes, state).await {
            assert_eq!(listed(state, &classical.public_key().to_string())["hybrid"], false);
        }
        let limits = json(state, &["show", "limits"]);
        let half_open =
            limits["limits"].as_array().unwrap().iter().find(|row| row["name"] == "half-open-connections");
        assert_eq!(half_open.unwrap()["value"], status["dataplane"]["half_open_max"]);
        for session in [&one, &two] {
            let key = session.public_key().to_string();
            assert_eq!(json(state, &["close", &key])["count"], 1);
            let again = ringwire(state).args(["close", &key]).output().unwrap();
            assert_eq!(again.status.code(), Some(1), "no worker has it any more");
        }
        let output = ringwire(state).arg("stop").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(planes.exit_code(), Some(0));
        assert!(!is_alive(planes.dataplane_pid));
    });
}

#[test]
fn two_workers_are_one_server_on_the_poll_driver() {
    two_workers_are_one_server("poll");
}

#[test]
fn two_workers_are_one_server_on_the_usual_driver() {
    two_workers_are_one_server("auto");
}

#[test]
fn an_address_is_shared_by_workers_and_by_nobody_else() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let planes = Planes::start(ours.path(), &["--workers", "2"]);
    let address = planes.ready["address"].as_str().unwrap();
    for workers in ["1", "2"] {
        let output = ringwire(theirs.path())
            .args(["run", "--listen", address, "--workers", workers, "--json"])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(address) && text.contains("Another program has it"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn either_plane_may_die_and_both_workers_are_there_again() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path();
    let mut planes = Planes::start(state, &["--workers", "2"]);
    let [one, two] = one_on_each(&planes, state).await;
    planes.kill_control();
    let refused = Planes::try_start(state, &["--workers", "3"]);
    assert!(refused.is_err(), "a living data plane keeps its workers");
    planes.run_again(state, &["--workers", "2"]);
    for session in [&one, &two] {
        session.ping().await.unwrap();
        listed(state, &session.public_key().to_string());
    }
    until("the list is true", || json(state, &["show", "sessions"])["current"] == true);

    // Its successor has the listeners of both; whoever comes in between waits there, or comes again.
    send(planes.dataplane_pid, Signal::KILL);
    until("it is gone", || !is_alive(planes.dataplane_pid));
    session_after_a_kill(&planes.address()).await.ping().await.unwrap();
    until("another one is noted", || planes.noted_dataplane() != Some(planes.dataplane_pid));
    one_on_each(&planes, state).await;
    let status = json(state, &["status"]);
    assert_eq!((&status["dataplane"]["workers"], &status["control"]["losses"]), (&2.into(), &1.into()));
}

#[test]
fn there_is_a_bound_of_workers() {
    let directory = tempfile::tempdir().unwrap();
    for workers in ["0", "65", "-1"] {
        let output = ringwire(directory.path()).args(["run", "--workers", workers]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
}

/// Cores that the threads of a process with this name may run on, as the kernel lists them.
fn cores_of(process: u32, thread: &str) -> Vec<String> {
    let line = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let tasks = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).ok());
    tasks.filter(|text| line(text, "Name:") == thread).map(|text| line(&text, "Cpus_allowed_list:")).collect()
}

#[test]
fn workers_are_kept_on_the_cores_that_were_named() {
    let ours = rustix::thread::sched_getaffinity(None).unwrap();
    let core = (0..1024).find(|core| ours.is_set(*core)).unwrap().to_string();
    let directory = tempfile::tempdir().unwrap();
    let planes = Planes::start(directory.path(), &["--first-core", &core]);
    assert_eq!(cores_of(planes.dataplane_pid, "worker-0"), [core]);
    drop(planes);

    // Not even with one worker is there such a core.
    let directory = tempfile::tempdir().unwrap();
    let output = ringwire(directory.path()).args(["run", "--first-core", "1023"]).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("first_core is `1023`") && text.contains("may run on"), "{text}");
    assert!(text.trim_end().ends_with("Nothing was started."), "{text}");
}
