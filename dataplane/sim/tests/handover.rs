//! Freeze and thaw under load, a thousand times: a worker is handed over at a time that the case draws, in the middle of a
//! verified transfer of 64 streams with short sends and split receives, so with half-received frames, queued chunks and partly
//! sent frames. The oracle compares every byte.

use ringwire_dataplane::counters::Counter;
use ringwire_netem::{LineConfig, Nanos, Random, Rate, SECOND_NS, StreamConfig};
use ringwire_proto::smux::Version;
use ringwire_sim::plan::{
    Answer, BridgePlan, Character, EndPlan, Errand, FlowPlan, KernelPlan, Manner, PeerPlan, Plan, Reader,
};
use ringwire_sim::run_plan;

const CASES: u64 = 1000;
const STREAMS: u64 = 64;
const STARTS_AT: Nanos = 3 * SECOND_NS;

fn case(seed: u64) -> Plan {
    let mut random = Random::new(seed);
    let rate = random.range(300_000, 3_000_000);
    let way = || StreamConfig {
        line: LineConfig { rate: Rate::Constant(rate), ..LineConfig::with_delay(2_000_000) },
        ..StreamConfig::default()
    };
    let peers = (0..2)
        .map(|identity| PeerPlan {
            identity,
            connects_at: SECOND_NS + SECOND_NS / 10,
            up: way(),
            down: way(),
            hybrid: false,
            manner: if random.chance(500_000) { Manner::Go } else { Manner::Native },
            smux: *random.pick(&[None, Some(Version::V1), Some(Version::V2)]),
            pings: true,
            character: Character::Honest,
            answers_finish: true,
            // A first byte, by which its multiplexer is known.
            errands: vec![(SECOND_NS, Errand::Ping)],
            faults: Vec::new(),
        })
        .collect();
    let mut payload = 0;
    let bridges = (0..STREAMS)
        .map(|index| {
            let mut flow = || {
                let len = random.range(1, 12_000);
                payload += len;
                FlowPlan {
                    len,
                    write_len: random.range(1, 5000) as usize,
                    pause_ns: 0,
                    reader: Reader::Eager,
                }
            };
            let (source, destination) = if index % 2 == 0 { (0, 1) } else { (1, 0) };
            BridgePlan {
                source,
                destination: Some(destination),
                at: STARTS_AT,
                forth: flow(),
                back: flow(),
                end: EndPlan::SourceAfterBoth,
                answer: Answer::Accepts(0),
                eager_len: 0,
            }
        })
        .collect();
    // Somewhere between the first request and the last byte.
    let takes_ns = payload * SECOND_NS / rate + SECOND_NS / 5;
    let handovers = (0..random.range(1, 4)).map(|_| STARTS_AT + random.range(0, takes_ns)).collect();
    Plan {
        seed,
        theme: "handover",
        peers,
        bridges,
        kernel: KernelPlan {
            memory_pages: 16_384,
            short_send: 300_000,
            split_receive: 300_000,
            short_receive: 300_000,
            ..KernelPlan::smooth()
        },
        workers: 1,
        is_tight: false,
        quiesce_at: 40 * SECOND_NS,
        settled_at: 80 * SECOND_NS,
        handovers,
        stops_at: None,
        stops_with_sessions: false,
    }
}

#[test]
fn a_worker_handed_over_in_mid_transfer_loses_nothing_in_a_thousand_cases() {
    let threads = 2;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                for seed in (thread..CASES).step_by(threads as usize) {
                    let plan = case(seed);
                    let payload: u64 =
                        plan.bridges.iter().map(|bridge| bridge.forth.len + bridge.back.len).sum();
                    let report = run_plan(plan, false);
                    assert_eq!(report.failure, None, "case {seed}");
                    assert_eq!(report.bridges, (STREAMS as usize, STREAMS, payload), "case {seed}");
                }
            });
        }
    });
}

#[test]
fn one_of_several_workers_handed_over_in_mid_transfer_loses_nothing() {
    let mut crossing = 0;
    for seed in 0..CASES / 5 {
        let mut plan = case(CASES + seed);
        plan.workers = 2 + seed as usize % 2;
        let payload: u64 = plan.bridges.iter().map(|bridge| bridge.forth.len + bridge.back.len).sum();
        let report = run_plan(plan, false);
        assert_eq!(report.failure, None, "case {seed}");
        assert_eq!(report.bridges, (STREAMS as usize, STREAMS, payload), "case {seed}");
        crossing += report.counters.value(Counter::BridgesCrossing);
    }
    assert!(crossing > CASES / 10 * STREAMS / 2, "{crossing} bridges between workers");
}
