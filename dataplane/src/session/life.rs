//! How sessions begin and end: accept, timers, close.

use std::net::SocketAddr;

use ringwire_proto::frame::FrameReader;

use super::handshake::HALF_OPEN_FRAME_MAX;
use super::mux::Timeout;
use super::{HalfOpen, Phase, Session};
use crate::counters::Counter;
use crate::driver::{Driver, Nanos, SocketKey};
use crate::limits;
use crate::slab::Key;
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
    /// Too many connections were half open, and this was the oldest.
    HalfOpenLimit,
    /// A newer session of the same key took its place.
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
        if self.stopping || self.is_draining() {
            self.driver.close(socket);
            return;
        }
        let now = self.driver.now();
        let half_open = HalfOpen {
            reader: FrameReader::new(HALF_OPEN_FRAME_MAX),
            stash: Vec::new(),
            deferred: false,
            handshake: None,
        };
        let phase = Phase::Handshake(Box::new(half_open));
        let key = self.sessions.insert(Session::new(socket, peer_address, phase, now));
        self.file_socket(socket, key);
        self.half_open += 1;
        // The oldest leave within the handshake limit, so the list is bounded by the connections of five seconds.
        while self.half_open_order.front().is_some_and(|&oldest| !self.is_half_open(oldest)) {
            self.half_open_order.pop_front();
        }
        self.half_open_order.push_back(key);
        if self.half_open > limits::HALF_OPEN_MAX {
            self.close_oldest_half_open();
        }
        self.arm_session_timer(key);
        self.arm_receive(key);
    }

    fn close_oldest_half_open(&mut self) {
        while let Some(key) = self.half_open_order.pop_front() {
            if self.is_half_open(key) {
                self.close_session(key, CloseReason::HalfOpenLimit);
                return;
            }
        }
    }

    fn is_half_open(&self, key: Key) -> bool {
        self.sessions.find(key).is_some_and(|session| matches!(session.phase, Phase::Handshake(_)))
    }

    /// Makes the wheel fire when the session next has something to do by the clock.
    pub(crate) fn arm_session_timer(&mut self, key: Key) {
        let Some(session) = self.sessions.find_mut(key) else { return };
        let Some(due) = session_deadline(session) else { return };
        if due < session.timer_at {
            session.timer_at = self.wheel.schedule(due, Timer::Session(key));
        }
    }

    /// The session's entry in the wheel fired.
    pub(crate) fn session_timer(&mut self, key: Key, now: Nanos) {
        let Some(session) = self.sessions.find_mut(key) else { return };
        if session.timer_at > now {
            // A sooner deadline was scheduled and has been served; the entry of this one is still in the wheel.
            return;
        }
        session.timer_at = Nanos::MAX;
        match &session.phase {
            Phase::Handshake(_) if now >= session.accepted_at + limits::HANDSHAKE_TIMEOUT_NS => {
                self.counters.count(Counter::HandshakesTimedOut);
                self.close_session(key, CloseReason::HandshakeTimeout);
                return;
            }
            Phase::Handshake(_) => {}
            Phase::Open(_) => self.run_mux_timers(key, now),
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
                    tracing::info!(peer = %open.peer, %reason, "session dead");
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
        self.detach_session(key);
        let Some(session) = self.sessions.remove(key) else { return };
        match session.phase {
            Phase::Handshake(_) => self.half_open -= 1,
            Phase::Open(open) => {
                self.counters.count(Counter::SessionsClosed);
                tracing::info!(peer = %open.peer, ?reason, "session closed");
                self.tell_closed(key, session.peer_address, &open, reason);
            }
        }
        self.unfile_socket(session.socket);
        self.driver.close(session.socket);
    }

    /// Sends what is in the outbox, then closes.
    pub(crate) fn close_after_flush(&mut self, key: Key, reason: CloseReason) {
        self.detach_session(key);
        let Some(session) = self.sessions.find_mut(key) else { return };
        session.closing = Some(reason);
        self.mark(key);
    }

    /// Takes a session out of the directory and ends its streams: nobody waits for it from here on.
    fn detach_session(&mut self, key: Key) {
        let Some(open) = self.sessions.find(key).and_then(Session::open) else { return };
        let halves: Vec<Key> = open.mux.tags();
        // Identity-checked: the entry may be a newer session's already.
        if self.directory.get(&open.peer) == Some(&key) {
            let peer = open.peer;
            self.directory.remove(&peer);
        }
        for half in halves {
            self.lose_half(half);
        }
    }
}

fn session_deadline(session: &Session) -> Option<Nanos> {
    match &session.phase {
        Phase::Handshake(_) => Some(session.accepted_at + limits::HANDSHAKE_TIMEOUT_NS),
        Phase::Open(open) => open.mux.next_timeout(),
    }
}
