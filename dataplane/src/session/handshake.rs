//! The session handshake: Noise XK as responder, in frames of two bytes of length (dmsg-wire 2.3, 3, 4.1).

use ringwire_proto::identity::PublicKey;
use ringwire_proto::noise::{Handshake, HandshakeError, Outcome, Pattern, Role};
use ringwire_proto::packet::{Opener, Sealer};
use ringwire_proto::{frame, frame::FrameError};

use super::{CloseReason, Mux, Open, Phase, Target};
use crate::counters::Counter;
use crate::driver::Driver;
use crate::limits;
use crate::slab::Key;
use crate::worker::Worker;

/// Why a stranger's handshake ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum HandshakeFault {
    /// The frame around a message.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The message.
    #[error(transparent)]
    Message(#[from] HandshakeError),
}

/// What a frame of a stranger led to.
enum Step {
    /// Message 1 was answered with these bytes.
    Answer(Box<Handshake>, Vec<u8>),
    /// Message 3 was accepted.
    Finished(Box<Outcome>),
}

impl<D: Driver> Worker<D> {
    /// Takes bytes of a half-open connection. Returns how many of them were the handshake's; the rest is the multiplexer's
    /// (bytes right behind message 3 are kept: dmsg-wire 4.4).
    pub(super) fn receive_handshake(&mut self, key: Key, bytes: &[u8]) -> usize {
        let mut rest = bytes;
        loop {
            let Some(session) = self.sessions.find_mut(key) else { return bytes.len() };
            if session.closing.is_some() {
                return bytes.len();
            }
            let Phase::Handshake(half_open) = &mut session.phase else { return bytes.len() - rest.len() };
            if self.verifications_left == 0 {
                return bytes.len() - rest.len();
            }
            let message = match half_open.reader.push(&mut rest) {
                Ok(Some(message)) => message,
                Ok(None) => return bytes.len(),
                Err(fault) => {
                    self.fail_handshake(key, fault.into());
                    return bytes.len();
                }
            };
            self.verifications_left -= 1;
            let step = match half_open.handshake.take() {
                None => {
                    let (secret, hybrid) = (&self.identity.secret_key, self.settings.hybrid);
                    Handshake::new(Pattern::Xk, Role::Responder, secret, None, hybrid, &mut *self.entropy)
                        .and_then(|handshake| answer(handshake, message))
                }
                Some(handshake) => conclude(handshake, message),
            };
            match step {
                Ok(Step::Answer(handshake, bytes)) => {
                    half_open.handshake = Some(*handshake);
                    session.outbox.extend_from_slice(&bytes);
                    self.mark(key);
                }
                Ok(Step::Finished(outcome)) => self.open_session(key, *outcome),
                Err(fault) => {
                    self.fail_handshake(key, fault.into());
                    return bytes.len();
                }
            }
        }
    }

    fn fail_handshake(&mut self, key: Key, fault: HandshakeFault) {
        self.counters.count(Counter::HandshakesFailed);
        let address = self.sessions.find(key).map(|session| session.peer_address);
        tracing::debug!(?address, %fault, "session handshake failed");
        self.close_session(key, CloseReason::HandshakeFailed);
    }

    /// The peer proved its key: the session is filed, and a former one of the same key goes (dmsg-wire 11.1).
    fn open_session(&mut self, key: Key, outcome: Outcome) {
        let now = self.driver.now();
        let peer: PublicKey = outcome.remote;
        let open = Open {
            peer,
            hybrid: outcome.hybrid,
            opened_at: now,
            mux: Mux::unknown(now),
            target: Target::NONE,
            sealer: Sealer::new(&outcome.send),
            opener: Opener::new(&outcome.receive),
            send_key: outcome.send,
            receive_key: outcome.receive,
            promised: 0,
            round_trip_ns: None,
            pinged_at: 0,
            urgent: Default::default(),
            bulk: Default::default(),
        };
        let Some(session) = self.sessions.find_mut(key) else { return };
        session.phase = Phase::Open(Box::new(open));
        tracing::info!(%peer, hybrid = outcome.hybrid, "session opened");
        self.half_open -= 1;
        self.counters.count(Counter::SessionsOpened);
        self.counters.add(Counter::SessionsHybrid, u64::from(outcome.hybrid));
        if let Some(former) = self.directory.insert(peer, key) {
            self.counters.count(Counter::SessionsDisplaced);
            self.close_session(former, CloseReason::Displaced);
        }
        self.arm_session_timer(key);
        self.tell_opened(key);
    }
}

fn answer(mut handshake: Handshake, message: &[u8]) -> Result<Step, HandshakeError> {
    handshake.read_message(message)?;
    let mut body = Vec::with_capacity(2048);
    handshake.write_message(&mut body)?;
    let mut framed = Vec::with_capacity(2 + body.len());
    // The longest answer is 1,137 bytes (dmsg-wire 2.8), far below what a frame may carry.
    if frame::push_prefix(body.len(), &mut framed).is_err() {
        return Err(HandshakeError::MissingRemote);
    }
    framed.extend_from_slice(&body);
    Ok(Step::Answer(Box::new(handshake), framed))
}

fn conclude(mut handshake: Handshake, message: &[u8]) -> Result<Step, HandshakeError> {
    handshake.read_message(message)?;
    Ok(Step::Finished(Box::new(handshake.finish()?)))
}

/// Bytes one half-open connection may hold: a frame of the largest size.
pub(crate) const HALF_OPEN_FRAME_MAX: usize = frame::FRAME_BODY_MAX;

const _: () = assert!(limits::HANDSHAKE_TIMEOUT_NS == 5 * limits::SECOND_NS, "dmsg-wire 3");
