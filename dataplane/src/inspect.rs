//! A look at a worker from outside, between two turns: what it holds. For the simulator and for tests; nothing here
//! changes anything.

use crate::driver::Driver;
use crate::session::Phase;
use crate::worker::Worker;

/// What a worker holds at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Inspection {
    /// Connections, half-open ones included.
    pub sessions: usize,
    /// Of these: their handshake is not done.
    pub sessions_half_open: usize,
    /// Keys in the directory.
    pub directory: usize,
    /// Halves of bridges, in whatever state; those that stand for one of another worker included.
    pub halves: usize,
    /// Streams of all multiplexers.
    pub streams: usize,
    /// Entries of the wheel: one of each owner at most.
    pub timers: usize,
    /// Spans in queues.
    pub spans_queued: usize,
    /// Gathered sends that are with the driver.
    pub sends_pending: usize,
    /// Bytes of pages that hold received data or copies.
    pub pool_held_len: usize,
    /// Credit granted beyond base windows, in bytes.
    pub extra_len: usize,
    /// Bytes that wait or are with the driver as holders are charged for them, and holders.
    pub charged: (usize, usize),
    /// Pages nobody owns.
    pub pool_free_pages: usize,
    /// Pages lent for receiving.
    pub pool_kernel_pages: usize,
    /// Spans that other workers have, and theirs that this one has or has not sent home yet.
    pub loans: (usize, usize),
}

impl<D: Driver> Worker<D> {
    /// What it holds now.
    pub fn inspect(&mut self) -> Inspection {
        let keys: Vec<_> = self.sessions.keys().collect();
        let (mut streams, mut sends_pending, mut sessions_half_open) = (0, 0, 0);
        for key in keys {
            let Some(session) = self.sessions.find(key) else { continue };
            sends_pending += usize::from(session.sending);
            match &session.phase {
                Phase::Handshake(_) => sessions_half_open += 1,
                Phase::Established(open) => streams += open.mux.stream_count(),
            }
        }
        let pool = self.driver.pool();
        let loans = (pool.lent_out(), pool.borrowed() + pool.homeward().len());
        Inspection {
            sessions: self.sessions.len(),
            sessions_half_open,
            directory: self.directory.len(),
            halves: self.halves.len(),
            streams,
            timers: self.wheel.len(),
            spans_queued: self.nodes.len(),
            sends_pending,
            pool_held_len: pool.held_len(),
            extra_len: self.budget.extra(),
            charged: (self.holders.bytes(), self.holders.len()),
            pool_free_pages: pool.free_pages(),
            pool_kernel_pages: pool.kernel_pages(),
            loans,
        }
    }
}
