//! The parent of both planes: what `ringwire run` is unless something else looks after it, such as systemd.
//!
//! In: the ends of its children, signals, orders of `ringwire stop`, which come as one. Out: a control plane, started again when
//! it crashes. The control plane looks after the data plane, and if both die, its successor starts both.
//!
//! It holds nothing that could be lost or stolen with it: no key, no listening socket, no second thread, not even the
//! configuration, which its child reads. If it is killed, its control plane dies with it, as if that had been killed: the data plane
//! goes on, and the next `ringwire run` attaches to it.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::anyhow;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, set_child_subreaper, wait};
use tokio::signal::unix::{SignalKind, signal};

use super::run::{Arguments, OWN_PROGRAM};
use super::signals::{Asked, Signals};
use crate::state::State;
use crate::state::lock::Lock;
use crate::supervise::{self, Restarts, monotonic_ns};

/// How long the control plane of a parent that was killed may still be dying when another one begins.
pub(super) const DYING_MAX: Duration = Duration::from_secs(2);

/// Exit code of a control plane that was started again and could not begin: something is wrong that may pass, such as a mistake in
/// a file that is being edited.
pub(super) const NOT_BEGUN: u8 = 75;

/// Exit codes that are no orderly end: that one, and a panic's.
const RESTARTS: [i32; 2] = [NOT_BEGUN as i32, 101];

/// Why there is no parent over a control plane although nothing forbids it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alone {
    /// It was asked for, systemd is the parent, or the data plane is somebody else's too.
    Wanted,
    /// The configuration is there only once.
    ConfigurationRunsDry,
}

/// Whether this process is to be the control plane itself. `Err`: why.
pub(super) fn is_wanted(arguments: &Arguments) -> Result<(), Alone> {
    let own_pid = std::process::id().to_string();
    let is_unit = std::env::var_os("NOTIFY_SOCKET").is_some()
        || std::env::var_os("SYSTEMD_EXEC_PID").is_some_and(|pid| pid == *own_pid);
    if arguments.child_of.is_some() || arguments.no_parent || arguments.no_spawn || is_unit {
        return Err(Alone::Wanted);
    }
    let is_stream = |path: &Path| path.metadata().is_ok_and(|found| !found.is_file());
    if arguments.config.as_deref().is_some_and(is_stream) {
        return Err(Alone::ConfigurationRunsDry);
    }
    Ok(())
}

/// Starts a control plane, and another one whenever it has crashed, until one ends in order.
pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let state = State::locate(arguments.state.clone())?;
    state.prepare()?;
    let _lock = Lock::take_as_parent(&state)?;
    // A data plane whose control plane dies stays in this process's tree, for those who look at trees.
    set_child_subreaper(Some(rustix::process::getpid())).ok();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime
        .map_err(|error| anyhow!("cannot begin: {error}; raise the limit of open files (`ulimit -n`)"))?;
    runtime.block_on(watch(arguments, &state))
}

async fn watch(arguments: &Arguments, state: &State) -> anyhow::Result<ExitCode> {
    let not_taken = |error| anyhow!("cannot take signals: {error}");
    let mut signals = Signals::new().map_err(not_taken)?;
    let mut ends = signal(SignalKind::child()).map_err(not_taken)?;
    let mut restarts = Restarts::default();
    let (mut has_served, mut is_told_to_end) = (false, false);
    loop {
        let cause = match start(has_served) {
            Ok(child) => {
                restarts.up(monotonic_ns());
                let status = loop {
                    tokio::select! {
                        asked = signals.next() => {
                            is_told_to_end |= asked == Asked::End;
                            pass_on(child, asked);
                        }
                        _ = ends.recv() => if let Some(status) = reap(child) { break status },
                    }
                };
                has_served |= was_ready(state, child);
                let is_crash =
                    status.signaled() || status.exit_status().is_some_and(|code| RESTARTS.contains(&code));
                if is_told_to_end && is_crash {
                    return Ok(stop_dataplane(arguments, state));
                }
                if is_told_to_end || !has_served || !is_crash {
                    return Ok(code_of(status));
                }
                how(status)
            }
            Err(error) if !has_served => {
                return Err(anyhow!(
                    "cannot start the control plane: {error}; if a limit was reached, raise it (`ulimit -u`)"
                ));
            }
            Err(error) => format!("it cannot be started: {error}"),
        };
        let pause = restarts.failed(monotonic_ns());
        tracing::warn!(
            cause,
            pause_ms = pause.as_millis(),
            "the control plane has ended; it is started again, and the data plane goes on meanwhile"
        );
        let until = tokio::time::Instant::now() + pause;
        while !is_told_to_end {
            tokio::select! {
                asked = signals.next() => is_told_to_end = asked == Asked::End,
                _ = ends.recv() => reap_all(),
                () = tokio::time::sleep_until(until) => break,
            }
        }
        if is_told_to_end {
            return Ok(stop_dataplane(arguments, state));
        }
    }
}

/// Starts a control plane with the arguments of this process.
fn start(again: bool) -> io::Result<Pid> {
    let mut words = std::env::args_os();
    // As it was typed here: what is to be typed next is shown so.
    let name = words.next().unwrap_or_else(|| "ringwire".into());
    let mut words: Vec<OsString> = words.collect();
    words.extend(["--child-of".into(), std::process::id().to_string().into()]);
    words.extend(again.then(|| "--again".into()));
    // The kernel's name for the program: it is there also when the file was deleted or replaced.
    let child = Command::new(OWN_PROGRAM).arg0(name).args(words).spawn()?;
    i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Tells the control plane what this process was told.
fn pass_on(child: Pid, asked: Asked) {
    let signal = match asked {
        Asked::End => Signal::TERM,
        Asked::Reload => Signal::HUP,
    };
    if let Err(error) = kill_process(child, signal) {
        tracing::debug!(%error, "the control plane has ended already");
    }
}

/// Takes leave of every child that has ended, adopted ones too. How the control plane has, if it has.
fn reap(child: Pid) -> Option<WaitStatus> {
    let mut its = None;
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        its = (pid == child).then_some(status).or(its);
    }
    its
}

fn reap_all() {
    while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
}

/// Whether a control plane had come so far that it served. One that had not, has said what is wrong, and would say it again.
fn was_ready(state: &State, child: Pid) -> bool {
    let noted = state.read_note().ok().and_then(|note| note.control_pid);
    noted == u32::try_from(child.as_raw_nonzero().get()).ok()
}

/// Ends the data plane that is there without a control plane.
fn stop_dataplane(arguments: &Arguments, state: &State) -> ExitCode {
    if arguments.leave_dataplane {
        return ExitCode::SUCCESS;
    }
    match supervise::stop(state) {
        Ok(pid) => {
            state.remove_note(pid);
            ExitCode::SUCCESS
        }
        Err(ringwire_ipc::socket::ClientError::Absent { .. }) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the data plane may go on; end it with: ringwire stop");
            ExitCode::FAILURE
        }
    }
}

/// What a shell would say of it.
fn code_of(status: WaitStatus) -> ExitCode {
    let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

fn how(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (_, Some(signal)) => format!("signal {signal}"),
        _ => "unknown".to_owned(),
    }
}
