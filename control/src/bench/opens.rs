//! Streams that open and close again: dial, eight checked bytes there and back, end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use ringwire_proto::identity::Address;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::bridge::{BenchError, Options, PORT, Progress, connect_pair};
use super::cost::{Cost, Meter};
use super::transfer;
use crate::dmsg::{Listener, Session, Stream};

/// What a stream that was just opened may take for its few bytes.
const ECHO_LIMIT: Duration = Duration::from_secs(10);

/// What came of it.
pub(super) struct Outcome {
    pub(super) opens: u64,
    /// Time of each dial in nanoseconds.
    pub(super) times: Histogram<u64>,
    pub(super) cost: Cost,
    pub(super) errors: Vec<String>,
}

/// Dials again and again, `streams` at a time in each of the pairs, until the time is up.
pub(super) async fn run(options: &Options, progress: &Arc<Progress>) -> Result<Outcome, BenchError> {
    let mut pairs = Vec::with_capacity(options.pairs);
    for _ in 0..options.pairs {
        pairs.push(connect_pair(options).await?);
    }
    let meter = Meter::start(options);
    let until = Instant::now() + options.duration;
    let (mut diallers, mut listeners) = (JoinSet::new(), JoinSet::new());
    for (sender, receiver, listener) in pairs {
        let destination = Address { key: receiver.public_key(), port: PORT };
        for _ in 0..options.streams {
            diallers.spawn(dial(sender.clone(), destination, until, Arc::clone(progress)));
        }
        listeners.spawn(async move {
            echo(listener).await;
            drop(receiver);
        });
    }
    let mut outcome =
        Outcome { opens: 0, times: transfer::histogram(), cost: meter.read(), errors: Vec::new() };
    while let Some(ended) = diallers.join_next().await {
        match ended? {
            Ok(times) => {
                outcome.opens += times.len();
                // Both have the same bounds, so nothing can be out of range.
                outcome.times.add(&times).ok();
            }
            Err(error) => outcome.errors.push(error),
        }
    }
    outcome.cost = meter.read();
    listeners.shutdown().await;
    Ok(outcome)
}

async fn dial(
    sender: Session,
    destination: Address,
    until: Instant,
    progress: Arc<Progress>,
) -> Result<Histogram<u64>, String> {
    let mut times = transfer::histogram();
    let mut number = 0_u64;
    while Instant::now() < until {
        let started = Instant::now();
        let mut stream = sender.dial(destination).await.map_err(|error| error.to_string())?;
        times.saturating_record(u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX));
        number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let back = timeout(ECHO_LIMIT, there_and_back(&mut stream, number)).await;
        match back.map_err(|_| "a stream that opened stayed silent".to_owned())? {
            Ok(back) if back == number => progress.count_one(),
            Ok(_) => return Err("a stream brought other bytes than were sent".to_owned()),
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(times)
}

async fn there_and_back(stream: &mut Stream, number: u64) -> std::io::Result<u64> {
    stream.write_u64(number).await?;
    stream.read_u64().await
}

async fn echo(mut listener: Listener) {
    let mut streams = JoinSet::new();
    while let Ok(mut stream) = listener.accept().await {
        while streams.try_join_next().is_some() {}
        streams.spawn(async move {
            if let Ok(number) = stream.read_u64().await {
                stream.write_u64(number).await.ok();
                // The end is the dialler's.
                stream.read_u8().await.ok();
            }
        });
    }
}
