//! When the process ends: an order, a signal, the end of a drain, or nobody who would ever come back.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

use super::Flag;
use super::plane::Plane;

/// SIGTERM is noticed; SIGINT and SIGHUP, which a terminal sends to everything in it, are not.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Flag,
}

impl Signals {
    /// Takes the signals of this process.
    pub(super) fn take() -> io::Result<Self> {
        let terminate = Flag::default();
        flag::register(SIGTERM, Arc::clone(&terminate))?;
        for ignored in [SIGINT, SIGHUP] {
            flag::register(ignored, Flag::default())?;
        }
        Ok(Self { terminate })
    }

    /// Whether SIGTERM came since the last look.
    fn take_terminate(&self) -> bool {
        self.terminate.swap(false, Ordering::Relaxed)
    }
}

/// Looks at everything that can end the process.
#[derive(Debug)]
pub(super) struct Watch {
    start_within: Option<Duration>,
    drain_within: Duration,
    alone_since: Option<Instant>,
}

impl Watch {
    pub(super) fn new(start_within: Option<Duration>, drain_within: Duration) -> Self {
        Self { start_within, drain_within, alone_since: None }
    }

    /// Whether it is time to end.
    pub(super) fn is_over(&mut self, plane: &Plane, signals: &Signals) -> bool {
        if plane.is_stopped() || plane.has_ended() {
            return true;
        }
        if signals.take_terminate() {
            // The second one is from somebody who does not want to wait.
            if plane.is_draining() || !plane.drain(self.drain_within) {
                return true;
            }
            tracing::info!(within = ?self.drain_within, "SIGTERM: draining");
        }
        if plane.is_attached() {
            self.alone_since = None;
            return false;
        }
        let alone_since = *self.alone_since.get_or_insert_with(Instant::now);
        let limit = if plane.is_serving() { plane.orphan_limit() } else { self.start_within };
        let over = limit.is_some_and(|limit| alone_since.elapsed() >= limit);
        if over {
            tracing::warn!(alone = ?alone_since.elapsed(), "no control plane came within the limit: ending");
        }
        over
    }
}
