//! Which sessions are received from a little later, so that more is taken at a time.
//!
//! A small frame by itself costs what the kernel charges for a receive and a send. On one busy connection a
//! [short wait](crate::wait) of the whole worker puts many frames into one receive; where many connections share the load, each
//! has a frame only every few hundred microseconds, and no wait that everybody can bear gathers two of them. So it is
//! the connection that waits: when small frames keep a worker busy, a session that just brought some and will bring more is asked
//! again only after a pause that fits its rate. What arrives meanwhile wakes nobody (under io_uring; a readiness loop is told, and
//! spares the receive and the send alone) and is taken in one receive. All other sessions are served as ever, and so is one of these
//! for which somebody seems to wait: one that was sent payload a moment ago, or brought something small by itself. That leaves
//! the sessions that only send.
//!
//! In: what each receive brought, and the time. Out: until when the session is left alone. Used by the worker.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::driver::Nanos;
use crate::limits;
use crate::slab::Key;
use crate::wait::{Brought, FRAME_LEN_SMALL};

/// Over which time the load is judged, in nanoseconds: a few of the longest pauses.
const WINDOW_NS: u64 = 8_000_000;
/// Pauses end at multiples of this, in nanoseconds, so that a turn serves several sessions; not so many that others wait long for
/// their turn.
const STEP_NS: u64 = 64 * 1024;
/// The shortest pause, in nanoseconds: what comes in less is left to the wait of the whole worker.
const PAUSE_NS_MIN: u64 = 4 * STEP_NS;
/// Bytes a pause is sized for: a fifth of the smallest window we grant, so that hardly anybody waits for credit because of it.
const GATHERED_LEN: u64 = 48 * 1024;
/// Bytes that the longest pause must be expected to gather: two of a Go client's frames.
const GATHERED_LEN_MIN: u64 = 8 * 1024;
/// After some pauses in a row a session is asked at once, so that its rate is seen without them: a peer that fills the kernel's
/// buffer and waits for room looks as slow as its pauses make it, and would stay so. First after one, then after twice as many
/// each time that it is as slow as it seemed, up to two to the power of this.
const TRUST_MAX: u8 = 4;
/// Sessions paused at a time that there is room for without growing.
const PAUSED_LEN: usize = 256;

/// What a session's last receives were like. See the module's head.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pace {
    received_at: Nanos,
    /// When it last looked as if somebody waited for what the session brings: it brought something small by itself, or was sent
    /// payload, to which that may be the answer.
    awaited_at: Nanos,
    /// Pauses one after the other.
    pauses: u8,
    /// Two to the power of this may come in a row.
    trust: u8,
}

impl Pace {
    /// The session was sent payload.
    pub(crate) fn note_sent(&mut self, now: Nanos) {
        self.awaited_at = now;
    }
}

/// What one receive brought.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Receipt {
    pub(crate) len: usize,
    /// It left something behind: the session is faster than this shows.
    pub(crate) more: bool,
    /// Data frames that began in it.
    pub(crate) frames: usize,
    /// Somebody may be waiting for an answer to something in it.
    pub(crate) interactive: bool,
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Coalescer {
    pause_ns_max: u64,
    busy_frames_per_second: u64,
    busy: bool,
    window_start: Nanos,
    window_frames: u64,
    paused: BinaryHeap<Reverse<(Nanos, Key)>>,
}

impl Coalescer {
    /// Pauses of at most `pause_us_max` microseconds (0: none), while so many frames come in a second.
    pub(crate) fn new(pause_us_max: u32, busy_frames_per_second: u64) -> Self {
        Self {
            pause_ns_max: u64::from(pause_us_max) * 1000,
            busy_frames_per_second,
            busy: false,
            window_start: 0,
            window_frames: 0,
            // Room from the start: the first pause may come at any time, and steady forwarding allocates nothing.
            paused: BinaryHeap::with_capacity(PAUSED_LEN),
        }
    }

    /// Changes the longest pause, in microseconds; 0: none.
    pub(crate) fn set_pause_us_max(&mut self, pause_us_max: u32) {
        self.pause_ns_max = u64::from(pause_us_max) * 1000;
    }

    /// Once a turn, with what it brought.
    pub(crate) fn observe(&mut self, now: Nanos, brought: Brought) {
        if brought.len <= brought.frames * FRAME_LEN_SMALL {
            self.window_frames += brought.frames as u64;
        }
        let elapsed = now.saturating_sub(self.window_start);
        if elapsed < WINDOW_NS {
            return;
        }
        let per_second = self.window_frames * limits::SECOND_NS / elapsed.max(1);
        // Pauses leave the number of frames as it is, so the decision does not undo its own reason.
        let wanted = if self.busy { self.busy_frames_per_second / 2 } else { self.busy_frames_per_second };
        self.busy = per_second >= wanted;
        (self.window_start, self.window_frames) = (now, 0);
    }

    /// A session's receive brought this: the time until which nothing is asked of it, or `None`: ask at once.
    pub(crate) fn pause(&self, pace: &mut Pace, now: Nanos, receipt: Receipt) -> Option<Nanos> {
        let until = self.pause_by_rate(pace, now, receipt);
        if until.is_none() {
            (pace.pauses, pace.trust) = (0, 0);
        } else if pace.pauses < 1 << pace.trust {
            pace.pauses += 1;
            return until;
        } else {
            (pace.pauses, pace.trust) = (0, TRUST_MAX.min(pace.trust + 1));
        }
        None
    }

    fn pause_by_rate(&self, pace: &mut Pace, now: Nanos, receipt: Receipt) -> Option<Nanos> {
        let gap = now.saturating_sub(pace.received_at).max(1);
        pace.received_at = now;
        if receipt.interactive {
            pace.awaited_at = now;
        }
        let is_awaited = now.saturating_sub(pace.awaited_at) < limits::ATTENTIVE_NS;
        if !self.busy
            || is_awaited
            || receipt.more
            || receipt.frames == 0
            || receipt.len / receipt.frames > FRAME_LEN_SMALL
        {
            return None;
        }
        let len = receipt.len as u64;
        if len * self.pause_ns_max / gap < GATHERED_LEN_MIN {
            return None;
        }
        let pause = (GATHERED_LEN * gap / len).min(self.pause_ns_max);
        (pause >= PAUSE_NS_MIN).then(|| (now + pause) / STEP_NS * STEP_NS)
    }

    /// Leaves a session alone until then.
    pub(crate) fn hold(&mut self, key: Key, until: Nanos) {
        self.paused.push(Reverse((until, key)));
    }

    /// When the next pause ends.
    pub(crate) fn next(&self) -> Option<Nanos> {
        self.paused.peek().map(|&Reverse((until, _))| until)
    }

    /// A session whose pause is over.
    pub(crate) fn take_due(&mut self, now: Nanos) -> Option<Key> {
        let &Reverse((until, key)) = self.paused.peek()?;
        if until > now {
            return None;
        }
        self.paused.pop();
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Nanos = 1_000_000;
    const START: Nanos = 1_000_000_000;

    /// After so many frames a second for a while.
    fn after(frames_per_second: u64) -> Coalescer {
        let mut coalescer = Coalescer::new(2000, 80_000);
        for at in 1..100 {
            coalescer.observe(START - 100 * MS + at * MS, small(frames_per_second / 1000));
        }
        coalescer
    }

    fn small(frames: u64) -> Brought {
        Brought { len: frames as usize * 4108, frames: frames as usize, ..Brought::default() }
    }

    fn frames(frames: usize, frame_len: usize) -> Receipt {
        Receipt { len: frames * frame_len, more: false, frames, interactive: false }
    }

    /// How long a session is left alone that has brought this every `gap`.
    fn pause(coalescer: &Coalescer, gap: Nanos, receipt: Receipt) -> Option<Nanos> {
        let mut pace = Pace { received_at: START - gap, ..Pace::default() };
        let until = coalescer.pause(&mut pace, START, receipt)?;
        assert_eq!(until % STEP_NS, 0, "with others");
        Some(until.saturating_sub(START))
    }

    #[test]
    fn pauses_fit_the_rate_of_the_session() {
        let busy = after(130_000);
        let each_half_ms = pause(&busy, MS / 2, frames(1, 4108)).unwrap();
        assert!(each_half_ms > 2 * MS - STEP_NS && each_half_ms <= 2 * MS, "{each_half_ms}: the longest");
        let faster = pause(&busy, MS / 12, frames(1, 4108)).unwrap();
        assert!(faster > MS - STEP_NS - 10_000 && faster <= MS, "{faster}: 48 KiB come in a millisecond");
        assert_eq!(pause(&busy, 20_000, frames(1, 4108)), None, "enough comes by itself");
        assert_eq!(pause(&busy, 10 * MS, frames(1, 4108)), None, "nothing would come");
        let paused = pause(&busy, 2 * MS, frames(4, 4108)).unwrap();
        assert!(paused > MS, "{paused}: and again after a pause");
    }

    #[test]
    fn nobody_pauses_without_need() {
        let idle = after(20_000);
        assert_eq!(pause(&idle, MS / 2, frames(1, 4108)), None, "the worker has time");
        let busy = after(130_000);
        assert_eq!(pause(&busy, MS / 2, frames(1, 65_548)), None, "large frames are cheap");
        assert_eq!(pause(&busy, MS / 2, frames(0, 0)), None);
        assert_eq!(pause(&busy, MS / 2, Receipt { len: 12_000, ..frames(0, 0) }), None);
        let truncated = Receipt { more: true, ..frames(4, 4096) };
        assert_eq!(pause(&busy, MS / 4, truncated), None, "a receive of one page says nothing of the rate");
        let mut never = busy;
        never.set_pause_us_max(0);
        assert_eq!(pause(&never, MS / 2, frames(1, 4108)), None, "switched off");
    }

    #[test]
    fn who_waits_for_an_answer_gets_it() {
        let busy = after(130_000);
        let mut pace = Pace { received_at: START - MS / 2, ..Pace::default() };
        let ping = Receipt { interactive: true, ..frames(2, 2000) };
        assert_eq!(busy.pause(&mut pace, START, ping), None);
        let later = |ms| START + ms * MS;
        assert_eq!(busy.pause(&mut pace, later(1), frames(2, 4108)), None, "more of it may come");
        assert_eq!(busy.pause(&mut pace, later(49), frames(90, 4108)), None);
        assert!(busy.pause(&mut pace, later(51), frames(4, 4108)).is_some(), "nothing came");
        let mut only_sends = Pace { received_at: later(51), ..Pace::default() };
        let mut asked = only_sends;
        asked.note_sent(later(52));
        assert!(busy.pause(&mut only_sends, later(53), frames(4, 4108)).is_some());
        assert_eq!(busy.pause(&mut asked, later(53), frames(4, 4108)), None, "it may be the answer to that");
    }

    #[test]
    fn a_peer_that_waits_for_room_is_not_kept_slow_by_its_own_pauses() {
        let busy = after(130_000);
        let mut pace = Pace { received_at: START - 2 * MS, ..Pace::default() };
        // It fills 24 KB of the kernel's buffer in no time, once it is held up for long; what it could send nobody sees.
        let until = busy.pause(&mut pace, START, frames(6, 4108)).unwrap();
        assert_eq!(busy.pause(&mut pace, until, frames(6, 4108)), None, "then it is asked at once");
        assert_eq!(busy.pause(&mut pace, until + 50_000, frames(6, 4108)), None, "and shows how fast it is");
    }

    #[test]
    fn a_peer_that_is_slow_by_itself_is_left_alone_more_and_more() {
        let busy = after(130_000);
        let (mut pace, mut now) = (Pace { received_at: START - MS / 2, ..Pace::default() }, START);
        let mut rows = vec![0];
        while rows.len() <= 6 {
            // A frame every half millisecond.
            let receipt = frames(((now - pace.received_at) / (MS / 2)).max(1) as usize, 4108);
            match busy.pause(&mut pace, now, receipt) {
                Some(until) => {
                    now = until;
                    *rows.last_mut().unwrap() += 1;
                }
                None => {
                    now += MS / 2;
                    rows.push(0);
                }
            }
        }
        assert_eq!(rows[..6], [1, 2, 4, 8, 16, 16]);
        let fast = pace.received_at + 20_000;
        assert_eq!(busy.pause(&mut pace, fast, frames(1, 4108)), None, "it became fast");
        assert_eq!((pace.pauses, pace.trust), (0, 0), "that begins anew");
    }

    #[test]
    fn being_busy_ends_later_than_it_begins() {
        let mut coalescer = after(70_000);
        assert!(!coalescer.busy);
        let mut feed = |frames_per_second: u64| {
            for _ in 0..20 {
                coalescer.observe(coalescer.window_start + WINDOW_NS, small(frames_per_second / 125));
            }
            coalescer.busy
        };
        assert!(feed(90_000));
        assert!(feed(50_000), "still");
        assert!(!feed(30_000));
        assert!(!feed(70_000));
    }

    #[test]
    fn pauses_end_in_order() {
        let mut coalescer = after(0);
        let key = |index| Key { index, generation: 0 };
        for (index, until) in [(0, 30), (1, 10), (2, 20)] {
            coalescer.hold(key(index), until);
        }
        assert_eq!((coalescer.next(), coalescer.take_due(9)), (Some(10), None));
        assert_eq!(coalescer.take_due(25), Some(key(1)));
        assert_eq!(coalescer.take_due(25), Some(key(2)));
        assert_eq!((coalescer.take_due(25), coalescer.next()), (None, Some(30)));
    }
}
