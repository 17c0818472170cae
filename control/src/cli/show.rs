//! What goes on in a running server: `status` and `show`.

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use serde::de::DeserializeOwned;

use super::operate::nothing_runs;
use super::output::{Common, Table, age, block_on, bytes, counted};
use crate::admin::model::{
    ClosedSessions, ControlStatus, Counters, DataPlaneStatus, DiscoveryStatus, Limits, Sessions, Settings,
    Status, Streams,
};
use crate::admin::{self, Client, ClientError, DirectError, Pattern};
use crate::state::State;
use crate::state::lock::Holder;

/// Exit code of `status` when one plane is missing.
const DEGRADED: u8 = 3;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ringwire status
  ringwire status --json | jq .dataplane.sessions

Works with the control plane dead or stopped as well. Exit codes: 0 both planes run, 1 nothing runs, 3 one plane is missing.")]
pub(super) struct StatusArguments {
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Subcommand)]
pub(super) enum Show {
    /// Who is connected
    #[command(after_help = "Examples:
  ringwire show sessions
  ringwire show sessions 02fe41                       those of one key, or of the only one that begins so
  ringwire show sessions --closed                     the last that ended, and why
  ringwire show sessions --from dataplane --json      the data plane's own list, also with the control plane dead")]
    Sessions {
        /// Of this public key alone; its first digits do, 4 at least, where no other in the list has them
        #[arg(value_name = "PUBLIC_KEY")]
        key: Option<Pattern>,
        /// Show the last sessions that ended, with their reasons
        #[arg(long, conflicts_with = "from")]
        closed: bool,
        /// Whose knowledge to show [default: control, or dataplane where that does not answer]
        #[arg(long, value_enum)]
        from: Option<From>,
        #[command(flatten)]
        common: Common,
    },
    /// What is bridged, and what holds it up
    Streams {
        /// Of this public key alone, at either end; its first digits do, 4 at least, where no other in the list has them
        #[arg(value_name = "PUBLIC_KEY")]
        key: Option<Pattern>,
        /// Whose knowledge to show [default: control, or dataplane where that does not answer]
        #[arg(long, value_enum)]
        from: Option<From>,
        #[command(flatten)]
        common: Common,
    },
    /// Totals since the data plane began to serve
    Counters {
        /// Also those that are zero
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Every bound, how near it is, and what happens there
    Limits {
        #[command(flatten)]
        common: Common,
    },
    /// What is in force in the data plane, whoever set it; also with the control plane dead
    Settings {
        #[command(flatten)]
        common: Common,
    },
}

/// Whose knowledge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum From {
    /// The control plane's picture
    Control,
    /// The data plane's own list, from its socket
    Dataplane,
}

pub(super) fn status(arguments: &StatusArguments) -> anyhow::Result<ExitCode> {
    let common = &arguments.common;
    let state = common.state()?;
    let status = match block_on(Client::new(&state)?.get::<Status>("/v1/status")) {
        Ok(status) => status,
        Err(ClientError::Absent { .. }) if let Some(holder) = Holder::of(&state) => without_control(
            &state,
            format!(
                "process {} is starting: it waits for a data plane, as its log says; end it with: ringwire stop",
                holder.pid
            ),
        ),
        Err(ClientError::Absent { .. }) if let Some(parent) = Holder::of_parent(&state) => without_control(
            &state,
            format!(
                "crashed; process {} starts it again, and its log says how that goes. End the server with: ringwire stop",
                parent.pid
            ),
        ),
        Err(ClientError::Absent { .. }) => {
            let dataplane = admin::dataplane_status(&state).map_err(|error| nothing_runs(&state, error))?;
            Status { control: None, control_error: None, dataplane: Some(dataplane) }
        }
        Err(error @ ClientError::Silent { .. }) => without_control(&state, error.to_string()),
        Err(error) => return Err(error.into()),
    };
    common.print(&status, status_text)?;
    let whole = status.dataplane.is_some() && status.control.as_ref().is_some_and(|control| control.attached);
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::from(DEGRADED) })
}

/// What the data plane says, if there is one, and why the control plane says nothing.
fn without_control(state: &State, error: String) -> Status {
    Status { control: None, control_error: Some(error), dataplane: admin::dataplane_status(state).ok() }
}

fn status_text(status: &Status) -> String {
    let control = match &status.control {
        None if let Some(error) = &status.control_error => error.clone(),
        None => "not running. The data plane goes on alone; attach to it with: ringwire run, or end it with: ringwire stop"
            .to_owned(),
        Some(control) => {
            let attached = if control.attached { "attached" } else { "NOT attached" };
            let current = if control.current { "" } else { ", its picture of the sessions is being refreshed" };
            let mut text = format!(
                "process {}, up {}, {attached}{current}",
                control.pid,
                age(control.uptime_s)
            );
            if let Some(reason) = &control.not_ready {
                text.push_str(&format!("\n               NOT ready: {reason}"));
            }
            for discovery in &control.discoveries {
                text.push_str(&format!("\n  discovery    {}", discovery_text(discovery, control.attached)));
            }
            text
        }
    };
    let dataplane = status.dataplane.as_ref().map_or_else(
        || "  data plane   does not answer\n".to_owned(),
        |dataplane| {
            let alone = status.control.is_none() && status.control_error.is_none();
            dataplane_text(dataplane, alone)
        },
    );
    let losses = status.control.as_ref().map(losses_text).unwrap_or_default();
    format!("  control      {control}\n{dataplane}{losses}")
}

/// How often the data plane has ended under this control plane, and why there is none or was none.
fn losses_text(control: &ControlStatus) -> String {
    let Some(last) = &control.last_loss else { return String::new() };
    let lost = format!("lost {} since the control plane started", counted(control.losses, "time"));
    match (control.attached, control.losses) {
        (true, 0) => format!("  data plane   could not be had before: {last}\n"),
        (true, _) => format!("  data plane   was {lost}; last: {last}\n"),
        (false, 0) => format!("  data plane   is missing: {last}\n"),
        (false, _) => format!("  data plane   is missing, {lost}; last: {last}\n"),
    }
}

fn discovery_text(discovery: &DiscoveryStatus, attached: bool) -> String {
    let registered = match discovery.registered_s {
        Some(registered_s) if attached => format!("registered {} ago", age(registered_s)),
        // The entry stays while a data plane is brought back, and sends nobody here.
        Some(registered_s) => {
            format!("the entry, renewed {} ago, says that there is no room", age(registered_s))
        }
        None if discovery.withdrawn => "withdrawn: the server drains or ends".to_owned(),
        None => "NOT registered".to_owned(),
    };
    let error = discovery.error.as_ref().map(|error| format!("; since then: {error}")).unwrap_or_default();
    format!("{}, {registered}{error}", discovery.url)
}

/// What a data plane does, and for how long.
fn doing_text(dataplane: &DataPlaneStatus) -> String {
    let (state, up) = (&dataplane.state, age(dataplane.serving_s));
    match (dataplane.draining_s, dataplane.drain_left_s) {
        (Some(draining_s), Some(left_s)) => {
            let (since, left) = (age(draining_s), age(left_s));
            format!("{state} for {since}, over in {left} at the latest, up {up}")
        }
        // Of an earlier build, ending, or waiting to begin.
        _ if state != "serving" => format!("{state}, up {up}"),
        _ => format!("{state} for {up}"),
    }
}

fn dataplane_text(dataplane: &DataPlaneStatus, alone: bool) -> String {
    let mut text = format!(
        "  data plane   process {}, {}, driver {}, workers {}\n",
        dataplane.pid,
        doing_text(dataplane),
        dataplane.driver,
        dataplane.workers
    );
    let mut line = |name: &str, value: &str| text.push_str(&format!("  {name:<11}  {value}\n"));
    let addresses = dataplane.addresses.join(", ");
    match dataplane.state.as_str() {
        "draining" => line("listening", &format!("no more; it did on {addresses}")),
        _ => line("listening", &addresses),
    }
    line("public key", dataplane.public_key.as_deref().unwrap_or("none yet"));
    if let Some(fault) = &dataplane.fault {
        line("FAULT", &format!("{fault}: see its log, then `ringwire stop`"));
    }
    line(
        "sessions",
        &format!(
            "{} (and {} in a handshake; at most {})",
            dataplane.sessions,
            counted(dataplane.half_open, "connection"),
            counted(dataplane.connections_max, "connection")
        ),
    );
    line("bridges", &dataplane.bridges.to_string());
    if let Some(orphan_s) = dataplane.orphan_s.filter(|_| alone) {
        line("alone for", &age(orphan_s));
    }
    text
}

pub(super) fn show(show: &Show) -> anyhow::Result<ExitCode> {
    match show {
        Show::Sessions { closed: true, key, common, .. } => {
            common.print(&common.get(&of("/v1/sessions/closed", key.as_ref()))?, closed_text)
        }
        Show::Sessions { key, from, common, .. } => {
            let path = of("/v1/sessions", key.as_ref());
            let sessions: Sessions = ask(*from, common, &path, |state| Ok(admin::dump(state)?.0))?;
            // The data plane's own list is everybody's.
            let sessions = match key {
                Some(key) => sessions.of(key)?,
                None => sessions,
            };
            common.print(&sessions, sessions_text)
        }
        Show::Streams { key, from, common } => {
            let path = of("/v1/streams", key.as_ref());
            let streams: Streams = ask(*from, common, &path, |state| Ok(admin::dump(state)?.1))?;
            let streams = match key {
                Some(key) => streams.of(key)?,
                None => streams,
            };
            common.print(&streams, streams_text)
        }
        Show::Counters { all, common } => {
            common.print(&common.get("/v1/counters")?, |counters| counters_text(counters, *all))
        }
        Show::Limits { common } => {
            common.print(&ask(None, common, "/v1/limits", admin::dataplane_limits)?, limits_text)
        }
        Show::Settings { common } => common.print(&admin::settings(&common.state()?)?, settings_text),
    }
}

/// The path of a list, of one key if it is named. A pattern has no character that means something in a query.
fn of(path: &str, key: Option<&Pattern>) -> String {
    key.map_or_else(|| path.to_owned(), |key| format!("{path}?key={key}"))
}

/// Asks the control plane, or the data plane: that also where the control plane does not answer, unless it was meant.
fn ask<T: DeserializeOwned>(
    from: Option<From>,
    common: &Common,
    path: &str,
    direct: impl FnOnce(&State) -> Result<T, DirectError>,
) -> anyhow::Result<T> {
    let state = common.state()?;
    if from == Some(From::Dataplane) {
        return Ok(direct(&state)?);
    }
    match block_on(Client::new(&state)?.get(path)) {
        Err(error @ (ClientError::Absent { .. } | ClientError::Silent { .. })) if from.is_none() => {
            let answer = direct(&state).map_err(|error| nothing_runs(&state, error))?;
            // Beside the answer, which is for programs too.
            writeln!(std::io::stderr(), "ringwire: {error}\nringwire: this is what the data plane says:")
                .ok();
            Ok(answer)
        }
        answer => Ok(answer?),
    }
}

fn sessions_text(sessions: &Sessions) -> String {
    let mut table = Table::new(["public key", "address", "age", "handshake", "", "worker", "session"]);
    for session in &sessions.sessions {
        table.row([
            session.public_key.clone(),
            session.address.clone(),
            age(session.age_s),
            if session.hybrid { "hybrid" } else { "classical" }.to_owned(),
            if session.standby { "standby" } else { "" }.to_owned(),
            session.worker.to_string(),
            session.session.to_string(),
        ]);
    }
    let mut text = table.render();
    text.push_str(&format!("{}\n", counted(sessions.sessions.len() as u64, "session")));
    for session in sessions.sessions.iter().filter(|session| session.standby) {
        text.push_str(&format!(
            "Two clients use the key {}: the one at {} stands by and is not dialled. Give each machine a key of its own.\n",
            session.public_key, session.address
        ));
    }
    if !sessions.current {
        text.push_str("The list is being refreshed and may be out of date; try again.\n");
    }
    if sessions.untracked > 0 {
        text.push_str(&format!("{} more are not listed.\n", sessions.untracked));
    }
    text
}

fn closed_text(closed: &ClosedSessions) -> String {
    let mut table = Table::new(["public key", "address", "ended", "lasted", "reason"]);
    for session in &closed.closed {
        let errno = session
            .errno
            .map_or_else(String::new, |errno| format!(" ({})", std::io::Error::from_raw_os_error(errno)));
        table.row([
            session.public_key.clone(),
            session.address.clone(),
            format!("{} ago", age(session.ended_s)),
            session.lasted_s.map_or_else(|| "?".to_owned(), age),
            format!("{}{errno}", session.reason),
        ]);
    }
    table.render()
}

fn streams_text(streams: &Streams) -> String {
    let mut table = Table::new(["source", "destination", "sent", "received", "waiting", "held up by", "age"]);
    for stream in &streams.streams {
        let held_up = match (stream.forth_limited, stream.back_limited) {
            (Some(true), Some(true)) => "both",
            (Some(true), _) => "destination",
            (_, Some(true)) => "source",
            (Some(false), Some(false)) => "-",
            _ => "?",
        };
        table.row([
            short(&stream.source),
            short(&stream.destination),
            bytes(stream.forth_bytes),
            bytes(stream.back_bytes),
            bytes(stream.forth_queued_bytes + stream.back_queued_bytes),
            held_up.to_owned(),
            stream.age_s.map_or_else(|| "?".to_owned(), age),
        ]);
    }
    let mut text = table.render();
    text.push_str(&format!("{}\n", counted(streams.streams.len() as u64, "bridge")));
    if streams.missing > 0 {
        text.push_str(&format!("{} more could not be listed; try again.\n", streams.missing));
    }
    text
}

/// Enough of a key to tell it from others; `--json` has all of it.
fn short(key: &str) -> String {
    match (key.get(..10), key.get(key.len().saturating_sub(4)..)) {
        (Some(head), Some(tail)) => format!("{head}..{tail}"),
        _ => key.to_owned(),
    }
}

fn counters_text(counters: &Counters, all: bool) -> String {
    let mut table = Table::new(["counter", "total"]);
    for (name, total) in counters.total.iter().filter(|(_, total)| all || **total > 0) {
        table.row([name.clone(), total.to_string()]);
    }
    table.render()
}

fn settings_text(settings: &Settings) -> String {
    let mut table = Table::new(["setting", "in force", "changes with"]);
    for (name, value) in &settings.settings {
        let value = match value {
            serde_json::Value::Null => "none".to_owned(),
            serde_json::Value::String(text) => text.clone(),
            serde_json::Value::Array(values) => {
                let texts =
                    values.iter().map(|value| value.as_str().map_or(value.to_string(), str::to_owned));
                texts.collect::<Vec<_>>().join(", ")
            }
            other => other.to_string(),
        };
        let how = if settings.live.contains(name) { "ringwire set" } else { "a restart" };
        table.row([name.clone(), value, how.to_owned()]);
    }
    table.render()
}

fn limits_text(limits: &Limits) -> String {
    let mut table = Table::new(["limit", "used", "value", "when reached"]);
    for limit in &limits.limits {
        let text = |value: u64| match limit.unit.as_str() {
            "bytes" => bytes(value),
            unit => format!("{value} {unit}"),
        };
        table.row([
            limit.name.clone(),
            limit.used.map_or_else(|| "-".to_owned(), text),
            text(limit.value),
            limit.when_reached.clone(),
        ]);
    }
    let mut text = table.render();
    for limit in &limits.limits {
        if let Some(origin) = &limit.origin {
            text.push_str(&format!("{}: {origin}\n", limit.name));
        }
    }
    text
}
