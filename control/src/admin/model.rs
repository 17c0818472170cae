//! What the admin interface says: plain data, JSON on the socket and with `--json`.
//!
//! Times are ages in seconds, or nanoseconds of CLOCK_MONOTONIC where the name ends in `_ns`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::pattern::{Pattern, PatternError};

/// The control plane answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alive {
    /// Its process.
    pub pid: u32,
}

/// Both planes at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The control plane; none if it does not run, or does not answer.
    pub control: Option<ControlStatus>,
    /// Why it does not answer although its process runs, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_error: Option<String>,
    /// The data plane; none if it does not answer.
    pub dataplane: Option<DataPlaneStatus>,
}

/// The control plane.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ControlStatus {
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub build: String,
    /// How long it has run.
    pub uptime_s: f64,
    /// Whether it is attached to the data plane.
    pub attached: bool,
    /// Whether its picture of the sessions is true up to the last event.
    pub current: bool,
    /// Why nobody should be sent to this server now, as `/health` says it; none: it takes clients.
    #[serde(default)]
    pub not_ready: Option<String>,
    /// How often the data plane went away since it started.
    pub losses: u64,
    /// Why it went away the last time, or cannot be brought back.
    pub last_loss: Option<String>,
    /// Events the data plane dropped since the attach because nobody read them.
    pub events_dropped: u64,
    /// The discoveries the server registers at.
    pub discoveries: Vec<DiscoveryStatus>,
}

/// The registration at one discovery.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DiscoveryStatus {
    /// The discovery.
    pub url: String,
    /// How long ago it accepted the entry the last time; none if it never did since the control plane started.
    pub registered_s: Option<f64>,
    /// What went wrong since then.
    pub error: Option<String>,
    /// The entry was taken away because the server drains or ends.
    #[serde(default)]
    pub withdrawn: bool,
}

/// The data plane, as it describes itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataPlaneStatus {
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub build: String,
    /// `waiting`, `serving` or `draining`.
    pub state: String,
    /// The key it serves.
    pub public_key: Option<String>,
    /// What it listens on, or did before it drained.
    pub addresses: Vec<String>,
    /// What moves its bytes.
    pub driver: String,
    /// Connections it takes at most, half-open ones included, by its limit of open files.
    pub connections_max: u64,
    /// Of these, how many may be in their handshake.
    pub half_open_max: u64,
    /// Why buffer memory is as large as it is.
    pub memory_origin: Option<String>,
    /// Threads that forward.
    pub workers: u32,
    /// How long it has served, a drain included.
    pub serving_s: f64,
    /// How long it has been draining, if it is.
    #[serde(default)]
    pub draining_s: Option<f64>,
    /// How long the drain takes yet at most.
    #[serde(default)]
    pub drain_left_s: Option<f64>,
    /// Authenticated sessions.
    pub sessions: u64,
    /// Connections in their handshake.
    pub half_open: u64,
    /// Why nothing is known of the sessions: a worker does not answer.
    pub fault: Option<String>,
    /// Pairs of streams.
    pub bridges: u64,
    /// Number of the last attach.
    pub epoch: u64,
    /// Process of the control plane that is attached.
    pub attached_pid: Option<u32>,
    /// How long no control plane has been attached.
    pub orphan_s: Option<f64>,
}

/// Whose sessions or streams to list; everybody's unless one is named.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Of {
    /// The key, or the beginning of one that is there.
    pub key: Option<String>,
}

/// The sessions there are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sessions {
    /// `control`: the control plane's picture; `dataplane`: the data plane's own.
    pub from: String,
    /// Whether the picture is true up to the last event.
    pub current: bool,
    /// Sessions left out because there are too many to remember.
    pub untracked: u64,
    /// By worker and number.
    pub sessions: Vec<Session>,
}

impl Sessions {
    /// Those of one key.
    ///
    /// # Errors
    /// It is nobody's, or can be several.
    pub fn of(mut self, pattern: &Pattern) -> Result<Self, PatternError> {
        let key = pattern.resolve(self.sessions.iter().map(|session| &*session.public_key))?;
        self.sessions.retain(|session| session.public_key == key);
        Ok(self)
    }
}

/// A session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// Its worker.
    pub worker: u32,
    /// Its number there.
    pub session: u64,
    /// The peer's key.
    pub public_key: String,
    /// Where it connects from.
    pub address: String,
    /// Whether the handshake had the post-quantum part.
    pub hybrid: bool,
    /// Another live session holds its key: two clients use it, and this one is not dialled.
    pub standby: bool,
    /// When it was authenticated.
    pub opened_ns: u64,
    /// How long ago that is.
    pub age_s: f64,
}

/// Sessions that ended, the latest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClosedSessions {
    /// Bounded: the oldest make room.
    pub closed: Vec<ClosedSession>,
}

impl ClosedSessions {
    /// Those of one key.
    ///
    /// # Errors
    /// It is nobody's, or can be several.
    pub fn of(mut self, pattern: &Pattern) -> Result<Self, PatternError> {
        let key = pattern.resolve(self.closed.iter().map(|session| &*session.public_key))?;
        self.closed.retain(|session| session.public_key == key);
        Ok(self)
    }
}

/// A session that ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClosedSession {
    /// Its worker.
    pub worker: u32,
    /// Its number there.
    pub session: u64,
    /// The peer's key.
    pub public_key: String,
    /// Where it connected from.
    pub address: String,
    /// Why it ended: `peer_closed`, `connection_failed`, `displaced`, `violation`, `dead`, `ordered`, `stopping` or
    /// `address_share`; `unobserved` if no control plane was listening.
    pub reason: String,
    /// With `connection_failed`: the system's error number.
    pub errno: Option<i32>,
    /// How long ago it ended, or its end was noticed.
    pub ended_s: f64,
    /// How long it lasted, if its begin is known.
    pub lasted_s: Option<f64>,
}

/// What is bridged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Streams {
    /// `control` or `dataplane`, as with the sessions.
    pub from: String,
    /// Bridges that could not be listed.
    pub missing: u64,
    /// In no particular order.
    pub streams: Vec<Stream>,
}

impl Streams {
    /// Those of one key, whoever dialled.
    ///
    /// # Errors
    /// It is nobody's, or can be several.
    pub fn of(mut self, pattern: &Pattern) -> Result<Self, PatternError> {
        let keys = self.streams.iter().flat_map(|stream| [&*stream.source, &*stream.destination]);
        let key = pattern.resolve(keys)?;
        self.streams.retain(|stream| stream.source == key || stream.destination == key);
        Ok(self)
    }
}

/// Two streams joined to a bridge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stream {
    /// Its worker.
    pub worker: u32,
    /// Key of who dialled.
    pub source: String,
    /// Key of who was dialled.
    pub destination: String,
    /// Bytes from the source so far.
    pub forth_bytes: u64,
    /// Bytes from the destination so far.
    pub back_bytes: u64,
    /// Bytes that wait for the destination.
    pub forth_queued_bytes: u64,
    /// Bytes that wait for the source.
    pub back_queued_bytes: u64,
    /// Whether the destination's window holds up the source; not known from the data plane's own dump.
    pub forth_limited: Option<bool>,
    /// Whether the source's window holds up the destination; not known from the data plane's own dump.
    pub back_limited: Option<bool>,
    /// How long it has been open; not known from the data plane's own dump.
    pub age_s: Option<f64>,
}

/// Totals since the data plane began to serve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// Of all workers, by name.
    pub total: BTreeMap<String, u64>,
    /// Of each worker, by name.
    pub workers: Vec<BTreeMap<String, u64>>,
}

/// Every bound an operator can run into.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// In the order of interest.
    pub limits: Vec<Limit>,
}

/// A bound.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Limit {
    /// Its name.
    pub name: String,
    /// How much is used of it now, where that is known.
    pub used: Option<u64>,
    /// Its value.
    pub value: u64,
    /// What it counts: `bytes`, `s`, `connections`, `streams` and the like.
    pub unit: String,
    /// What happens when it is reached.
    pub when_reached: String,
    /// Where its value comes from, when it is neither a constant nor simply set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
}

/// What is in force in the data plane.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// By name, as in a configuration file.
    pub settings: BTreeMap<String, serde_json::Value>,
    /// Names of those that change while it runs.
    pub live: Vec<String>,
}

/// What an order did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// For people.
    pub message: String,
    /// How many sessions or workers it concerned.
    pub count: u64,
}

/// Close the session of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Close {
    /// The key, 66 hex digits, or as many of the first as tell it from others that are connected.
    pub public_key: String,
}

/// Change a setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// `hybrid`, `company_us` or `pause_us`, with either `_` or `-`.
    pub name: String,
    /// As text.
    pub value: String,
}

/// End when the sessions have ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Drain {
    /// At the latest after so many seconds.
    pub within_s: f64,
}

/// End.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stop {
    /// Let the data plane go on alone.
    pub leave_dataplane: bool,
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What is wrong, and what to do.
    pub error: String,
}
