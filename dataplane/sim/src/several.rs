//! A run with several workers in one virtual time.
//!
//! In: a run whose workers are made. Out: its verdict in the ledger. Workers take turns one after another, in an order that the
//! seed draws among those that have something to do; a turn is indivisible here, so what these runs look at is the order of
//! turns and letters, not that of single memory accesses (which loom does). The world is with the driver of the worker whose
//! turn it is. Time passes when nobody has anything to do.

use std::sync::atomic::Ordering;

use ringwire_dataplane::WakeEvent;
use ringwire_dataplane::counters::Counter;
use ringwire_dataplane::driver::{Batch, Nanos, Wait};
use ringwire_dataplane::team::Team;
use ringwire_netem::Random;

use crate::plan::{KernelPlan, PAUSES_MAX};
use crate::run::{Run, TURNS_MAX};
use crate::world::Phase;

/// What a worker waits for.
struct Seat {
    wait: Wait,
    event: WakeEvent,
    woken: bool,
    /// The machine does not let it run before.
    paused_until: Nanos,
    /// It was told to stop, and has closed its sessions.
    has_stopped: bool,
}

/// Turns without a completion or an event of the world in between after which the workers count as spinning.
const SPINNING_TURNS: u32 = 20_000;

/// Turns that workers may take to end.
const STOPPING_TURNS: u32 = 40_000;

impl Run {
    /// Turns the workers until the plan is through or a promise is broken.
    pub(crate) fn drive_several(&mut self, stops_with_sessions: bool) {
        let mut random = Random::new(self.fabric.seed).fork(0x7465_616d);
        let mut seats = self.take_seats();
        let mut batch = Batch::default();
        while self.world().ledger.failure.is_none() {
            self.step_several(&mut seats, &mut random, &mut batch);
            let turns = self.fabric.counters.value(Counter::Turns);
            let world = self.world();
            if turns > TURNS_MAX {
                let now = world.now;
                world.ledger.fail(now, format!("more than {TURNS_MAX} turns"));
            }
            if world.ledger.failure.is_some() || !std::mem::take(&mut world.is_interrupted) {
                continue;
            }
            if world.is_stop_due {
                return self.stop_several(&mut seats, &mut random, &mut batch);
            }
            if std::mem::take(&mut world.is_handover_due) {
                let index = random.below(seats.len() as u64) as usize;
                self.hold(index);
                self.hand_over(index);
                self.begin(&mut seats, index);
                continue;
            }
            match world.phase {
                Phase::Settled => {
                    self.check_settled();
                    if stops_with_sessions {
                        return self.stop_several(&mut seats, &mut random, &mut batch);
                    }
                }
                Phase::Over => return self.check_over(),
                Phase::Busy | Phase::Quiesce | Phase::Leave => {}
            }
        }
    }

    fn take_seats(&mut self) -> Vec<Seat> {
        let event = || match WakeEvent::new() {
            Ok(event) => event,
            Err(error) => panic!("no descriptors for the workers' wake-ups: {error}"),
        };
        let events: Vec<WakeEvent> = self.workers.iter().map(|_| event()).collect();
        let wakers: Vec<_> = events.iter().map(WakeEvent::waker).collect();
        for (worker, mut team) in self.workers.iter_mut().zip(Team::of(events.len() as u16)) {
            team.set_wakers(wakers.clone());
            worker.join(team);
        }
        let wait = Wait { until: None, company_us: 0, poll: true };
        let seat = |event| Seat { wait, event, woken: false, paused_until: 0, has_stopped: false };
        let mut seats: Vec<Seat> = events.into_iter().map(seat).collect();
        for index in 0..seats.len() {
            self.begin(&mut seats, index);
        }
        seats
    }

    /// Gives the world to a worker's driver.
    fn hold(&mut self, index: usize) {
        if index == self.home {
            return;
        }
        let (low, high) = (index.min(self.home), index.max(self.home));
        let (front, back) = self.workers.split_at_mut(high);
        std::mem::swap(&mut front[low].driver().world, &mut back[0].driver().world);
        self.home = index;
    }

    /// One worker's turn if any has something to do, else an event of the world.
    fn step_several(&mut self, seats: &mut [Seat], random: &mut Random, batch: &mut Batch) {
        let now = self.world().now;
        let mut due = Vec::new();
        for (index, (worker, seat)) in self.workers.iter_mut().zip(&*seats).enumerate() {
            let wait = seat.wait;
            let is_due = seat.woken
                || wait.poll
                || wait.until.is_some_and(|until| until <= now)
                || worker.driver().has_news(now, wait.company_us);
            if is_due && seat.paused_until <= now {
                due.push(index);
            }
        }
        if due.is_empty() {
            return self.pass_time(seats);
        }
        let index = *random.pick(&due);
        self.hold(index);
        self.workers[index].driver().leave(batch);
        let spins = self.world().count_turn(!batch.completions.is_empty());
        seats[index].woken = false;
        self.workers[index].finish_turn(batch);
        for seat in &mut *seats {
            seat.woken |= seat.event.clear();
        }
        self.begin(seats, index);
        let KernelPlan { pauses, pause_ns, .. } = self.world().ledger.plan.kernel;
        if self.pauses < PAUSES_MAX && random.chance(pauses) {
            self.pauses += 1;
            seats[index].paused_until = self.world().now + random.range(0, pause_ns);
        }
        if spins > SPINNING_TURNS {
            self.world().ledger.fail(now, "the workers spin: they turn and turn, and nothing happens".into());
        }
    }

    /// A worker's next turn up to its wait.
    fn begin(&mut self, seats: &mut [Seat], index: usize) {
        self.hold(index);
        seats[index].wait = self.workers[index].begin_turn();
        self.workers[index].driver().enter();
        self.settle_deferred();
    }

    /// Events of other workers than the one that let them happen.
    fn settle_deferred(&mut self) {
        while !self.world().deferred.is_empty() {
            let wake = self.world().deferred.remove(0);
            if let Some(worker) = self.world().worker_of(wake) {
                self.hold(worker);
                self.workers[worker].driver().take(wake);
            }
        }
    }

    fn pass_time(&mut self, seats: &[Seat]) {
        let mut until: Option<Nanos> = None;
        for (worker, seat) in self.workers.iter_mut().zip(seats) {
            let is_awake = (seat.woken || seat.wait.poll).then_some(0);
            let news_at = worker.driver().news_at(seat.wait.company_us);
            for at in [is_awake, seat.wait.until, news_at].into_iter().flatten() {
                let at = at.max(seat.paused_until);
                until = Some(until.map_or(at, |until| until.min(at)));
            }
        }
        let world = self.world();
        match (world.next_event(), until) {
            (Some(at), until) if until.is_none_or(|until| at <= until) => {
                self.workers[self.home].driver().step();
                self.settle_deferred();
                self.world().count_event();
            }
            (_, Some(until)) => world.now = world.now.max(until),
            (_, None) => {
                let now = world.now;
                world.ledger.fail(now, "nothing will ever happen again".into());
            }
        }
    }

    /// Workers that are told to stop close everything, and give back what they have of each other.
    fn stop_several(&mut self, seats: &mut [Seat], random: &mut Random, batch: &mut Batch) {
        self.world().ledger.is_ending = true;
        self.fabric.stop.store(true, Ordering::Release);
        for seat in &mut *seats {
            seat.woken = true;
        }
        for _ in 0..STOPPING_TURNS {
            // Whatever else was planned for the workers does not happen any more.
            self.world().is_interrupted = false;
            self.step_several(seats, random, batch);
            if self.world().ledger.failure.is_some() {
                return;
            }
            for (index, seat) in seats.iter_mut().enumerate() {
                if self.workers[index].is_stopping() && !seat.has_stopped {
                    self.hold(index);
                    self.workers[index].close_all();
                    // Between the halves of a turn: the next one is due for what that asked of the driver.
                    (seat.has_stopped, seat.woken) = (true, true);
                }
            }
            let is_over = |worker: &mut ringwire_dataplane::worker::Worker<_>| {
                // A real worker does not wait for what it lent: its memory stays as long as others read it. Here all is counted.
                worker.is_stopping() && worker.may_leave() && worker.inspect().loans == (0, 0)
            };
            if seats.iter().all(|seat| seat.has_stopped) && self.workers.iter_mut().all(is_over) {
                break;
            }
        }
        self.check_over();
    }
}
