//! The process that looks after both planes: what it starts again, what it leaves alone, and what it does not have.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail")]

mod common;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::process::{Planes, is_alive, json, lasting_address, ringwire, send, until};
use ringwire::dmsg::{ServerAddress, Session, SessionConfig};
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_proto::identity::{Address, SecretKey};
use rustix::process::Signal;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A process that does not outlive the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

async fn session(server: &ServerAddress) -> Session {
    let mut config = SessionConfig::new(SecretKey::generate(&mut OsEntropy), server.clone());
    config.first_frame_pause = Duration::ZERO;
    common::connect(config).await
}

/// A server whose every address lasts, so that a successor of either plane is found where the first was.
fn lasting(state: &Path) -> Planes {
    let (listen, discovery) = (lasting_address(), lasting_address());
    let arguments = ["--listen", &listen, "--discovery-listen", &discovery, "--orphan-limit", "60"];
    Planes::try_start(state, &arguments).unwrap()
}

/// Kills the control plane and waits for the one in its place.
fn crash_control(planes: &Planes, state: &Path) -> u32 {
    let killed = planes.noted_control().unwrap();
    send(killed, Signal::KILL);
    until("another control plane is noted", || planes.noted_control().is_some_and(|pid| pid != killed));
    until("it is attached", || {
        let output = ringwire(state).args(["status", "--json"]).output().unwrap();
        output.status.success()
    });
    planes.noted_control().unwrap()
}

fn text_of(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_that_is_killed_is_there_again_and_nothing_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path();
    let planes = lasting(state);
    let server = planes.address();
    let (source, destination) = (session(&server).await, session(&server).await);
    let mut listener = destination.listen(80).unwrap();
    let address = Address { key: destination.public_key(), port: 80 };
    let (dialled, accepted) = tokio::join!(source.dial(address), listener.accept());
    let (mut dialled, mut accepted) = (dialled.unwrap(), accepted.unwrap());

    for _ in 0..2 {
        let control = crash_control(&planes, state);
        assert!(is_alive(control) && is_alive(planes.program_pid()));
        assert_eq!(planes.noted_dataplane(), Some(planes.dataplane_pid), "the data plane is the first");
        // Who is new finds the server where it was.
        let entry =
            format!("{}/dmsg-discovery/entry/{}", planes.ready["discovery"].as_str().unwrap(), server.key);
        let answer = reqwest::get(entry).await.unwrap();
        assert_eq!(answer.status().as_u16(), 200);
        assert!(answer.text().await.unwrap().contains(&server.address));
        // Who was there is there.
        dialled.write_all(b"still").await.unwrap();
        let mut got = [0; 5];
        accepted.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"still");
    }
    let stopped = json(state, &["stop"]);
    assert!(stopped["message"].as_str().unwrap().contains("both planes"), "{stopped}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_planes_killed_are_both_there_again() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path();
    let mut planes = lasting(state);
    let killed = planes.dataplane_pid;
    // Neither can start the other now.
    send(planes.control_pid(), Signal::STOP);
    send(killed, Signal::KILL);
    until("it has ended", || !is_alive(killed));
    crash_control(&planes, state);
    planes.dataplane_pid = planes.noted_dataplane().unwrap();
    assert_ne!(planes.dataplane_pid, killed);
    session(&planes.address()).await;
    planes.signal(Signal::TERM);
    assert_eq!(planes.exit_code(), Some(0));
    assert!(!is_alive(planes.dataplane_pid));
}

#[test]
fn nothing_is_there_after_stop_and_the_directory_is_free_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path();
    for _ in 0..3 {
        let mut planes = Planes::start(state, &[]);
        let control = crash_control(&planes, state);
        json(state, &["stop"]);
        // The next line is typed by somebody in a hurry.
        let next = Planes::start(state, &[]);
        assert_eq!(planes.exit_code(), Some(0));
        assert!(!is_alive(control) && !is_alive(planes.dataplane_pid));
        assert!(is_alive(next.dataplane_pid));
        json(state, &["stop"]);
    }
}

/// A server whose control plane has crashed and cannot begin again, for what its file says now.
fn crippled(state: &Path, file: &Path, arguments: &[&str]) -> Planes {
    std::fs::write(file, "hybrid = \"offer\"\n").unwrap();
    let mut all = vec!["--config", file.to_str().unwrap(), "--listen", "127.0.0.1:0", "--orphan-limit", "60"];
    all.extend(arguments);
    let planes = Planes::try_start(state, &all).unwrap();
    std::fs::write(file, "hybrid = \"perhaps\"\n").unwrap();
    send(planes.control_pid(), Signal::KILL);
    until("the control plane is dead", || !is_alive(planes.control_pid()));
    planes
}

/// What `status` says, with its exit code.
fn status(state: &Path) -> (Option<i32>, String) {
    let output = ringwire(state).arg("status").output().unwrap();
    (output.status.code(), text_of(&output.stdout).to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_that_cannot_begin_again_is_said_tried_and_there_when_it_can() {
    let directory = tempfile::tempdir().unwrap();
    let (state, file) = (directory.path().join("state"), directory.path().join("ringwire.toml"));
    let planes = crippled(&state, &file, &[]);
    // Between two attempts; during one it is said to be starting.
    until("it is said", || {
        status(&state).1.contains(&format!("process {} starts it again", planes.program_pid()))
    });
    let (code, text) = status(&state);
    assert!(code == Some(3) && text.contains("process "), "{text}");
    session(&planes.address()).await;
    // Nobody comes in between.
    let second = ringwire(&state).args(["run", "--no-parent"]).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let text = text_of(&second.stderr);
    assert!(text.contains(&format!("process {}", planes.program_pid())), "{text}");
    // Mended, it is there by itself.
    std::fs::write(&file, "hybrid = \"require\"\n").unwrap();
    until("there is a control plane", || status(&state).0 == Some(0));
    assert_eq!(json(&state, &["show", "settings"])["settings"]["hybrid"], "require");
    assert_eq!(planes.noted_dataplane(), Some(planes.dataplane_pid));
    json(&state, &["stop"]);
}

#[test]
fn a_server_whose_control_plane_cannot_begin_again_can_be_ended() {
    for end in ["stop", "signal", "interrupt"] {
        let directory = tempfile::tempdir().unwrap();
        let (state, file) = (directory.path().join("state"), directory.path().join("ringwire.toml"));
        let mut planes = crippled(&state, &file, &[]);
        match end {
            "stop" => {
                let done = json(&state, &["stop"]);
                assert!(done["message"].as_str().unwrap().contains("stopped"), "{done}");
            }
            "signal" => planes.signal(Signal::TERM),
            _ => planes.signal(Signal::INT),
        }
        assert_eq!(planes.exit_code(), Some(0), "{end}");
        assert!(!is_alive(planes.dataplane_pid), "{end}");
        assert!(!state.join("server.json").exists(), "{end}");
    }
}

#[test]
fn a_data_plane_that_is_to_be_left_alone_is_also_without_a_control_plane() {
    let directory = tempfile::tempdir().unwrap();
    let (state, file) = (directory.path().join("state"), directory.path().join("ringwire.toml"));
    let mut planes = crippled(&state, &file, &["--leave-dataplane"]);
    planes.signal(Signal::TERM);
    assert_eq!(planes.exit_code(), Some(0));
    assert!(is_alive(planes.dataplane_pid));
    json(&state, &["stop"]);
    assert!(!is_alive(planes.dataplane_pid));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_drains_is_not_brought_back_by_a_control_plane_that_crashed_meanwhile() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path();
    let mut planes = lasting(state);
    let server = planes.address();
    let (source, destination) = (session(&server).await, session(&server).await);
    let mut listener = destination.listen(80).unwrap();
    let address = Address { key: destination.public_key(), port: 80 };
    let (dialled, accepted) = tokio::join!(source.dial(address), listener.accept());
    let (dialled, accepted) = (dialled.unwrap(), accepted.unwrap());
    json(state, &["drain", "--within", "600"]);
    let killed = planes.noted_control().unwrap();
    send(killed, Signal::KILL);
    until("another control plane is noted", || planes.noted_control().is_some_and(|pid| pid != killed));
    // The last stream ends, and with it the server.
    drop((dialled, accepted, source, destination, listener));
    assert_eq!(planes.exit_code(), Some(0));
    until("the data plane is gone", || !is_alive(planes.dataplane_pid));
}

#[test]
fn it_dies_with_its_control_plane_and_without_the_data_plane() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path();
    let mut planes = Planes::start(state, &[]);
    send(planes.program_pid(), Signal::KILL);
    until("the control plane is dead", || !is_alive(planes.control_pid()));
    assert!(is_alive(planes.dataplane_pid));
    // At once, as a script does it that restarts what was killed.
    planes.run_again(state, &[]);
    assert_eq!(json(state, &["status"])["dataplane"]["pid"], planes.dataplane_pid);
    json(state, &["stop"]);
}

#[test]
fn it_has_one_thread_and_no_socket_that_listens() {
    let directory = tempfile::tempdir().unwrap();
    let planes = Planes::start(directory.path(), &[]);
    let parent = planes.program_pid();
    assert_eq!(std::fs::read_dir(format!("/proc/{parent}/task")).unwrap().count(), 1);
    let open: Vec<_> = std::fs::read_dir(format!("/proc/{parent}/fd"))
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .filter_map(|target| Some(target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        let table = std::fs::read_to_string(format!("/proc/{parent}/net/{table}")).unwrap_or_default();
        let inodes: Vec<_> = table.lines().filter_map(|line| line.split_whitespace().nth(9)).collect();
        assert!(open.iter().all(|inode| !inodes.contains(&inode.as_str())), "{open:?}");
    }
    // A listener of the local kind has the kernel's flag for it.
    let local = std::fs::read_to_string(format!("/proc/{parent}/net/unix")).unwrap();
    for line in local.lines().filter(|line| line.split_whitespace().nth(3) == Some("00010000")) {
        let inode = line.split_whitespace().nth(6).unwrap();
        assert!(!open.iter().any(|open| open == inode), "{line}");
    }
}

/// The control plane of a server started so, and what was started.
fn started(mut command: Command) -> (Process, u32) {
    let mut process = Process(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(process.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ready: Value = serde_json::from_str(&line).unwrap();
    (process, ready["control_pid"].as_u64().unwrap() as u32)
}

#[test]
fn where_something_else_looks_after_it_there_is_no_parent() {
    let run = ["run", "--json", "--listen", "127.0.0.1:0", "--orphan-limit", "1"];
    for by in ["flag", "notify socket", "systemd's word", "configuration that is no file"] {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path();
        let mut command = match by {
            "systemd's word" => {
                let mut shell = Command::new("/bin/sh");
                shell.args(["-c", r#"SYSTEMD_EXEC_PID=$$ exec "$@""#, "sh", env!("CARGO_BIN_EXE_ringwire")]);
                common::process::private(state);
                shell.env("RINGWIRE_STATE", state).env_remove("RINGWIRE_LOG");
                shell
            }
            _ => ringwire(state),
        };
        command.args(run);
        match by {
            "flag" => drop(command.arg("--no-parent")),
            "notify socket" => drop(command.env("NOTIFY_SOCKET", state.join("nobody"))),
            "configuration that is no file" => {
                let (reader, mut writer) = std::io::pipe().unwrap();
                std::io::Write::write_all(&mut writer, b"hybrid = \"offer\"\n").unwrap();
                command.args(["--config", "/dev/stdin"]).stdin(reader);
            }
            _ => {}
        }
        let (mut process, control) = started(command);
        assert_eq!(control, process.0.id(), "{by}");
        json(state, &["stop"]);
        assert!(process.0.wait().unwrap().success(), "{by}");
    }
}

#[test]
fn a_unit_of_another_process_is_not_ours() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = ringwire(directory.path());
    // As a terminal has it that systemd has started.
    command.args(["run", "--json", "--listen", "127.0.0.1:0"]).env("SYSTEMD_EXEC_PID", "1");
    let (mut process, control) = started(command);
    assert_ne!(control, process.0.id());
    json(directory.path(), &["stop"]);
    assert!(process.0.wait().unwrap().success());
}

#[test]
fn a_first_start_that_fails_is_not_repeated() {
    let directory = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let output = ringwire(directory.path()).args(["run", "--listen", &listen]).output().unwrap();
    let text = text_of(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.matches("ringwire: ").count(), 1, "{text}");
    assert!(!text.contains("started again"), "{text}");
}
