//! Streams that do nothing, and the memory they cost a server.
//!
//! In: [`Options`]. Out: [`Outcome`]. The sessions come first and do not count; then all streams are opened, held for the
//! time, and asked for a sign of life: twelve bytes one way, and the answer.

use std::sync::Arc;
use std::time::Instant;

use hdrhistogram::Histogram;
use ringwire_proto::identity::Address;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::bridge::{BenchError, Lane, Options, PORT, Progress, connect_pair};
use super::cost::{Cost, Meter};
use super::transfer;
use crate::dmsg::{Listener, Session};

/// Errors that are told one by one; further ones are only counted.
const ERRORS_MAX: usize = 8;

/// What came of it.
pub(super) struct Outcome {
    /// Streams that were open together at the end, and lived.
    pub(super) streams: u64,
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
    let meter = Meter::start(options);
    let mut openers = JoinSet::new();
    for (number, pair) in pairs.into_iter().enumerate() {
        openers.spawn(open(pair, number * options.streams, options.streams, Arc::clone(progress)));
    }
    let (mut held, mut lanes, mut times) = (Vec::new(), Vec::new(), transfer::histogram());
    let mut errors = Vec::new();
    while let Some(opened) = openers.join_next().await {
        let Opened { pair, lanes: more, times: took, failure } = opened?;
        held.push(pair);
        lanes.extend(more);
        // Both have the same bounds, so nothing can be out of range.
        times.add(&took).ok();
        errors.extend(failure);
    }
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
    let mut streams = 0;
    while let Some(answer) = asked.join_next().await {
        match answer? {
            Ok(()) => streams += 1,
            Err(error) if errors.len() < ERRORS_MAX => errors.push(format!("an idle stream died: {error}")),
            Err(_) => {}
        }
    }
    Ok(Outcome { streams, times, cost, errors })
}

/// What came of opening the streams of a pair.
struct Opened {
    /// Kept, because the streams end with it.
    pair: (Session, Session, Listener),
    lanes: Vec<Lane>,
    times: Histogram<u64>,
    /// What stopped it before all were open.
    failure: Option<String>,
}

/// Opens the streams of a pair, one after the other.
async fn open(
    pair: (Session, Session, Listener),
    first: usize,
    count: usize,
    progress: Arc<Progress>,
) -> Opened {
    let mut opened =
        Opened { pair, lanes: Vec::with_capacity(count), times: transfer::histogram(), failure: None };
    for number in first..first + count {
        let started = Instant::now();
        let (sender, receiver, listener) = &mut opened.pair;
        let destination = Address { key: receiver.public_key(), port: PORT };
        let accept = async { listener.accept().await.map_err(BenchError::from) };
        let dial = async { sender.dial(destination).await.map_err(BenchError::from) };
        match tokio::try_join!(dial, accept) {
            Ok((sender, receiver)) => {
                opened.lanes.push(Lane { number: number as u64, sender, receiver });
            }
            Err(error) => {
                opened.failure = Some(error.to_string());
                break;
            }
        }
        opened.times.saturating_record(u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX));
        progress.count_one();
    }
    opened
}
