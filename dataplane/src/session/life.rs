//! How sessions begin and end: accept, timers, close.

use std::net::SocketAddr;

use ringwire_proto::identity::PublicKey;

use super::mux::Timeout;
use super::{HalfOpen, Phase, Session, Step};
use crate::counters::Counter;
use crate::driver::{Driver, Nanos, SocketKey};
use crate::holders::Name;
use crate::lane::Owner;
use crate::limits;
use crate::prefix::Prefix;
use crate::slab::Key;
use crate::warn;
use crate::worker::{Timer, Worker};

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// The peer closed the connection.
    PeerClosed,
    /// The connection failed with this errno.
    ConnectionFailed(i32),
    /// The session handshake failed.
    HandshakeFailed,
    /// The session handshake took too long.
    HandshakeTimeout,
    /// Too many connections were half open, or had too long a message 1, and this was the oldest of the largest address prefix.
    HalfOpenLimit,
    /// Descriptors were used up, and this was the oldest half-open connection of the largest address prefix.
    DescriptorLimit,
    /// Its address has as many sessions as it may.
    AddressLimit,
    /// Connections are scarce, and its address has more than its share of them.
    AddressShare,
    /// The handshake lane had no room.
    LaneFull,
    /// It gave no sign of life, and another session of the same key took its place; or too many stood by.
    Displaced,
    /// The peer broke the rules of the multiplexer.
    Violation,
    /// The peer stopped answering.
    Dead,
    /// An operator asked for it.
    Ordered,
    /// The server stops.
    Stopping,
}

impl<D: Driver> Worker<D> {
    /// A connection was accepted.
    pub(crate) fn begin_session(&mut self, socket: SocketKey, peer_address: SocketAddr) {
        self.counters.count(Counter::ConnectionsAccepted);
        self.connections += 1;
        if self.stopping || self.is_draining() {
            self.driver.close(socket);
            return;
        }
        let now = self.driver.now();
        if self.connections > self.settings.connections_max && !self.make_room(peer_address) {
            self.counters.count(Counter::RefusedDescriptors);
            if let Some(suppressed) = self.warnings.admit(warn::Kind::DescriptorLimit, now) {
                let limit = self.settings.connections_max;
                tracing::warn!(
                    limit,
                    suppressed,
                    "as many connections as there are descriptors for: closed at once (raise the limit of open files, `ulimit -n`)"
                );
            }
            self.driver.close(socket);
            return;
        }
        let phase = Phase::Handshake(Box::new(HalfOpen::new()));
        let key = self.sessions.insert(Session::new(socket, peer_address, phase, now));
        self.file_socket(socket, key);
        let place = self.half_open.push(Prefix::from(peer_address.ip()), key);
        if let Some(Phase::Handshake(half_open)) =
            self.sessions.find_mut(key).map(|session| &mut session.phase)
        {
            half_open.place = place;
        }
        if self.half_open.len() > self.settings.half_open_max() {
            self.evict_half_open(CloseReason::HalfOpenLimit);
            if let Some(suppressed) = self.warnings.admit(warn::Kind::HalfOpenLimit, now) {
                let limit = self.settings.half_open_max();
                tracing::warn!(
                    limit,
                    suppressed,
                    "too many half-open connections: the oldest of the largest address prefix are closed"
                );
            }
        }
        self.arm_session_timer(key);
        self.arm_receive(key);
    }

    /// All connections are in use: somebody else's goes. False: nobody's can.
    fn make_room(&mut self, peer_address: SocketAddr) -> bool {
        // Strangers first if there are many; the few are those who have just come, like this one.
        let is_flood = self.half_open.len() >= self.settings.connections_max / 8;
        (is_flood && self.evict_half_open(CloseReason::DescriptorLimit))
            || self.evict_idle(Prefix::from(peer_address.ip()))
            || self.evict_half_open(CloseReason::DescriptorLimit)
    }

    /// Closes the oldest half-open connection of the address prefix with the most of them; false when there is none.
    fn evict_half_open(&mut self, reason: CloseReason) -> bool {
        let Some(key) = self.half_open.next_to_go() else { return false };
        self.counters.count(Counter::HalfOpenEvicted);
        self.close_session(key, reason);
        true
    }

    /// Makes the wheel fire when the session next has something to do by the clock.
    pub(crate) fn arm_session_timer(&mut self, key: Key) {
        let Some(session) = self.sessions.find_mut(key) else { return };
        let Some(due) = session_deadline(session) else { return };
        if due < session.timer_at {
            self.wheel.cancel(session.timer);
            (session.timer_at, session.timer) = self.wheel.schedule(due, Timer::Session(key));
        }
    }

    /// The session's entry in the wheel fired.
    pub(crate) fn session_timer(&mut self, key: Key, now: Nanos) {
        let Some(session) = self.sessions.find_mut(key) else { return };
        session.timer_at = Nanos::MAX;
        match &session.phase {
            Phase::Handshake(_) if now >= session.accepted_at + limits::HANDSHAKE_TIMEOUT_NS => {
                self.counters.count(Counter::HandshakesTimedOut);
                self.close_session(key, CloseReason::HandshakeTimeout);
                return;
            }
            Phase::Handshake(_) => {}
            Phase::Established(_) => {
                self.run_mux_timers(key, now);
                self.look_at_stall(key, now);
                self.look_at_rival(key, now);
            }
        }
        self.arm_session_timer(key);
    }

    fn run_mux_timers(&mut self, key: Key, now: Nanos) {
        while let Some(open) = self.sessions.find_mut(key).and_then(Session::open_mut) {
            match open.mux.handle_timeout(now) {
                None => break,
                Some(Timeout::StreamTimedOut(tag)) => {
                    if let Some(half) = tag {
                        self.remove_half(half);
                    }
                }
                Some(Timeout::SessionDead(reason)) => {
                    self.counters.count(Counter::SessionsDead);
                    if let Some(suppressed) = self.warnings.admit(warn::Kind::SessionDead, now) {
                        tracing::info!(peer = %open.peer, %reason, suppressed, "session dead");
                    }
                    self.close_session(key, CloseReason::Dead);
                    return;
                }
            }
        }
        self.mark(key);
    }

    /// Ends a session: its streams, its place in the directory, its connection. What is with the kernel completes as
    /// cancelled and finds nobody.
    pub(crate) fn close_session(&mut self, key: Key, reason: CloseReason) {
        self.detach_session(key, reason);
        let Some(session) = self.sessions.remove(key) else { return };
        self.wheel.cancel(session.timer);
        let peer = session.open().map(|open| open.peer);
        match session.phase {
            Phase::Handshake(half_open) => {
                self.half_open.remove(half_open.place);
                self.long_stashes.remove(half_open.long);
                if half_open.is_in_lane() {
                    self.lane.cancel(Owner::Session(key));
                }
                if matches!(half_open.step, Step::Proving) {
                    self.proof_ends();
                }
            }
            Phase::Established(mut open) => {
                self.counters.count(Counter::SessionsClosed);
                self.holders.leave(open.holder);
                self.crowd.leave(Prefix::from(session.peer_address.ip()));
                open.rest.spans().clear(&mut self.nodes, self.driver.pool());
                if self.settings.sessions_per_address.is_some() {
                    self.by_address.leave(Prefix::from(session.peer_address.ip()), &open.peer);
                }
                if let Some(suppressed) = self.warnings.admit(warn::Kind::SessionClosed, self.driver.now()) {
                    tracing::info!(peer = %open.peer, ?reason, suppressed, "session closed");
                }
                self.tell_closed(key, session.peer_address, &open, reason);
            }
        }
        self.unfile_socket(session.socket);
        self.driver.close(session.socket);
        if let Some(peer) = peer {
            self.decide_contested(&peer);
        }
    }

    /// Sends what is in the outbox, then closes.
    pub(crate) fn close_after_flush(&mut self, key: Key, reason: CloseReason) {
        self.detach_session(key, reason);
        let Some(session) = self.sessions.find_mut(key) else { return };
        session.closing = Some(reason);
        let peer = session.open().map(|open| open.peer);
        self.mark(key);
        if let Some(peer) = peer {
            self.decide_contested(&peer);
        }
    }

    /// Whoever a session is of holds what its streams hold.
    pub(crate) fn enter_holder(&mut self, key: Key) {
        let Some(session) = self.sessions.find_mut(key) else { return };
        let prefix = Prefix::from(session.peer_address.ip());
        let Some(open) = session.open_mut() else { return };
        self.crowd.enter(prefix);
        open.holder = self.holders.enter(Name { prefix, peer: open.peer });
    }

    /// The session of a key, if this worker has it.
    pub(crate) fn session_by_key(&self, peer: &PublicKey) -> Option<Key> {
        let place = self.directory.find(peer).filter(|place| place.worker == self.index)?;
        Some(Key::from_number(place.session))
    }

    /// Takes a session out of the directory and ends its streams: nobody waits for it from here on.
    fn detach_session(&mut self, key: Key, reason: CloseReason) {
        let Some(open) = self.sessions.find(key).and_then(Session::open) else { return };
        let halves: Vec<Key> = open.mux.tags();
        self.leave_directory(key, reason);
        for half in halves {
            self.lose_half(half);
        }
    }
}

fn session_deadline(session: &Session) -> Option<Nanos> {
    match &session.phase {
        Phase::Handshake(_) => Some(session.accepted_at + limits::HANDSHAKE_TIMEOUT_NS),
        Phase::Established(open) => {
            let rival = open.rival.map(|rival| rival.due);
            open.mux.next_timeout().into_iter().chain(open.stall.due()).chain(rival).min()
        }
    }
}
