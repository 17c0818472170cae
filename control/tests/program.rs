//! The program as people run it: processes, signals, files, exit codes.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};

use common::process::{Planes, is_alive, json_of as json, ringwire, send, until};
use rustix::process::Signal;
use serde_json::Value;

/// A child process that does not outlive the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn run_then_bench_then_stop() {
    let state = tempfile::tempdir().unwrap();
    let mut server = Planes::start(state.path(), &[]);
    let ready = server.ready.clone();
    assert_eq!(ready["event"], "ready");
    assert_ne!(ready["control_pid"], server.program_pid(), "what was started looks after it");
    assert_ne!(ready["dataplane_pid"], ready["control_pid"]);
    assert!(ready["discovery"].as_str().unwrap().starts_with("http://127.0.0.1:"), "{ready}");
    assert_eq!(ready["http"], Value::Null);
    assert_eq!(ready["public_key"].as_str().unwrap().len(), 66);
    let note: Value =
        serde_json::from_slice(&std::fs::read(state.path().join("server.json")).unwrap()).unwrap();
    assert_eq!(note["address"], ready["address"]);
    assert_eq!(note["discovery"], ready["discovery"]);

    for arguments in [
        &["--mode", "bulk"][..],
        &["--mode", "bulk", "--go-frames", "--write-size", "10000", "--hybrid", "require"],
        &["--mode", "bulk", "--go-frames", "--go-writes"],
        &["--mode", "bulk", "--write-size", "16", "--pairs", "1"],
        &["--mode", "latency", "--streams", "1"],
    ] {
        let mut seconds = ["0.5", "3", "20"].into_iter();
        // On a machine that is busy elsewhere half a second may pass without a byte: then a longer run.
        let report = loop {
            let Some(seconds) = seconds.next() else { panic!("{arguments:?}: nothing moves") };
            let output = ringwire(state.path())
                .args(["bench", "bridge", "--json", "--seconds", seconds])
                .args(arguments)
                .output()
                .unwrap();
            assert!(output.status.success(), "{arguments:?}: {output:?}");
            let report = json(&output);
            assert_eq!(report["verified"], true, "{report}");
            if report["bytes"].as_u64().unwrap() > 0 {
                break report;
            }
        };
        assert!(report["server_rss_bytes"].as_u64().unwrap() > 0, "{report}");
        assert!(report["bits_per_second"].as_f64().unwrap() > 0.0, "{report}");
        let latency = arguments.contains(&"latency");
        assert_eq!(report["latency_us"]["p99"].is_f64(), latency, "{report}");
        assert_eq!(report["server_cpu_s_per_gib"].is_f64(), !latency, "{report}");
    }

    server.signal(Signal::TERM);
    assert_eq!(server.exit_code(), Some(0));
    assert!(!is_alive(server.dataplane_pid));
    assert!(!state.path().join("server.json").exists());
    let output = ringwire(state.path()).args(["bench", "bridge"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("ringwire run"), "{output:?}");

    // The key stays.
    let mut again = Planes::start(state.path(), &[]);
    assert_eq!(again.ready["public_key"], ready["public_key"]);
    again.signal(Signal::INT);
    assert_eq!(again.exit_code(), Some(0));
}

#[test]
fn the_driver_is_a_choice() {
    let state = tempfile::tempdir().unwrap();
    let server = Planes::start(state.path(), &["--driver", "poll"]);
    let ready = &server.ready;
    assert_eq!(ready["driver"], "poll");
    let output =
        ringwire(state.path()).args(["bench", "bridge", "--json", "--seconds", "0.5"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(json(&output)["verified"], true);
}

#[test]
fn the_table_is_for_people() {
    let state = tempfile::tempdir().unwrap();
    let server = Planes::start(state.path(), &[]);
    let ready = &server.ready;
    let address = format!("{}@{}", ready["public_key"].as_str().unwrap(), ready["address"].as_str().unwrap());
    let elsewhere = tempfile::tempdir().unwrap();
    let output = ringwire(elsewhere.path())
        .args(["bench", "bridge", "--seconds", "0.3", "--server", &address])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let table = text(&output.stdout);
    assert!(table.contains("every byte arrived unchanged"), "{table}");
    assert!(table.contains("--server-pid"), "{table}");
    assert!(output.stderr.is_empty(), "no bar without a terminal: {output:?}");
}

#[test]
fn the_ready_text_says_what_to_type_next() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("somebody's directory");
    let mut command = ringwire(&state);
    command.args(["run", "--listen", "127.0.0.1:0", "--orphan-limit", "60"]).stdout(Stdio::piped());
    let mut server = Process(command.spawn().unwrap());
    let mut reader = BufReader::new(server.0.stdout.take().unwrap());
    let mut shown = String::new();
    while !shown.contains("Ctrl-C") {
        assert!(reader.read_line(&mut shown).unwrap() > 0, "{shown}");
    }
    assert!(shown.contains("for this machine only"), "{shown}");
    // As it is shown, a shell takes it, and it finds the server.
    let next = shown.lines().find(|line| line.contains(" status ")).unwrap();
    assert!(next.contains(env!("CARGO_BIN_EXE_ringwire")), "{shown}");
    let mut shell = std::process::Command::new("/bin/sh");
    let output = shell.args(["-c", next]).env_remove("RINGWIRE_STATE").output().unwrap();
    assert!(output.status.success(), "{next}: {output:?}");
    assert!(shown.lines().any(|line| line.contains(" bench bridge --state ")), "{shown}");
    send(server.0.id(), Signal::INT);
    assert!(server.0.wait().unwrap().success());
    assert!(!state.join("server.json").exists());
    assert!(!state.join("control.sock").exists() && !state.join("dataplane.sock").exists());
}

#[test]
fn a_busy_port_is_named_with_its_cure() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let state = tempfile::tempdir().unwrap();
    let output = ringwire(state.path()).args(["run", "--listen", &address]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let shown = text(&output.stderr);
    assert!(shown.contains(&address) && shown.contains("--listen"), "{shown}");
    assert!(!state.path().join("server.json").exists());
}

#[test]
fn a_start_that_fails_late_leaves_no_data_plane_behind() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state of one");
    // The note cannot be written, as on a full disk: by then the data plane serves.
    std::fs::create_dir_all(state.join("server.json").join("in the way")).unwrap();
    std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o700)).unwrap();
    let output = ringwire(&state).args(["run", "--listen", "127.0.0.1:0"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(error.contains("cannot write") && error.contains("server.json"), "{error}");
    assert!(error.contains("--state"), "{error}");
    let left = ringwire(&state).arg("status").output().unwrap();
    assert_eq!(left.status.code(), Some(1), "nothing runs: {}", text(&left.stdout));
    assert!(!state.join("dataplane.sock").exists() && !state.join("control.sock").exists());
}

#[test]
fn an_exposed_key_stops_the_start() {
    let state = tempfile::tempdir().unwrap();
    let key = state.path().join("key");
    std::fs::write(&key, format!("{}\n", "11".repeat(32))).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let output = ringwire(state.path()).args(["run", "--listen", "127.0.0.1:0"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains(&format!("chmod 600 {}", key.display())), "{output:?}");
}

#[test]
fn exit_codes_tell_failure_from_misuse() {
    let state = tempfile::tempdir().unwrap();
    let code = |arguments: &[&str]| ringwire(state.path()).args(arguments).output().unwrap().status.code();
    assert_eq!(code(&["--help"]), Some(0));
    assert_eq!(code(&["bench", "bridge", "--help"]), Some(0));
    assert_eq!(code(&["run", "--listen", "nowhere"]), Some(2));
    assert_eq!(code(&["bench", "bridge", "--server", "127.0.0.1:8081"]), Some(2));
    assert_eq!(code(&["bench", "bridge", "--seconds", "0"]), Some(2));
    assert_eq!(code(&[]), Some(2));
    assert_eq!(code(&["bench", "bridge"]), Some(1));
}

#[test]
fn a_server_that_dies_during_a_run_fails_the_run() {
    let state = tempfile::tempdir().unwrap();
    let server = Planes::start(state.path(), &[]);
    let mut bench = ringwire(state.path());
    bench
        .args(["bench", "bridge", "--json", "--seconds", "20"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut bench = Process(bench.spawn().unwrap());
    until("bytes flow", || {
        let counters = json(&ringwire(state.path()).args(["show", "counters", "--json"]).output().unwrap());
        counters["total"]["bridged_bytes_total"].as_u64().unwrap() > 1_000_000
    });
    send(server.dataplane_pid, Signal::KILL);
    let mut ended = None;
    until("the bench ends", || {
        ended = bench.0.try_wait().unwrap();
        ended.is_some()
    });
    assert_eq!(ended.unwrap().code(), Some(1));
    until("another one is noted", || server.noted_dataplane() != Some(server.dataplane_pid));
    let mut shown = String::new();
    bench.0.stdout.take().unwrap().read_to_string(&mut shown).unwrap();
    let report: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(report["verified"], false, "{report}");
    assert!(!report["errors"].as_array().unwrap().is_empty(), "{report}");
}

#[test]
fn a_data_plane_comes_back_although_the_programs_file_is_gone() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (file, state) = (directory.path().join("ringwire"), directory.path().join("s"));
    // Another name of the same file, or a copy where that cannot be.
    std::fs::hard_link(env!("CARGO_BIN_EXE_ringwire"), &file)
        .or_else(|_| std::fs::copy(env!("CARGO_BIN_EXE_ringwire"), &file).map(drop))
        .unwrap();
    let arguments = ["--listen", "127.0.0.1:0", "--orphan-limit", "60"];
    let server = Planes::try_start_of(Command::new(&file), &state, &arguments).unwrap();
    let name = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    assert_eq!(name(server.dataplane_pid), "ringwire\n", "people look for it by its name");
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, "a newer one").unwrap();
    send(server.dataplane_pid, Signal::KILL);
    let mut noted = server.dataplane_pid;
    until("another one is noted", || {
        noted = server.noted_dataplane().unwrap_or(noted);
        noted != server.dataplane_pid
    });
    assert!(is_alive(noted));
    assert_eq!(name(noted), "ringwire\n");
}
