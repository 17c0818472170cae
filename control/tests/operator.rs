//! What an operator without privileges, without a home or without room meets: messages that name cause and cure, and nothing
//! changed where nothing was to be.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt as _;
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
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&state).unwrap();
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

/// A child process that does not outlive the test.
struct Process(std::process::Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The first line it prints: that it is ready.
fn ready(child: &mut Process) -> String {
    let mut ready = String::new();
    BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    ready
}

/// `ringwire` behind words of the shell that set a limit.
fn limited(limit: &str, words: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.env_clear().args(["-c", &format!("{limit}; exec \"$0\" \"$@\"")]);
    command.arg(env!("CARGO_BIN_EXE_ringwire")).args(words);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn a_limit_of_file_sizes_is_raised_where_it_can_be_and_else_named_with_its_cure() {
    let directory = tempfile::tempdir().unwrap();
    let state = path(&directory, "state");
    let run = ["run", "--json", "--state", &state, "--listen", "127.0.0.1:0", "--orphan-limit", "1"];
    // Some tens of KiB: files of the state directory fit, the planes' shared memory does not.
    let output = limited("ulimit -f 100", &run).output().unwrap();
    let text = errors(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("ulimit -f") && text.contains("File too large"), "{text}");
    assert!(!text.contains("closed the connection"), "{text}");
    // A soft one is ours to raise.
    let mut child = Process(limited("ulimit -S -f 100", &run).spawn().unwrap());
    let ready = ready(&mut child);
    assert!(ready.contains(r#""event":"ready""#), "{ready}");
    assert!(self::run(&["stop", "--state", &state]).status.success());
    assert!(child.0.wait().unwrap().success());
}

#[test]
fn a_key_that_finds_no_room_leaves_nothing_that_looks_like_a_lost_one() {
    let directory = tempfile::tempdir().unwrap();
    let key = path(&directory, "a.key");
    let names = || std::fs::read_dir(directory.path()).unwrap().count();
    let output = limited("ulimit -f 0", &["keys", "generate", &key]).output().unwrap();
    let text = errors(&output);
    assert!(output.status.code() == Some(1) && text.contains("a.key: File too large"), "{text}");
    assert_eq!(names(), 0, "nothing is left of it");
    assert!(run(&["keys", "generate", &key]).status.success());
}

/// What a command says that is given this as its standard input.
fn fed(input: &str, words: &[&str]) -> std::process::Child {
    let mut child = ringwire(words).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child
}

#[test]
fn a_configuration_may_come_through_a_pipe_and_is_read_once() {
    let vector: Value = serde_json::from_str(include_str!("vectors/dmsg-server-config-2024.json")).unwrap();
    let go = vector["default_config_file_utf8"].as_str().unwrap();
    let mut go: Value = serde_json::from_str(go).unwrap();
    let key = go["public_key"].as_str().unwrap().to_owned();
    for (name, value) in
        [("local_address", "127.0.0.1:0"), ("health_endpoint_address", ""), ("discovery", "")]
    {
        go[name] = value.into();
    }
    let directory = tempfile::tempdir().unwrap();
    let state = path(&directory, "state");
    let words = [
        "run",
        "--json",
        "--state",
        &state,
        "--config",
        "/dev/stdin",
        "--orphan-limit",
        "1",
        "--listen",
        "127.0.0.1:0",
    ];
    let mut child = Process(fed(&go.to_string(), &words));
    let ready: Value = serde_json::from_str(&ready(&mut child)).unwrap_or_default();
    assert_eq!(ready["public_key"], key, "the identity is that of the file");
    assert!(!Path::new(&format!("{state}/key")).exists(), "and no other was made");
    assert!(run(&["stop", "--state", &state]).status.success());
    assert!(child.0.wait().unwrap().success());

    for words in [&words[..], &["check", "--config", "/dev/stdin"], &["doctor", "--config", "/dev/stdin"]] {
        for nothing in ["", " \n"] {
            let output = fed(nothing, words).wait_with_output().unwrap();
            let text = errors(&output);
            assert!(
                output.status.code() == Some(1) && text.contains("/dev/stdin is empty"),
                "{words:?}: {text}"
            );
        }
    }
    let output = run(&["check", "--config", "/dev/zero"]);
    assert!(errors(&output).contains("more than any configuration"), "{}", errors(&output));
}

#[test]
fn what_is_no_file_in_the_state_directory_is_refused_by_every_command_that_meets_it() {
    use rustix::fs::{CWD, Mode, mkfifoat};
    let directory = tempfile::tempdir().unwrap();
    let state = path(&directory, "state");
    assert!(run(&["check", "--state", &state]).status.success());
    std::fs::DirBuilder::new().mode(0o700).create(&state).unwrap();
    let target = path(&directory, "somebody's");
    std::fs::write(&target, "text").unwrap();
    let starts: [&[&str]; 2] = [
        &["run", "--state", &state, "--listen", "127.0.0.1:0"],
        &["dataplane", "--state", &state, "--start-within", "1"],
    ];
    let check = ["check", "--state", &state];
    let cases: [(&str, &[&[&str]]); 4] = [
        ("version", &[starts[0], starts[1], &check]),
        ("key", &[starts[0], &check]),
        ("lock", &[starts[0]]),
        // The data plane's messages are the control plane's.
        ("dataplane.lock", &[starts[0], starts[1]]),
    ];
    for (name, commands) in cases {
        let there = format!("{state}/{name}");
        for words in commands {
            std::fs::remove_file(&there).ok();
            mkfifoat(CWD, &there, Mode::RUSR | Mode::WUSR).unwrap();
            let text = errors(&run(words));
            assert!(text.contains("FIFO") && text.contains(&there), "{words:?}: {text}");
            std::fs::remove_file(&there).unwrap();
            std::os::unix::fs::symlink(&target, &there).unwrap();
            let text = errors(&run(words));
            assert!(text.contains("symbolic link") && text.contains(&there), "{words:?}: {text}");
            assert_eq!(std::fs::read_to_string(&target).unwrap(), "text", "{words:?}");
        }
        std::fs::remove_file(&there).unwrap();
    }
    // Those that only look for a server or for a key.
    for (name, words) in [
        ("server.json", &["bench", "bridge", "--state", &state][..]),
        ("key", &["keys", "show", "--state", &state]),
    ] {
        let there = format!("{state}/{name}");
        std::fs::remove_file(&there).ok();
        mkfifoat(CWD, &there, Mode::RUSR | Mode::WUSR).unwrap();
        let text = errors(&run(words));
        assert!(text.contains("FIFO") && text.contains(&there), "{words:?}: {text}");
    }
}

#[test]
fn a_state_directory_that_others_can_enter_is_refused_by_both_planes() {
    let directory = tempfile::tempdir().unwrap();
    let state = path(&directory, "state");
    for mode in [0o750, 0o755] {
        std::fs::DirBuilder::new().mode(mode).create(&state).unwrap();
        for words in [
            &["run", "--state", &state, "--listen", "127.0.0.1:0"][..],
            &["dataplane", "--state", &state, "--start-within", "1"],
            &["check", "--state", &state],
        ] {
            let output = run(words);
            let text = errors(&output);
            assert_eq!(output.status.code(), Some(1), "{words:?}: {text}");
            assert!(
                text.contains(&format!("{mode:o}")) && text.contains(&format!("chmod 700 {state}")),
                "{text}"
            );
        }
        std::fs::remove_dir(&state).unwrap();
    }
}

#[test]
fn help_is_as_wide_as_the_terminal() {
    let help = |words: &[&str], columns: usize| {
        let output =
            ringwire(&[words, &["--help"]].concat()).env("COLUMNS", columns.to_string()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    for words in
        [&["run"][..], &["stop"], &["check"], &["bench", "bridge"], &["dmsg", "curl"], &["show", "sessions"]]
    {
        for (columns, widest) in [(60, 60), (90, 90), (400, 120)] {
            let text = help(words, columns);
            let long: Vec<_> = text.lines().filter(|line| line.chars().count() > widest).collect();
            assert!(long.is_empty(), "{words:?} at {columns}: {long:#?}");
        }
    }
    // A text is broken where the line ends and nowhere else.
    let at = |columns| {
        let text = help(&["stop"], columns);
        text.lines().skip_while(|line| !line.starts_with("Works with")).count()
    };
    assert_eq!(at(400), 2);
    assert!(at(60) >= 3, "{}", help(&["stop"], 60));
    let narrow = help(&["stop"], 60);
    let lines: Vec<_> = narrow.lines().map(str::trim_end).collect();
    let example =
        lines.iter().position(|line| *line == "  ringwire stop").unwrap_or_else(|| panic!("{narrow}"));
    assert!(lines[example + 1].starts_with("      both planes;"), "{narrow}");
}

#[test]
fn root_sees_a_services_directory_as_the_service_does() {
    use std::os::unix::fs::{PermissionsExt as _, chown};
    if !rustix::process::geteuid().is_root() {
        // Only root can give a directory away.
        return;
    }
    const SERVICE: u32 = 12_345;
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    let state = path(&directory, "state");
    std::fs::DirBuilder::new().mode(0o700).create(&state).unwrap();
    let key = String::from_utf8(run(&["keys", "generate", &format!("{state}/key")]).stdout).unwrap();
    for given in [&state, &format!("{state}/key")] {
        chown(given, Some(SERVICE), Some(SERVICE)).unwrap();
    }
    let (level, found) = state_finding(&run(&["doctor", "--json", "--state", &state]));
    assert!(
        level == "good" && found.ends_with(key.trim()) && found.contains("user 12345"),
        "{level} {found}"
    );
    let output = run(&["check", "--state", &state, "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["state"]["public_key"], key.trim(), "{output:?}");
    assert_eq!(report["state"]["judged_as_user"], SERVICE);
    let shown = String::from_utf8(run(&["check", "--state", &state]).stdout).unwrap();
    assert!(shown.contains("user 12345"), "{shown}");

    // What that user cannot do is a failure, and not for root to cure by taking the directory.
    std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o500)).unwrap();
    let (level, found) = state_finding(&run(&["doctor", "--json", "--state", &state]));
    assert!(level == "failure" && found.contains("Permission denied"), "{level} {found}");
    assert!(!found.contains("chown 0"), "{found}");
    // A start by root is another matter, and is refused with what helps.
    let text = errors(&run(&["run", "--state", &state, "--listen", "127.0.0.1:0"]));
    assert!(text.contains("user 12345") && text.contains("run this as that user"), "{text}");
}

#[test]
fn an_empty_key_that_an_older_build_left_on_a_full_disk_is_named_as_such() {
    let directory = tempfile::tempdir().unwrap();
    let state = path(&directory, "state");
    std::fs::DirBuilder::new().mode(0o700).create(&state).unwrap();
    let key = format!("{state}/key");
    std::fs::write(&key, "").unwrap();
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    for words in [&["run", "--state", &state, "--listen", "127.0.0.1:0"][..], &["check", "--state", &state]] {
        let output = run(words);
        let text = errors(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        for said in [&*key, "is empty", "full disk", "remove it", "from a backup"] {
            assert!(text.contains(said), "{said}: {text}");
        }
    }
    let (level, found) = state_finding(&run(&["doctor", "--json", "--state", &state]));
    assert!(level == "failure" && found.contains("full disk"), "{level} {found}");
}

#[test]
fn a_configuration_with_another_key_than_the_state_directory_is_told_everywhere() {
    let vector: Value = serde_json::from_str(include_str!("vectors/dmsg-server-config-2024.json")).unwrap();
    let mut go: Value = serde_json::from_str(vector["default_config_file_utf8"].as_str().unwrap()).unwrap();
    for (name, value) in
        [("public_address", "203.0.113.7:8081"), ("local_address", ":0"), ("health_endpoint_address", ":0")]
    {
        go[name] = value.into();
    }
    go["discovery"] = "http://127.0.0.1:1".into();
    let directory = tempfile::tempdir().unwrap();
    let (state, file) = (path(&directory, "state"), path(&directory, "config.json"));
    std::fs::write(&file, go.to_string()).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let carried = go["public_key"].as_str().unwrap();
    let check = |also: &[&str]| {
        let output = run(&[&["check", "--config", &file, "--state", &state], also].concat());
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    std::fs::DirBuilder::new().mode(0o700).create(&state).unwrap();
    assert!(!check(&[]).contains("carries the key"), "there is no other key yet");
    let kept = String::from_utf8(run(&["keys", "generate", &format!("{state}/key")]).stdout).unwrap();
    let tells = |text: &str| {
        for said in [carried, kept.trim(), &format!("{state}/key"), "the server is the first"] {
            assert!(text.contains(said), "{said}: {text}");
        }
    };
    tells(&check(&[]));
    let report: Value = serde_json::from_str(&check(&["--json"])).unwrap();
    tells(report["warnings"].as_array().unwrap().last().unwrap().as_str().unwrap());
    let output = run(&["doctor", "--json", "--config", &file, "--state", &state]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let finding = report["findings"].as_array().unwrap().iter().find(|finding| finding["name"] == "key");
    let finding = finding.unwrap_or_else(|| panic!("{report}"));
    assert_eq!(finding["level"], "warning");
    tells(finding["found"].as_str().unwrap());

    let words = ["run", "--json", "--config", &file, "--state", &state, "--orphan-limit", "1"];
    let mut child = Process(ringwire(&words).spawn().unwrap());
    assert!(ready(&mut child).contains(carried));
    assert!(run(&["stop", "--state", &state]).status.success());
    let mut text = String::new();
    std::io::Read::read_to_string(&mut child.0.stderr.take().unwrap(), &mut text).unwrap();
    tells(&text);
}
