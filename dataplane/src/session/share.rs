//! What a session may take of a turn, and what waits for the next ones.
//!
//! Whoever sends, sends as fast as the line allows; a turn is short all the same. A session has so many frames and bytes of a
//! turn ([`Share`]); what its receive brought beyond that is kept, page by page, and handled in the turns that follow, in turns
//! between all sessions that have such a rest, and of all of them together no more than a few shares a turn. A session with a
//! rest is not received from; meanwhile its bytes wait in the kernel, where its window bounds them. One whose frames
//! are small and many is asked for a share's worth at a time, so that little is held for it, and waits with the others from the start.
//!
//! Everybody else is served in the turn in which his bytes came.

use super::{Established, Session};
use crate::coalesce::Receipt;
use crate::counters::Counter;
use crate::driver::{Driver, Nanos};
use crate::limits;
use crate::planted::{self, Bug};
use crate::queue::Queue;
use crate::ring::Span;
use crate::slab::Key;
use crate::worker::Worker;

/// Frames and bytes that may still be handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Frames, with payload and without.
    pub frames: usize,
    /// Bytes; looked at between pages.
    pub len: usize,
}

impl Default for Share {
    fn default() -> Self {
        Self { frames: limits::FRAMES_PER_TURN_MAX, len: limits::RECEIVE_LEN_MAX }
    }
}

impl Share {
    /// No bound, for what has one of its own.
    pub(crate) const ALL: Self = Self { frames: usize::MAX, len: usize::MAX };

    pub(crate) fn is_used_up(self) -> bool {
        self.frames == 0 || self.len == 0
    }

    fn times(self, count: usize) -> Self {
        Self { frames: self.frames.saturating_mul(count), len: self.len.saturating_mul(count) }
    }

    fn min(self, other: Self) -> Self {
        Self { frames: self.frames.min(other.frames), len: self.len.min(other.len) }
    }

    /// What is left of it, once `of` has become `left`. A look at a rest costs a frame at least.
    fn without(self, of: Self, left: Self) -> Self {
        Self {
            frames: self.frames.saturating_sub((of.frames - left.frames).max(1)),
            len: self.len.saturating_sub(of.len - left.len),
        }
    }
}

/// What a session's last receive brought and no turn had room for yet.
#[derive(Debug)]
pub(crate) struct Rest {
    spans: Queue,
    /// What of that receive was handled.
    handled: Handled,
    /// Its receives bring more than a share.
    is_greedy: bool,
    /// Bytes that the next one may bring.
    receive_len_max: usize,
}

impl Default for Rest {
    fn default() -> Self {
        Self {
            spans: Queue::default(),
            handled: Handled::default(),
            is_greedy: false,
            receive_len_max: limits::RECEIVE_LEN_MAX,
        }
    }
}

/// A receive, as far as it was handled.
#[derive(Debug, Clone, Copy, Default)]
struct Handled {
    /// All its bytes, and whether it left some behind in the kernel.
    len: usize,
    more: bool,
    /// Frames, and of these data frames.
    frames: usize,
    data_frames: usize,
    interactive: bool,
}

impl Rest {
    pub(crate) fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Bytes that the next receive may bring.
    pub(crate) fn receive_len_max(&self) -> usize {
        self.receive_len_max
    }

    pub(crate) fn spans(&mut self) -> &mut Queue {
        &mut self.spans
    }
}

impl Handled {
    fn receipt(self) -> Receipt {
        Receipt { len: self.len, more: self.more, frames: self.data_frames, interactive: self.interactive }
    }

    /// Whether receives like this are more than a share: more than one already, or on the way to it with the next.
    fn exceeds(self, share: Share) -> bool {
        let is_dense = self.frames * limits::RECEIVE_LEN_MAX > share.frames.saturating_mul(self.len);
        self.frames > share.frames || self.len > share.len || (self.more && is_dense)
    }

    /// What a share of such frames comes to, in whole pages.
    fn share_len(self, share: Share) -> usize {
        let len = (self.len / self.frames.max(1)).saturating_mul(share.frames);
        len.clamp(1, limits::RECEIVE_LEN_MAX).next_multiple_of(limits::PAGE_LEN)
    }
}

impl<D: Driver> Worker<D> {
    /// What a receive brought: handled as far as the session's share goes, and kept beyond it.
    pub(super) fn receive_within_share(&mut self, key: Key, spans: &[Span], more: bool) {
        let mut share = self.settings.share;
        let open = self.sessions.find_mut(key).and_then(Session::open_mut);
        if let Some(Established { rest, .. }) = open {
            rest.handled =
                Handled { len: spans.iter().map(|span| span.len()).sum(), more, ..Handled::default() };
            if rest.is_greedy {
                return self.keep_rest(key, spans, 0);
            }
        }
        for (at, &span) in spans.iter().enumerate() {
            let taken = self.receive_counted(key, span, &mut share);
            if taken < span.len() {
                return self.keep_rest(key, &spans[at..], taken);
            }
        }
        self.end_receive(key);
    }

    /// Handles a span as far as the share goes, and says how far that was.
    fn receive_counted(&mut self, key: Key, span: Span, share: &mut Share) -> usize {
        let (brought, frames) = (self.brought, share.frames);
        let taken = self.receive_span(key, span, share);
        self.brought.len += taken;
        if let Some(Established { rest: Rest { handled, .. }, .. }) =
            self.sessions.find_mut(key).and_then(Session::open_mut)
        {
            handled.frames += frames - share.frames;
            handled.data_frames += self.brought.frames - brought.frames;
            handled.interactive |= self.brought.interactive > brought.interactive;
        }
        taken
    }

    /// Keeps the spans of a receive behind the first `taken` bytes. They lie in pages that are the batch's.
    fn keep_rest(&mut self, key: Key, spans: &[Span], taken: usize) {
        let Some(open) = self.sessions.find_mut(key).and_then(Session::open_mut) else { return };
        for (at, &span) in spans.iter().enumerate() {
            let from = if at == 0 { taken } else { 0 };
            let part = span.part(from, span.len() - from);
            self.driver.pool().retain(part);
            open.rest.spans.push(&mut self.nodes, part);
        }
        self.counters.count(Counter::ReceivesCarriedOver);
        self.rests.push_back(key);
    }

    /// Once a turn: the sessions that have a rest go on, a share each in turns, as long as the turn has room.
    pub(crate) fn serve_rests(&mut self) {
        let mut left = self.settings.share.times(limits::RESTS_PER_TURN_MAX);
        while !left.is_used_up()
            && let Some(key) = self.rests.pop_front()
        {
            let share = self.settings.share.min(left);
            let mut unused = share;
            if self.serve_rest(key, &mut unused) {
                self.rests.push_back(key);
            }
            left = left.without(share, unused);
        }
    }

    /// Handles of a session's rest what the share permits; true: something is left.
    fn serve_rest(&mut self, key: Key, share: &mut Share) -> bool {
        while !share.is_used_up() {
            let Some(open) = self.sessions.find_mut(key).and_then(Session::open_mut) else { return false };
            let Some(span) = open.rest.spans.pop(&mut self.nodes, self.driver.pool(), usize::MAX) else {
                self.end_receive(key);
                return false;
            };
            let taken = self.receive_counted(key, span, share);
            let open = self.sessions.find_mut(key).and_then(Session::open_mut);
            match open.filter(|_| taken < span.len()) {
                Some(open) => {
                    self.driver.pool().depart(span.part(0, taken));
                    let rest = span.part(taken, span.len() - taken);
                    open.rest.spans.push_front(&mut self.nodes, rest);
                }
                None => self.driver.pool().release(span),
            }
        }
        let open = self.sessions.find(key).and_then(Session::open);
        if open.is_some_and(|open| open.rest.is_empty()) {
            self.end_receive(key);
            return false;
        }
        open.is_some()
    }

    /// All that a receive brought is handled: the next one, at once or after a pause.
    fn end_receive(&mut self, key: Key) {
        let share = self.settings.share;
        if let Some(Established { rest, .. }) = self.sessions.find_mut(key).and_then(Session::open_mut) {
            let handled = rest.handled;
            rest.is_greedy = handled.exceeds(share);
            rest.receive_len_max =
                if rest.is_greedy { handled.share_len(share) } else { limits::RECEIVE_LEN_MAX };
            let receipt = rest.handled.receipt();
            if self.pause_receiving(key, receipt) {
                return;
            }
        }
        self.arm_receive(key);
    }

    /// Leaves a session alone for a while if that gathers more; false: it is to be asked at once.
    fn pause_receiving(&mut self, key: Key, receipt: Receipt) -> bool {
        let now = self.driver.now();
        let Some(open) = self.sessions.find_mut(key).and_then(Session::open_mut) else { return false };
        let Some(until) = self.coalescer.pause(&mut open.pace, now, receipt) else { return false };
        self.counters.count(Counter::ReceivesPaused);
        self.coalescer.hold(key, until);
        true
    }

    /// Sessions whose pause is over are asked again.
    pub(crate) fn resume_receiving(&mut self) {
        let now = self.driver.now();
        while let Some(key) = self.coalescer.take_due(now) {
            if !planted::is(Bug::PauseForgotten) {
                self.arm_receive(key);
            }
        }
    }
}

/// What a session has left to spend on frames that bring nothing: pings, resets, openings, updates, data for streams that are gone.
/// Payload that comes or goes earns some, and so does time; whoever runs out is closed.
///
/// Honest peers never come near it. Opening, acknowledging, finishing and resetting a stream are four such frames, and a dial, taken
/// or refused, moves an object each way; an update is owed for what was sent to the peer, and earned by it; what is still under way
/// for streams that were reset, and pings, time pays for.
#[derive(Debug)]
pub(crate) struct Purse {
    left: u32,
    /// Until when time was paid out.
    paid_until: Nanos,
}

/// In which time one frame is earned, in nanoseconds.
const FREE_EVERY_NS: u64 = limits::SECOND_NS / limits::USELESS_FRAMES_PER_SECOND;

impl Purse {
    pub(crate) fn new(now: Nanos) -> Self {
        Self { left: limits::USELESS_FRAMES_MAX, paid_until: now }
    }

    /// Payload went to the peer, in so many frames.
    pub(super) fn earn_sent(&mut self, frames: usize, len: usize) {
        self.earn(frames * limits::USELESS_FRAMES_PER_FRAME + len / limits::USELESS_FRAME_PER_LEN);
    }

    fn earn(&mut self, frames: usize) {
        let frames = u32::try_from(frames).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(frames).min(limits::USELESS_FRAMES_MAX);
    }

    /// So many frames with payload came, and so many without use. False: more of these than there was left for.
    pub(super) fn settle(&mut self, now: Nanos, with_payload: usize, useless: usize) -> bool {
        self.earn(with_payload * limits::USELESS_FRAMES_PER_FRAME);
        if useless == 0 {
            return true;
        }
        let free = now.saturating_sub(self.paid_until) / FREE_EVERY_NS;
        self.paid_until += free * FREE_EVERY_NS;
        self.earn(usize::try_from(free).unwrap_or(usize::MAX));
        let left = u32::try_from(useless).ok().and_then(|useless| self.left.checked_sub(useless));
        self.left = left.unwrap_or(0);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = limits::USELESS_FRAMES_MAX as usize;

    #[test]
    fn useless_frames_are_paid_for_by_time_and_by_payload() {
        let mut purse = Purse::new(0);
        assert!(purse.settle(0, 0, MAX));
        assert!(!purse.settle(0, 0, 1), "all are spent");
        let mut purse = Purse::new(0);
        assert!(purse.settle(0, 0, MAX));
        // Time pays to the frame, however often one looks.
        for tenth_ms in 1..=1000 {
            assert!(purse.settle(tenth_ms * FREE_EVERY_NS / 10, 0, usize::from(tenth_ms % 10 == 0)));
        }
        assert!(!purse.settle(100 * FREE_EVERY_NS, 0, 1));
        let mut purse = Purse::new(0);
        assert!(purse.settle(0, 0, MAX));
        assert!(purse.settle(0, 10, 40), "four for a frame");
        purse.earn_sent(1, 65_536);
        assert!(purse.settle(0, 0, 68) && !purse.settle(0, 0, 1), "and one for each KiB sent");
        // What is not spent does not add up beyond the bound.
        let mut purse = Purse::new(0);
        assert!(purse.settle(1000 * limits::SECOND_NS, 1000, 0));
        assert!(!purse.settle(1000 * limits::SECOND_NS, 0, MAX + 1));
    }

    #[test]
    fn dense_receives_are_greedy_and_large_frames_are_not() {
        let share = Share::default();
        let handled = |len, frames, more| Handled { len, frames, more, ..Handled::default() };
        assert!(handled(200_000, share.frames + 1, false).exceeds(share));
        assert!(handled(limits::RECEIVE_LEN_MAX + 1, 5, false).exceeds(share));
        // A page of empty frames, and more behind it; without more it was all there was.
        assert!(handled(limits::PAGE_LEN, share.frames - 1, true).exceeds(share));
        assert!(!handled(limits::PAGE_LEN, share.frames - 1, false).exceeds(share));
        let lens = [(12, limits::PAGE_LEN), (100, 2 * limits::PAGE_LEN), (4096, limits::RECEIVE_LEN_MAX)];
        for (frame_len, receive_len) in lens {
            assert_eq!(handled(1000 * frame_len, 1000, true).share_len(share), receive_len, "{frame_len}");
        }
        // Go clients' frames.
        assert!(!handled(limits::RECEIVE_LEN_MAX, limits::RECEIVE_LEN_MAX / 4108 + 1, true).exceeds(share));
    }

    #[test]
    fn a_look_at_a_rest_costs_something() {
        let share = Share { frames: 5, len: 100 };
        assert_eq!(share.without(share, share), Share { frames: 4, len: 100 });
        assert_eq!(share.without(share, Share { frames: 2, len: 10 }), Share { frames: 2, len: 10 });
    }
}
