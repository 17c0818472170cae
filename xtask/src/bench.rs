//! `cargo xtask bench relay|sessions|micro [options]`: builds the package `ringwire-benches` in release and becomes its program.

use crate::steps::{cargo_command, run as run_command};
use anyhow::{Context, Result};
use clap::Subcommand;
use std::os::unix::process::CommandExt;

/// Which measurement.
#[derive(clap::Args)]
#[command(disable_help_subcommand = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    measurement: Measurement,
}

#[derive(Subcommand)]
enum Measurement {
    /// Our server and reference relays, interleaved in the same run (`cargo xtask bench relay --help` lists the
    /// options).
    #[command(disable_help_flag = true)]
    Relay {
        /// Passed on unchanged: --json, --rounds, --seconds, --only, --quick, ...
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// What sessions and streams cost our server: handshakes, opens, idle sessions and streams.
    #[command(disable_help_flag = true)]
    Sessions {
        /// Passed on unchanged: --json, --rounds, --seconds, --idle-sessions, --idle-seconds, --only, --quick
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Instructions of the worker for each thing it does, counted by valgrind; status 2 where that is not installed.
    #[command(disable_help_flag = true)]
    Micro {
        /// Passed on unchanged: --check, --update, --json
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
}

/// Builds and then replaces this process, so that the bench's status is the task's.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let (name, options) = match &arguments.measurement {
        Measurement::Relay { options } => ("relay", options),
        Measurement::Sessions { options } => ("sessions", options),
        Measurement::Micro { options } => ("micro", options),
    };
    become_bench(name, options)
}

/// Builds the package of benches and becomes its command `name`.
pub(crate) fn become_bench(name: &str, options: &[String]) -> Result<()> {
    let build = ["build", "--release", "--package", "ringwire-benches", "--bin", "ringwire-benches"];
    run_command(&format!("cargo {}", build.join(" ")), &mut cargo_command(&build)?)?;
    // `cargo run` finds the target directory whatever the configuration says; the build above already printed.
    let start = [
        "run",
        "--quiet",
        "--release",
        "--package",
        "ringwire-benches",
        "--bin",
        "ringwire-benches",
        "--",
        name,
    ];
    let error = cargo_command(&start)?.args(options).exec();
    Err(error).context("cargo could not be started")
}
