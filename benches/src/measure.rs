//! One row of one round, and the verified round that goes before.
//!
//! In: a load, a relay, and how long. Out: a [`Measurement`]. Every call starts a fresh relay, opens fresh connections,
//! warms up, measures between two readings of all clocks, drains, counts what was lost, and reads what the relay
//! printed. Called by [`crate::command`].

use crate::cpu::CpuClock;
use crate::generator::{Delivery, Generator, Load};
use crate::link::{Link, Place, Route};
use crate::ping::{Figures, PingChild, route};
use crate::relay::child::{RelayChild, Remains};
use crate::relay::{Ready, Relay, loopback_listener};
use crate::workload::{Bulk, Ping, Workload};
use anyhow::{Context, Result, bail};
use ringwire_dataplane::counters::Counter;
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Longest wait for bytes that are on the way when a round ends.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest time for a verified round.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(60);
/// Unsent bytes in a bulk sender's socket beside a ping. Without a limit the ping would mostly wait in the generator's
/// own send buffer of several MiB, which says nothing about the relay.
const UNSENT_MAX: u32 = 128 * 1024;
/// Congestion control of the generator's senders. One that paces (bbr, where it is the system's default) arms a timer
/// for each segment, which in a virtual machine cost the generator a third of its time; nothing is lost on loopback, so
/// any other will do, and this one always exists. The relays' own connections keep the system's default.
const GENERATOR_CONGESTION: &[u8] = b"reno";
const GIB: f64 = (1_u64 << 30) as f64;

/// What does not change between rows.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This program, started again for every child.
    pub program: PathBuf,
    /// Core of the relay; none: not pinned.
    pub relay_core: Option<usize>,
    /// Core of the generator and the ping process; none: not pinned.
    pub generator_core: Option<usize>,
    /// Time before the window.
    pub warmup: Duration,
    /// Measured time.
    pub window: Duration,
}

/// One row of one round.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Measurement {
    /// Length of the window in seconds.
    pub window_s: f64,
    /// Bytes that arrived at the sinks within it, headers included.
    pub received_bytes: u64,
    /// The same for each second, in 10^9 bit.
    pub gbit_per_s: Option<f64>,
    /// Processor time of the relay for each 2^30 bytes that arrived.
    pub relay_cpu_s_per_gib: Option<f64>,
    /// Processor time of the relay for each ping, in microseconds; only where nothing else moves.
    pub relay_cpu_us_per_ping: Option<f64>,
    /// Processor time of the relay for each second.
    pub relay_busy: f64,
    /// Processor time of the generator's process for each second.
    pub generator_busy: f64,
    /// Round trips.
    pub ping: Option<Figures>,
    /// Bytes that were sent and did not arrive.
    pub lost_bytes: u64,
    /// Every other deviation in what arrived.
    pub faults: Vec<String>,
    /// What the relay printed on standard error.
    pub warnings: Vec<String>,
    /// Counters of our server at its end.
    pub counters: BTreeMap<String, u64>,
    /// What moved the bytes.
    pub driver: String,
    /// Longest wait for company in microseconds; only our server has one.
    pub company_us_max: Option<u32>,
    /// Share of our worker's turns that were allowed to wait for company, warm-up included.
    pub company_share: Option<f64>,
}

/// The outcome of a verified round.
#[derive(Clone, Debug, Serialize)]
pub struct Verified {
    /// Payload bytes compared.
    pub bytes: u64,
    /// Bytes that did not arrive.
    pub lost_bytes: u64,
    /// Deviations, relay's output included; empty when all is well.
    pub faults: Vec<String>,
}

/// All clocks at one moment.
struct Reading {
    at: Instant,
    relay: Duration,
    own: Duration,
    received: u64,
}

impl Reading {
    fn take(relay: &RelayChild, own: CpuClock, generator: Option<&Generator>) -> Result<Self> {
        Ok(Self {
            at: Instant::now(),
            relay: relay.cpu_used()?,
            own: own.used()?,
            received: generator.map_or(0, Generator::received),
        })
    }
}

/// Measures `workload` through `relay` once.
///
/// # Errors
/// When the relay or the ping process fails, or the relay breaks a connection.
pub fn measure(settings: &Settings, workload: &Workload, relay: Relay) -> Result<Measurement> {
    let sink = loopback_listener()?;
    let mut sinks = vec![sink.local_addr()?];
    let mut pinger = match workload.ping {
        Ping::OwnSession => Some(PingChild::start(&settings.program, settings.generator_core)?),
        Ping::None | Ping::SameSession => None,
    };
    sinks.extend(pinger.as_ref().map(PingChild::sink));
    let child = RelayChild::start(&settings.program, relay, settings.relay_core, &sinks)?;
    let mut generator = match &workload.bulk {
        Some(bulk) => Some(generator_for(bulk, workload.ping, relay, &child, &sink, false)?),
        None => None,
    };
    if let Some(pinger) = &mut pinger {
        pinger.connect(child.ready(), 1, settings.warmup, settings.window)?;
        pinger.begin()?;
    }
    let own = CpuClock::of_this_process()?;
    run_for(&mut generator, settings.warmup)?;
    generator.as_mut().and_then(Generator::take_latencies);
    let before = Reading::take(&child, own, generator.as_ref())?;
    run_for(&mut generator, settings.window)?;
    let after = Reading::take(&child, own, generator.as_ref())?;

    let riding = generator.as_mut().and_then(Generator::take_latencies);
    let mut ping = riding.as_ref().map(|histogram| Figures::of(histogram, false));
    // The ping process began a moment later; bulk goes on until it is surely done.
    if let Some(pinger) = pinger {
        run_for(&mut generator, Duration::from_millis(50))?;
        ping = Some(pinger.figures()?);
    }
    let delivery = match generator {
        Some(generator) => generator.finish(DRAIN_TIMEOUT)?,
        None => Delivery::default(),
    };
    let ready = child.ready().clone();
    let remains = child.stop()?;
    Ok(evaluate(workload, &before, &after, ping, delivery, remains, ready))
}

fn evaluate(
    workload: &Workload,
    before: &Reading,
    after: &Reading,
    ping: Option<Figures>,
    delivery: Delivery,
    remains: Remains,
    ready: Ready,
) -> Measurement {
    let window_s = after.at.duration_since(before.at).as_secs_f64();
    let relay_s = after.relay.saturating_sub(before.relay).as_secs_f64();
    let own_s = after.own.saturating_sub(before.own).as_secs_f64();
    let received_bytes = after.received - before.received;
    let moved = workload.bulk.is_some() && received_bytes > 0;
    let counted = |counter: Counter| remains.counters.get(counter.name()).map(|count| *count as f64);
    let company_share = counted(Counter::CompanyWaits).zip(counted(Counter::Turns));
    let company_share = company_share.filter(|(_, turns)| *turns > 0.0).map(|(waits, turns)| waits / turns);
    let pings = ping.filter(|figures| workload.bulk.is_none() && figures.count > 0);
    Measurement {
        window_s,
        received_bytes,
        gbit_per_s: workload.bulk.map(|_| received_bytes as f64 * 8e-9 / window_s),
        relay_cpu_s_per_gib: moved.then(|| relay_s * GIB / received_bytes as f64),
        relay_cpu_us_per_ping: pings.map(|figures| relay_s * 1e6 / figures.count as f64),
        relay_busy: relay_s / window_s,
        generator_busy: own_s / window_s,
        ping,
        lost_bytes: delivery.lost,
        faults: delivery.faults,
        warnings: remains.warnings,
        counters: remains.counters,
        driver: ready.driver,
        company_us_max: ready.company_us_max,
        company_share,
    }
}

/// Moves at least `payload` bytes of `bulk` through `relay` and compares every byte.
///
/// # Errors
/// When the relay fails or breaks a connection; wrong or missing bytes are not errors but the result.
pub fn verify(settings: &Settings, bulk: &Bulk, relay: Relay, payload: u64) -> Result<Verified> {
    let sink = loopback_listener()?;
    let child = RelayChild::start(&settings.program, relay, settings.relay_core, &[sink.local_addr()?])?;
    // Pacing would only prolong it.
    let bulk = Bulk { bytes_per_second: None, ..*bulk };
    let mut generator = generator_for(&bulk, Ping::None, relay, &child, &sink, true)?;
    generator.run_bytes(payload, VERIFY_TIMEOUT)?;
    let delivery = generator.finish(DRAIN_TIMEOUT)?;
    let remains = child.stop()?;
    let mut faults = delivery.faults;
    faults.extend(remains.warnings);
    Ok(Verified { bytes: delivery.payload_sent, lost_bytes: delivery.lost, faults })
}

fn generator_for(
    bulk: &Bulk,
    ping: Ping,
    relay: Relay,
    child: &RelayChild,
    sink: &TcpListener,
    verified: bool,
) -> Result<Generator> {
    let mut route = route(child.ready(), 0, sink)?;
    if let Route::Sessions { place, .. } = &mut route {
        *place = relay.apart().map(|apart| Place { child, apart });
    }
    let is_server = child.ready().public_key.is_some();
    let rides = ping == Ping::SameSession;
    let mut links = Vec::with_capacity(bulk.pairs + 1);
    for pair in 0..bulk.pairs {
        let link = Link::open(&route, bulk.streams, rides && is_server && pair == 0)
            .with_context(|| format!("session pair {pair} of {}", bulk.pairs))?;
        links.push(link);
    }
    if rides && !is_server {
        links.push(Link::open(&route, 0, true)?);
    }
    for link in &links {
        let socket = socket2::SockRef::from(&link.sender);
        socket.set_tcp_congestion(GENERATOR_CONGESTION)?;
        if ping != Ping::None {
            socket.set_tcp_notsent_lowat(UNSENT_MAX)?;
        }
    }
    Generator::new(links, Load { shape: bulk.shape, bytes_per_second: bulk.bytes_per_second, verified })
}

fn run_for(generator: &mut Option<Generator>, time: Duration) -> Result<()> {
    match generator {
        Some(generator) => generator.run_for(time),
        None => {
            std::thread::sleep(time);
            Ok(())
        }
    }
}

/// Two of the cores that this process may use: relay, generator. The one between them, where there are three, is that of our
/// server's second worker, which otherwise shares the first one's.
///
/// # Errors
/// With fewer than two, because relay and generator on one core measure each other.
pub fn two_cores() -> Result<(usize, usize)> {
    let allowed = rustix::thread::sched_getaffinity(None)?;
    let mut cores = (0..rustix::thread::CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
    match (cores.next(), cores.next()) {
        (Some(relay), Some(second)) => Ok((relay, cores.next().unwrap_or(second))),
        _ => bail!("two processor cores are needed: one for the relay, one for the generator"),
    }
}
