//! Stand-ins: what a worker has in its table of halves for a half of another worker.
//!
//! A half whose partner is elsewhere has a stand-in for a partner. What is *done to* a stand-in (bytes queued, finished, ended,
//! reset, its owner gone, credit returned) is noted here and goes out as letters once a turn ([`Worker::write_letters`]), in
//! the order that the bridge needs: what is queued first, then what ends it. A mailbox that is full leaves it all where it is:
//! the source gets no credit back meanwhile, so its window bounds what waits.

use std::sync::Arc;

use ringwire_exchange::WorkerIndex;
use ringwire_proto::identity::PublicKey;

use super::letter::{Dial, HOMEWARD_PER_LETTER, Letter, Parcel};
use super::{Outcome, Team};
use crate::bridge::{Half, State};
use crate::counters::{Counter, CounterBlock};
use crate::driver::{Driver, Nanos};
use crate::holders::Holders;
use crate::planted::{self, Bug};
use crate::queue::Nodes;
use crate::ring::{Pool, Span};
use crate::slab::{Key, Slab};
use crate::worker::Worker;

/// Behind which half of which worker a stand-in stands, and what that worker is yet to be told. See the module's head.
#[derive(Debug)]
pub(crate) struct StandIn {
    pub(crate) worker: WorkerIndex,
    /// The half there; `Key::NONE` until the dial is answered.
    pub(crate) half: Key,
    /// Whose half it is, for reports.
    pub(crate) peer: PublicKey,
    /// The dial that opens it, until it is answered.
    pub(crate) dialling: Option<Dialling>,
    /// The verified response, until it is with the other worker.
    pub(crate) answer: Option<Arc<[u8]>>,
    /// Bytes delivered for which the source has no credit yet.
    pub(crate) delivered: usize,
    pub(crate) owes: Owes,
    /// It is in the list of those that have something to tell.
    pub(crate) listed: bool,
    /// Bytes lent that are not delivered, and when that last became fewer.
    pub(crate) lent_len: usize,
    pub(crate) lent_since: Nanos,
    /// What the other worker said last: bytes that wait there, how long they waited for credit, and the credit of its peer.
    pub(crate) backlog: usize,
    pub(crate) blocked_ns: Nanos,
    pub(crate) window: usize,
}

/// A dial of another worker's session, until it is answered.
#[derive(Debug)]
pub(crate) struct Dialling {
    /// That of the session it is for.
    pub(crate) generation: u64,
    pub(crate) signed: Arc<[u8]>,
    /// The dial itself, until there was room for it.
    pub(crate) unsent: Option<Box<Dial>>,
}

/// What the other worker is yet to be told, behind what is queued.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Owes {
    pub(crate) finish: bool,
    pub(crate) finish_sent: bool,
    pub(crate) end: bool,
    /// True: unless its FIN is out.
    pub(crate) reset: Option<bool>,
    pub(crate) gone: bool,
}

impl StandIn {
    pub(crate) fn new(worker: WorkerIndex, half: Key, peer: PublicKey) -> Self {
        Self {
            worker,
            half,
            peer,
            dialling: None,
            answer: None,
            delivered: 0,
            owes: Owes::default(),
            listed: false,
            lent_len: 0,
            lent_since: 0,
            backlog: 0,
            blocked_ns: 0,
            window: 0,
        }
    }
}

/// What becomes of a stand-in after it was looked at.
enum Told {
    /// Everything; it stays.
    All,
    /// Everything, for good.
    Last,
    /// The mailbox is full.
    Parked,
}

impl<D: Driver> Worker<D> {
    /// A stand-in has something to tell.
    pub(crate) fn list_stand_in(&mut self, key: Key) {
        let Some(team) = &mut self.team else { return };
        let stand_in = self.halves.find_mut(key).and_then(|half| half.stand_in.as_deref_mut());
        if let Some(stand_in) = stand_in.filter(|stand_in| !stand_in.listed) {
            stand_in.listed = true;
            team.listed.push(key);
        }
    }

    /// Notes something that a stand-in's worker is to be told.
    pub(crate) fn owe(&mut self, key: Key, note: impl FnOnce(&mut StandIn)) {
        if let Some(stand_in) = self.halves.find_mut(key).and_then(|half| half.stand_in.as_deref_mut()) {
            note(stand_in);
            self.list_stand_in(key);
        }
    }

    /// The half behind a stand-in is to be reset, `unless_finished`: if its FIN is not out. What waits for it is dropped,
    /// and its partner here has none any more.
    pub(crate) fn reset_stand_in(&mut self, key: Key, unless_finished: bool) {
        let Some(half) = self.halves.find_mut(key) else { return };
        let owner = std::mem::replace(&mut half.partner, Key::NONE);
        (half.finish, half.state) = (true, State::Ending);
        self.holders.discharge(half.holder, half.queue.own_len());
        let dropped = half.queue.clear(&mut self.nodes, self.driver.pool());
        self.counters.add(Counter::BytesDropped, dropped as u64);
        let now = self.driver.now();
        if let Some(team) = &mut self.team {
            team.recall(now, half.stand_in.as_ref().map_or(0, |stand_in| stand_in.lent_len));
        }
        self.lose_partner(owner);
        self.owe(key, |stand_in| stand_in.owes.reset = Some(unless_finished));
    }

    /// A half's partner on another worker is gone, and so is its stand-in.
    pub(super) fn drop_stand_in(&mut self, owner: Key) {
        let Some(half) = self.halves.find(owner) else { return };
        let partner = half.partner;
        self.lose_partner(owner);
        if let Some(mut stand_in) = self.take_half(partner) {
            let dropped = stand_in.queue.clear(&mut self.nodes, self.driver.pool());
            self.counters.add(Counter::BytesDropped, dropped as u64);
        }
    }

    fn lose_partner(&mut self, owner: Key) {
        self.leave_bridge(owner);
        if let Some(half) = self.halves.find_mut(owner) {
            half.partner = Key::NONE;
        }
    }

    /// Once a turn, behind everything that may add to it: tells the other workers what there is to tell, as far as their
    /// mailboxes have room.
    pub(crate) fn write_letters(&mut self) {
        let now = self.driver.now();
        let Self { team, halves, nodes, driver, counters, holders, .. } = self;
        let Some(team) = team else { return };
        if !team.waiting.is_empty() {
            team.send_waiting();
        }
        team.send_decided();
        if !team.listed.is_empty() {
            let mut writer = Writer { halves, nodes, pool: driver.pool(), counters, holders, now };
            let mut listed = std::mem::take(&mut team.listed);
            listed.retain(|&key| writer.write_of(team, key));
            team.listed = listed;
        }
        send_home(team, driver.pool().homeward());
    }
}

impl<D: Driver> Worker<D> {
    /// Dials that found no room begin anew with the worker's successor: their requests are given to its lane.
    pub(crate) fn recall_dials(&mut self) {
        let unsent: Vec<Key> =
            self.halves.iter().filter(|(_, half)| has_unsent(half)).map(|(key, _)| key).collect();
        for key in unsent {
            let Some(mut entry) = self.take_half(key) else { continue };
            entry.queue.clear(&mut self.nodes, self.driver.pool());
            let signed =
                entry.stand_in.and_then(|stand_in| stand_in.dialling).map(|dialling| dialling.signed);
            if let Some(half) = self.halves.find_mut(entry.partner) {
                half.partner = Key::NONE;
                half.state = State::Request;
                half.verifying = signed;
            }
        }
    }
}

fn has_unsent(half: &Half) -> bool {
    let dialling = half.stand_in.as_ref().and_then(|stand_in| stand_in.dialling.as_ref());
    dialling.is_some_and(|dialling| dialling.unsent.is_some())
}

/// The parts of a worker that letters are made of.
struct Writer<'a> {
    halves: &'a mut Slab<Half>,
    nodes: &'a mut Nodes,
    pool: &'a mut Pool,
    counters: &'a CounterBlock,
    holders: &'a mut Holders,
    now: Nanos,
}

impl Writer<'_> {
    /// Tells what a stand-in has to tell; true when it must be looked at again.
    fn write_of(&mut self, team: &mut Team, key: Key) -> bool {
        match self.tell(team, key) {
            Told::Parked => {
                self.counters.count(Counter::LettersWaited);
                return true;
            }
            Told::Last => {
                if let Some(mut half) = self.halves.remove(key) {
                    self.holders.discharge(half.holder, half.held_len());
                    if half.is_dialling {
                        self.holders.end_dial(half.holder);
                    }
                    self.holders.remove_stream(half.holder);
                    let dropped = half.queue.clear(self.nodes, self.pool);
                    self.counters.add(Counter::BytesDropped, dropped as u64);
                }
            }
            Told::All => {
                if let Some(half) = self.halves.find_mut(key)
                    && let Some(stand_in) = &mut half.stand_in
                {
                    stand_in.listed = false;
                    half.blocked_since = None;
                }
            }
        }
        false
    }

    fn tell(&mut self, team: &mut Team, key: Key) -> Told {
        let owner = self.halves.find(key).map_or(Key::NONE, |half| half.partner);
        let (backlog, window, blocked_ns) = self.halves.find(owner).map_or((0, 0, 0), |owner| {
            let blocked_ns = owner.blocked_since.map_or(0, |since| self.now.saturating_sub(since));
            (owner.queue.len(), owner.window(), owner.blocked_ns + blocked_ns)
        });
        let Some(entry) = self.halves.find_mut(key) else { return Told::All };
        let Some(stand_in) = entry.stand_in.as_deref_mut() else { return Told::All };
        let (to, half) = (stand_in.worker, stand_in.half);
        if team.has_left(to) {
            self.holders.discharge(entry.holder, entry.queue.own_len());
            let dropped = entry.queue.clear(self.nodes, self.pool);
            self.counters.add(Counter::BytesDropped, dropped as u64);
            let is_orphan = owner == Key::NONE;
            return if is_orphan { Told::Last } else { Told::All };
        }
        if half == Key::NONE {
            let Some(dial) = stand_in.dialling.as_mut().and_then(|dialling| dialling.unsent.take()) else {
                // It is not answered: the stand-in is listed again then.
                return Told::All;
            };
            if owner == Key::NONE {
                return Told::Last;
            }
            return match team.send_parcel(to, Letter::Dial, Parcel::Dial(dial)) {
                Err(Parcel::Dial(unsent)) => {
                    if let Some(dialling) = &mut stand_in.dialling {
                        dialling.unsent = Some(unsent);
                    }
                    Told::Parked
                }
                Ok(()) | Err(Parcel::Answer(_)) => Told::All,
            };
        }
        if let Some(signed) = stand_in.answer.take()
            && let Err(signed) = team.send_answer(to, half, signed)
        {
            stand_in.answer = Some(signed);
            return Told::Parked;
        }
        if stand_in.delivered > 0 {
            // Truncation cannot be: what was delivered and what waits are bounded by a window.
            let (len, backlog) = (stand_in.delivered as u32, backlog as u32);
            if team.send(to, Letter::Delivered { half, len, backlog, blocked_ns }) == Outcome::Full {
                return Told::Parked;
            }
            stand_in.delivered = 0;
        }
        if planted::is(Bug::FinishBeforeLetters) && std::mem::take(&mut stand_in.owes.finish) {
            let _ = team.send(to, Letter::Finish { half });
        }
        while !entry.queue.is_empty() {
            if !team.has_room(to) {
                // What waits may be packed meanwhile, as for any destination that is blocked.
                entry.blocked_since.get_or_insert(self.now);
                return Told::Parked;
            }
            let Some(span) = entry.queue.pop(self.nodes, self.pool, usize::MAX) else { break };
            // The queue's reference is the loan's now.
            self.pool.lend_out(span);
            let sent = team.send(to, Letter::Payload { half, span, window: window as u64 });
            debug_assert_eq!(sent, Outcome::Sent, "there was room, and nobody else takes it");
            if stand_in.lent_len == 0 {
                stand_in.lent_since = self.now;
            }
            stand_in.lent_len += span.len();
            self.counters.add(Counter::BytesLent, span.len() as u64);
        }
        let owes = &mut stand_in.owes;
        for (is_due, letter) in [
            (&mut owes.finish, Letter::Finish { half }),
            (&mut owes.finish_sent, Letter::FinishSent { half }),
            (&mut owes.end, Letter::End { half }),
        ] {
            if *is_due {
                if team.send(to, letter) == Outcome::Full {
                    return Told::Parked;
                }
                *is_due = false;
            }
        }
        let last = match (owes.reset, owes.gone) {
            (Some(unless_finished), _) => Letter::Reset { half, unless_finished },
            (None, true) => Letter::Gone { half },
            (None, false) => return Told::All,
        };
        if team.send(to, last) == Outcome::Full { Told::Parked } else { Told::Last }
    }
}

/// Sends home what is to go there; what finds no room stays.
fn send_home(team: &mut Team, homeward: &mut Vec<(WorkerIndex, Span)>) {
    if homeward.is_empty() {
        return;
    }
    if homeward.iter().any(|&(lender, _)| lender != homeward[0].0) {
        homeward.sort_by_key(|&(lender, _)| lender);
    }
    let (mut at, mut kept) = (0, 0);
    while at < homeward.len() {
        let lender = homeward[at].0;
        let mut spans = [Span::default(); HOMEWARD_PER_LETTER];
        let mut count = 0;
        while count < HOMEWARD_PER_LETTER && homeward.get(at + count).is_some_and(|entry| entry.0 == lender) {
            spans[count] = homeward[at + count].1;
            count += 1;
        }
        if team.send(lender, Letter::Home { spans }) == Outcome::Full {
            homeward.copy_within(at..at + count, kept);
            kept += count;
        }
        at += count;
    }
    homeward.truncate(kept);
}

impl Team {
    /// Sends a parcel with the letter that announces it; gives it back when there is no room.
    pub(super) fn send_parcel(
        &mut self,
        to: WorkerIndex,
        letter: Letter,
        parcel: Parcel,
    ) -> Result<(), Parcel> {
        if !self.has_room(to) {
            return Err(parcel);
        }
        let Some(parcels) = &self.parcels_to[usize::from(to)] else { return Err(parcel) };
        // Before its letter: whoever reads that finds it.
        parcels.send(parcel).map_err(|unsent| unsent.0)?;
        let sent = self.send(to, letter);
        debug_assert_eq!(sent, Outcome::Sent, "there was room, and nobody else takes it");
        Ok(())
    }

    fn send_answer(&mut self, to: WorkerIndex, half: Key, signed: Arc<[u8]>) -> Result<(), Arc<[u8]>> {
        self.send_parcel(to, Letter::Answer { half }, Parcel::Answer(signed)).map_err(|parcel| match parcel {
            Parcel::Answer(signed) => signed,
            Parcel::Dial(_) => unreachable!("it is what was given"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_room_on_the_way_home_stays_and_nothing_doubles() {
        let mut all = Team::of(3);
        let span = |page: u64| Span::from_word(page << 32 | 100);
        // Worker 1 reads nothing: its mailbox fills with three spans a letter. Worker 2 is not held up by it.
        let mut homeward: Vec<(WorkerIndex, Span)> =
            (0..1000).map(|page| (1 + (page % 2) as u16, span(page))).collect();
        let mut homed = [Vec::new(), Vec::new()];
        for round in 0..10 {
            send_home(&mut all[0], &mut homeward);
            for reader in if round < 5 { 2..3 } else { 1..3 } {
                let homed = &mut homed[reader - 1];
                while let Some((from, words)) = all[reader].mailbox.receive() {
                    assert_eq!(from, 0);
                    let Letter::Home { spans } = Letter::decode(words) else { panic!("only loans go home") };
                    homed.extend(spans.into_iter().filter(|span| !span.is_empty()).map(Span::page));
                }
            }
            homeward.extend((0..100).map(|page| (1, span(2000 + 100 * round + page))));
        }
        send_home(&mut all[0], &mut homeward);
        assert!(homeward.is_empty());
        while let Some((_, words)) = all[1].mailbox.receive() {
            let Letter::Home { spans } = Letter::decode(words) else { panic!("only loans go home") };
            homed[0].extend(spans.into_iter().filter(|span| !span.is_empty()).map(Span::page));
        }
        for (homed, count) in homed.iter_mut().zip([1500, 500]) {
            assert_eq!(homed.len(), count);
            homed.sort_unstable();
            homed.dedup();
            assert_eq!(homed.len(), count);
        }
    }
}
