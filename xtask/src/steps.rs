//! Running other programs: where the workspace is, which cargo to call, and a list of timed steps.
//!
//! In: program arguments. Out: success, or an error that names the command to repeat. Used by every command.

use crate::{again, watch};
use anyhow::{Context, Result, anyhow, bail};
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// The top of the workspace: the directory above this package.
pub(crate) fn workspace_root() -> Result<PathBuf> {
    // Cargo sets the variable for `cargo run`, which is what the alias `cargo xtask` is. The path of the build is the
    // fallback for a binary that is started by hand.
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    let root = package.parent().context("the package directory has no parent")?;
    Ok(root.to_path_buf())
}

/// The cargo that runs this task, so that a toolchain override reaches every step.
pub(crate) fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// A cargo command at the top of the workspace.
pub(crate) fn cargo_command(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(cargo());
    command.current_dir(workspace_root()?).args(arguments);
    Ok(command)
}

/// Runs a command to its end; `words` is how a person would type it.
pub(crate) fn run(words: &str, command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("`{words}` could not be started"))?;
    if !status.success() {
        bail!("`{words}` failed ({status})");
    }
    Ok(())
}

/// One named step of a longer task.
#[derive(Clone)]
pub(crate) struct Step {
    /// Short name for the table.
    pub(crate) name: &'static str,
    /// Arguments to cargo.
    pub(crate) arguments: Vec<&'static str>,
    /// Environment added for this step.
    pub(crate) environment: Vec<(&'static str, &'static str)>,
    /// Packages whose tests are repeated, alone, when they have failed.
    pub(crate) repeated: &'static [&'static str],
}

impl Step {
    fn runs_tests(&self) -> bool {
        self.arguments.first() == Some(&"test")
    }
}

/// Runs the steps in order with `environment` added, and prints the time of each and every test that failed. A test that passed
/// when it was repeated is added to `flaky`.
///
/// A step that fails is the last one, unless it ran tests: those that follow may say more.
pub(crate) fn run_all(steps: &[Step], environment: &[(&str, &OsStr)], flaky: &mut Vec<String>) -> Result<()> {
    let began = Instant::now();
    let mut table = Vec::with_capacity(steps.len());
    let (mut failure, mut failed_tests) = (None, Vec::new());
    for (index, step) in steps.iter().enumerate() {
        let words = format!("cargo {}", step.arguments.join(" "));
        let (number, minutes) = (index + 1, began.elapsed().as_secs() / 60);
        eprintln!("==> {number}/{} after {minutes} min, {}: {words}", steps.len(), step.name);
        let step_began = Instant::now();
        let mut command = cargo_command(&step.arguments)?;
        command.envs(step.environment.iter().copied()).envs(environment.iter().copied());
        let result = if step.runs_tests() {
            let verdict = again::repeat(&watch::run(&mut command)?, step.repeated, |arguments| {
                let mut command = cargo_command(&[&["test"], arguments].concat())?;
                command.envs(step.environment.iter().copied());
                Ok(command)
            })?;
            flaky.extend(verdict.flaky);
            failed_tests.extend(verdict.failed);
            if verdict.passed { Ok(()) } else { Err(anyhow!("`{words}` failed")) }
        } else {
            run(&words, &mut command)
        };
        table.push((step.name, if result.is_ok() { "ok" } else { "FAILED" }, step_began.elapsed()));
        if let Err(error) = result {
            failure = failure.or(Some((step.name, error)));
            if !step.runs_tests() {
                break;
            }
        }
    }
    for step in &steps[table.len()..] {
        table.push((step.name, "not run", Duration::ZERO));
    }
    println!();
    for (name, outcome, time) in &table {
        println!("{name:<20} {outcome:<8} {:>8.1} s", time.as_secs_f64());
    }
    for test in &failed_tests {
        println!("FAILED: {test}");
    }
    for test in flaky.iter() {
        println!("FLAKY: {test} failed beside the others and passed alone: find out why");
    }
    let total = began.elapsed().as_secs_f64();
    match failure {
        None => {
            println!("total: {} steps passed in {total:.1} s", steps.len());
            Ok(())
        }
        Some((name, error)) => {
            println!("total: FAILED at {name} after {total:.1} s");
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workspace_root_holds_the_version_table() {
        let manifest = std::fs::read_to_string(workspace_root().unwrap().join("Cargo.toml")).unwrap();
        assert!(manifest.contains("[workspace.dependencies]"));
    }

    #[test]
    fn failing_tests_stop_nothing_and_fail_the_list() {
        let step = |name, arguments: &[&'static str]| Step {
            name,
            arguments: arguments.to_vec(),
            environment: vec![("CARGO_TERM_QUIET", "true")],
            repeated: &[],
        };
        let steps = [step("tests", &["test", "--no-such-option"]), step("next", &["no-such-command"])];
        let error = run_all(&steps[..1], &[], &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("cargo test --no-such-option"), "{error}");
        let error = run_all(&steps, &[], &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("cargo test --no-such-option"), "the first is named: {error}");
        run_all(&[step("version", &["--version"])], &[], &mut Vec::new()).unwrap();
    }

    #[test]
    fn a_failing_step_stops_the_list() {
        let step = |name, argument| Step {
            name,
            arguments: vec![argument],
            environment: vec![("CARGO_TERM_QUIET", "true")],
            repeated: &[],
        };
        let error = run_all(
            &[step("first", "--version"), step("second", "no-such-command"), step("third", "--version")],
            &[],
            &mut Vec::new(),
        )
        .unwrap_err();
        assert!(error.to_string().contains("cargo no-such-command"), "{error}");
        run_all(&[step("only", "--version")], &[], &mut Vec::new()).unwrap();
    }
}
