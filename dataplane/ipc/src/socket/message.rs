//! The messages. Tags are for ever: one that is no longer used is never given to another field.
//!
//! Keys are 33 bytes as on the wire, addresses are text, times are nanoseconds of CLOCK_MONOTONIC.

use prost::{Enumeration, Message, Oneof};
use zeroize::Zeroize;

/// What a control plane, or a command that works without one, asks of the data plane.
#[derive(Clone, PartialEq, Oneof)]
pub enum Request {
    /// Who is there? The first request of a connection. Answered with [`Reply::Hello`].
    #[prost(message, tag = "1")]
    Hello(Hello),
    /// How does it go? Answered with [`Reply::Status`].
    #[prost(message, tag = "2")]
    Status(Empty),
    /// Begin to serve; listeners may travel beside it. Answered with [`Reply::Started`].
    #[prost(message, tag = "3")]
    Start(Start),
    /// Make a fresh set of shared memory. Answered with [`Reply::Attached`] and a [`Reply::Channel`] for each worker.
    #[prost(message, tag = "4")]
    Attach(Attach),
    /// Accept nothing new and end when what is there has ended. Answered with [`Reply::Done`].
    #[prost(message, tag = "5")]
    Drain(Drain),
    /// End. Answered with [`Reply::Done`] before the sessions are closed.
    #[prost(message, tag = "6")]
    Stop(Stop),
    /// Pass duplicates of the listeners. Answered with [`Reply::Listeners`].
    #[prost(message, tag = "7")]
    GiveListeners(Empty),
    /// Describe every session and bridge. Answered with [`Reply::Session`]s and [`Reply::Bridge`]s, then
    /// [`Reply::Memory`].
    #[prost(message, tag = "8")]
    Report(Empty),
    /// Change settings of the running workers. Answered with [`Reply::Done`] when every worker has them.
    #[prost(message, tag = "9")]
    Change(Change),
}

/// What the data plane answers.
#[derive(Clone, PartialEq, Oneof)]
pub enum Reply {
    /// The request cannot be done.
    #[prost(message, tag = "1")]
    Refused(Refused),
    /// Done.
    #[prost(message, tag = "2")]
    Done(Empty),
    /// Who this is.
    #[prost(message, tag = "3")]
    Hello(Hello),
    /// How it goes.
    #[prost(message, tag = "4")]
    Status(Status),
    /// It serves.
    #[prost(message, tag = "5")]
    Started(Started),
    /// Shared memory is made; one descriptor: the control plane's end of the bell that all workers ring.
    #[prost(message, tag = "6")]
    Attached(Attached),
    /// A worker's channel; four descriptors: command ring, event ring, counter page, the worker's bell.
    #[prost(message, tag = "7")]
    Channel(Channel),
    /// The listeners; as many descriptors, in the order of the addresses.
    #[prost(message, tag = "8")]
    Listeners(Listeners),
    /// A session.
    #[prost(message, tag = "9")]
    Session(Session),
    /// A bridge.
    #[prost(message, tag = "10")]
    Bridge(Bridge),
    /// Buffer memory, and the end of a report.
    #[prost(message, tag = "11")]
    Memory(Memory),
}

/// A request on the wire.
#[derive(Clone, PartialEq, Message)]
pub(super) struct RequestFrame {
    #[prost(oneof = "Request", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9")]
    pub(super) request: Option<Request>,
}

/// A reply on the wire.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ReplyFrame {
    #[prost(oneof = "Reply", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11")]
    pub(super) reply: Option<Reply>,
}

/// A message without fields.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Empty {}

/// Who speaks.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Hello {
    /// [`PROTOCOL`](super::PROTOCOL) of the sender.
    #[prost(uint32, tag = "1")]
    pub protocol: u32,
    /// Version of its build, to show.
    #[prost(string, tag = "2")]
    pub build: String,
    /// Its [`LAYOUT_HASH`](crate::LAYOUT_HASH).
    #[prost(fixed64, tag = "3")]
    pub layout: u64,
    /// The key it serves, or is to serve; empty: none yet.
    #[prost(bytes = "vec", tag = "4")]
    pub public_key: Vec<u8>,
    /// What tells one configuration from another, as its [`Start`] named it; empty: not started.
    #[prost(bytes = "vec", tag = "5")]
    pub configuration: Vec<u8>,
    /// Its process.
    #[prost(uint32, tag = "6")]
    pub pid: u32,
}

/// What a data plane needs to serve. Erased when dropped.
#[derive(Clone, PartialEq, Eq, Message)]
#[prost(skip_debug)]
pub struct Start {
    /// The server's secret key, 32 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub secret_key: Vec<u8>,
    /// Settings as a JSON object; names and values are those of the data plane's configuration.
    #[prost(string, tag = "2")]
    pub settings: String,
    /// What tells this configuration from another; comes back in HELLO and STATUS.
    #[prost(bytes = "vec", tag = "3")]
    pub configuration: Vec<u8>,
    /// Addresses to listen on, each once. Descriptors beside the request are listeners to take over; where none of them is bound
    /// and listens, fresh ones are made.
    #[prost(message, repeated, tag = "4")]
    pub listen: Vec<Address>,
}

impl std::fmt::Debug for Start {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Start")
            .field("settings", &self.settings)
            .field("listen", &self.listen)
            .finish_non_exhaustive()
    }
}

impl Drop for Start {
    fn drop(&mut self) {
        self.secret_key.zeroize();
    }
}

/// An address with its port, as text.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Address {
    /// Like `127.0.0.1:8081` or `[::1]:8081`.
    #[prost(string, tag = "1")]
    pub text: String,
}

/// The data plane serves.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Started {
    /// Addresses it listens on, ports resolved.
    #[prost(message, repeated, tag = "1")]
    pub addresses: Vec<Address>,
    /// What moves its bytes.
    #[prost(string, tag = "2")]
    pub driver: String,
    /// Its workers.
    #[prost(uint32, tag = "3")]
    pub workers: u32,
}

/// Make shared memory.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Attach {
    /// [`LAYOUT_HASH`](crate::LAYOUT_HASH) of the asker.
    #[prost(fixed64, tag = "1")]
    pub layout: u64,
}

/// Shared memory is made.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Attached {
    /// Number of this attach; in the header of each ring's region.
    #[prost(uint64, tag = "1")]
    pub epoch: u64,
    /// Channels that follow.
    #[prost(uint32, tag = "2")]
    pub workers: u32,
}

/// A worker's channel.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Channel {
    /// Which worker.
    #[prost(uint32, tag = "1")]
    pub worker: u32,
}

/// End when the sessions have ended.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Drain {
    /// At the latest after so many milliseconds.
    #[prost(uint64, tag = "1")]
    pub within_ms: u64,
}

/// End.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Stop {}

/// Change settings.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Change {
    /// Those to change, as a JSON object; names and values are those of the data plane's configuration.
    #[prost(string, tag = "1")]
    pub settings: String,
}

/// Addresses of the descriptors beside it.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Listeners {
    /// What each is bound to.
    #[prost(message, repeated, tag = "1")]
    pub addresses: Vec<Address>,
}

/// How the data plane does.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Status {
    /// Its process.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// `waiting`, `serving` or `draining`.
    #[prost(string, tag = "2")]
    pub state: String,
    /// Nanoseconds since it began to serve.
    #[prost(uint64, tag = "3")]
    pub serving_ns: u64,
    /// Number of the last attach; 0: none yet.
    #[prost(uint64, tag = "4")]
    pub epoch: u64,
    /// Process of the control plane that is attached; 0: none.
    #[prost(uint32, tag = "5")]
    pub attached: u32,
    /// Nanoseconds since nobody is attached; 0 while somebody is.
    #[prost(uint64, tag = "6")]
    pub orphan_ns: u64,
    /// Addresses it listens on.
    #[prost(message, repeated, tag = "7")]
    pub addresses: Vec<Address>,
    /// What moves its bytes.
    #[prost(string, tag = "8")]
    pub driver: String,
    /// Its workers.
    #[prost(uint32, tag = "9")]
    pub workers: u32,
    /// Authenticated sessions.
    #[prost(uint64, tag = "10")]
    pub sessions: u64,
    /// Connections in their handshake.
    #[prost(uint64, tag = "11")]
    pub half_open: u64,
    /// Bridges.
    #[prost(uint64, tag = "12")]
    pub bridges: u64,
    /// The key it serves; empty while waiting.
    #[prost(bytes = "vec", tag = "13")]
    pub public_key: Vec<u8>,
    /// Version of its build.
    #[prost(string, tag = "14")]
    pub build: String,
    /// Connections it takes, half-open ones included; one more is closed at once. 0: waiting.
    #[prost(uint64, tag = "15")]
    pub connections_max: u64,
    /// Of these, how many may be in their handshake. 0: waiting, or of a build that does not say.
    #[prost(uint64, tag = "16")]
    pub half_open_max: u64,
    /// Why nothing is known of its sessions: a worker does not answer. Empty: all do.
    #[prost(string, tag = "17")]
    pub fault: String,
    /// Why buffer memory is as large as it is, for people. Empty: waiting, or of a build that does not say.
    #[prost(string, tag = "18")]
    pub memory_origin: String,
    /// What is in force of all settings, as a JSON object; a list of values where the workers differ. Empty: waiting, a worker does
    /// not answer, or of a build that does not say.
    #[prost(string, tag = "19")]
    pub settings: String,
    /// Nanoseconds since it began to drain; 0: it does not, or is of a build that does not say.
    #[prost(uint64, tag = "20")]
    pub draining_ns: u64,
    /// Nanoseconds that the drain may take yet.
    #[prost(uint64, tag = "21")]
    pub drain_left_ns: u64,
}

/// One session of a report.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Session {
    /// Its worker.
    #[prost(uint32, tag = "1")]
    pub worker: u32,
    /// Names it within its worker; the same number as in events.
    #[prost(uint64, tag = "2")]
    pub session: u64,
    /// The peer's key.
    #[prost(bytes = "vec", tag = "3")]
    pub peer: Vec<u8>,
    /// Where it connects from.
    #[prost(string, tag = "4")]
    pub address: String,
    /// Whether the handshake had the post-quantum part.
    #[prost(bool, tag = "5")]
    pub hybrid: bool,
    /// Streams, of both sides.
    #[prost(uint32, tag = "6")]
    pub streams: u32,
    /// When it was authenticated.
    #[prost(uint64, tag = "7")]
    pub opened_ns: u64,
    /// Another session holds its key.
    #[prost(bool, tag = "8")]
    pub stands_by: bool,
}

/// One bridge of a report.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Bridge {
    /// Its worker.
    #[prost(uint32, tag = "1")]
    pub worker: u32,
    /// Key of who dialled.
    #[prost(bytes = "vec", tag = "2")]
    pub source: Vec<u8>,
    /// Key of who was dialled.
    #[prost(bytes = "vec", tag = "3")]
    pub destination: Vec<u8>,
    /// Bytes from the source so far.
    #[prost(uint64, tag = "4")]
    pub forth: u64,
    /// Bytes from the destination so far.
    #[prost(uint64, tag = "5")]
    pub back: u64,
    /// Bytes that wait for the destination.
    #[prost(uint64, tag = "6")]
    pub forth_queued: u64,
    /// Bytes that wait for the source.
    #[prost(uint64, tag = "7")]
    pub back_queued: u64,
}

/// Buffer memory of all workers, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Memory {
    /// Held by queues, and by streams in the tables.
    #[prost(uint64, tag = "1")]
    pub held: u64,
    /// Granted to senders beyond their first window.
    #[prost(uint64, tag = "2")]
    pub promised: u64,
    /// What is held may be at most.
    #[prost(uint64, tag = "3")]
    pub budget: u64,
}

/// Why a request was refused.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Refused {
    /// Which kind of refusal.
    #[prost(enumeration = "Refusal", tag = "1")]
    pub refusal: i32,
    /// What is wrong.
    #[prost(string, tag = "2")]
    pub reason: String,
    /// What to do about it.
    #[prost(string, tag = "3")]
    pub cure: String,
}

/// Kinds of refusals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum Refusal {
    /// A kind that this build does not know.
    Other = 0,
    /// The request is none that this data plane knows, or it came before HELLO.
    Unknown = 1,
    /// A field has a value that is not possible.
    Malformed = 2,
    /// It does not serve yet.
    NotStarted = 3,
    /// It serves already.
    AlreadyStarted = 4,
    /// It cannot start: the reason is one of its configuration or of the machine.
    StartFailed = 5,
    /// The asker's shared memory has another layout.
    Layout = 6,
    /// A worker does not answer.
    Stuck = 7,
    /// It is ending.
    Ending = 8,
}
