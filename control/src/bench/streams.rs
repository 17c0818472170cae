//! Streams that do nothing, and the memory they cost a server.
//!
//! In: [`Options`]. Out: [`Outcome`]. The sessions, some bulk and a tenth of the streams come first and do not count, for what a
//! server holds once (buffers that were never touched before, say) is not the price of a stream; then the others are opened, all are held for
//! the time, and asked for a sign of life: twelve bytes one way, and the answer.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use ringwire_proto::identity::Address;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::bridge::{BenchError, Lane, Options, PORT, Progress, connect_pair};
use super::cost::{Cost, Meter};
use super::transfer;
use crate::dmsg::{Listener, Session};

/// One stream in so many is opened before the cost is counted.
const TENTH: usize = 10;

/// Bulk before the cost is counted, for each pair: some ten MiB in all, more than the receive buffers of a worker.
const WARM_TIME: Duration = Duration::from_millis(50);
const WARM_WRITE_BYTES: usize = 64 * 1024;

/// Errors that are told one by one; further ones are only counted.
const ERRORS_MAX: usize = 8;

/// What came of it.
pub(super) struct Outcome {
    /// Streams that were open together at the end, and lived.
    pub(super) alive: u64,
    /// Streams that were opened while the cost was counted.
    pub(super) counted: u64,
    /// Time of each dial in nanoseconds.
    pub(super) times: Histogram<u64>,
    pub(super) cost: Cost,
    pub(super) errors: Vec<String>,
}

/// Opens `streams` streams on each of the pairs and holds them all for the time.
pub(super) async fn idle(options: &Options, progress: &Arc<Progress>) -> Result<Outcome, BenchError> {
    let mut pairs = Vec::with_capacity(options.pairs);
    for _ in 0..options.pairs {
        pairs.push(connect_pair(options).await?);
    }
    let mut all = Opened::default();
    let first = options.streams.div_ceil(TENTH);
    pairs = all.open(pairs, 0..first, options, progress).await;
    let before = all.lanes.len();
    for pair in &mut pairs {
        if let Err(error) = warm(pair, progress).await {
            all.errors.push(error);
        }
    }
    let meter = Meter::start(options);
    pairs = all.open(pairs, first..options.streams, options, progress).await;
    let Opened { lanes, times, mut errors } = all;
    let counted = (lanes.len() - before) as u64;
    if errors.is_empty() {
        sleep(options.duration).await;
    }
    let cost = meter.read();
    let mut asked = JoinSet::new();
    for Lane { number, mut sender, mut receiver } in lanes {
        let progress = Arc::clone(progress);
        asked.spawn(async move {
            let sent = transfer::send_bulk(&mut sender, number, 0, Instant::now());
            let received = transfer::receive(&mut receiver, number, false, progress.received());
            tokio::try_join!(sent, received).map(|_| ()).map_err(|error| error.to_string())
        });
    }
    let mut alive = 0;
    while let Some(answer) = asked.join_next().await {
        match answer? {
            Ok(()) => alive += 1,
            Err(error) if errors.len() < ERRORS_MAX => errors.push(format!("an idle stream died: {error}")),
            Err(_) => {}
        }
    }
    // The streams end with their sessions.
    drop(pairs);
    Ok(Outcome { alive, counted, times, cost, errors })
}

type Pair = (Session, Session, Listener);

/// Bulk on a stream of its own, so that the server has used its buffers.
async fn warm((sender, receiver, listener): &mut Pair, progress: &Progress) -> Result<(), String> {
    let destination = Address { key: receiver.public_key(), port: PORT };
    let accept = async { listener.accept().await.map_err(|error| error.to_string()) };
    let dial = async { sender.dial(destination).await.map_err(|error| error.to_string()) };
    let (mut near, mut far) = tokio::try_join!(dial, accept)?;
    let sent = transfer::send_bulk(&mut near, 0, WARM_WRITE_BYTES, Instant::now() + WARM_TIME);
    let received = transfer::receive(&mut far, 0, false, progress.received());
    tokio::try_join!(sent, received).map(|_| ()).map_err(|error| error.to_string())
}

/// Streams that are open.
struct Opened {
    lanes: Vec<Lane>,
    times: Histogram<u64>,
    /// What stopped a pair before all were open.
    errors: Vec<String>,
}

impl Default for Opened {
    fn default() -> Self {
        Self { lanes: Vec::new(), times: transfer::histogram(), errors: Vec::new() }
    }
}

impl Opened {
    /// Opens these streams of each of the pairs, which it gives back.
    async fn open(
        &mut self,
        pairs: Vec<Pair>,
        streams: Range<usize>,
        options: &Options,
        progress: &Arc<Progress>,
    ) -> Vec<Pair> {
        let mut openers = JoinSet::new();
        for (number, mut pair) in pairs.into_iter().enumerate() {
            let (mut opened, progress) = (Self::default(), Arc::clone(progress));
            let streams = streams.start + number * options.streams..streams.end + number * options.streams;
            openers.spawn(async move {
                opened.open_on(&mut pair, streams, &progress).await;
                (number, pair, opened)
            });
        }
        let mut ended = openers.join_all().await;
        ended.sort_unstable_by_key(|(number, ..)| *number);
        let mut pairs = Vec::with_capacity(ended.len());
        for (_, pair, opened) in ended {
            pairs.push(pair);
            self.lanes.extend(opened.lanes);
            // Both have the same bounds, so nothing can be out of range.
            self.times.add(&opened.times).ok();
            self.errors.extend(opened.errors);
        }
        pairs
    }

    /// Opens streams of a pair, one after the other.
    async fn open_on(&mut self, pair: &mut Pair, streams: Range<usize>, progress: &Progress) {
        let (sender, receiver, listener) = pair;
        let destination = Address { key: receiver.public_key(), port: PORT };
        for number in streams {
            let started = Instant::now();
            let accept = async { listener.accept().await.map_err(BenchError::from) };
            let dial = async { sender.dial(destination).await.map_err(BenchError::from) };
            match tokio::try_join!(dial, accept) {
                Ok((sender, receiver)) => {
                    self.lanes.push(Lane { number: number as u64, sender, receiver });
                }
                Err(error) => return self.errors.push(error.to_string()),
            }
            self.times.saturating_record(u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX));
            progress.count_one();
        }
    }
}
