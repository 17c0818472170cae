//! Developer tasks, run as `cargo xtask <command>`.
//!
//! In: the command line. Out: the exit status of the first step that failed, or success. One file per command; each
//! receives parsed arguments and starts other programs, nothing more. Called by developers and by `.ci/run`.

mod again;
mod bench;
mod flood;
mod fuzz;
mod sim;
mod steps;
mod test;
mod tidy;
mod watch;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Developer tasks of Ringwire.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Everything a reviewer runs: format, clippy, documentation, all tests.
    Test(test::Arguments),
    /// Whether the documents speak of the tree that is there.
    Tidy(tidy::Arguments),
    /// Measure against reference relays in the same run.
    Bench(bench::Arguments),
    /// Attack the real server, with an honest client beside.
    Flood(flood::Arguments),
    /// Fuzz the decoders and state machines of ringwire-proto.
    Fuzz(fuzz::Arguments),
    /// Run whole workers in virtual time against model clients, one scenario for each seed.
    Sim(sim::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Test(arguments) => test::run(&arguments),
        Command::Tidy(arguments) => tidy::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Flood(arguments) => flood::run(&arguments),
        Command::Fuzz(arguments) => fuzz::run(&arguments),
        Command::Sim(arguments) => sim::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
