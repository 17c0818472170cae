//! `ringwire dataplane`: the process that serves, for the control plane or a supervisor to start.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use ringwire_dataplane::process::{self, Moment, ProcessOptions};

use super::systemd::{self, Watchdog};
use crate::state::{STATE_VARIABLE, State};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ringwire dataplane --state /var/lib/ringwire     wait for a control plane, then serve until it says stop

`ringwire run` starts one by itself. It takes its key and settings from its control plane over STATE/dataplane.sock, goes
on serving when that one ends or dies, and drains upon SIGTERM. `ringwire stop` ends it.")]
pub(super) struct Arguments {
    /// State directory, shared with the control plane [default: as of `ringwire run`]
    #[arg(long, value_name = "DIR", env = STATE_VARIABLE)]
    state: Option<PathBuf>,
    /// End when no control plane starts it within so many seconds; 0: wait for ever
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    start_within: u64,
    /// How many seconds SIGTERM lets streams finish
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    drain_within: u64,
}

pub(super) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    // Started by the kernel's name for the program, it would be called `exe` in lists of processes.
    rustix::thread::set_name(c"ringwire").ok();
    let state = State::locate(arguments.state)?;
    state.prepare()?;
    let options = ProcessOptions {
        state: state.directory().to_path_buf(),
        start_within: (arguments.start_within > 0).then(|| Duration::from_secs(arguments.start_within)),
        drain_within: Duration::from_secs(arguments.drain_within),
    };
    let mut watchdog = Watchdog::from_environment();
    process::run(&options, &mut |moment| match moment {
        Moment::Listening => {
            tracing::info!("waiting for a control plane");
            systemd::listening();
        }
        Moment::Alive => watchdog.feed(Instant::now()),
    })?;
    Ok(ExitCode::SUCCESS)
}
