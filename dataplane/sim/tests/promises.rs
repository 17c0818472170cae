//! What the server promises of its bridges and sessions, each as a scenario of its own in virtual time.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use ringwire_dataplane::counters::Counter;
use ringwire_netem::{Nanos, SECOND_NS, StreamConfig};
use ringwire_sim::plan::{
    Answer, BridgePlan, Character, EndPlan, Fault, FlowPlan, KernelPlan, Manner, PeerPlan, Plan, Reader,
};
use ringwire_sim::{Report, run_plan};

fn peer(identity: usize, manner: Manner) -> PeerPlan {
    PeerPlan {
        identity,
        connects_at: 2 * SECOND_NS,
        up: StreamConfig::default(),
        down: StreamConfig::default(),
        hybrid: true,
        manner,
        pings: true,
        character: Character::Honest,
        answers_finish: true,
        errands: Vec::new(),
        faults: Vec::new(),
    }
}

fn bridge(source: usize, destination: usize, at: Nanos, flow: FlowPlan) -> BridgePlan {
    BridgePlan {
        source,
        destination: Some(destination),
        at,
        forth: flow,
        back: flow,
        end: EndPlan::SourceAfterBoth,
        answer: Answer::Accepts(0),
        is_eager: false,
    }
}

fn plan(peers: Vec<PeerPlan>, bridges: Vec<BridgePlan>) -> Plan {
    Plan {
        seed: 1,
        theme: "promise",
        peers,
        bridges,
        kernel: KernelPlan { memory_pages: 65_536, ..KernelPlan::smooth() },
        is_tight: false,
        quiesce_at: 300 * SECOND_NS,
        settled_at: 400 * SECOND_NS,
        handovers: Vec::new(),
        stops_at: None,
        stops_with_sessions: false,
    }
}

/// Bytes of one direction, more than a window, so that the way fills up while nobody reads.
const STALLED_LEN: u64 = 600_000;

fn stop_reading_for_a_minute(manner: Manner) {
    // From before the first byte on.
    let reader = Reader::Pauses { from: 0, until: 65 * SECOND_NS };
    let flow = FlowPlan { len: STALLED_LEN, write_len: 16_000, pause_ns: 0, reader };
    let mut bridges = Vec::new();
    for _ in 0..64 {
        bridges.push(bridge(0, 1, 5 * SECOND_NS, flow));
        bridges.push(bridge(1, 0, 5 * SECOND_NS, flow));
    }
    // In the middle of the standstill, a stream between the same two that is read at once.
    let lively = FlowPlan { len: 20_000, write_len: 1000, pause_ns: 0, reader: Reader::Eager };
    bridges.push(bridge(0, 1, 40 * SECOND_NS, lively));
    let report = run_plan(plan(vec![peer(0, manner), peer(1, manner)], bridges), false);
    assert_eq!(report.failure, None);
    // The oracle saw both sessions live, every byte arrive, and the lively stream not starve; and nothing was cut short.
    assert_eq!(report.bridges.1, 129);
    assert_eq!(report.bridges.2, 128 * 2 * STALLED_LEN + 2 * 20_000);
    for counter in [Counter::SessionsDead, Counter::ResetsMemory, Counter::BytesDropped] {
        assert_eq!(report.counters.value(counter), 0, "{}", counter.name());
    }
}

#[test]
fn two_applications_that_stop_reading_for_a_minute_lose_nothing() {
    stop_reading_for_a_minute(Manner::Native);
}

#[test]
fn two_go_clients_that_stop_reading_for_a_minute_lose_nothing() {
    stop_reading_for_a_minute(Manner::Go);
}

/// When the worker closed the first connection, in nanoseconds of virtual time.
fn first_close(report: &Report) -> Nanos {
    let line = report.trace.iter().find(|line| line.contains("the worker closes it")).unwrap();
    let seconds: f64 = line.split_whitespace().next().unwrap().parse().unwrap();
    (seconds * SECOND_NS as f64) as Nanos
}

const CUT_AT: Nanos = 20 * SECOND_NS;

#[test]
fn a_silently_cut_idle_session_is_removed_within_45_seconds() {
    // The cut comes at the worst moment: right after a ping was answered.
    for offset in [0, 7, 13, 29] {
        let cut_at = CUT_AT + offset * SECOND_NS;
        let mut gone = peer(0, Manner::Go);
        gone.faults.push(Fault::BlackHole(cut_at));
        let report = run_plan(plan(vec![gone, peer(1, Manner::Go)], Vec::new()), true);
        assert_eq!(report.failure, None);
        let after = first_close(&report) - cut_at;
        assert!(after <= 45 * SECOND_NS, "{} s", after / SECOND_NS);
        assert_eq!(report.counters.value(Counter::SessionsDead), 1);
    }
}

#[test]
fn a_silently_cut_session_with_data_queued_is_removed_within_30_seconds() {
    let mut gone = peer(0, Manner::Go);
    gone.faults.push(Fault::BlackHole(CUT_AT));
    // Bytes towards the one that is cut off, all the time.
    let flow = FlowPlan { len: 4_000_000, write_len: 4000, pause_ns: SECOND_NS / 50, reader: Reader::Eager };
    let report =
        run_plan(plan(vec![gone, peer(1, Manner::Go)], vec![bridge(1, 0, 5 * SECOND_NS, flow)]), true);
    assert_eq!(report.failure, None);
    let after = first_close(&report) - CUT_AT;
    assert!(after <= 30 * SECOND_NS, "{} s", after / SECOND_NS);
}

#[test]
fn ten_thousand_streams_that_a_client_never_closes_come_back() {
    let mut opener = peer(0, Manner::Go);
    opener.character = Character::Opener(10_000);
    opener.answers_finish = false;
    // The oracle looks at 120 s, with the session still up: no stream, no page, no promise is left.
    let mut plan = plan(vec![opener, peer(1, Manner::Go)], Vec::new());
    plan.quiesce_at = 110 * SECOND_NS;
    plan.settled_at = 120 * SECOND_NS;
    let report = run_plan(plan, false);
    assert_eq!(report.failure, None);
    let opened = report.counters.value(Counter::StreamsOpened);
    assert!(opened >= 2048, "{opened} streams");
    assert_eq!(report.counters.value(Counter::StreamsClosed), opened);
    assert!(report.counters.value(Counter::RefusedStreamLimit) > 0);
}
