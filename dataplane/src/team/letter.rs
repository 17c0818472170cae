//! Letters: what one worker says to another in 32 bytes, and parcels for what is longer.
//!
//! A letter names a half of the worker it goes to, and does there what the half's partner would do to it if both were of one
//! worker. Both ends are this process: what is decoded is what was encoded.

use std::sync::Arc;

use ringwire_proto::identity::PublicKey;

use crate::driver::Nanos;
use crate::prefix::Prefix;
use crate::ring::Span;
use crate::slab::Key;

pub(super) const WORDS: usize = 4;

/// Spans that one letter brings home.
pub(super) const HOMEWARD_PER_LETTER: usize = 3;

/// What one worker says to another. `half` is one of the receiver's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Letter {
    /// Close this session, if it still has this generation: too many of its key stand by.
    Close { session: Key, generation: u64 },
    /// Another session of this one's key has come: it is to show that it lives.
    Rival { session: Key, generation: u64 },
    /// This session, which stood by, holds its key now.
    TookOver { session: Key, generation: u64 },
    /// Bytes for this half's peer, on loan; `window`: credit that their sender has in all.
    Payload { half: Key, span: Span, window: u64 },
    /// What you lent is done with; empty spans are none.
    Home { spans: [Span; HOMEWARD_PER_LETTER] },
    /// So many bytes of this half have left; so many still wait, and so long they waited for credit so far.
    Delivered { half: Key, len: u32, backlog: u32, blocked_ns: Nanos },
    /// Open a stream: the next [`Parcel`] says which.
    Dial,
    /// The stream that this stand-in dialled is open: so it is called here.
    Opened { stand_in: Key, half: Key },
    /// It is not. `gone`: the session was not there any more; ask the directory again.
    Refused { stand_in: Key, gone: bool },
    /// The next [`Parcel`] is the verified response this half waits for.
    Answer { half: Key },
    /// The partner's peer sent FIN: all that came before it is to be delivered, and then yours.
    Finish { half: Key },
    /// What this half's peer had finished is delivered, FIN included.
    FinishSent { half: Key },
    /// End: what is queued goes out, then FIN.
    End { half: Key },
    /// Reset the stream; `unless_finished`: not if its FIN is out. The partner is gone.
    Reset { half: Key, unless_finished: bool },
    /// The partner is gone.
    Gone { half: Key },
    /// So many proofs of identity have come out one way or the other.
    Decided { proofs: u64 },
}

/// What is too long for a letter; taken by the letter that announces it.
#[derive(Debug)]
pub(super) enum Parcel {
    Dial(Box<Dial>),
    Answer(Arc<[u8]>),
}

/// A request to be passed on to a session of another worker.
#[derive(Debug)]
pub(crate) struct Dial {
    /// The half of the request, and who stands there for the one that is to be opened.
    pub(super) half: Key,
    pub(super) stand_in: Key,
    /// Who dials, and on which session.
    pub(super) source: PublicKey,
    pub(super) prefix: Prefix,
    pub(super) source_session: Key,
    pub(super) destination: PublicKey,
    pub(super) session: Key,
    pub(super) signed: Arc<[u8]>,
}

impl Dial {
    /// The session that is dialled.
    pub(crate) const fn session(&self) -> Key {
        self.session
    }

    /// Whose that is.
    pub(crate) const fn destination(&self) -> PublicKey {
        self.destination
    }
}

const CLOSE: u64 = 1;
const PAYLOAD: u64 = 2;
const HOME: u64 = 3;
const DELIVERED: u64 = 4;
const DIAL: u64 = 5;
const OPENED: u64 = 6;
const REFUSED: u64 = 7;
const ANSWER: u64 = 8;
const FINISH: u64 = 9;
const FINISH_SENT: u64 = 10;
const END: u64 = 11;
const RESET: u64 = 12;
const GONE: u64 = 13;
const DECIDED: u64 = 14;
const RIVAL: u64 = 15;
const TOOK_OVER: u64 = 16;

impl Letter {
    pub(super) fn encode(self) -> [u64; WORDS] {
        match self {
            Self::Close { session, generation } => [CLOSE, session.number(), generation, 0],
            Self::Rival { session, generation } => [RIVAL, session.number(), generation, 0],
            Self::TookOver { session, generation } => [TOOK_OVER, session.number(), generation, 0],
            Self::Payload { half, span, window } => [PAYLOAD, half.number(), span.word(), window],
            Self::Home { spans: [first, second, third] } => [HOME, first.word(), second.word(), third.word()],
            Self::Delivered { half, len, backlog, blocked_ns } => {
                [DELIVERED, half.number(), u64::from(len) << 32 | u64::from(backlog), blocked_ns]
            }
            Self::Dial => [DIAL, 0, 0, 0],
            Self::Opened { stand_in, half } => [OPENED, stand_in.number(), half.number(), 0],
            Self::Refused { stand_in, gone } => [REFUSED, stand_in.number(), u64::from(gone), 0],
            Self::Answer { half } => [ANSWER, half.number(), 0, 0],
            Self::Finish { half } => [FINISH, half.number(), 0, 0],
            Self::FinishSent { half } => [FINISH_SENT, half.number(), 0, 0],
            Self::End { half } => [END, half.number(), 0, 0],
            Self::Reset { half, unless_finished } => [RESET, half.number(), u64::from(unless_finished), 0],
            Self::Gone { half } => [GONE, half.number(), 0, 0],
            Self::Decided { proofs } => [DECIDED, proofs, 0, 0],
        }
    }

    /// Only what [`encode`](Self::encode) made arrives.
    pub(super) fn decode(words: [u64; WORDS]) -> Self {
        let [kind, first, second, third] = words;
        let key = Key::from_number(first);
        match kind {
            CLOSE => Self::Close { session: key, generation: second },
            RIVAL => Self::Rival { session: key, generation: second },
            TOOK_OVER => Self::TookOver { session: key, generation: second },
            PAYLOAD => Self::Payload { half: key, span: Span::from_word(second), window: third },
            HOME => Self::Home { spans: [first, second, third].map(Span::from_word) },
            // Truncations: each takes the half that `encode` put there.
            DELIVERED => Self::Delivered {
                half: key,
                len: (second >> 32) as u32,
                backlog: second as u32,
                blocked_ns: third,
            },
            DIAL => Self::Dial,
            OPENED => Self::Opened { stand_in: key, half: Key::from_number(second) },
            REFUSED => Self::Refused { stand_in: key, gone: second != 0 },
            ANSWER => Self::Answer { half: key },
            FINISH => Self::Finish { half: key },
            FINISH_SENT => Self::FinishSent { half: key },
            END => Self::End { half: key },
            RESET => Self::Reset { half: key, unless_finished: second != 0 },
            GONE => Self::Gone { half: key },
            DECIDED => Self::Decided { proofs: first },
            kind => unreachable!("no letter of kind {kind} is ever written"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_is_what_was_written() {
        let half = Key { index: 7, generation: 9 };
        let span = Span::from_word(u64::MAX - 5);
        for letter in [
            Letter::Close { session: half, generation: u64::MAX },
            Letter::Payload { half, span, window: 1 << 40 },
            Letter::Home { spans: [span, Span::default(), span] },
            Letter::Delivered { half, len: u32::MAX, backlog: 5, blocked_ns: u64::MAX },
            Letter::Dial,
            Letter::Opened { stand_in: half, half: Key::NONE },
            Letter::Refused { stand_in: half, gone: true },
            Letter::Refused { stand_in: half, gone: false },
            Letter::Answer { half },
            Letter::Finish { half },
            Letter::FinishSent { half },
            Letter::End { half },
            Letter::Reset { half, unless_finished: true },
            Letter::Reset { half, unless_finished: false },
            Letter::Gone { half },
            Letter::Decided { proofs: 3 },
        ] {
            assert_eq!(Letter::decode(letter.encode()), letter);
        }
    }
}
