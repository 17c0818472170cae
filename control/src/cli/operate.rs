//! Orders to a running server: `close`, `drain`, `stop`, `set`.

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

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

/// How long a process may take to end that was told so by a signal.
const END_LIMIT: Duration = Duration::from_secs(12);

/// How long the processes of a server that was stopped may take to be gone, before they are left to themselves.
const GONE_LIMIT: Duration = Duration::from_secs(2);

/// How long a control plane that crashed may take to be there again.
const RETURN_LIMIT: Duration = Duration::from_secs(5);

/// Pause between two looks at what changes any moment.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ringwire close 02fe41                   the client may come back; its streams are closed
  ringwire show sessions                  the keys that are connected")]
pub(super) struct CloseArguments {
    /// Public key of the client; its first digits do, 4 at least, where no other that is connected has them
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
  ringwire set company_us 50              wait up to 50 us for more work per turn: less CPU, more latency
  ringwire set pause_us 0                 never leave a busy session unread for a moment: more CPU, less latency

A change holds until the server is stopped, also when either plane crashes and comes back by itself. A control plane that is
started anew has its own say: what its file or flags name holds from then on. To keep a change, write it into the file of
`--config` too. What is in force: ringwire show settings")]
pub(super) struct SetArguments {
    /// What to change: hybrid, company_us or pause_us; `-` does for `_`
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
    let client = Client::new(&state)?;
    let begun = Instant::now();
    let answered = loop {
        match block_on(client.post("/v1/drain", &order)) {
            // One that crashed is there again in a moment, and is to know that what it looks after is to end.
            Err(ClientError::Absent { .. })
                if Holder::of_parent(&state).is_some() && begun.elapsed() < RETURN_LIMIT =>
            {
                thread::sleep(LOOK_INTERVAL);
            }
            answered => break answered,
        }
    };
    let done = match answered {
        Err(ClientError::Absent { .. }) if let Some(parent) = Holder::of_parent(&state) => {
            return Err(anyhow!(
                "the control plane has crashed, and process {} starts it again. Nothing was changed. Try again, or end the \
                 server at once with: ringwire stop",
                parent.pid
            ));
        }
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
        // Before its child: that would be started again.
        Err(ClientError::Absent { .. })
            if !arguments.leave_dataplane
                && let Some(parent) = Holder::of_parent(&state) =>
        {
            let starting = Holder::of(&state);
            end_by_signal(&parent, PARENT)?;
            let message = match starting {
                Some(control) => {
                    format!("stopped the control plane (process {}); it had no data plane", control.pid)
                }
                None => format!(
                    "stopped the server; the control plane had crashed, and was to be started again by process {}",
                    parent.pid
                ),
            };
            Done { message, count: 1 }
        }
        Err(ClientError::Absent { .. }) if let Some(holder) = Holder::of(&state) => {
            end_by_signal(&holder, STARTING)?;
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
    gone(&state);
    arguments.common.print_done(&done)
}

/// Waits until the directory is free: whoever types the next command finds nobody who is about to end.
fn gone(state: &State) {
    let deadline = Instant::now() + GONE_LIMIT;
    while (Holder::of(state).is_some() || Holder::of_parent(state).is_some()) && Instant::now() < deadline {
        thread::sleep(LOOK_INTERVAL);
    }
}

/// What has not opened its socket: it starts, and waits for a data plane.
const STARTING: &str = "the control plane, which is starting";

/// What has no socket.
const PARENT: &str = "the parent of the control plane";

/// Ends a process that listens to signals alone. `what` says which.
fn end_by_signal(holder: &Holder, what: &str) -> anyhow::Result<()> {
    let pid = holder.pid;
    let failed = |error: Errno| anyhow!("cannot end {what} (process {pid}): {error}");
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH).map_err(failed)?;
    // Taken before the signal: the number cannot pass to another process in between.
    let process = pidfd_open(process, PidfdFlags::empty()).map_err(failed)?;
    pidfd_send_signal(&process, Signal::TERM).map_err(failed)?;
    let limit = Timespec { tv_sec: END_LIMIT.as_secs() as i64, tv_nsec: 0 };
    match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit)) {
        Ok(0) => Err(anyhow!(
            "{what} (process {pid}) does not end within {} s of SIGTERM; end it with: kill -KILL {pid}",
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
