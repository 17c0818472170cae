//! A peer's session handshake: Noise XK as initiator in frames (dmsg-wire 2.3, 3), and strangers who never finish it.

use ringwire_netem::Nanos;
use ringwire_proto::frame::{FRAME_BODY_MAX, FrameReader, push_prefix};
use ringwire_proto::noise::{Handshake, Hybrid, Pattern, Role};

use super::{Context, Peer, Stage};
use crate::plan::{Character, Strangeness};

/// A handshake under way.
pub(super) struct Greeting {
    noise: Handshake,
    reader: FrameReader,
}

impl Peer {
    /// Puts message 1, or what a stranger has instead, into the output.
    pub(super) fn begin_greeting(&mut self, _now: Nanos) {
        let hybrid = if self.plan.hybrid { Hybrid::Offer } else { Hybrid::Off };
        let noise = Handshake::new(
            Pattern::Xk,
            Role::Initiator,
            &self.secret,
            Some(&self.server),
            hybrid,
            &mut self.entropy,
        );
        let Ok(mut noise) = noise else {
            self.stage = Stage::Over;
            return;
        };
        let mut first = Vec::new();
        write_message(&mut noise, &mut first);
        match self.plan.character {
            Character::Stranger(Strangeness::Silent) => {}
            Character::Stranger(Strangeness::Noise) => self.out.extend_from_slice(b"GET / HTTP/1.1\r\n\r\n"),
            Character::Stranger(Strangeness::Half) => self.out.extend_from_slice(&first[..first.len() / 2]),
            _ => self.out.extend_from_slice(&first),
        }
        self.stage = Stage::Greeting(Box::new(Greeting { noise, reader: FrameReader::new(FRAME_BODY_MAX) }));
    }

    /// Takes message 2 and answers with message 3; then the session is open. Bytes behind message 2 stay in `bytes`.
    pub(super) fn greet(&mut self, context: &mut Context<'_>, bytes: &mut &[u8]) {
        let Stage::Greeting(greeting) = &mut self.stage else { return };
        if matches!(self.plan.character, Character::Stranger(_)) {
            *bytes = &[];
            return;
        }
        let peer = self.index;
        let message = match greeting.reader.push(bytes) {
            Ok(None) => return,
            Ok(Some(message)) => message.to_vec(),
            Err(fault) => {
                return context.ledger.fail(context.now, format!("peer {peer}: handshake frame: {fault}"));
            }
        };
        let Stage::Greeting(mut greeting) = std::mem::replace(&mut self.stage, Stage::Over) else { return };
        if let Err(fault) = greeting.noise.read_message(&message) {
            return context.ledger.fail(context.now, format!("peer {peer}: handshake message 2: {fault}"));
        }
        write_message(&mut greeting.noise, &mut self.out);
        match greeting.noise.finish() {
            Ok(outcome) => self.open_session(context, &outcome),
            Err(fault) => context.ledger.fail(context.now, format!("peer {peer}: handshake: {fault}")),
        }
    }
}

/// Appends the next message of a handshake in its frame.
fn write_message(noise: &mut Handshake, out: &mut Vec<u8>) {
    let mut message = Vec::new();
    // A message of an initiator that has what it needs; were it to fail, the server would see half a handshake.
    if noise.write_message(&mut message).is_ok() && push_prefix(message.len(), out).is_ok() {
        out.extend_from_slice(&message);
    }
}
