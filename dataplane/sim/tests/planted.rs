//! Proof that the oracle sees: thirteen bugs, listed beforehand, planted one at a time into the worker. Each is caught within a
//! bounded number of seeds. Run with `cargo test -p ringwire-sim --features planted`.
#![cfg(feature = "planted")]

use ringwire_dataplane::planted::{self, Bug};
use ringwire_sim::run::quiet_panics;
use ringwire_sim::run_seed;

/// Seeds within which each bug has to show.
const SEEDS: u64 = 500;

#[test]
fn each_of_the_thirteen_planted_bugs_is_caught() {
    quiet_panics();
    let mut missed = Vec::new();
    for bug in Bug::ALL {
        planted::set(Some(bug));
        // Seed 0 has no faults; what it catches is listed like the others.
        let caught = (0..SEEDS).find_map(|seed| Some((seed, run_seed(seed, false).failure?)));
        planted::set(None);
        match caught {
            Some((seed, failure)) => println!("{bug:?}: seed {seed}: {}", failure.what),
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not caught within {SEEDS} seeds: {missed:?}");
}
