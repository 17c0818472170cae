//! Orders to a running server: `close`, `drain`, `stop`, `set`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::output::{Common, block_on};
use crate::admin::model::{Change, Close, Done, Drain, Stop};
use crate::admin::{Client, ClientError, DirectError};
use crate::state::State;
use crate::state::lock::Holder;
use crate::supervise;

/// How long a control plane that is starting may take to end.
const END_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ringwire close 02fe..33                 the client may come back; its streams are closed
  ringwire show sessions                  the keys that are connected")]
pub(super) struct CloseArguments {
    /// Public key of the client, 66 hex digits
    #[arg(value_name = "PUBLIC_KEY")]
    public_key: String,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ringwire drain                          accept nothing new, end within a minute
  ringwire drain --within 3600            or within an hour

Works with the control plane dead as well: then the data plane is told directly.")]
pub(super) struct DrainArguments {
    /// End at the latest after so many seconds, whoever is still connected
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0, value_parser = drain_seconds)]
    within: f64,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ringwire stop                           both planes; clients are told by closed connections
  ringwire stop --leave-dataplane         the control plane alone; sessions go on

Works with the control plane dead as well: then the data plane that goes on alone is ended; and with one that still waits for
a data plane.")]
pub(super) struct StopArguments {
    /// End the control plane alone
    #[arg(long)]
    leave_dataplane: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ringwire set hybrid require             refuse clients without the post-quantum part from now on
  ringwire set company-us 50              wait up to 50 us for more work per turn: less CPU, more latency
  ringwire set pause-us 0                 never leave a busy session unread for a moment: more CPU, less latency

A change holds until the server is stopped, also when either plane crashes and comes back by itself. A control plane that is
started anew has its own say: what its file or flags name holds from then on. To keep a change, write it into the file of
`--config` too. What is in force: ringwire show settings")]
pub(super) struct SetArguments {
    /// What to change: hybrid, company-us or pause-us
    #[arg(value_name = "NAME")]
    name: String,
    /// Its new value
    #[arg(value_name = "VALUE")]
    value: String,
    #[command(flatten)]
    common: Common,
}

pub(super) fn close(arguments: CloseArguments) -> anyhow::Result<ExitCode> {
    let CloseArguments { public_key, common } = arguments;
    let client = Client::new(&common.state()?)?;
    let close = Close { public_key };
    common.print_done(&block_on(client.post("/v1/close", &close))?)
}

pub(super) fn set(arguments: SetArguments) -> anyhow::Result<ExitCode> {
    let SetArguments { name, value, common } = arguments;
    let client = Client::new(&common.state()?)?;
    let change = Change { name, value };
    common.print_done(&block_on(client.put("/v1/settings", &change))?)
}

pub(super) fn drain(arguments: &DrainArguments) -> anyhow::Result<ExitCode> {
    let state = arguments.common.state()?;
    let order = Drain { within_s: arguments.within };
    let done = match block_on(Client::new(&state)?.post("/v1/drain", &order)) {
        Err(ClientError::Absent { .. }) => {
            let (mut dataplane, hello) =
                supervise::converse(&state).map_err(|error| nothing_runs(&state, error))?;
            dataplane.drain(Duration::from_secs_f64(arguments.within))?;
            let message = format!(
                "draining; the control plane does not run, so the data plane (process {}) was told directly",
                hello.pid
            );
            Done { message, count: 1 }
        }
        answered => answered?,
    };
    arguments.common.print_done(&done)
}

pub(super) fn stop(arguments: &StopArguments) -> anyhow::Result<ExitCode> {
    let state = arguments.common.state()?;
    let order = Stop { leave_dataplane: arguments.leave_dataplane };
    let done = match block_on(Client::new(&state)?.post("/v1/stop", &order)) {
        Err(ClientError::Absent { .. }) if let Some(holder) = Holder::of(&state) => {
            end_waiting(&holder)?;
            let message = format!("stopped the control plane (process {}); it had no data plane", holder.pid);
            Done { message, count: 1 }
        }
        Err(ClientError::Absent { .. }) if arguments.leave_dataplane => {
            return Err(anyhow!(
                "the control plane does not run; whether a data plane does, says: ringwire status"
            ));
        }
        Err(ClientError::Absent { .. }) => {
            let pid = supervise::stop(&state).map_err(|error| nothing_runs(&state, error))?;
            state.remove_note(pid);
            let message =
                format!("stopped the data plane (process {pid}); the control plane was not running");
            Done { message, count: 1 }
        }
        answered => answered?,
    };
    arguments.common.print_done(&done)
}

/// Ends a control plane that has not opened its socket: it starts, and waits for a data plane.
fn end_waiting(holder: &Holder) -> anyhow::Result<()> {
    let pid = holder.pid;
    let failed =
        |error: Errno| anyhow!("cannot end the control plane (process {pid}), which is starting: {error}");
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH).map_err(failed)?;
    // Taken before the signal: the number cannot pass to another process in between.
    let process = pidfd_open(process, PidfdFlags::empty()).map_err(failed)?;
    pidfd_send_signal(&process, Signal::TERM).map_err(failed)?;
    let limit = Timespec { tv_sec: END_LIMIT.as_secs() as i64, tv_nsec: 0 };
    match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit)) {
        Ok(0) => Err(anyhow!(
            "the control plane (process {pid}), which is starting, does not end within {} s of SIGTERM; end it with: kill -KILL {pid}",
            END_LIMIT.as_secs()
        )),
        Ok(_) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

pub(super) fn nothing_runs(state: &State, error: DirectError) -> anyhow::Error {
    match error {
        DirectError::Absent { .. } => anyhow!(
            "nothing runs on {}: neither a control plane nor a data plane answers; start a server with: ringwire run",
            state.directory().display()
        ),
        error => error.into(),
    }
}

fn drain_seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=2_592_000.0).contains(&seconds) => Ok(seconds),
        _ => Err("expected seconds from 0 to 2592000".to_owned()),
    }
}
