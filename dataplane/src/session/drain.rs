//! How fast a connection drains, and so how much of it is given to the kernel at a time.
//!
//! What the kernel has cannot be overtaken any more: a ping reply or a request waits behind it. So a gathered send is sized to what the
//! connection drains in 20 ms, and the kernel is told to hold half of that back unsent at most (`TCP_NOTSENT_LOWAT`).
//!
//! In: beginnings and ends of sends. Out: the largest gathered send, and what the kernel is to be told when that changes. The rate is
//! measured while the connection is kept busy, over 100 ms or several sends, because acknowledgements and windows come in lumps: one
//! send that was taken at once says nothing, nor does one that waited.

use crate::driver::Nanos;
use crate::limits;

/// See the module's head. Goes along to a successor of the worker: the connection stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Drain {
    gather_len_max: usize,
    /// What the kernel was told.
    held_back_len: u32,
    /// Since when it is kept busy and measured, and how much has drained since.
    since: Nanos,
    len: usize,
    /// When its last send ended.
    ended_at: Nanos,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            gather_len_max: limits::GATHER_LEN_START,
            held_back_len: held_back(limits::GATHER_LEN_START),
            since: 0,
            len: 0,
            ended_at: 0,
        }
    }
}

impl Drain {
    /// Bytes that the next gathered send may have.
    pub(super) fn gather_len_max(&self) -> usize {
        self.gather_len_max
    }

    /// A send begins. If there was nothing to send before it, the rate is measured anew.
    pub(super) fn begin(&mut self, now: Nanos) {
        if now.saturating_sub(self.ended_at) > limits::DRAIN_GAP_NS {
            (self.since, self.len) = (now, 0);
        }
    }

    /// The kernel has taken all of a send. Returned is how many unsent bytes it is to hold from now on, if not as many as before.
    pub(super) fn sent(&mut self, now: Nanos, len: usize) -> Option<u32> {
        self.ended_at = now;
        self.len += len;
        let elapsed = now.saturating_sub(self.since).max(1);
        if elapsed < limits::DRAIN_MEASURE_NS && self.len < limits::DRAIN_MEASURE_SENDS * self.gather_len_max
        {
            return None;
        }
        let drained = self.len as u128 * u128::from(limits::GATHER_TIME_NS) / u128::from(elapsed);
        let drained = usize::try_from(drained).unwrap_or(usize::MAX);
        (self.since, self.len) = (now, 0);
        // A step at a time, so that one odd measurement decides little.
        self.gather_len_max = drained
            .clamp(self.gather_len_max / 2, 2 * self.gather_len_max)
            .clamp(limits::GATHER_LEN_MIN, limits::GATHER_LEN_MAX);
        let wanted = held_back(self.gather_len_max);
        // A step down may come back, and each is a system call.
        if wanted <= self.held_back_len && 2 * wanted >= self.held_back_len {
            return None;
        }
        self.held_back_len = wanted;
        Some(wanted)
    }
}

/// Half a gathered send, so that one that was taken has drained for the most part; in few steps.
const fn held_back(gather_len_max: usize) -> u32 {
    // At most `GATHER_LEN_MAX`.
    (gather_len_max / 2).next_power_of_two() as u32
}

const _: () = assert!(limits::GATHER_LEN_MAX.is_power_of_two() && limits::GATHER_LEN_MAX <= 1 << 30);

/// What the kernel is told of a connection before anything is known of it.
pub(crate) const HELD_BACK_START: u32 = held_back(limits::GATHER_LEN_START);

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Nanos = limits::SECOND_NS / 1000;

    /// Sends of the largest size, one after the other, each of which takes its time at `rate` bytes/s, in lumps of so many bytes.
    fn drain(drain: &mut Drain, now: &mut Nanos, rate: u64, lump: u64, millis: u64) -> usize {
        let (mut calls, mut sent, begun) = (0, 0, *now);
        while *now < begun + millis * MS {
            drain.begin(*now);
            let len = drain.gather_len_max();
            sent += len as u64;
            // The lump with its last byte has left by then.
            *now = (begun + sent.div_ceil(lump) * lump * limits::SECOND_NS / rate).max(*now);
            calls += usize::from(drain.sent(*now, len).is_some());
        }
        calls
    }

    #[test]
    fn sends_follow_the_rate_down_and_up_also_when_it_comes_in_lumps() {
        for lump in [1, 1448, 8000] {
            let (mut state, mut now) = (Drain::default(), limits::SECOND_NS);
            drain(&mut state, &mut now, 1_000_000_000, 1, 50);
            assert_eq!(state.gather_len_max(), limits::GATHER_LEN_MAX);
            assert_eq!(state.held_back_len as usize, limits::GATHER_LEN_MAX / 2);
            for rate in [400_000, 100_000, 20_000] {
                drain(&mut state, &mut now, rate, lump, 60_000);
                let wanted = (rate * limits::GATHER_TIME_NS / limits::SECOND_NS) as usize;
                let wanted = wanted.max(limits::GATHER_LEN_MIN);
                let len = state.gather_len_max();
                assert!(len >= wanted / 2 && len <= 2 * wanted, "{len} at {rate} bytes/s in lumps of {lump}");
                assert!(state.held_back_len as usize <= 4 * len, "{}", state.held_back_len);
            }
            drain(&mut state, &mut now, 1_000_000_000, 1, 50);
            assert_eq!(state.gather_len_max(), limits::GATHER_LEN_MAX);
        }
    }

    #[test]
    fn small_sends_now_and_then_say_nothing() {
        let (mut state, mut now) = (Drain::default(), 0);
        for wait in [0, 20 * MS] {
            for _ in 0..1000 {
                now += 50 * MS;
                state.begin(now);
                now += wait;
                assert_eq!(state.sent(now, 12), None);
            }
        }
        assert_eq!(state.gather_len_max(), limits::GATHER_LEN_START);
    }

    #[test]
    fn the_kernel_is_told_of_steps_and_not_of_every_send() {
        let (mut state, mut now) = (Drain::default(), limits::SECOND_NS);
        assert!(drain(&mut state, &mut now, 1_000_000_000, 1, 1000) <= 4);
        // To and fro around a step.
        let mut calls = 0;
        for _ in 0..50 {
            calls += drain(&mut state, &mut now, 1_700_000, 1, 500);
            calls += drain(&mut state, &mut now, 1_300_000, 1, 500);
        }
        assert!(calls <= 4, "{calls}");
    }
}
