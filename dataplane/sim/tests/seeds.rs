//! The simulator keeps its own promises: equal seeds are equal runs, the trace changes nothing, and a first block of seeds
//! passes. The 500 seeds of a CI run are `cargo xtask sim --seeds 500 --from 0`.

use std::collections::HashSet;

use ringwire_dataplane::counters::Counter;
use ringwire_sim::run::quiet_panics;
use ringwire_sim::{plan, run_seed, scenario};

#[test]
fn the_same_seed_is_the_same_run_to_the_last_event() {
    for seed in [0, 1, 2, 3, 5, 8, 13, 21, 34, 55] {
        let (first, again, traced) = (run_seed(seed, false), run_seed(seed, false), run_seed(seed, true));
        assert_eq!((first.hash, first.events), (again.hash, again.events), "seed {seed}");
        assert_eq!(first.hash, traced.hash, "seed {seed}: tracing only looks on");
        assert_eq!(traced.trace.len() as u64, traced.events);
        assert!(first.trace.is_empty());
    }
    let hashes: HashSet<u64> = (0..20).map(|seed| run_seed(seed, false).hash).collect();
    assert_eq!(hashes.len(), 20, "seeds differ");
}

#[test]
fn the_thinnest_seed_carries_its_bytes() {
    let report = run_seed(0, true);
    assert_eq!(report.failure, None);
    assert_eq!(report.bridges, (1, 1, 300_000));
    assert!(report.trace.iter().any(|line| line.contains("bridge 0  destination sees the end")));
}

#[test]
fn a_first_block_of_seeds_passes() {
    quiet_panics();
    let (mut sessions_smux, mut crossing) = (0, 0);
    for seed in 0..100 {
        let report = run_seed(seed, false);
        assert_eq!(report.failure, None, "replay with `cargo xtask sim --seeds 1 --from {seed} --trace`");
        sessions_smux += report.counters.value(Counter::SessionsSmux);
        crossing += report.counters.value(Counter::BridgesCrossing);
    }
    assert!(crossing > 100, "{crossing} bridges between workers");
    assert!(sessions_smux > 30, "{sessions_smux} sessions of smux");
}

#[test]
fn seeds_that_found_something_once_pass() {
    quiet_panics();
    // Sessions of smux 1 behind a small window; a FIN behind bytes without credit; connections looked at in a moment in which
    // they are rightly left unread.
    for seed in [20_300, 31_650, 6820, 2484, 2590, 10_496, 10_795, 10_910] {
        let report = run_seed(seed, false);
        assert_eq!(report.failure, None, "replay with `cargo xtask sim --seeds 1 --from {seed} --trace`");
    }
}

#[test]
fn every_theme_and_every_kind_of_fault_is_drawn() {
    let plans: Vec<plan::Plan> = (0..500).map(scenario::draw).collect();
    let themes: HashSet<&str> = plans.iter().map(|plan| plan.theme).collect();
    assert_eq!(themes.len(), 14, "{themes:?}");
    let mut faults = HashSet::new();
    for plan in &plans {
        for fault in plan.peers.iter().flat_map(|peer| &peer.faults) {
            faults.insert(std::mem::discriminant(fault));
        }
    }
    assert_eq!(faults.len(), 10);
    let multiplexers: HashSet<Option<u8>> = plans
        .iter()
        .flat_map(|plan| &plan.peers)
        .map(|peer| peer.smux.map(|version| version as u8))
        .collect();
    assert_eq!(multiplexers.len(), 3);
    let kernels: Vec<&plan::KernelPlan> = plans.iter().map(|plan| &plan.kernel).collect();
    assert!(kernels.iter().any(|kernel| kernel.ring_pages == 1));
    assert!(kernels.iter().any(|kernel| kernel.batch_max == 1));
    assert!(kernels.iter().any(|kernel| kernel.short_send > 0 && kernel.split_receive > 0 && kernel.reorder));
    let of = |workers| plans.iter().filter(|plan| plan.workers == workers).count();
    assert!(of(1) > 200 && of(2) > 75 && of(3) > 75, "{} {} {}", of(1), of(2), of(3));
    assert!(plans.iter().any(|plan| plan.workers > 1 && plan.handovers.len() > 5 && plan.kernel.pauses > 0));
    let completing: usize = plans
        .iter()
        .map(|plan| plan.bridges.iter().filter(|bridge| plan.must_complete(bridge)).count())
        .sum();
    let all: usize = plans.iter().map(|plan| plan.bridges.len()).sum();
    assert!(3 * completing > all, "many bridges have to work: {completing} of {all}");
}
