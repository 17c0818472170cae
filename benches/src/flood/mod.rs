//! Attacks on the real server with an honest client beside them: `cargo xtask flood NAME`.
//!
//! In: the name of a row. Out: what the honest client saw before, beside and after the attack, what attackers and server
//! spent, and whether the server reached the row's targets.
//!
//! ```text
//!  run ──► server: ringwire run, two processes ◄────────────── attack (process, nice 10)   127.0.0.3
//!   │            ▲                                                │ stands, did
//!   ├──► honest ─┘  opens, pings, sessions, entry   127.0.0.2     ▼
//!   └──────────────────────────────────────────► report ◄── targets
//! ```
//!
//! Loads are bounded in number and time and stay on the loopback. What is measured is no gate: a busy machine spoils it.

pub mod attack;
pub mod discovery;
pub mod honest;
pub mod report;
pub mod server;
pub mod targets;
pub mod wire;

use crate::cpu::{self, CpuClock};
use anyhow::{Context, Result, bail};
use attack::{ALL, Field, Row, Said};
use clap::{Args, ValueEnum};
use discovery::{Door, Watch};
use honest::{HANDSHAKE_LIMIT, Honest};
use report::Found;
use server::{Server, raise_descriptors};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use targets::Target;
use wire::{Place, fresh_key};

/// Where attackers come from.
const ATTACKERS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));
/// Where the honest client comes from, unless it is to share the attackers' address.
const HONEST: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
/// Length of the phases without an attack, in seconds.
const CALM_SECONDS: f64 = 3.0;
/// Lengths of a quick run, in seconds.
const QUICK_SECONDS: f64 = 1.0;
/// How long an attack may take until it stands, and how long until it has ended.
const STAND_LIMIT: Duration = Duration::from_secs(90);
const END_LIMIT: Duration = Duration::from_secs(20);
/// How often memory is looked at while it is to go down.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// What to measure.
#[derive(Args, Debug)]
pub struct Arguments {
    /// A row, `all` of them, or `list` to see which there are
    #[arg(value_parser = names())]
    name: String,
    /// The server's driver [default: what it takes by itself]
    #[arg(long, value_enum)]
    driver: Option<Driver>,
    /// Print one line of JSON for each run instead of a table
    #[arg(long)]
    json: bool,
    /// Small loads and a second for each phase: shows that everything works, not how well
    #[arg(long)]
    quick: bool,
    /// Length of the phase beside the attack in seconds [default: the row's own]
    #[arg(long, value_parser = seconds, conflicts_with = "quick")]
    seconds: Option<f64>,
    /// How many attackers [default: the row's own]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1000))]
    attackers: Option<u16>,
    /// The honest client comes from the attackers' address
    #[arg(long)]
    same_address: bool,
    /// Another build of `ringwire` to measure [default: the one this was built with]
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
}

/// Drivers of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Driver {
    /// io_uring
    Uring,
    /// epoll
    Poll,
}

fn names() -> clap::builder::PossibleValuesParser {
    let names = ALL.into_iter().map(|row| row.name).chain(["all", "list"]);
    names.map(clap::builder::PossibleValue::new).collect::<Vec<_>>().into()
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=60.0).contains(&seconds) => Ok(seconds),
        _ => Err("from 0.1 to 60 seconds".into()),
    }
}

/// Measures and prints.
///
/// # Errors
/// When something could not be measured, or a target was missed.
pub fn run(arguments: &Arguments) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if arguments.name == "list" {
        for row in ALL {
            writeln!(out, "{:<18} {}", row.name, row.about)?;
        }
        return Ok(());
    }
    raise_descriptors();
    let rows: Vec<&Row> =
        ALL.into_iter().filter(|row| arguments.name == "all" || arguments.name == row.name).collect();
    if !arguments.json {
        writeln!(
            out,
            "honest client on {}, attackers on {ATTACKERS} at nice {}: on few cores line rate is what the others leave",
            honest_source(arguments),
            attack::NICE
        )?;
        if cfg!(debug_assertions) && arguments.binary.is_none() {
            writeln!(out, "Built without optimisation: the numbers mean nothing.")?;
        }
    }
    let mut missed = Vec::new();
    for row in rows {
        for attackers in numbers(arguments, row) {
            let found = measure(arguments, row, attackers)
                .with_context(|| format!("{} could not be measured", row.name))?;
            if arguments.json {
                writeln!(out, "{}", serde_json::to_string(&found)?)?;
            } else {
                write!(out, "{found}")?;
            }
            out.flush()?;
            if !found.met {
                missed.push(format!("{} with {attackers}", row.name));
            }
        }
    }
    if missed.is_empty() { Ok(()) } else { bail!("targets were missed: {}", missed.join(", ")) }
}

fn honest_source(arguments: &Arguments) -> IpAddr {
    if arguments.same_address { ATTACKERS } else { HONEST }
}

/// How many attackers, for each run of a row.
fn numbers(arguments: &Arguments, row: &Row) -> Vec<usize> {
    match arguments.attackers {
        Some(count) => vec![count.into()],
        None if arguments.quick => vec![row.attackers_quick],
        None => row.attackers.to_vec(),
    }
}

/// One run of one row on a fresh server.
fn measure(arguments: &Arguments, row: &Row, attackers: usize) -> Result<Found> {
    let settings = if arguments.quick { row.server_quick } else { row.server };
    let driver = arguments.driver.map(|driver| match driver {
        Driver::Uring => "uring",
        Driver::Poll => "poll",
    });
    let server = Server::start(arguments.binary.as_deref(), driver, settings, row.plane)?;
    let ready = server.ready();
    let key = ready.public_key.parse()?;
    let source = honest_source(arguments);
    let place = Place { server: ready.address, key, source, limit: HANDSHAKE_LIMIT, receive_buffer: None };
    let registered = fresh_key();
    let discovery = server.discovery().filter(|_| row.watches_discovery);
    let watch = discovery.map(|address| Watch::new(Door { address, source }, key, registered.clone()));
    let mut honest = Honest::start(place, watch)?;
    let (calm, beside) = lengths(arguments, row);

    let mut found = Found {
        name: row.name.into(),
        driver: ready.driver.clone(),
        attackers,
        plane: row.plane,
        quick: arguments.quick,
        real_time: std::thread::spawn(cpu::real_time).join().unwrap_or(false),
        ..Found::default()
    };
    found.honest.before = honest.measure(calm)?;
    let field = Field {
        server: ready.address,
        key: ready.public_key.clone(),
        discovery: server.discovery(),
        source: ATTACKERS,
        honest: honest.destination().to_string(),
        registered: registered.public_key().to_string(),
        attackers,
        quick: arguments.quick,
        seconds: beside.as_secs_f64(),
    };
    server.memory().forget();
    found.rss_start_bytes = server.memory().now();
    let cpu_before = server.cpu_used()?;
    let mut attack = Attack::start(row, &field)?;
    attack.wait_until_it_stands()?;
    let prepares = row.targets.iter().any(|target| matches!(target, Target::GrowthOverAnswers { .. }));
    if prepares {
        server.memory().forget();
        found.rss_start_bytes = server.memory().now();
    }
    let cpu_standing = server.cpu_used()?;
    found.honest.during = honest.measure(beside)?;
    found.rss_max_bytes = server.memory().most();
    found.attacker_cpu_s = attack.cpu_used()?.as_secs_f64();
    let since = if prepares { cpu_standing } else { cpu_before };
    found.server_cpu_s = (server.cpu_used()? - since).as_secs_f64();
    found.attack = attack.end()?;

    settle(&server, row, &mut found);
    found.honest.after = honest.measure(calm)?;
    server.cpu_used()?;
    found.disturbed = disturbed(row, &found);
    found.unmet = row.targets.iter().filter_map(|target| target.missed(&found)).collect();
    found.met = found.unmet.is_empty();
    Ok(found)
}

/// What says that the machine is too busy for this: times that miss their target without an attack.
fn disturbed(row: &Row, found: &Found) -> Vec<String> {
    let mut calm = found.clone();
    calm.honest.during = found.honest.before.clone();
    let times = row.targets.iter().filter(|target| target.is_of_time());
    times.filter_map(|target| target.missed(&calm)).collect()
}

/// Lengths of the phases without and beside the attack.
fn lengths(arguments: &Arguments, row: &Row) -> (Duration, Duration) {
    let (calm, beside) = if arguments.quick {
        (QUICK_SECONDS, QUICK_SECONDS)
    } else {
        (CALM_SECONDS, arguments.seconds.unwrap_or(row.seconds))
    };
    (Duration::from_secs_f64(calm), Duration::from_secs_f64(beside))
}

/// Waits until memory has gone down as far as it must, or for the row's time.
fn settle(server: &Server, row: &Row, found: &mut Found) {
    let began = Instant::now();
    loop {
        found.rss_end_bytes = server.memory().now();
        let is_high =
            |target: &Target| matches!(target, Target::MemoryBack { .. }) && target.missed(found).is_some();
        let waits = row.settle == targets::SETTLE_SHORT || row.targets.iter().any(is_high);
        if !waits || began.elapsed() >= row.settle {
            return;
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

/// The process of an attack; killed when dropped.
struct Attack {
    child: Child,
    clock: CpuClock,
    said: Receiver<Said>,
}

impl Attack {
    fn start(row: &Row, field: &Field) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["flood-attack", row.name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("the attack could not be started")?;
        let mut line = serde_json::to_string(field)?;
        line.push('\n');
        child.stdin.as_mut().context("the attack has no standard input")?.write_all(line.as_bytes())?;
        let stdout = child.stdout.take().context("the attack has no standard output")?;
        let (sender, said) = channel();
        // Ends with the process's standard output.
        std::thread::Builder::new().name("said".into()).spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Ok(said) = serde_json::from_str(&line) {
                    let _ = sender.send(said);
                }
            }
        })?;
        let clock = CpuClock::of(child.id())?;
        Ok(Self { child, clock, said })
    }

    fn wait_until_it_stands(&mut self) -> Result<()> {
        match self.said.recv_timeout(STAND_LIMIT) {
            Ok(Said::Standing) => Ok(()),
            Ok(Said::Ended { error, .. }) => {
                bail!("the attack broke off: {}", error.unwrap_or_else(|| "it says not why".into()))
            }
            Err(_) => bail!("the attack did not stand within {STAND_LIMIT:?}"),
        }
    }

    fn cpu_used(&self) -> Result<Duration> {
        self.clock.used().context("the attack has ended before its time")
    }

    /// Ends it and says what it did.
    fn end(mut self) -> Result<BTreeMap<String, u64>> {
        drop(self.child.stdin.take());
        loop {
            match self.said.recv_timeout(END_LIMIT) {
                Ok(Said::Standing) => {}
                Ok(Said::Ended { did, error: None }) => return Ok(did),
                Ok(Said::Ended { error: Some(error), .. }) => bail!("the attack broke off: {error}"),
                Err(_) => bail!("the attack did not end within {END_LIMIT:?}"),
            }
        }
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
