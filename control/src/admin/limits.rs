//! The bounds of the data plane that an operator can run into, with what is used of them.

use ringwire_dataplane::limits;
use ringwire_ipc::socket::Memory;

use super::model::{DataPlaneStatus, Limit, Limits};

/// All of them, as things are.
pub(super) fn list(status: &DataPlaneStatus, memory: Memory) -> Limits {
    let workers = u64::from(status.workers);
    let seconds = |ns: u64| ns / limits::SECOND_NS;
    let share = |percent: usize| memory.budget / 100 * percent as u64;
    let held = Some(memory.held);
    let extended = Some(memory.held.max(memory.promised));
    let half_open = Some(status.half_open);
    let connections = Some(status.sessions + status.half_open);
    let rows = [
        ("buffer-memory", held, memory.budget, "bytes", "bytes wait in the kernel"),
        (
            "buffer-memory-before-resets",
            held,
            share(limits::TIGHT_PERCENT),
            "bytes",
            "the address that holds most opens no stream, and its largest are reset",
        ),
        (
            "buffer-memory-for-larger-windows",
            extended,
            share(limits::EXTRA_CREDIT_PERCENT),
            "bytes",
            "streams keep the windows they have",
        ),
        (
            "buffer-memory-of-one-client",
            None,
            share(limits::HOLDER_PERCENT),
            "bytes",
            "its next stream is refused, and its largest are reset",
        ),
        (
            "unbridged-bytes-per-session",
            None,
            limits::UNBRIDGED_LEN_MAX as u64,
            "bytes",
            "the stream that sends more is reset",
        ),
        (
            "unfinished-requests-per-session",
            None,
            limits::UNFINISHED_PER_SESSION_MAX.into(),
            "streams",
            "the next stream is reset",
        ),
        (
            "unfinished-requests-per-address",
            None,
            workers * u64::from(limits::UNFINISHED_PER_PREFIX_MAX),
            "streams",
            "the next stream of whoever has most is reset",
        ),
        (
            "unanswered-dials-per-session",
            None,
            limits::UNANSWERED_MAX as u64,
            "dials",
            "the next dial of whoever has most is refused",
        ),
        (
            "unanswered-dials",
            None,
            memory.budget / (limits::UNANSWERED_BUDGET_PART * limits::UNANSWERED_LEN) as u64,
            "dials",
            "the next dial of whoever has most is refused",
        ),
        ("connections", connections, status.connections_max, "connections", "the next connection is closed"),
        (
            "half-open-connections",
            half_open,
            status.half_open_max,
            "connections",
            "one of those that have not authenticated is closed",
        ),
        (
            "streams-per-session",
            None,
            limits::STREAMS_PER_SESSION_MAX.into(),
            "streams",
            "the next stream is refused",
        ),
        (
            "frames-per-turn",
            None,
            limits::FRAMES_PER_TURN_MAX as u64,
            "frames of a session",
            "the rest waits for the next turn",
        ),
        (
            "frames-without-payload",
            None,
            limits::USELESS_FRAMES_MAX.into(),
            "frames not earned",
            "the session is closed",
        ),
        ("stream-window", None, limits::STREAM_WINDOW_MAX.into(), "bytes", "the sender waits"),
        (
            "handshakes-waiting",
            None,
            workers * limits::STRANGER_JOBS_MAX as u64,
            "messages",
            "one of whoever has most is closed",
        ),
        (
            "requests-waiting",
            None,
            workers * limits::ESTABLISHED_JOBS_MAX as u64,
            "requests",
            "one of whoever has most is refused",
        ),
        ("handshake-timeout", None, seconds(limits::HANDSHAKE_TIMEOUT_NS), "s", "the connection is closed"),
        ("first-byte-timeout", None, seconds(limits::FIRST_BYTE_TIMEOUT_NS), "s", "the session is closed"),
        ("request-timeout", None, seconds(limits::REQUEST_TIMEOUT_NS), "s", "the stream is closed"),
        ("response-timeout", None, seconds(limits::FORWARD_TIMEOUT_NS), "s", "both streams are closed"),
        (
            "bridge-idle-timeout",
            None,
            seconds(limits::BRIDGE_IDLE_TIMEOUT_NS),
            "s",
            "both streams are closed",
        ),
        (
            "drain-timeout",
            None,
            seconds(limits::DRAIN_TIMEOUT_NS),
            "s",
            "what a closed bridge still held is dropped",
        ),
        (
            "delivery-stall-timeout",
            None,
            seconds(limits::DELIVERY_STALL_TIMEOUT_NS),
            "s",
            "what a finished stream still held is dropped",
        ),
        ("close-timeout", None, seconds(limits::CLOSE_GRACE_NS), "s", "the stream is reset"),
        (
            "unacknowledged-data-timeout",
            None,
            seconds(limits::STALL_TIMEOUT_NS),
            "s",
            "the session is closed",
        ),
    ];
    let limits = rows.into_iter().map(|(name, used, value, unit, when_reached)| Limit {
        name: name.to_owned(),
        used,
        value,
        unit: unit.to_owned(),
        when_reached: when_reached.to_owned(),
        // The shares of it are of the same origin.
        origin: status.memory_origin.clone().filter(|_| name == "buffer-memory"),
    });
    Limits { limits: limits.collect() }
}
