//! The session multiplexer of a session: yamux or smux, behind the calls that the bridges make.
//!
//! Which one it is the peer's first byte says (dmsg-wire 4.5); until then nothing is sent, unless a stream has to be opened
//! towards the peer: then it is taken for yamux. An enum, so that the calls of the data path are known when compiled.

use ringwire_proto::{smux, yamux};

use crate::counters::Counter;
use crate::driver::Nanos;
use crate::limits;
use crate::slab::Key;

/// See the module's head. Plain data.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(crate) enum Mux {
    /// The peer has not sent a byte since its handshake.
    Unknown {
        /// When that has taken too long.
        until: Nanos,
    },
    /// What nearly all clients speak (dmsg-wire 5).
    Yamux(yamux::Session<Key>, yamux::Cutter),
    /// What clients of early 2026 can be set to (dmsg-wire 6).
    Smux(smux::Session<Key>, smux::Cutter),
}

/// Why a session's peer broke it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    /// A rule of yamux.
    #[error(transparent)]
    Yamux(#[from] yamux::Violation),
    /// A rule of smux.
    #[error(transparent)]
    Smux(#[from] smux::Violation),
    /// Frames that bring nothing: pings, resets, openings, updates and data of streams that are gone.
    #[error(
        "frame upon frame that brings nothing: {} at once, or {} a second for long, and hardly any payload",
        limits::USELESS_FRAMES_MAX,
        limits::USELESS_FRAMES_PER_SECOND
    )]
    Useless,
    /// The first byte belongs to neither multiplexer.
    #[error("first byte {0:#04x} is neither yamux (00) nor smux (01, 02)")]
    UnknownMultiplexer(u8),
}

impl Violation {
    /// Which counter of its kind it moves.
    pub(super) const fn counter(&self) -> Counter {
        match self {
            Self::UnknownMultiplexer(_) => Counter::ViolationsFirstByte,
            Self::Useless => Counter::ViolationsUseless,
            Self::Yamux(yamux::Violation::Header(_)) | Self::Smux(smux::Violation::Header(_)) => {
                Counter::ViolationsHeader
            }
            Self::Yamux(yamux::Violation::WindowExceeded { .. }) => Counter::ViolationsCredit,
            Self::Yamux(
                yamux::Violation::StreamZero
                | yamux::Violation::StreamInUse { .. }
                | yamux::Violation::UnexpectedFin { .. },
            ) => Counter::ViolationsStream,
            Self::Yamux(yamux::Violation::RepliesUnread { .. })
            | Self::Smux(
                smux::Violation::TooManyStreams { .. }
                | smux::Violation::FinishesUnread { .. }
                | smux::Violation::BacklogFull { .. },
            ) => Counter::ViolationsExcess,
            Self::Yamux(yamux::Violation::PeerWentAway { .. }) => Counter::GoAwaysReceived,
        }
    }

    /// What the peer is told before the connection closes, where its multiplexer has a word for it.
    pub(super) fn go_away(&self) -> Option<Frame> {
        match self {
            Self::Yamux(violation) => violation.go_away().map(Frame::from),
            // Whoever sends so much of nothing is not waited for until he has read a farewell.
            Self::Smux(_) | Self::Useless | Self::UnknownMultiplexer(_) => None,
        }
    }
}

/// Why a session is taken for dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DeadReason {
    /// As yamux sees it.
    #[error(transparent)]
    Yamux(yamux::DeadReason),
    /// As smux sees it.
    #[error(transparent)]
    Smux(smux::DeadReason),
    /// It sends, and takes nothing.
    #[error("it took nothing of what was sent to it for {} s", limits::STALL_TIMEOUT_NS / limits::SECOND_NS)]
    TakesNothing,
    /// The peer proved its key and never said anything: clients ping at once, or every 30 s at least (dmsg-wire 5.6, 15).
    #[error("not a byte since the handshake")]
    NeverSpoke,
}

/// What a clock of the multiplexer found.
pub(crate) enum Timeout {
    /// We finished a stream and the peer never did: it is forgotten.
    StreamTimedOut(Option<Key>),
    /// The peer is silent: close the connection.
    SessionDead(DeadReason),
}

/// A frame of the multiplexer without payload, or the header of one with payload, as it travels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame {
    bytes: [u8; Self::LEN_MAX],
    len: u8,
}

impl Frame {
    /// The longest: an update of smux.
    pub(crate) const LEN_MAX: usize = smux::HEADER_LEN + smux::UPDATE_LEN;

    /// Its bytes.
    #[inline]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    fn new(parts: &[&[u8]]) -> Self {
        let (mut bytes, mut len) = ([0; Self::LEN_MAX], 0);
        for part in parts {
            bytes[len..len + part.len()].copy_from_slice(part);
            len += part.len();
        }
        // At most LEN_MAX.
        Self { bytes, len: len as u8 }
    }
}

impl From<yamux::Header> for Frame {
    #[inline]
    fn from(header: yamux::Header) -> Self {
        let mut bytes = [0; Self::LEN_MAX];
        bytes[..yamux::HEADER_LEN].copy_from_slice(&header.encode());
        Self { bytes, len: yamux::HEADER_LEN as u8 }
    }
}

impl From<smux::Header> for Frame {
    fn from(header: smux::Header) -> Self {
        Self::new(&[&header.encode()])
    }
}

impl From<smux::Control> for Frame {
    fn from(control: smux::Control) -> Self {
        match control {
            smux::Control::Nop(version) => smux::Header::nop(version).into(),
            smux::Control::Header(header) => header.into(),
            smux::Control::Update { stream, update } => {
                Self::new(&[&smux::Header::update(stream).encode(), &update.encode()])
            }
        }
    }
}

/// Bounds of our smux sessions. The window of a stream is the one it starts with anyway, and the same as yamux's, so that the
/// budget counts both alike. Version 2 is never left unread: its windows bound what can arrive. Version 1 has no other bound,
/// so all streams of a session share one window.
const fn smux_config(version: smux::Version) -> smux::Config {
    smux::Config {
        receive_buffer_max: match version {
            smux::Version::V1 => smux::INITIAL_WINDOW,
            smux::Version::V2 => u32::MAX,
        },
        stream_buffer: smux::INITIAL_WINDOW,
        ..smux::Config::server(version)
    }
}

const _: () = assert!(smux::INITIAL_WINDOW == yamux::INITIAL_WINDOW, "one base window for both");

impl Mux {
    /// Of a session whose handshake has just ended.
    pub(super) const fn unknown(now: Nanos) -> Self {
        Self::Unknown { until: now + limits::FIRST_BYTE_TIMEOUT_NS }
    }

    pub(super) fn yamux(config: yamux::Config, now: Nanos) -> Self {
        Self::Yamux(yamux::Session::new(config, now), yamux::Cutter::new())
    }

    /// The one whose frames begin with this byte (dmsg-wire 4.5).
    ///
    /// # Errors
    /// There is none.
    pub(super) fn of_first_byte(byte: u8, yamux: yamux::Config, now: Nanos) -> Result<Self, Violation> {
        match (byte, smux::Version::from_first_byte(byte)) {
            (0, _) => Ok(Self::yamux(yamux, now)),
            (_, Some(version)) => {
                Ok(Self::Smux(smux::Session::new(smux_config(version), now), smux::Cutter::new(version)))
            }
            (_, None) => Err(Violation::UnknownMultiplexer(byte)),
        }
    }

    /// As operators see it.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Unknown { .. } => "unknown",
            Self::Yamux(..) => "yamux",
            Self::Smux(session, _) => match session.config().version {
                smux::Version::V1 => "smux 1",
                smux::Version::V2 => "smux 2",
            },
        }
    }

    /// Takes a stream of the peer.
    pub(crate) fn accept(&mut self, stream: u32, half: Key) {
        match self {
            Self::Yamux(session, _) => session.accept(stream, half),
            Self::Smux(session, _) => session.accept(stream, half),
            Self::Unknown { .. } => {}
        }
    }

    /// Opens a stream; its SYN goes out before its data. None: not now.
    pub(crate) fn open(&mut self, now: Nanos, half: Key) -> Option<u32> {
        match self {
            Self::Yamux(session, _) => session.open(now, half).ok(),
            Self::Smux(session, _) => session.open(half).ok(),
            Self::Unknown { .. } => None,
        }
    }

    /// Payload of one frame at most.
    #[inline]
    pub(crate) fn frame_len_max(&self) -> usize {
        match self {
            Self::Smux(session, _) => usize::from(session.config().frame_max),
            Self::Yamux(..) | Self::Unknown { .. } => usize::MAX,
        }
    }

    /// Spends up to `want` bytes of credit, at most a frame: how many may be sent now.
    #[inline]
    pub(crate) fn reserve(&mut self, stream: u32, want: usize) -> usize {
        match self {
            Self::Yamux(session, _) => {
                session.reserve(stream, u32::try_from(want).unwrap_or(u32::MAX)) as usize
            }
            Self::Smux(session, _) => {
                usize::from(session.reserve(stream, u16::try_from(want).unwrap_or(u16::MAX)))
            }
            Self::Unknown { .. } => 0,
        }
    }

    /// The header of a data frame of `len` bytes, which were reserved.
    #[inline]
    pub(crate) fn data(&self, stream: u32, len: usize) -> Frame {
        match self {
            Self::Smux(session, _) => {
                smux::Header::push(session.config().version, stream, u16::try_from(len).unwrap_or(u16::MAX))
                    .into()
            }
            Self::Yamux(..) | Self::Unknown { .. } => {
                yamux::Header::data(stream, u32::try_from(len).unwrap_or(u32::MAX)).into()
            }
        }
    }

    /// Ends our direction: the frame that says so, behind the stream's data.
    pub(crate) fn finish(&mut self, now: Nanos, stream: u32) -> Option<Frame> {
        match self {
            Self::Yamux(session, _) => session.finish(now, stream).map(Frame::from),
            Self::Smux(session, _) => session.finish(stream).map(Frame::from),
            Self::Unknown { .. } => None,
        }
    }

    /// Ends a stream at once and forgets it. An smux peer sees an orderly end: its wire has no other.
    pub(crate) fn reset(&mut self, stream: u32) {
        match self {
            Self::Yamux(session, _) => {
                session.reset(stream);
            }
            Self::Smux(session, _) => {
                session.reset(stream);
            }
            Self::Unknown { .. } => {}
        }
    }

    /// The owner is done with `len` bytes of the stream.
    #[inline]
    pub(crate) fn consumed(&mut self, stream: u32, len: usize) {
        // What a stream holds is counted in 32 bits.
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        match self {
            Self::Yamux(session, _) => session.consumed(stream, len),
            Self::Smux(session, _) => session.consumed(stream, len),
            Self::Unknown { .. } => {}
        }
    }

    /// Bytes of the stream that were delivered and not reported as consumed.
    #[inline]
    pub(crate) fn unconsumed(&self, stream: u32) -> usize {
        let len = match self {
            Self::Yamux(session, _) => session.stream(stream).map_or(0, yamux::Stream::unconsumed),
            Self::Smux(session, _) => session.stream(stream).map_or(0, smux::Stream::unconsumed),
            Self::Unknown { .. } => 0,
        };
        len as usize
    }

    /// Raises the peer's credit on a stream beyond the base window. Only where round trips are known, hence not for smux.
    pub(crate) fn grant_extra(&mut self, stream: u32, len: usize) {
        if let Self::Yamux(session, _) = self {
            session.grant_extra(stream, u32::try_from(len).unwrap_or(u32::MAX));
        }
    }

    /// Asks for a sign of life that tells the round trip. smux has no such thing.
    pub(crate) fn ping(&mut self, now: Nanos) {
        if let Self::Yamux(session, _) = self {
            session.ping(now);
        }
    }

    /// The next round trip that a ping measured, in nanoseconds.
    pub(crate) fn poll_round_trip(&mut self) -> Option<Nanos> {
        let Self::Yamux(session, _) = self else { return None };
        while let Some(event) = session.poll_event() {
            if let yamux::Event::PingAnswered { rtt_ns, .. } = event {
                return Some(rtt_ns);
            }
        }
        None
    }

    /// Whether what was received ends with a whole frame: the only place where the end of a connection is clean.
    pub(crate) const fn is_between_frames(&self) -> bool {
        match self {
            Self::Yamux(_, cutter) => cutter.is_between_frames(),
            Self::Smux(_, cutter) => cutter.is_between_frames(),
            Self::Unknown { .. } => true,
        }
    }

    /// The tag of a stream.
    #[inline]
    pub(crate) fn tag(&self, stream: u32) -> Option<Key> {
        match self {
            Self::Yamux(session, _) => session.stream(stream)?.tag,
            Self::Smux(session, _) => session.stream(stream)?.tag,
            Self::Unknown { .. } => None,
        }
    }

    /// Whether the stream exists still.
    pub(crate) fn has(&self, stream: u32) -> bool {
        match self {
            Self::Yamux(session, _) => session.stream(stream).is_some(),
            Self::Smux(session, _) => session.stream(stream).is_some(),
            Self::Unknown { .. } => false,
        }
    }

    /// Whether our direction of a stream ended.
    pub(crate) fn has_finished(&self, stream: u32) -> bool {
        match self {
            Self::Yamux(session, _) => session.stream(stream).is_some_and(yamux::Stream::sent_fin),
            Self::Smux(session, _) => session.stream(stream).is_some_and(smux::Stream::sent_fin),
            Self::Unknown { .. } => false,
        }
    }

    /// Whether a stream that we finished and the peer does not is ended by [`handle_timeout`](Self::handle_timeout). If not,
    /// the owner has to.
    pub(crate) const fn has_close_timer(&self) -> bool {
        matches!(self, Self::Yamux(..))
    }

    /// Whether the connection is to be read: smux version 1 has no other flow control.
    pub(crate) const fn may_receive(&self) -> bool {
        match self {
            Self::Smux(session, _) => session.may_receive(),
            Self::Yamux(..) | Self::Unknown { .. } => true,
        }
    }

    /// How many streams exist.
    pub(crate) fn stream_count(&self) -> usize {
        match self {
            Self::Yamux(session, _) => session.stream_count(),
            Self::Smux(session, _) => session.stream_count(),
            Self::Unknown { .. } => 0,
        }
    }

    /// How many of them the peer opened.
    pub(crate) const fn inbound_count(&self) -> u32 {
        match self {
            Self::Yamux(session, _) => session.inbound_count(),
            Self::Smux(session, _) => session.inbound_count(),
            Self::Unknown { .. } => 0,
        }
    }

    /// The tags of all streams in the order of their ids. Sorts them: for the end of a session.
    pub(crate) fn tags(&self) -> Vec<Key> {
        match self {
            Self::Yamux(session, _) => session.streams().filter_map(|(_, stream)| stream.tag).collect(),
            Self::Smux(session, _) => session.streams().filter_map(|(_, stream)| stream.tag).collect(),
            Self::Unknown { .. } => Vec::new(),
        }
    }

    /// The next control frame to send.
    #[inline]
    pub(crate) fn poll_control(&mut self) -> Option<Frame> {
        match self {
            Self::Yamux(session, _) => session.poll_control().map(Frame::from),
            Self::Smux(session, _) => session.poll_control().map(Frame::from),
            Self::Unknown { .. } => None,
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    pub(crate) fn next_timeout(&self) -> Option<Nanos> {
        match self {
            Self::Yamux(session, _) => session.next_timeout(),
            Self::Smux(session, _) => session.next_timeout(),
            Self::Unknown { until } => Some(*until),
        }
    }

    /// Runs what is due. Call until it returns none, then drain `poll_control`.
    pub(crate) fn handle_timeout(&mut self, now: Nanos) -> Option<Timeout> {
        match self {
            Self::Yamux(session, _) => session.handle_timeout(now).map(|timeout| match timeout {
                yamux::Timeout::StreamTimedOut { tag, .. } => Timeout::StreamTimedOut(tag),
                yamux::Timeout::SessionDead(reason) => Timeout::SessionDead(DeadReason::Yamux(reason)),
            }),
            Self::Smux(session, _) => {
                session.handle_timeout(now).map(|reason| Timeout::SessionDead(DeadReason::Smux(reason)))
            }
            Self::Unknown { until } => {
                (now >= *until).then_some(Timeout::SessionDead(DeadReason::NeverSpoke))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_byte_decides() {
        let name = |byte| Mux::of_first_byte(byte, yamux::Config::server(), 0).map(|mux| mux.name());
        assert_eq!(name(0), Ok("yamux"));
        assert_eq!(name(1), Ok("smux 1"));
        assert_eq!(name(2), Ok("smux 2"));
        assert_eq!(name(3), Err(Violation::UnknownMultiplexer(3)));
        assert_eq!(name(0x16), Err(Violation::UnknownMultiplexer(0x16)));
    }

    #[test]
    fn nothing_is_said_before_the_peer_and_its_silence_ends() {
        let mut mux = Mux::unknown(5);
        assert!(mux.poll_control().is_none());
        let until = mux.next_timeout().unwrap();
        assert!(mux.handle_timeout(until - 1).is_none() && mux.poll_control().is_none());
        assert!(matches!(mux.handle_timeout(until), Some(Timeout::SessionDead(DeadReason::NeverSpoke))));
        // Longer than the pings of a client are apart, and its answer may take.
        assert!(until > 40 * limits::SECOND_NS);
    }

    #[test]
    fn frames_are_those_of_the_wire() {
        let update = smux::Update { consumed: 7, window: 9 };
        let frame = Frame::from(smux::Control::Update { stream: 3, update });
        assert_eq!(frame.bytes(), [2, 4, 8, 0, 3, 0, 0, 0, 7, 0, 0, 0, 9, 0, 0, 0]);
        assert_eq!(Frame::from(yamux::Header::ping(5)).bytes(), yamux::Header::ping(5).encode());
        let mux = Mux::of_first_byte(1, yamux::Config::server(), 0).unwrap();
        assert_eq!(mux.data(5, 258).bytes(), [1, 2, 2, 1, 5, 0, 0, 0]);
    }
}
