//! A control plane without a data plane, and one that does not answer: both can be ended, and what can be known is told.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail")]

mod common;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use common::process::{Planes, is_alive, json, ringwire, send, until};
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

fn errors(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// `ringwire run --no-spawn` where there is nothing to attach to, waiting for it: what it says of that.
fn waiting(state: &Path) -> (Process, String) {
    let mut command = ringwire(state);
    command.args(["run", "--no-spawn", "--listen", "127.0.0.1:0"]).stderr(Stdio::piped());
    let mut control = Process(command.spawn().unwrap());
    let mut lines = BufReader::new(control.0.stderr.take().unwrap()).lines();
    let said = lines.find(|line| line.as_ref().unwrap().contains("waits for a data plane")).unwrap().unwrap();
    // What it says later is nobody's.
    std::thread::spawn(move || lines.count());
    (control, said)
}

#[test]
fn who_waits_for_a_data_plane_says_so_and_obeys_at_once() {
    for signal in [Signal::TERM, Signal::INT] {
        let directory = tempfile::tempdir().unwrap();
        let (mut control, said) = waiting(directory.path());
        let socket = directory.path().join("dataplane.sock");
        for words in [socket.to_str().unwrap(), "ringwire dataplane --state", "systemctl start"] {
            assert!(said.contains(words), "{said}");
        }
        send(control.0.id(), signal);
        // Had it waited on, it would have given up and failed.
        assert_eq!(control.0.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn who_waits_for_a_data_plane_is_shown_and_can_be_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path();
    let (mut control, _) = waiting(state);
    let pid = control.0.id();
    let status = ringwire(state).arg("status").output().unwrap();
    assert_eq!(status.status.code(), Some(3), "{status:?}");
    let text = String::from_utf8(status.stdout).unwrap();
    assert!(text.contains(&format!("process {pid}")) && text.contains("waits for a data plane"), "{text}");
    let done = json(state, &["stop"]);
    let message = done["message"].as_str().unwrap();
    assert!(message.contains(&pid.to_string()) && message.contains("no data plane"), "{message}");
    assert_eq!(control.0.wait().unwrap().code(), Some(0));
    // And there is nothing left to stop.
    assert!(errors(&ringwire(state).arg("stop").output().unwrap()).contains("nothing runs"));
}

/// Takes its data plane from a control plane for as long as it is to stay away.
fn lose(planes: &Planes, state: &Path, mut dataplane: Option<Process>) {
    let lock = state.join("dataplane.lock");
    std::fs::remove_file(&lock).unwrap();
    std::fs::create_dir(&lock).unwrap();
    send(planes.dataplane_pid, Signal::KILL);
    if let Some(dataplane) = &mut dataplane {
        dataplane.0.wait().unwrap();
    }
    until("it is missed", || {
        let status = ringwire(state).args(["status", "--json"]).output().unwrap();
        let status: Value = serde_json::from_slice(&status.stdout).unwrap_or_default();
        status["control"]["attached"] == false
    });
}

#[test]
fn a_control_plane_that_lost_its_data_plane_obeys_an_order_and_a_signal() {
    for (spawns, order) in
        [(true, "stop"), (false, "stop"), (false, "leave"), (true, "signal"), (false, "signal")]
    {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path();
        let (dataplane, mut planes) = if spawns {
            (None, Planes::start(state, &[]))
        } else {
            let dataplane =
                Process(ringwire(state).args(["dataplane", "--start-within", "60"]).spawn().unwrap());
            (Some(dataplane), Planes::start(state, &["--no-spawn"]))
        };
        lose(&planes, state, dataplane);
        match order {
            "signal" => planes.signal(Signal::TERM),
            order => {
                let arguments: &[&str] =
                    if order == "stop" { &["stop"] } else { &["stop", "--leave-dataplane"] };
                let done = json(state, arguments);
                assert!(done["message"].as_str().unwrap().contains("no data plane"), "{done}");
            }
        }
        assert_eq!(planes.exit_code(), Some(0), "{spawns} {order}");
    }
}

#[test]
fn a_control_plane_that_is_stopped_is_named_and_the_data_plane_asked() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path();
    let planes = Planes::start(state, &[]);
    let (control, dataplane) = (planes.control_pid(), planes.dataplane_pid);
    send(control, Signal::STOP);

    let began = Instant::now();
    let status = ringwire(state).arg("status").output().unwrap();
    println!("status after {:?}", began.elapsed());
    // Far from what an order may take, and from a busy machine.
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
    assert_eq!(status.status.code(), Some(3), "{status:?}");
    let text = String::from_utf8(status.stdout).unwrap();
    for words in [
        &format!("(process {control}) does not answer: it is stopped (state T)"),
        &format!("kill -CONT {control}"),
        &format!("data plane   process {dataplane}, serving"),
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(!text.contains("ringwire status"), "{text}");

    let key = planes.ready["public_key"].as_str().unwrap();
    for arguments in [
        &["stop"][..],
        &["stop", "--leave-dataplane"],
        &["drain"],
        &["close", key],
        &["set", "hybrid", "require"],
        &["show", "counters"],
        &["show", "sessions", "--closed"],
        &["show", "sessions", "--from", "control"],
    ] {
        let output = ringwire(state).args(arguments).output().unwrap();
        let text = errors(&output);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
        assert!(
            text.contains(&format!("kill -CONT {control}")) && text.contains("Nothing was changed"),
            "{arguments:?}: {text}"
        );
    }
    for what in ["sessions", "streams", "limits"] {
        let output = ringwire(state).args(["show", what, "--json"]).output().unwrap();
        assert!(output.status.success() && errors(&output).contains("kill -CONT"), "{what}: {output:?}");
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(what == "limits" || answer["from"] == "dataplane", "{answer}");
    }

    // Nothing of what was ordered is carried out when it goes on.
    send(control, Signal::CONT);
    let status = json(state, &["status"]);
    assert_eq!(status["dataplane"]["state"], "serving");
    assert_eq!(
        (status["control"]["pid"].as_u64(), status["control"]["attached"].as_bool()),
        (Some(control.into()), Some(true))
    );
    assert!(is_alive(control) && is_alive(dataplane));
}
