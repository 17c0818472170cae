//! Plans that do one thing many times on perfect links: what the worker costs for each is counted with them.
//!
//! In: how often. Out: a [`Plan`] without faults and without chance. Run by [`crate::run_plan`]; called by
//! `cargo xtask bench micro`, which counts the instructions of `run::turn_worker` less those of
//! `SimDriver::pass_time`.

use ringwire_netem::{Nanos, SECOND_NS};

use crate::plan::{Answer, BridgePlan, EndPlan, FlowPlan, Manner, PeerPlan, Plan, Reader};
use crate::scenario::{honest, set_times};

/// When the first client connects, and when the first bridge is dialled.
const CONNECTS_AT: Nanos = 2 * SECOND_NS;
const DIALS_AT: Nanos = 4 * SECOND_NS;
/// Between two sessions or two dials: each is through before the next begins.
const PACE_NS: Nanos = 20_000_000;

/// `count` payloads of `len` bytes over one bridge, one write each.
#[must_use]
pub fn payloads(manner: Manner, len: usize, count: u64) -> Plan {
    let mut plan = Plan::empty(1, "steady");
    plan.peers = vec![client(0, manner, false, CONNECTS_AT), client(1, manner, false, CONNECTS_AT)];
    plan.bridges = vec![bridge(DIALS_AT, count * len as u64, len)];
    timed(plan)
}

/// `count` sessions one after another, with nothing on them.
#[must_use]
pub fn handshakes(hybrid: bool, count: u64) -> Plan {
    let mut plan = Plan::empty(1, "steady");
    plan.peers = (0..count)
        .map(|number| client(number as usize, Manner::Native, hybrid, CONNECTS_AT + number * PACE_NS))
        .collect();
    timed(plan)
}

/// `count` bridges one after another between two clients, eight bytes on each.
#[must_use]
pub fn opens(count: u64) -> Plan {
    let mut plan = Plan::empty(1, "steady");
    let client = |identity| client(identity, Manner::Native, false, CONNECTS_AT);
    plan.peers = vec![client(0), client(1)];
    plan.bridges = (0..count).map(|number| bridge(DIALS_AT + number * PACE_NS, 8, 8)).collect();
    timed(plan)
}

fn client(identity: usize, manner: Manner, hybrid: bool, connects_at: Nanos) -> PeerPlan {
    PeerPlan { identity, manner, hybrid, pings: false, ..honest(connects_at) }
}

fn bridge(at: Nanos, len: u64, write_len: usize) -> BridgePlan {
    let flow = |len| FlowPlan { len, write_len, pause_ns: 0, reader: Reader::Eager };
    BridgePlan {
        source: 0,
        destination: Some(1),
        at,
        forth: flow(len),
        back: flow(0),
        end: EndPlan::SourceAfterBoth,
        answer: Answer::Accepts(0),
        eager_len: 0,
    }
}

fn timed(mut plan: Plan) -> Plan {
    let last_ns = plan.peers.iter().map(|peer| peer.connects_at).max().unwrap_or_default();
    plan.quiesce_at = last_ns;
    set_times(&mut plan);
    plan
}
