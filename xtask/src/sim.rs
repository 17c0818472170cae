//! `cargo xtask sim [--seeds N] [--from S] [--trace]`: builds the package `ringwire-sim` and becomes its program.
//!
//! In the development profile: assertions and overflow checks of the worker are part of the oracle.

use crate::steps::cargo_command;
use anyhow::{Context, Result};
use std::os::unix::process::CommandExt;

/// Which seeds.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// Passed on unchanged: --seeds, --from, --trace, --verbose, --threads, --help.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

/// Builds and then replaces this process, so that the simulator's status is the task's.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let start = ["run", "--quiet", "--package", "ringwire-sim", "--bin", "ringwire-sim", "--"];
    let error = cargo_command(&start)?.args(&arguments.options).exec();
    Err(error).context("cargo could not be started")
}
