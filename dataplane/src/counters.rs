//! What a worker counts: one block of cells per worker, written by it alone and read by anybody.
//!
//! Things that open and close are pairs of counters, never a gauge, so that a reader misses nothing. The help text of
//! each says when it moves.

use ringwire_ipc::counters::{CELLS, CellIndex, CounterPage, CounterWriter};
use ringwire_ipc::region::{Region, RegionError};

macro_rules! counters {
    ($($(#[doc = $help:literal])+ $name:ident => $text:literal,)+) => {
        /// A counter of a worker.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Counter {
            $($(#[doc = $help])+ $name,)+
        }

        impl Counter {
            /// Every counter, in the order of its cell.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The name operators see.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// When it moves.
            pub fn help(self) -> &'static str {
                match self { $(Self::$name => concat!($($help,)+),)+ }
            }
        }
    };
}

counters! {
    /// A TCP connection was accepted.
    ConnectionsAccepted => "connections_accepted_total",
    /// A TCP connection was closed, whatever the reason.
    ConnectionsClosed => "connections_closed_total",
    /// Accepting failed (descriptors or memory are used up); it is tried again.
    AcceptFailures => "accept_failures_total",
    /// A session handshake finished and the session was filed.
    SessionsOpened => "sessions_opened_total",
    /// A filed session ended.
    SessionsClosed => "sessions_closed_total",
    /// Of the sessions opened: with the post-quantum part.
    SessionsHybrid => "sessions_hybrid_total",
    /// Of the sessions opened: those whose peer speaks smux.
    SessionsSmux => "sessions_smux_total",
    /// A session gave no sign of life, and a newer one of the same key took its place.
    SessionsDisplaced => "sessions_displaced_total",
    /// A session came whose key another one holds: it stands by.
    SessionsStandby => "sessions_standby_total",
    /// A session that stood by took over, for whatever reason the holder ended.
    StandbysTookOver => "standbys_took_over_total",
    /// Two live clients were found to use one key.
    KeysContested => "keys_contested_total",
    /// A connection was closed right after it was accepted: as many are open as the limit of open files permits.
    RefusedDescriptors => "refused_descriptors_total",
    /// A session was closed right after its handshake: its address has as many as it may.
    RefusedAddressLimit => "refused_address_limit_total",
    /// A session was closed right after its handshake: connections are scarce, and its address has its share of them.
    RefusedShare => "refused_share_total",
    /// A session that carried nothing was closed: connections are used up, and its address has more than its share of them.
    SessionsEvicted => "sessions_evicted_total",
    /// A half-open connection was closed because there were too many: the oldest of the largest address prefix.
    HalfOpenEvicted => "half_open_evicted_total",
    /// A half-open connection was closed because too many had a message 1 longer than any known: the oldest of the largest address
    /// prefix.
    LongHandshakesEvicted => "long_handshakes_evicted_total",
    /// A connection began with a PROXY header of a trusted proxy, and counts under the address in it.
    ProxyHeaders => "proxy_headers_total",
    /// A connection began with a PROXY header although it comes from no trusted proxy; it was closed.
    ProxyUntrusted => "proxy_untrusted_total",
    /// A trusted proxy sent a header that cannot be read; the connection was closed.
    ProxyMalformed => "proxy_malformed_total",
    /// A job was given to the handshake lane: a handshake message, a request, a response.
    LaneJobs => "lane_jobs_total",
    /// A job of the handshake lane came back, whatever the outcome.
    LaneResults => "lane_results_total",
    /// Of the jobs that came back: the connection or stream had gone before the lane began.
    LaneCancelled => "lane_cancelled_total",
    /// Of the jobs that came back: done, but the connection or stream had gone meanwhile.
    LaneStale => "lane_stale_total",
    /// The handshake lane had no room: the connection or stream was closed.
    LaneRefused => "lane_refused_total",
    /// A session handshake failed: bad message, bad key, or a classical peer where the hybrid is required.
    HandshakesFailed => "handshakes_failed_total",
    /// A connection was closed because its handshake took too long.
    HandshakesTimedOut => "handshakes_timed_out_total",
    /// A peer broke the rules of the session multiplexer; its session was closed.
    SessionViolations => "session_violations_total",
    /// Of these: the first byte behind the handshake belongs to no multiplexer.
    ViolationsFirstByte => "session_violations_first_byte_total",
    /// Of these: a frame header that cannot be read (version, type or length).
    ViolationsHeader => "session_violations_header_total",
    /// Of these: more payload on a stream than its credit.
    ViolationsCredit => "session_violations_credit_total",
    /// Of these: a stream opened twice, opened as number 0, or finished twice.
    ViolationsStream => "session_violations_stream_total",
    /// Of these: answers asked for and not read, or more streams than may exist.
    ViolationsExcess => "session_violations_excess_total",
    /// Of these: frame upon frame that brings nothing, such as pings, resets and openings, and hardly any payload.
    ViolationsUseless => "session_violations_useless_total",
    /// A peer ended its session with an error code of the multiplexer (go-away 1 or above).
    GoAwaysReceived => "go_aways_received_total",
    /// A peer broke the rules of one stream where the multiplexer lets the session go on (smux); that bridge was closed.
    StreamViolations => "stream_violations_total",
    /// Of these: more payload than its window.
    StreamsOverCredit => "stream_violations_credit_total",
    /// Of these: it claims to have read what was never sent.
    StreamsOverCount => "stream_violations_count_total",
    /// A data frame came for a stream that does not exist (any more); its payload was dropped.
    FramesUnknown => "unknown_frames_total",
    /// A peer stopped answering; its session was closed.
    SessionsDead => "sessions_dead_total",
    /// A stream was opened by a client.
    StreamsOpened => "streams_opened_total",
    /// A stream opened by a client is gone.
    StreamsClosed => "streams_closed_total",
    /// A stream was opened by us towards a destination.
    ForwardsOpened => "forwards_opened_total",
    /// A stream opened by us is gone.
    ForwardsClosed => "forwards_closed_total",
    /// A bridge started: request and response are verified and passed on.
    BridgesOpened => "bridges_opened_total",
    /// Of the bridges opened: the two ends are with different workers.
    BridgesCrossing => "bridges_crossing_total",
    /// A bridge ended.
    BridgesClosed => "bridges_closed_total",
    /// A liveness ping on a stream was answered.
    StreamPings => "stream_pings_total",
    /// An IP request was answered.
    IpRequests => "ip_requests_total",
    /// A stream was refused: its object could not be opened, decoded or verified.
    RefusedObject => "refused_object_total",
    /// Of the objects at the head of streams, requests and responses: too short for a packet, or for a signature.
    ObjectsShort => "objects_short_total",
    /// Likewise: the stream ended inside the object.
    ObjectsTruncated => "objects_truncated_total",
    /// Likewise: its packet number was used before, is too old, or is 0.
    ObjectsReplayed => "objects_replayed_total",
    /// Likewise: its tag does not verify under the session's key.
    ObjectsForged => "objects_forged_total",
    /// Likewise: its gob cannot be decoded.
    ObjectsGob => "objects_gob_total",
    /// Likewise: the signature is not that of the key it names.
    ObjectsSignature => "objects_signature_total",
    /// Likewise: a field is invalid, the response answers another request or is a refusal.
    ObjectsInvalid => "objects_invalid_total",
    /// A stream was refused: its request names another source than the session's key.
    RefusedSource => "refused_source_total",
    /// A stream was refused: the destination has no session here.
    RefusedDestination => "refused_destination_total",
    /// A stream was refused: the session has as many streams as it may.
    RefusedStreamLimit => "refused_stream_limit_total",
    /// A stream was refused: its client has its share of the memory budget, or the budget is nearly used and most of it by clients
    /// of that address.
    RefusedBudget => "refused_budget_total",
    /// A stream was reset: its client, or all clients of its address, opened too many without a whole request.
    RefusedUnfinished => "refused_unfinished_total",
    /// A stream was refused: its destination has not answered too many dials, most of them of this client or its address.
    RefusedUnanswered => "refused_unanswered_total",
    /// A stream was refused: the server is draining.
    RefusedDraining => "refused_draining_total",
    /// A stream was refused: the destination cannot take another stream now.
    RefusedOpen => "refused_open_total",
    /// A stream was refused: the destination's response was missing, invalid or a refusal.
    RefusedResponse => "refused_response_total",
    /// A stream was closed because its request or response did not come in time.
    StreamsTimedOut => "streams_timed_out_total",
    /// A bridge was closed because neither side sent anything for the idle limit.
    BridgesIdle => "bridges_idle_total",
    /// A bridge was reset because the memory budget was nearly used up and its client held most of it.
    ResetsMemory => "resets_memory_total",
    /// A bridge was reset because its client had more undelivered bytes than its share of the memory budget.
    ResetsHolder => "resets_holder_total",
    /// A stream was reset: before their bridges were open, the streams of its session sent more than they may.
    ResetsUnbridged => "resets_unbridged_total",
    /// Buffer memory that came into use, at the end of a turn, in bytes: pages at their true size, and what streams count for.
    BufferTaken => "buffer_memory_taken_bytes_total",
    /// Buffer memory that was given back, likewise.
    BufferGivenBack => "buffer_memory_given_back_bytes_total",
    /// Credit granted beyond the base window, in bytes.
    ExtraCredit => "extra_credit_bytes_total",
    /// Extra credit of streams that were idle, in bytes: it is taken back as it is used.
    ExtraCreditIdle => "extra_credit_idle_bytes_total",
    /// Credit beyond the base window was due and the budget had no room for it.
    ExtraCreditRefused => "extra_credit_refused_total",
    /// Bytes received from sessions.
    BytesReceived => "received_bytes_total",
    /// Bytes handed to the kernel for sessions.
    BytesSent => "sent_bytes_total",
    /// Payload bytes that a bridge passed on.
    BytesBridged => "bridged_bytes_total",
    /// Payload bytes dropped: for streams that are gone, or behind the end of a bridge.
    BytesDropped => "dropped_bytes_total",
    /// Payload bytes copied instead of forwarded in place.
    BytesCopied => "copied_bytes_total",
    /// Data frames received.
    FramesReceived => "received_frames_total",
    /// Data frames sent.
    FramesSent => "sent_frames_total",
    /// Gathered sends.
    Sends => "sends_total",
    /// Sends of which the kernel took only a part.
    SendsShort => "sends_short_total",
    /// Receives that brought bytes.
    Receives => "receives_total",
    /// Receives put off, so that the next takes more.
    ReceivesPaused => "receives_paused_total",
    /// Receives that brought more than a turn has for one session; the rest was handled in later turns.
    ReceivesCarriedOver => "receives_carried_over_total",
    /// Receives that found no free page.
    ReceivesStarved => "receives_starved_total",
    /// An event for the control plane was dropped: it does not read them.
    EventsDropped => "events_dropped_total",
    /// The control plane broke the rules of shared memory; its channel was cut.
    ChannelFaults => "channel_faults_total",
    /// A frozen worker went on in this one.
    Thaws => "thaws_total",
    /// Another worker was asleep and was woken, for what was sent to it or for room in its mailbox.
    WorkersWoken => "workers_woken_total",
    /// Something for another worker found its mailbox full and waited.
    LettersWaited => "letters_waited_total",
    /// Another worker spoke of a session or a stream that was gone.
    LettersStale => "letters_stale_total",
    /// Payload bytes lent to another worker, which sends them.
    BytesLent => "lent_bytes_total",
    /// Turns of the worker.
    Turns => "turns_total",
    /// Turns that took as many completions as they may.
    TurnsExhausted => "turns_exhausted_total",
    /// Completions of operations for a session that is gone.
    CompletionsStale => "completions_stale_total",
    /// A turn was allowed to wait for company. A driver that cannot (poll) returned at once all the same.
    CompanyWaits => "company_waits_total",
}

/// One worker's cells.
#[derive(Debug)]
pub struct CounterBlock(CounterWriter);

impl Default for CounterBlock {
    /// A block that no other process reads.
    fn default() -> Self {
        Self(CounterWriter::private())
    }
}

const _: () = assert!(Counter::ALL.len() <= CELLS, "every counter has a cell of the page");

impl Counter {
    /// Its cell in a worker's counter page.
    pub const fn cell(self) -> CellIndex {
        match CellIndex::new(self as usize) {
            Some(cell) => cell,
            None => panic!("every counter has a cell of the page"),
        }
    }
}

impl CounterBlock {
    /// A block whose page other processes may read.
    ///
    /// # Errors
    /// The kernel's: descriptors or memory are used up.
    pub fn shared() -> Result<Self, RegionError> {
        Ok(Self(CounterWriter::new(Region::create(ringwire_ipc::channel::COUNTERS_EPOCH)?)))
    }

    /// The page's region, if other processes may read it.
    pub fn region(&self) -> Option<&Region<CounterPage>> {
        self.0.region()
    }

    /// Adds to a counter. Only the worker that owns the block calls this: load and store instead of an atomic addition,
    /// which would lock the line.
    #[inline]
    pub fn add(&self, counter: Counter, amount: u64) {
        self.0.add(counter.cell(), amount);
    }

    /// Adds one.
    #[inline]
    pub fn count(&self, counter: Counter) {
        self.add(counter, 1);
    }

    /// The value now.
    pub fn value(&self, counter: Counter) -> u64 {
        self.0.read(counter.cell())
    }
}

/// A copy of all counters at one time.
#[derive(Debug, Clone)]
pub struct Counters(Vec<u64>);

impl Counters {
    /// Copies one block.
    pub fn of(block: &CounterBlock) -> Self {
        Self(Counter::ALL.iter().map(|&counter| block.value(counter)).collect())
    }

    /// Those of several blocks together.
    pub fn sum(all: impl IntoIterator<Item = Self>) -> Self {
        let mut sum = vec![0; Counter::ALL.len()];
        for counters in all {
            sum.iter_mut().zip(counters.0).for_each(|(sum, value)| *sum += value);
        }
        Self(sum)
    }

    /// One value.
    pub fn value(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }

    /// Names and values, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Counter::ALL.iter().zip(&self.0).map(|(counter, &value)| (counter.name(), value))
    }
}
