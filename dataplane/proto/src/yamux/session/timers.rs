//! The clocks of a session: keepalive, answers to pings, ACKs and FINs that do not come (dmsg-wire 5.1, 5.6).

use super::{Session, Timer};
use crate::yamux::DeadReason;

/// What a timer found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timeout<T> {
    /// We finished this stream and the peer never did: it is forgotten and its RST queued (dmsg-wire 5.5).
    StreamTimedOut {
        /// Its id.
        stream: u32,
        /// Its last tag.
        tag: Option<T>,
    },
    /// The peer is silent: close the connection. Comes once.
    SessionDead(DeadReason),
}

impl<T: Copy> Session<T> {
    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    #[must_use]
    pub fn next_timeout(&self) -> Option<u64> {
        if self.dead {
            return None;
        }
        [self.keepalive_due, self.ping_deadline(), self.open_deadline(), self.close_deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Runs what is due. Call until it returns none, then drain `poll_control`: pings and resets may wait there.
    pub fn handle_timeout(&mut self, now: u64) -> Option<Timeout<T>> {
        if self.dead {
            return None;
        }
        if let Some(reason) = self.silence(now) {
            self.dead = true;
            return Some(Timeout::SessionDead(reason));
        }
        if self.close_deadline().is_some_and(|deadline| deadline <= now) {
            let id = self.waiting_for_fin.first()?;
            return Some(Timeout::StreamTimedOut { stream: id, tag: self.reset(id) });
        }
        if self.keepalive_due.is_some_and(|due| due <= now) {
            self.keepalive_due = self.config.keepalive_ns.map(|interval| now.saturating_add(interval));
            // A ping that waits already asks the same question.
            if self.pings.is_empty() {
                self.ping(now);
            }
        }
        None
    }

    fn silence(&self, now: u64) -> Option<DeadReason> {
        if let Some(ping) = self.pings.front()
            && self.ping_deadline().is_some_and(|deadline| deadline <= now)
        {
            let silent_ns = now.saturating_sub(self.last_byte_at.max(ping.asked_at));
            return Some(DeadReason::PingUnanswered { value: ping.value, silent_ns });
        }
        let stream = self.waiting_for_ack.first()?;
        let deadline = self.open_deadline()?;
        (deadline <= now).then_some(DeadReason::OpenUnanswered { stream })
    }

    /// A late answer is excused by any byte that arrived in the meantime: behind bulk data it may take long.
    fn ping_deadline(&self) -> Option<u64> {
        let oldest = self.pings.front()?;
        Some(oldest.asked_at.max(self.last_byte_at).saturating_add(self.config.reply_timeout_ns))
    }

    fn open_deadline(&self) -> Option<u64> {
        let stream = self.streams.get(&self.waiting_for_ack.first()?)?;
        debug_assert!(stream.timer == Timer::Open, "only unacknowledged streams are in this list");
        Some(stream.opened_at_ns.saturating_add(self.config.open_timeout_ns))
    }

    fn close_deadline(&self) -> Option<u64> {
        let stream = self.streams.get(&self.waiting_for_fin.first()?)?;
        debug_assert!(stream.timer == Timer::Close, "only half-closed streams are in this list");
        Some(stream.finished_at_ns.saturating_add(self.config.close_timeout_ns))
    }
}
