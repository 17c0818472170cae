//! `ringwire dmsg ping`: is it there, and how far away?

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use ringwire_proto::identity::{Address, PublicKey};
use serde::Serialize;

use super::events::{Place, Reporter};
use super::network::{Network, Target};
use crate::dmsg::{Client, SessionError};

/// The port of a client that is pinged without one: HTTP, which most of them serve (dmsg-wire 10.1).
const PORT_DEFAULT: u16 = 80;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ringwire dmsg ping 02..                        a server, by its own ping
  ringwire dmsg ping 03..:80 --discovery http://dmsgd.example
  ringwire dmsg ping 03..:80 --count 1 --json    one line per answer, then the summary

A server answers a ping of its own; servers of 2024 do not. A client is pinged by opening a stream to one of its ports and
closing it again: that takes one round trip through the server and a handshake. Without a port it is port 80.

Exits with 0 when at least one answer came.")]
pub(in crate::cli) struct Arguments {
    /// Key of a server, or of a client and its port
    #[arg(value_name = "PK[:PORT]")]
    target: Target,
    /// How many
    #[arg(long, short = 'c', value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    count: u32,
    /// Seconds between them
    #[arg(long, short = 'i', value_name = "S", default_value_t = 1.0, value_parser = interval)]
    interval: f64,
    /// One JSON object per line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    network: Network,
}

fn interval(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("expected seconds from 0 to 3600".to_owned()),
    }
}

#[derive(Serialize)]
struct Answer<'a> {
    event: &'static str,
    sequence: u32,
    round_trip_us: Option<f64>,
    error: Option<&'a str>,
}

#[derive(Serialize)]
struct Summary {
    event: &'static str,
    target: String,
    port: Option<u16>,
    sent: u32,
    answered: usize,
    min_us: Option<f64>,
    mean_us: Option<f64>,
    max_us: Option<f64>,
}

/// What is pinged.
enum Pinged {
    Server(PublicKey),
    Port(Address),
}

pub(super) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let reporter = Reporter { json: arguments.json, place: Place::Output };
    let client = arguments.network.connect(1, arguments.json).await?;
    let pinged = choose(&client, arguments.target).await?;
    let mut times = Vec::new();
    for sequence in 1..=arguments.count {
        if sequence > 1 {
            tokio::time::sleep(Duration::from_secs_f64(arguments.interval)).await;
        }
        let result = once(&client, &pinged).await;
        let error = result.as_ref().err().map(ToString::to_string);
        let round_trip_us = result.as_ref().ok().map(|time| time.as_secs_f64() * 1e6);
        times.extend(round_trip_us);
        let text = match (round_trip_us, &error) {
            (Some(time_us), _) => format!("{sequence}: {:.3} ms", time_us / 1000.0),
            (None, error) => format!("{sequence}: {}", error.as_deref().unwrap_or_default()),
        };
        reporter.tell(&Answer { event: "ping", sequence, round_trip_us, error: error.as_deref() }, &text);
    }
    client.close().await;
    let summary = summary(&pinged, arguments.count, &times);
    let text = match (summary.min_us, summary.mean_us, summary.max_us) {
        (Some(min), Some(mean), Some(max)) => format!(
            "{} of {} answered; min {:.3} ms, mean {:.3} ms, max {:.3} ms",
            summary.answered,
            summary.sent,
            min / 1000.0,
            mean / 1000.0,
            max / 1000.0
        ),
        _ => format!("0 of {} answered", summary.sent),
    };
    reporter.tell(&summary, &text);
    Ok(if times.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn choose(client: &Client, target: Target) -> anyhow::Result<Pinged> {
    if let Some(port) = target.port {
        return Ok(Pinged::Port(Address { key: target.key, port }));
    }
    match client.is_server(target.key).await {
        Ok(true) => Ok(Pinged::Server(target.key)),
        Ok(false) => Ok(Pinged::Port(Address { key: target.key, port: PORT_DEFAULT })),
        Err(error @ SessionError::NotFound { .. }) => Err(error.into()),
        Err(error) => Err(anyhow::anyhow!("cannot tell whether {} is a server: {error}", target.key)),
    }
}

async fn once(client: &Client, pinged: &Pinged) -> anyhow::Result<Duration> {
    match pinged {
        Pinged::Server(key) => Ok(client.session(*key).await?.ping().await?),
        Pinged::Port(address) => {
            let started = Instant::now();
            let stream = client.dial(*address).await?;
            let took = started.elapsed();
            drop(stream);
            Ok(took)
        }
    }
}

fn summary(pinged: &Pinged, sent: u32, times_us: &[f64]) -> Summary {
    let (target, port) = match pinged {
        Pinged::Server(key) => (*key, None),
        Pinged::Port(address) => (address.key, Some(address.port)),
    };
    let some = |value: f64| (!times_us.is_empty()).then_some(value);
    Summary {
        event: "summary",
        target: target.to_string(),
        port,
        sent,
        answered: times_us.len(),
        min_us: some(times_us.iter().copied().fold(f64::INFINITY, f64::min)),
        mean_us: some(times_us.iter().sum::<f64>() / times_us.len() as f64),
        max_us: some(times_us.iter().copied().fold(0.0, f64::max)),
    }
}
