//! `ringwire run`: a dmsg server until a signal ends it.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::anyhow;
use clap::{Args, ValueEnum};
use ringwire_dataplane::{DriverChoice, Server, ServerConfig};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::MissedTickBehavior;

use super::HybridChoice;
use crate::state::lock::Lock;
use crate::state::{STATE_VARIABLE, ServerNote, State};

/// How often the server is asked whether it still works.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ringwire run                                      on 127.0.0.1:8081, for a first try
  ringwire run --listen 0.0.0.0:8081                reachable from outside
  ringwire run --listen 0.0.0.0:8081 --listen [::]:8081
  ringwire run --json --state /var/lib/ringwire     one line of JSON once it is ready

No configuration is needed. The key is made at the first start and kept in the state directory.")]
pub(super) struct Arguments {
    /// Address to accept sessions on, may be given several times; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8081")]
    listen: Vec<SocketAddr>,
    /// Directory of the key and of server.json [default: $XDG_STATE_HOME/ringwire or ~/.local/state/ringwire]
    #[arg(long, value_name = "DIR", env = STATE_VARIABLE)]
    state: Option<PathBuf>,
    /// How to talk to the kernel: auto takes io_uring where it is allowed
    #[arg(long, value_enum, default_value_t = DriverArgument::Auto)]
    driver: DriverArgument,
    /// The post-quantum part of session handshakes
    #[arg(long, value_enum, default_value_t = HybridChoice::Offer)]
    hybrid: HybridChoice,
    /// Print one JSON object per event instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DriverArgument {
    Auto,
    Uring,
    Poll,
}

impl From<DriverArgument> for DriverChoice {
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
    driver: &'static str,
    control_pid: u32,
}

pub(super) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let state = State::locate(arguments.state)?;
    state.prepare()?;
    let _lock = Lock::take(&state)?;
    let mut config = ServerConfig::new(state.key()?, arguments.listen);
    config.driver = arguments.driver.into();
    config.hybrid = arguments.hybrid.into();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Before the server is ready: a signal from then on must end it in order.
    let mut signals = runtime
        .block_on(async { Signals::new() })
        .map_err(|error| anyhow!("cannot take signals: {error}"))?;
    let server = Server::start(config)?;
    let pid = std::process::id();
    let note = ServerNote {
        public_key: server.public_key().to_string(),
        address: reachable(server.addresses()),
        addresses: server.addresses().to_vec(),
        control_pid: Some(pid),
        dataplane_pid: pid,
        discovery: None,
    };
    state.write_note(&note)?;
    let note_guard = NoteGuard { state: &state, pid };
    announce(&server, &note, &state, arguments.json)?;
    let end = runtime.block_on(wait(&mut signals, &server));
    drop(note_guard);
    tracing::info!(?end, "stopping");
    server.stop().map_err(|error| anyhow!("the data plane failed: {error}"))?;
    Ok(match end {
        End::Signal => ExitCode::SUCCESS,
        End::Failed => ExitCode::FAILURE,
    })
}

/// Removes `server.json` whichever way the command ends.
struct NoteGuard<'a> {
    state: &'a State,
    pid: u32,
}

impl Drop for NoteGuard<'_> {
    fn drop(&mut self) {
        self.state.remove_note(self.pid);
    }
}

struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    /// The terminal was closed.
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

#[derive(Debug)]
enum End {
    Signal,
    Failed,
}

async fn wait(signals: &mut Signals, server: &Server) -> End {
    let mut watch = tokio::time::interval(WATCH_INTERVAL);
    watch.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = signals.interrupt.recv() => return End::Signal,
            _ = signals.terminate.recv() => return End::Signal,
            _ = signals.hangup.recv() => return End::Signal,
            _ = watch.tick() => if server.has_ended() { return End::Failed },
        }
    }
}

fn announce(server: &Server, note: &ServerNote, state: &State, json: bool) -> anyhow::Result<()> {
    let text = if json {
        let ready = Ready {
            event: "ready",
            public_key: &note.public_key,
            address: note.address,
            addresses: server.addresses(),
            driver: server.driver_name(),
            control_pid: note.dataplane_pid,
        };
        serde_json::to_string(&ready)?
    } else {
        let addresses: Vec<_> = server.addresses().iter().map(ToString::to_string).collect();
        [
            "Ringwire is ready.".to_owned(),
            String::new(),
            format!(
                "  listening    {} (dmsg over TCP, driver {})",
                addresses.join(", "),
                server.driver_name()
            ),
            format!("  public key   {}", note.public_key),
            format!("  state        {}", state.directory().display()),
            String::new(),
            "Measure it from a second terminal:".to_owned(),
            String::new(),
            format!("  {}", bench_command(state)),
            String::new(),
            "Stop it with Ctrl-C.".to_owned(),
        ]
        .join("\n")
    };
    let mut out = std::io::stdout().lock();
    // A reader that went away is no reason to stop serving.
    writeln!(out, "{text}").and_then(|()| out.flush()).ok();
    Ok(())
}

/// The command that finds this server; names the state directory where it is not the usual one.
fn bench_command(state: &State) -> String {
    let usual = State::locate(None).is_ok_and(|usual| usual.directory() == state.directory());
    match (usual, std::env::var_os(STATE_VARIABLE)) {
        (true, None) => "ringwire bench bridge".to_owned(),
        _ => format!("ringwire bench bridge --state {}", state.directory().display()),
    }
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
