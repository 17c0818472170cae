//! `cargo xtask flood NAME|all|list [options]`: builds the package `ringwire-benches` in release and becomes its program.

use crate::bench::become_bench;
use anyhow::Result;

/// Which attack.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// Passed on unchanged: the name of an attack, all or list; --driver, --json, --quick, --seconds, --attackers,
    /// --same-address, --binary, --help.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

/// Builds and then replaces this process, so that the measurement's status is the task's.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    become_bench("flood", &arguments.options)
}
