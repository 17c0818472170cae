//! The plans of the instruction counts do what they say, as often as they say, the same each time.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use ringwire_dataplane::counters::Counter;
use ringwire_sim::plan::{Manner, Plan};
use ringwire_sim::{Report, run_plan, steady};

fn passed(plan: Plan) -> Report {
    let again = run_plan(plan.clone(), false);
    let report = run_plan(plan, false);
    assert_eq!(report.failure, None);
    assert_eq!((report.hash, report.turns), (again.hash, again.turns));
    report
}

#[test]
fn payloads_arrive_in_frames_of_their_kind() {
    // Large writes leave the client in pieces that fit its send buffer; a Go client's and small ones one by one.
    for (manner, len, pieces) in [(Manner::Native, 65_536, 5), (Manner::Go, 4096, 1), (Manner::Go, 64, 1)] {
        let report = passed(steady::payloads(manner, len, 48));
        assert_eq!(report.bridges, (1, 1, 48 * len as u64));
        let frames = report.counters.value(Counter::FramesReceived);
        // The request and the response of the bridge are frames too.
        assert!((48..=48 * pieces + 6).contains(&frames), "{frames} frames for writes of {len} bytes");
    }
}

#[test]
fn handshakes_are_of_their_kind() {
    for hybrid in [false, true] {
        let report = passed(steady::handshakes(hybrid, 6));
        assert_eq!(report.counters.value(Counter::SessionsOpened), 6);
        assert_eq!(report.counters.value(Counter::SessionsHybrid), if hybrid { 6 } else { 0 });
    }
}

#[test]
fn opens_are_bridges() {
    let report = passed(steady::opens(12));
    assert_eq!(report.counters.value(Counter::BridgesOpened), 12);
    assert_eq!(report.counters.value(Counter::BridgesClosed), 12);
}
