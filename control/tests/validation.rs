//! `ringwire run`, `check` and `doctor` judge a configuration alike: what the first refuses the others refuse, with the same
//! words, and nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail")]

mod common;

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::process::{Planes, ringwire};
use serde_json::Value;

/// A configuration, and words that all three say of it; none: it is right.
struct Row {
    what: &'static str,
    text: String,
    words: &'static [&'static str],
}

fn row(what: &'static str, text: impl Into<String>, words: &'static [&'static str]) -> Row {
    Row { what, text: text.into(), words }
}

/// A port that nobody listens on at the moment.
fn free() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The rows; `taken` is listened on.
fn rows(taken: &str) -> Vec<Row> {
    let go = |public: &str, discovery: &str| {
        let vector: Value =
            serde_json::from_str(include_str!("vectors/dmsg-server-config-2024.json")).unwrap();
        let mut go: Value =
            serde_json::from_str(vector["default_config_file_utf8"].as_str().unwrap()).unwrap();
        let (local, health) = (format!("127.0.0.1:{}", free()), format!("127.0.0.1:{}", free()));
        for (name, value) in [
            ("local_address", local.as_str()),
            ("health_endpoint_address", &health),
            ("discovery", discovery),
        ] {
            go[name] = value.into();
        }
        if !public.is_empty() {
            go["public_address"] = public.into();
        }
        go.to_string()
    };
    let local = "listen = \"127.0.0.1:0\"\n";
    let elsewhere = "discovery = \"http://dmsgd.example\"\n";
    let port = free();
    vec![
        row("nothing to find", local, &[]),
        row(
            "all of it",
            format!(
                "{local}http_listen = \"127.0.0.1:0\"\ndiscovery_listen = \"127.0.0.1:0\"\nworkers = 1\n\
                 buffer_memory = 268435456\ndriver = \"poll\"\nhandshake_threads = 1\n"
            ),
            &[],
        ),
        row(
            "no public address",
            format!("{local}{elsewhere}"),
            &["public_address", "http://dmsgd.example", "HOST:PORT"],
        ),
        row(
            "every address and no public one",
            format!("listen = \"0.0.0.0:0\"\n{elsewhere}"),
            &["public_address", "http://dmsgd.example"],
        ),
        row(
            "a public address on the loopback",
            format!("{local}{elsewhere}public_address = \"127.0.0.1:8081\"\n"),
            &["public_address", "127.0.0.1:8081", "http://dmsgd.example"],
        ),
        row("the Go server's default", go("", "http://dmsgd.example"), &["public_address", "127.0.0.1:8081"]),
        row("the Go server's default at home", go("", ""), &[]),
        row("listen in use", format!("listen = \"{taken}\"\n"), &["cannot listen on", "Another program"]),
        row(
            "discovery_listen in use",
            format!("{local}discovery_listen = \"{taken}\"\n"),
            &["discovery_listen", "cannot listen on", "another program"],
        ),
        row(
            "http_listen in use",
            format!("{local}http_listen = \"{taken}\"\n"),
            &["http_listen", "cannot listen on", "another program"],
        ),
        row(
            "http_listen is listen",
            format!("listen = \"127.0.0.1:{port}\"\nhttp_listen = \"127.0.0.1:{port}\"\n"),
            &["http_listen", "listened on already for listen", "another port"],
        ),
        row(
            "http_listen is discovery_listen",
            format!("{local}discovery_listen = \"127.0.0.1:{port}\"\nhttp_listen = \"127.0.0.1:{port}\"\n"),
            &["listened on already for http_listen", "another port"],
        ),
        row(
            "listen twice",
            format!("listen = [\"127.0.0.1:{port}\", \"127.0.0.1:{port}\"]\n"),
            &["listen", "named twice", "leave one out"],
        ),
        row(
            "listen on all and on one of them",
            format!("listen = [\"0.0.0.0:{port}\", \"127.0.0.1:{port}\"]\n"),
            &["listen", "cannot be listened on both", "leave one out"],
        ),
        row("a foreign address", "listen = \"192.0.2.1:8081\"\n", &["192.0.2.1:8081", "No interface"]),
        row(
            "buffer memory",
            format!("{local}buffer_memory = 1\n"),
            &["buffer_memory", "too small", "at least"],
        ),
        row(
            "a core that is not there",
            format!("{local}first_core = 1023\n"),
            &["first_core", "1023", "taskset"],
        ),
        row(
            "handshake threads",
            format!("{local}handshake_threads = 65\n"),
            &["handshake_threads", "65", "64"],
        ),
        row(
            "more listeners than can be handed on",
            "listen = [\"127.0.0.1:0\", \"127.0.0.2:0\", \"127.0.0.3:0\", \"127.0.0.4:0\"]\nworkers = 64\n",
            &["256", "Use fewer workers"],
        ),
        row(
            "a setting by itself",
            format!("{local}update_interval_s = 0\n"),
            &["update_interval_s", "1 to 3600"],
        ),
        row("an unknown setting", format!("{local}hybird = \"off\"\n"), &[":2:1", "Did you mean `hybrid`?"]),
    ]
}

fn file(directory: &Path, text: &str) -> PathBuf {
    let path = directory.join("configuration");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn said(output: &Output) -> String {
    let (out, errors) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(errors))
}

/// The program where neither a server nor a configuration is named by the environment.
fn command(state: &Path) -> Command {
    let mut command = ringwire(state);
    command.env_remove("RINGWIRE_CONFIG");
    command
}

#[test]
fn run_check_and_doctor_agree() {
    let directory = tempfile::tempdir().unwrap();
    let taker = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taker.local_addr().unwrap().to_string();
    for (number, Row { what, text, words }) in rows(&taken).into_iter().enumerate() {
        let state = directory.path().join(number.to_string());
        let path = file(directory.path(), &text);
        let path = path.to_str().unwrap();
        let is_right = words.is_empty();

        let check = command(&state).args(["check", "--config", path]).output().unwrap();
        let doctor = command(&state).args(["doctor", "--json", "--config", path]).output().unwrap();
        assert!(!state.exists(), "{what}: looking makes nothing");
        for output in [&check, &doctor] {
            assert_eq!(output.status.success(), is_right, "{what}: {}", said(output));
        }
        let report: Value = serde_json::from_slice(&doctor.stdout).unwrap();
        assert_eq!(report["good"], is_right, "{what}: {report}");
        let json = command(&state).args(["check", "--json", "--config", path]).output().unwrap();
        let report: Value =
            serde_json::from_slice(&json.stdout).unwrap_or_else(|_| panic!("{what}: {json:?}"));
        assert_eq!((&report["good"], json.status.success()), (&Value::Bool(is_right), is_right), "{what}");

        if is_right {
            let mut arguments = vec!["--config", path, "--orphan-limit", "60"];
            if !text.contains("listen") && !text.contains("local_address") {
                arguments.extend(["--listen", "127.0.0.1:0"]);
            }
            let planes =
                Planes::try_start(&state, &arguments).unwrap_or_else(|said| panic!("{what}: {said}"));
            drop(planes);
            continue;
        }
        let run = command(&state).args(["run", "--config", path]).output().unwrap();
        assert_eq!(run.status.code(), Some(1), "{what}: {}", said(&run));
        for (name, output) in [("run", &run), ("check", &check), ("doctor", &doctor), ("check --json", &json)]
        {
            for word in words {
                assert!(said(output).contains(word), "{what}: {name} does not say {word}: {}", said(output));
            }
        }
        let problem = &report["problems"][0];
        assert!(problem["message"].is_string(), "{what}: {report}");
        if words[0].starts_with(':') {
            assert_eq!((&problem["line"], &problem["column"]), (&2.into(), &1.into()), "{report}");
        } else {
            assert!(problem["setting"].is_string(), "{what}: {report}");
        }
    }
}

#[test]
fn what_the_own_server_listens_on_is_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let [session, discovery, http] = [free(), free(), free()];
    let text = format!(
        "listen = \"127.0.0.1:{session}\"\ndiscovery_listen = \"127.0.0.1:{discovery}\"\nhttp_listen = \"127.0.0.1:{http}\"\n"
    );
    let path = file(directory.path(), &text);
    let path = path.to_str().unwrap();
    let mut planes = Planes::try_start(&state, &["--config", path, "--orphan-limit", "60"]).unwrap();
    let elsewhere = directory.path().join("elsewhere");
    for words in [&["check", "--config", path][..], &["doctor", "--config", path]] {
        let output = command(&state).args(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", said(&output));
        // Who is not that server has no such excuse.
        let output = command(&elsewhere).args(words).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{words:?}: {}", said(&output));
        for word in ["listen", "discovery_listen", "http_listen"] {
            assert!(said(&output).contains(word), "{words:?}: {}", said(&output));
        }
    }
    // Nor is the data plane that goes on alone in the way of its next control plane.
    planes.kill_control();
    planes.run_again(&state, &["--config", path]);
}

#[test]
fn the_environment_names_the_configuration_for_all_three() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let path = file(directory.path(), "listen = \"127.0.0.1:0\"\nbuffer_memory = 1\n");
    for words in [&["run"][..], &["check"], &["doctor"], &["check", "--json"], &["doctor", "--json"]] {
        let output = command(&state).args(words).env("RINGWIRE_CONFIG", &path).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{words:?}: {}", said(&output));
        assert!(said(&output).contains("buffer_memory"), "{words:?}: {}", said(&output));
        // The flag is stronger.
        let right = directory.path().join("right");
        std::fs::write(&right, "listen = \"127.0.0.1:0\"\n").unwrap();
        if words[0] != "run" {
            let output = command(&state)
                .args(words)
                .args(["--config", right.to_str().unwrap()])
                .env("RINGWIRE_CONFIG", &path)
                .output()
                .unwrap();
            assert!(output.status.success(), "{words:?}: {}", said(&output));
        }
    }
    // A list of settings is of no file.
    let output =
        command(&state).args(["check", "--settings", "--json"]).env("RINGWIRE_CONFIG", &path).output();
    let output = output.unwrap();
    assert!(output.status.success() && serde_json::from_slice::<Value>(&output.stdout).unwrap().is_array());
}

#[test]
fn the_discovery_of_before_leaves_its_port_to_who_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let mut planes = Planes::start(&state, &[]);
    let before = planes.ready["discovery_listening"].as_str().unwrap().to_owned();
    // Both are gone, and the note that names the port is not.
    planes.kill_control();
    drop(planes);
    let arguments = ["--listen", "127.0.0.1:0", "--orphan-limit", "60", "--http-listen", &before];
    let planes = Planes::try_start(&state, &arguments).expect("a server that starts");
    assert_eq!(planes.ready["http"], before.as_str());
    assert_ne!(planes.ready["discovery_listening"], before.as_str());
}
