//! The bridge benchmark: pairs of clients move checked bytes through a server.
//!
//! In: [`Options`]. Out: a [`Report`]. Each pair is a sending and a receiving client with fresh keys; each stream is a
//! dial from one to the other. Transfers start together, run for the given time, and end with a count that both sides
//! agree on ([`super::transfer`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_proto::identity::{Address, SecretKey};
use ringwire_proto::noise::Hybrid;
use serde::Serialize;
use thiserror::Error;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::cost::{Cost, Meter};
use super::report::{Latency, Report};
use super::transfer::{self, PING_BYTES, TransferError};
use crate::dmsg::{
    ConnectError, DialError, Disconnected, ListenError, Listener, ServerAddress, Session, SessionConfig,
    Stream,
};

/// Port of the receiving clients.
pub(super) const PORT: u16 = 9;

/// What may still be under way when the time is up must arrive within this time.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);

const GIB: f64 = 1_073_741_824.0;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// As many bytes as possible, one way.
    Bulk,
    /// 64 bytes there and back, one at a time on each stream.
    Latency,
    /// Sessions made and closed again.
    Handshakes,
    /// Streams opened and closed again.
    Opens,
    /// Sessions that do nothing, and the memory they cost.
    Idle,
    /// Streams that do nothing, and the memory they cost.
    IdleStreams,
}

impl Mode {
    /// Whether it is about pairs of clients and the streams between them, and not about sessions.
    pub fn is_in_pairs(self) -> bool {
        match self {
            Self::Bulk | Self::Latency | Self::Opens | Self::IdleStreams => true,
            Self::Handshakes | Self::Idle => false,
        }
    }
}

/// A run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The server under test.
    pub server: ServerAddress,
    /// Its process, when it runs on this machine.
    pub server_pid: Option<u32>,
    /// The process that controls it, if that is another one.
    pub control_pid: Option<u32>,
    /// Client pairs.
    pub pairs: usize,
    /// Streams of each pair; in opens mode, those being opened at a time; in idle-streams mode, those held.
    pub streams: usize,
    /// Sessions being made at a time in handshakes mode, held together in idle mode.
    pub sessions: usize,
    /// How long to send, to make sessions or streams, or to hold idle sessions.
    pub duration: Duration,
    /// Bytes of one write.
    pub write_bytes: usize,
    /// What is measured.
    pub mode: Mode,
    /// One multiplexer frame per Noise frame.
    pub go_frames: bool,
    /// A system call for each header and each payload.
    pub go_writes: bool,
    /// The post-quantum part of the handshakes.
    pub hybrid: Hybrid,
}

/// Why a run could not begin. What fails later is in the report.
#[derive(Debug, Error)]
pub enum BenchError {
    /// No connection to the server.
    #[error("{0}")]
    Connect(#[from] ConnectError),
    /// No stream through it.
    #[error("{0}")]
    Dial(#[from] DialError),
    /// A fresh client cannot listen.
    #[error("{0}")]
    Listen(#[from] ListenError),
    /// A connection ended while streams were set up.
    #[error("{0}")]
    Disconnected(#[from] Disconnected),
    /// A task of the run panicked.
    #[error("a task of the benchmark failed: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// How far a run is; shared with whoever shows it.
#[derive(Debug, Default)]
pub struct Progress {
    bytes: AtomicU64,
    ready: AtomicU64,
    counted: AtomicU64,
}

impl Progress {
    /// Application bytes received so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Sessions made or streams opened so far, in the modes that count them.
    pub fn counted(&self) -> u64 {
        self.counted.load(Ordering::Relaxed)
    }

    pub(super) fn count_one(&self) {
        self.counted.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn received(&self) -> &AtomicU64 {
        &self.bytes
    }

    /// Streams set up so far.
    pub fn streams_ready(&self) -> u64 {
        self.ready.load(Ordering::Relaxed)
    }
}

/// One stream, both ends.
pub(super) struct Lane {
    pub(super) number: u64,
    pub(super) sender: Stream,
    pub(super) receiver: Stream,
}

/// What one end of a stream reports.
enum End {
    Sent(Histogram<u64>),
    Received(u64),
}

/// Moves bytes over streams that stay, in bulk or back and forth.
pub(super) async fn transfers(options: &Options, progress: &Arc<Progress>) -> Result<Report, BenchError> {
    let lanes = set_up(options, progress).await?;
    let meter = Meter::start(options);
    let until = Instant::now() + options.duration;
    let mut ends = JoinSet::new();
    for lane in lanes {
        spawn_lane(&mut ends, lane, options, until, progress);
    }
    let mut collected = Collected { round_trips: transfer::histogram(), received: 0, errors: Vec::new() };
    let limit = options.duration + DRAIN_LIMIT;
    if timeout(limit, collected.collect(&mut ends)).await.is_err() {
        let waiting = ends.len();
        collected.errors.push(format!(
            "{waiting} stream ends did not finish within {} s after the end",
            DRAIN_LIMIT.as_secs()
        ));
        ends.shutdown().await;
    }
    let cost = meter.read();
    let bytes = collected.received;
    let gib = bytes as f64 / GIB;
    let is_bulk = options.mode == Mode::Bulk;
    let mut report = Report::new(options, &cost, collected.errors);
    report.write_size = Some(if is_bulk { options.write_bytes } else { PING_BYTES });
    report.bytes = Some(bytes);
    report.bits_per_second = Some(bytes as f64 * 8.0 / report.seconds);
    report.latency_us = Latency::of(&collected.round_trips);
    report.server_cpu_s_per_gib = cost.server_cpu_s.filter(|_| is_bulk && bytes > 0).map(|cpu_s| cpu_s / gib);
    report.warnings.extend(crowded(options, &cost));
    Ok(report)
}

struct Collected {
    round_trips: Histogram<u64>,
    received: u64,
    errors: Vec<String>,
}

impl Collected {
    async fn collect(&mut self, ends: &mut JoinSet<Result<End, TransferError>>) {
        while let Some(end) = ends.join_next().await {
            match end {
                Ok(Ok(End::Received(bytes))) => self.received += bytes,
                Ok(Ok(End::Sent(round_trips))) => self.add(&round_trips),
                Ok(Err(error)) => self.errors.push(error.to_string()),
                Err(error) => self.errors.push(format!("a task of the benchmark failed: {error}")),
            }
        }
    }

    fn add(&mut self, round_trips: &Histogram<u64>) {
        // Both have the same bounds, so nothing can be out of range.
        self.round_trips.add(round_trips).ok();
    }
}

fn spawn_lane(
    ends: &mut JoinSet<Result<End, TransferError>>,
    lane: Lane,
    options: &Options,
    until: Instant,
    progress: &Arc<Progress>,
) {
    let Lane { number, mut sender, mut receiver } = lane;
    let (write_bytes, progress) = (options.write_bytes, Arc::clone(progress));
    let is_bulk = options.mode == Mode::Bulk;
    ends.spawn(async move {
        transfer::receive(&mut receiver, number, !is_bulk, &progress.bytes).await.map(End::Received)
    });
    ends.spawn(async move {
        let mut round_trips = transfer::histogram();
        if is_bulk {
            transfer::send_bulk(&mut sender, number, write_bytes, until).await?;
        } else {
            transfer::send_pings(&mut sender, number, until, &mut round_trips).await?;
        }
        Ok(End::Sent(round_trips))
    });
}

/// Connects all pairs at once, and opens the streams of each one after the other.
async fn set_up(options: &Options, progress: &Arc<Progress>) -> Result<Vec<Lane>, BenchError> {
    let mut pairs = JoinSet::new();
    for pair in 0..options.pairs {
        pairs.spawn(set_up_pair(options.clone(), pair, Arc::clone(progress)));
    }
    let mut lanes = Vec::with_capacity(options.pairs * options.streams);
    while let Some(pair) = pairs.join_next().await {
        lanes.append(&mut pair??);
    }
    Ok(lanes)
}

async fn set_up_pair(
    options: Options,
    pair: usize,
    progress: Arc<Progress>,
) -> Result<Vec<Lane>, BenchError> {
    let (sender, receiver, mut listener) = connect_pair(&options).await?;
    let destination = Address { key: receiver.public_key(), port: PORT };
    let mut lanes = Vec::with_capacity(options.streams);
    for stream in 0..options.streams {
        let accept = async { listener.accept().await.map_err(BenchError::from) };
        let dial = async { sender.dial(destination).await.map_err(BenchError::from) };
        let (sender, receiver) = tokio::try_join!(dial, accept)?;
        lanes.push(Lane { number: (pair * options.streams + stream) as u64, sender, receiver });
        progress.ready.fetch_add(1, Ordering::Relaxed);
    }
    Ok(lanes)
}

/// A sender, a receiver, and where the receiver listens.
pub(super) async fn connect_pair(options: &Options) -> Result<(Session, Session, Listener), BenchError> {
    let config = || SessionConfig {
        hybrid: options.hybrid,
        go_frames: options.go_frames,
        go_writes: options.go_writes,
        ..SessionConfig::new(SecretKey::generate(&mut OsEntropy), options.server.clone())
    };
    let (sender, receiver) =
        tokio::try_join!(Session::connect_settled(config()), Session::connect_settled(config()))?;
    let listener = receiver.listen(PORT)?;
    // The server files a session a moment after the client's side of its handshake is done, and a dial before that
    // finds nobody. An answered ping proves that it is filed; servers of 2024 do not answer, hence the bound.
    timeout(Duration::from_millis(250), receiver.ping()).await.ok();
    Ok((sender, receiver, listener))
}

/// A warning when the server had no core of its own left to show what it can do.
fn crowded(options: &Options, cost: &Cost) -> Option<String> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    let seconds = cost.elapsed.as_secs_f64();
    let (client, server) = (cost.client_cpu_s?, cost.server_cpu_s?);
    let busy = (client + server) / (cores * seconds);
    (options.mode == Mode::Bulk && busy > 0.9 && client > server).then(|| {
        format!(
            "all {cores} cores were busy and the clients used {:.0} % of them: the rate shows this machine's limit, \
             compare the cost per GiB instead",
            100.0 * client / (cores * seconds)
        )
    })
}
