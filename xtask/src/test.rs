//! `cargo xtask test`: what a reviewer and the continuous integration run, cheapest step first.

use crate::steps::{Step, run_all, workspace_root};
use anyhow::{Context, Result};

/// No options: the command means the same everywhere.
#[derive(clap::Args)]
pub(crate) struct Arguments {}

/// Runs format check, the look at the documents, clippy, documentation, all tests, 500 seeds of the simulator and the proof that it catches bugs. A test
/// that fails hides no other; each that failed, or hung and was ended, is named at the end. One on real sockets or processes
/// that failed is repeated alone: if it passes, it is named as flaky and fails nothing.
pub(crate) fn run(_arguments: &Arguments) -> Result<()> {
    let target = workspace_root()?.join("target");
    let (skips, flakes) = (target.join("skipped-tests"), target.join("flaky-tests"));
    let _ = std::fs::remove_file(&skips);
    let _ = std::fs::remove_file(&flakes);
    let mut flaky = Vec::new();
    let outcome = run_all(&steps(), &[(SKIP_LOG, skips.as_os_str())], &mut flaky);
    if !flaky.is_empty() {
        std::fs::write(&flakes, flaky.join("\n") + "\n")
            .with_context(|| format!("{} cannot be written", flakes.display()))?;
    }
    // A driver that the host lacks fails its tests, unless the caller allowed it to be missing; then it is said here.
    let skipped = std::fs::read_to_string(&skips).unwrap_or_default();
    println!("skipped: {} tests", skipped.lines().count());
    for name in skipped.lines() {
        println!("  {name}");
    }
    outcome
}

/// Environment variable with the file that gets a line for each skipped test.
const SKIP_LOG: &str = "RINGWIRE_SKIP_LOG";

/// Packages with tests on real sockets, processes and clocks: such a test can fail because a machine was busy elsewhere. Those of
/// the others, the simulator and the models only fail when they are right to.
const REPEATED: &[&str] = &["ringwire", "ringwire-benches", "ringwire-dataplane", "ringwire-ipc", "xtask"];

fn steps() -> Vec<Step> {
    let step = |name, arguments: &[&'static str], environment: &[(&'static str, &'static str)]| Step {
        name,
        arguments: arguments.to_vec(),
        environment: environment.to_vec(),
        repeated: &[],
    };
    let tests = step("tests", &["test", "--workspace", "--no-fail-fast"], &[]);
    vec![
        step("format", &["fmt", "--all", "--check"], &[]),
        step("tidy", &["xtask", "tidy"], &[]),
        step("clippy", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"], &[]),
        step("documents", &["doc", "--workspace", "--no-deps"], &[("RUSTDOCFLAGS", "-D warnings")]),
        Step { repeated: REPEATED, ..tests },
        step(
            "shuttle",
            &["test", "--package", "ringwire-ipc", "--features", "shuttle", "--test", "shuttle"],
            &[],
        ),
        step("loom", &["test", "--package", "ringwire-ipc", "--features", "loom", "--test", "loom"], &[]),
        step(
            "loom of the exchange",
            &["test", "--package", "ringwire-exchange", "--features", "loom", "--test", "loom"],
            &[],
        ),
        step("simulation", &["run", "--quiet", "--package", "ringwire-sim", "--", "--seeds", "500"], &[]),
        step(
            "planted bugs",
            &["test", "--package", "ringwire-sim", "--features", "planted", "--test", "planted"],
            &[],
        ),
    ]
}
