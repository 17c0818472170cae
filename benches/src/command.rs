//! The command line: `relay` measures; the hidden subcommands are the processes that it starts.
//!
//! In: arguments. Out: a table or JSON on standard output, progress on standard error when that is a terminal. Called
//! by the binary, which `cargo xtask bench relay` builds and runs.

use crate::measure::{Measurement, Settings, measure, two_cores, verify};
use crate::relay::{Relay, epoll_copy, haproxy, ringwire, splice, tokio_copy, uring_copy};
use crate::report::{Header, Report, Row, VerifiedRow};
use crate::workload::{Bulk, Workload, select};
use crate::{cpu, flood, micro, ping, sessions};
use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use ringwire_dataplane::DriverChoice;
use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command as Program;
use std::time::Duration;

/// Measurements of Ringwire against peers in the same run.
#[derive(Parser)]
#[command(name = "ringwire-benches", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Our server and reference relays, interleaved, moving the same bytes.
    ///
    /// RINGWIRE_DRIVER=poll in the environment measures our server on its poll driver.
    Relay(RelayArguments),
    /// What sessions and streams cost our server: handshakes, opens, idle sessions and streams.
    Sessions(sessions::Arguments),
    /// Instructions of the worker for each thing it does, counted by callgrind.
    Micro(micro::Arguments),
    /// Attacks on the real server, and how an honest client fares beside them.
    ///
    /// Status 0: all targets were met, 1: one was missed or something could not be measured, 2: not understood.
    Flood(flood::Arguments),
    /// One attack.
    #[command(hide = true)]
    FloodAttack { name: String },
    /// The server under attack.
    #[command(hide = true)]
    FloodServer {
        #[arg(long)]
        binary: Option<PathBuf>,
        #[arg(long)]
        descriptors: Option<u64>,
        #[arg(last = true)]
        arguments: Vec<OsString>,
    },
    /// One counted run.
    #[command(hide = true)]
    MicroRow {
        row: String,
        #[arg(long)]
        count: u64,
    },
    /// The relay that copies with tokio.
    #[command(hide = true)]
    RelayTokio {
        #[arg(long)]
        buffer: usize,
        #[arg(long)]
        sink: Vec<SocketAddr>,
        #[arg(long)]
        core: Option<usize>,
    },
    /// The relay that copies with tokio-uring.
    #[command(hide = true)]
    RelayTokioUring(ReferenceArguments),
    /// The relay that copies with epoll.
    #[command(hide = true)]
    RelayEpoll(ReferenceArguments),
    /// HAProxy.
    #[command(hide = true)]
    RelayHaproxy(ReferenceArguments),
    /// The relay that splices.
    #[command(hide = true)]
    RelaySplice(ReferenceArguments),
    /// Our server.
    #[command(hide = true)]
    RelayRingwire {
        #[arg(long)]
        core: Option<usize>,
        #[arg(long, default_value_t = 1)]
        workers: usize,
        #[arg(long, env = "RINGWIRE_DRIVER", default_value_t)]
        driver: DriverChoice,
    },
    /// The ping process.
    #[command(hide = true)]
    PingPeer {
        #[arg(long)]
        core: Option<usize>,
    },
}

/// What a reference relay needs to know.
#[derive(Args)]
struct ReferenceArguments {
    #[arg(long)]
    sink: Vec<SocketAddr>,
    #[arg(long)]
    core: Option<usize>,
}

impl ReferenceArguments {
    fn run(self, relay: fn(&[SocketAddr]) -> Result<()>) -> Result<()> {
        become_relay(self.core)?;
        relay(&self.sink)
    }
}

#[derive(Args)]
struct RelayArguments {
    /// Print one JSON document instead of the table.
    #[arg(long)]
    json: bool,
    /// Rounds over all loads and relays; targets are judged by medians of at least 5.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Length of each measured window in seconds.
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    /// Time before each window in seconds.
    #[arg(long, default_value_t = 0.5)]
    warmup: f64,
    /// Only loads and relays with this in their names; may be repeated.
    #[arg(long)]
    only: Vec<String>,
    /// 1 round, windows of 0.3 s: shows that everything works, not how well.
    #[arg(long, conflicts_with_all = ["rounds", "seconds", "warmup"])]
    quick: bool,
    /// Payload of each verified round in MiB.
    #[arg(long, default_value_t = 32)]
    verify_mib: u64,
    /// Core of the relay; the first allowed one when absent.
    #[arg(long)]
    relay_core: Option<usize>,
    /// Core of the generator; the third allowed one when absent, or the second of two.
    #[arg(long)]
    generator_core: Option<usize>,
}

/// Runs the command of this process's arguments.
///
/// # Errors
/// What the command could not do; for `relay` also lost bytes, wrong content, warnings and failed rounds.
pub fn run() -> Result<()> {
    match Arguments::parse().command {
        Command::Relay(arguments) => relay(&arguments),
        Command::Sessions(arguments) => sessions::run(&arguments),
        Command::Micro(arguments) => micro::run(&arguments),
        Command::Flood(arguments) => flood::run(&arguments),
        Command::FloodAttack { name } => {
            end_with_parent()?;
            flood::attack::run(&name)
        }
        Command::FloodServer { binary, descriptors, arguments } => {
            flood::server::become_server(binary.as_deref(), descriptors, &arguments)
        }
        Command::MicroRow { row, count } => micro::Row::named(&row)?.run(count),
        Command::RelayTokio { buffer, sink, core } => {
            become_relay(core)?;
            tokio_copy::run(&sink, buffer)
        }
        Command::RelayTokioUring(arguments) => arguments.run(uring_copy::run),
        Command::RelayEpoll(arguments) => arguments.run(epoll_copy::run),
        Command::RelayHaproxy(arguments) => arguments.run(haproxy::run),
        Command::RelaySplice(arguments) => arguments.run(splice::run),
        Command::RelayRingwire { core, workers, driver } => {
            // The core behind the relay's is the generator's where there are only two.
            let has_cores = std::thread::available_parallelism().is_ok_and(|cores| cores.get() > workers);
            become_relay(core)?;
            ringwire::run(driver, workers, core.filter(|_| has_cores))
        }
        Command::PingPeer { core } => {
            end_with_parent()?;
            ping::run(core)
        }
    }
}

/// Pins a relay before it starts any thread, and lets it end with the measuring process.
fn become_relay(core: Option<usize>) -> Result<()> {
    end_with_parent()?;
    match core {
        Some(core) => cpu::pin(core).with_context(|| format!("core {core} is not available")),
        None => Ok(()),
    }
}

fn end_with_parent() -> Result<()> {
    Ok(rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?)
}

fn relay(arguments: &RelayArguments) -> Result<()> {
    let (workloads, mut relays) = select(&arguments.only)?;
    if haproxy::version().is_none() {
        relays.retain(|relay| *relay != Relay::Haproxy);
    }
    if relays.is_empty() {
        bail!("haproxy is not installed (apt install haproxy), and --only names nothing else");
    }
    let settings = settings(arguments)?;
    if let Some(core) = settings.generator_core {
        cpu::pin(core).with_context(|| format!("core {core} is not available"))?;
    }
    // Paced rows sleep for tens of microseconds; the default slack of 50 us would bunch them.
    rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1))?;
    let rounds = if arguments.quick { 1 } else { arguments.rounds };
    let bulks = distinct_bulks(&workloads);
    let concerned = |workload: &Workload| relays.iter().filter(|relay| workload.concerns(**relay)).count();
    let cases: usize = workloads.iter().map(concerned).sum();
    let progress = progress(bulks.len() * relays.len() + cases * rounds);
    let mut header = header(&settings, rounds);

    let payload = if arguments.quick { 4 } else { arguments.verify_mib } << 20;
    let mut verified = Vec::new();
    for (workload, bulk) in &bulks {
        for relay in &relays {
            progress.set_message(format!("verify {workload} {}", relay.name()));
            let result = verify(&settings, bulk, *relay, payload);
            let error = result.as_ref().err().map(|error| format!("{error:#}"));
            verified.push((
                *bulk,
                *relay,
                VerifiedRow { workload, relay: relay.name(), outcome: result.ok(), error },
            ));
            progress.inc(1);
        }
    }
    let measured = measure_rounds(&settings, &workloads, &relays, rounds, &progress);
    progress.finish_and_clear();

    let mut rows = Vec::new();
    for (workload, relay, rounds) in measured.into_iter().flatten() {
        if relay == Relay::Ringwire
            && let Some(round) = rounds.iter().flatten().next()
        {
            header.driver.clone_from(&round.driver);
            header.wait = match round.company_us_max {
                Some(0) | None => "never for company".into(),
                Some(us) => format!(
                    "up to {us} us for company, where small pieces come in quick succession (share of turns per row)"
                ),
            };
        }
        let check =
            verified.iter().find(|(bulk, of, _)| *of == relay && Some(*bulk) == unpaced(workload.bulk));
        rows.push(Row::new(&workload, relay, rounds, check.map(|(_, _, row)| row)));
    }
    let report = Report::new(header, verified.into_iter().map(|(_, _, row)| row).collect(), rows);
    let mut out = std::io::stdout().lock();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        write!(out, "{}", report.table())?;
    }
    if report.has_failures() {
        bail!("a byte was lost or changed, a relay warned, or a round failed; see the verdicts");
    }
    Ok(())
}

/// All rounds of one load, relay by relay.
type Measured = Vec<(Workload, Relay, Vec<Result<Measurement, String>>)>;

/// Round-robin over all cases. Within a round the relays of one load follow each other, starting with another one each
/// time, so that a drift of the machine favours none.
fn measure_rounds(
    settings: &Settings,
    workloads: &[Workload],
    relays: &[Relay],
    rounds: usize,
    progress: &ProgressBar,
) -> Vec<Measured> {
    let mut measured: Vec<Measured> = workloads
        .iter()
        .map(|workload| {
            let concerned = relays.iter().filter(|relay| workload.concerns(**relay));
            concerned.map(|relay| (*workload, *relay, Vec::with_capacity(rounds))).collect()
        })
        .collect();
    for round in 0..rounds {
        for cases in &mut measured {
            let count = cases.len();
            for position in 0..count {
                let (workload, relay, results) = &mut cases[(round + position) % count];
                progress.set_message(format!(
                    "round {}/{rounds} {} {}",
                    round + 1,
                    workload.name,
                    relay.name()
                ));
                results.push(measure(settings, workload, *relay).map_err(|error| format!("{error:#}")));
                progress.inc(1);
            }
        }
    }
    measured
}

fn settings(arguments: &RelayArguments) -> Result<Settings> {
    let (relay_core, generator_core) = match (arguments.relay_core, arguments.generator_core) {
        (Some(relay), Some(generator)) => (relay, generator),
        (relay, generator) => {
            let (first, second) = two_cores()?;
            (relay.unwrap_or(first), generator.unwrap_or(second))
        }
    };
    if relay_core == generator_core {
        bail!("relay and generator need different cores, not both core {relay_core}");
    }
    let (warmup, window) = if arguments.quick { (0.1, 0.3) } else { (arguments.warmup, arguments.seconds) };
    if arguments.rounds == 0 {
        bail!("--rounds must be at least 1");
    }
    let duration = |seconds, option: &str| {
        Duration::try_from_secs_f64(seconds).with_context(|| format!("{option} {seconds} is not a time"))
    };
    Ok(Settings {
        program: std::env::current_exe()?,
        relay_core: Some(relay_core),
        generator_core: Some(generator_core),
        warmup: duration(warmup, "--warmup")?,
        window: duration(window, "--seconds")?,
    })
}

/// Each kind of bulk once, under the name of the first load that has it. Pacing makes no difference to content.
fn distinct_bulks(workloads: &[Workload]) -> Vec<(&'static str, Bulk)> {
    let mut bulks: Vec<(&'static str, Bulk)> = Vec::new();
    for workload in workloads {
        if let Some(bulk) = unpaced(workload.bulk)
            && !bulks.iter().any(|(_, other)| *other == bulk)
        {
            bulks.push((workload.name, bulk));
        }
    }
    bulks
}

fn unpaced(bulk: Option<Bulk>) -> Option<Bulk> {
    bulk.map(|bulk| Bulk { bytes_per_second: None, ..bulk })
}

fn progress(steps: usize) -> ProgressBar {
    // indicatif draws nothing when standard error is no terminal.
    let bar = ProgressBar::new(steps as u64);
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg} (left: {eta})") {
        bar.set_style(style);
    }
    bar
}

fn header(settings: &Settings, rounds: usize) -> Header {
    let system = rustix::system::uname();
    let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let processors = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("");
    let all_cores = processors.lines().filter(|line| line.starts_with("processor")).count().max(cores);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let congestion = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap_or_default();
    let core = |core: Option<usize>| core.map_or_else(|| "any".to_owned(), |core| core.to_string());
    Header {
        machine: format!(
            "{}, {all_cores} cores, {}",
            model.trim_start_matches([' ', '\t', ':']),
            text(system.machine())
        ),
        kernel: format!("{} {}", text(system.release()), text(system.version())),
        commit: commit(),
        driver: "not measured".into(),
        wait: "not measured".into(),
        haproxy: haproxy::version()
            .unwrap_or_else(|| "not installed, so there are no rows of it (apt install haproxy)".into()),
        congestion_control: congestion.trim().to_owned(),
        scheduling: scheduling(),
        load_average: load.split(' ').take(3).collect::<Vec<_>>().join(" "),
        cores: format!(
            "relay on {}, generator on {}",
            core(settings.relay_core),
            core(settings.generator_core)
        ),
        rounds,
        window_s: settings.window.as_secs_f64(),
        warmup_s: settings.warmup.as_secs_f64(),
    }
}

/// The policy of this process, which its children inherit.
fn scheduling() -> &'static str {
    let status = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The policy is field 41; the name, field 2, may hold anything up to the last parenthesis.
    let policy = status.rsplit(')').next().and_then(|fields| fields.split_whitespace().nth(38));
    match policy {
        Some("1" | "2") => "real-time priority for all",
        _ => "normal priority",
    }
}

fn commit() -> String {
    let git = |arguments: &[&str]| -> Option<String> {
        let output =
            Program::new("git").args(["-C", env!("CARGO_MANIFEST_DIR")]).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    match git(&["rev-parse", "--short=12", "HEAD"]) {
        None => String::new(),
        Some(commit) => match git(&["status", "--porcelain", "--untracked-files=no"]) {
            Some(changes) if changes.is_empty() => commit,
            _ => format!("{commit} with changes"),
        },
    }
}
