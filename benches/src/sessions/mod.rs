//! What sessions and streams cost our server by themselves: `cargo xtask bench sessions`.
//!
//! In: rounds and times. Out: processor time per handshake and per opened stream, memory and processor time of idle
//! sessions, memory of idle streams, each beside its target. The server is the one of [`crate::relay::ringwire`], one worker on a core of its own,
//! fresh for each row of each round; the clients are those of `ringwire bench bridge`, on the generator's core.

mod report;

use crate::cpu;
use crate::measure::two_cores;
use crate::relay::Relay;
use crate::relay::child::RelayChild;
use crate::statistics::Summary;
use anyhow::{Context, Result, bail};
use clap::Args;
use report::{Report, RowReport};
use ringwire::bench::{Mode, Options, Progress};
use ringwire::dmsg::ServerAddress;
use ringwire_proto::noise::Hybrid;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Clients that make sessions at a time, and dialling workers, spread over this many pairs.
const CONCURRENT: usize = 16;
const PAIRS: usize = 4;
/// Descriptors of either process besides its connections.
const DESCRIPTORS_SPARE: u64 = 128;
/// Idle streams, and the pairs of sessions that they are spread over.
const IDLE_STREAMS: usize = 10_000;
const IDLE_STREAM_PAIRS: usize = 10;
/// What a server may hold before its first idle session, and for each of them, in bytes.
const IDLE_BASE: f64 = (16_u64 << 20) as f64;
const IDLE_EACH: f64 = 4096.0;
/// How often it is looked whether all idle sessions are made.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// What to measure, and for how long.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Print one JSON document instead of the table
    #[arg(long)]
    json: bool,
    /// Rounds over the rows that are short; targets are judged by medians of at least 5
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Length of each short measurement in seconds
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Idle sessions to hold; each takes a file descriptor of both processes
    #[arg(long, default_value_t = 10_000)]
    idle_sessions: usize,
    /// How long to hold them in seconds
    #[arg(long, default_value_t = 60.0)]
    idle_seconds: f64,
    /// Only rows with this in their names; may be repeated
    #[arg(long)]
    only: Vec<String>,
    /// 1 round of 0.3 s, 50 idle sessions and 50 idle streams for 1 s: shows that everything works, not how well
    #[arg(long, conflicts_with_all = ["rounds", "seconds", "idle_sessions", "idle_seconds"])]
    quick: bool,
}

/// How long things take and where they run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This program, started again as the server.
    pub program: PathBuf,
    /// Core of the server; none: not pinned.
    pub server_core: Option<usize>,
    /// Length of each short measurement.
    pub window: Duration,
    /// Idle sessions.
    pub idle_sessions: usize,
    /// Idle streams.
    pub idle_streams: usize,
    /// How long idle sessions are held.
    pub idle_time: Duration,
}

/// A row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row {
    /// Sessions without the post-quantum part, 16 clients at a time.
    HandshakeClassical,
    /// Sessions with it.
    HandshakeHybrid,
    /// Streams, 16 diallers on four pairs of sessions.
    Open,
    /// Sessions that do nothing.
    Idle,
    /// Bridged streams that do nothing.
    IdleStreams,
}

/// One metric of one round: its name and its value.
pub type Found = Vec<(&'static str, f64)>;

impl Row {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 5] =
        [Self::HandshakeClassical, Self::HandshakeHybrid, Self::Open, Self::Idle, Self::IdleStreams];

    /// Name in rows and patterns.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::HandshakeClassical => "handshake-classical",
            Self::HandshakeHybrid => "handshake-hybrid",
            Self::Open => "open",
            Self::Idle => "idle",
            Self::IdleStreams => "idle-streams",
        }
    }

    /// Metrics that have a target, with it: at most so much.
    #[must_use]
    pub fn targets(self, idle_sessions: usize) -> Vec<(&'static str, f64)> {
        match self {
            Self::HandshakeClassical => vec![("server_cpu_ms", 0.25)],
            Self::HandshakeHybrid => vec![("server_cpu_ms", 0.36)],
            Self::Open => vec![("server_cpu_ms", 0.20)],
            Self::Idle => {
                let most = (IDLE_BASE + IDLE_EACH * idle_sessions as f64) / f64::from(1 << 20);
                vec![("vm_rss_mib", most), ("core_percent", 1.5)]
            }
            Self::IdleStreams => vec![("bytes_per_stream", 1024.0)],
        }
    }

    fn options(self, settings: &Settings, server: ServerAddress, server_pid: u32) -> Options {
        let is_idle = self == Self::Idle;
        Options {
            server,
            server_pid: Some(server_pid),
            control_pid: None,
            pairs: if self == Self::IdleStreams { IDLE_STREAM_PAIRS } else { PAIRS },
            streams: match self {
                Self::IdleStreams => settings.idle_streams / IDLE_STREAM_PAIRS,
                _ => CONCURRENT / PAIRS,
            },
            sessions: if is_idle { settings.idle_sessions } else { CONCURRENT },
            duration: match self {
                Self::Idle => settings.idle_time,
                _ => settings.window,
            },
            write_bytes: 4096,
            mode: match self {
                Self::HandshakeClassical | Self::HandshakeHybrid => Mode::Handshakes,
                Self::Open => Mode::Opens,
                Self::Idle => Mode::Idle,
                Self::IdleStreams => Mode::IdleStreams,
            },
            go_frames: false,
            go_writes: false,
            hybrid: if self == Self::HandshakeClassical { Hybrid::Off } else { Hybrid::Require },
        }
    }
}

/// Measures one row once, on a fresh server.
///
/// # Errors
/// When the server or a client failed, or the server warned.
pub fn measure(settings: &Settings, row: Row) -> Result<Found> {
    let child = RelayChild::start(&settings.program, Relay::Ringwire, settings.server_core, &[])?;
    let ready = child.ready();
    let key = ready.public_key.as_deref().context("the server has no key")?.parse()?;
    let address = ready.addresses.first().context("the server has no address")?.to_string();
    let options = row.options(settings, ServerAddress { key, address }, child.id());
    let (made, held) = (settings.idle_sessions as u64, settings.idle_time);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (report, idle_cpu) = runtime.block_on(async {
        let progress = Arc::new(Progress::default());
        let watch = async {
            match row {
                Row::Idle => Some(idle_cpu(&child, &progress, made, held).await),
                _ => None,
            }
        };
        tokio::join!(ringwire::bench::run(options, Arc::clone(&progress)), watch)
    });
    let report = report?;
    let remains = child.stop()?;
    if !report.verified || !remains.warnings.is_empty() {
        bail!("{}: {}", row.name(), [report.errors, remains.warnings].concat().join("; "));
    }
    let values = [
        ("server_cpu_ms", report.server_cpu_ms_per_handshake.or(report.server_cpu_ms_per_open)),
        ("per_second", report.handshakes_per_second.or(report.opens_per_second)),
        ("p50_us", report.latency_us.as_ref().filter(|_| row != Row::Idle).map(|latency| latency.p50)),
        ("p99_us", report.latency_us.as_ref().filter(|_| row != Row::Idle).map(|latency| latency.p99)),
        (
            "vm_rss_mib",
            report
                .server_rss_bytes
                .filter(|_| matches!(row, Row::Idle | Row::IdleStreams))
                .map(|len| len as f64 / f64::from(1 << 20)),
        ),
        ("bytes_per_session", report.rss_bytes_per_session),
        ("kernel_bytes_per_session", report.kernel_bytes_per_session),
        ("bytes_per_stream", report.rss_bytes_per_stream),
        ("core_percent", idle_cpu.transpose()?.map(|share| share * 100.0)),
    ];
    Ok(values.into_iter().filter_map(|(name, value)| Some((name, value?))).collect())
}

/// Processor time of the server for each second of the middle of the idle time, when all `made` sessions are there.
async fn idle_cpu(child: &RelayChild, progress: &Progress, made: u64, held: Duration) -> Result<f64> {
    while progress.counted() < made {
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    tokio::time::sleep(held / 4).await;
    let (before, since) = (child.cpu_used()?, std::time::Instant::now());
    tokio::time::sleep(held / 2).await;
    Ok((child.cpu_used()? - before).as_secs_f64() / since.elapsed().as_secs_f64())
}

/// Measures and prints.
///
/// # Errors
/// Wrong arguments; rounds that failed are in the report, and at its end an error.
pub fn run(arguments: &Arguments) -> Result<()> {
    let rows: Vec<Row> = Row::ALL
        .into_iter()
        .filter(|row| {
            arguments.only.is_empty() || arguments.only.iter().any(|part| row.name().contains(part))
        })
        .collect();
    if rows.is_empty() {
        bail!(
            "no row has any of {:?} in its name; there are {}",
            arguments.only,
            Row::ALL.map(Row::name).join(", ")
        );
    }
    let settings = settings(arguments)?;
    let rounds = if arguments.quick { 1 } else { arguments.rounds.max(1) };
    let mut found: Vec<(Row, Vec<Result<Found, String>>)> =
        rows.iter().map(|row| (*row, Vec::new())).collect();
    for round in 0..rounds {
        for (row, results) in &mut found {
            // What is idle takes a minute and hardly varies.
            if round == 0 || !matches!(row, Row::Idle | Row::IdleStreams) {
                results.push(measure(&settings, *row).map_err(|error| format!("{error:#}")));
            }
        }
    }
    let rows =
        found.into_iter().map(|(row, rounds)| RowReport::new(row, rounds, settings.idle_sessions)).collect();
    let report = Report::new(rows, rounds, settings.window, settings.idle_sessions, settings.idle_time);
    let mut out = std::io::stdout().lock();
    if arguments.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        write!(out, "{report}")?;
    }
    match report.failure() {
        Some(failure) => bail!("{failure}"),
        None => Ok(()),
    }
}

fn settings(arguments: &Arguments) -> Result<Settings> {
    let (server_core, generator_core) = two_cores()?;
    cpu::pin(generator_core).with_context(|| format!("core {generator_core} is not available"))?;
    let quick = arguments.quick;
    let idle_sessions = if quick { 50 } else { arguments.idle_sessions };
    raise_descriptors(idle_sessions as u64 + DESCRIPTORS_SPARE)?;
    let duration =
        |seconds: f64| Duration::try_from_secs_f64(seconds).context("a time must be a positive number");
    Ok(Settings {
        program: std::env::current_exe()?,
        server_core: Some(server_core),
        window: duration(if quick { 0.3 } else { arguments.seconds })?,
        idle_sessions,
        idle_streams: if quick { 50 } else { IDLE_STREAMS },
        idle_time: duration(if quick { 1.0 } else { arguments.idle_seconds })?,
    })
}

/// For this process and the server, which inherits the limit.
fn raise_descriptors(needed: u64) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    if limit.maximum.is_some_and(|most| most < needed) {
        bail!(
            "{needed} open files are needed and fewer are allowed: lower --idle-sessions, or raise the limit with ulimit -n"
        );
    }
    Ok(setrlimit(Resource::Nofile, Rlimit { current: Some(needed), maximum: limit.maximum })?)
}

/// What the whole row says of a metric.
fn summary(rounds: &[Result<Found, String>], metric: &str) -> Option<Summary> {
    let values: Vec<f64> = rounds
        .iter()
        .flatten()
        .filter_map(|found| found.iter().find(|(name, _)| *name == metric).map(|(_, value)| *value))
        .collect();
    Summary::of(&values)
}

/// This program's own path is wanted by tests.
#[must_use]
pub fn unpinned(program: &Path) -> Settings {
    Settings {
        program: program.to_owned(),
        server_core: None,
        window: Duration::from_millis(200),
        idle_sessions: 20,
        idle_streams: 20,
        idle_time: Duration::from_millis(400),
    }
}
