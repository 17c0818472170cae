//! What the two planes say to each other: commands and events as records of fixed size.
//!
//! In goes a typed value, out comes a record for a ring, and back. A record has one form: decoding rejects unknown kinds,
//! values out of range, and rests that are not zero, so whatever decodes encodes to the same bytes again. It never
//! panics. Keys are checked for their form only; turning one into a public key checks that it is a point of the
//! curve.
//!
//! ```text
//!   Command   0 kind   1..9 request   9.. fields                      64 bytes
//!   Event     0 kind   1.. fields                                    128 bytes
//! ```
//!
//! Numbers are little-endian. The control plane sends commands and reads events; the data plane uses them next, in place
//! of its mail between threads.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use crate::Fault;

/// Words of a command record: 64 bytes.
pub const COMMAND_WORDS: usize = 8;

/// Words of an event record: 128 bytes, because a key and an address alone are 58.
pub const EVENT_WORDS: usize = 16;

/// Why a record is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A field has a value that is never encoded.
    #[error("{field} is {value}")]
    Value {
        /// Which field.
        field: &'static str,
        /// Its value, or the first byte of it.
        value: u64,
    },
    /// The fields do not fit the record.
    #[error("the record is too short")]
    Short,
    /// The rest behind the last field is not zero.
    #[error("the record's rest is not zero")]
    Rest,
}

/// A peer's compressed public key in the form it has on the wire: 33 bytes, the first one 2 or 3.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerKey([u8; 33]);

impl PeerKey {
    /// The key, if these bytes have its form.
    ///
    /// # Errors
    /// The first byte is neither 2 nor 3.
    pub fn new(bytes: [u8; 33]) -> Result<Self, RecordError> {
        match bytes[0] {
            2 | 3 => Ok(Self(bytes)),
            other => Err(RecordError::Value { field: "key form", value: other.into() }),
        }
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; 33] {
        &self.0
    }
}

impl std::fmt::Debug for PeerKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

/// An order to a worker. Each is answered with [`Event::Answered`] of the same request number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Command {
    /// Chosen by the control plane; comes back in the answer.
    pub request: u64,
    /// What to do.
    pub order: Order,
}

/// What a worker can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Send an [`Event::Listed`] for every session.
    ListSessions,
    /// Send an [`Event::Bridged`] for every bridge.
    ListBridges,
    /// Close the session of this key.
    CloseSession(PeerKey),
    /// Accept nothing new; end when the sessions have ended, or at this time, in nanoseconds of CLOCK_MONOTONIC.
    Drain {
        /// When to end at the latest.
        deadline_ns: u64,
    },
    /// Change a setting of the running worker.
    Change(Setting),
}

/// A setting that can change while a worker runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// The post-quantum part of handshakes from now on.
    Hybrid(HybridPolicy),
    /// How long a worker may wait for more completions, in microseconds; 0: never.
    CompanyUsMax(u32),
    /// For how long receiving from one busy session of many may be put off, in microseconds; 0: never.
    PauseUsMax(u32),
    /// Buffer memory that the queues of all workers together may hold and promise, in bytes.
    BudgetLen(u64),
}

/// What happens to the post-quantum part of a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HybridPolicy {
    /// Never used.
    Off,
    /// Used with peers that offer it.
    Offer,
    /// Peers without it are refused.
    Require,
}

/// Something that happened in a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A session was authenticated.
    Opened(SessionNote),
    /// A session that was opened has ended.
    Closed(SessionNote, Reason),
    /// A session exists: part of the reply to [`Order::ListSessions`].
    Listed {
        /// The command's number.
        request: u64,
        /// The session.
        session: SessionNote,
    },
    /// A bridge exists: part of the reply to [`Order::ListBridges`].
    Bridged {
        /// The command's number.
        request: u64,
        /// The bridge.
        bridge: BridgeNote,
    },
    /// A command is done. What it listed precedes this.
    Answered {
        /// The command's number.
        request: u64,
        /// How it went.
        answer: Answer,
    },
    /// Events were dropped because the ring was full: what is known of this worker is out of date; list again.
    Resync {
        /// Events dropped since the region was made.
        dropped: u64,
    },
}

/// A session, as an event describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionNote {
    /// Names the session within its worker: never used again while the worker lives.
    pub session: u64,
    /// The peer's key.
    pub peer: PeerKey,
    /// Where it connects from. A flow label of IPv6 is not carried.
    pub address: SocketAddr,
    /// Whether the handshake had the post-quantum part.
    pub hybrid: bool,
    /// Another session holds its key, and is dialled in its place.
    pub stands_by: bool,
    /// When it happened (for a listed session: when it opened), in nanoseconds of CLOCK_MONOTONIC.
    pub at_ns: u64,
}

/// A bridge, as an event describes it: a stream of its source joined to a stream of its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BridgeNote {
    /// Who dialled.
    pub source: PeerKey,
    /// Who was dialled.
    pub destination: PeerKey,
    /// Bytes from the source so far.
    pub forth: u64,
    /// Bytes from the destination so far.
    pub back: u64,
    /// Bytes that wait for the destination.
    pub forth_queued: u32,
    /// Bytes that wait for the source.
    pub back_queued: u32,
    /// The destination's window holds up the source's bytes.
    pub forth_limited: bool,
    /// The source's window holds up the destination's bytes.
    pub back_limited: bool,
    /// When it started, in nanoseconds of CLOCK_MONOTONIC.
    pub since_ns: u64,
}

/// How a command went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Done, for this many sessions.
    Done(u64),
    /// There is no such session.
    NotFound,
    /// The worker does not do that now.
    Refused,
}

/// Why a session ended: the data plane's reasons for authenticated sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The peer closed the connection.
    PeerClosed,
    /// The connection failed with this errno; whatever number, it is only shown.
    ConnectionFailed(i32),
    /// A newer session of the same key took its place.
    Displaced,
    /// The peer broke the rules of the multiplexer.
    Violation,
    /// The peer stopped answering.
    Dead,
    /// An operator asked for it.
    Ordered,
    /// The server stops.
    Stopping,
    /// Connections are scarce, and its address has more than its share of them.
    AddressShare,
}

impl Command {
    /// The record for a command ring.
    pub fn encode(&self) -> [u64; COMMAND_WORDS] {
        let mut bytes = [0; COMMAND_WORDS * 8];
        let mut fields = Writer { rest: &mut bytes };
        let kind = match self.order {
            Order::ListSessions => 1,
            Order::CloseSession(_) => 2,
            Order::Drain { .. } => 3,
            Order::Change(Setting::Hybrid(_)) => 4,
            Order::Change(Setting::CompanyUsMax(_)) => 5,
            Order::ListBridges => 6,
            Order::Change(Setting::BudgetLen(_)) => 7,
            Order::Change(Setting::PauseUsMax(_)) => 8,
        };
        fields.put([kind]);
        fields.put(self.request.to_le_bytes());
        match self.order {
            Order::ListSessions | Order::ListBridges => {}
            Order::CloseSession(peer) => fields.put(peer.0),
            Order::Drain { deadline_ns } => fields.put(deadline_ns.to_le_bytes()),
            Order::Change(Setting::Hybrid(policy)) => fields.put([match policy {
                HybridPolicy::Off => 0,
                HybridPolicy::Offer => 1,
                HybridPolicy::Require => 2,
            }]),
            Order::Change(Setting::CompanyUsMax(value) | Setting::PauseUsMax(value)) => {
                fields.put(value.to_le_bytes());
            }
            Order::Change(Setting::BudgetLen(value)) => fields.put(value.to_le_bytes()),
        }
        to_words(&bytes)
    }

    /// The command in a record that was copied out of a ring.
    ///
    /// # Errors
    /// [`Fault::Record`]: the control plane sent something that nobody encodes.
    pub fn decode(record: &[u64; COMMAND_WORDS]) -> Result<Self, Fault> {
        let bytes: [u8; COMMAND_WORDS * 8] = to_bytes(record);
        let mut fields = Reader { rest: &bytes };
        let kind = fields.byte()?;
        let request = fields.number()?;
        let order = match kind {
            1 => Order::ListSessions,
            2 => Order::CloseSession(PeerKey::new(fields.take()?)?),
            3 => Order::Drain { deadline_ns: fields.number()? },
            4 => Order::Change(Setting::Hybrid(match fields.byte()? {
                0 => HybridPolicy::Off,
                1 => HybridPolicy::Offer,
                2 => HybridPolicy::Require,
                other => return Err(bad("hybrid policy", other)),
            })),
            5 => Order::Change(Setting::CompanyUsMax(u32::from_le_bytes(fields.take()?))),
            6 => Order::ListBridges,
            7 => Order::Change(Setting::BudgetLen(fields.number()?)),
            8 => Order::Change(Setting::PauseUsMax(u32::from_le_bytes(fields.take()?))),
            other => return Err(bad("command kind", other)),
        };
        fields.finish()?;
        Ok(Self { request, order })
    }
}

impl Event {
    /// The record for an event ring.
    pub fn encode(&self) -> [u64; EVENT_WORDS] {
        let mut bytes = [0; EVENT_WORDS * 8];
        let mut fields = Writer { rest: &mut bytes };
        match self {
            Self::Opened(session) => {
                fields.put([1]);
                session.encode(&mut fields);
            }
            Self::Closed(session, reason) => {
                fields.put([2]);
                session.encode(&mut fields);
                reason.encode(&mut fields);
            }
            Self::Listed { request, session } => {
                fields.put([3]);
                fields.put(request.to_le_bytes());
                session.encode(&mut fields);
            }
            Self::Answered { request, answer } => {
                fields.put([4]);
                fields.put(request.to_le_bytes());
                match answer {
                    Answer::Done(sessions) => {
                        fields.put([1]);
                        fields.put(sessions.to_le_bytes());
                    }
                    Answer::NotFound => fields.put([2]),
                    Answer::Refused => fields.put([3]),
                }
            }
            Self::Resync { dropped } => {
                fields.put([5]);
                fields.put(dropped.to_le_bytes());
            }
            Self::Bridged { request, bridge } => {
                fields.put([6]);
                fields.put(request.to_le_bytes());
                bridge.encode(&mut fields);
            }
        }
        to_words(&bytes)
    }

    /// The event in a record that was copied out of a ring.
    ///
    /// # Errors
    /// [`Fault::Record`]: the data plane sent something that nobody encodes.
    pub fn decode(record: &[u64; EVENT_WORDS]) -> Result<Self, Fault> {
        let bytes: [u8; EVENT_WORDS * 8] = to_bytes(record);
        let mut fields = Reader { rest: &bytes };
        let event = match fields.byte()? {
            1 => Self::Opened(SessionNote::decode(&mut fields)?),
            2 => Self::Closed(SessionNote::decode(&mut fields)?, Reason::decode(&mut fields)?),
            3 => Self::Listed { request: fields.number()?, session: SessionNote::decode(&mut fields)? },
            4 => Self::Answered {
                request: fields.number()?,
                answer: match fields.byte()? {
                    1 => Answer::Done(fields.number()?),
                    2 => Answer::NotFound,
                    3 => Answer::Refused,
                    other => return Err(bad("answer", other)),
                },
            },
            5 => Self::Resync { dropped: fields.number()? },
            6 => Self::Bridged { request: fields.number()?, bridge: BridgeNote::decode(&mut fields)? },
            other => return Err(bad("event kind", other)),
        };
        fields.finish()?;
        Ok(event)
    }
}

impl SessionNote {
    fn encode(&self, fields: &mut Writer<'_>) {
        fields.put(self.session.to_le_bytes());
        fields.put(self.peer.0);
        match self.address {
            SocketAddr::V4(address) => {
                fields.put([4]);
                fields.put(address.ip().octets());
            }
            SocketAddr::V6(address) => {
                fields.put([6]);
                fields.put(address.ip().octets());
                fields.put(address.scope_id().to_le_bytes());
            }
        }
        fields.put(self.address.port().to_le_bytes());
        fields.put([u8::from(self.hybrid), u8::from(self.stands_by)]);
        fields.put(self.at_ns.to_le_bytes());
    }

    fn decode(fields: &mut Reader<'_>) -> Result<Self, Fault> {
        let session = fields.number()?;
        let peer = PeerKey::new(fields.take()?)?;
        let (ip, scope) = match fields.byte()? {
            4 => (IpAddr::V4(Ipv4Addr::from(fields.take::<4>()?)), 0),
            6 => (IpAddr::V6(Ipv6Addr::from(fields.take::<16>()?)), u32::from_le_bytes(fields.take()?)),
            other => return Err(bad("address family", other)),
        };
        let port = u16::from_le_bytes(fields.take()?);
        let address = match ip {
            IpAddr::V4(ip) => SocketAddr::from((ip, port)),
            IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, scope).into(),
        };
        let hybrid = fields.mark("hybrid mark")?;
        let stands_by = fields.mark("standby mark")?;
        Ok(Self { session, peer, address, hybrid, stands_by, at_ns: fields.number()? })
    }
}

impl BridgeNote {
    fn encode(&self, fields: &mut Writer<'_>) {
        fields.put(self.source.0);
        fields.put(self.destination.0);
        fields.put(self.forth.to_le_bytes());
        fields.put(self.back.to_le_bytes());
        fields.put(self.forth_queued.to_le_bytes());
        fields.put(self.back_queued.to_le_bytes());
        fields.put([u8::from(self.forth_limited), u8::from(self.back_limited)]);
        fields.put(self.since_ns.to_le_bytes());
    }

    fn decode(fields: &mut Reader<'_>) -> Result<Self, Fault> {
        Ok(Self {
            source: PeerKey::new(fields.take()?)?,
            destination: PeerKey::new(fields.take()?)?,
            forth: fields.number()?,
            back: fields.number()?,
            forth_queued: u32::from_le_bytes(fields.take()?),
            back_queued: u32::from_le_bytes(fields.take()?),
            forth_limited: fields.mark("limit mark")?,
            back_limited: fields.mark("limit mark")?,
            since_ns: fields.number()?,
        })
    }
}

impl Reason {
    fn encode(self, fields: &mut Writer<'_>) {
        fields.put([match self {
            Self::PeerClosed => 1,
            Self::ConnectionFailed(_) => 2,
            Self::Displaced => 3,
            Self::Violation => 4,
            Self::Dead => 5,
            Self::Ordered => 6,
            Self::Stopping => 7,
            Self::AddressShare => 8,
        }]);
        if let Self::ConnectionFailed(errno) = self {
            fields.put(errno.to_le_bytes());
        }
    }

    fn decode(fields: &mut Reader<'_>) -> Result<Self, Fault> {
        Ok(match fields.byte()? {
            1 => Self::PeerClosed,
            2 => Self::ConnectionFailed(i32::from_le_bytes(fields.take()?)),
            3 => Self::Displaced,
            4 => Self::Violation,
            5 => Self::Dead,
            6 => Self::Ordered,
            7 => Self::Stopping,
            8 => Self::AddressShare,
            other => return Err(bad("close reason", other)),
        })
    }
}

fn bad(field: &'static str, value: u8) -> Fault {
    Fault::Record(RecordError::Value { field, value: value.into() })
}

/// Writes fields one after the other into a record that starts zeroed.
struct Writer<'a> {
    rest: &'a mut [u8],
}

impl Writer<'_> {
    #[allow(
        clippy::expect_used,
        reason = "a local invariant: the longest of each kind is encoded in the tests"
    )]
    fn put<const LEN: usize>(&mut self, field: [u8; LEN]) {
        let rest = std::mem::take(&mut self.rest);
        let (place, rest) =
            rest.split_first_chunk_mut().expect("the longest record has 1+8+33+33+8+8+4+4+2+8 bytes");
        *place = field;
        self.rest = rest;
    }
}

/// Reads fields one after the other from a private copy of a record.
struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn take<const LEN: usize>(&mut self) -> Result<[u8; LEN], RecordError> {
        let (field, rest) = self.rest.split_first_chunk().ok_or(RecordError::Short)?;
        self.rest = rest;
        Ok(*field)
    }

    fn byte(&mut self) -> Result<u8, RecordError> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn number(&mut self) -> Result<u64, RecordError> {
        self.take().map(u64::from_le_bytes)
    }

    fn mark(&mut self, field: &'static str) -> Result<bool, Fault> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(bad(field, other)),
        }
    }

    fn finish(self) -> Result<(), RecordError> {
        if self.rest.iter().all(|&byte| byte == 0) { Ok(()) } else { Err(RecordError::Rest) }
    }
}

fn to_words<const BYTES: usize, const WORDS: usize>(bytes: &[u8; BYTES]) -> [u64; WORDS] {
    const { assert!(BYTES == WORDS * 8) }
    let mut words = [0; WORDS];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    words
}

fn to_bytes<const WORDS: usize, const BYTES: usize>(words: &[u64; WORDS]) -> [u8; BYTES] {
    const { assert!(BYTES == WORDS * 8) }
    let mut bytes = [0; BYTES];
    for (bytes, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
        *bytes = word.to_le_bytes();
    }
    bytes
}
