//! What others want of a worker: questions and orders, read once a turn.
//!
//! The channel is bounded; whoever sends waits its turn, never the worker. An answer nobody waits for any more is dropped.

use std::net::SocketAddr;

use crossbeam::channel::{Receiver, Sender, bounded};
use ringwire_ipc::channel::WorkerEnd;
use ringwire_ipc::message::Setting;
use ringwire_proto::identity::PublicKey;
use ringwire_proto::noise::Hybrid;

use crate::bridge::{Half, State};
use crate::driver::{Driver, Nanos};
use crate::limits;
use crate::session::{CloseReason, Phase};
use crate::slab::Key;
use crate::worker::Worker;

/// Orders that may wait at a worker.
pub const ORDERS_MAX: usize = 64;

/// An order to a worker.
#[derive(Debug)]
pub enum Order {
    /// Describe yourself.
    Report(Sender<Report>),
    /// Close the session of this key, if there is one; the answer says whether there was.
    Close(PublicKey, Sender<bool>),
    /// Use at most so many bytes of buffer memory; the answer is what is in force. Less than what is used resets the
    /// largest holder's backlogs.
    Budget(usize, Sender<usize>),
    /// These settings are others from now on; the answer comes when they are.
    Change(Vec<Setting>, Sender<()>),
    /// Speak with the control plane over this channel from now on; a former one is dropped unread.
    Attach(Box<WorkerEnd>),
    /// The control plane is gone.
    Detach,
    /// Accept nothing new, and end when every session has ended, or at this time.
    Drain(Nanos),
    /// Do nothing until the other end of this is dropped: what a defect could do.
    #[cfg(test)]
    Hang(Receiver<()>),
}

/// The two ends of a worker's mail.
pub fn mailbox() -> (Sender<Order>, Receiver<Order>) {
    bounded(ORDERS_MAX)
}

/// A worker at one moment.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Authenticated sessions, in no particular order.
    pub sessions: Vec<SessionReport>,
    /// Connections whose handshake is not finished.
    pub half_open: usize,
    /// Bridges, each once.
    pub bridges: Vec<BridgeReport>,
    /// Buffer memory held by queues, in bytes, pages at their true size.
    pub held_len: usize,
    /// Credit granted beyond base windows, in bytes.
    pub extra_len: usize,
    /// What streams take in the tables, in bytes.
    pub streams_len: usize,
    /// What these and the memory held may be at most, in bytes.
    pub budget_len: usize,
    /// Settings in force of those that change while it runs, by worker.
    pub live: Vec<LiveSettings>,
}

/// What is in force at one worker of the settings that change while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LiveSettings {
    /// The post-quantum part of handshakes.
    pub hybrid: Hybrid,
    /// Longest wait for company, in microseconds.
    pub company_us: u32,
    /// Longest time for which receiving is put off, in microseconds.
    pub pause_us: u32,
}

impl Report {
    /// Those of several workers together.
    pub fn sum(all: Vec<Self>) -> Self {
        all.into_iter()
            .reduce(|mut sum, report| {
                sum.sessions.extend(report.sessions);
                sum.half_open += report.half_open;
                sum.bridges.extend(report.bridges);
                sum.held_len += report.held_len;
                sum.extra_len += report.extra_len;
                sum.streams_len += report.streams_len;
                sum.budget_len += report.budget_len;
                sum.live.extend(report.live);
                sum
            })
            .unwrap_or_default()
    }
}

/// One session.
#[derive(Debug, Clone)]
pub struct SessionReport {
    /// Names it within its worker; never used again while the worker lives.
    pub session: u64,
    /// The peer's key.
    pub peer: PublicKey,
    /// Where it connects from.
    pub address: SocketAddr,
    /// Whether the handshake had the post-quantum part.
    pub hybrid: bool,
    /// Another session holds its key.
    pub stands_by: bool,
    /// Its multiplexer: `yamux`, `smux 1`, `smux 2`, or `unknown` before its first byte.
    pub multiplexer: &'static str,
    /// Streams, of both sides.
    pub streams: usize,
    /// When it was authenticated.
    pub opened_at: Nanos,
}

/// One bridge.
#[derive(Debug, Clone)]
pub struct BridgeReport {
    /// Who dialled.
    pub source: PublicKey,
    /// Who was dialled.
    pub destination: PublicKey,
    /// From the source to the destination.
    pub forth: DirectionReport,
    /// From the destination to the source.
    pub back: DirectionReport,
    /// When it started.
    pub since: Nanos,
}

/// One direction of a bridge.
#[derive(Debug, Clone, Copy)]
pub struct DirectionReport {
    /// Bytes received from the sender so far.
    pub bytes: u64,
    /// Bytes that wait for the receiver.
    pub queued: usize,
    /// Credit the sender has in all, in bytes.
    pub window: usize,
    /// How long bytes have waited for credit of the receiver, in nanoseconds.
    pub blocked_ns: Nanos,
    /// Who holds it up.
    pub limited_by: Limit,
}

/// What limits a direction of a bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Nothing here: the sender sends no more than passes.
    Sender,
    /// The receiver's window: bytes waited for its credit at least half of the time.
    ReceiverWindow,
}

impl<D: Driver> Worker<D> {
    pub(crate) fn handle_order(&mut self, order: Order) {
        match order {
            Order::Report(answer) => {
                let report = self.report();
                let _ = answer.try_send(report);
            }
            Order::Close(peer, answer) => {
                let session = self.session_by_key(&peer);
                if let Some(key) = session {
                    self.close_session(key, CloseReason::Ordered);
                }
                let _ = answer.try_send(session.is_some());
            }
            Order::Budget(limit, answer) => {
                let _ = answer.try_send(self.budget.set_limit(limit));
            }
            Order::Change(settings, answer) => {
                settings.into_iter().for_each(|setting| self.change(setting));
                let _ = answer.try_send(());
            }
            Order::Attach(end) => self.attach(end),
            Order::Detach => self.detach(),
            Order::Drain(deadline) => self.drain(deadline),
            #[cfg(test)]
            Order::Hang(released) => {
                let _ = released.recv();
            }
        }
    }

    /// The worker at this moment.
    pub fn report(&mut self) -> Report {
        let sessions = self.sessions.iter().filter_map(|(key, session)| match &session.phase {
            Phase::Handshake(_) => None,
            Phase::Established(open) => Some(SessionReport {
                session: key.number(),
                opened_at: open.opened_at,
                peer: open.peer,
                address: session.peer_address,
                hybrid: open.hybrid,
                stands_by: self.stands_by(open),
                multiplexer: open.mux.name(),
                streams: open.mux.stream_count(),
            }),
        });
        let sessions = sessions.collect();
        let bridges = self.halves.iter().filter_map(|(key, half)| self.bridge_report(key, half)).collect();
        let held_len = self.driver.pool().held_len();
        Report {
            sessions,
            half_open: self.half_open.len(),
            bridges,
            held_len,
            extra_len: self.budget.extra(),
            streams_len: self.halves.len() * limits::STREAM_LEN,
            budget_len: self.budget.limit(),
            live: vec![LiveSettings {
                hybrid: self.settings.hybrid,
                company_us: self.settings.company_us_max,
                pause_us: self.settings.pause_us_max,
            }],
        }
    }

    /// The bridge whose source's half this is; `None` for any other half.
    pub(crate) fn bridge_report(&self, key: Key, half: &Half) -> Option<BridgeReport> {
        if half.state != State::Bridged || half.is_dialled || half.stand_in.is_some() {
            return None;
        }
        let peer = |half: &Half| match &half.stand_in {
            Some(stand_in) => Some(stand_in.peer),
            None => Some(self.sessions.find(half.session)?.open()?.peer),
        };
        Some(BridgeReport {
            source: peer(half)?,
            destination: peer(self.halves.find(half.partner)?)?,
            forth: self.direction(key, half.partner)?,
            back: self.direction(half.partner, key)?,
            since: half.bridged_since,
        })
    }

    fn direction(&self, from: Key, to: Key) -> Option<DirectionReport> {
        let (sender, receiver) = (self.halves.find(from)?, self.halves.find(to)?);
        let now = self.driver.now();
        let mut blocked_ns =
            receiver.blocked_ns + receiver.blocked_since.map_or(0, |since| now.saturating_sub(since));
        let (mut queued, mut window) = (receiver.queue.len(), sender.window());
        // Of a half elsewhere: as its worker said last.
        if let Some(stand_in) = &receiver.stand_in {
            blocked_ns += stand_in.blocked_ns;
            queued += stand_in.backlog;
        }
        if let Some(stand_in) = &sender.stand_in {
            window = stand_in.window;
        }
        let lifetime = now.saturating_sub(receiver.bridged_since).max(1);
        let limited_by = if blocked_ns * 2 >= lifetime { Limit::ReceiverWindow } else { Limit::Sender };
        Some(DirectionReport { bytes: sender.bridged, queued, window, blocked_ns, limited_by })
    }
}
