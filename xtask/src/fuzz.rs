//! `cargo xtask fuzz [target] [--seconds N]`: runs the fuzz targets of `dataplane/proto/fuzz`.
//!
//! The fuzz package is outside the workspace because it needs a nightly compiler and libFuzzer; this command checks for
//! both and names the cure when one is missing.

use crate::steps::{run as run_command, workspace_root};
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::{Command, Stdio};

/// Which target, and for how long.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A target of dataplane/proto/fuzz; all of them in turn when absent.
    target: Option<String>,
    /// Seconds for each target.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

/// Fuzzes one target, or all in the order of their names.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let package = workspace_root()?.join("dataplane/proto/fuzz");
    let targets = targets_of(&package)?;
    let chosen: Vec<&String> = match &arguments.target {
        None => targets.iter().collect(),
        Some(name) => targets.iter().filter(|target| *target == name).collect(),
    };
    if chosen.is_empty() {
        bail!("no such fuzz target; there are: {}", targets.join(", "));
    }
    check_for_tools()?;
    for target in chosen {
        let limit = format!("-max_total_time={}", arguments.seconds);
        let words = format!("cargo +nightly fuzz run {target} -- {limit}");
        eprintln!("==> {words}");
        let mut command = rustup_cargo();
        command.args(["fuzz", "run", target, "--", &limit]).current_dir(&package);
        run_command(&words, &mut command)?;
    }
    Ok(())
}

/// The names of the files in `fuzz_targets`, which cargo-fuzz uses as the names of the targets.
fn targets_of(package: &Path) -> Result<Vec<String>> {
    let directory = package.join("fuzz_targets");
    let entries = std::fs::read_dir(&directory)
        .with_context(|| format!("there are no fuzz targets in {}", directory.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs")
            && let Some(name) = path.file_stem().and_then(|name| name.to_str())
        {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// `cargo` through rustup's proxy: the cargo that runs this task ignores `+nightly`.
fn rustup_cargo() -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", "cargo"]).env_remove("CARGO").env_remove("RUSTUP_TOOLCHAIN");
    command
}

fn check_for_tools() -> Result<()> {
    if !answers(Command::new("rustup").args(["run", "nightly", "rustc", "--version"])) {
        bail!(
            "fuzzing needs a nightly compiler; install it with `rustup toolchain install nightly --profile minimal`"
        );
    }
    if !answers(rustup_cargo().args(["fuzz", "--version"])) {
        bail!("fuzzing needs cargo-fuzz; install it with `cargo install cargo-fuzz`");
    }
    Ok(())
}

fn answers(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_fuzz_package_is_named() {
        let error = targets_of(Path::new("no-such-directory")).unwrap_err();
        assert!(error.to_string().contains("no-such-directory"), "{error}");
    }
}
