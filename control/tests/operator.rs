//! What an operator without privileges, without a home or without room meets: messages that name cause and cure, and nothing
//! changed where nothing was to be.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::fs::OpenOptions;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// `ringwire` as somebody runs it who has no home and has set nothing.
fn ringwire(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringwire"));
    command.env_clear().args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(words: &[&str]) -> Output {
    ringwire(words).output().unwrap()
}

fn full() -> Stdio {
    OpenOptions::new().write(true).open("/dev/full").unwrap().into()
}

fn errors(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn path(directory: &tempfile::TempDir, name: &str) -> String {
    directory.path().join(name).to_str().unwrap().to_owned()
}

/// What `doctor` found of the state directory: how serious, and the text.
fn state_finding(output: &Output) -> (String, String) {
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let finding = findings.iter().find(|finding| finding["name"] == "state").unwrap();
    let text = |name: &str| finding[name].as_str().unwrap().to_owned();
    (text("level"), text("found"))
}

#[test]
fn an_output_that_takes_nothing_is_told_and_nobody_panics() {
    let directory = tempfile::tempdir().unwrap();
    let (key, state) = (path(&directory, "a.key"), path(&directory, "state"));
    assert!(run(&["keys", "generate", &key]).status.success());
    for words in [
        &["doctor", "--state", &state][..],
        &["doctor", "--state", &state, "--json"],
        &["check", "--settings"],
        &["check", "--settings", "--json"],
        &["check", "--state", &state],
        &["keys", "show", &key],
        &["keys", "show", &key, "--secret", "--json"],
    ] {
        let output = ringwire(words).stdout(full()).output().unwrap();
        let text = errors(&output);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {text}");
        assert!(text.contains("standard output: No space left on device"), "{words:?}: {text}");
        assert!(!text.contains("panicked"), "{words:?}: {text}");
        // Where not even that can be said, the exit code does.
        let output = ringwire(words).stdout(full()).stderr(full()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{words:?}");
    }
}

#[test]
fn who_has_no_home_is_told_to_name_a_directory() {
    for words in [
        &["run"][..],
        &["status"],
        &["show", "sessions"],
        &["stop"],
        &["keys", "show"],
        &["bench", "bridge"],
        &["dmsg", "listen", "9"],
    ] {
        let output = run(words);
        let text = errors(&output);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {text}");
        assert!(
            text.contains("neither HOME nor XDG_STATE_HOME") && text.contains("--state DIR"),
            "{words:?}: {text}"
        );
    }
    // To look at everything else is what a doctor is for.
    let (level, found) = state_finding(&run(&["doctor", "--json"]));
    assert!(level == "failure" && found.contains("--state DIR"), "{level} {found}");
}

#[test]
fn doctor_and_check_change_nothing_in_the_state_directory() {
    let directory = tempfile::tempdir().unwrap();
    let state = path(&directory, "deep/state");
    let looks = |words: &[&str]| {
        let output = run(words);
        assert!(!Path::new(&state).exists() && !directory.path().join("deep").exists(), "{words:?}");
        output
    };
    let (level, found) = state_finding(&looks(&["doctor", "--json", "--state", &state]));
    assert!(level == "good" && found.contains("a key is made at the first start"), "{level} {found}");
    let output = looks(&["check", "--state", &state, "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["good"], &report["state"]["public_key"]), (&Value::Bool(true), &Value::Null));

    // With a key in it, it is that key.
    std::fs::create_dir_all(&state).unwrap();
    let key = String::from_utf8(run(&["keys", "generate", &format!("{state}/key")]).stdout).unwrap();
    let (level, found) = state_finding(&run(&["doctor", "--json", "--state", &state]));
    assert!(level == "good" && found.ends_with(key.trim()), "{level} {found}");
    assert_eq!(std::fs::read_dir(&state).unwrap().count(), 1, "the key alone");

    // A file in the directory's place, and a version of the future.
    std::fs::write(format!("{state}/version"), "99").unwrap();
    let output = run(&["check", "--state", &state]);
    assert!(output.status.code() == Some(1) && errors(&output).contains("newer ringwire"), "{output:?}");
    let (level, found) = state_finding(&run(&["doctor", "--json", "--state", &format!("{state}/key/x")]));
    assert_eq!(level, "failure", "{found}");
}

#[test]
fn a_port_that_is_taken_is_told_in_whole_sentences() {
    let directory = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = run(&["run", "--state", &path(&directory, "state"), "--listen", &address]);
    let text = errors(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains(&address) && text.contains("in use") && text.contains("Nothing was started."),
        "{text}"
    );
    assert!(!text.contains(".."), "{text}");
}

#[test]
fn a_state_directory_too_deep_for_sockets_is_told_before_anything_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let state = path(&directory, &"x".repeat(120));
    for words in [&["run", "--state", &state][..], &["check", "--state", &state]] {
        let output = run(words);
        let text = errors(&output);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {text}");
        assert!(text.contains("shorter") && text.contains("up to 92"), "{words:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!Path::new(&state).exists());
    }
    let (level, found) = state_finding(&run(&["doctor", "--json", "--state", &state]));
    assert!(level == "failure" && found.contains("shorter"), "{level} {found}");
}

#[test]
fn files_that_cannot_be_had_are_told_with_what_helps() {
    let directory = tempfile::tempdir().unwrap();
    let absent = path(&directory, "absent/a.key");
    let output = run(&["keys", "generate", &absent]);
    let text = errors(&output);
    assert!(output.status.code() == Some(1) && text.contains("name another file"), "{text}");
    assert!(!text.contains("--state"), "this command has no such flag: {text}");
    let output = run(&["dmsg", "serve", "--dir", &absent, "--server", "none"]);
    assert_ne!(output.status.code(), Some(0));
    let server = "02b1ef8af4de7ed073d834eed16b03722c49c0465b2ac0f3984856e0f616979b3f@127.0.0.1:1";
    let output = run(&["dmsg", "serve", "--dir", &absent, "--server", server]);
    let text = errors(&output);
    assert!(output.status.code() == Some(1) && text.contains("name a directory"), "{text}");
}
