//! Every bound of the data plane: value, unit in the name, reason, and what happens when it is hit.
//!
//! Derived sizes are computed from other limits, one term per line. A queue or a buffer elsewhere in the package takes
//! its size from here.

/// Length of one page of buffer memory, in bytes: the receive slot the kernel fills and the unit the budget counts.
/// 16 KiB measured best with receive bundles (64 KiB slots gain nothing once completions carry several of them).
pub const PAGE_LEN: usize = 16 * 1024;

/// Pages handed to the kernel for receiving, per worker: 4 MiB. What is in the ring is touched in rotation, so this is
/// resident memory; when it runs dry a receive ends with "no buffers" (counted) and is armed again once pages are back.
pub const RECEIVE_RING_PAGES: usize = 256;

/// Buffer memory of all workers together unless configured otherwise or there is less: 8 GiB. Address space, not resident memory:
/// pages are touched when used.
pub const BUFFER_MEMORY_LEN: usize = 8 << 30;

/// What two processes need beside buffers, in bytes: their code, tables and shared memory. Buffer memory that nobody has set is
/// half of what is left of the room after it; the other half is for the kernel's own of connections, which counts as well.
pub const BESIDE_BUFFERS_LEN: usize = 64 << 20;

/// Smallest buffer memory of one worker accepted, in bytes: the receive ring and as much again for queues.
pub const BUFFER_MEMORY_LEN_MIN: usize = 2 * RECEIVE_RING_PAGES * PAGE_LEN;

/// A payload piece shorter than this is copied into a packed block of its destination, and its page goes back at once;
/// a longer one is forwarded in place. Held pages then carry mostly payload.
pub const COPY_BELOW: usize = 1024;

/// Nodes of queues made at start: a queued span each, for some 64 MiB of large pieces. Grows beyond when queues do.
pub const NODES_AT_START: usize = 4096;

/// Pages whose bookkeeping is made at start; more when more pages are used.
pub const PAGES_AT_START: usize = 4 * RECEIVE_RING_PAGES;

/// Free pages whose memory is kept for the next burst: 4 MiB. What was free beyond them for a while goes back to the kernel.
pub const PAGES_KEPT: usize = RECEIVE_RING_PAGES;

/// How long memory must have been free for that, in nanoseconds.
pub const TRIM_AFTER_NS: u64 = SECOND_NS;

/// Pages given back at a time, and how soon the next follow, in nanoseconds: 8 MiB cost some 0.3 ms, and a GiB is back in 8 s.
pub const TRIM_PAGES_MAX: usize = 512;
/// See [`TRIM_PAGES_MAX`].
pub const TRIM_INTERVAL_NS: u64 = 64_000_000;

/// Send records made at start; more when more connections send at a time.
pub const GATHERS_AT_START: usize = 8;

/// Connections in the lists of a turn for which room is made at start.
pub const TURN_LIST_AT_START: usize = 256;

/// One gathered send carries at most this many bytes of payload: bounds what a control frame can wait behind once it
/// is with the kernel.
pub const GATHER_LEN_MAX: usize = 256 * 1024;

/// Frames in one gathered send. With `GATHER_PARTS_MAX` it keeps the iovec array below the kernel's limit of 1,024.
pub const GATHER_FRAMES_MAX: usize = 256;

/// Slices in one gathered send (payload spans and frame headers together).
pub const GATHER_PARTS_MAX: usize = 512;

/// So long after a frame that somebody may wait for an answer to, receiving from its session is never put off, in nanoseconds.
pub const ATTENTIVE_NS: u64 = 50_000_000;

/// Longest time for which receiving from one busy session of many is put off, in microseconds.
pub const PAUSE_US_MAX: u32 = 3000;

/// The longest wait for company and the longest pause that can be set, in microseconds: beyond it people would notice.
pub const WAIT_US_MAX: u32 = 10_000;

/// Small frames a second from which on that is done: at some 6 us each they are half a core's work.
pub const BUSY_FRAMES_PER_SECOND: u64 = 80_000;

/// Bytes one stream may send in a round, in which all that have some take turns: several of the Go clients' 4 KiB writes, one large frame.
pub const STREAM_QUANTUM_LEN: usize = 64 * 1024;

/// A data frame of at most this many bytes counts as interactive: somebody may wait for the answer.
pub const INTERACTIVE_LEN_MAX: u32 = 1024;

/// So long after a larger frame, in nanoseconds, a small one counts as interactive again.
pub const INTERACTIVE_AFTER_NS: u64 = 10_000_000;

/// A stream whose whole queue is at most this long goes out before bulk: requests, responses, keystrokes, echoes.
pub const URGENT_QUEUE_LEN_MAX: usize = 2048;

/// A gathered send is sized to this much of the connection's drain rate, in nanoseconds: what a ping reply may have to wait
/// behind on a slow connection.
pub const GATHER_TIME_NS: u64 = 20_000_000;

/// The rate is measured over so long, in nanoseconds: longer than the lumps in which acknowledgements come.
pub const DRAIN_MEASURE_NS: u64 = 5 * GATHER_TIME_NS;

/// Or over so many of the largest sends, on a fast connection.
pub const DRAIN_MEASURE_SENDS: usize = 8;

/// A connection that had nothing to send for so long was idle, in nanoseconds: its rate is measured anew.
pub const DRAIN_GAP_NS: u64 = GATHER_TIME_NS / 4;

/// Smallest gathered send on a slow connection, in bytes: two segments of Ethernet.
pub const GATHER_LEN_MIN: usize = 2 * 1448;

/// Largest gathered send of a connection whose rate is not known yet, in bytes. A fast one is at the maximum after four sends.
pub const GATHER_LEN_START: usize = 16 * 1024;

/// One receive takes at most this many bytes, so that one flow cannot empty the receive ring for the others.
pub const RECEIVE_LEN_MAX: usize = 256 * 1024;

/// Frames of one session that a turn handles, whatever they carry: some 0.1 ms. What its receive brought beyond them waits for the next
/// turns, and the session is not received from until it is used up (`receives_carried_over`).
pub const FRAMES_PER_TURN_MAX: usize = 256;

/// Of all sessions that have such a rest together, a turn handles so many times what it handles of one (`FRAMES_PER_TURN_MAX`, and
/// `RECEIVE_LEN_MAX` bytes): whoever comes with little waits for so much at most, however many send without end.
pub const RESTS_PER_TURN_MAX: usize = 4;

/// Frames without payload that a session may have sent and not earned: sixteen for each stream that it may have. Beyond them it is
/// closed (`session_violations_useless`).
pub const USELESS_FRAMES_MAX: u32 = 16 * STREAMS_PER_SESSION_MAX;

/// Of these it earns so many a second: far above any ping, and a fraction of a percent of a worker.
pub const USELESS_FRAMES_PER_SECOND: u64 = 1000;

/// And so many for each frame with payload, in either direction: a stream is opened, acknowledged, finished and reset.
pub const USELESS_FRAMES_PER_FRAME: usize = 4;

/// And one for so many bytes sent to it, in bytes: it owes updates for them.
pub const USELESS_FRAME_PER_LEN: usize = 1024;

/// Buffer memory that queues never get, in percent: with the pages in the receive ring it keeps receives alive.
pub const RESERVED_PERCENT: usize = 5;

/// Share of the budget above which no extra credit is granted, in percent.
pub const EXTRA_CREDIT_PERCENT: usize = 75;

/// Share of the budget above which the largest holder lets go, in percent: its address prefix opens no stream, and its backlogs
/// are reset.
pub const TIGHT_PERCENT: usize = 90;

/// Down to which share it lets go, in percent.
pub const RELIEVED_PERCENT: usize = 85;

/// While a stream could use a larger window, its session's round trip is measured this often, in nanoseconds.
pub const ROUND_TRIP_INTERVAL_NS: u64 = SECOND_NS;

/// Share of the budget that one holder (a key at an address) may have, in percent: its next stream is refused, and of what
/// arrives beyond it the largest backlogs are reset.
pub const HOLDER_PERCENT: usize = 25;

/// Down to which part of its share such a holder is reset, in percent, so that not every further byte costs a look at all
/// streams.
pub const HOLDER_RELIEVED_PERCENT: usize = 88;

/// Backlogs reset in one turn when memory is short: some 2 us each. What is freed may still be with the kernel, so the next turn
/// looks again.
pub const RESETS_PER_TURN_MAX: usize = 1024;

/// What a stream counts for in the budget beside its bytes, in bytes: its places in the tables of bridges and of its
/// multiplexer.
pub const STREAM_LEN: usize = 640;

/// Bytes that streams of one session may send before they are bridged, all together, in bytes: a request of 300 bytes each for
/// two hundred of them. The stream that sends more is reset.
pub const UNBRIDGED_LEN_MAX: usize = 64 * 1024;

/// Streams of one session whose request is not complete: twice the backlog of a Go peer. The next is reset.
pub const UNFINISHED_PER_SESSION_MAX: u32 = 512;

/// Such streams of all sessions of one address prefix; from there on a session that has its share of them, divided by the
/// sessions that have any, opens no more. As many as a crowd behind one address opens in a moment.
pub const UNFINISHED_PER_PREFIX_MAX: u32 = 16_384;

/// Dials of one session that its peer has not answered: what a Go peer takes unaccepted (dmsg-wire 5.1). The next is refused. And as
/// many may one client have with others: its multiplexer would open no more streams to a Go server either.
pub const UNANSWERED_MAX: usize = 256;

/// Of these, so many for whoever comes first; the rest for those who dial least.
pub const UNANSWERED_FREE_MAX: usize = 192;

/// And so many for one address prefix while no other dials, whatever its keys.
pub const UNANSWERED_ALONE_MAX: usize = 224;

/// All unanswered dials of a worker may take this part of its budget in the tables; beyond, the next is refused at once, and from three
/// quarters of that on it is who has most.
pub const UNANSWERED_BUDGET_PART: usize = 16;

/// What an unanswered dial counts for there, in bytes: two streams, the request, and what the answer is checked against.
pub const UNANSWERED_LEN: usize = 2 * STREAM_LEN + 512;

/// Places for unanswered dials that a session keeps when all are answered.
pub const UNANSWERED_KEPT: usize = 4;

/// After streams were reset because memory is short, so long until that is looked at again, in nanoseconds, unless it is used up:
/// what was let go of may be with the kernel still.
pub const RELIEF_INTERVAL_NS: u64 = 5_000_000;

/// Holders whose streams are looked at then: one walk through all streams, for the largest of them. The next ones have their turn
/// when that was not enough.
pub const RELIEF_HOLDERS_MAX: usize = 8;

/// A stream whose peer sent nothing for so long, in nanoseconds, loses its extra credit.
pub const EXTRA_IDLE_NS: u64 = 5 * SECOND_NS;

/// How often that is looked at, in nanoseconds.
pub const EXTRA_SWEEP_NS: u64 = SECOND_NS;

/// How much nicer the handshake lane's threads are than the process was started: below the workers, so that a flood of handshakes costs no forwarded byte, and
/// far above the idle class, so that saturated workers leave handshakes about a quarter of a core.
pub const LANE_NICE: i32 = 5;

/// Jobs of established sessions (requests and responses) that one worker may have in the handshake lane: half a second of one
/// thread's work. The next request is refused and counted.
pub const ESTABLISHED_JOBS_MAX: usize = 4096;

/// Jobs of strangers that one worker may have in the handshake lane. Each half-open connection has one at most, so their
/// bound is met first; a stranger beyond it is let go and counted.
pub const STRANGER_JOBS_MAX: usize = 65_536;

/// Jobs of established sessions done in a row while a stranger waits: keys are free, so whoever has a session must not be
/// able to keep everybody else out.
pub const ESTABLISHED_IN_A_ROW_MAX: u32 = 7;

/// Results of the handshake lane for which a worker is woken once, while more jobs wait: each takes less than 0.1 ms, and a
/// worker that shares its core with the lane would interrupt it for every one of them.
pub const LANE_RESULTS_PER_WAKE: usize = 8;

/// Send records kept for reuse, per worker.
pub const SPARE_GATHERS_MAX: usize = 64;

/// A destination whose send has been under way for so long, in nanoseconds, counts as blocked: pages it holds for little
/// payload are packed.
pub const BLOCKED_AFTER_NS: u64 = 2_000_000;

/// Largest credit of one stream, in bytes: 16 MiB fill 1.3 Gbit/s over 100 ms.
pub const STREAM_WINDOW_MAX: u32 = 16 * 1024 * 1024;

/// Completions taken in one turn. Exhausting it is counted (`turn_budget_exhausted`); the rest waits for the next turn.
pub const COMPLETIONS_PER_TURN_MAX: usize = 1024;

/// Submission queue entries: two operations for each of many sessions in a turn; a full queue is submitted early.
pub const SUBMISSION_ENTRIES: u32 = 1024;

/// Completion queue entries: sized for multishot accepts and for a turn's receives and sends.
pub const COMPLETION_ENTRIES: u32 = 4 * SUBMISSION_ENTRIES;

/// Bytes one half-open connection may have sent and we have not judged: message 1 with its length (1,235 bytes with the hybrid
/// part, dmsg-wire 2.8), and a PROXY header in front of it. When they are that many nothing more is received until some are used,
/// or the message has been given more (`LONG_STASHES_LEN_MAX`); the rest waits in the kernel.
pub const STRANGER_STASH_LEN_MAX: usize = 1600;

/// The same for a message 1 that is longer, in bytes: as long as a frame can be (dmsg-wire 3). Clients of another time may say
/// something there that we do not know, and are served without the hybrid.
pub const LONG_STASH_LEN_MAX: usize =
    ringwire_proto::frame::PREFIX_LEN + ringwire_proto::frame::FRAME_BODY_MAX;

/// What such messages have beyond `STRANGER_STASH_LEN_MAX`, all of all workers together, in bytes, until they are answered: 420 of the
/// longest. For one more the oldest of the address prefix with most of them are closed and counted
/// (`long_handshakes_evicted_total`).
pub const LONG_STASHES_LEN_MAX: usize = 1 << 20;

/// The same once message 1 is being answered: message 3 with its length (67 bytes), and what follows it. Less, because now
/// there is the state of the handshake too, and together they must stay below [`STRANGER_LEN_MAX`].
pub const ANSWERED_STASH_LEN_MAX: usize = 512;

/// Memory of one connection before its peer has proved its key, in bytes, all of ours in: tables, bytes, handshake.
pub const STRANGER_LEN_MAX: usize = 4096;

/// The same of one whose message 1 is a long one.
pub const LONG_STRANGER_LEN_MAX: usize = 5200;

/// A dial to somebody who is not here waits for so many proofs of identity that are with the handshake lane: the destination's
/// may be among them. Less than a millisecond.
pub const PROOFS_WAITED_FOR_MAX: usize = 4;

/// Dials that may wait so; the next is refused at once.
pub const UNDECIDED_DIALS_MAX: usize = 1024;

/// Half-open connections (before the session handshake is done) unless configured otherwise; past it the oldest of the
/// largest address prefix is closed and counted.
pub const HALF_OPEN_MAX: usize = 8192;

/// Of the connections that the limit of descriptors permits, this share may be half open, in percent: strangers alone can
/// never use up all descriptors.
pub const HALF_OPEN_PERCENT: usize = 50;

/// Up to this share of the connections an address may have all it wants, in percent; from there on no more than its share.
pub const PLENTY_PERCENT: usize = 75;

/// Sessions closed at a time to make room for other addresses.
pub const EVICTED_AT_A_TIME: usize = 16;

/// A session none of whose streams moved a byte for so long, in nanoseconds, carries nothing.
pub const IDLE_AFTER_NS: u64 = 30 * SECOND_NS;

/// Descriptors kept free for everything that is not a connection: listeners, rings, files, and the connection that is accepted
/// only to be closed when there are too many.
pub const DESCRIPTORS_RESERVED: usize = 64;

/// And for each worker beside the first: its ring, events, counters, and the channels of two attaches.
pub const DESCRIPTORS_RESERVED_PER_WORKER: usize = 16;

/// A warning of one kind is written at most once in so many nanoseconds; the next line says how many were not.
pub const WARNING_INTERVAL_NS: u64 = 5 * SECOND_NS;

/// Streams one session may have opened and not yet closed on both sides (dmsg-wire 11.2); the next is accepted and
/// closed at once.
pub const STREAMS_PER_SESSION_MAX: u32 = 2048;

/// Commands of the control plane taken in one turn.
pub const COMMANDS_PER_TURN_MAX: usize = 16;

/// Listings that one worker has under way at a time; the next is refused.
pub const LISTINGS_MAX: usize = 4;

/// Entries a listing adds to the event ring in one turn.
pub const LISTED_PER_TURN_MAX: usize = 64;

/// Room in the event ring that listings leave to what happens meanwhile, in events.
pub const LISTING_ROOM_MIN: usize = 1024;

/// How soon a listing that found no room looks again, in nanoseconds.
pub const LISTING_RETRY_NS: u64 = 5_000_000;

/// How soon a control plane that missed events is told, once it reads again, in nanoseconds.
pub const RESYNC_RETRY_NS: u64 = 100_000_000;

/// How often a draining worker closes sessions that have become idle, in nanoseconds.
pub const DRAIN_SWEEP_NS: u64 = 50_000_000;

/// A worker of several that ends gives back what it borrowed and tells the others; when that took so long, in nanoseconds, it ends
/// all the same.
pub const LEAVE_TIMEOUT_NS: u64 = 2 * SECOND_NS;

/// How often it looks whether it may, in nanoseconds.
pub const LEAVE_POLL_NS: u64 = 5_000_000;

/// A second, in nanoseconds.
pub const SECOND_NS: u64 = 1_000_000_000;

/// Session handshake, from accept to message 3 (dmsg-wire 3): then the connection is closed.
pub const HANDSHAKE_TIMEOUT_NS: u64 = 5 * SECOND_NS;

/// From the end of the handshake to the peer's first byte, which tells its multiplexer; then the session is closed. Nothing is
/// sent before it, so there is no ping to ask: clients of 2026 ping at once, those of 2024 every 30 s (dmsg-wire 5.6, 15), and
/// what they may be late is what an answer may.
pub const FIRST_BYTE_TIMEOUT_NS: u64 = 45 * SECOND_NS;

/// Reading the request of a new stream (dmsg-wire 11.3): then the stream is closed.
pub const REQUEST_TIMEOUT_NS: u64 = 5 * SECOND_NS;

/// Waiting for the destination's response: then both streams are closed. As long as the most patient of diallers waits, a client of
/// 2024 (dmsg-wire 9 and 11.4: there the server sets no limit of its own); one of 2026 ends its stream after 5 s, and the wait with it.
pub const FORWARD_TIMEOUT_NS: u64 = 20 * SECOND_NS;

/// A dialler that has sent FIN and nothing behind its request has most likely given up: it gets its answer within this time of the
/// request, or its stream is closed.
pub const FINISHED_DIAL_TIMEOUT_NS: u64 = 5 * SECOND_NS;

/// A bridge on which neither direction moved a byte (dmsg-wire 11.3, both directions counted together): both streams
/// are closed.
pub const BRIDGE_IDLE_TIMEOUT_NS: u64 = 300 * SECOND_NS;

/// After the bridge has ended, how long the other direction's queue may still go out; then the stream is reset.
pub const DRAIN_TIMEOUT_NS: u64 = 10 * SECOND_NS;

/// What a side sent before its FIN is delivered however slowly the other side reads; but when nothing of it could go out for
/// this long, the stream is reset. Credit comes back half a window at a time, so a slow reader moves seldom.
pub const DELIVERY_STALL_TIMEOUT_NS: u64 = BRIDGE_IDLE_TIMEOUT_NS;

/// After our FIN, how long the peer may take to send its own; then the stream is reset. Clients of 2024 forget to
/// (dmsg-wire 16).
pub const CLOSE_GRACE_NS: u64 = 30 * SECOND_NS;

/// A session whose peer's kernel acknowledges nothing of what was sent for so long, in nanoseconds, is dead. One that takes a byte now and
/// then is not, however long all of it takes.
pub const STALL_TIMEOUT_NS: u64 = 25 * SECOND_NS;

/// How often that is looked at, in nanoseconds, while something is under way.
pub const STALL_LOOK_NS: u64 = 5 * SECOND_NS;

/// A session whose key another one came with gives a sign of life within this time, in nanoseconds, or two round trips if that is longer;
/// then the other takes over.
pub const RIVAL_ANSWER_NS: u64 = SECOND_NS / 2;

/// A client that cannot be asked (smux, or before its first byte) is taken to live if bytes of it came within this time, in nanoseconds.
/// Nor is one asked again so soon.
pub const RIVAL_FRESH_NS: u64 = SECOND_NS;

/// Dials that wait for that sign of life, so as not to be sent to a dead session; the next is sent all the same.
pub const CONTESTED_DIALS_MAX: usize = 1024;

/// How often a session that others of its key stand by for is asked again, in nanoseconds. Not shorter than the keepalive of smux clients.
pub const RIVAL_INTERVAL_NS: u64 = 12 * SECOND_NS;

/// A session that took over from a silent one is left in peace for so long, in nanoseconds: two clients that are both too slow to answer
/// must not take turns.
pub const RIVAL_SETTLES_NS: u64 = 10 * SECOND_NS;

/// Workers of a data plane at most: more than that has more mailboxes (one for each pair) than it has use for.
pub const WORKERS_MAX: usize = 64;

/// Listening sockets of a data plane at most, one for each worker and address: as many as one message to a successor carries.
pub const LISTENERS_MAX: usize = ringwire_ipc::socket::DESCRIPTORS_MAX;

/// Listen backlog: connections the kernel completes before we accept them. The kernel clamps it to `somaxconn`.
pub const LISTEN_BACKLOG: i32 = 4096;

const _: () = assert!(
    WORKERS_MAX * BUFFER_MEMORY_LEN_MIN <= BUFFER_MEMORY_LEN,
    "the default suffices for every worker"
);
const _: () = assert!(
    LONG_STASHES_LEN_MAX / WORKERS_MAX >= LONG_STASH_LEN_MAX - STRANGER_STASH_LEN_MAX,
    "every worker has room for a long message"
);
const _: () = assert!(PAGE_LEN <= u16::MAX as usize, "a span's offset and length are 16 bits");
const _: () = assert!(
    RECEIVE_RING_PAGES.is_power_of_two() && RECEIVE_RING_PAGES <= 32_768,
    "kernel's rule for buffer rings"
);
const _: () = assert!(GATHER_PARTS_MAX <= 1024, "UIO_MAXIOV");
