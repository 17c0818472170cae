//! The command `flood` on real processes with small loads: that it works and what it prints, not how well a server does.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests: a failure is the test's")]

use ringwire_benches::flood::attack;
use ringwire_benches::flood::report::Found;
use serde_json::Value;
use std::process::{Command, Output};

fn flood(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringwire-benches")).arg("flood").args(arguments).output().unwrap()
}

/// A quick run: what it printed, as JSON and as what that stands for.
fn quick(name: &str) -> (Value, Found) {
    let output = flood(&[name, "--quick", "--json"]);
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(text.lines().count(), 1, "one line for one run: {output:?}");
    let value: Value = serde_json::from_str(&text).unwrap();
    let found: Found = serde_json::from_value(value.clone()).unwrap();
    // Small loads on a busy machine may miss a target; what is said and how it ends must agree.
    assert_eq!(found.met, found.unmet.is_empty(), "{text}");
    assert_eq!(output.status.code(), Some(i32::from(!found.met)), "{output:?}");
    (value, found)
}

fn has_counted_the_honest_client(found: &Found) {
    for figures in [&found.honest.before, &found.honest.during, &found.honest.after] {
        assert!(figures.opens_ok + figures.opens_failed > 0, "{found:?}");
        assert!(figures.handshakes_ok + figures.handshakes_failed > 0, "{found:?}");
    }
    let before = &found.honest.before;
    assert!(before.opens_ok > 0 && before.open_p99_ms >= before.open_p50_ms, "{found:?}");
    assert!(before.open_p50_ms > 0.0 && before.ping_p50_ms > 0.0, "{found:?}");
    assert!(found.rss_max_bytes >= found.rss_start_bytes && found.rss_start_bytes > 1 << 20, "{found:?}");
    assert!(found.attacker_cpu_s > 0.0 && found.server_cpu_s > 0.0, "{found:?}");
}

#[test]
fn an_attack_on_the_budget_is_measured() {
    let (value, found) = quick("idle-bridges");
    has_counted_the_honest_client(&found);
    assert!(found.quick && found.name == "idle-bridges" && found.attackers == 8, "{found:?}");
    assert!(found.attack["bridges"] > 0, "the attack took place: {found:?}");
    for member in [
        "name",
        "driver",
        "honest",
        "attacker_cpu_s",
        "server_cpu_s",
        "rss_start_bytes",
        "rss_max_bytes",
        "rss_end_bytes",
        "met",
        "unmet",
    ] {
        assert!(!value[member].is_null(), "{member} is missing in {value}");
    }
    for phase in ["before", "during", "after"] {
        for member in [
            "opens_ok",
            "opens_failed",
            "open_p50_ms",
            "open_p99_ms",
            "ping_p50_ms",
            "ping_p99_ms",
            "handshakes_ok",
            "handshakes_failed",
        ] {
            assert!(value["honest"][phase][member].is_number(), "{phase}.{member} is missing in {value}");
        }
    }
}

#[test]
fn an_attack_on_the_discovery_is_measured() {
    let (_, found) = quick("discovery-delete");
    has_counted_the_honest_client(&found);
    let seen = found.honest.during.discovery.clone().unwrap();
    assert!(seen.looks > 0 && seen.posts_ok + seen.posts_failed > 0, "{found:?}");
    assert!(found.attack["deletes"] > 0 && found.attack["made_up_servers"] > 0, "{found:?}");
}

#[test]
fn the_list_names_every_attack_and_other_names_are_not_understood() {
    let output = flood(&["list"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    for (line, row) in text.lines().zip(attack::ALL) {
        assert!(line.starts_with(row.name) && line.ends_with(row.about), "{line}");
    }
    assert_eq!(text.lines().count(), attack::ALL.len());
    for wrong in
        [&["no-such-attack"][..], &[], &["tables", "--driver", "abacus"], &["tables", "--seconds", "-1"]]
    {
        assert_eq!(flood(wrong).status.code(), Some(2), "{wrong:?}");
    }
}
