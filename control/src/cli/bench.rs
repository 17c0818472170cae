//! `ringwire bench bridge`: how fast a server is, measured with bytes that are checked.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::HybridChoice;
use super::output::{print_json, print_text};
use super::runtime::runtime;
use crate::bench::{self, Mode, Options, Progress};
use crate::discovery::DiscoveryClient;
use crate::dmsg::ServerAddress;
use crate::state::{STATE_VARIABLE, State};

/// Redraws of the progress bar; slow terminals stay usable.
const REDRAW_INTERVAL: Duration = Duration::from_millis(500);

/// Sessions being made at a time by default: enough that the wait of each behind its handshake (dmsg-wire 4.4) does not
/// limit the rate.
const HANDSHAKES: u32 = 64;

/// Idle sessions by default: enough that what the server holds once does not show.
const IDLE_SESSIONS: u32 = 1000;

/// Descriptors this program needs besides its connections.
const DESCRIPTORS_SPARE: u64 = 64;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Move verified bytes between pairs of clients through a server
    Bridge(Bridge),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ringwire bench bridge                                  the server that runs on this machine
  ringwire bench bridge --mode latency --streams 1       round trips of 64 bytes
  ringwire bench bridge --pairs 4 --streams 8 --seconds 10
  ringwire bench bridge --mode handshakes                sessions per second, and what each costs
  ringwire bench bridge --mode opens                     streams per second
  ringwire bench bridge --mode idle --sessions 5000      memory of a session that does nothing
  ringwire bench bridge --mode idle-streams --pairs 10 --streams 1000
  ringwire bench bridge --go-frames                      frames cut as the Go clients cut them
  ringwire bench bridge --go-frames --go-writes          and written as they write them
  ringwire bench bridge --server 02..@192.0.2.1:8081 --json

--server-pid names the process that forwards: with ringwire run that is its data plane, and it is known from server.json.
Every byte is checked; a run that loses or changes one prints verified: false and exits with 1.")]
pub(super) struct Bridge {
    /// Server to measure, as PUBLICKEY@HOST:PORT [default: the one of server.json in the state directory]
    #[arg(long, value_name = "PK@HOST:PORT")]
    server: Option<ServerAddress>,
    /// Take the server with the most free sessions that this discovery lists
    #[arg(long, value_name = "URL", conflicts_with = "server")]
    discovery: Option<String>,
    /// State directory of the server [default: $XDG_STATE_HOME/ringwire or ~/.local/state/ringwire]
    #[arg(long, value_name = "DIR", env = STATE_VARIABLE)]
    state: Option<PathBuf>,
    /// Pairs of clients
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    pairs: u16,
    /// Streams of each pair
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1024))]
    streams: u16,
    /// Sessions being made at a time in handshakes mode [default: 64], held together in idle mode [default: 1000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    sessions: Option<u32>,
    /// How long to send, to make sessions or streams, or to hold idle ones
    #[arg(long, value_name = "S", default_value_t = 5.0, value_parser = seconds)]
    seconds: f64,
    /// Bytes of one write
    #[arg(long, value_name = "BYTES", default_value_t = 65536, value_parser = clap::value_parser!(u32).range(16..=16_777_216))]
    write_size: u32,
    /// What to measure
    #[arg(long, value_enum, default_value_t = ModeArgument::Bulk)]
    mode: ModeArgument,
    /// Cut frames as Go clients do: at most 4096 bytes each
    #[arg(long)]
    go_frames: bool,
    /// Also write each frame's header and payload with a system call of its own, as Go clients do; with --go-frames
    #[arg(long, requires = "go_frames")]
    go_writes: bool,
    /// Process of the server, for its cost [default: the one of server.json]
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
    /// The post-quantum part of the handshakes
    #[arg(long, value_enum, default_value_t = HybridChoice::Offer)]
    hybrid: HybridChoice,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ModeArgument {
    /// As many bytes as possible, one way
    Bulk,
    /// 64 bytes there and back, one at a time
    Latency,
    /// Sessions made and closed again
    Handshakes,
    /// Streams opened and closed again
    Opens,
    /// Sessions that do nothing, and the memory they cost the server
    Idle,
    /// Streams that do nothing, and the memory they cost the server
    IdleStreams,
}

impl From<ModeArgument> for Mode {
    fn from(argument: ModeArgument) -> Self {
        match argument {
            ModeArgument::Bulk => Self::Bulk,
            ModeArgument::Latency => Self::Latency,
            ModeArgument::Handshakes => Self::Handshakes,
            ModeArgument::Opens => Self::Opens,
            ModeArgument::Idle => Self::Idle,
            ModeArgument::IdleStreams => Self::IdleStreams,
        }
    }
}

pub(super) fn run(command: Command) -> anyhow::Result<ExitCode> {
    let Command::Bridge(arguments) = command;
    let json = arguments.json;
    let options = arguments.options()?;
    let runtime = runtime(None)?;
    let report = runtime.block_on(async {
        let progress = Arc::new(Progress::default());
        let bar = show(&options, &progress);
        let report = bench::run(options, progress).await;
        if let Some(bar) = bar {
            bar.abort();
            bar.await.ok();
        }
        report
    })?;
    if json {
        print_json(&report)?;
    } else {
        print_text(&report.to_string())?;
    }
    Ok(if report.verified { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Bridge {
    fn options(self) -> anyhow::Result<Options> {
        let (server, noted_pid, control_pid) = match (self.server, &self.discovery) {
            (Some(server), _) => (server, None, None),
            (None, Some(url)) => (listed(url)?, None, None),
            (None, None) => {
                let state = State::locate(self.state)?;
                let note = state.read_note()?;
                let key = note
                    .key()
                    .map_err(|error| anyhow!("the public key in server.json is not valid: {error}"))?;
                let server = ServerAddress { key, address: note.address.to_string() };
                (server, Some(note.dataplane_pid), note.control_pid)
            }
        };
        let mode = Mode::from(self.mode);
        let sessions = self.sessions.unwrap_or(if mode == Mode::Idle { IDLE_SESSIONS } else { HANDSHAKES });
        match mode.is_in_pairs() {
            true => raise_descriptors(u64::from(self.pairs) * 2, "--pairs")?,
            false => raise_descriptors(u64::from(sessions), "--sessions")?,
        }
        Ok(Options {
            server,
            server_pid: self.server_pid.or(noted_pid),
            control_pid,
            pairs: self.pairs.into(),
            streams: self.streams.into(),
            sessions: sessions as usize,
            duration: Duration::from_secs_f64(self.seconds),
            write_bytes: self.write_size as usize,
            mode,
            go_frames: self.go_frames,
            go_writes: self.go_writes,
            hybrid: self.hybrid.into(),
        })
    }
}

/// The server of a discovery that has the most free sessions.
fn listed(url: &str) -> anyhow::Result<ServerAddress> {
    let client = DiscoveryClient::new(url)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut servers = runtime.block_on(client.available_servers())?;
    servers.sort_by_key(|entry| entry.server.as_ref().map_or(0, |server| -server.available_sessions));
    let server = servers.iter().find_map(ServerAddress::of_entry);
    server.ok_or_else(|| {
        anyhow!("{url} lists no server with free sessions; name one with --server PK@HOST:PORT")
    })
}

/// Lets this program have `connections` at a time, as far as the system allows; `flag` says how many there are.
fn raise_descriptors(connections: u64, flag: &str) -> anyhow::Result<()> {
    let needed = connections + DESCRIPTORS_SPARE;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    if limit.maximum.is_some_and(|maximum| maximum < needed) {
        return Err(anyhow!(
            "{needed} open files are needed and {} are allowed: lower {flag}, or raise the limit with ulimit -n",
            limit.maximum.unwrap_or_default()
        ));
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(needed), maximum: limit.maximum })?;
    Ok(())
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=86_400.0).contains(&seconds) => Ok(seconds),
        _ => Err("expected seconds from 0.1 to 86400".to_owned()),
    }
}

/// Draws the progress on a terminal; aborting the task clears it.
fn show(options: &Options, progress: &Arc<Progress>) -> Option<tokio::task::JoinHandle<()>> {
    if !std::io::stderr().is_terminal() {
        return None;
    }
    let counts = !matches!(options.mode, Mode::Bulk | Mode::Latency);
    let total = if counts { 0 } else { (options.pairs * options.streams) as u64 };
    let duration = options.duration;
    let progress = Arc::clone(progress);
    Some(tokio::spawn(async move {
        let bar = ClearOnDrop(ProgressBar::new(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)));
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {msg}") {
            bar.0.set_style(style);
        }
        let mut started = None;
        let mut last = (Instant::now(), 0_u64);
        loop {
            let bytes = if counts { progress.counted() } else { progress.bytes() };
            let ready = progress.streams_ready();
            if ready < total {
                bar.0.set_message(format!("opening streams: {ready} of {total}"));
            } else {
                let started: &mut Instant = started.get_or_insert_with(Instant::now);
                let rate = (bytes - last.1) as f64 / last.0.elapsed().as_secs_f64().max(1e-3);
                bar.0.set_position(u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX));
                bar.0.set_message(match counts {
                    true => format!("{bytes} done, {rate:.0} per second"),
                    false => format!("{:.2} Gbit/s", rate * 8.0 / 1e9),
                });
            }
            last = (Instant::now(), bytes);
            tokio::time::sleep(REDRAW_INTERVAL).await;
        }
    }))
}

struct ClearOnDrop(ProgressBar);

impl Drop for ClearOnDrop {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
