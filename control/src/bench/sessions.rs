//! Sessions by themselves: how many handshakes a server makes, and what an idle session costs it.
//!
//! In: [`Options`]. Out: [`Outcome`]. A session counts when the server has answered a ping on it, which proves that it is
//! filed; at servers that answer no ping (dmsg-wire 10.5) it counts when the handshake is done.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ringwire_dataplane::entropy::OsEntropy;
use ringwire_proto::identity::SecretKey;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::bridge::{BenchError, Options, Progress};
use super::cost::{Cost, Meter};
use super::transfer;
use crate::dmsg::{Session, SessionConfig};

/// How long the first session may take to answer before the server counts as one that never does.
const PROBE_LIMIT: Duration = Duration::from_secs(3);

/// Handshakes at a time while idle sessions are made: fast, and below what servers limit.
const MAKING: usize = 64;

/// Errors that are told one by one; further ones are only counted.
const ERRORS_MAX: usize = 8;

/// What came of it.
pub(super) struct Outcome {
    /// Handshakes that succeeded.
    pub(super) handshakes: u64,
    /// Sessions that were open together at the end.
    pub(super) sessions: u64,
    /// Time of each handshake, TCP connection included, in nanoseconds.
    pub(super) times: hdrhistogram::Histogram<u64>,
    pub(super) cost: Cost,
    pub(super) answers_pings: bool,
    pub(super) errors: Vec<String>,
}

/// Makes sessions and closes them again, `sessions` at a time, until the time is up.
pub(super) async fn handshakes(options: &Options, progress: &Arc<Progress>) -> Result<Outcome, BenchError> {
    let answers_pings = probe(options).await?;
    let meter = Meter::start(options);
    let until = Instant::now() + options.duration;
    let mut makers = JoinSet::new();
    for _ in 0..options.sessions {
        let (options, progress) = (options.clone(), Arc::clone(progress));
        makers.spawn(async move {
            let mut made = Made::default();
            while Instant::now() < until {
                if let Some(session) = made.make(&options, answers_pings).await {
                    progress.count_one();
                    session.close().await;
                } else if made.errors.len() >= ERRORS_MAX {
                    break;
                }
            }
            made
        });
    }
    let mut all = Made::default();
    while let Some(made) = makers.join_next().await {
        all.add(made?);
    }
    Ok(all.outcome(meter.read(), 0, answers_pings))
}

/// Makes `sessions` sessions, holds them for the time, and asks each for a sign of life at the end.
pub(super) async fn idle(options: &Options, progress: &Arc<Progress>) -> Result<Outcome, BenchError> {
    let answers_pings = probe(options).await?;
    let meter = Meter::start(options);
    let places = Arc::new(Semaphore::new(MAKING));
    let failed = Arc::new(AtomicBool::new(false));
    let mut makers = JoinSet::new();
    for _ in 0..options.sessions {
        let (options, progress) = (options.clone(), Arc::clone(progress));
        let (places, failed) = (Arc::clone(&places), Arc::clone(&failed));
        makers.spawn(async move {
            // Never closed.
            let _place = places.acquire().await;
            let mut made = Made::default();
            // What stopped one session stops thousands: the first error is enough.
            if failed.load(Ordering::Relaxed) {
                return (made, None);
            }
            let session = made.make(&options, answers_pings).await;
            failed.fetch_or(session.is_none(), Ordering::Relaxed);
            progress.count_one();
            (made, session)
        });
    }
    let (mut all, mut sessions) = (Made::default(), Vec::with_capacity(options.sessions));
    while let Some(ended) = makers.join_next().await {
        let (made, session) = ended?;
        all.add(made);
        sessions.extend(session);
    }
    sleep(options.duration).await;
    let cost = meter.read();
    let mut asked = JoinSet::new();
    for session in sessions {
        asked.spawn(async move {
            let alive = match answers_pings {
                true => session.ping().await.map(|_| ()).map_err(|error| error.to_string()),
                false => {
                    timeout(Duration::ZERO, session.closed()).await.map_or(Ok(()), |end| Err(end.to_string()))
                }
            };
            (alive, session)
        });
    }
    let mut alive = 0;
    while let Some(ended) = asked.join_next().await {
        match ended? {
            (Ok(()), _session) => alive += 1,
            (Err(error), _) => all.error(format!("an idle session died: {error}")),
        }
    }
    if all.handshakes < options.sessions as u64 {
        all.error(format!("{} of {} sessions were made", all.handshakes, options.sessions));
    }
    Ok(all.outcome(cost, alive, answers_pings))
}

/// Whether the server answers pings.
async fn probe(options: &Options) -> Result<bool, BenchError> {
    let session = Session::connect(config(options)).await?;
    let answers = timeout(PROBE_LIMIT, session.ping()).await.is_ok_and(|answer| answer.is_ok());
    session.close().await;
    Ok(answers)
}

fn config(options: &Options) -> SessionConfig {
    SessionConfig {
        hybrid: options.hybrid,
        ..SessionConfig::new(SecretKey::generate(&mut OsEntropy), options.server.clone())
    }
}

/// What one maker has made.
struct Made {
    handshakes: u64,
    times: hdrhistogram::Histogram<u64>,
    errors: Vec<String>,
}

impl Default for Made {
    fn default() -> Self {
        Self { handshakes: 0, times: transfer::histogram(), errors: Vec::new() }
    }
}

impl Made {
    async fn make(&mut self, options: &Options, answers_pings: bool) -> Option<Session> {
        let config = config(options);
        let started = Instant::now();
        let session = match Session::connect(config).await {
            Ok(session) => session,
            Err(error) => {
                self.error(error.to_string());
                return None;
            }
        };
        let took = started.elapsed();
        if answers_pings && let Err(error) = session.ping().await {
            self.error(error.to_string());
            return None;
        }
        self.times.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        self.handshakes += 1;
        Some(session)
    }

    fn error(&mut self, text: String) {
        if self.errors.len() < ERRORS_MAX {
            self.errors.push(text);
        }
    }

    fn add(&mut self, other: Self) {
        self.handshakes += other.handshakes;
        // Both have the same bounds, so nothing can be out of range.
        self.times.add(&other.times).ok();
        other.errors.into_iter().for_each(|error| self.error(error));
    }

    fn outcome(self, cost: Cost, sessions: u64, answers_pings: bool) -> Outcome {
        let Self { handshakes, times, errors } = self;
        Outcome { handshakes, sessions, times, cost, answers_pings, errors }
    }
}
