//! One run of one seed: plan, world, driver, the real worker, and the verdict.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ringwire_dataplane::counters::{Counter, CounterBlock, Counters};
use ringwire_dataplane::driver::{Batch, DriverError, Nanos};
use ringwire_dataplane::inspect::Inspection;
use ringwire_dataplane::lane::{InlineLane, Lane};
use ringwire_dataplane::worker::{Identity, Settings, Worker};
use ringwire_netem::{Random, SECOND_NS};
use ringwire_proto::entropy::SeededEntropy;
use ringwire_proto::identity::SecretKey;

use crate::driver::SimDriver;
use crate::ledger::{Failure, Ledger};
use crate::log::{Event, Lines, Log};
use crate::peer::Peer;
use crate::plan::{Character, LanePlan, Plan};
use crate::scenario;
use crate::world::{Phase, World};

/// What came out of a seed.
#[derive(Debug, Clone)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Its kind of scenario.
    pub theme: &'static str,
    /// Hash of every event: equal for equal seeds.
    pub hash: u64,
    /// Events.
    pub events: u64,
    /// Turns of the worker.
    pub turns: u64,
    /// Virtual time that passed, in nanoseconds.
    pub virtual_ns: Nanos,
    /// Bridges planned, bridges the worker opened, and payload bytes that peers read and verified.
    pub bridges: (usize, u64, u64),
    /// The worker's counters at the end.
    pub counters: Counters,
    /// The first broken promise.
    pub failure: Option<Failure>,
    /// What happened, line by line, if tracing was on.
    pub trace: Vec<String>,
}

thread_local! {
    /// Where the last panic of this thread was, as the hook of [`quiet_panics`] saw it.
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Panics of the worker are findings: they are reported with their place instead of being printed.
pub fn quiet_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let text = panic.payload_as_str().unwrap_or_default();
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        LAST_PANIC.with_borrow_mut(|last| *last = format!("{text} at {place}"));
    }));
}

/// Turns after which a run counts as never ending.
pub(crate) const TURNS_MAX: u64 = 3_000_000;

/// Runs a seed. `trace`: keep a readable line for each event.
pub fn run_seed(seed: u64, trace: bool) -> Report {
    run_plan(scenario::draw(seed), trace)
}

/// Runs a plan.
pub fn run_plan(plan: Plan, trace: bool) -> Report {
    let (seed, theme, bridges) = (plan.seed, plan.theme, plan.bridges.len());
    let lines = trace.then(Lines::default);
    let counters = Arc::new(CounterBlock::default());
    let mut run =
        Run { workers: Vec::new(), home: 0, pauses: 0, fabric: Fabric::new(&plan, Arc::clone(&counters)) };
    let outcome = catch_unwind(AssertUnwindSafe(|| run.go(plan, lines.clone())));
    let mut report = Report {
        seed,
        theme,
        hash: 0,
        events: 0,
        turns: counters.value(Counter::Turns),
        virtual_ns: 0,
        bridges: (bridges, counters.value(Counter::BridgesOpened), 0),
        counters: Counters::of(&counters),
        failure: outcome.as_ref().err().map(|panic| Failure { at: 0, what: panic_words(&**panic) }),
        trace: Vec::new(),
    };
    if let Some(worker) = run.workers.get_mut(run.home) {
        let world = &mut worker.driver().world;
        report.hash = world.log.hash();
        report.events = world.log.events();
        report.virtual_ns = world.now - SECOND_NS;
        report.bridges.2 = world.ledger.bytes_delivered;
        match &mut report.failure {
            Some(failure) => failure.at = world.now,
            none => *none = world.ledger.failure.clone(),
        }
    }
    report.trace = lines.map(|lines| lines.take()).unwrap_or_default();
    if report.failure.is_some() {
        // A worker that broke a promise may break another while it is dropped.
        std::mem::forget(run.workers);
    }
    report
}

fn panic_words(panic: &(dyn Any + Send)) -> String {
    let said = panic.downcast_ref::<String>().cloned();
    let said = said.or_else(|| panic.downcast_ref::<&str>().map(|words| (*words).to_owned()));
    let seen = LAST_PANIC.with_borrow_mut(std::mem::take);
    format!("panic: {}", if seen.is_empty() { said.unwrap_or_default() } else { seen })
}

/// One turn. Not inlined: counts of the worker's instructions begin and end here, by this name.
#[inline(never)]
fn turn_worker(worker: &mut Worker<SimDriver>, batch: &mut Batch) -> Result<(), DriverError> {
    worker.turn(batch)
}

/// What every worker of a run is made of.
pub(crate) struct Fabric {
    entropy: SeededEntropy,
    identity: Arc<Identity>,
    settings: Settings,
    pub(crate) counters: Arc<CounterBlock>,
    pub(crate) stop: Arc<AtomicBool>,
    lane: LanePlan,
    handovers: u64,
    /// Lanes made so far.
    lanes: u64,
    pub(crate) seed: u64,
}

impl Fabric {
    fn new(plan: &Plan, counters: Arc<CounterBlock>) -> Self {
        let mut entropy = SeededEntropy::new(plan.seed ^ 0x7365_7276_6572);
        let secret_key = SecretKey::generate(&mut entropy);
        let identity = Arc::new(Identity { public_key: secret_key.public_key(), secret_key });
        let settings = Settings {
            company_us_max: plan.kernel.company_us_max,
            busy_frames_per_second: plan.kernel.busy_frames_per_second,
            share: plan.kernel.share,
            ..Settings::default()
        };
        let stop = Arc::new(AtomicBool::new(false));
        let (lane, seed) = (plan.kernel.lane, plan.seed);
        Self { entropy, identity, settings, counters, stop, lane, handovers: 0, lanes: 0, seed }
    }

    /// A lane of its own for each worker; what an old one had begun is lost with it.
    fn lane(&mut self) -> Box<dyn Lane> {
        let number = self.lanes;
        self.lanes += 1;
        let entropy = Box::new(SeededEntropy::new(self.seed.rotate_left(32) ^ number));
        let mut random = Random::new(self.seed).fork(0x6c61_6e65 ^ number << 32);
        let LanePlan { hands, cost_ns, jobs_max } = self.lane;
        let cost = Box::new(move || random.range(0, cost_ns));
        let identity = Arc::clone(&self.identity);
        Box::new(InlineLane::with_cost(identity, entropy, hands, cost).with_room_for(jobs_max))
    }
}

/// A run with its workers.
pub(crate) struct Run {
    pub(crate) workers: Vec<Worker<SimDriver>>,
    /// Whose driver has the world.
    pub(crate) home: usize,
    /// How often a worker was not let run.
    pub(crate) pauses: u32,
    pub(crate) fabric: Fabric,
}

impl Run {
    fn go(&mut self, plan: Plan, lines: Option<Lines>) {
        let fabric = &mut self.fabric;
        let random = Random::new(plan.seed).fork(0x0077_6f72_6c64);
        let absent = SecretKey::generate(&mut fabric.entropy).public_key();
        let secrets: Vec<SecretKey> =
            plan.peers.iter().map(|_| SecretKey::generate(&mut fabric.entropy)).collect();
        let server = fabric.identity.public_key;
        let peers = plan.peers.iter().enumerate().map(|(index, peer)| {
            let secret = secrets[peer.identity].clone();
            Peer::new(
                index,
                peer.clone(),
                plan.is_healthy(index),
                secret,
                server,
                plan.seed << 8 ^ index as u64,
            )
        });
        let peers: Vec<Peer> = peers.collect();
        let (kernel, stops, workers) = (plan.kernel.clone(), plan.stops_with_sessions, plan.workers);
        let world = World::new(Ledger::new(plan), peers, absent, Log::new(lines), random.fork(1));
        let mut worlds: Vec<World> = (1..workers).map(|_| world.nowhere()).collect();
        worlds.insert(0, world);
        for (index, world) in worlds.into_iter().enumerate() {
            let driver = match SimDriver::new(world, index, kernel.clone(), random.fork(2 + index as u64)) {
                Ok(driver) => driver,
                Err(error) => panic!("no buffer memory: {error}"),
            };
            let (counters, stop) = (Arc::clone(&fabric.counters), Arc::clone(&fabric.stop));
            let worker = Worker::new(driver, 1, fabric.settings.clone(), fabric.lane(), counters, stop);
            self.workers.push(worker);
        }
        if workers > 1 { self.drive_several(stops) } else { self.drive(stops) }
    }

    /// Turns the worker until the plan is through or a promise is broken.
    fn drive(&mut self, stops_with_sessions: bool) {
        let mut batch = Batch::default();
        while let [worker] = &mut self.workers[..] {
            let turned = turn_worker(worker, &mut batch);
            let counters = &*self.fabric.counters;
            let world = &mut worker.driver().world;
            let now = world.now;
            if turned.is_err() {
                return world.ledger.fail(now, "the driver failed".into());
            }
            if counters.value(Counter::Turns) > TURNS_MAX {
                world.ledger.fail(now, format!("more than {TURNS_MAX} turns"));
            }
            if world.ledger.failure.is_some() {
                return;
            }
            if !std::mem::take(&mut world.is_interrupted) {
                continue;
            }
            if world.is_stop_due {
                return self.check_stop();
            }
            if std::mem::take(&mut world.is_handover_due) {
                self.hand_over(0);
                continue;
            }
            match world.phase {
                Phase::Settled => {
                    self.check_settled();
                    if stops_with_sessions {
                        return self.check_stop();
                    }
                }
                Phase::Over => return self.check_over(),
                Phase::Busy | Phase::Quiesce | Phase::Leave => {}
            }
        }
    }

    /// Freezes a worker, which has the world; another one goes on in its place.
    pub(crate) fn hand_over(&mut self, index: usize) {
        let mut worker = self.workers.remove(index);
        // Another event of the plan that falls into the freeze must not cut it short.
        worker.driver().world.is_freezing = true;
        let fabric = &mut self.fabric;
        fabric.handovers += 1;
        let (mut driver, frozen, team) = match worker.freeze_of_team() {
            Ok(parts) => parts,
            Err(error) => panic!("the worker was not frozen: {error}"),
        };
        driver.world.is_freezing = false;
        let bytes = frozen.expose().len();
        let now = driver.world.now;
        driver.world.log.note(now, Event::HandedOver { bytes });
        let (counters, stop) = (Arc::clone(&fabric.counters), Arc::clone(&fabric.stop));
        let (settings, lane) = (fabric.settings.clone(), fabric.lane());
        match Worker::thaw_in_team(&frozen, team, driver, 1, settings, lane, counters, stop) {
            Ok(worker) => self.workers.insert(index, worker),
            Err(error) => panic!("the worker was not thawed: {error}"),
        }
    }

    /// Everything outside the workers.
    pub(crate) fn world(&mut self) -> &mut World {
        &mut self.workers[self.home].driver().world
    }

    /// What all workers hold together.
    fn inspect(&mut self) -> Inspection {
        let mut sum = Inspection::default();
        for worker in &mut self.workers {
            let one = worker.inspect();
            sum.sessions += one.sessions;
            sum.halves += one.halves;
            sum.streams += one.streams;
            sum.timers += one.timers;
            sum.spans_queued += one.spans_queued;
            sum.pool_held_len += one.pool_held_len;
            sum.extra_len += one.extra_len;
            sum.charged = (sum.charged.0 + one.charged.0, sum.charged.1 + one.charged.1);
            // They share it.
            sum.directory = one.directory;
            sum.loans = (sum.loans.0 + one.loans.0, sum.loans.1 + one.loans.1);
        }
        sum
    }

    /// Streams are gone; sessions of those who live are up.
    pub(crate) fn check_settled(&mut self) {
        let (inspection, workers) = (self.inspect(), self.workers.len());
        let world = self.world();
        let now = world.now;
        let open = world.peers.iter().filter(|peer| peer.is_open()).count();
        let streams: usize = world.peers.iter().map(Peer::stream_count).sum();
        let healthy = (0..world.peers.len()).filter(|peer| world.ledger.plan.is_healthy(*peer)).count();
        let plan = &world.ledger.plan;
        // Of an smux client whose stream was reset for memory, see the ledger, the model waits as long as the client would.
        let rude = plan
            .peers
            .iter()
            .any(|peer| peer.character != Character::Honest || (plan.is_tight && peer.smux.is_some()));
        let mut wrong = Vec::new();
        if inspection.halves != 0 || inspection.streams != 0 {
            wrong.push(format!("{} halves and {} streams are left", inspection.halves, inspection.streams));
        }
        if inspection.spans_queued != 0 || inspection.pool_held_len != 0 || inspection.loans != (0, 0) {
            wrong.push(format!(
                "{} spans and {} bytes are held, {:?} loans",
                inspection.spans_queued, inspection.pool_held_len, inspection.loans
            ));
        }
        // One for each session at most, and of each worker one that tries to accept again, and those that look after extra credit
        // and free memory.
        if inspection.timers > inspection.sessions + 3 * workers {
            wrong.push(format!("{} timers for {} sessions", inspection.timers, inspection.sessions));
        }
        if inspection.extra_len + inspection.charged.0 != 0 {
            wrong.push(format!(
                "{} bytes of credit are granted to nobody, and holders are charged for {} bytes",
                inspection.extra_len, inspection.charged.0
            ));
        }
        if open < healthy || inspection.sessions < healthy {
            wrong.push(format!(
                "{open} sessions of {healthy} that must live, {} at the server",
                inspection.sessions
            ));
        }
        if streams != 0 && !rude {
            wrong.push(format!("{streams} streams are left at peers"));
        }
        if !wrong.is_empty() {
            world.ledger.fail(now, format!("not settled: {}", wrong.join("; ")));
        }
    }

    /// Everything is back where it was at the start.
    pub(crate) fn check_over(&mut self) {
        let inspection = self.inspect();
        let missing: usize = self.workers.iter_mut().map(|worker| worker.driver().pages_missing()).sum();
        let sockets: usize = self.workers.iter_mut().map(|worker| worker.driver().sockets_open()).sum();
        let mut wrong = Vec::new();
        for (opened, closed) in [
            (Counter::ConnectionsAccepted, Counter::ConnectionsClosed),
            (Counter::SessionsOpened, Counter::SessionsClosed),
            (Counter::StreamsOpened, Counter::StreamsClosed),
            (Counter::ForwardsOpened, Counter::ForwardsClosed),
            (Counter::BridgesOpened, Counter::BridgesClosed),
        ] {
            let (begun, ended) = (self.fabric.counters.value(opened), self.fabric.counters.value(closed));
            if begun != ended {
                wrong.push(format!("{} {begun}, {} {ended}", opened.name(), closed.name()));
            }
        }
        if inspection.sessions + inspection.directory + inspection.halves + sockets != 0 {
            wrong.push(format!(
                "{} sessions, {} directory entries, {} halves, {sockets} sockets",
                inspection.sessions, inspection.directory, inspection.halves
            ));
        }
        if inspection.spans_queued != 0
            || inspection.pool_held_len + inspection.extra_len + missing != 0
            || inspection.charged != (0, 0)
            || inspection.loans != (0, 0)
        {
            let (spans, held) = (inspection.spans_queued, inspection.pool_held_len);
            let (extra, charged, loans) = (inspection.extra_len, inspection.charged, inspection.loans);
            wrong.push(format!(
                "{spans} spans, {held} bytes held, {extra} granted, {missing} pages missing, {loans:?} loans, {charged:?} bytes and holders"
            ));
        }
        if !wrong.is_empty() {
            let world = self.world();
            let now = world.now;
            world.ledger.fail(now, format!("not back to the baseline: {}", wrong.join("; ")));
        }
    }

    /// A worker that is told to stop closes everything.
    fn check_stop(&mut self) {
        let [worker] = &mut self.workers[..] else { return };
        let counters = &*self.fabric.counters;
        worker.driver().world.ledger.is_ending = true;
        self.fabric.stop.store(true, Ordering::Release);
        if worker.run().is_err() {
            return;
        }
        let mut batch = Batch::default();
        // Until the last cancelled operation is home.
        for _ in 0..10_000 {
            // Whatever else was planned for the worker does not happen any more.
            worker.driver().world.is_interrupted = false;
            if worker.turn(&mut batch).is_err() || worker.driver().world.ledger.failure.is_some() {
                return;
            }
            if worker.driver().sockets_open() == 0
                && counters.value(Counter::ConnectionsAccepted) == counters.value(Counter::ConnectionsClosed)
            {
                break;
            }
        }
        self.check_over();
    }
}
