//! `ringwire bench bridge`: how fast a server is, measured with bytes that are checked.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

use super::HybridChoice;
use crate::bench::{self, Mode, Options, Progress};
use crate::dmsg::ServerAddress;
use crate::state::{STATE_VARIABLE, State};

/// Redraws of the progress bar; slow terminals stay usable.
const REDRAW_INTERVAL: Duration = Duration::from_millis(500);

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
  ringwire bench bridge --go-frames                      frames cut as the Go clients cut them
  ringwire bench bridge --go-frames --go-writes          and written as they write them
  ringwire bench bridge --server 02..@192.0.2.1:8081 --json

Every byte is checked; a run that loses or changes one prints verified: false and exits with 1.")]
pub(super) struct Bridge {
    /// Server to measure, as PUBLICKEY@HOST:PORT [default: the one of server.json in the state directory]
    #[arg(long, value_name = "PK@HOST:PORT")]
    server: Option<ServerAddress>,
    /// State directory of the server [default: $XDG_STATE_HOME/ringwire or ~/.local/state/ringwire]
    #[arg(long, value_name = "DIR", env = STATE_VARIABLE)]
    state: Option<PathBuf>,
    /// Pairs of clients
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    pairs: u16,
    /// Streams of each pair
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1024))]
    streams: u16,
    /// How long to send
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
}

impl From<ModeArgument> for Mode {
    fn from(argument: ModeArgument) -> Self {
        match argument {
            ModeArgument::Bulk => Self::Bulk,
            ModeArgument::Latency => Self::Latency,
        }
    }
}

pub(super) fn run(command: Command) -> anyhow::Result<ExitCode> {
    let Command::Bridge(arguments) = command;
    let json = arguments.json;
    let options = arguments.options()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
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
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
    } else {
        write!(out, "{report}")?;
    }
    Ok(if report.verified { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Bridge {
    fn options(self) -> anyhow::Result<Options> {
        let (server, noted_pid) = match self.server {
            Some(server) => (server, None),
            None => {
                let state = State::locate(self.state)?;
                let note = state.read_note()?;
                let key = note
                    .key()
                    .map_err(|error| anyhow!("the public key in server.json is not valid: {error}"))?;
                (ServerAddress { key, address: note.address.to_string() }, Some(note.dataplane_pid))
            }
        };
        Ok(Options {
            server,
            server_pid: self.server_pid.or(noted_pid),
            pairs: self.pairs.into(),
            streams: self.streams.into(),
            duration: Duration::from_secs_f64(self.seconds),
            write_bytes: self.write_size as usize,
            mode: self.mode.into(),
            go_frames: self.go_frames,
            go_writes: self.go_writes,
            hybrid: self.hybrid.into(),
        })
    }
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
    let total = (options.pairs * options.streams) as u64;
    let duration = options.duration;
    let progress = Arc::clone(progress);
    Some(tokio::spawn(async move {
        let bar = ClearOnDrop(ProgressBar::new(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)));
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {msg}") {
            bar.0.set_style(style);
        }
        let mut started = None;
        let mut last = (Instant::now(), 0);
        loop {
            let (ready, bytes) = (progress.streams_ready(), progress.bytes());
            if ready < total {
                bar.0.set_message(format!("opening streams: {ready} of {total}"));
            } else {
                let started: &mut Instant = started.get_or_insert_with(Instant::now);
                let rate = (bytes - last.1) as f64 * 8.0 / last.0.elapsed().as_secs_f64().max(1e-3) / 1e9;
                bar.0.set_position(u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX));
                bar.0.set_message(format!("{rate:.2} Gbit/s"));
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
