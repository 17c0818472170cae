//! The ping that rides in the generator's own loop, for the row in which it shares a session with bulk.
//!
//! In: received payload of its stream. Out: the frames to send next and a histogram of round trips. Used by the sender
//! (the asking side) and the sink (the echo).

use crate::frames::{HEADER_LEN, Header};
use anyhow::{Result, bail};
use hdrhistogram::Histogram;
use std::time::Instant;

/// Payload of a ping.
pub(crate) const PING_LEN: usize = 64;

/// An empty histogram from 100 ns to one minute with three digits.
pub(crate) fn latencies() -> Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(100, 60_000_000_000, 3)?)
}

/// The whole frame of ping number `sequence`: header and a payload that no other number has.
pub(crate) fn ping_frame(stream: u32, sequence: u64) -> [u8; HEADER_LEN + PING_LEN] {
    let mut frame = [0; HEADER_LEN + PING_LEN];
    frame[..HEADER_LEN].copy_from_slice(&Header::data(stream, PING_LEN as u32).encode());
    crate::frames::content::fill(u32::MAX, sequence * PING_LEN as u64, &mut frame[HEADER_LEN..]);
    frame
}

/// Asks, one ping at a time.
pub(super) struct Asker {
    pub(super) stream: u32,
    pub(super) credit: u64,
    sequence: u64,
    asked: Option<Instant>,
    answer: Vec<u8>,
    histogram: Histogram<u64>,
}

impl Asker {
    pub(super) fn new(stream: u32, credit: u64) -> Result<Self> {
        Ok(Self { stream, credit, sequence: 0, asked: None, answer: Vec::new(), histogram: latencies()? })
    }

    /// Appends the next ping when none is under way.
    pub(super) fn ask(&mut self, now: Instant, out: &mut Vec<u8>) -> Result<()> {
        if self.asked.is_none() {
            spend(&mut self.credit)?;
            self.asked = Some(now);
            out.extend_from_slice(&ping_frame(self.stream, self.sequence));
        }
        Ok(())
    }

    pub(super) fn is_idle(&self) -> bool {
        self.asked.is_none()
    }

    pub(super) fn receive(&mut self, bytes: &[u8]) -> Result<()> {
        self.answer.extend_from_slice(bytes);
        if self.answer.len() < PING_LEN {
            return Ok(());
        }
        let Some(asked) = self.asked.take() else { bail!("a ping was answered twice") };
        if self.answer[..] != ping_frame(self.stream, self.sequence)[HEADER_LEN..] {
            bail!("the answer to ping {} has other content", self.sequence);
        }
        self.answer.clear();
        self.sequence += 1;
        self.histogram.saturating_record(u64::try_from(asked.elapsed().as_nanos()).unwrap_or(u64::MAX));
        Ok(())
    }

    pub(super) fn take_latencies(&mut self) -> Histogram<u64> {
        let latencies = self.histogram.clone();
        self.histogram.reset();
        latencies
    }
}

/// Answers with the same payload.
pub(super) struct Echo {
    pub(super) stream: u32,
    pub(super) credit: u64,
    question: Vec<u8>,
}

impl Echo {
    pub(super) fn new(stream: u32, credit: u64) -> Self {
        Self { stream, credit, question: Vec::new() }
    }

    /// Appends the answer once the question is complete.
    pub(super) fn receive(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<()> {
        self.question.extend_from_slice(bytes);
        if self.question.len() < PING_LEN {
            return Ok(());
        }
        spend(&mut self.credit)?;
        out.extend_from_slice(&Header::data(self.stream, PING_LEN as u32).encode());
        out.append(&mut self.question);
        Ok(())
    }
}

/// With one ping under way a relay owes at most half a window (dmsg-wire 5.4), so the credit cannot run out unless the
/// relay forgets to return it.
fn spend(credit: &mut u64) -> Result<()> {
    match credit.checked_sub(PING_LEN as u64) {
        Some(rest) => *credit = rest,
        None => bail!("the relay did not return the credit of the ping stream"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echoed_ping_is_counted_and_a_changed_one_refused() {
        let mut asker = Asker::new(1, 200).unwrap();
        let mut echo = Echo::new(2, 1000);
        for round in 0..2 {
            let (mut question, mut answer) = (Vec::new(), Vec::new());
            asker.ask(Instant::now(), &mut question).unwrap();
            asker.ask(Instant::now(), &mut question).unwrap();
            assert_eq!(question.len(), HEADER_LEN + PING_LEN);
            echo.receive(&question[HEADER_LEN..30], &mut answer).unwrap();
            assert!(answer.is_empty());
            echo.receive(&question[30..], &mut answer).unwrap();
            answer[70] ^= round;
            assert_eq!(asker.receive(&answer[HEADER_LEN..]).is_ok(), round == 0);
        }
        assert_eq!(asker.take_latencies().len(), 1);
        assert_eq!(asker.take_latencies().len(), 0);
        asker.asked = None;
        asker.ask(Instant::now(), &mut Vec::new()).unwrap();
        asker.asked = None;
        assert!(asker.ask(Instant::now(), &mut Vec::new()).is_err());
    }
}
