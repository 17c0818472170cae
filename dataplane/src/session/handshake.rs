//! The session handshake: Noise XK as responder, in frames of two bytes of length (dmsg-wire 2.3, 3, 4.1-4.4).
//!
//! Bytes of a stranger are copied to its stash, cut into frames there, and given to the handshake lane one message at a time;
//! what the lane found out comes back here. Bytes right behind message 3 stay in the stash until the session is open.

use ringwire_proto::frame::{FrameError, PREFIX_LEN};
use ringwire_proto::identity::PublicKey;
use ringwire_proto::noise::sealed::{Opener, Sealer};
use ringwire_proto::noise::{HandshakeError, Outcome};

use super::{CloseReason, Established, Mux, Phase, Purse, Rest, Session, Stall, Step, Target};
use crate::coalesce::Pace;
use crate::counters::Counter;
use crate::driver::Driver;
use crate::lane::{Class, Done, Finding, Greeted, Job, Owner, Work};
use crate::limits;
use crate::prefix::Prefix;
use crate::proxy::{self, Opening, ProxyFault};
use crate::ring::Span;
use crate::slab::Key;
use crate::warn;
use crate::worker::Worker;

/// Why a stranger's handshake ended.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(super) enum HandshakeFault {
    /// The frame around a message.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The message.
    #[error(transparent)]
    Message(#[from] HandshakeError),
    /// A header of a proxy that is not to be believed.
    #[error("a PROXY header from an address that is no trusted proxy (setting `proxy_from`)")]
    Untrusted,
    /// A header of a proxy that cannot be read.
    #[error(transparent)]
    Proxy(#[from] ProxyFault),
    /// More bytes than were asked for.
    #[error("more bytes arrived than a stranger may send")]
    Excess,
    /// Bytes behind message 1: nobody can know what to say before message 2 (dmsg-wire 2.3).
    #[error("bytes arrived behind message 1, before it was answered")]
    Early,
}

impl<D: Driver> Worker<D> {
    /// Bytes of a half-open connection: few, and the page goes back at once.
    pub(super) fn receive_stranger(&mut self, key: Key, span: Span) {
        let Some(session) = self.sessions.find_mut(key) else { return };
        let Phase::Handshake(half_open) = &mut session.phase else { return };
        if span.len() > half_open.room() {
            // A driver receives no more than it was asked for.
            return self.fail_handshake(key, &HandshakeFault::Excess);
        }
        let len_max = half_open.stash_len_max();
        keep(&mut half_open.stash, self.driver.pool().bytes(span), len_max);
        self.advance_stranger(key);
    }

    /// Takes a handshake as far as its bytes go.
    fn advance_stranger(&mut self, key: Key) {
        if let Err(fault) = self.judge_stash(key) {
            self.fail_handshake(key, &fault);
        }
    }

    fn judge_stash(&mut self, key: Key) -> Result<(), HandshakeFault> {
        self.judge_opening(key)?;
        let Some(session) = self.sessions.find_mut(key) else { return Ok(()) };
        let prefix = Prefix::from(session.peer_address.ip());
        let Phase::Handshake(half_open) = &mut session.phase else { return Ok(()) };
        let is_first = match half_open.step {
            Step::First => true,
            Step::Third(_) => false,
            Step::Greeting if !half_open.stash.is_empty() => return Err(HandshakeFault::Early),
            Step::Opening | Step::Greeting | Step::Proving | Step::Proven => return Ok(()),
        };
        let len_max = if is_first { limits::LONG_STASH_LEN_MAX } else { limits::ANSWERED_STASH_LEN_MAX };
        let Some(frame) = cut_frame(&mut half_open.stash, len_max)? else {
            if is_first && half_open.room() == 0 {
                self.lengthen_stash(key);
            }
            return Ok(());
        };
        if is_first && !half_open.stash.is_empty() {
            return Err(HandshakeFault::Early);
        }
        self.half_open.spoke(half_open.place);
        let mut is_proof = false;
        let work = match std::mem::replace(&mut half_open.step, Step::Greeting) {
            Step::Third(handshake) => {
                half_open.step = Step::Proving;
                is_proof = true;
                Work::Prove { handshake, frame }
            }
            _ => Work::Greet { frame, hybrid: self.settings.hybrid },
        };
        if is_proof {
            self.proof_begins();
        }
        if !self.submit(Job { owner: Owner::Session(key), class: Class::Stranger(prefix), work }) {
            self.close_session(key, CloseReason::LaneFull);
        }
        Ok(())
    }

    /// A stash is full and its message 1 not whole: it may have the rest too, if need be in place of others that are as long.
    fn lengthen_stash(&mut self, key: Key) {
        let Some(session) = self.sessions.find_mut(key) else { return };
        let prefix = Prefix::from(session.peer_address.ip());
        let Phase::Handshake(half_open) = &mut session.phase else { return };
        let Some(message_len) = announced_len(&half_open.stash) else { return };
        half_open.long_len = PREFIX_LEN + message_len;
        let beyond_len = half_open.long_len.saturating_sub(limits::STRANGER_STASH_LEN_MAX);
        while self.long_stashes.len() + beyond_len > self.settings.long_stashes_len_max
            && let Some(oldest) = self.long_stashes.next_to_go()
        {
            self.counters.count(Counter::LongHandshakesEvicted);
            if let Some(suppressed) = self.warnings.admit(warn::Kind::LongHandshakes, self.driver.now()) {
                let limit = self.settings.long_stashes_len_max;
                tracing::warn!(
                    limit,
                    suppressed,
                    "too many unfinished handshakes of an unknown length: the oldest of the largest address prefix are closed"
                );
            }
            self.close_session(oldest, CloseReason::HalfOpenLimit);
        }
        let place = self.long_stashes.push(prefix, key, beyond_len);
        if let Some(Session { phase: Phase::Handshake(half_open), .. }) = self.sessions.find_mut(key) {
            half_open.long = place;
        }
    }

    /// Decides whether the first bytes are a PROXY header, and takes it off.
    fn judge_opening(&mut self, key: Key) -> Result<(), HandshakeFault> {
        let Some(session) = self.sessions.find_mut(key) else { return Ok(()) };
        let Phase::Handshake(half_open) = &mut session.phase else { return Ok(()) };
        if !matches!(half_open.step, Step::Opening) {
            return Ok(());
        }
        let ip = session.peer_address.ip().to_canonical();
        let is_trusted = self.settings.proxy_from.iter().any(|network| network.contains(&ip));
        let opening = if is_trusted || !proxy::has_signature(&half_open.stash) {
            proxy::open(&half_open.stash)
        } else {
            self.counters.count(Counter::ProxyUntrusted);
            if let Some(suppressed) = self.warnings.admit(warn::Kind::ProxyUntrusted, self.driver.now()) {
                tracing::warn!(%ip, suppressed, "a PROXY header from an address that is no trusted proxy: closed (setting proxy_from)");
            }
            return Err(HandshakeFault::Untrusted);
        };
        match opening {
            Ok(Opening::Incomplete) => {}
            Ok(Opening::Bare) => half_open.step = Step::First,
            Ok(Opening::Header { len, source }) => {
                half_open.stash.drain(..len);
                half_open.step = Step::First;
                self.counters.count(Counter::ProxyHeaders);
                if let Some(source) = source {
                    session.peer_address = source;
                    self.half_open.remove(half_open.place);
                    half_open.place = self.half_open.push(Prefix::from(source.ip()), key);
                }
            }
            Err(fault) => {
                self.counters.count(Counter::ProxyMalformed);
                if let Some(suppressed) = self.warnings.admit(warn::Kind::ProxyMalformed, self.driver.now()) {
                    tracing::warn!(%ip, %fault, suppressed, "a trusted proxy sent a header that cannot be read: closed");
                }
                return Err(fault.into());
            }
        }
        Ok(())
    }

    /// Hands a job to the lane; false when it has no room.
    pub(crate) fn submit(&mut self, job: Job) -> bool {
        let now = self.driver.now();
        if self.lane.submit(now, job).is_ok() {
            self.counters.count(Counter::LaneJobs);
            return true;
        }
        self.note_lane_refused();
        false
    }

    fn note_lane_refused(&mut self) {
        self.counters.count(Counter::LaneRefused);
        if let Some(suppressed) = self.warnings.admit(warn::Kind::LaneFull, self.driver.now()) {
            tracing::warn!(
                suppressed,
                "the handshake lane is full: a handshake or a request of those who have most in it was refused (raise handshake_threads)"
            );
        }
    }

    /// What the lane has found out.
    pub(crate) fn take_findings(&mut self) {
        while let Some(Done { owner, finding }) = self.lane.take(self.driver.now()) {
            self.counters.count(Counter::LaneResults);
            match (owner, finding) {
                (_, Finding::Cancelled) => self.counters.count(Counter::LaneCancelled),
                (owner, Finding::Refused) => self.lane_refused(owner),
                (Owner::Session(key), Finding::Greeted(result)) => self.greeted(key, result),
                (Owner::Session(key), Finding::Proven(result)) => self.proven(key, result),
                (Owner::Half(key), Finding::Request(result)) => self.request_checked(key, result),
                (Owner::Half(key), Finding::Response(result)) => self.response_checked(key, result),
                (Owner::Session(_) | Owner::Half(_), _) => self.counters.count(Counter::LaneStale),
            }
        }
    }

    /// A job was one too many of where it came from.
    fn lane_refused(&mut self, owner: Owner) {
        self.note_lane_refused();
        match owner {
            Owner::Session(key) => {
                let is_proof = self.sessions.find_mut(key).is_some_and(|session| match &mut session.phase {
                    Phase::Handshake(half_open) => {
                        matches!(std::mem::replace(&mut half_open.step, Step::Proven), Step::Proving)
                    }
                    Phase::Established(_) => false,
                });
                self.close_session(key, CloseReason::LaneFull);
                if is_proof {
                    self.proof_ends();
                }
            }
            Owner::Half(key) => self.verification_refused(key),
        }
    }

    /// Message 1 was judged.
    fn greeted(&mut self, key: Key, result: Result<Greeted, HandshakeError>) {
        let Some(session) = self.sessions.find_mut(key) else {
            return self.counters.count(Counter::LaneStale);
        };
        let Phase::Handshake(half_open) = &mut session.phase else { return };
        match result {
            Ok(Greeted { handshake, answer }) => {
                self.long_stashes.remove(half_open.long);
                half_open.step = Step::Third(handshake);
                session.outbox = answer;
                self.mark(key);
                self.advance_stranger(key);
                self.arm_receive(key);
            }
            Err(fault) => self.fail_handshake(key, &fault.into()),
        }
    }

    /// Message 3 was judged.
    fn proven(&mut self, key: Key, result: Result<Box<Outcome>, HandshakeError>) {
        let Some(session) = self.sessions.find_mut(key) else {
            return self.counters.count(Counter::LaneStale);
        };
        let Phase::Handshake(half_open) = &mut session.phase else { return };
        half_open.step = Step::Proven;
        match result {
            Ok(outcome) => {
                // Bytes right behind message 3 are the multiplexer's (dmsg-wire 4.4).
                let behind = std::mem::take(&mut half_open.stash);
                self.open_session(key, *outcome);
                if !behind.is_empty() {
                    self.receive_copied(key, &behind);
                }
                self.arm_receive(key);
            }
            Err(fault) => self.fail_handshake(key, &fault.into()),
        }
        self.proof_ends();
    }

    fn fail_handshake(&mut self, key: Key, fault: &HandshakeFault) {
        self.counters.count(Counter::HandshakesFailed);
        if let Some(suppressed) = self.warnings.admit(warn::Kind::HandshakeFailed, self.driver.now()) {
            let address = self.sessions.find(key).map(|session| session.peer_address);
            tracing::debug!(?address, %fault, suppressed, "session handshake failed");
        }
        self.close_session(key, CloseReason::HandshakeFailed);
    }

    /// The peer proved its key: the session is filed, beside a former one of the same key if that lives (dmsg-wire 11.1).
    fn open_session(&mut self, key: Key, outcome: Outcome) {
        let now = self.driver.now();
        let peer: PublicKey = outcome.remote;
        if !self.admit_to_crowd(key) {
            return self.close_session(key, CloseReason::AddressShare);
        }
        if !self.admit_address(key, peer) {
            self.counters.count(Counter::RefusedAddressLimit);
            if let Some(suppressed) = self.warnings.admit(warn::Kind::AddressLimit, now) {
                let address = self.sessions.find(key).map(|session| session.peer_address);
                tracing::warn!(
                    ?address,
                    suppressed,
                    "an address has as many sessions as it may: closed (setting sessions_per_address)"
                );
            }
            return self.close_session(key, CloseReason::AddressLimit);
        }
        let open = Established {
            peer,
            hybrid: outcome.hybrid,
            opened_at: now,
            mux: Mux::unknown(now),
            target: Target::NONE,
            sealer: Sealer::new(&outcome.send),
            opener: Opener::new(&outcome.receive),
            send_key: outcome.send,
            receive_key: outcome.receive,
            generation: 0,
            holder: Key::NONE,
            unbridged_len: 0,
            unanswered: Default::default(),
            round_trip_ns: None,
            pace: Pace::default(),
            rest: Rest::default(),
            purse: Purse::new(now),
            pinged_at: 0,
            heard_at: now,
            rival: None,
            stall: Stall::default(),
            urgent: Default::default(),
            bulk: Default::default(),
        };
        let Some(session) = self.sessions.find_mut(key) else { return };
        let former_phase = std::mem::replace(&mut session.phase, Phase::Established(Box::new(open)));
        if let Phase::Handshake(half_open) = former_phase {
            self.half_open.remove(half_open.place);
        }
        if let Some(suppressed) = self.warnings.admit(warn::Kind::SessionOpened, now) {
            tracing::info!(%peer, hybrid = outcome.hybrid, suppressed, "session opened");
        }
        self.counters.count(Counter::SessionsOpened);
        self.enter_holder(key);
        self.counters.add(Counter::SessionsHybrid, u64::from(outcome.hybrid));
        self.enter_directory(key);
        self.arm_session_timer(key);
        self.tell_opened(key);
    }

    /// Counts a session at its address, if there is a limit and room below it.
    fn admit_address(&self, key: Key, peer: PublicKey) -> bool {
        let Some(limit) = self.settings.sessions_per_address else { return true };
        let Some(session) = self.sessions.find(key) else { return true };
        self.by_address.admit(Prefix::from(session.peer_address.ip()), peer, limit)
    }
}

/// Appends to a stash, which grows by doubling but never beyond its limit.
fn keep(stash: &mut Vec<u8>, bytes: &[u8], len_max: usize) {
    let needed = stash.len() + bytes.len();
    if needed > stash.capacity() {
        let target = (2 * stash.capacity()).clamp(needed, needed.max(len_max));
        stash.reserve_exact(target - stash.len());
    }
    stash.extend_from_slice(bytes);
}

/// What the frame at the front of a stash says of its length, in bytes.
fn announced_len(stash: &[u8]) -> Option<usize> {
    stash.first_chunk::<PREFIX_LEN>().map(|prefix| usize::from(u16::from_be_bytes(*prefix)))
}

/// Takes the frame at the front of a stash, length included, once it is whole. It has `len_max` bytes at most.
fn cut_frame(stash: &mut Vec<u8>, len_max: usize) -> Result<Option<Vec<u8>>, FrameError> {
    let Some(len) = announced_len(stash) else { return Ok(None) };
    let limit = len_max - PREFIX_LEN;
    if len > limit {
        return Err(FrameError::TooLong { len, limit });
    }
    if stash.len() < PREFIX_LEN + len {
        return Ok(None);
    }
    let behind = stash.split_off(PREFIX_LEN + len);
    let mut frame = std::mem::replace(stash, behind);
    frame.shrink_to_fit();
    Ok(Some(frame))
}

const _: () = assert!(limits::HANDSHAKE_TIMEOUT_NS == 5 * limits::SECOND_NS, "dmsg-wire 3");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_cut_whole_and_what_follows_stays() {
        let mut stash = Vec::new();
        for &byte in &[0, 3, 1, 2] {
            keep(&mut stash, &[byte], 512);
            assert_eq!(cut_frame(&mut stash, 512), Ok(None));
        }
        keep(&mut stash, &[3, 9, 9], 512);
        assert_eq!(cut_frame(&mut stash, 512), Ok(Some(vec![0, 3, 1, 2, 3])));
        assert_eq!(stash, [9, 9]);
        assert_eq!(cut_frame(&mut stash, 512), Err(FrameError::TooLong { len: 0x0909, limit: 510 }));
    }

    #[test]
    fn a_stash_takes_no_more_room_than_its_limit() {
        let mut stash = Vec::new();
        for len_max in [limits::STRANGER_STASH_LEN_MAX, limits::LONG_STASH_LEN_MAX] {
            while stash.len() < len_max {
                keep(&mut stash, &[7], len_max);
                assert!(stash.capacity() <= len_max);
            }
        }
    }

    #[test]
    fn a_long_message_is_waited_for_and_one_that_is_no_frame_is_not() {
        let mut stash = [&4094_u16.to_be_bytes()[..], &[5; 4093]].concat();
        assert_eq!(cut_frame(&mut stash, limits::LONG_STASH_LEN_MAX), Ok(None));
        stash.push(5);
        let frame = cut_frame(&mut stash, limits::LONG_STASH_LEN_MAX).unwrap().unwrap();
        assert_eq!((frame.len(), stash.len()), (limits::LONG_STASH_LEN_MAX, 0));
        let mut stash = 4095_u16.to_be_bytes().to_vec();
        let too_long = FrameError::TooLong { len: 4095, limit: 4094 };
        assert_eq!(cut_frame(&mut stash, limits::LONG_STASH_LEN_MAX), Err(too_long));
    }
}
