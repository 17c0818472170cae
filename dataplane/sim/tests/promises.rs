//! What the server promises of its bridges and sessions, each as a scenario of its own in virtual time.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use ringwire_dataplane::Share;
use ringwire_dataplane::counters::Counter;
use ringwire_dataplane::limits;
use ringwire_netem::{Nanos, Rate, SECOND_NS, Side, StreamConfig};
use ringwire_proto::smux::Version;
use ringwire_sim::plan::{
    Answer, BridgePlan, Character, EndPlan, Errand, Fault, FlowPlan, KernelPlan, LanePlan, Manner, PeerPlan,
    Plan, Reader, Rudeness, Strangeness,
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
        smux: None,
        pings: true,
        character: Character::Honest,
        answers_finish: true,
        errands: Vec::new(),
        faults: Vec::new(),
    }
}

/// A client that speaks smux, and at once, as clients of 2026 do.
fn smux_peer(identity: usize, version: Version) -> PeerPlan {
    PeerPlan {
        smux: Some(version),
        errands: vec![(2 * SECOND_NS, Errand::Ping)],
        ..peer(identity, Manner::Native)
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
        eager_len: 0,
    }
}

fn plan(peers: Vec<PeerPlan>, bridges: Vec<BridgePlan>) -> Plan {
    Plan {
        seed: 1,
        theme: "promise",
        peers,
        bridges,
        kernel: KernelPlan { memory_pages: 65_536, ..KernelPlan::smooth() },
        workers: 1,
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

fn stop_reading_for_a_minute(peers: &[PeerPlan; 2], pairs: u64) {
    // From before the first byte on.
    let reader = Reader::Pauses { from: 0, until: 65 * SECOND_NS };
    let flow = FlowPlan { len: STALLED_LEN, write_len: 16_000, pause_ns: 0, reader };
    let mut bridges = Vec::new();
    for _ in 0..pairs {
        bridges.push(bridge(0, 1, 5 * SECOND_NS, flow));
        bridges.push(bridge(1, 0, 5 * SECOND_NS, flow));
    }
    // In the middle of the standstill, a stream between the same two that is read at once.
    let lively = FlowPlan { len: 20_000, write_len: 1000, pause_ns: 0, reader: Reader::Eager };
    bridges.push(bridge(0, 1, 40 * SECOND_NS, lively));
    let report = run_plan(plan(peers.to_vec(), bridges), false);
    assert_eq!(report.failure, None);
    // The oracle saw both sessions live, every byte arrive, and the lively stream not starve; and nothing was cut short.
    assert_eq!(report.bridges.1, 2 * pairs + 1);
    assert_eq!(report.bridges.2, 2 * pairs * 2 * STALLED_LEN + 2 * 20_000);
    for counter in [Counter::SessionsDead, Counter::ResetsMemory, Counter::BytesDropped] {
        assert_eq!(report.counters.value(counter), 0, "{}", counter.name());
    }
}

#[test]
fn two_applications_that_stop_reading_for_a_minute_lose_nothing() {
    stop_reading_for_a_minute(&[peer(0, Manner::Native), peer(1, Manner::Native)], 64);
}

#[test]
fn two_go_clients_that_stop_reading_for_a_minute_lose_nothing() {
    stop_reading_for_a_minute(&[peer(0, Manner::Go), peer(1, Manner::Go)], 64);
}

#[test]
fn an_smux_client_and_a_yamux_client_that_stop_reading_for_a_minute_lose_nothing() {
    // Few streams: an smux client that holds 1 MiB unread leaves its connection unread, and is taken for dead after 25 s.
    stop_reading_for_a_minute(&[smux_peer(0, Version::V2), peer(1, Manner::Go)], 1);
}

#[test]
fn a_flood_of_handshakes_at_twice_the_lanes_capacity_keeps_nobody_else_out() {
    // Handshakes of the flood and of the honest take 20 ms of the lane on average; a stranger comes every 10 ms. First come,
    // first served would let an honest client wait for seconds at each of its two messages, and run out of its five.
    let mut peers = vec![peer(0, Manner::Native), peer(1, Manner::Go)];
    peers[0].connects_at = 4 * SECOND_NS;
    peers[1].connects_at = 5 * SECOND_NS;
    for number in 0..600 {
        let mut stranger = peer(2 + number, Manner::Native);
        stranger.character = Character::Stranger(Strangeness::Stops);
        stranger.hybrid = number % 2 == 0;
        stranger.connects_at = 2 * SECOND_NS + number as Nanos * SECOND_NS / 100;
        peers.push(stranger);
    }
    let flow = FlowPlan { len: 300_000, write_len: 16_000, pause_ns: 0, reader: Reader::Eager };
    let bridges = vec![bridge(0, 1, 6 * SECOND_NS, flow), bridge(1, 0, 6 * SECOND_NS, flow)];
    let mut plan = plan(peers, bridges);
    plan.kernel.lane = LanePlan { cost_ns: 40_000_000, ..plan.kernel.lane };
    let report = run_plan(plan, false);
    assert_eq!(report.failure, None);
    assert_eq!(report.bridges.1, 2);
    assert_eq!(report.counters.value(Counter::SessionsOpened), 2);
    assert_eq!(report.counters.value(Counter::HandshakesTimedOut), 600, "the flood, and nobody else");
    assert!(report.counters.value(Counter::LaneCancelled) > 0, "whoever is gone costs the lane nothing");
    assert_eq!(report.counters.value(Counter::LaneJobs), report.counters.value(Counter::LaneResults));
    assert!(
        report.counters.value(Counter::LaneStale) > 0,
        "and those that go while it works for them are noticed"
    );
}

#[test]
fn a_full_lane_refuses_what_comes_next_and_is_of_use_again_afterwards() {
    let mut peers = vec![peer(0, Manner::Native), peer(1, Manner::Native)];
    for number in 0..40 {
        // All at once, and before anybody else.
        let mut stranger = peer(2 + number, Manner::Native);
        stranger.character = Character::Stranger(Strangeness::Stops);
        stranger.connects_at = SECOND_NS;
        peers.push(stranger);
    }
    let flow = FlowPlan { len: 10_000, write_len: 1000, pause_ns: 0, reader: Reader::Eager };
    let mut plan = plan(peers, vec![bridge(0, 1, 5 * SECOND_NS, flow)]);
    plan.kernel.lane = LanePlan { cost_ns: 40_000_000, jobs_max: 8, ..plan.kernel.lane };
    let report = run_plan(plan, false);
    assert_eq!(report.failure, None);
    assert_eq!((report.bridges.1, report.counters.value(Counter::SessionsOpened)), (1, 2));
    let (refused, timed_out) =
        (report.counters.value(Counter::LaneRefused), report.counters.value(Counter::HandshakesTimedOut));
    assert!(refused >= 20, "{refused}");
    assert_eq!(refused + timed_out, 40);
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
    assert!(opened > u64::from(limits::UNFINISHED_PER_SESSION_MAX), "{opened} streams");
    assert_eq!(report.counters.value(Counter::StreamsClosed), opened);
    assert!(report.counters.value(Counter::RefusedUnfinished) > 0);
}

#[test]
fn streams_that_an_smux_client_never_closes_come_back() {
    // No reset tells it, and no clock of its multiplexer: the worker gives them up.
    let mut opener = smux_peer(0, Version::V2);
    opener.errands.clear();
    opener.character = Character::Opener(1000);
    opener.answers_finish = false;
    let mut plan = plan(vec![opener, peer(1, Manner::Go)], Vec::new());
    plan.quiesce_at = 110 * SECOND_NS;
    plan.settled_at = 120 * SECOND_NS;
    let report = run_plan(plan, false);
    assert_eq!(report.failure, None);
    let opened = report.counters.value(Counter::StreamsOpened);
    assert!(opened > u64::from(limits::UNFINISHED_PER_SESSION_MAX), "{opened} streams");
    assert_eq!(report.counters.value(Counter::StreamsClosed), opened);
    assert!(report.counters.value(Counter::RefusedUnfinished) > 0);
    assert_eq!(report.counters.value(Counter::SessionViolations), 0);
}

#[test]
fn a_silently_cut_smux_session_is_removed_within_45_seconds() {
    for offset in [0, 7, 13] {
        let cut_at = CUT_AT + offset * SECOND_NS;
        let mut gone = smux_peer(0, Version::V2);
        gone.faults.push(Fault::BlackHole(cut_at));
        let report = run_plan(plan(vec![gone, peer(1, Manner::Go)], Vec::new()), true);
        assert_eq!(report.failure, None);
        let after = first_close(&report) - cut_at;
        assert!(after <= 45 * SECOND_NS, "{} s", after / SECOND_NS);
    }
}

#[test]
fn a_client_that_never_says_a_word_is_let_go_and_told_nothing() {
    // Its handshake is done at 2 s; from then on nothing passes.
    let mut silent = peer(0, Manner::Go);
    silent.pings = false;
    silent.faults.push(Fault::BlackHole(2 * SECOND_NS + SECOND_NS / 2));
    let report = run_plan(plan(vec![silent, peer(1, Manner::Go)], Vec::new()), true);
    assert_eq!(report.failure, None);
    let after = first_close(&report) - 2 * SECOND_NS;
    assert!((44 * SECOND_NS..47 * SECOND_NS).contains(&after), "{} s", after / SECOND_NS);
    assert_eq!(report.counters.value(Counter::SessionsDead), 1);
    let sent = report.trace.iter().filter(|line| line.contains("socket 0  sent")).count();
    assert_eq!(sent, 1, "message 2 and nothing else");
}

#[test]
fn an_smux_client_that_ignores_its_window_before_it_is_bridged_loses_that_stream_alone() {
    let mut rude = smux_peer(0, Version::V2);
    rude.character = Character::Rude(10 * SECOND_NS, Rudeness::Overrun);
    // Its own bridge is under way meanwhile, and nobody else's business either.
    let flow = FlowPlan { len: 400_000, write_len: 4000, pause_ns: SECOND_NS / 20, reader: Reader::Eager };
    let bridges = vec![bridge(0, 1, 5 * SECOND_NS, flow)];
    let report = run_plan(plan(vec![rude, peer(1, Manner::Go)], bridges), false);
    assert_eq!(report.failure, None);
    assert_eq!(report.bridges.2, 2 * 400_000);
    assert_eq!(report.counters.value(Counter::ResetsUnbridged), 1);
    assert_eq!(report.counters.value(Counter::SessionViolations), 0);
    assert!(report.counters.value(Counter::BytesDropped) >= 60_000);
}

#[test]
fn a_source_that_sends_far_ahead_of_its_bridge_loses_that_stream_and_what_answers_ahead_does_not() {
    let flow = FlowPlan { len: 400_000, write_len: 4000, pause_ns: 0, reader: Reader::Eager };
    let mut ahead = bridge(0, 1, 5 * SECOND_NS, flow);
    ahead.eager_len = 200_000;
    ahead.end = EndPlan::Never;
    // Whoever is dialled may send as much as its window behind its answer at once.
    let honest = bridge(2, 1, 5 * SECOND_NS, flow);
    let peers = vec![peer(0, Manner::Native), peer(1, Manner::Native), peer(2, Manner::Native)];
    let mut plan = plan(peers, vec![ahead, honest]);
    // It is for this reason alone that the first may end so.
    plan.is_tight = true;
    let report = run_plan(plan, false);
    assert_eq!(report.failure, None);
    assert_eq!(report.counters.value(Counter::ResetsUnbridged), 1);
    assert_eq!(
        report.counters.value(Counter::ResetsMemory) + report.counters.value(Counter::ResetsHolder),
        0
    );
    assert!(report.bridges.2 >= 2 * 400_000, "{} bytes of the other", report.bridges.2);
    assert_eq!(
        report.counters.value(Counter::SessionsDead) + report.counters.value(Counter::SessionViolations),
        0
    );
}

#[test]
fn an_answer_behind_a_slow_neighbour_is_lost_with_smux_version_1_and_with_no_other_multiplexer() {
    for (version, opens) in [(Some(Version::V1), false), (Some(Version::V2), true), (None, true)] {
        // It writes megabytes for somebody who takes 60 kB/s, and is dialled while they wait in its connection.
        let mut sender = version.map_or_else(|| peer(0, Manner::Go), |version| smux_peer(0, version));
        sender.manner = Manner::Go;
        (sender.up.send_buffer_len, sender.up.receive_buffer_len) = (2 << 20, 4 << 20);
        let mut slow = peer(1, Manner::Native);
        slow.down.line.rate = Rate::Constant(60_000);
        let bulk = FlowPlan { len: 5_000_000, write_len: 65_536, pause_ns: 0, reader: Reader::Eager };
        let little = FlowPlan { len: 100, write_len: 100, ..bulk };
        let mut bridges = vec![bridge(0, 1, 5 * SECOND_NS, bulk), bridge(2, 0, 8 * SECOND_NS, little)];
        bridges[0].back = little;
        let report = run_plan(plan(vec![sender, slow, peer(2, Manner::Native)], bridges), false);
        // The oracle knows what that costs, and that the server reads on as soon as there is room.
        assert_eq!(report.failure, None, "{version:?}");
        assert_eq!(report.bridges.1, 1 + u64::from(opens), "{version:?}");
        assert_eq!(report.counters.value(Counter::StreamsTimedOut) > 0, !opens, "{version:?}");
        assert_eq!(report.bridges.2, 5_000_100 + if opens { 200 } else { 0 }, "{version:?}");
        assert_eq!(report.counters.value(Counter::SessionsDead), 0, "{version:?}");
    }
}

#[test]
fn a_destination_is_waited_for_as_long_as_the_most_patient_dialler_does() {
    let flow = FlowPlan { len: 1000, write_len: 100, pause_ns: 0, reader: Reader::Eager };
    for workers in [1, 2] {
        for (answer, bridges) in [
            (Answer::Accepts(7 * SECOND_NS), 1),
            (Answer::Accepts(19 * SECOND_NS), 1),
            // Given up by then: the dialler is told, and the late answer harms nobody.
            (Answer::Accepts(21 * SECOND_NS), 0),
            (Answer::Silent, 0),
        ] {
            let mut slow = bridge(0, 1, 5 * SECOND_NS, flow);
            slow.answer = answer;
            let mut plan = plan(vec![peer(0, Manner::Go), peer(1, Manner::Go)], vec![slow]);
            plan.workers = workers;
            let report = run_plan(plan, false);
            assert_eq!(report.failure, None, "{answer:?}, {workers} workers");
            assert_eq!(report.bridges.1, bridges, "{answer:?}, {workers} workers");
            assert_eq!(report.counters.value(Counter::StreamsTimedOut), 1 - bridges, "{answer:?}");
        }
    }
}

#[test]
fn a_machine_and_its_clone_both_stay_and_one_is_dialled() {
    let flow = FlowPlan { len: 1000, write_len: 100, pause_ns: 0, reader: Reader::Eager };
    for workers in [1, 2] {
        // The machine has said something by then.
        let mut clone = peer(0, Manner::Go);
        clone.connects_at = 12 * SECOND_NS;
        let bridges = (0..24).map(|number| bridge(1, 0, (13 + number) * SECOND_NS, flow)).collect();
        let mut plan = plan(vec![peer(0, Manner::Go), peer(1, Manner::Go), clone], bridges);
        plan.workers = workers;
        // One of a single worker hands over what it knows of them.
        plan.handovers = vec![14 * SECOND_NS, 31 * SECOND_NS];
        let report = run_plan(plan, false);
        assert_eq!(report.failure, None, "{workers} workers");
        assert_eq!((report.bridges.1, report.bridges.2), (24, 24 * 2000), "{workers} workers");
        let value = |counter| report.counters.value(counter);
        assert_eq!((value(Counter::SessionsStandby), value(Counter::SessionsDisplaced)), (1, 0));
        assert_eq!(value(Counter::KeysContested), 1);
    }
}

#[test]
fn two_clients_of_one_key_that_come_together_and_say_nothing_change_places_once() {
    // Clients of 2024 after a restart of their server: their first ping comes after 30 s, and they come back as soon as they are closed.
    let reconnect = |at| {
        let mut peer = peer(0, Manner::Go);
        peer.connects_at = at;
        peer.pings = false;
        peer.faults.push(Fault::BlackHole(at + SECOND_NS / 3));
        peer
    };
    let silent =
        vec![reconnect(2 * SECOND_NS), reconnect(2 * SECOND_NS + SECOND_NS / 2), reconnect(4 * SECOND_NS)];
    let mut plan = plan(silent, Vec::new());
    plan.quiesce_at = 40 * SECOND_NS;
    plan.settled_at = 45 * SECOND_NS;
    let report = run_plan(plan, false);
    assert_eq!(report.failure, None);
    assert_eq!(report.counters.value(Counter::SessionsDisplaced), 1);
}

#[test]
fn a_client_behind_a_link_that_died_is_reached_as_soon_as_it_is_back() {
    let flow = FlowPlan { len: 1000, write_len: 100, pause_ns: 0, reader: Reader::Eager };
    for workers in [1, 2] {
        let (mut frozen, mut again) = (peer(0, Manner::Go), peer(0, Manner::Go));
        frozen.faults.push(Fault::BlackHole(CUT_AT));
        again.connects_at = CUT_AT + 2 * SECOND_NS;
        // While it is not known yet that the other session is dead, and later.
        let dials = [CUT_AT + 2 * SECOND_NS + SECOND_NS / 5, CUT_AT + 5 * SECOND_NS];
        let bridges = dials.map(|at| bridge(1, 2, at, flow)).to_vec();
        let mut plan = plan(vec![frozen, peer(1, Manner::Go), again], bridges);
        plan.workers = workers;
        let report = run_plan(plan, false);
        assert_eq!(report.failure, None, "{workers} workers");
        assert_eq!(report.bridges.1, 2, "{workers} workers");
        assert_eq!(report.counters.value(Counter::SessionsDisplaced), 1);
        assert_eq!(report.counters.value(Counter::KeysContested), 0);
    }
}

#[test]
fn what_a_client_sent_before_it_closed_its_connection_arrives_and_then_the_end() {
    for (workers, smux) in [(1, None), (2, None), (1, Some(Version::V2)), (2, Some(Version::V1))] {
        for len in [8000, 100_000] {
            let reader = Reader::Slow { len, every_ns: SECOND_NS / 10 };
            // More than the reader's window, and it closes as soon as all of it is on its way.
            let flow = FlowPlan { len: 393_216, write_len: 16_000, pause_ns: 0, reader };
            let mut one_way = bridge(0, 1, 5 * SECOND_NS, flow);
            (one_way.back, one_way.end) = (FlowPlan { len: 0, ..flow }, EndPlan::Never);
            let mut closes = smux.map_or_else(|| peer(0, Manner::Go), |version| smux_peer(0, version));
            closes.faults.push(Fault::CloseAt(5 * SECOND_NS + SECOND_NS / 2));
            let mut plan = plan(vec![closes, peer(1, Manner::Go)], vec![one_way]);
            plan.workers = workers;
            let report = run_plan(plan, true);
            assert_eq!(report.failure, None, "{workers} workers, {smux:?}");
            assert_eq!(report.bridges.2, 393_216, "{workers} workers, {smux:?}");
            assert!(report.trace.iter().any(|line| line.contains("destination sees the end")), "a clean end");
        }
    }
}

#[test]
fn an_smux_client_whose_bytes_nobody_takes_is_rid_of_their_stream_when_the_end_comes() {
    // By then the other one has filled its window and more.
    let takes = FlowPlan { len: 100, write_len: 10, pause_ns: SECOND_NS / 4, reader: Reader::Eager };
    let mut one_sided = bridge(0, 1, 5 * SECOND_NS, takes);
    one_sided.back =
        FlowPlan { len: STALLED_LEN, write_len: 16_000, pause_ns: 0, reader: Reader::StopsAfter(1000) };
    one_sided.end = EndPlan::SourceWhenSent;
    let report = run_plan(plan(vec![peer(0, Manner::Go), smux_peer(1, Version::V2)], vec![one_sided]), false);
    // The oracle found no stream at either of them.
    assert_eq!(report.failure, None);
    assert_eq!(report.bridges.1, 1);
}

#[test]
fn a_worker_that_is_not_let_run_holds_others_up_and_costs_nobody_a_byte() {
    // Bulk of several streams each way in small frames, and a worker that stands still for up to 400 ms: its mailbox fills.
    let flow = FlowPlan { len: 600_000, write_len: 1000, pause_ns: 0, reader: Reader::Eager };
    let (mut crossing, mut parked) = (0, 0);
    for seed in 0..8 {
        let bridges =
            (0..8).map(|number| bridge(number % 4, (number + 1) % 4, 5 * SECOND_NS, flow)).collect();
        let peers = (0..4).map(|identity| peer(identity, Manner::Go)).collect();
        let mut plan = plan(peers, bridges);
        plan.seed = seed;
        plan.workers = 2;
        plan.kernel = KernelPlan { pauses: 20_000, pause_ns: 400_000_000, ..plan.kernel };
        let report = run_plan(plan, false);
        assert_eq!(report.failure, None, "seed {seed}");
        assert_eq!((report.bridges.1, report.bridges.2), (8, 16 * 600_000), "seed {seed}");
        assert_eq!(report.counters.value(Counter::BytesDropped), 0, "seed {seed}");
        crossing += report.counters.value(Counter::BridgesCrossing);
        parked += report.counters.value(Counter::LettersWaited);
    }
    assert!(crossing > 0 && parked > 0, "{crossing} crossing, {parked} times parked");
}

#[test]
fn extra_credit_grows_with_use_ends_with_idleness_and_grows_again() {
    let mut far = peer(0, Manner::Native);
    for way in [&mut far.up, &mut far.down] {
        way.line.delay_ns = SECOND_NS / 20;
        way.line.rate = Rate::Constant(30_000_000);
        way.retransmit_ns = SECOND_NS / 3;
        way.segment_len = 16_384;
        (way.send_buffer_len, way.receive_buffer_len) = (2 << 20, 4 << 20);
    }
    let flow = FlowPlan { len: 6_000_000, write_len: 65_536, pause_ns: 0, reader: Reader::Eager };
    let little = FlowPlan { len: 1, ..flow };
    let mut idle = bridge(0, 1, 5 * SECOND_NS, flow);
    (idle.back, idle.end) = (little, EndPlan::Never);
    let later = BridgePlan { at: 20 * SECOND_NS, ..idle.clone() };
    let mut plan = plan(vec![far, peer(1, Manner::Native)], vec![idle, later]);
    plan.quiesce_at = 60 * SECOND_NS;
    plan.settled_at = 120 * SECOND_NS;
    let report = run_plan(plan, false);
    assert_eq!(report.failure, None);
    let [granted, idle] =
        [Counter::ExtraCredit, Counter::ExtraCreditIdle].map(|counter| report.counters.value(counter));
    assert!(granted > 0 && idle == granted, "{granted} bytes were granted, {idle} ended idle");
    assert_eq!(report.bridges.2, 2 * 6_000_001);
}

/// The bytes of several bulk streams in frames of a few bytes, each turn taking three frames of a session, and the worker replaced
/// again and again while there is a rest.
#[test]
fn what_a_turn_has_no_room_for_is_handled_later_and_goes_along_to_a_successor() {
    let flow = FlowPlan { len: 60_000, write_len: 100, pause_ns: 0, reader: Reader::Eager };
    let bridges = (0..6).map(|number| bridge(number % 3, (number + 1) % 3, 5 * SECOND_NS, flow)).collect();
    let mut plan = plan((0..3).map(|identity| peer(identity, Manner::Go)).collect(), bridges);
    plan.kernel.share = Share { frames: 3, len: 2000 };
    plan.handovers = (0..40).map(|number| 5 * SECOND_NS + number * SECOND_NS / 20).collect();
    let report = run_plan(plan, false);
    assert_eq!(report.failure, None);
    assert_eq!((report.bridges.1, report.bridges.2), (6, 12 * 60_000));
    assert_eq!(report.counters.value(Counter::BytesDropped), 0);
    let carried = report.counters.value(Counter::ReceivesCarriedOver);
    assert!(carried >= 20, "{carried}");
    assert_eq!(report.counters.value(Counter::Thaws), 40);
}

#[test]
fn a_client_that_sends_and_takes_nothing_is_let_go() {
    for offset in [0, 11, 23] {
        let cut_at = CUT_AT + offset * SECOND_NS;
        let mut deaf = peer(0, Manner::Go);
        deaf.character = Character::Rude(SECOND_NS, Rudeness::Deaf);
        deaf.pings = false;
        deaf.faults.push(Fault::CutOneWay(cut_at, Side::B));
        let plan = plan(vec![deaf, peer(1, Manner::Go)], Vec::new());
        let report = run_plan(plan, true);
        assert_eq!(report.failure, None);
        let after = first_close(&report) - cut_at;
        // The next ping, and two looks.
        assert!(after <= (30 + 2 * 15 + 1) * SECOND_NS, "{} s", after / SECOND_NS);
        assert_eq!(report.counters.value(Counter::SessionsDead), 1);
    }
}

#[test]
fn a_client_that_takes_a_little_now_and_then_is_not_let_go() {
    // What waits in front of a ping takes a minute on its way. It says something now and then, and minds nothing.
    let mut slow = peer(0, Manner::Go);
    slow.character = Character::Rude(SECOND_NS, Rudeness::Deaf);
    slow.pings = false;
    slow.down.line.rate = Rate::Constant(3000);
    let flow = FlowPlan { len: 400_000, write_len: 4000, pause_ns: 0, reader: Reader::Eager };
    let mut one = bridge(1, 0, 5 * SECOND_NS, flow);
    one.back = FlowPlan { len: 1000, write_len: 10, pause_ns: SECOND_NS, reader: Reader::Eager };
    let report = run_plan(plan(vec![slow, peer(1, Manner::Go)], vec![one]), false);
    assert_eq!(report.failure, None);
    assert_eq!(report.counters.value(Counter::SessionsDead), 0);
    assert!(report.bridges.2 > 300_000, "{} bytes", report.bridges.2);
}
