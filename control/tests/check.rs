//! `ringwire check` and `ringwire doctor` as people type them.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};

use serde_json::Value;

fn ringwire(arguments: &[&str]) -> Output {
    let state =
        tempfile::Builder::new().permissions(std::fs::Permissions::from_mode(0o700)).tempdir().unwrap();
    Command::new(env!("CARGO_BIN_EXE_ringwire"))
        .args(arguments)
        .env("RINGWIRE_STATE", state.path())
        .env_remove("RINGWIRE_LOG")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn a_configuration_is_checked_without_starting_anything() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ringwire.toml");
    let path = path.to_str().unwrap();
    std::fs::write(path, "listen = \"127.0.0.1:0\"\nhybrid = \"require\"\n").unwrap();
    let output = ringwire(&["check", "--config", path]);
    assert!(output.status.success(), "{output:?}");
    assert!(text(&output.stdout).contains("hybrid") && text(&output.stdout).contains("require"));
    let output = ringwire(&["check", "--json", "--config", path]);
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["settings"]["listen"], "127.0.0.1:0");

    std::fs::write(path, "listen = \"127.0.0.1:8081\"\nhybird = \"require\"\n").unwrap();
    let output = ringwire(&["check", "--config", path]);
    assert_eq!(output.status.code(), Some(1));
    let shown = text(&output.stderr);
    assert!(shown.contains("ringwire.toml:2:1") && shown.contains("Did you mean `hybrid`?"), "{shown}");
    assert_eq!(ringwire(&["check"]).status.code(), Some(2));
}

#[test]
fn a_go_servers_file_is_checked_and_its_key_guarded() {
    let vector: Value = serde_json::from_str(include_str!("vectors/dmsg-server-config-2024.json")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    let mut go: Value = serde_json::from_str(vector["default_config_file_utf8"].as_str().unwrap()).unwrap();
    // As somebody has it who has told where others reach it, on ports that are free.
    for (name, value) in
        [("public_address", "203.0.113.7:8081"), ("local_address", ":0"), ("health_endpoint_address", ":0")]
    {
        go[name] = value.into();
    }
    std::fs::write(&path, go.to_string()).unwrap();
    let shown = |mode| {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        ringwire(&["check", "--json", "--config", path.to_str().unwrap()])
    };
    let output = shown(0o644);
    assert!(output.status.success(), "{output:?}");
    let exposed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(exposed["warnings"][0].as_str().unwrap().contains("chmod 600"), "{exposed}");
    let output = shown(0o600);
    assert!(output.status.success(), "{output:?}");
    let settings: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(settings["warnings"], serde_json::json!([]));
    assert_eq!(settings["settings"]["listen"], "0.0.0.0:0, [::]:0");
    assert_eq!(settings["settings"]["public_key"].as_str().unwrap().len(), 66);
    let secret = vector["keys"][0]["secret_key"].as_str().unwrap();
    assert!(!text(&output.stdout).contains(secret));
}

#[test]
fn a_wrong_log_filter_is_refused_in_a_file_and_named_in_the_environment() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ringwire.toml");
    std::fs::write(&path, "log = \"infos\"\n").unwrap();
    for command in ["check", "run"] {
        let output = ringwire(&[command, "--config", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1), "{command}");
        let shown = text(&output.stderr);
        assert!(shown.contains("ringwire.toml:1:7: `infos`") && shown.contains("use off, error"), "{shown}");
    }
    // A data plane that nobody starts: its log alone, at a level that it has from the environment.
    let logged = |filter: &str| {
        let state =
            tempfile::Builder::new().permissions(std::fs::Permissions::from_mode(0o700)).tempdir().unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_ringwire"))
            .args(["dataplane", "--start-within", "1", "--state"])
            .arg(state.path())
            .env("RINGWIRE_LOG", filter)
            .output()
            .unwrap();
        text(&output.stderr).to_owned()
    };
    let wrong = logged("infos");
    assert!(wrong.contains("RINGWIRE_LOG") && wrong.contains("`infos`"), "{wrong}");
    assert!(wrong.contains("waiting for a control plane"), "at info: {wrong}");
    assert!(!logged("").contains("waiting for"), "empty is the default");
}

#[test]
fn every_setting_is_listed() {
    let shown = ringwire(&["check", "--settings"]);
    let list: Value = serde_json::from_slice(&ringwire(&["check", "--settings", "--json"]).stdout).unwrap();
    for setting in list.as_array().unwrap() {
        let name = setting["name"].as_str().unwrap();
        assert!(text(&shown.stdout).contains(&format!("{name} = ")), "{name}");
    }
}

#[test]
fn the_doctor_names_what_it_found() {
    let output = ringwire(&["doctor", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    for name in ["kernel", "io_uring", "descriptors", "backlog", "buffers", "memory", "state", "listen"] {
        assert!(findings.iter().any(|finding| finding["name"] == name), "{name}: {report}");
    }
    let absent = ringwire(&["doctor", "--discovery", "http://127.0.0.1:1"]);
    assert_eq!(absent.status.code(), Some(1));
    let shown = text(&absent.stdout);
    assert!(shown.contains("FAIL") && shown.contains("http://127.0.0.1:1"), "{shown}");
}
