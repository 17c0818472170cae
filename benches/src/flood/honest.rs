//! The honest client beside an attack: what it does all the time, and how well that went.
//!
//! In: where the server is, how long. Out: [`Figures`]. Three sessions that last for the whole measurement: one that opens
//! streams, one that is dialled and accepts as real clients do, one that pings; and two threads that make new sessions. All of
//! it goes by the clock and not by the answers, so that a server that stands still is asked as often as one that runs. The
//! threads ask for real-time priority: on few cores they share one with attackers. Called by [`super::run`].

use super::discovery::{self, Watch};
use super::wire::{Event, Place, Wire, fresh_key};
use crate::cpu;
use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_proto::identity::{PublicKey, SecretKey};
use ringwire_proto::noise::{Handshake, Hybrid, Pattern, Role};
use ringwire_proto::object::{open_request, open_response};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Time between two opens: 50 a second.
const OPEN_INTERVAL: Duration = Duration::from_millis(20);
/// Time between two pings: a stall of 60 ms shows in the 99th percentile of six seconds.
const PING_INTERVAL: Duration = Duration::from_millis(10);
/// Time between two new sessions of each thread that makes some.
const HANDSHAKE_INTERVAL: Duration = Duration::from_millis(150);
/// Threads that make new sessions.
const HANDSHAKERS: usize = 2;
/// An open without an answer for so long has failed: what the server gives the other side (dmsg-wire 11.3), and a little.
const OPEN_LIMIT: Duration = Duration::from_millis(5500);
/// So long an answer to a ping is waited for after the last question; then it counts as lost.
const PING_LIMIT: Duration = Duration::from_secs(5);
/// A handshake has failed after so long, as at the client library.
pub(super) const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// Pause before a session that was lost is made again.
const AGAIN: Duration = Duration::from_millis(50);
/// How often a thread without work looks whether it is to end.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Times beyond a minute count as one, in nanoseconds.
const TIME_MAX_NS: u64 = 60_000_000_000;

/// One phase, seen by the honest client.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Streams that were open at both ends in time.
    pub opens_ok: u64,
    /// Streams that were refused or not answered.
    pub opens_failed: u64,
    /// Time from request to response of half of those that opened.
    pub open_p50_ms: f64,
    /// The same of 99 of 100.
    pub open_p99_ms: f64,
    /// Round trip of half of the pings.
    pub ping_p50_ms: f64,
    /// The same of 99 of 100; a lost one counts with the time it was waited for.
    pub ping_p99_ms: f64,
    /// Pings without an answer.
    pub pings_lost: u64,
    /// New sessions whose first ping was answered.
    pub handshakes_ok: u64,
    /// New sessions that were refused or not done in time.
    pub handshakes_failed: u64,
    /// Time for 99 of 100 new sessions, from connecting to the answered ping.
    pub handshake_p99_ms: f64,
    /// How often one of the three lasting sessions ended.
    pub sessions_lost: u64,
    /// What the honest client found at the discovery, in rows that are about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discovery: Option<discovery::Figures>,
}

impl Figures {
    /// Share of the opens that succeeded; none without opens.
    #[must_use]
    pub fn opened_share(&self) -> Option<f64> {
        let all = self.opens_ok + self.opens_failed;
        (all > 0).then(|| self.opens_ok as f64 / all as f64)
    }
}

/// The honest client with its lasting sessions.
pub struct Honest {
    place: Place,
    destination: Destination,
    opener: Opener,
    pinger: Pinger,
    watch: Option<Watch>,
}

impl Honest {
    /// Makes the lasting sessions. With `watch`, the client also uses the discovery.
    ///
    /// # Errors
    /// When the server refuses one of them.
    pub fn start(place: Place, watch: Option<Watch>) -> Result<Self> {
        let destination = Destination::start(place).context("the honest destination has no session")?;
        Ok(Self {
            place,
            opener: Opener { lasting: Lasting::start(place)?, destination: destination.key },
            pinger: Pinger { lasting: Lasting::start(place)? },
            destination,
            watch,
        })
    }

    /// Who accepts what the honest client opens.
    #[must_use]
    pub fn destination(&self) -> PublicKey {
        self.destination.key
    }

    /// Does what it does for `length` and says how it went.
    ///
    /// # Errors
    /// When a thread cannot be started or has panicked.
    pub fn measure(&mut self, length: Duration) -> Result<Figures> {
        let until = Instant::now() + length;
        let lost_before = self.lost();
        let (opens, pings, handshakes, discovery) = std::thread::scope(|scope| -> Result<_> {
            let (opener, pinger, place) = (&mut self.opener, &mut self.pinger, &self.place);
            let watch = self.watch.as_mut().map(|watch| scope.spawn(|| watch.run(until)));
            let opens = scope.spawn(|| opener.run(until));
            let pings = scope.spawn(|| pinger.run(until));
            let handshakers: Vec<_> =
                (0..HANDSHAKERS).map(|_| scope.spawn(|| make_sessions(place, until))).collect();
            let mut handshakes = Tally::new()?;
            for handshaker in handshakers {
                handshakes.add(&joined(handshaker.join())??)?;
            }
            let discovery = watch.map(|watch| joined(watch.join())).transpose()?;
            Ok((joined(opens.join())??, joined(pings.join())??, handshakes, discovery))
        })?;
        Ok(Figures {
            opens_ok: opens.ok,
            opens_failed: opens.failed,
            open_p50_ms: opens.quantile_ms(0.5),
            open_p99_ms: opens.quantile_ms(0.99),
            ping_p50_ms: pings.quantile_ms(0.5),
            ping_p99_ms: pings.quantile_ms(0.99),
            pings_lost: pings.failed,
            handshakes_ok: handshakes.ok,
            handshakes_failed: handshakes.failed,
            handshake_p99_ms: handshakes.quantile_ms(0.99),
            sessions_lost: self.lost() - lost_before,
            discovery,
        })
    }

    fn lost(&self) -> u64 {
        let destination = self.destination.lost.load(Ordering::Relaxed);
        destination + self.opener.lasting.lost + self.pinger.lasting.lost
    }
}

fn joined<T>(result: std::thread::Result<T>) -> Result<T> {
    result.map_err(|_| anyhow::anyhow!("a thread of the honest client panicked"))
}

/// What succeeded, how fast, and what did not.
struct Tally {
    ok: u64,
    failed: u64,
    times: Histogram<u64>,
}

impl Tally {
    fn new() -> Result<Self> {
        Ok(Self { ok: 0, failed: 0, times: Histogram::new_with_max(TIME_MAX_NS, 3)? })
    }

    fn succeeded(&mut self, time: Duration) {
        self.ok += 1;
        self.time(time);
    }

    fn time(&mut self, time: Duration) {
        self.times.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    fn add(&mut self, other: &Self) -> Result<()> {
        self.ok += other.ok;
        self.failed += other.failed;
        Ok(self.times.add(&other.times)?)
    }

    fn quantile_ms(&self, quantile: f64) -> f64 {
        if self.times.is_empty() { 0.0 } else { self.times.value_at_quantile(quantile) as f64 / 1e6 }
    }
}

/// A session that is made again when it is lost.
struct Lasting {
    place: Place,
    key: SecretKey,
    wire: Option<Wire>,
    lost: u64,
    tried: Instant,
}

impl Lasting {
    fn start(place: Place) -> Result<Self> {
        let key = fresh_key();
        let wire = Wire::establish(&place, &key).context("the honest client has no session")?;
        Ok(Self { place, key, wire: Some(wire), lost: 0, tried: Instant::now() })
    }

    /// The session, made again if there is none; none when that did not work, or not long enough ago.
    fn wire(&mut self) -> Option<&mut Wire> {
        if self.wire.is_none() && self.tried.elapsed() >= AGAIN {
            self.wire = Wire::establish(&self.place, &self.key).ok();
            self.tried = Instant::now();
        }
        self.wire.as_mut()
    }

    fn lose(&mut self) {
        self.wire = None;
        self.lost += 1;
        self.tried = Instant::now();
    }

    /// One turn of the session; false when it is lost or there is none.
    fn turn(&mut self, wait: Duration, events: &mut Vec<Event>) -> bool {
        let Some(wire) = &mut self.wire else {
            std::thread::sleep(wait.min(AGAIN));
            return false;
        };
        let lasts = wire.turn(wait, events).is_ok();
        if !lasts {
            self.lose();
        }
        lasts
    }
}

/// Opens streams to the honest destination.
struct Opener {
    lasting: Lasting,
    destination: PublicKey,
}

/// A stream whose response is awaited.
struct Asked {
    since: Instant,
    hash: [u8; 32],
    handshake: Handshake,
}

impl Opener {
    fn run(&mut self, until: Instant) -> Result<Tally> {
        let _ = cpu::real_time();
        let mut tally = Tally::new()?;
        let mut asked: HashMap<u32, Asked> = HashMap::new();
        let mut events = Vec::new();
        let mut next = Instant::now();
        loop {
            let mut now = Instant::now();
            if now >= until && asked.is_empty() {
                return Ok(tally);
            }
            if now >= next && now < until {
                next += OPEN_INTERVAL;
                match self.ask()? {
                    Some((stream, ask)) => drop(asked.insert(stream, ask)),
                    None => tally.failed += 1,
                }
                now = Instant::now();
            }
            let wait = if now < until { next.saturating_duration_since(now) } else { OPEN_INTERVAL };
            if !self.lasting.turn(wait, &mut events) {
                tally.failed += asked.drain().count() as u64;
            }
            for event in events.drain(..) {
                match event {
                    Event::Object(stream, signed) => {
                        let Some(ask) = asked.remove(&stream) else { continue };
                        let time = ask.since.elapsed();
                        if ask.accepts(&signed, &self.destination) {
                            tally.succeeded(time);
                        } else {
                            tally.failed += 1;
                        }
                        if let Some(wire) = &mut self.lasting.wire {
                            wire.end(stream, false);
                        }
                    }
                    Event::Ended { stream, reset } => {
                        if asked.remove(&stream).is_some() {
                            tally.failed += 1;
                            if let Some(wire) = self.lasting.wire.as_mut().filter(|_| !reset) {
                                wire.end(stream, false);
                            }
                        }
                    }
                    Event::Opened(_) | Event::Credit(..) | Event::Pong => {}
                }
            }
            let late: Vec<u32> = asked
                .iter()
                .filter_map(|(stream, ask)| (ask.since.elapsed() > OPEN_LIMIT).then_some(*stream))
                .collect();
            for stream in late {
                asked.remove(&stream);
                tally.failed += 1;
                if let Some(wire) = &mut self.lasting.wire {
                    wire.end(stream, true);
                }
            }
        }
    }

    /// Sends a request; none where there is no session.
    fn ask(&mut self) -> Result<Option<(u32, Asked)>> {
        let mut handshake = Handshake::new(
            Pattern::Kk,
            Role::Initiator,
            &self.lasting.key,
            Some(&self.destination),
            Hybrid::Off,
            &mut OsEntropy,
        )?;
        let mut message = Vec::new();
        handshake.write_message(&mut message)?;
        let destination = self.destination;
        let Some(wire) = self.lasting.wire() else { return Ok(None) };
        let (stream, hash) = wire.request(destination, Some(message))?;
        Ok(Some((stream, Asked { since: Instant::now(), hash, handshake })))
    }
}

impl Asked {
    fn accepts(mut self, signed: &[u8], destination: &PublicKey) -> bool {
        open_response(signed, &self.hash, destination)
            .is_ok_and(|response| self.handshake.read_message(&response.noise_message).is_ok())
    }
}

/// Pings the server's multiplexer.
struct Pinger {
    lasting: Lasting,
}

impl Pinger {
    fn run(&mut self, until: Instant) -> Result<Tally> {
        let _ = cpu::real_time();
        let mut tally = Tally::new()?;
        let mut asked: VecDeque<Instant> = VecDeque::new();
        let mut events = Vec::new();
        let mut next = Instant::now();
        loop {
            let now = Instant::now();
            let given_up = now >= until + PING_LIMIT;
            if now >= until && (asked.is_empty() || given_up) {
                Self::lose(&mut tally, &mut asked);
                return Ok(tally);
            }
            if now >= next && now < until {
                next += PING_INTERVAL;
                match self.lasting.wire() {
                    Some(wire) => {
                        wire.ping();
                        asked.push_back(Instant::now());
                    }
                    None => tally.failed += 1,
                }
            }
            let now = Instant::now();
            let wait = if now < until { next.saturating_duration_since(now) } else { PING_INTERVAL };
            if !self.lasting.turn(wait, &mut events) {
                Self::lose(&mut tally, &mut asked);
            }
            for event in events.drain(..) {
                if let (Event::Pong, Some(since)) = (event, asked.front()) {
                    tally.succeeded(since.elapsed());
                    asked.pop_front();
                }
            }
        }
    }

    fn lose(tally: &mut Tally, asked: &mut VecDeque<Instant>) {
        for since in asked.drain(..) {
            tally.failed += 1;
            tally.time(since.elapsed());
        }
    }
}

/// Makes sessions, each with a new key, until the time is over.
fn make_sessions(place: &Place, until: Instant) -> Result<Tally> {
    let mut tally = Tally::new()?;
    let mut next = Instant::now();
    while Instant::now() < until {
        let began = Instant::now();
        match Wire::establish(place, &fresh_key()) {
            Ok(_) => tally.succeeded(began.elapsed()),
            Err(_) => tally.failed += 1,
        }
        next = (next + HANDSHAKE_INTERVAL).max(Instant::now() - HANDSHAKE_INTERVAL);
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(tally)
}

/// Who is dialled: accepts every stream, and ends it when the other side does.
struct Destination {
    key: PublicKey,
    lost: Arc<std::sync::atomic::AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Destination {
    fn start(place: Place) -> Result<Self> {
        let lasting = Lasting::start(place)?;
        let key = lasting.key.public_key();
        let (stop, lost) = (Arc::<AtomicBool>::default(), Arc::default());
        let (stopped, counter) = (Arc::clone(&stop), Arc::clone(&lost));
        let thread = std::thread::Builder::new()
            .name("destination".into())
            .spawn(move || accept_all(lasting, &stopped, &counter))?;
        Ok(Self { key, lost, stop, thread: Some(thread) })
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept_all(mut lasting: Lasting, stop: &AtomicBool, lost: &std::sync::atomic::AtomicU64) {
    let _ = cpu::real_time();
    let mut events = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        lasting.wire();
        lasting.turn(LOOK_INTERVAL, &mut events);
        lost.store(lasting.lost, Ordering::Relaxed);
        for event in events.drain(..) {
            let Some(wire) = &mut lasting.wire else { continue };
            match event {
                Event::Object(stream, signed) => {
                    let accepted = accept(wire, &lasting.key, stream, &signed);
                    if accepted.is_err() {
                        wire.end(stream, true);
                    }
                }
                Event::Ended { stream, reset: false } => wire.end(stream, false),
                _ => {}
            }
        }
    }
}

fn accept(wire: &mut Wire, local: &SecretKey, stream: u32, signed: &[u8]) -> Result<()> {
    let request = open_request(signed)?;
    let mut handshake = Handshake::new(
        Pattern::Kk,
        Role::Responder,
        local,
        request.source.key.as_ref(),
        Hybrid::Off,
        &mut OsEntropy,
    )?;
    let mut message = Vec::new();
    // Attackers send noise where the first message belongs; whoever accepts them answers with noise too.
    let answer = match handshake.read_message(&request.noise_message) {
        Ok(_) => handshake.write_message(&mut message).is_ok().then_some(message),
        Err(_) => None,
    };
    wire.respond(stream, signed, answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_quantiles_of_nothing_are_nothing() {
        assert_eq!(Figures::default().opened_share(), None);
        assert_eq!(Tally::new().unwrap().quantile_ms(0.99), 0.0);
    }

    #[test]
    fn what_failed_counts_and_has_no_time() {
        let mut tally = Tally::new().unwrap();
        tally.succeeded(Duration::from_millis(2));
        tally.failed += 3;
        let mut all = Tally::new().unwrap();
        all.add(&tally).unwrap();
        assert_eq!((all.ok, all.failed, all.times.len()), (1, 3, 1));
        assert!((all.quantile_ms(0.5) - 2.0).abs() < 0.01);
    }
}
