//! Sessions and streams against a real server process, few and short.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use ringwire_benches::sessions::{Row, measure, unpinned};

fn found(row: Row) -> Vec<(&'static str, f64)> {
    measure(&unpinned(env!("CARGO_BIN_EXE_ringwire-benches").as_ref()), row).unwrap()
}

#[test]
fn handshakes_and_opens_have_a_cost() {
    for row in [Row::HandshakeClassical, Row::HandshakeHybrid, Row::Open] {
        let found = found(row);
        let names: Vec<_> = found.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["server_cpu_ms", "per_second", "p50_us", "p99_us"], "{row:?}");
        assert!(found.iter().all(|(_, value)| *value > 0.0), "{row:?} {found:?}");
    }
}

#[test]
fn idle_sessions_have_a_size() {
    let found = found(Row::Idle);
    let names: Vec<_> = found.iter().map(|(name, _)| *name).collect();
    // What so few sessions take may be memory that was there before: then it has no size.
    let all = ["vm_rss_mib", "bytes_per_session", "kernel_bytes_per_session", "core_percent"];
    assert!(names.iter().all(|name| all.contains(name)) && names.contains(&"core_percent"), "{found:?}");
    assert!(found[0].1 > 1.0, "{found:?}");
}

#[test]
fn idle_streams_have_a_size() {
    let found = found(Row::IdleStreams);
    let names: Vec<_> = found.iter().map(|(name, _)| *name).collect();
    let all = ["p50_us", "p99_us", "vm_rss_mib", "bytes_per_stream"];
    assert!(names == all || names == all[..3], "{found:?}");
    assert!(found[2].1 > 1.0, "{found:?}");
}
