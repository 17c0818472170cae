//! A worker's half of the channel to the control plane: commands in, events out, never a wait.
//!
//! ```text
//!   control ──► commands ──► read_commands ──► sessions, settings, listings
//!   control ◄── events   ◄── tell_opened, tell_closed, listings, answers      (dropped and counted when nobody reads)
//! ```
//!
//! A worker without a control plane does none of this. One whose control plane breaks the rules of shared memory cuts the
//! channel, counts it, and goes on; the next attach brings a fresh one. The rings are `ringwire_ipc`'s.

use std::collections::VecDeque;
use std::net::SocketAddr;

use ringwire_ipc::Fault;
use ringwire_ipc::channel::WorkerEnd;
use ringwire_ipc::message::{
    Answer, BridgeNote, Command, Event, HybridPolicy, Order, PeerKey, Reason, SessionNote, Setting,
};
use ringwire_proto::identity::PublicKey;
use ringwire_proto::noise::Hybrid;

use crate::counters::Counter;
use crate::driver::{Driver, Wait};
use crate::limits;
use crate::mail::Limit;
use crate::session::{CloseReason, Established};
use crate::slab::Key;
use crate::team::Team;
use crate::worker::Worker;

/// The worker's end of a channel, and the listings under way.
#[derive(Debug)]
pub(crate) struct Link {
    end: Box<WorkerEnd>,
    /// In order of arrival; the first is being answered.
    listings: VecDeque<Listing>,
    /// Events the ring had no room for are not yet said to be lost.
    behind: bool,
}

/// A listing under way: it goes through the table place by place, a few in each turn.
#[derive(Debug, Clone, Copy)]
struct Listing {
    request: u64,
    of: Table,
    next: usize,
    listed: u64,
}

#[derive(Debug, Clone, Copy)]
enum Table {
    Sessions,
    Bridges,
}

impl<D: Driver> Worker<D> {
    /// Speaks with a new control plane; what the former one had not read is gone with its rings.
    pub(crate) fn attach(&mut self, end: Box<WorkerEnd>) {
        self.link = Some(Link { end, listings: VecDeque::new(), behind: false });
    }

    pub(crate) fn detach(&mut self) {
        self.link = None;
    }

    /// Says that the worker is about to wait, and shortens the wait if something of the channel is due.
    pub(crate) fn before_wait(&mut self, wait: &mut Wait) {
        let now = self.driver.now();
        let Some(link) = &mut self.link else { return };
        let retry = match (link.listings.is_empty(), link.behind) {
            (false, _) => Some(limits::LISTING_RETRY_NS),
            (true, true) => Some(limits::RESYNC_RETRY_NS),
            (true, false) => None,
        };
        if let Some(retry) = retry {
            let at = now + retry;
            wait.until = Some(wait.until.map_or(at, |until| until.min(at)));
        }
        if !wait.poll && link.end.announce_sleep() {
            wait.poll = true;
        }
    }

    pub(crate) fn after_wait(&mut self) {
        if let Some(link) = &mut self.link {
            link.end.withdraw_sleep();
        }
    }

    /// Once a turn, after everything else: wakes the control plane for what it was told.
    pub(crate) fn ring_control(&mut self) {
        if let Some(link) = &mut self.link {
            link.end.ring();
        }
    }

    /// Takes commands, at most so many a turn, and goes on with the listings.
    pub(crate) fn read_commands(&mut self) {
        for _ in 0..limits::COMMANDS_PER_TURN_MAX {
            let Some(link) = &mut self.link else { return };
            match link.end.command() {
                Ok(None) => break,
                Ok(Some(command)) => self.obey(command),
                Err(fault) => return self.cut_link(fault),
            }
        }
        self.continue_listing();
        let Some(link) = &mut self.link else { return };
        if link.behind {
            match link.end.flush_resync() {
                Ok(said) => link.behind = !said,
                Err(fault) => self.cut_link(fault),
            }
        }
    }

    fn obey(&mut self, Command { request, order }: Command) {
        let answer = match order {
            Order::ListSessions => return self.begin_listing(request, Table::Sessions),
            Order::ListBridges => return self.begin_listing(request, Table::Bridges),
            Order::CloseSession(peer) => self.close_by_key(peer),
            Order::Drain { deadline_ns } => {
                self.drain(deadline_ns);
                Answer::Done(self.sessions.len() as u64)
            }
            Order::Change(setting) => {
                self.change(setting);
                Answer::Done(0)
            }
        };
        self.tell(&Event::Answered { request, answer });
    }

    fn close_by_key(&mut self, peer: PeerKey) -> Answer {
        // What is no point of the curve has no session either.
        let session = PublicKey::from_bytes(peer.as_bytes()).ok().and_then(|peer| self.session_by_key(&peer));
        let Some(key) = session else { return Answer::NotFound };
        self.close_session(key, CloseReason::Ordered);
        Answer::Done(1)
    }

    pub(crate) fn change(&mut self, setting: Setting) {
        tracing::info!(?setting, "setting changed");
        match setting {
            Setting::Hybrid(policy) => {
                self.settings.hybrid = match policy {
                    HybridPolicy::Off => Hybrid::Off,
                    HybridPolicy::Offer => Hybrid::Offer,
                    HybridPolicy::Require => Hybrid::Require,
                };
            }
            Setting::CompanyUsMax(value) => {
                self.settings.company_us_max = value;
                self.wait.set_company_us_max(value);
            }
            Setting::PauseUsMax(value) => {
                self.settings.pause_us_max = value;
                self.coalescer.set_pause_us_max(value);
            }
            Setting::BudgetLen(len) => {
                let workers = self.team.as_ref().map_or(1, Team::worker_count);
                self.budget.set_limit(usize::try_from(len).unwrap_or(usize::MAX) / workers);
            }
        }
    }

    fn begin_listing(&mut self, request: u64, of: Table) {
        let Some(link) = &mut self.link else { return };
        if link.listings.len() >= limits::LISTINGS_MAX {
            return self.tell(&Event::Answered { request, answer: Answer::Refused });
        }
        link.listings.push_back(Listing { request, of, next: 0, listed: 0 });
    }

    /// Adds entries to the event ring while there is room. What opens or ends meanwhile is told as it happens, so a reader
    /// that takes all events in order ends with the true table.
    fn continue_listing(&mut self) {
        let Some(mut link) = self.link.take() else { return };
        let mut told = 0;
        while let Some(mut listing) = link.listings.front().copied() {
            let places = match listing.of {
                Table::Sessions => self.sessions.places(),
                Table::Bridges => self.halves.places(),
            };
            let event = if listing.next < places {
                self.list_entry(&listing)
            } else {
                let answer = Answer::Done(listing.listed);
                Some(Event::Answered { request: listing.request, answer })
            };
            if let Some(event) = event {
                if told == limits::LISTED_PER_TURN_MAX {
                    break;
                }
                match link.end.event_if_room(&event, limits::LISTING_ROOM_MIN) {
                    Ok(true) => told += 1,
                    Ok(false) => break,
                    Err(fault) => {
                        self.link = Some(link);
                        return self.cut_link(fault);
                    }
                }
            }
            if listing.next >= places {
                link.listings.pop_front();
                continue;
            }
            listing.listed += u64::from(event.is_some());
            listing.next += 1;
            link.listings[0] = listing;
        }
        self.link = Some(link);
    }

    /// What a listing says of its next place.
    fn list_entry(&self, listing: &Listing) -> Option<Event> {
        let request = listing.request;
        match listing.of {
            Table::Sessions => {
                let (key, session) = self.sessions.at(listing.next)?;
                let session = self.note(key, session.peer_address, session.open()?);
                Some(Event::Listed { request, session })
            }
            Table::Bridges => {
                let (key, half) = self.halves.at(listing.next)?;
                let report = self.bridge_report(key, half)?;
                // A queue is bounded by the stream's window, far below 2^32.
                let queued = |queued: usize| u32::try_from(queued).unwrap_or(u32::MAX);
                let bridge = BridgeNote {
                    source: peer_key(&report.source),
                    destination: peer_key(&report.destination),
                    forth: report.forth.bytes,
                    back: report.back.bytes,
                    forth_queued: queued(report.forth.queued),
                    back_queued: queued(report.back.queued),
                    forth_limited: report.forth.limited_by == Limit::ReceiverWindow,
                    back_limited: report.back.limited_by == Limit::ReceiverWindow,
                    since_ns: report.since,
                };
                Some(Event::Bridged { request, bridge })
            }
        }
    }

    /// A session was authenticated.
    pub(crate) fn tell_opened(&mut self, key: Key) {
        if self.link.is_none() {
            return;
        }
        let Some(session) = self.sessions.find(key) else { return };
        let Some(open) = session.open() else { return };
        let event = Event::Opened(self.note(key, session.peer_address, open));
        self.tell(&event);
    }

    /// An authenticated session has ended.
    pub(crate) fn tell_closed(
        &mut self,
        key: Key,
        address: SocketAddr,
        open: &Established,
        reason: CloseReason,
    ) {
        if self.link.is_none() {
            return;
        }
        let mut session = self.note(key, address, open);
        session.stands_by = false;
        session.at_ns = self.driver.now();
        self.tell(&Event::Closed(session, event_reason(reason)));
    }

    fn note(&self, key: Key, address: SocketAddr, open: &Established) -> SessionNote {
        SessionNote {
            session: key.number(),
            peer: peer_key(&open.peer),
            address,
            hybrid: open.hybrid,
            stands_by: self.stands_by(open),
            at_ns: open.opened_at,
        }
    }

    fn tell(&mut self, event: &Event) {
        let Some(link) = &mut self.link else { return };
        match link.end.event(event) {
            Ok(true) => {}
            Ok(false) => {
                link.behind = true;
                self.counters.count(Counter::EventsDropped);
            }
            Err(fault) => self.cut_link(fault),
        }
    }

    fn cut_link(&mut self, fault: Fault) {
        self.counters.count(Counter::ChannelFaults);
        tracing::error!(%fault, "the control plane broke the rules of shared memory; its channel is cut. Restart it");
        if let Some(link) = self.link.take() {
            link.end.hang_up();
        }
    }
}

#[allow(clippy::expect_used, reason = "a local invariant: a point's compressed form begins with 2 or 3")]
fn peer_key(key: &PublicKey) -> PeerKey {
    PeerKey::new(*key.as_bytes()).expect("a compressed public key has that form")
}

fn event_reason(reason: CloseReason) -> Reason {
    match reason {
        CloseReason::PeerClosed => Reason::PeerClosed,
        CloseReason::ConnectionFailed(errno) => Reason::ConnectionFailed(errno),
        CloseReason::Displaced => Reason::Displaced,
        CloseReason::Violation => Reason::Violation,
        CloseReason::Dead => Reason::Dead,
        CloseReason::Ordered => Reason::Ordered,
        CloseReason::AddressShare => Reason::AddressShare,
        // The others end a connection before it is a session, of which no event speaks.
        CloseReason::Stopping
        | CloseReason::HandshakeFailed
        | CloseReason::HandshakeTimeout
        | CloseReason::HalfOpenLimit
        | CloseReason::DescriptorLimit
        | CloseReason::AddressLimit
        | CloseReason::LaneFull => Reason::Stopping,
    }
}
