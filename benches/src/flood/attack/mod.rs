//! The attacks, one file each, named as its row; and the process in which one runs.
//!
//! In: a [`Field`] on standard input. Out: a line when the attack stands, and at the end what it did. The end is the end of
//! standard input. A process of its own, so that its processor time is counted apart, and nicer than everything else, so that on
//! few cores it is the server that gives way to an attack and not the processor. A new attack is a file with a [`Row`] and a line
//! in [`ALL`].

mod descriptors;
mod discovery_delete;
mod empty_frames;
mod fin_pins;
mod idle_bridges;
mod one_victim;
mod servers_clients;
mod syn_only;
mod tables;
mod unread_churn;

use super::discovery::Door;
use super::server::Plane;
use super::targets::Target;
use super::wire::{Event, Place, Wire, fresh_key};
use anyhow::{Context, Result, bail};
use ringwire_proto::identity::PublicKey;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::io::{BufRead, Read};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// All rows, in the order of `flood all`.
pub const ALL: [&Row; 10] = [
    &idle_bridges::ROW,
    &syn_only::ROW,
    &one_victim::ROW,
    &fin_pins::ROW,
    &empty_frames::ROW,
    &unread_churn::ROW,
    &discovery_delete::ROW,
    &servers_clients::ROW,
    &descriptors::ROW,
    &tables::ROW,
];

/// How much nicer attackers are than everybody else.
pub const NICE: i32 = 10;
/// Longest wait of an attacker for a connection, a handshake's answer or a first sign of life.
const LIMIT: Duration = Duration::from_secs(5);
/// Longest time for making an attack; then it stands as far as it came.
const MAKING_LIMIT: Duration = Duration::from_secs(60);
/// Longest life of an attack whatever happens to who started it.
const LIFE_LIMIT: Duration = Duration::from_secs(180);
/// Pause of an attacker that has nothing to do.
const IDLE: Duration = Duration::from_millis(20);

/// One row: an attack, the server it is for, and what the server must reach.
#[derive(Debug)]
pub struct Row {
    /// Its name on the command line.
    pub name: &'static str,
    /// What the attackers do, in one sentence.
    pub about: &'static str,
    /// How many attackers; for each number a run of its own.
    pub attackers: &'static [usize],
    /// The same for a quick run.
    pub attackers_quick: usize,
    /// How long the honest client is measured beside the attack.
    pub seconds: f64,
    /// Settings of the server that differ from the defaults.
    pub server: Settings,
    /// The same for a quick run.
    pub server_quick: Settings,
    /// The plane that is attacked, and whose memory is looked at.
    pub plane: Plane,
    /// Whether the honest client uses the discovery too.
    pub watches_discovery: bool,
    /// What the server must reach.
    pub targets: &'static [Target],
    /// Longest wait for the server's memory to go down after the attack.
    pub settle: Duration,
    /// What attackers do, until `Reins::ended`.
    pub run: fn(&Field, &Reins) -> Result<()>,
}

/// Settings of the server under attack.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Buffer memory of the data plane in bytes; none: as usual.
    pub buffer_memory: Option<u64>,
    /// Descriptors of each plane; none: as many as there are.
    pub descriptors: Option<u64>,
}

/// Nothing differs.
const USUAL: Settings = Settings { buffer_memory: None, descriptors: None };
/// A budget that a quick run can use up.
const SMALL: Settings = Settings { buffer_memory: Some(64 << 20), descriptors: None };

impl Row {
    /// The row with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        ALL.into_iter().find(|row| row.name == name)
    }
}

/// Where an attack takes place.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Field {
    /// Where the server listens.
    pub server: SocketAddr,
    /// Its public key.
    pub key: String,
    /// Where its discovery listens.
    pub discovery: Option<SocketAddr>,
    /// The address attackers come from.
    pub source: IpAddr,
    /// The public key of the honest client that accepts streams.
    pub honest: String,
    /// The public key of the honest client with an entry in the discovery.
    pub registered: String,
    /// How many attackers.
    pub attackers: usize,
    /// Small loads.
    pub quick: bool,
    /// Seconds for which the honest client is measured beside the attack.
    pub seconds: f64,
}

impl Field {
    fn place(&self) -> Result<Place> {
        let key = self.key.parse()?;
        Ok(Place { server: self.server, key, source: self.source, limit: LIMIT, receive_buffer: None })
    }

    /// A session with a new key that the server has filed.
    fn session(&self) -> Result<Wire> {
        Wire::establish(&self.place()?, &fresh_key()).context("an attacker has no session")
    }

    /// As many of `count` sessions as the server lets in.
    fn sessions(&self, count: usize, reins: &Reins) -> Result<Vec<Wire>> {
        let mut sessions = Vec::with_capacity(count);
        for _ in 0..count {
            match self.session() {
                Ok(wire) => sessions.push(wire),
                Err(_) => reins.did("sessions_refused", 1),
            }
        }
        reins.did("sessions", sessions.len() as u64);
        if sessions.is_empty() { self.session().map(|wire| vec![wire]) } else { Ok(sessions) }
    }

    /// A new session, with a new key, for somebody who was thrown out. Where there is none it is tried again next time.
    fn replace(&self, wire: &mut Wire, reins: &Reins) {
        self.count_again(&self.session().map(|next| *wire = next), reins);
    }

    /// The same with the key as it was.
    fn restore(&self, wire: &mut Wire, reins: &Reins) {
        self.count_again(&self.place().and_then(|place| wire.again(&place)), reins);
    }

    fn count_again(&self, result: &Result<()>, reins: &Reins) {
        match result {
            Ok(()) => reins.did("sessions_again", 1),
            Err(_) => {
                reins.did("sessions_refused", 1);
                std::thread::sleep(IDLE);
            }
        }
    }

    fn door(&self) -> Result<Door> {
        Ok(Door { address: self.discovery.context("the server has no discovery")?, source: self.source })
    }

    /// A number that is smaller in a quick run.
    fn scaled(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }
}

/// How an attack hears that it is over, and where it says what it did.
#[derive(Debug)]
pub struct Reins {
    began: Instant,
    ended: AtomicBool,
    standing: AtomicBool,
    did: Mutex<BTreeMap<&'static str, u64>>,
}

impl Reins {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            ended: AtomicBool::new(false),
            standing: AtomicBool::new(false),
            did: Mutex::default(),
        }
    }

    /// Whether the attack is to end.
    fn ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed) || self.began.elapsed() > LIFE_LIMIT
    }

    /// Whether the time for making the attack is over.
    fn is_late(&self) -> bool {
        self.began.elapsed() > MAKING_LIMIT
    }

    /// From now on the honest client is to be measured.
    fn stand(&self) {
        if !self.standing.swap(true, Ordering::Relaxed) {
            say(&Said::Standing);
        }
    }

    /// Notes that `count` more of something were done.
    fn did(&self, what: &'static str, count: u64) {
        *self.did.lock().unwrap_or_else(PoisonError::into_inner).entry(what).or_default() += count;
    }
}

/// What the process of an attack says, a line each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Said {
    /// The attack has reached what it is for.
    Standing,
    /// It is over; how much of what was done, and why it broke off if it did.
    Ended {
        /// Counts by name.
        did: BTreeMap<String, u64>,
        /// Nothing when it went as it should.
        error: Option<String>,
    },
}

fn say(said: &Said) {
    if let Ok(line) = serde_json::to_string(said) {
        // Whoever started this has gone: then it ends soon.
        let _ = std::io::Write::write_all(&mut std::io::stdout().lock(), format!("{line}\n").as_bytes());
    }
}

/// The process's own program.
///
/// # Errors
/// When the row or the field on standard input is none.
pub fn run(name: &str) -> Result<()> {
    let row = Row::named(name).with_context(|| format!("there is no attack {name}"))?;
    rustix::process::nice(NICE)?;
    super::raise_descriptors();
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    let field: Field = serde_json::from_str(&line)?;
    let reins = Reins::new();
    std::thread::scope(|scope| {
        std::thread::Builder::new().name("reins".into()).spawn_scoped(scope, || {
            let _ = std::io::stdin().lock().read_to_end(&mut Vec::new());
            reins.ended.store(true, Ordering::Relaxed);
        })?;
        let result = (row.run)(&field, &reins);
        let did = reins.did.lock().unwrap_or_else(PoisonError::into_inner);
        let did = did.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        say(&Said::Ended { did, error: result.err().map(|error| format!("{error:#}")) });
        // The thread above waits for whoever started this, and must not.
        std::process::exit(0);
    })
}

/// Runs `attack` for each of `sessions` on a thread of its own; the first error is the result.
fn in_parallel<T: Send>(sessions: Vec<T>, attack: impl Fn(usize, T) -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let attack = &attack;
        let threads: Vec<_> = sessions
            .into_iter()
            .enumerate()
            .map(|(number, session)| scope.spawn(move || attack(number, session)))
            .collect();
        let mut result = Ok(());
        for thread in threads {
            let ended = thread.join().unwrap_or_else(|_| bail!("an attacker panicked"));
            result = result.and(ended);
        }
        result
    })
}

/// An attacker that opens streams and keeps them idle: as many as it may, up to a number.
struct Idler {
    wire: Wire,
    asked: HashSet<u32>,
    events: Vec<Event>,
    open: usize,
    refused: usize,
}

/// Requests that an [`Idler`] has under way.
const ASKED_MAX: usize = 32;

impl Idler {
    fn new(wire: Wire) -> Self {
        Self { wire, asked: HashSet::new(), events: Vec::new(), open: 0, refused: 0 }
    }

    /// Asks for streams to `destination` until `wanted` are open or on their way, accepts what others open, and waits a moment.
    /// Who is thrown out comes back with the same key.
    fn turn(&mut self, field: &Field, reins: &Reins, destination: PublicKey, wanted: usize) -> Result<()> {
        while self.open + self.asked.len() < wanted && self.asked.len() < ASKED_MAX {
            self.asked.insert(self.wire.request(destination, None)?.0);
        }
        if self.wire.turn(IDLE, &mut self.events).is_err() {
            self.refused += self.asked.len();
            self.asked.clear();
            self.events.clear();
            self.open = 0;
            field.restore(&mut self.wire, reins);
            return Ok(());
        }
        for event in std::mem::take(&mut self.events) {
            match event {
                Event::Object(stream, signed) if stream % 2 == 0 => {
                    self.wire.respond(stream, &signed, None)?;
                }
                Event::Object(stream, _) => self.open += usize::from(self.asked.remove(&stream)),
                Event::Ended { stream, reset } => {
                    if self.asked.remove(&stream) {
                        self.refused += 1;
                    } else if stream % 2 == 1 {
                        self.open = self.open.saturating_sub(1);
                    }
                    if !reset {
                        self.wire.end(stream, false);
                    }
                }
                Event::Opened(_) | Event::Credit(..) | Event::Pong => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_a_name_of_its_own_targets_and_a_sentence() {
        for row in ALL {
            assert_eq!(Row::named(row.name).unwrap().about, row.about, "{}", row.name);
            assert!(!row.targets.is_empty() && !row.attackers.is_empty() && row.attackers_quick > 0);
            assert!(row.about.len() > 20 && row.seconds > 0.0, "{}", row.name);
        }
        assert!(Row::named("no-such-attack").is_none());
    }
}
