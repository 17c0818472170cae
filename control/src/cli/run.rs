//! `ringwire run`: the control plane of a dmsg server, until a signal or an order ends it.
//!
//! In: flags and a state directory. Out: a data plane that serves, the admin interface, the note for tools. What else runs
//! beside the data plane (discovery, registration) is made in [`serve`] and ends with it.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use clap::{Args, ValueEnum};
use rustix::fs::Mode;
use serde::Serialize;
use tokio::task::JoinHandle;

use super::HybridChoice;
use super::events::Events;
use super::parent::{self, Alone};
use super::runtime::runtime;
use super::services::ServiceArguments;
use super::signals::{Asked, Signals};
use super::systemd::Systemd;
use crate::admin::{self, Admin};
use crate::config::{Driver, File};
use crate::http::HttpServer;
use crate::presence::{ENDING, Presence};
use crate::services::{Prepared, ServiceSettings, Services};
use crate::state::lock::Lock;
use crate::state::{STATE_VARIABLE, ServerNote, State, StateError};
use crate::supervise::LOG_VARIABLE;
use crate::supervise::settings::Settings;
use crate::supervise::{self, Cancel, End, EndError, ObtainError, Plane, PlaneStatus, Wanted};
use crate::validation;

/// The program that this process runs, by the kernel's own reference to it: it is there also when the file was deleted or
/// replaced, and a data plane of this build is what this control plane can attach to.
pub(super) const OWN_PROGRAM: &str = "/proc/self/exe";

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ringwire run                                      on 127.0.0.1:8081, for a first try
  ringwire run --listen 0.0.0.0:8081                reachable from outside
  ringwire run --listen 0.0.0.0:8081 --listen [::]:8081
  ringwire run --listen 0.0.0.0:8081 --discovery http://dmsgd.example --public-address 203.0.113.7:8081
  ringwire run --config /etc/ringwire.toml          settings from a file; flags are stronger
  ringwire run --config config.json                 in place of the Go server whose file that is
  ringwire run --json --state /var/lib/ringwire     one line of JSON once it is ready

No configuration is needed. The key is made at the first start and kept in the state directory.

What forwards is a process of its own, the data plane; the control plane, another one, starts it, or finds it alive and attaches to
it. This process starts the control plane, and starts it again when it crashes; under systemd, with --no-parent, --no-spawn, or
with a configuration that is no file it is the control plane itself. If it is killed, no session is lost, and the next
`ringwire run` with the same state directory goes on. Ctrl-C and SIGTERM end everything in order; SIGHUP does when the terminal is
closed, and otherwise is reserved.")]
pub(super) struct Arguments {
    /// Configuration: TOML, or a Go server's JSON as it is; flags are stronger [default: none]
    #[arg(long, value_name = "FILE", env = "RINGWIRE_CONFIG")]
    pub(super) config: Option<PathBuf>,
    /// Address to accept sessions on, may be given several times; port 0 takes a free one [default: 127.0.0.1:8081]
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<SocketAddr>,
    /// Directory of the key, the sockets and server.json [default: $XDG_STATE_HOME/ringwire or ~/.local/state/ringwire]
    #[arg(long, value_name = "DIR", env = STATE_VARIABLE)]
    pub(super) state: Option<PathBuf>,
    /// How to talk to the kernel: auto takes io_uring where it is allowed [default: auto]
    #[arg(long, value_enum)]
    driver: Option<DriverArgument>,
    /// Threads that forward, 1 to 64; more than one for a machine whose one core is full, see OPERATIONS.md [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: Option<u16>,
    /// Keep the first of them on this core, and the others on those behind it [default: wherever the kernel puts them]
    #[arg(long, value_name = "CORE")]
    first_core: Option<u16>,
    /// The post-quantum part of session handshakes [default: offer]
    #[arg(long, value_enum)]
    hybrid: Option<HybridChoice>,
    /// End of a data plane that nobody controls any more, after so many seconds; 0: it serves on [default: 0]
    #[arg(long, visible_alias = "orphan-limit-s", value_name = "SECONDS", value_parser = orphan_limit)]
    orphan_limit: Option<f64>,
    /// The same in milliseconds
    #[arg(long, value_name = "MILLISECONDS", conflicts_with = "orphan_limit")]
    orphan_limit_ms: Option<u64>,
    /// On SIGINT and SIGTERM end this process alone; the data plane goes on until: ringwire stop
    #[arg(long)]
    pub(super) leave_dataplane: bool,
    /// Start no data plane, wait for one that systemd or somebody else starts (ringwire dataplane)
    #[arg(long)]
    pub(super) no_spawn: bool,
    /// Be the control plane itself, for a supervisor that starts it again; a unit of systemd's is so by itself
    #[arg(long)]
    pub(super) no_parent: bool,
    /// Be the control plane that this process has started
    #[arg(long, value_name = "PID", hide = true)]
    pub(super) child_of: Option<i32>,
    /// There was one before, which crashed
    #[arg(long, hide = true, requires = "child_of")]
    pub(super) again: bool,
    /// Write a line into the log for every session that opens or ends, with its address
    #[arg(long)]
    log_sessions: bool,
    /// Print one JSON object per event instead of text: ready, data plane lost and new, draining, registration lost and back, ending
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    services: ServiceArguments,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DriverArgument {
    Auto,
    Uring,
    Poll,
}

impl From<DriverArgument> for Driver {
    fn from(argument: DriverArgument) -> Self {
        match argument {
            DriverArgument::Auto => Self::Auto,
            DriverArgument::Uring => Self::Uring,
            DriverArgument::Poll => Self::Poll,
        }
    }
}

#[derive(Serialize)]
struct Ready<'a> {
    event: &'static str,
    public_key: &'a str,
    address: SocketAddr,
    addresses: &'a [SocketAddr],
    driver: &'a str,
    discovery: Option<&'a str>,
    /// Where the embedded one listens.
    discovery_listening: Option<SocketAddr>,
    http: Option<SocketAddr>,
    control_pid: u32,
    dataplane_pid: u32,
}

pub(super) fn run(arguments: &Arguments, settings: &File) -> anyhow::Result<ExitCode> {
    if let Some(parent) = arguments.child_of {
        // Started by the kernel's name for the program, it would be called `exe` in lists of processes.
        rustix::thread::set_name(c"ringwire").ok();
        follow(parent)?;
    }
    if let Some(problem) = validation::problems(settings, !arguments.no_spawn).into_iter().next() {
        return Err(anyhow!("{problem}. Nothing was started."));
    }
    // Sockets and files of this process are its user's alone from their first moment on.
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    let state = State::locate(arguments.state.clone())?;
    state.prepare()?;
    let _lock = arguments.lock(&state)?;
    if let Some(difference) = validation::other_key(settings, &state) {
        tracing::warn!("{difference}");
    }
    if parent::is_wanted(arguments) == Err(Alone::ConfigurationRunsDry) {
        tracing::warn!(
            "the configuration comes from a stream, which is there only once: if the control plane crashes it is not started again. \
             Name a file, and it is"
        );
    }
    let runtime = runtime(Some(2))?;
    let code = runtime.block_on(serve(arguments, settings, &state));
    // What still blocks has its own deadline, and nobody waits for it.
    runtime.shutdown_background();
    code
}

/// Ends with the parent: who kills that means this process.
fn follow(parent: i32) -> anyhow::Result<()> {
    use rustix::process::{Signal, getppid, set_parent_process_death_signal};
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| anyhow!("cannot follow the parent: {error}; run: ringwire run --no-parent"))?;
    // It may have died before.
    let is_there = getppid().is_some_and(|pid| pid.as_raw_nonzero().get() == parent);
    is_there
        .then_some(())
        .ok_or_else(|| anyhow!("process {parent}, which started this one, is gone. Nothing was started."))
}

async fn serve(arguments: &Arguments, settings: &File, state: &State) -> anyhow::Result<ExitCode> {
    // Before anything runs: a signal from then on must end it in order.
    let mut signals = Signals::new().map_err(|error| anyhow!("cannot take signals: {error}"))?;
    let systemd = Systemd::from_environment();
    let wanted = arguments.wanted(settings, state)?;
    let key = wanted.key.clone();
    let public_key = key.public_key().to_string();
    // Listeners and settings first: a data plane is not started for a mistyped flag.
    let settings = ServiceSettings::from(settings);
    let prepared = Prepared::new(settings, wanted.settings.listen(), state).await?;
    let Some((plane, mut supervision)) = start(wanted, &mut signals).await? else {
        return Ok(ExitCode::SUCCESS);
    };
    let services = match prepared.start(state, key, &plane).await {
        Ok(services) => services,
        Err(error) => {
            let end = if plane.status().child { End::Stop } else { End::Leave };
            end_supervision(&plane, end, &mut signals, async {}).await?;
            return Err(error.into());
        }
    };
    let mut status = plane.watch();
    let note = Note { state, public_key, discovery: services.discovery_url() };
    let begun = begin(&note, &plane, &services, arguments);
    let admin = match begun {
        Ok(admin) => admin,
        Err(error) => {
            // What was started for a server that cannot be found goes with it.
            let end = if plane.status().child { End::Stop } else { End::Leave };
            leave_and_end(services.presence(), &plane, end, &mut signals).await?;
            services.stop().await;
            std::fs::remove_file(state.control_socket()).ok();
            return Err(error);
        }
    };
    let first = status.borrow_and_update().clone();
    systemd.ready(&first);
    let standings = services.presence().registration().watch();
    let mut events = arguments.json.then(|| Events::new(first, standings));

    let end = loop {
        tokio::select! {
            asked = signals.next() => match asked {
                Asked::End if arguments.leave_dataplane => break End::Leave,
                Asked::End => break End::Stop,
                Asked::Reload => tracing::info!("SIGHUP is reserved; nothing is reloaded"),
            },
            ended = &mut supervision => break ended.unwrap_or(End::Ended),
            Ok(()) = status.changed() => {
                let now = status.borrow_and_update().clone();
                systemd.status(&now);
                events.iter_mut().for_each(|events| events.plane(&now));
                if now.attached && let Err(error) = note.write(&now) {
                    tracing::error!(%error, "server.json is out of date");
                }
            }
            () = systemd.watchdog_due() => systemd.feed(&plane).await,
        }
    };
    tracing::info!(?end, "ending");
    events.iter_mut().for_each(|events| events.ending(end));
    systemd.stopping();
    let ended = leave_and_end(services.presence(), &plane, end, &mut signals).await;
    services.stop().await;
    // Answers what is in progress, such as the order to stop.
    admin.stop().await;
    std::fs::remove_file(state.control_socket()).ok();
    // Said here: to whoever started this process, an error that is returned means that it did not begin.
    let noted = note.end(&plane.status(), end);
    Ok(match ended.and(noted) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            writeln!(std::io::stderr(), "ringwire: {error}").ok();
            ExitCode::FAILURE
        }
    })
}

/// Finds or starts a data plane; none: a signal came while there was none.
async fn start(
    wanted: Wanted,
    signals: &mut Signals,
) -> Result<Option<(Plane, JoinHandle<End>)>, ObtainError> {
    let cancel = Cancel::default();
    let mut starting = std::pin::pin!(supervise::start_unless(wanted, &cancel));
    let mut asked = false;
    let started = loop {
        tokio::select! {
            started = &mut starting => break started,
            signal = signals.next(), if !asked => if signal == Asked::End {
                cancel.cancel();
                asked = true;
            },
        }
    };
    match started {
        Ok(_) if !asked => started.map(Some),
        Ok((plane, _)) => {
            // It came at that very moment; one that we started goes again.
            let end = if plane.status().child { End::Stop } else { End::Leave };
            if let Err(error) = plane.end(end).await {
                tracing::error!(%error, "the data plane may go on");
            }
            Ok(None)
        }
        Err(ObtainError::Cancelled) => {
            tracing::info!("ended by a signal before there was a data plane");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Makes the server known: the commands' way in, the note for tools, the word that it is ready.
fn begin(
    note: &Note<'_>,
    plane: &Plane,
    services: &Services,
    arguments: &Arguments,
) -> anyhow::Result<HttpServer> {
    let socket = admin::bind(note.state)?;
    let first = note.write(&plane.status())?;
    let admin = Admin::new(note.state.clone(), plane.clone()).with_presence(services.presence().clone());
    let admin = admin.serve(socket);
    // People have read it already; programs want to know the new process.
    if arguments.json || !arguments.again {
        announce(&first, &plane.status(), services, note.state, arguments.json)?;
    }
    Ok(admin)
}

/// A signal so soon after the one that ends the server is the same act: `timeout` sends its own twice, and a terminal that is
/// closed sends one besides its shell's. To obey it would leave the data plane alone.
const SAME_ACT: Duration = Duration::from_secs(1);

/// Ends the server in order: nobody is sent here any more before the first session is closed.
async fn leave_and_end(
    presence: &Presence,
    plane: &Plane,
    end: End,
    signals: &mut Signals,
) -> anyhow::Result<()> {
    let leave = async {
        if end != End::Leave {
            presence.leave(ENDING).await.for_good();
        }
    };
    end_supervision(plane, end, signals, leave).await
}

/// Ends the supervision, if it has not ended, behind what is to be done `first`; a second signal does not wait for that.
async fn end_supervision(
    plane: &Plane,
    end: End,
    signals: &mut Signals,
    first: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let began = Instant::now();
    let again = async { while signals.next().await != Asked::End || began.elapsed() < SAME_ACT {} };
    let ended = async {
        first.await;
        match plane.end(end).await {
            // The second: it was ended by somebody else, such as an order on the admin socket.
            Ok(_) | Err(EndError::Over) => Ok(()),
            Err(error) => Err(error),
        }
    };
    tokio::select! {
        ended = ended => ended.map_err(|error| anyhow!("{error}; look at: ringwire status")),
        () = again => Err(anyhow!("ended at the second signal; look at: ringwire status")),
    }
}

impl Arguments {
    /// This process's hold on the state directory.
    fn lock(&self, state: &State) -> Result<Locks, StateError> {
        // With a parent that is its part.
        let parent = if self.child_of.is_none() { Some(Lock::take_as_parent(state)?) } else { None };
        // Nobody else may begin while there is a parent; who holds it yet, is dying of the death of the one before.
        let patience = if self.child_of.is_some() { parent::DYING_MAX } else { Duration::ZERO };
        Ok(Locks { _own: Lock::take_within(state, patience)?, _parent: parent })
    }

    /// The settings of the file, and those of the flags over them. To be asked for once: the file may be a pipe.
    pub(super) fn settings(&self) -> anyhow::Result<File> {
        let file = match &self.config {
            Some(path) => File::read(path)?,
            None => File::default(),
        };
        let both = file.under(File {
            listen: (!self.listen.is_empty()).then(|| self.listen.clone()),
            driver: self.driver.map(Into::into),
            workers: self.workers,
            first_core: self.first_core,
            hybrid: self.hybrid.map(Into::into),
            orphan_limit_ms: self
                .orphan_limit
                .map(|seconds| Duration::from_secs_f64(seconds).as_millis() as u64)
                .or(self.orphan_limit_ms),
            log_sessions: self.log_sessions.then_some(true),
            ..self.services.settings()
        });
        if let Some(path) = &self.config {
            both.check(path)?;
        }
        Ok(both)
    }

    fn wanted(&self, file: &File, state: &State) -> anyhow::Result<Wanted> {
        let settings = Settings::from(file);
        let program = (!self.no_spawn).then(|| PathBuf::from(OWN_PROGRAM));
        // A Go server's file carries its key: whoever names the file wants to be that server.
        let key = match &file.secret_key {
            Some(key) => key.secret().clone(),
            None => state.key()?,
        };
        let layout = ringwire_ipc::LAYOUT_HASH;
        // What the environment names is stronger, and is the child's as it is ours.
        let is_named = std::env::var_os(LOG_VARIABLE).is_some_and(|text| !text.is_empty());
        let log = file.log.as_ref().filter(|_| !is_named).map(ToString::to_string);
        let log_sessions = file.log_sessions.unwrap_or(false);
        Ok(Wanted { state: state.clone(), key, settings, program, layout, log, log_sessions })
    }
}

/// Held while this process is the control plane.
#[derive(Debug)]
struct Locks {
    _own: Lock,
    _parent: Option<Lock>,
}

/// `server.json`, kept true.
struct Note<'a> {
    state: &'a State,
    public_key: String,
    discovery: Option<String>,
}

impl Note<'_> {
    fn write(&self, status: &PlaneStatus) -> anyhow::Result<ServerNote> {
        let note = self.of(status, Some(std::process::id()));
        self.state.write_note(&note)?;
        Ok(note)
    }

    /// What stays behind when this process is gone: a data plane that goes on alone keeps its note.
    fn end(&self, status: &PlaneStatus, end: End) -> anyhow::Result<()> {
        match end {
            End::Leave => self.state.write_note(&self.of(status, None))?,
            End::Stop | End::Ended => self.state.remove_note(status.pid),
        }
        Ok(())
    }

    fn of(&self, status: &PlaneStatus, control_pid: Option<u32>) -> ServerNote {
        ServerNote {
            public_key: self.public_key.clone(),
            address: reachable(&status.addresses),
            addresses: status.addresses.clone(),
            control_pid,
            dataplane_pid: status.pid,
            discovery: self.discovery.clone(),
        }
    }
}

fn announce(
    note: &ServerNote,
    status: &PlaneStatus,
    services: &Services,
    state: &State,
    json: bool,
) -> anyhow::Result<()> {
    let text = if json {
        serde_json::to_string(&Ready {
            event: "ready",
            public_key: &note.public_key,
            address: note.address,
            addresses: &note.addresses,
            driver: &status.driver,
            discovery: note.discovery.as_deref(),
            discovery_listening: services.discovery_address(),
            http: services.http_address(),
            control_pid: std::process::id(),
            dataplane_pid: status.pid,
        })?
    } else {
        let addresses: Vec<_> = note.addresses.iter().map(ToString::to_string).collect();
        let found = if status.child { "started" } else { "found alive" };
        let mut lines = vec![
            "Ringwire is ready.".to_owned(),
            String::new(),
            format!("  listening    {} (dmsg over TCP, driver {})", addresses.join(", "), status.driver),
            format!("  public key   {}", note.public_key),
            format!("  state        {}", state.directory().display()),
            format!("  data plane   process {}, {found}", status.pid),
            format!(
                "  connections  {} at most, by the limit of open files (`ulimit -n`)",
                status.connections_max
            ),
        ];
        lines.extend(services.describe());
        lines.extend([
            String::new(),
            "Look at it, or measure it, from a second terminal:".to_owned(),
            String::new(),
            format!("  {}", typed(&["status"], state)),
            format!("  {}", typed(&["bench", "bridge"], state)),
            String::new(),
            "Stop it with Ctrl-C.".to_owned(),
        ]);
        lines.join("\n")
    };
    let mut out = std::io::stdout().lock();
    // A reader that went away is no reason to stop serving.
    writeln!(out, "{text}").and_then(|()| out.flush()).ok();
    Ok(())
}

/// A command that finds this server, as it is typed here: the program as this one was, the state directory where it is not the
/// usual one.
fn typed(words: &[&str], state: &State) -> String {
    // A path need not be text: then it is shown as well as it can be.
    let program = std::env::args_os().next().unwrap_or_else(|| "ringwire".into());
    let program = program.to_string_lossy();
    let usual = State::locate(None).is_ok_and(|usual| usual.directory() == state.directory());
    let directory = state.directory().display().to_string();
    let mut all = vec![&*program];
    all.extend(words);
    if !usual || std::env::var_os(STATE_VARIABLE).is_some() {
        all.extend(["--state", &directory]);
    }
    // Only a zero byte cannot be quoted, and neither an argument nor a path has one.
    shlex::try_join(all.iter().copied()).unwrap_or_else(|_| all.join(" "))
}

/// The first address as this machine reaches it: a wildcard is not an address to connect to.
fn reachable(addresses: &[SocketAddr]) -> SocketAddr {
    let mut address = addresses.first().copied().unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => {
            address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        }
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => {
            address.set_ip(std::net::Ipv6Addr::LOCALHOST.into());
        }
        SocketAddr::V4(_) | SocketAddr::V6(_) => {}
    }
    address
}

fn orphan_limit(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=31_536_000.0).contains(&seconds) => Ok(seconds),
        _ => Err("expected seconds from 0 to 31536000".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_is_reached_by_loopback() {
        let cases = [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:2", "[::1]:2"), ("10.0.0.1:3", "10.0.0.1:3")];
        for (listening, reached) in cases {
            assert_eq!(reachable(&[listening.parse().unwrap()]).to_string(), reached);
        }
    }
}
