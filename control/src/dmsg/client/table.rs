//! The sessions of a client, one per server: who is there, how good each is, which are to go.
//!
//! In: sessions that came about or ended, outcomes of pings, the time. Out: sessions in the order of their worth. Held
//! under a lock that is never kept across I/O (control-plane 4.2).
//!
//! The newest session of a server wins, and only the session that is filed can take its entry away (control-plane 4.1).

use std::collections::HashMap;
use std::time::Duration;

use ringwire_proto::identity::PublicKey;
use tokio::time::Instant;

use crate::dmsg::address::ServerAddress;
use crate::dmsg::session::Session;

/// Failures in a row that end a session (dmsg-wire 15).
const PING_FAILURES_MAX: u32 = 2;

/// Looks in a row without a stream after which a surplus session is closed (control-plane 4.3).
const IDLE_LOOKS: u32 = 2;

#[derive(Default)]
pub(super) struct Table {
    seats: HashMap<PublicKey, Seat>,
    last_number: u64,
    closed: bool,
}

/// A session's place.
pub(super) struct Seat {
    pub(super) session: Session,
    pub(super) server: ServerAddress,
    /// Tells this session from an earlier or later one with the same server.
    pub(super) number: u64,
    pub(super) since: Instant,
    pub(super) pulse: Pulse,
    /// A dial over it met silence: a new session is to replace it.
    pub(super) stale: bool,
    next_ping: Option<Instant>,
    ping_failures: u32,
    idle_looks: u32,
}

/// What is known of a session's life (dmsg-wire 10.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pulse {
    /// The first ping is under way.
    Unknown,
    /// The last answer took so long.
    Answers(Duration),
    /// Quirk: a server of 2024 never answers and keeps the ping's stream, so it is asked once only.
    Mute,
}

/// A session, by server and number.
pub(super) type SessionId = (PublicKey, u64);

impl Table {
    /// Files a session; `None` when the client was closed meanwhile. Returns its number, and the session it replaced.
    pub(super) fn install(
        &mut self,
        server: ServerAddress,
        session: Session,
        now: Instant,
    ) -> Option<(u64, Option<Session>)> {
        if self.closed {
            return None;
        }
        self.last_number += 1;
        let seat = Seat {
            session,
            number: self.last_number,
            since: now,
            pulse: Pulse::Unknown,
            stale: false,
            next_ping: Some(now),
            ping_failures: 0,
            idle_looks: 0,
            server,
        };
        let displaced = self.seats.insert(seat.server.key, seat);
        Some((self.last_number, displaced.map(|seat| seat.session)))
    }

    /// Takes a session out, if it is still the one filed.
    pub(super) fn remove(&mut self, (server, number): SessionId) -> Option<Seat> {
        self.seats.get(&server).filter(|seat| seat.number == number)?;
        self.seats.remove(&server)
    }

    /// Takes everything out and files nothing any more.
    pub(super) fn close(&mut self) -> Vec<Session> {
        self.closed = true;
        self.seats.drain().map(|(_, seat)| seat.session).collect()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    pub(super) fn get(&self, server: &PublicKey) -> Option<&Seat> {
        self.seats.get(server)
    }

    pub(super) fn len(&self) -> usize {
        self.seats.len()
    }

    /// Sessions that no dial found silent.
    pub(super) fn healthy(&self) -> usize {
        self.seats.values().filter(|seat| !seat.stale).count()
    }

    pub(super) fn is_healthy(&self, server: &PublicKey) -> bool {
        self.seats.get(server).is_some_and(|seat| !seat.stale)
    }

    /// The fastest first; those whose pulse is not known behind.
    pub(super) fn by_latency(&self) -> Vec<&Seat> {
        let mut seats: Vec<&Seat> = self.seats.values().collect();
        seats.sort_by_key(|seat| {
            let latency = match seat.pulse {
                Pulse::Answers(latency) => latency,
                Pulse::Unknown | Pulse::Mute => Duration::MAX,
            };
            (seat.stale, latency, seat.number)
        });
        seats
    }

    /// Keys of the servers, in order: what an entry delegates to.
    pub(super) fn delegated(&self) -> Vec<PublicKey> {
        let mut keys: Vec<PublicKey> = self.seats.keys().copied().collect();
        keys.sort_unstable();
        keys
    }

    /// Marks a session that met a dial with silence. Says whether it still is the one filed.
    pub(super) fn mark_stale(&mut self, (server, number): SessionId) -> bool {
        let seat = self.seats.get_mut(&server).filter(|seat| seat.number == number && !seat.stale);
        seat.map(|seat| seat.stale = true).is_some()
    }

    /// Servers whose session is stale.
    pub(super) fn stale(&self) -> Vec<(ServerAddress, u64)> {
        let stale = self.seats.values().filter(|seat| seat.stale);
        stale.map(|seat| (seat.server.clone(), seat.number)).collect()
    }

    /// Sessions whose ping is due; each is under way until [`Self::pinged`].
    pub(super) fn take_pings(&mut self, now: Instant) -> Vec<(SessionId, Session)> {
        let mut due = Vec::new();
        for (server, seat) in &mut self.seats {
            if seat.next_ping.take_if(|next| *next <= now).is_some() {
                due.push(((*server, seat.number), seat.session.clone()));
            }
        }
        due
    }

    /// When the next ping is due.
    pub(super) fn next_ping(&self) -> Option<Instant> {
        self.seats.values().filter_map(|seat| seat.next_ping).min()
    }

    /// Files a ping's outcome. Says whether the session is to be closed.
    pub(super) fn pinged(
        &mut self,
        (server, number): SessionId,
        took: Option<Duration>,
        next: Instant,
    ) -> bool {
        let Some(seat) = self.seats.get_mut(&server).filter(|seat| seat.number == number) else {
            return false;
        };
        match (took, seat.pulse) {
            (Some(took), _) => {
                seat.pulse = Pulse::Answers(took);
                seat.ping_failures = 0;
                seat.next_ping = Some(next);
                false
            }
            (None, Pulse::Answers(_)) => {
                seat.ping_failures += 1;
                seat.next_ping = Some(next);
                seat.ping_failures >= PING_FAILURES_MAX
            }
            (None, Pulse::Unknown | Pulse::Mute) => {
                seat.pulse = Pulse::Mute;
                false
            }
        }
    }

    /// Looks once for sessions beyond `keep` that carry no stream, and takes out those that carried none for
    /// [`IDLE_LOOKS`] looks, the slowest first.
    pub(super) fn take_idle(&mut self, keep: usize) -> Vec<Seat> {
        for seat in self.seats.values_mut() {
            let idle = seat.session.open_streams() == 0;
            seat.idle_looks = if idle { seat.idle_looks + 1 } else { 0 };
        }
        let surplus = self.seats.len().saturating_sub(keep);
        let idle = self.by_latency().into_iter().rev().filter(|seat| seat.idle_looks >= IDLE_LOOKS);
        let ids: Vec<SessionId> = idle.map(|seat| (seat.server.key, seat.number)).take(surplus).collect();
        ids.into_iter().filter_map(|id| self.remove(id)).collect()
    }
}
